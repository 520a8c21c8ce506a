// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/florianl/go-tc"
	"golang.org/x/sys/unix"
)

// attachBoth attaches to both hooks, or leaves both as before says they are.
func (c *Controller) attachBoth(ifindex int, slot uint16, ingress, egress program, before []Filter) error {
	in := Filter{Ifindex: ifindex, Hook: Ingress, Slot: slot, Priority: c.priority}
	out := Filter{Ifindex: ifindex, Hook: Egress, Slot: slot, Priority: c.priority}
	oldIn, oldOut := at(before, in), at(before, out)

	// The filter may be all that holds its program, so open that first.
	held, err := hold(oldIn)
	if err != nil {
		return fmt.Errorf("replace ingress filter of ifindex %d: %w", ifindex, err)
	}
	defer held.Close()
	if err := c.put(in, ingress, oldIn != nil); err != nil {
		return err
	}
	if err := c.put(out, egress, oldOut != nil); err != nil {
		return errors.Join(err, c.putBack(in, oldIn, held))
	}
	return c.deleteStrays(before)
}

// at returns our filter in the place of f.
func at(before []Filter, f Filter) *Filter {
	for i, old := range before {
		if old.Hook == f.Hook && old.Priority == f.Priority {
			return &before[i]
		}
	}
	return nil
}

// hold opens the program of a filter. It returns nil where there is no filter,
// or none any more.
func hold(f *Filter) (*ebpf.Program, error) {
	if f == nil {
		return nil, nil
	}
	held, err := ebpf.NewProgramFromID(ebpf.ProgramID(f.ProgramID))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return held, err
}

// put adds a filter. To replace an older one of ours is allowed only where one
// was seen: otherwise what has the handle is somebody else's.
func (c *Controller) put(f Filter, p program, replace bool) error {
	verb := c.tc.Filter().Add
	if replace {
		verb = c.tc.Filter().Replace
	}
	if err := verb(f.object(p)); err != nil {
		return fmt.Errorf("attach %s filter to ifindex %d: %w", f.Hook, f.Ifindex, c.explainFilter(f, err))
	}
	return nil
}

// putBack undoes put. Where the interface is gone, so is the filter.
func (c *Controller) putBack(f Filter, old *Filter, held *ebpf.Program) error {
	if held == nil {
		return c.delete(f)
	}
	return ignoreGone(c.put(*old, held, true))
}

// deleteStrays removes our filters of another priority: a leftover of another
// configuration would count every packet a second time.
func (c *Controller) deleteStrays(before []Filter) error {
	var errs []error
	for _, f := range before {
		if f.Priority != c.priority {
			errs = append(errs, c.delete(f))
		}
	}
	return errors.Join(errs...)
}

// addQdisc adds clsact unless it is there.
func (c *Controller) addQdisc(ifindex int, making func() error) (created bool, err error) {
	if there, err := c.hasClsact(ifindex); err != nil || there {
		return false, err
	}
	if making != nil {
		if err := making(); err != nil {
			return false, err
		}
	}
	err = c.tc.Qdisc().Add(clsact(ifindex))
	switch {
	case err == nil:
		return true, nil
	case !errors.Is(err, unix.EEXIST):
		return false, explainQdisc(err)
	}
	there, lookErr := c.hasClsact(ifindex) // somebody was faster
	if lookErr == nil && !there {
		lookErr = err
	}
	return false, lookErr
}

// hasClsact looks for the qdisc. An `ingress` qdisc would take our filters too, both of
// them at ingress: it is an error.
func (c *Controller) hasClsact(ifindex int) (bool, error) {
	q, err := c.lister.qdisc(ifindex)
	if err == nil && q.kind == "ingress" {
		err = ErrIngressQdisc
	}
	return q.kind == "clsact", err
}

// clsact is the qdisc of an interface as go-tc takes it.
func clsact(ifindex int) *tc.Object {
	return &tc.Object{
		Msg:       tc.Msg{Ifindex: uint32(ifindex), Handle: clsactHandle, Parent: clsactParent},
		Attribute: tc.Attribute{Kind: "clsact"},
	}
}

// object is the filter as go-tc takes it, without a program only for deletion.
func (f Filter) object(p program) *tc.Object {
	object := &tc.Object{
		Msg: tc.Msg{
			Ifindex: uint32(f.Ifindex),
			Handle:  filterHandle,
			Parent:  f.Hook.parent(),
			Info:    info(f.Priority, protocolAll),
		},
		Attribute: tc.Attribute{Kind: "bpf"},
	}
	if p != nil {
		object.BPF = &tc.Bpf{
			FD:      new(uint32(p.FD())),
			Name:    new(namePrefix + f.Hook.String()),
			ClassID: new(classidMajor | uint32(f.Slot)),
			Flags:   new(uint32(tc.BpfActDirect)),
		}
	}
	return object
}
