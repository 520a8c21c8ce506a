// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/tcctl"
)

// The ways in which an interface is counted, as metrics and JSON call them.
const (
	HookClsact = "clsact"
	HookTCX    = "tcx"
	HookCgroup = "cgroup" // not an interface
	// HookSockOps is that of a cgroup's connections.
	HookSockOps = "sock_ops"
	// HookFiles is none: the connections of a namespace are read from the kernel's files.
	HookFiles = "proc"
)

// program is a loaded classifier.
type program interface{ FD() int }

// Hooks puts our programs on interfaces. What it does not say itself is
// *tcctl.Controller's.
type Hooks struct {
	*tcctl.Controller
	Ingress, Egress       program // for clsact
	TCXIngress, TCXEgress program
}

// Inside returns the hooks of the namespace of a container, which Close leaves alone. There
// an interface receives by its ingress hook what leaves a host veth by the egress hook.
func (h *Hooks) Inside(netns int) (clsactHooks, error) {
	there, err := h.In(netns)
	if err != nil {
		return nil, err
	}
	return &Hooks{Controller: there, Ingress: h.Egress, Egress: h.Ingress}, nil
}

// Attach puts the programs on both clsact hooks of an interface, or in place of our own.
// making is called before it makes the qdisc.
func (h *Hooks) Attach(ifindex int, slot uint16, making func() error) (createdQdisc bool, err error) {
	return h.Controller.Attach(ifindex, slot, h.Ingress, h.Egress, making)
}

// AttachTCX puts the programs at the head of both tcx hooks, or in place of our own.
func (h *Hooks) AttachTCX(ifindex int) error {
	return h.Controller.AttachTCX(ifindex, h.TCXIngress, h.TCXEgress)
}

// Raise puts our programs back at the head of the tcx hooks.
func (h *Hooks) Raise(ifindex int) error {
	return h.Controller.Raise(ifindex, h.TCXIngress, h.TCXEgress)
}

// Current returns the slot that both of our filters on an interface count on. Not
// ok: they are not both there, or a process with another pin path has left them.
func (h *Hooks) Current(ifindex int) (slot uint16, ok bool, err error) {
	filters, err := h.Filters(ifindex)
	if err != nil || len(filters) != 2 {
		return 0, false, err
	}
	a, b := filters[0], filters[1]
	return a.Slot, a.Hook != b.Hook && a.Slot == b.Slot && a.Own && b.Own, nil
}

// Cgroups puts our programs on cgroups. What it does not say itself is
// *cgroupctl.Controller's.
type Cgroups struct {
	*cgroupctl.Controller
	Programs []*ebpf.Program // one for each of its hooks
	// Beside, if it is not nil, is put on the same cgroups, but where another's program allows none
	// beside it: then only Log has it.
	Beside *Cgroups
	Log    *slog.Logger

	mu      sync.Mutex
	without map[uint64]bool // the cgroups where Beside is not
}

// Attach puts the programs on the hooks of a cgroup, or in place of our own.
func (g *Cgroups) Attach(dir string, id uint64) error {
	err := g.Controller.Attach(dir, id, g.Programs...)
	if err != nil || g.Beside == nil {
		return err
	}
	err = g.Beside.Attach(dir, id)
	exclusive := errors.Is(err, cgroupctl.ErrExclusive)
	if g.note(id, exclusive) {
		g.Log.Warn("requests of a cgroup are not counted", "cgroup", dir, "err", err)
	}
	if exclusive {
		return nil
	}
	return err
}

// note notes whether Beside is kept off a cgroup, and reports whether that is new.
func (g *Cgroups) note(id uint64, without bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.without[id]
	if g.without == nil {
		g.without = map[uint64]bool{}
	}
	if delete(g.without, id); without {
		g.without[id] = true
	}
	return without && !was
}

// Replace puts the programs in place of our own on a cgroup.
func (g *Cgroups) Replace(id uint64) error {
	err := g.Controller.Replace(id, g.Programs...)
	if g.Beside != nil {
		err = errors.Join(err, g.Beside.Replace(id))
	}
	return err
}

// Attached reports whether the programs are on a cgroup.
func (g *Cgroups) Attached(id uint64) (bool, error) {
	on, err := g.Controller.Attached(id)
	if !on || err != nil || g.Beside == nil {
		return on, err
	}
	g.mu.Lock()
	without := g.without[id]
	g.mu.Unlock()
	if without {
		return true, nil
	}
	return g.Beside.Attached(id)
}

// Detach takes the programs off a cgroup.
func (g *Cgroups) Detach(id uint64) error {
	err := g.Controller.Detach(id)
	if g.Beside != nil {
		g.note(id, false)
		err = errors.Join(err, g.Beside.Detach(id))
	}
	return err
}
