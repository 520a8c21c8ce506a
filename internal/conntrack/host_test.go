// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

// patience bounds what should happen soon.
const patience = 2 * time.Minute

// site is a host of the test's own that routes between two containers and an outside, with
// real nftables: it publishes a port of web, masquerades what leaves, and has a service address
// that leads to web.
type site struct {
	tb                   testing.TB
	host                 *testnet.Namespace
	client, web, outside *testnet.Namespace
	port                 int // that was sent from last
}

const (
	clientAddress  = "10.88.1.2"
	webAddress     = "10.88.2.2"
	hostAddress    = "192.0.2.1"
	outsideAddress = "192.0.2.2"
	serviceAddress = "10.99.0.1"

	nat = `
table ip nat {
	chain before {
		type nat hook prerouting priority dstnat;
		ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.88.2.2:80
		ip daddr 10.99.0.1 tcp dport 80 dnat to 10.88.2.2:80
	}
	chain after {
		type nat hook postrouting priority srcnat;
		ip saddr 10.88.0.0/16 oifname "out0" masquerade
	}
}`
)

func newSite(tb testing.TB) *site {
	tb.Helper()
	need.Root(tb)
	need.Commands(tb, "nft", "conntrack")
	s := &site{tb: tb, host: namespace(tb), port: 10_000}
	s.client = s.behind("client0", "10.88.1.1", clientAddress)
	s.web = s.behind("web0", "10.88.2.1", webAddress)
	s.outside = s.behind("out0", hostAddress, outsideAddress)
	must(tb, s.host.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	s.run("nft", nat)
	return s
}

func namespace(tb testing.TB) *testnet.Namespace {
	tb.Helper()
	n, err := testnet.NewNamespace()
	must(tb, err)
	tb.Cleanup(func() { must(tb, n.Close()) })
	return n
}

// behind makes a namespace with an address, whose way out is the host.
func (s *site) behind(name, gateway, address string) *testnet.Namespace {
	s.tb.Helper()
	n := namespace(s.tb)
	must(s.tb, testnet.Veth(s.host, name, n, "eth0"))
	for _, end := range []struct {
		*testnet.Namespace
		name, address string
	}{{s.host, name, gateway}, {n, "eth0", address}} {
		link, err := end.LinkByName(end.name)
		must(s.tb, err)
		addr, err := netlink.ParseAddr(end.address + "/24")
		must(s.tb, err)
		must(s.tb, end.AddrAdd(link, addr))
	}
	must(s.tb, n.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
	return n
}

// run runs a program in the host; of nft it is the text of rules.
func (s *site) run(name string, args ...string) string {
	s.tb.Helper()
	out, err := s.host.Run(name, args...)
	must(s.tb, err)
	return string(out)
}

// serve answers TCP connections to a port until the test ends, and closes each when the other
// side has.
func (s *site) serve(in *testnet.Namespace, port int) {
	s.tb.Helper()
	var l net.Listener
	must(s.tb, in.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}))
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			})
		}
	})
	s.tb.Cleanup(func() { _ = l.Close(); all.Wait() })
}

// connect opens connections, and leaves them open until the test ends if open is set.
func (s *site) connect(from *testnet.Namespace, to string, n int, open bool) {
	s.tb.Helper()
	must(s.tb, from.Do(func() error {
		for range n {
			c, err := net.DialTimeout("tcp4", to, patience)
			if err != nil {
				return err
			}
			if open {
				s.tb.Cleanup(func() { _ = c.Close() })
			} else if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	}))
}

// send sends datagrams that nobody answers, each from a socket of its own.
func (s *site) send(from *testnet.Namespace, to string, n int) {
	s.tb.Helper()
	must(s.tb, from.Do(func() error {
		for range n {
			s.port++ // each makes an entry
			d := net.Dialer{LocalAddr: &net.UDPAddr{Port: s.port}}
			c, err := d.Dial("udp4", to)
			if err != nil {
				return err
			}
			if _, err = c.Write([]byte("x")); err == nil {
				err = c.Close()
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

// addresses are those of a namespace, as the kernel has them.
func addresses(n *testnet.Namespace) func() ([]netip.Addr, error) {
	return func() (found []netip.Addr, err error) {
		all, err := n.AddrList(nil, netlink.FAMILY_V4)
		for _, a := range all {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLoopback() {
				found = append(found, addr.Unmap())
			}
		}
		return found, err
	}
}

func enter(n *testnet.Namespace) func(func(int) error) error {
	return func(visit func(int) error) error { return visit(n.FD()) }
}

// track runs a tracker until the test ends.
func (s *site) track(o Options) *Tracker {
	s.tb.Helper()
	o.NetNS, o.setting, o.Log = s.host.FD(), s.get, slog.New(slog.NewTextHandler(s.tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.Retention = func() time.Duration { return time.Hour }
	t := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { must(s.tb, t.Run(ctx)) })
	s.tb.Cleanup(func() { cancel(); running.Wait() })
	return t
}

// found tells a tracker of both containers.
func (s *site) found(t *Tracker) {
	t.Found(Sandbox{ID: 1, Owner: "client", Since: time.Now(), Addresses: addresses(s.client), Enter: enter(s.client)})
	t.Found(Sandbox{ID: 2, Owner: "web", Since: time.Now(), Addresses: addresses(s.web), Enter: enter(s.web)})
}

// poll waits until a condition holds.
func (s *site) poll(what string, holds func() bool, says func() any) {
	s.tb.Helper()
	for began := time.Now(); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > patience {
			s.tb.Fatalf("not within %v: %s; now %+v", patience, what, says())
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// listed is what `conntrack -L` has of an address, by protocol, as who opened and as who
// answers.
type listed struct{ established, other [directions]uint64 }

func (s *site) list(address, protocol string) listed {
	s.tb.Helper()
	return s.listIn(s.host, protocol, address)
}

func (s *site) listIn(n *testnet.Namespace, protocol string, addresses ...string) (l listed) {
	s.tb.Helper()
	out, err := n.Run("conntrack", "-L", "-p", protocol)
	must(s.tb, err)
	for line := range strings.Lines(string(out)) {
		var sources []string
		for _, word := range strings.Fields(line) {
			if source, ok := strings.CutPrefix(word, "src="); ok {
				sources = append(sources, source)
			}
		}
		if len(sources) != 2 {
			continue // the line that says how many there are
		}
		established := strings.Contains(line, " ESTABLISHED ")
		if protocol != "tcp" {
			established = !strings.Contains(line, "[UNREPLIED]")
		}
		for d, source := range [directions]string{receive: sources[1], transmit: sources[0]} {
			switch {
			case !slices.Contains(addresses, source):
			case established:
				l.established[d]++
			default:
				l.other[d]++
			}
		}
	}
	return l
}

func shownList(c usage.Conntrack, p usage.Protocol) listed {
	return listed{
		[directions]uint64{receive: c.Receive[p].Established, transmit: c.Transmit[p].Established},
		[directions]uint64{receive: c.Receive[p].Other, transmit: c.Transmit[p].Other},
	}
}

func (t *Tracker) overflown(tb testing.TB) int {
	tb.Helper()
	var m dto.Metric
	must(tb, t.overflows.Write(&m))
	return int(m.GetCounter().GetValue())
}
