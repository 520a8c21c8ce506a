// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// How our filters look to the kernel and to `tc filter show`.
const (
	filterHandle = 0x6e74 // "nt"
	namePrefix   = "nettally_"
	classidMajor = filterHandle << 16 // no meaning; the minor is the slot
	protocolAll  = unix.ETH_P_ALL
)

// The addresses of clsact and its hooks (linux/pkt_sched.h). An `ingress` qdisc
// has the same handle and parent.
const (
	clsactParent = 0xfffffff1
	clsactHandle = 0xffff0000
	clsactMinor  = 0xfff1 // Ingress and Egress follow
)

// Hook is a clsact hook, as seen from the interface it is on.
type Hook int

// The hooks.
const (
	Ingress Hook = iota + 1 // what the interface receives
	Egress                  // what the interface sends
)

var hooks = []Hook{Ingress, Egress}

func (h Hook) String() string {
	switch h {
	case Ingress:
		return "ingress"
	case Egress:
		return "egress"
	}
	return fmt.Sprintf("Hook(%d)", int(h))
}

func (h Hook) parent() uint32 { return clsactHandle | clsactMinor + uint32(h) }

// Filter is one of our filters.
type Filter struct {
	Ifindex   int
	Hook      Hook
	Slot      uint16 // the minor of its classid
	Priority  uint16
	ProgramID uint32
	Own       bool    // it counts with the counters of this process: see [Options.Own]
	Tag       [8]byte // of the program's instructions
}

// Filters lists our filters on both hooks of an interface, those of ended
// processes too. An interface that is gone has none.
//
// Requires CAP_SYS_ADMIN where there are any, to look at their programs.
func (c *Controller) Filters(ifindex int) ([]Filter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.filters(ifindex)
}

func (c *Controller) filters(ifindex int) ([]Filter, error) {
	var filters []Filter
	for _, hook := range hooks {
		all, err := c.lister.filters(ifindex, hook, info(0, protocolAll))
		if err != nil {
			return nil, fmt.Errorf("list %s filters of ifindex %d: %w", hook, ifindex, err)
		}
		for _, f := range all {
			ours, own, err := c.ours(f)
			if err != nil {
				return nil, fmt.Errorf("inspect %s filter of ifindex %d: %w", hook, ifindex, err)
			}
			if ours {
				filters = append(filters, Filter{
					Ifindex: ifindex, Hook: hook, Slot: uint16(f.classid), Priority: f.priority,
					ProgramID: f.program, Own: own, Tag: f.tag,
				})
			}
		}
	}
	return filters, nil
}

// Interfaces lists the interfaces that have a clsact qdisc, ours or not. Each
// may hold leftovers of an earlier process; see [Controller.Filters].
//
// The kernel does not say when interfaces came or went during its answer, which
// may then lack one. Look again later.
func (c *Controller) Interfaces() ([]int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	qdiscs, err := c.lister.qdiscs()
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var ifindexes []int
	for _, q := range qdiscs {
		if q.kind == "clsact" {
			ifindexes = append(ifindexes, q.ifindex)
		}
	}
	return ifindexes, nil
}

// ours says whether a filter is proven ours, and has the counters of this process. The
// program is looked at once: an id is not used again before 2^31 others have been.
func (c *Controller) ours(f filter) (ours, own bool, err error) {
	if !f.looksOurs() {
		return false, false, nil
	}
	if own, proven := c.proven[f.program]; proven {
		return true, own, nil
	}
	program, err := programInfo(f.program)
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil // deleted since it was listed
	}
	if err != nil || !strings.HasPrefix(program.Name, namePrefix) {
		return false, false, err
	}
	maps, _ := program.MapIDs()
	if elsewhere, err := c.elsewhere(maps); err != nil || elsewhere {
		return false, false, err
	}
	own = c.own(maps)
	c.proven[f.program] = own
	return true, own, nil
}

// looksOurs is what of the proof is in the filter itself.
func (f filter) looksOurs() bool {
	return f.kind == "bpf" && f.handle == filterHandle && f.protocol == protocolAll && f.chain == 0 &&
		f.direct && f.program != 0 && strings.HasPrefix(f.name, namePrefix)
}

// programInfo returns what the kernel says of a program, its name cut to 15 characters.
func programInfo(id uint32) (*ebpf.ProgramInfo, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	return info, nil
}
