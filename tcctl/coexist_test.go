// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// foreignKinds are filters of every kind tc makes. A kernel rarely has them all.
var foreignKinds = map[string]string{
	"u32":           "protocol ip pref 10 u32 match ip dst 192.0.2.1/32 flowid 1:1",
	"u32 mirror":    "protocol 0x88b5 pref 11 u32 match u32 0 0 action mirred egress mirror dev m0",
	"u32 chain":     "protocol all pref 12 chain 3 u32 match u32 0 0 flowid 1:1",
	"matchall":      "protocol ipv6 pref 13 matchall classid 1:2",
	"flower":        "protocol ip pref 14 flower ip_proto tcp dst_port 80 classid 1:2",
	"basic":         "protocol ip pref 15 basic classid 1:2",
	"fw":            "protocol ip pref 16 handle 7 fw classid 1:7",
	"route":         "protocol ip pref 17 route from 1 classid 1:3",
	"flow":          "protocol ip pref 18 handle 1 flow map key dst rshift 0 divisor 8 baseclass 1:1",
	"cgroup":        "protocol ip pref 19 handle 1 cgroup",
	"classic bpf":   "protocol ip pref 20 bpf bytecode 1,6+0+0+0 flowid 1:4",
	"bpf mirror":    "protocol ip pref 21 bpf bytecode 1,6+0+0+0 action mirred egress mirror dev m0",
	"same priority": "protocol all pref 2 handle 0x5 bpf bytecode 1,6+0+0+0 flowid 1:4",
	"our handle":    "protocol all pref 22 handle 0x6e74 bpf bytecode 1,6+0+0+0 flowid 1:4",
}

// addKinds adds what the kernel has of foreignKinds to both hooks.
func (h *host) addKinds(t *testing.T) {
	t.Helper()
	for name, filter := range foreignKinds {
		for _, hook := range hooks {
			args := strings.Fields("filter add dev v0 " + hook.String() + " " + filter)
			for i := range args {
				if strings.HasPrefix(args[i], "1,6") {
					args[i] = strings.ReplaceAll(args[i], "+", " ")
				}
			}
			out, err := h.Run("tc", args...)
			switch {
			case err == nil:
			case strings.Contains(name, "u32"), strings.Contains(name, "bpf"):
				t.Fatal(err)
			default:
				t.Logf("this kernel has no %s: %s", name, out)
			}
		}
	}
}

// newBusyHost is a host whose v0 has foreign filters of every kind, and foreign
// programs before, beside and after our place.
func newBusyHost(t *testing.T) (h *host, foreign []*classifier) {
	t.Helper()
	h = newHost(t)
	err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "m0", Flags: 1}, PeerName: "m1"})
	if err != nil {
		t.Fatal(err)
	}
	h.run(t, "tc qdisc add dev v0 clsact")
	for _, priority := range []uint16{1, 2, 3} {
		p := load(t, "foreign")
		for _, hook := range hooks {
			h.addBPF(t, hook, priority, 9, "foreign", p)
		}
		foreign = append(foreign, p)
	}
	h.addKinds(t)
	return h, foreign
}

func TestForeignFiltersSurvive(t *testing.T) {
	h, foreign := newBusyHost(t)
	c := open(t, h.Namespace, 2)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	before := h.show(t)

	for slot := range uint16(2) {
		if attach(t, c, h.ifindex, slot, ingress, egress) {
			t.Error("made a qdisc where there was one")
		}
		wantFilters(t, c, h.ifindex, h.attached(Ingress, 2, slot, ingress), h.attached(Egress, 2, slot, egress))
		if diff := cmp.Diff(before, withoutOurs(h.show(t))); diff != "" {
			t.Errorf("foreign filters after attach %d (-before +after):\n%s", slot, diff)
		}
	}
	h.exchange(t)
	ingress.want(t, noted{Classid: 1, Packets: 1})
	egress.want(t, noted{Classid: 1, Packets: 1})
	for _, p := range foreign {
		p.want(t, noted{Classid: 0, Packets: 2})
	}
	if n := h.mirrored(t); n != 2 {
		t.Errorf("the mirroring filters saw %d packets, want 2", n)
	}

	detach(t, c, h.ifindex, true)
	if diff := cmp.Diff(before, h.show(t)); diff != "" {
		t.Errorf("state (-before +after detach):\n%s", diff)
	}
}

// withoutOurs takes our filters out of tc's print.
func withoutOurs(show string) string {
	return regexp.MustCompile(`(?m)^.*handle 0x6e74 flowid 6e74:\S* nettally_.*\n`).ReplaceAllString(show, "")
}

// mirrored adds up the packets of the mirroring actions. The kernel keeps the u32
// filters of both hooks together and lists both on each, so actions are told
// apart by their index.
func (h *host) mirrored(t *testing.T) (packets int) {
	t.Helper()
	out := h.run(t, "tc -s filter show dev v0 ingress") + h.run(t, "tc -s filter show dev v0 egress")
	seen := map[string]int{}
	for _, m := range regexp.MustCompile(`(?s)index (\d+) ref.*?Sent \d+ bytes (\d+) pkt`).FindAllStringSubmatch(out, -1) {
		seen[m[1]], _ = strconv.Atoi(m[2])
	}
	for _, n := range seen {
		packets += n
	}
	return packets
}

func TestDetachKeepsForeignQdisc(t *testing.T) {
	tests := map[string]struct {
		prepare     []string
		removeQdisc bool
	}{
		"not asked for":         {[]string{"qdisc add dev v0 clsact"}, false},
		"not empty":             {[]string{"qdisc add dev v0 clsact", "filter add dev v0 egress u32 match u32 0 0 flowid 1:1"}, true},
		"shared ingress block":  {[]string{"qdisc add dev v0 ingress_block 7 clsact"}, true},
		"shared egress block":   {[]string{"qdisc add dev v0 egress_block 7 clsact"}, true},
		"ingress":               {[]string{"qdisc add dev v0 ingress"}, true},
		"none":                  {nil, true},
		"another on the egress": {[]string{"qdisc add dev v0 root tbf rate 1gbit burst 1mb latency 50ms"}, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			for _, command := range test.prepare {
				h.run(t, "tc "+command)
			}
			before := h.show(t)
			detach(t, open(t, h.Namespace, 0), h.ifindex, test.removeQdisc)
			if diff := cmp.Diff(before, h.show(t)); diff != "" {
				t.Errorf("state (-before +after):\n%s", diff)
			}
		})
	}
}

func TestDetachTakesOwnQdisc(t *testing.T) {
	h := newHost(t)
	before := h.show(t)
	c := open(t, h.Namespace, 0)
	created := attach(t, c, h.ifindex, 1, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	for range 2 {
		detach(t, c, h.ifindex, created)
		if diff := cmp.Diff(before, h.show(t)); diff != "" {
			t.Errorf("state (-before +after):\n%s", diff)
		}
	}
}

// What we cannot attach beside is left alone, and the error says what it is.
func TestAttachInTheWay(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, h *host)
		want    error
		says    string
	}{
		"ingress qdisc": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 ingress")
				h.run(t, "tc filter add dev v0 ingress pref 2 protocol ip u32 match u32 0 0 flowid 1:1")
			},
			ErrIngressQdisc, "add clsact qdisc to ifindex 7: an ingress qdisc is in the way of clsact",
		},
		"priority with another kind": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.run(t, "tc filter add dev v0 ingress pref 2 protocol all u32 match u32 0 0 flowid 1:1")
			},
			ErrForeign, "attach ingress filter to ifindex 7: another program's filter is in the way: " +
				"u32 filter, priority 2, protocol 0x0003; set attach.priority to a free number",
		},
		"priority with another protocol": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 clsact")
				_, err := h.Run("tc", "filter", "add", "dev", "v0", "ingress", "pref", "2", "protocol", "ip",
					"handle", "0x6e74", "bpf", "bytecode", "1,6 0 0 0")
				if err != nil {
					t.Fatal(err)
				}
			},
			ErrForeign, "bpf filter, priority 2, protocol 0x0800",
		},
		"handle": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.addBPF(t, Egress, 2, filterHandle, "theirs", load(t, "theirs"))
			},
			ErrForeign, `attach egress filter to ifindex 7: another program's filter is in the way: ` +
				`bpf filter "theirs", priority 2, protocol 0x0003, handle 0x6e74; set attach.priority`,
		},
		"handle and name": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.addBPF(t, Ingress, 2, filterHandle, "nettally_ingress", load(t, "theirs"))
			},
			ErrForeign, `bpf filter "nettally_ingress"`,
		},
		"handle and program": {
			func(t *testing.T, h *host) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.addBPF(t, Ingress, 2, filterHandle, "theirs", load(t, "nettally_ingress"))
			},
			ErrForeign, `bpf filter "theirs"`,
		},
		"shared block": {
			func(t *testing.T, h *host) { h.run(t, "tc qdisc add dev v0 egress_block 7 clsact") },
			ErrForeign, "attach egress filter to ifindex 7: another program's filter is in the way: the hook uses a shared filter block",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			test.prepare(t, h)
			before := h.show(t)
			c := open(t, h.Namespace, 2)
			for range 2 {
				_, err := c.Attach(h.ifindex, 1, load(t, "nettally_ingress"), load(t, "nettally_egress"), nil)
				says := strings.ReplaceAll(test.says, "ifindex 7", "ifindex "+strconv.Itoa(h.ifindex))
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), says) {
					t.Errorf("Attach: %v\nwant %q", err, says)
				}
				wantFilters(t, c, h.ifindex)
				detach(t, c, h.ifindex, true)
				if diff := cmp.Diff(before, h.show(t)); diff != "" {
					t.Errorf("state (-before +after):\n%s", diff)
				}
			}
		})
	}
}

// Ours are found among more filters than one answer of the kernel holds.
func TestManyFilters(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 2)
	ingress, egress, theirs := load(t, "nettally_ingress"), load(t, "nettally_egress"), load(t, "theirs")
	h.run(t, "tc qdisc add dev v0 clsact")
	for handle := range uint32(500) {
		h.addBPF(t, Egress, 2, handle+1, strings.Repeat("long", 50), theirs)
	}
	attach(t, c, h.ifindex, 1, ingress, egress)
	wantFilters(t, c, h.ifindex, h.attached(Ingress, 2, 1, ingress), h.attached(Egress, 2, 1, egress))
	all, err := c.lister.filters(h.ifindex, Egress, info(0, 0))
	count := func(name string) int {
		matching := slices.DeleteFunc(slices.Clone(all), func(f filter) bool { return !strings.HasPrefix(f.name, name) })
		return len(matching)
	}
	if err != nil || count("long") != 500 || count("nettally_egress") != 1 {
		t.Errorf("%d foreign and %d own filters, %v", count("long"), count("nettally_egress"), err)
	}
}

func TestExplainQdisc(t *testing.T) {
	tests := []struct {
		errno unix.Errno
		want  error
	}{
		{unix.ENODEV, ErrGone},
		{unix.ENOENT, ErrUnsupported},
		{unix.EOPNOTSUPP, ErrUnsupported},
		{unix.EPERM, unix.EPERM},
	}
	for _, test := range tests {
		err := explainQdisc(test.errno)
		if !errors.Is(err, test.want) || !errors.Is(err, test.errno) {
			t.Errorf("%v: %v, want %v", test.errno, err, test.want)
		}
	}
}
