// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Detach removes our filters from an interface, from both hooks and at any
// priority, and nothing else. With removeQdisc it then removes the clsact qdisc
// if that is empty: no filter of anyone on either hook and no shared block. The
// kernel offers no "delete if empty", so a filter that somebody adds in the
// microseconds after our look goes with the qdisc: ask for it only where Attach
// made the qdisc.
//
// What is missing, the interface too, is no error. Requires CAP_NET_ADMIN and,
// where filters of ours are found, CAP_SYS_ADMIN to look at their programs.
func (c *Controller) Detach(ifindex int, removeQdisc bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	filters, err := c.filters(ifindex)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range filters {
		errs = append(errs, c.delete(f))
	}
	if err := errors.Join(errs...); err != nil || !removeQdisc {
		return err
	}
	return ignoreGone(c.removeQdisc(ifindex))
}

// delete removes one filter that is proven ours.
func (c *Controller) delete(f Filter) error {
	err := c.tc.Filter().Delete(f.object(nil))
	if err == nil || c.missing(f.Ifindex, err) {
		return nil
	}
	return fmt.Errorf("delete %s filter of ifindex %d: %w", f.Hook, f.Ifindex, err)
}

// removeQdisc removes an empty clsact qdisc. Any other stays.
func (c *Controller) removeQdisc(ifindex int) error {
	q, err := c.lister.qdisc(ifindex)
	if err != nil {
		return fmt.Errorf("look at qdisc of ifindex %d: %w", ifindex, err)
	}
	if q.kind != "clsact" || q.shared {
		return nil
	}
	for _, hook := range hooks {
		all, err := c.lister.filters(ifindex, hook, info(0, 0))
		if err != nil || len(all) > 0 {
			return err
		}
	}
	err = c.tc.Qdisc().Delete(clsact(ifindex))
	if err == nil || c.missing(ifindex, err) {
		return nil
	}
	return fmt.Errorf("delete clsact qdisc of ifindex %d: %w", ifindex, err)
}

// missing says whether a deletion found nothing to delete. EINVAL can mean that
// the qdisc is gone, and much else.
func (c *Controller) missing(ifindex int, err error) bool {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return true
	}
	if !errors.Is(err, unix.EINVAL) {
		return false
	}
	q, err := c.lister.qdisc(ifindex)
	return errors.Is(err, ErrGone) || err == nil && q.kind != "clsact"
}
