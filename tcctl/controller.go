// SPDX-License-Identifier: Apache-2.0

// Package tcctl puts classifier programs on the clsact or the tcx hooks of an
// interface and takes exactly those off again. It knows ifindexes and program
// descriptors, nothing of containers.
//
// A filter of ours has a fixed handle, a name that begins with "nettally_" and
// a program whose name in the kernel begins the same way. Only what shows all
// three is ever replaced or deleted, and not while another process of ours that runs counts
// by it. A tcx link of ours is pinned in our folder and
// has a program with such a name.
package tcctl

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/florianl/go-tc"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/trusted"
)

// DefaultPriority leaves room before us for one filter that must be first:
// others are known to insist on priority 1.
const DefaultPriority = 2

// program is a loaded program. *ebpf.Program is one.
type program interface{ FD() int }

// Options says where and how a Controller works.
type Options struct {
	// NetNS is a descriptor of the network namespace of the interfaces, used only
	// by Open. 0 is the namespace of the process.
	NetNS int
	// Pins is a folder on a bpffs for the pins of tcx links, for one namespace and
	// one process at a time. It is made for the first pin and removed with the last;
	// its parent must be there, and nobody else may be able to change either. "" is for
	// who doesn't attach to tcx.
	Pins string
	// Priority is the place of our filters among all filters of a hook, lowest
	// first. 0 is DefaultPriority.
	Priority uint16
	// Elsewhere says of the maps of a program whether it counts for another process that
	// runs: then a filter with it is not ours. nil says that there is none.
	Elsewhere func(maps []ebpf.MapID) (bool, error)
	// Own says of the maps of a program of ours whether its counters are those of this process.
	// Others' may be left by a process with another pin path. nil says that all are.
	Own func(maps []ebpf.MapID) bool
}

// Controller attaches programs to interfaces of one network namespace.
//
// It is safe for concurrent use. The verbs for clsact run one after the other, as the
// kernel answers them anyway, and so do those that change tcx; but neither kind waits
// for the other, and those that only look at tcx wait for none. The kernel has one lock
// for all of them, RTNL, and holds it while something is put on tcx or taken off: for an
// RCU grace period, some 20 ms.
type Controller struct {
	priority  uint16
	links     links
	elsewhere func(maps []ebpf.MapID) (bool, error)
	own       func(maps []ebpf.MapID) bool

	mu     sync.Mutex // for what follows
	tc     *tc.Tc
	lister lister
	proven map[uint32]bool // programs that are ours, by id: whether they have our counters
}

// Open returns a Controller. It holds two netlink sockets and, given a NetNS, a
// duplicate of that. They keep the namespace alive until Close.
//
// Returns an error wrapping [trusted.ErrUntrusted] if others can change the pins.
func Open(options Options) (*Controller, error) {
	if options.Priority == 0 {
		options.Priority = DefaultPriority
	}
	if options.Elsewhere == nil {
		options.Elsewhere = func([]ebpf.MapID) (bool, error) { return false, nil }
	}
	if options.Own == nil {
		options.Own = func([]ebpf.MapID) bool { return true }
	}
	c := &Controller{
		priority: options.Priority, elsewhere: options.Elsewhere, own: options.Own, proven: make(map[uint32]bool),
	}
	c.links.pins = options.Pins
	if options.Pins != "" {
		if err := trusted.Check(options.Pins); err != nil {
			return nil, fmt.Errorf("use folder for pins: %w", err)
		}
	}
	if err := c.open(options.NetNS); err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	if options.NetNS == 0 {
		return c, nil
	}
	var err error
	if c.links.netns, err = duplicate(options.NetNS); err != nil {
		return nil, errors.Join(fmt.Errorf("hold network namespace: %w", err), c.Close())
	}
	return c, nil
}

// open dials twice: go-tc adds and deletes, but fails on any filter of a kind
// or with an attribute it does not know, so we list on a socket of our own.
func (c *Controller) open(netns int) error {
	config := netlink.Config{NetNS: netns}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &config)
	if err != nil {
		return err
	}
	c.lister = lister{conn}
	c.tc, err = tc.Open(&tc.Config{NetNS: netns})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	// The kernel's own sentence ends up in our errors.
	if err := c.tc.SetOption(netlink.ExtendedAcknowledge, true); err != nil {
		return errors.Join(err, c.Close())
	}
	return nil
}

// Close gives the descriptors back. What was attached stays and goes on counting;
// see [Controller.Detach] and [Controller.DetachTCX].
func (c *Controller) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := errors.Join(c.tc.Close(), c.lister.conn.Close())
	if c.links.netns != nil {
		err = errors.Join(err, c.links.netns.Close())
	}
	return err
}

// Attach puts the programs on the clsact hooks of an interface, with slot as
// the skb->tc_classid they see. It makes the clsact qdisc if there is none and
// says so in createdQdisc. If making is not nil, it is called right before: whoever
// notes then that the qdisc is ours knows it also after a kill. An error of making
// ends the attempt.
//
// Attaching again replaces our own filters, in one step of the kernel that no
// packet slips through, and touches no others. Filters of ours at another
// priority are removed after the new ones are in place; a packet in between
// meets both. If one hook fails, all is put back as it was found, the qdisc too.
//
// The names of the programs must begin with "nettally_", or Attach and Detach
// will not know them again. The filters hold the programs and stay when the
// process ends.
//
// Requires Linux 5.10, CAP_NET_ADMIN and, where filters of ours are found,
// CAP_SYS_ADMIN to look at their programs. Returns an error wrapping [ErrGone],
// [ErrUnsupported], [ErrForeign] or [ErrIngressQdisc], or the kernel's errno.
func (c *Controller) Attach(ifindex int, slot uint16, ingress, egress program, making func() error) (createdQdisc bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A program nobody else refers to would be closed while we use its descriptor.
	defer runtime.KeepAlive(ingress)
	defer runtime.KeepAlive(egress)

	created, err := c.addQdisc(ifindex, making)
	if err != nil {
		return false, fmt.Errorf("add clsact qdisc to ifindex %d: %w", ifindex, err)
	}
	var before []Filter
	if !created {
		if before, err = c.filters(ifindex); err != nil {
			return false, err
		}
	}
	err = c.attachBoth(ifindex, slot, ingress, egress, before)
	if err != nil && created {
		return false, errors.Join(err, ignoreGone(c.removeQdisc(ifindex)))
	}
	return created, err
}
