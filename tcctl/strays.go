// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// DetachStrays takes off the tcx hooks of the namespace those links of ours that no pin in our
// folder leads to, and returns the interfaces they were on. They are of an ended process whose
// pins are at another path, or hidden, as by another bpffs that was mounted over them.
//
// Such a link is found by its id, is on an interface of the namespace, and has a program whose
// name begins with "nettally_" and that counts for no process that runs. A link that we have
// just made has no pin yet, so it must not run beside what attaches. What a stray's pins hold
// stays until they go: after this it counts nothing, and costs no packet anything.
//
// Each link takes an RCU grace period. With an error it took off what it could. Requires
// CAP_SYS_ADMIN. Where the kernel has no tcx there are none.
func (c *Controller) DetachStrays() (ifindexes []int, err error) {
	if err := HaveTCX(); errors.Is(err, ErrUnsupported) {
		return nil, nil
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	var errs []error
	var all link.Iterator
	defer all.Close()
	for all.Next() {
		p, stray, err := c.isStray(all.Link)
		if err == nil && stray {
			if err = all.Link.Detach(); err == nil {
				ifindexes = append(ifindexes, p.ifindex)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take link %d off %v: %w", all.ID, p, err))
		}
	}
	if err := all.Err(); err != nil {
		errs = append(errs, fmt.Errorf("list links: %w", err))
	}
	slices.Sort(ifindexes)
	return slices.Compact(ifindexes), errors.Join(errs...)
}

// isStray says whether a link is ours and no pin leads to it.
func (c *Controller) isStray(l link.Link) (p place, stray bool, err error) {
	info, err := l.Info()
	if err != nil || info.TCX() == nil || info.TCX().Ifindex == 0 {
		return p, false, nil // another's, as a rule, of which we need not know
	}
	p = place{ifindex: int(info.TCX().Ifindex), hook: Egress}
	if ebpf.AttachType(info.TCX().AttachType) == ebpf.AttachTCXIngress {
		p.hook = Ingress
	}
	if ours, err := c.isOwnProgram(info.Program); err != nil || !ours {
		return p, false, err
	}
	pinned, err := c.links.open(p)
	if err != nil && !errors.Is(err, ErrForeign) {
		return p, false, err
	}
	defer pinned.close()
	if pinned != nil && pinned.id == info.ID {
		return p, false, nil
	}
	// The interface of that number may be another namespace's.
	there, err := c.links.query(p)
	at := &ownLink{id: info.ID}
	return p, slices.ContainsFunc(there, at.is), ignoreGone(err)
}

// isOwnProgram says whether a program on tcx is ours by its name, and counts for no process
// that runs.
func (c *Controller) isOwnProgram(id ebpf.ProgramID) (bool, error) {
	about, err := programInfo(uint32(id))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil || !strings.HasPrefix(about.Name, namePrefix) {
		return false, err
	}
	maps, _ := about.MapIDs()
	elsewhere, err := c.elsewhere(maps)
	return !elsewhere, err
}
