// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
)

// OthersOnTCX says whether there are programs of others on a tcx hook of an interface:
// they run before clsact, and may end a packet's way before it comes there. Where the
// kernel has no tcx there are none.
//
// Requires CAP_NET_ADMIN, CAP_BPF and, where links of ours are found, CAP_SYS_ADMIN to look
// at their programs. Returns an error wrapping [ErrGone].
func (c *Controller) OthersOnTCX(ifindex int) (bool, error) {
	others, err := c.otherLinks(ifindex)
	if err != nil {
		return false, fmt.Errorf("look at others on ifindex %d: %w", ifindex, err)
	}
	return others, nil
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
