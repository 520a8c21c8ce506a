// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
)

// selftestID is the id of the container, which only the nettally under test knows.
const selftestID = "selftest"

// What a selftest sends, each in both directions and over IPv4 and IPv6.
const (
	datagrams     = 1000
	datagramBatch = 100 // no more than the kernel queues on a veth at once
	datagramSize  = 100
	accepted      = 20
	refused       = 7

	headersIPv4 = 14 + 20 + 8 // Ethernet, IPv4, UDP
	headersIPv6 = 14 + 40 + 8
)

func newSelftest() *cobra.Command {
	return &cobra.Command{
		Use:   "selftest",
		Short: "Prove the numbers on this kernel, with a throw-away container and known traffic",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := required(config); err != nil {
				return err
			}
			return selftest(cmd.Context(), cmd.OutOrStdout(), config)
		},
	}
}

// selftest runs a whole nettally on a host that has one container and nothing else.
func selftest(ctx context.Context, out io.Writer, config *configs.Config) (err error) {
	host, err := testnet.NewNamespace()
	if err != nil {
		return err
	}
	defer host.Close()
	cgroup := fmt.Sprintf("/nettally-selftest-%d", os.Getpid())
	d, err := startTested(ctx, host, config, cgroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()

	container, err := testnet.NewContainer(host, testnet.ContainerOptions{
		ID:         selftestID,
		Cgroup:     cgroup + "/" + selftestID,
		LikeDocker: true,
	})
	if err != nil {
		return interrupted(ctx, fmt.Errorf("make container: %w", err))
	}
	defer func() { err = errors.Join(err, container.Close()) }()
	return interrupted(ctx, prove(ctx, out, d, container))
}

// interrupted replaces what went wrong because of a signal: ^C ends the agents and the
// daemon, too, and their end may be seen before the signal.
func interrupted(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(100 * time.Millisecond):
		return err
	}
}

// prove sends traffic between the container and its host, and compares.
func prove(ctx context.Context, out io.Writer, d *tested, container *testnet.Container) error {
	peer, err := testnet.StartAgent(d.host)
	if err != nil {
		return err
	}
	defer peer.Close()

	if err := d.awaitContainer(ctx); err != nil {
		return err
	}
	if err := exchange(container, peer); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return compare(ctx, out, d, container)
}

// exchange sends the same amounts both ways.
func exchange(container *testnet.Container, peer *testnet.Agent) error {
	i := container.Interfaces[0]
	for _, way := range []struct {
		from, to *testnet.Agent
		ip       netip.Addr
	}{
		{container.Agent, peer, i.HostIPv4},
		{container.Agent, peer, i.HostIPv6},
		{peer, container.Agent, i.IPv4},
		{peer, container.Agent, i.IPv6},
	} {
		if err := send(way.from, way.to, way.ip); err != nil {
			return err
		}
	}
	return nil
}

func send(from, to *testnet.Agent, ip netip.Addr) error {
	sink, err := to.Listen("udp", ip)
	if err != nil {
		return err
	}
	for sent := datagramBatch; sent <= datagrams; sent += datagramBatch {
		if err := from.SendUDP(sink.Addr, datagramBatch, datagramSize); err != nil {
			return err
		}
		if _, err := sink.Received(sent); err != nil {
			return err
		}
	}
	listener, err := to.Listen("tcp", ip)
	if err != nil {
		return err
	}
	if err := connect(from, listener.Addr, testnet.Connects{Connected: accepted}); err != nil {
		return err
	}
	// Port 9 (discard) has no listener in namespaces of our own.
	return connect(from, netip.AddrPortFrom(ip, 9), testnet.Connects{Refused: refused})
}

func connect(from *testnet.Agent, to netip.AddrPort, want testnet.Connects) error {
	got, err := from.Connect(to, want.Connected+want.Refused)
	if err == nil && got != want {
		err = fmt.Errorf("connect to %s: %+v, expected %+v", to, got, want)
	}
	return err
}

// compare prints a line per number. Its error says that one was off.
func compare(ctx context.Context, out io.Writer, d *tested, container *testnet.Container) error {
	var lines []line
	for range 50 {
		found, err := exporter.Fetch(ctx, d.socket, false)
		if err != nil {
			return err
		}
		kernel, err := testnet.InterfaceCounters(container.PID())
		if err != nil {
			return err
		}
		if lines = judge(found, container.ID, kernel["eth0"]); allExact(lines) {
			break
		}
		// The last packets may still be on their way.
		time.Sleep(20 * time.Millisecond)
	}
	for _, l := range lines {
		verdict := "ok"
		if l.got != l.want {
			verdict = "OFF"
		}
		if err := say(out, "%-4s %-28s %10d of %d", verdict, l.what, l.got, l.want); err != nil {
			return err
		}
	}
	if !allExact(lines) {
		return errors.New("the numbers are off on this kernel; please report it with the lines above")
	}
	return say(out, "exact")
}

// line is one number and what it should be.
type line struct {
	what      string
	got, want uint64
}

func allExact(lines []line) bool {
	for _, l := range lines {
		if l.got != l.want {
			return false
		}
	}
	return len(lines) > 0
}

func judge(found *exporter.Containers, id string, kernel testnet.Counters) []line {
	var c exporter.Container // all 0 if it was not found
	for _, candidate := range found.Containers {
		if candidate.ID == id {
			c = candidate
		}
	}
	var lines []line
	for _, direction := range []struct {
		name           string
		counts         exporter.Counts
		bytes, packets uint64 // as the kernel says
	}{
		{"receive", c.Receive, kernel.ReceiveBytes, kernel.ReceivePackets},
		{"transmit", c.Transmit, kernel.TransmitBytes, kernel.TransmitPackets},
	} {
		name, counts := direction.name, direction.counts
		lines = append(lines,
			line{name + " udp packets", counts.Protocols.UDP.Packets, 2 * datagrams},
			line{name + " udp bytes", counts.Protocols.UDP.Bytes, datagrams * (headersIPv4 + headersIPv6 + 2*datagramSize)},
			line{name + " tcp syn", counts.TCPSYN, 2 * (accepted + refused)},
			line{name + " packets, kernel's", counts.InterfacePackets, direction.packets},
			line{name + " bytes, kernel's", counts.InterfaceBytes, direction.bytes},
		)
	}
	return append(lines, judgeConnections(c.TCP)...)
}

// judgeConnections judges what became of the container's connections, where that is counted.
func judgeConnections(tcp *exporter.TCP) []line {
	if tcp == nil || tcp.Connects == nil { // or they are read every 5 s, from the kernel's files
		return nil
	}
	return []line{
		{"tcp connect attempts", tcp.ConnectAttempts, 2 * (accepted + refused)},
		{"tcp connects", *tcp.Connects, 2 * accepted},
		{"tcp connect failures", *tcp.ConnectFailures, 2 * refused},
		{"tcp accepts", tcp.Accepts, 2 * accepted},
		{"tcp closes", *tcp.Closes, 4 * accepted},
	}
}

// tested is a nettally of its own, which sees one cgroup and one host.
type tested struct {
	host   *testnet.Namespace
	folder string
	socket string
	config string // its file
	daemon *exec.Cmd
	ended  chan error // gets the daemon's end
}

// startTested runs this program as a daemon in the host's namespace and waits until
// it answers.
func startTested(ctx context.Context, host *testnet.Namespace, config *configs.Config, cgroup string) (*tested, error) {
	folder, err := os.MkdirTemp("", "nettally-selftest-")
	if err != nil {
		return nil, err
	}
	d := &tested{
		host:   host,
		folder: folder,
		socket: filepath.Join(folder, "socket"),
		config: filepath.Join(folder, "nettally.yaml"),
	}
	if err := d.start(ctx, config, cgroup); err != nil {
		return nil, errors.Join(interrupted(ctx, err), d.stop())
	}
	return d, nil
}

// start runs the daemon with a configuration by which it knows one container, whose
// path means nothing to any other nettally on this host.
func (d *tested) start(ctx context.Context, config *configs.Config, cgroup string) error {
	text := fmt.Sprintf(`state_dir: %q
accounting: {source: bpf, tcp: %q}
bpf: {pin_path: %q}
attach: {mode: %s, priority: %d}
watch: {cgroup_root: %q, patterns: ['^%s/(?P<id>[^/]+)$'], include: [%q]}
names: {docker: "off", podman: "off", cri: "off"}
exporter: {listen: "", socket: %q}
`, filepath.Join(d.folder, "state"), config.Accounting.TCP, filepath.Join(d.folder, "bpf"), config.Attach.Mode, config.Attach.Priority, config.Watch.CgroupRoot, cgroup, selftestID, d.socket)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return err
	}
	d.daemon = exec.Command("/proc/self/exe", "run", "--config", d.config)
	log, err := os.Create(d.logPath())
	if err != nil {
		return err
	}
	defer log.Close()
	d.daemon.Stdout, d.daemon.Stderr = log, log
	// The environment would win over the file, with the pin path of the host's nettally.
	d.daemon.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "NETTALLY_")
	})
	// ^C is for us, who end the daemon in good order.
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.host.Start(d.daemon); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.daemon.Wait() }() // stop waits for it
	return d.await(ctx)
}

// await waits until the daemon answers.
func (d *tested) await(ctx context.Context) error {
	for {
		if _, err := exporter.Fetch(ctx, d.socket, false); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-d.ended:
			d.ended <- nil
			return fmt.Errorf("nettally under test ended: %w: %s", err, d.said())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// awaitContainer waits until the container is counted on its interface. A runtime takes longer
// than that from making the veth to starting the process; we do not.
func (d *tested) awaitContainer(ctx context.Context) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		found, err := exporter.Fetch(ctx, d.socket, false)
		if err != nil {
			return err
		}
		if all := found.Containers; len(all) > 0 && all[0].Accounted && len(all[0].Interfaces) > 0 {
			return nil
		}
	}
	return fmt.Errorf("nettally under test does not find the container: %s", d.said())
}

func (d *tested) logPath() string { return filepath.Join(d.folder, "log") }

// said returns the last line of the daemon's log.
func (d *tested) said() string {
	text, err := os.ReadFile(d.logPath())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(lines[len(lines)-1])
}

// stop ends the daemon and removes what it made.
func (d *tested) stop() error {
	var errs []error
	if d.ended != nil {
		// It may have ended by itself: then Wait has said why.
		_ = d.daemon.Process.Signal(unix.SIGTERM)
		if err := <-d.ended; !terminated(err) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, d.host.Do(func() error {
		config := &configs.Config{BPF: configs.BPF{PinPath: filepath.Join(d.folder, "bpf")}}
		slots, err := bpf.PinnedSlots(config.BPF.PinPath)
		if err == nil {
			_, err = detach(config, slots)
		}
		return err
	}))
	return errors.Join(append(errs, os.RemoveAll(d.folder))...)
}

// terminated says whether SIGTERM ended the daemon at once, as it does where it comes
// before the daemon takes notice of signals.
func terminated(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == unix.SIGTERM
}
