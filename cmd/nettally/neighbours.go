// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/tcctl"
)

// neighbour is somebody else who puts qdiscs or programs on containers' interfaces.
type neighbour struct {
	name  string
	seen  func(hostSigns) bool
	later string // what it adds to a running container, "" if only while that starts
}

// hostSigns are what a host shows of who works on its interfaces.
type hostSigns struct {
	root   string
	links  []netlink.Link
	qdiscs []netlink.Qdisc
}

// allNeighbours are known to add `ingress` qdiscs, or to remove filters. docs/decisions/neighbours.md
// says what each does.
var allNeighbours = []neighbour{
	{"Calico", func(s hostSigns) bool { return s.link("veth", "cali") }, ""}, // auto knows its interfaces
	{"Cilium", func(s hostSigns) bool { return s.link("veth", "cilium_") || s.link("veth", "lxc") }, ""},
	{"LXD", func(s hostSigns) bool {
		return s.link("bridge", "lxdbr") || s.file("var/snap/lxd/common/lxd/unix.socket", "var/lib/lxd/unix.socket")
	}, "limits.egress and limits.max"},
	{"Incus", func(s hostSigns) bool {
		return s.link("bridge", "incusbr") || s.file("var/lib/incus/unix.socket", "run/incus/unix.socket")
	}, "limits.egress and limits.max"},
	{"Open vSwitch", func(s hostSigns) bool {
		return s.link("openvswitch", "") || s.file("run/openvswitch/db.sock", "var/run/openvswitch/db.sock")
	}, "ingress_policing_rate"},
	{"libvirt", func(s hostSigns) bool {
		return s.link("bridge", "virbr") || s.file("run/libvirt/libvirt-sock", "run/libvirt/virtlxcd-sock")
	}, "<bandwidth> of its containers"},
	{"a shaper", func(s hostSigns) bool { return s.shaped() }, "`ingress` qdiscs"},
}

// link reports whether there is a link of a kind whose name begins so.
func (s hostSigns) link(kind, prefix string) bool {
	return slices.ContainsFunc(s.links, func(l netlink.Link) bool {
		return l.Type() == kind && strings.HasPrefix(l.Attrs().Name, prefix)
	})
}

// file reports whether one of some paths below the root is there.
func (s hostSigns) file(paths ...string) bool {
	return slices.ContainsFunc(paths, func(path string) bool {
		_, err := os.Lstat(filepath.Join(s.root, path))
		return err == nil
	})
}

// shaped reports whether a veth that is not known to be another neighbour's has an `ingress`
// qdisc.
func (s hostSigns) shaped() bool {
	veths := map[int]bool{}
	for _, l := range s.links {
		veths[l.Attrs().Index] = l.Type() == "veth" && !strings.HasPrefix(l.Attrs().Name, "cali")
	}
	return slices.ContainsFunc(s.qdiscs, func(q netlink.Qdisc) bool {
		return q.Type() == "ingress" && veths[q.Attrs().LinkIndex]
	})
}

// neighbours says who else works on containers' interfaces and cgroups, and what to set.
func neighbours(config *configs.Config) (string, error) {
	if config.Accounting.Source == configs.SourceProc {
		return "nobody is in the way of the kernel's files", nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("open rtnetlink: %w", err)
	}
	defer host.Close()
	found, wrong, err := onInterfaces(host, "/", config.Attach.Mode, !errors.Is(tcctl.HaveTCX(), tcctl.ErrUnsupported))
	if err != nil {
		return "", err
	}
	taken, err := onCgroups(config)
	if err != nil {
		return "", err
	}
	if wrong = append(wrong, taken...); len(wrong) > 0 {
		return "", errors.New(strings.Join(wrong, "; "))
	}
	return found, nil
}

// onInterfaces returns what was found, and what can go wrong with the mode that is set.
func onInterfaces(host *netlink.Handle, root, mode string, tcx bool) (found string, wrong []string, err error) {
	signs := hostSigns{root: root}
	if signs.links, err = host.LinkList(); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return "", nil, fmt.Errorf("list links: %w", err)
	}
	if signs.qdiscs, err = host.QdiscList(nil); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return "", nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var said []string
	for _, n := range allNeighbours {
		switch {
		case !n.seen(signs):
		case !tcx:
			wrong = append(wrong, n.name+" is here: where it adds an `ingress` qdisc it fails beside nettally, and the kernel has no tcx: use Linux 6.6, or exclude its interfaces (attach.interfaces.exclude)")
		case mode == configs.ModeClsact:
			wrong = append(wrong, n.name+" is here: it may fail beside clsact, or remove it: set attach.mode to auto or tcx")
		case mode == configs.Auto && n.later != "":
			said = append(said, fmt.Sprintf("%s is here: %s can be set once an interface has been still for a minute, and at once with attach.mode: tcx", n.name, n.later))
		default:
			said = append(said, n.name+" is here, and is left room")
		}
	}
	if len(said) == 0 {
		said = []string{"nobody is known to be in the way"}
	}
	return strings.Join(said, "; "), wrong, nil
}

// onCgroups names the programs of others that keep ours off containers' cgroups.
func onCgroups(config *configs.Config) (wrong []string, err error) {
	const maxNamed = 3
	w, err := newWatcher(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	root, hooks := w.Layout().Unified, cgroupHooks(config)
	if root == "" || len(hooks) == 0 {
		return nil, nil
	}
	containers, err := w.Containers()
	if err != nil {
		return nil, err
	}
	control := cgroupctl.New(cgroupctl.Options{Root: root, Hooks: hooks})
	seen := map[cgroupctl.ExclusiveError]bool{}
	for _, c := range containers {
		dir, ok := w.Unified(c)
		if !ok {
			continue
		}
		by, err := control.Exclusive(dir)
		if errors.Is(err, unix.EPERM) || errors.Is(err, fs.ErrPermission) {
			return nil, nil // the check of privileges says so
		}
		if err != nil || by == nil || seen[*by] { // it may have gone
			continue
		}
		if seen[*by] = true; len(seen) > maxNamed {
			return append(wrong, "and others"), nil
		}
		what := "containers below cgroup %s are not counted there: %v: have its owner attach it with that flag"
		if by.Hook == cgroupctl.Connections[0].String() {
			what = "TCP connections of " + what
		}
		wrong = append(wrong, fmt.Sprintf(what, by.Cgroup, by))
	}
	return wrong, nil
}

// cgroupHooks are the hooks of cgroups that our programs are put on.
func cgroupHooks(config *configs.Config) (hooks cgroupctl.Hooks) {
	if config.Accounting.Cgroup != configs.Off {
		hooks = append(hooks, cgroupctl.Packets...)
	}
	if config.Accounting.TCP != configs.Off {
		hooks = append(hooks, cgroupctl.Connections...)
	}
	if requestsOf(config).Any() {
		hooks = append(hooks, cgroupctl.Requests...)
	}
	return hooks
}
