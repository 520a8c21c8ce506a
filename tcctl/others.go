// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
)

// Others says what others have on the hooks of an interface.
type Others struct {
	// IngressQdisc says that there is an `ingress` qdisc, which excludes clsact.
	IngressQdisc bool
	// TCX says that there are programs on a tcx hook, which run before clsact.
	TCX bool
	// Before says that a clsact hook has filters that run before ours, or would, if
	// ours are not there.
	Before bool
}

// Others looks at the hooks of an interface. Each of them may end a packet's way
// before it comes to our programs.
//
// Requires CAP_NET_ADMIN, CAP_BPF and, where filters or links of ours are found,
// CAP_SYS_ADMIN to look at their programs. Returns an error wrapping [ErrGone].
func (c *Controller) Others(ifindex int) (Others, error) {
	others, err := c.otherFilters(ifindex)
	if err == nil {
		others.TCX, err = c.otherLinks(ifindex)
	}
	if err != nil {
		return Others{}, fmt.Errorf("look at others on ifindex %d: %w", ifindex, err)
	}
	return others, nil
}

func (c *Controller) otherFilters(ifindex int) (others Others, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q, err := c.lister.qdisc(ifindex)
	if err != nil {
		return Others{}, err
	}
	others.IngressQdisc = q.kind == "ingress"
	if q.kind != "clsact" {
		return others, nil
	}
	for _, hook := range hooks {
		filters, err := c.lister.filters(ifindex, hook, info(0, 0))
		if err != nil {
			return Others{}, err
		}
		before, err := c.before(filters)
		if err != nil {
			return Others{}, err
		}
		others.Before = others.Before || before
	}
	return others, nil
}

// before says whether filters of a hook run before ours. The kernel lists them in the
// order in which it runs them. A filter of another chain runs only if one of chain 0
// sends packets there.
func (c *Controller) before(filters []filter) (bool, error) {
	lower, ahead := false, false
	for _, f := range filters {
		ours, err := c.ours(f)
		if err != nil {
			return false, err
		}
		if ours {
			return ahead, nil
		}
		if f.chain == 0 && f.handle != 0 {
			ahead = true
			lower = lower || f.priority < c.priority
		}
	}
	return lower, nil
}

// otherLinks does not hold the lock, under which grace periods pass, unless it has seen
// somebody: that may be our own link, of a moment ago and not pinned yet.
func (c *Controller) otherLinks(ifindex int) (bool, error) {
	seen, err := c.foreignLinks(ifindex)
	if err != nil || !seen {
		return false, err
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	return c.foreignLinks(ifindex)
}

func (c *Controller) foreignLinks(ifindex int) (bool, error) {
	for _, hook := range hooks {
		foreign, err := c.links.foreign(place{ifindex, hook})
		if errors.Is(err, ErrUnsupported) {
			return false, nil
		}
		if err != nil || foreign {
			return foreign, err
		}
	}
	return false, nil
}
