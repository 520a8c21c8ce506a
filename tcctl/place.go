// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// place is a tcx hook of an interface.
type place struct {
	ifindex int
	hook    Hook
}

func (p place) String() string { return fmt.Sprintf("tcx %s of ifindex %d", p.hook, p.ifindex) }

func (p place) attachType() ebpf.AttachType {
	if p.hook == Ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

// name is the name of the pin. A bpffs has no names with a dot.
func (p place) name() string { return fmt.Sprintf("%d-%s", p.ifindex, p.hook) }

// parsePlace returns the place that a pin is named for.
func parsePlace(name string) (p place, ok bool) {
	for _, hook := range hooks {
		p.hook = hook
		if _, err := fmt.Sscanf(name, "%d-", &p.ifindex); err == nil && p.name() == name {
			return p, true
		}
	}
	return place{}, false
}

func (ls *links) pin(p place) string { return filepath.Join(ls.pins, p.name()) }

// pinned says whether there is a pin for either hook, anyone's.
func (ls *links) pinned(ifindex int) bool {
	return ls.pins != "" && slices.ContainsFunc(hooks, func(hook Hook) bool {
		_, err := os.Lstat(ls.pin(place{ifindex, hook}))
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// places lists the places there are pins for, anyone's.
func (ls *links) places() ([]place, error) {
	entries, err := os.ReadDir(ls.pins)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pins of tcx links: %w", err)
	}
	var places []place
	for _, e := range entries {
		if p, ok := parsePlace(e.Name()); ok {
			places = append(places, p)
		}
	}
	return places, nil
}

// look returns the position of our link of a place, -1 if it is not there.
func (ls *links) look(p place) (int, error) {
	own, err := ls.open(p)
	if errors.Is(err, ErrForeign) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	defer own.close()
	return ls.position(p, own)
}

// position returns how many programs run before a link, -1 if it is not on the hook. A
// link that followed its interface into another namespace still says that it is.
func (ls *links) position(p place, own *ownLink) (int, error) {
	if own == nil {
		return -1, nil
	}
	there, err := ls.query(p)
	if err != nil {
		return -1, ignoreGone(err)
	}
	return slices.IndexFunc(there, own.is), nil
}

// is says whether an entry of a hook is our link.
func (l *ownLink) is(there link.AttachedProgram) bool {
	id, ok := there.LinkID()
	return ok && l != nil && id == l.id
}

// foreign says whether a program that is not ours is at a place.
func (ls *links) foreign(p place) (bool, error) {
	own, err := ls.open(p)
	if err != nil && !errors.Is(err, ErrForeign) {
		return false, err
	}
	defer own.close()
	there, err := ls.query(p)
	return slices.ContainsFunc(there, func(one link.AttachedProgram) bool { return !own.is(one) }), err
}

// query lists what is at a place, in the order in which it is run.
func (ls *links) query(p place) (there []link.AttachedProgram, err error) {
	err = within(ls.netns, func() (err error) {
		there, err = query(p)
		return err
	})
	return there, err
}

// query is for a place in the namespace of the thread. bpf(2) asks for room in advance:
// there may be more by the time it answers.
func query(p place) ([]link.AttachedProgram, error) {
	for range dumpTries {
		result, err := link.QueryPrograms(link.QueryOptions{Target: p.ifindex, Attach: p.attachType()})
		if errors.Is(err, unix.ENOSPC) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list programs on %v: %w", p, explainQuery(err))
		}
		return result.Programs, nil
	}
	return nil, fmt.Errorf("list programs on %v: %w", p, errInterrupted)
}
