// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// nobody asks for names.
type nobody struct{}

func (nobody) Want(string)   {}
func (nobody) Forget(string) {}

// rig is a controller with everything real around it, on a host of its own.
type rig struct {
	t        testing.TB
	host     *testnet.Namespace
	accounts *usage.Accounts
	control  *Controller
	watch    *watcher.Watcher
	reload   func()
	excluded atomic.Pointer[string] // the host interface that is not to be counted
	unknown  atomic.Pointer[string] // the container that is not to be known
	mode     Mode
	cgroup   atomic.Pointer[CgroupMode] // nil: off
	unified  string                     // where the cgroup2 hierarchy is
	pins     string
	stop     func()
}

// start runs a controller on a host, with its maps below pinPath if that is not "".
func start(t testing.TB, host *testnet.Namespace, pinPath string, prepare ...func(*Controller)) *rig {
	t.Helper()
	return startWith(t, host, pinPath, CgroupOff, (*watcher.Watcher).Run, prepare...)
}

// startCounting is start with some cgroups counted, too.
func startCounting(t testing.TB, host *testnet.Namespace, pinPath string, cgroup CgroupMode) *rig {
	t.Helper()
	return startWith(t, host, pinPath, cgroup, (*watcher.Watcher).Run)
}

// source tells a controller of events, which are the watcher's or not.
type source func(*watcher.Watcher, context.Context, chan<- watcher.Event) error

// startWith is start with events from elsewhere.
func startWith(t testing.TB, host *testnet.Namespace, pinPath string, cgroup CgroupMode, events source, prepare ...func(*Controller)) *rig {
	t.Helper()
	r := &rig{t: t, host: host, mode: ModeAuto}
	r.cgroup.Store(&cgroup)
	datapath := nettest.Must(bpf.Load(bpf.Options{PinPath: pinPath}))(t)
	pins := pinPath
	if pins == "" {
		pins = nettest.BPFFS(t)
	}
	r.pins = filepath.Join(pins, "cgroups")
	hooks := nettest.Must(tcctl.Open(tcctl.Options{NetNS: host.FD(), Pins: filepath.Join(pins, "links")}))(t)
	log := slog.New(slog.DiscardHandler)
	if _, ok := t.(*testing.T); ok {
		log = slog.New(noBugs{slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}), t})
	}
	watch := nettest.Must(watcher.New(watcher.Options{NetNS: host.FD(), Log: log}))(t)
	r.accounts = usage.New(usage.Options{Datapath: datapath, Retention: func() time.Duration { return time.Hour }})
	r.watch = watch
	r.control = New(Options{
		Host: watch,
		Hooks: &Hooks{
			Controller: hooks,
			Ingress:    datapath.Ingress, Egress: datapath.Egress,
			TCXIngress: datapath.TCXIngress, TCXEgress: datapath.TCXEgress,
		},
		TCX:      tcctl.HaveTCX() == nil,
		Accounts: r.accounts,
		Settings: r.settings,
		Log:      log,
	})
	r.unified = watch.Layout().Unified
	if r.unified != "" {
		r.control.Cgroups = &Cgroups{
			Controller: cgroupctl.New(cgroupctl.Options{Root: r.unified, Pins: r.pins}),
			Programs:   []*ebpf.Program{datapath.CgroupIngress, datapath.CgroupEgress},
		}
	}
	for _, f := range prepare {
		f(r.control)
	}
	r.run(func(ctx context.Context, to chan<- watcher.Event) error { return events(watch, ctx, to) })
	stop := r.stop
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		stop()
		for _, c := range []interface{ Close() error }{watch, hooks, datapath} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(r.stop)
	return r
}

// run starts the goroutines and makes stop end them.
func (r *rig) run(source func(context.Context, chan<- watcher.Event) error) {
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan watcher.Event)
	ended := make(chan error, 2)
	go func() { ended <- source(ctx, events) }()
	who := roster.New(roster.Options[watcher.Sandbox]{
		Containers: r.watch.Containers, Missed: r.watch.Missed,
		Backend: r.control, Accounts: r.accounts, Names: nobody{}, Log: r.control.Log,
		Settings: func() roster.Settings {
			mine := fmt.Sprintf("/nettally-testnet-%d/", os.Getpid())
			return roster.Settings{
				Container: func(c watcher.Container) bool {
					unknown := r.unknown.Load()
					return strings.HasPrefix(c.Cgroup, mine) && (unknown == nil || c.ID != *unknown)
				},
				Reconcile: time.Minute,
			}
		},
	})
	r.reload = who.Reload
	go func() { ended <- who.Run(ctx, events) }()
	r.stop = func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				r.t.Error(err)
			}
		}
	}
	<-who.Ready()
}

func (r *rig) settings() Settings {
	return Settings{
		Interface: func(name string) bool { x := r.excluded.Load(); return x == nil || *x != name },
		Mode:      r.mode,
		Cgroup:    r.cgroupMode(),
	}
}

func (r *rig) cgroupMode() CgroupMode {
	if mode := r.cgroup.Load(); mode != nil {
		return *mode
	}
	return CgroupOff
}

// wait polls until a container is as it should be.
func (r *rig) wait(id, what string, ok func(usage.Container) bool) usage.Container {
	r.t.Helper()
	var last usage.Container
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, c := range r.accounts.Snapshot().Containers {
			if c.ID == id {
				last = c
			}
		}
		if last.ID != "" && ok(last) {
			return last
		}
	}
	r.t.Fatalf("container %s never was %s; last: %+v", id, what, last)
	return last
}

func (r *rig) waitCounted(id string, interfaces int) {
	r.t.Helper()
	r.wait(id, "counted", func(c usage.Container) bool {
		return c.Accounted() && c.State == usage.Running && len(c.Interfaces) == interfaces
	})
}

func (r *rig) waitReason(id string, reason usage.Reason) {
	r.t.Helper()
	r.wait(id, string(reason), func(c usage.Container) bool { return c.Reason == reason })
}

// upload sends datagrams from a container's interface to its host.
func upload(t testing.TB, c *testnet.Container, peer *testnet.Agent, i testnet.Interface, count int) {
	t.Helper()
	sink := nettest.Must(peer.Listen("udp", i.HostIPv4))(t)
	if err := c.SendUDP(sink.Addr, count, 100); err != nil {
		t.Fatal(err)
	}
	nettest.Must(sink.Received(count))(t)
}

// sent checks what a container has sent, and that it received nothing.
func (r *rig) sent(id string, packets uint64) {
	r.t.Helper()
	r.wait(id, fmt.Sprintf("seen to send %d packets", packets), func(c usage.Container) bool {
		return c.Transmit.Protocol(usage.ProtocolUDP) == usage.Volume{Packets: packets, Bytes: packets * (14 + 20 + 8 + 100)} &&
			c.Transmit.Wire().Packets == packets && c.Receive.Wire().Packets == 0
	})
}

func TestLife(t *testing.T) {
	need.Root(t)
	for name, likeDocker := range map[string]bool{"Docker's order": true, "podman's order": false} {
		t.Run(name, func(t *testing.T) {
			host := nettest.Host(t)
			peer := nettest.Agent(t, host)
			early := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: likeDocker})
			r := start(t, host, "")
			late := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: likeDocker})
			for _, c := range []*testnet.Container{early, late} {
				r.waitCounted(c.ID, 1)
				upload(t, c, peer, c.Interfaces[0], 100)
				r.sent(c.ID, 100)
			}

			second := nettest.Must(late.AddInterface(host, "eth1"))(t)
			r.waitCounted(late.ID, 2)
			upload(t, late, peer, second, 50)
			r.sent(late.ID, 150)

			if err := late.Restart(); err != nil {
				t.Fatal(err)
			}
			r.wait(late.ID, "counted again", func(c usage.Container) bool {
				return c.Accounted() && len(c.Interfaces) == 2 && c.Interfaces[0].Attached && c.Interfaces[1].Attached &&
					c.Interfaces[0].HostInterface == late.Interfaces[0].HostName && c.Interfaces[1].HostInterface == late.Interfaces[1].HostName
			})
			upload(t, late, peer, late.Interfaces[0], 25)
			r.sent(late.ID, 175)

			if err := late.Close(); err != nil {
				t.Fatal(err)
			}
			r.wait(late.ID, "stopped", func(c usage.Container) bool {
				return c.State == usage.Stopped && !c.Interfaces[0].Attached && !c.Interfaces[1].Attached
			})
			r.sent(late.ID, 175)
		})
	}
}

// Containers without an interface of their own are named with the reason, and the
// traffic of a shared namespace is the owner's alone.
func TestReasons(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	r := start(t, host, "")
	owner := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	r.waitCounted(owner.ID, 1)
	sharing := nettest.Container(t, host, testnet.ContainerOptions{Join: owner.Namespace})
	onHost := nettest.Container(t, host, testnet.ContainerOptions{Join: host})
	lonely := nettest.Must(testnet.NewNamespace())(t)
	defer lonely.Close()
	none := nettest.Container(t, host, testnet.ContainerOptions{Join: lonely})

	r.waitReason(sharing.ID, usage.SharedNetwork)
	r.waitReason(onHost.ID, usage.HostNetwork)
	upload(t, sharing, peer, owner.Interfaces[0], 10)
	r.sent(owner.ID, 10)
	r.sent(sharing.ID, 0)
	r.waitReason(none.ID, usage.NoHostVeth)

	// An interface that comes later is found by its event.
	if err := testnet.Veth(host, "vlate", lonely, "eth0"); err != nil {
		t.Fatal(err)
	}
	r.waitCounted(none.ID, 1)
}

// The kernel counts while no controller runs, and the next one goes on.
func TestAdopt(t *testing.T) {
	need.Root(t)
	pins := t.TempDir()
	t.Cleanup(func() {
		if err := bpf.Unpin(pins + "/bpf"); err != nil {
			t.Error(err)
		}
	})
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	gone := nettest.Container(t, host, testnet.ContainerOptions{})

	r := start(t, host, pins+"/bpf")
	r.waitCounted(c.ID, 1)
	r.waitCounted(gone.ID, 1)
	upload(t, c, peer, c.Interfaces[0], 10)
	r.stop()
	upload(t, c, peer, c.Interfaces[0], 20)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}

	r = start(t, host, pins+"/bpf")
	r.waitCounted(c.ID, 1)
	upload(t, c, peer, c.Interfaces[0], 30)
	r.sent(c.ID, 60)
	if left := r.accounts.Leftovers(); len(left) != 0 {
		t.Errorf("slots of what has gone are still taken: %+v", left)
	}
}

// Excluding an interface takes our filters and our qdisc off it, and including it
// again puts them on.
func TestExclude(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": host}}
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	before := nettest.TakeSnapshot(t, scope)
	r := start(t, host, "")
	r.waitCounted(c.ID, 1)

	r.excluded.Store(&c.Interfaces[0].HostName)
	r.reload()
	r.wait(c.ID, "excluded", func(c usage.Container) bool { return !c.Interfaces[0].Attached })
	r.waitReason(c.ID, usage.InterfaceExcluded)
	if after := nettest.TakeSnapshot(t, scope); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("excluded, and not as before:\n%v\n%v", after, before)
	}

	r.excluded.Store(nil)
	r.reload()
	r.wait(c.ID, "included", func(c usage.Container) bool { return c.Interfaces[0].Attached && c.Accounted() })
	upload(t, c, peer, c.Interfaces[0], 10)
	r.sent(c.ID, 10)
}

// An interface that can't be counted is said to be so, and is tried again.
func TestAttachFailed(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	peer := nettest.Agent(t, host)
	c := nettest.Container(t, host, testnet.ContainerOptions{})
	veth := c.Interfaces[0].HostName
	nettest.Must(host.Run("tc", "qdisc", "add", "dev", veth, "ingress"))(t)
	r := start(t, host, "", func(c *Controller) { c.TCX = false })
	r.waitReason(c.ID, usage.AttachFailed)

	nettest.Must(host.Run("tc", "qdisc", "del", "dev", veth, "ingress"))(t)
	r.reload()
	r.waitCounted(c.ID, 1)
	upload(t, c, peer, c.Interfaces[0], 10)
	r.sent(c.ID, 10)
}

// A port of a bridge is counted before its peer has moved; one whose peer stays is left
// alone again once it is no port any more.
func TestBridgePort(t *testing.T) {
	need.Root(t)
	need.Commands(t, "tc")
	host := nettest.Host(t)
	scope := nettest.Scope{Namespaces: map[string]*testnet.Namespace{"host": host}}
	nettest.Must(host.Run("ip", "link", "add", "br0", "type", "bridge"))(t)
	nettest.Must(host.Run("ip", "link", "add", "port", "type", "veth", "peer", "name", "end"))(t)
	before := nettest.TakeSnapshot(t, scope)
	r := start(t, host, "")
	unowned := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); len(r.accounts.Snapshot().Unowned) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("unowned: %+v, want %d", r.accounts.Snapshot().Unowned, want)
			}
		}
	}
	nettest.Must(host.Run("ip", "link", "set", "port", "master", "br0"))(t)
	unowned(1)
	nettest.Must(host.Run("ip", "link", "set", "port", "nomaster"))(t)
	r.reload()
	unowned(0)
	if after := nettest.TakeSnapshot(t, scope); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("left alone, and not as before:\n%v\n%v", after, before)
	}
}
