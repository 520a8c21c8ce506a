// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/trusted"
)

// links are our links on tcx hooks.
type links struct {
	mu    sync.Mutex // held by who changes them
	pins  string     // "" for none
	netns *os.File   // nil is the namespace of the process
}

// ownLink is a pinned link that is proven ours, dead or alive.
type ownLink struct {
	link.Link
	id      link.ID
	program *ebpf.Program
}

func (l *ownLink) close() {
	if l != nil {
		l.Close()
		l.program.Close()
	}
}

// open opens our link of a place. It returns nil if nothing is pinned there, and an
// error wrapping ErrForeign if what is pinned is not ours.
func (ls *links) open(p place) (*ownLink, error) {
	if ls.pins == "" {
		return nil, nil
	}
	pinned, err := link.LoadPinnedLink(ls.pin(p), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pin of %v: %w", p, err)
	}
	own, err := prove(p, pinned)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inspect pin of %v: %w", p, err), pinned.Close())
	}
	return own, nil
}

// prove looks at a link's hook and at its program, which it keeps when it is detached.
func prove(p place, pinned link.Link) (*ownLink, error) {
	info, err := pinned.Info()
	if err != nil {
		return nil, err
	}
	tcx := info.TCX()
	if tcx == nil || ebpf.AttachType(tcx.AttachType) != p.attachType() {
		return nil, fmt.Errorf("%w: the link is for another hook", ErrForeign)
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil, err
	}
	about, err := program.Info()
	if err == nil && !strings.HasPrefix(about.Name, namePrefix) {
		err = fmt.Errorf("%w: the link has program %q", ErrForeign, about.Name)
	}
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	return &ownLink{pinned, info.ID, program}, nil
}

// put has a program run at a place: in our link if that is alive, else in a new one at
// the head. It returns the link whose program it replaced, as it was, or nil.
func (ls *links) put(p place, program program) (replaced *ownLink, err error) {
	old, err := ls.open(p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if replaced == nil {
			old.close()
		}
	}()
	at, err := ls.position(p, old)
	if err != nil {
		return nil, err
	}
	loaded, err := dup(program)
	if err != nil {
		return nil, fmt.Errorf("attach to %v: %w", p, err)
	}
	defer loaded.Close()
	if at < 0 {
		return nil, ls.replace(p, old, loaded)
	}
	err = old.Update(loaded)
	switch {
	case err == nil:
		return old, nil
	case errors.Is(err, unix.ENOLINK): // detached since we looked
		return nil, ls.replace(p, old, loaded)
	}
	return nil, fmt.Errorf("replace program on %v: %w", p, err)
}

// putBack undoes put, which returned old.
func (ls *links) putBack(p place, old *ownLink) error {
	if old == nil {
		return ls.clear(p)
	}
	err := old.Update(old.program)
	if err == nil || errors.Is(err, unix.ENOLINK) {
		return nil
	}
	return fmt.Errorf("put program back on %v: %w", p, err)
}

// raise makes our link the first on its hook.
func (ls *links) raise(p place, program program) error {
	old, err := ls.open(p)
	if err != nil {
		return err
	}
	defer old.close()
	at, err := ls.position(p, old)
	if err != nil || at == 0 {
		return err
	}
	loaded, err := dup(program)
	if err != nil {
		return fmt.Errorf("raise on %v: %w", p, err)
	}
	defer loaded.Close()
	return ls.replace(p, old, loaded)
}

// replace makes a link at the head, in place of an old one if there is one.
func (ls *links) replace(p place, old *ownLink, program *ebpf.Program) error {
	if err := ls.remove(p, old); err != nil {
		return err
	}
	made, err := ls.attach(p, program)
	if err != nil {
		return fmt.Errorf("attach to %v: %w", p, err)
	}
	defer made.Close()
	if err := ls.makeFolder(); err != nil {
		return errors.Join(fmt.Errorf("make folder for pins: %w", err), made.Detach())
	}
	if err := made.Pin(ls.pin(p)); err != nil {
		err = errors.Join(fmt.Errorf("pin link to %v: %w", p, err), made.Detach())
		ls.tidy()
		return err
	}
	return nil
}

// makeFolder makes the folder for pins, unless it is there.
func (ls *links) makeFolder() error {
	if err := os.Mkdir(ls.pins, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return trusted.Check(ls.pins)
}

// attach makes a link at the head.
func (ls *links) attach(p place, program *ebpf.Program) (made link.Link, err error) {
	err = within(ls.netns, func() (err error) {
		made, err = link.AttachTCX(link.TCXOptions{
			Interface: p.ifindex, Program: program, Attach: p.attachType(), Anchor: link.Head(),
		})
		return err
	})
	if err == nil {
		return made, nil
	}
	// The library says so as well where it was not permitted to find out.
	if errors.Is(err, link.ErrNotSupported) {
		return nil, errors.Join(HaveTCX(), err)
	}
	return nil, explainTCX(err)
}

// clear removes our link from a place, if there is one.
func (ls *links) clear(p place) error {
	own, err := ls.open(p)
	if errors.Is(err, ErrForeign) {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.close()
	return ls.remove(p, own)
}

// remove detaches a link first: without its pin it would be off only once the kernel has
// got round to that, and nobody else had it open.
func (ls *links) remove(p place, own *ownLink) error {
	if own == nil {
		return nil
	}
	if err := own.Detach(); err != nil {
		return fmt.Errorf("detach from %v: %w", p, err)
	}
	if err := own.Unpin(); err != nil {
		return fmt.Errorf("remove pin of %v: %w", p, err)
	}
	ls.tidy()
	return nil
}

// tidy removes the folder with the last pin.
func (ls *links) tidy() { _ = os.Remove(ls.pins) }

// keep says whether our link is on a hook, and removes it if not.
func (ls *links) keep(p place) (alive bool, err error) {
	own, err := ls.open(p)
	if errors.Is(err, ErrForeign) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer own.close()
	at, err := ls.position(p, own)
	if err != nil || at >= 0 {
		return at >= 0, err
	}
	return false, ls.remove(p, own)
}

// dup returns a loaded program as package link takes it.
func dup(p program) (*ebpf.Program, error) {
	// bpf(2) takes descriptor 0 for none.
	fd, err := unix.FcntlInt(uintptr(p.FD()), unix.F_DUPFD_CLOEXEC, 1)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of program: %w", err)
	}
	return ebpf.NewProgramFromFD(fd)
}
