// SPDX-License-Identifier: Apache-2.0

// Package cgroupctl puts counting programs on cgroups and takes exactly those off again.
// It knows directories and ids of cgroups, nothing of containers.
//
// Each cgroup has a link for each hook, pinned in our folder by the cgroup's id: a link of ours
// is one that is pinned there and has a program whose name begins with "nettally_". The kernel
// runs others' programs beside ours, and takes ours off when the cgroup goes.
package cgroupctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/trusted"
)

var (
	// ErrGone says that the cgroup is not there: normal life.
	ErrGone = errors.New("the cgroup is gone")
	// ErrForeign says that what is pinned under our name is somebody else's.
	ErrForeign = errors.New("another program's link is in the way")
)

// namePrefix begins the names of our programs.
const namePrefix = "nettally_"

// Options say where a Controller works.
type Options struct {
	// Root is where the cgroup2 hierarchy is mounted.
	Root string
	// Pins is a folder on a bpffs for the pins of our links. It is made for the first and
	// removed with the last; its parent must be there, and nobody else may be able to
	// change either.
	Pins string
	// Hooks are those that it works on, [Packets] if none are said. Controllers of different
	// hooks may share a folder.
	Hooks Hooks
}

// Controller attaches programs to the cgroups of one hierarchy.
//
// It is safe for concurrent use. It holds nothing: what it attached stays when the process
// ends, and goes with the cgroup; the pins of cgroups that went are left to
// [Controller.Detach].
type Controller struct {
	Options
	mu sync.Mutex
}

// New returns a controller.
func New(o Options) *Controller {
	if o.Hooks == nil {
		o.Hooks = Packets
	}
	return &Controller{Options: o}
}

// Hooks are hooks of a cgroup that have a program each, all or none.
type Hooks []hook

type hook struct {
	name   string
	attach ebpf.AttachType
}

func (h hook) String() string { return h.name }

// The hooks of a cgroup that we know.
var (
	// Packets are for a cgroup_skb program for each direction: ingress, then egress.
	Packets = Hooks{{"ingress", ebpf.AttachCGroupInetIngress}, {"egress", ebpf.AttachCGroupInetEgress}}
	// Connections is for a sock_ops program.
	Connections = Hooks{{"sock_ops", ebpf.AttachCGroupSockOps}}
	// Requests are for a cgroup_skb program for each direction, beside those of Packets.
	Requests = Hooks{{"requests_ingress", ebpf.AttachCGroupInetIngress}, {"requests_egress", ebpf.AttachCGroupInetEgress}}
)

// ID returns the id of a cgroup, by its path within the hierarchy: its directory's inode.
//
// Returns an error wrapping [ErrGone] if there is none.
func (c *Controller) ID(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.Root, dir), &st); err != nil {
		return 0, fmt.Errorf("look at cgroup %s: %w", dir, explain(err))
	}
	return st.Ino, nil
}

// Below returns the ids of the cgroup at dir and of those below it; what goes meanwhile is left
// out.
func (c *Controller) Below(dir string) ([]uint64, error) {
	var ids []uint64
	err := filepath.WalkDir(filepath.Join(c.Root, dir), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			ids = append(ids, st.Ino)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list cgroups below %s: %w", dir, err)
	}
	return ids, nil
}

// Attach puts the programs, one for each hook, on the cgroup at dir, a path within the hierarchy, or in the
// place of our own: in one step of the kernel that no packet slips through. The cgroup must
// still have the id; sockets of cgroups below it count, too.
//
// Requires Linux 5.10, CAP_NET_ADMIN and CAP_SYS_ADMIN, or CAP_BPF instead of the latter
// where no link of ours is there. Returns an error wrapping [ErrGone], [ErrForeign] or
// [ErrExclusive], or the kernel's errno; nothing of ours is on the cgroup then, but what was before.
func (c *Controller) Attach(dir string, id uint64, programs ...*ebpf.Program) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.confirm(dir, id); err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", dir, err)
	}
	// Where that can't be found out the kernel decides.
	if by, err := c.Exclusive(dir); err == nil && by != nil {
		return fmt.Errorf("attach to cgroup %s: %w", dir, by)
	}
	err := c.putAll(dir, id, programs)
	if errors.Is(err, unix.EPERM) { // another's program may have come since
		if by, inquiry := c.Exclusive(dir); inquiry == nil && by != nil {
			err = by
		}
	}
	if err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", dir, err)
	}
	return nil
}

// putAll has the programs run, or none of those that it attached.
func (c *Controller) putAll(dir string, id uint64, programs []*ebpf.Program) error {
	var fresh Hooks
	for i, h := range c.Hooks {
		made, err := c.put(dir, id, h, programs[i])
		if err != nil {
			for _, h := range fresh {
				err = errors.Join(err, c.clear(id, h))
			}
			return err
		}
		if made {
			fresh = append(fresh, h)
		}
	}
	return nil
}

// confirm says that the cgroup at dir is the one that is meant.
func (c *Controller) confirm(dir string, id uint64) error {
	now, err := c.ID(dir)
	if err == nil && now != id {
		err = fmt.Errorf("%w: its path has another one", ErrGone)
	}
	return err
}

// put has a program run on one hook. It returns whether there was none of ours.
func (c *Controller) put(dir string, id uint64, h hook, program *ebpf.Program) (made bool, err error) {
	own, err := c.open(id, h)
	if err != nil {
		return false, err
	}
	if own != nil {
		defer own.Close()
		err := own.Update(program)
		if err == nil {
			return false, nil
		}
		if !errors.Is(err, unix.ENOLINK) {
			return false, fmt.Errorf("replace program: %w", err)
		}
		if err := own.Unpin(); err != nil {
			return true, fmt.Errorf("remove pin: %w", err)
		}
	}
	return true, c.make(dir, id, h, program)
}

// make attaches a program by a new link. The path may have another cgroup by now.
func (c *Controller) make(dir string, id uint64, h hook, program *ebpf.Program) error {
	path := filepath.Join(c.Root, dir)
	made, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: h.attach, Program: program})
	if err != nil {
		return explain(err)
	}
	defer made.Close() // without a pin it is off then
	if err := c.confirm(dir, id); err != nil {
		return err
	}
	if err := c.makeFolder(); err != nil {
		return fmt.Errorf("make folder for pins: %w", err)
	}
	if err := made.Pin(c.pin(id, h)); err != nil {
		c.tidy()
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// makeFolder makes the folder for pins, unless it is there.
func (c *Controller) makeFolder() error {
	if err := os.Mkdir(c.Pins, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return trusted.Check(c.Pins)
}

// Replace puts the programs in the place of our own on a cgroup, wherever it is. It does
// nothing where there are none.
func (c *Controller) Replace(id uint64, programs ...*ebpf.Program) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, h := range c.Hooks {
		own, err := c.open(id, h)
		if own == nil {
			return err
		}
		err = own.Update(programs[i])
		if err := errors.Join(own.Close(), err); err != nil && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("replace program on cgroup %d: %w", id, err)
		}
	}
	return nil
}

// Attached says whether all of our programs are on a cgroup. They are for a moment after it
// has gone.
func (c *Controller) Attached(id uint64) (bool, error) {
	for _, h := range c.Hooks {
		own, err := c.open(id, h)
		if err != nil || own == nil {
			return false, err
		}
		info, err := own.Info()
		if err := errors.Join(err, own.Close()); err != nil {
			return false, fmt.Errorf("inspect link of cgroup %d: %w", id, err)
		}
		// The kernel has forgotten the cgroup of a link that is off.
		if on := info.Cgroup(); on == nil || on.CgroupId != id {
			return false, nil
		}
	}
	return true, nil
}

// Detach takes our programs off a cgroup, or removes what is left of them where it is gone.
// It does nothing where there are none.
func (c *Controller) Detach(id uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, h := range c.Hooks {
		errs = append(errs, c.clear(id, h))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach from cgroup %d: %w", id, err)
	}
	return nil
}

func (c *Controller) clear(id uint64, h hook) error {
	own, err := c.open(id, h)
	if errors.Is(err, ErrForeign) || own == nil && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer own.Close()
	// Without its pin it would be off only once the kernel has got round to that.
	if err := own.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach: %w", err)
	}
	if err := own.Unpin(); err != nil {
		return fmt.Errorf("remove pin: %w", err)
	}
	c.tidy()
	return nil
}

// tidy removes the folder with the last pin.
func (c *Controller) tidy() { _ = os.Remove(c.Pins) }

// IDs returns the ids of the cgroups that have links of ours on the hooks, in no order; some may
// be gone.
//
// Returns an error wrapping [trusted.ErrUntrusted] if others can change the pins.
func (c *Controller) IDs() ([]uint64, error) {
	if err := trusted.Check(c.Pins); err != nil {
		return nil, fmt.Errorf("use folder for pins: %w", err)
	}
	entries, err := os.ReadDir(c.Pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pins of cgroups: %w", err)
	}
	seen := map[uint64]bool{}
	var ids []uint64
	for _, e := range entries {
		number, name, _ := strings.Cut(e.Name(), "-")
		id, err := strconv.ParseUint(number, 10, 64)
		known := slices.ContainsFunc(c.Hooks, func(h hook) bool { return h.name == name })
		if err == nil && known && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (c *Controller) pin(id uint64, h hook) string {
	return filepath.Join(c.Pins, fmt.Sprintf("%d-%s", id, h.name))
}

// open opens our link of a hook, alive or not. It returns nil if nothing is pinned there.
func (c *Controller) open(id uint64, h hook) (link.Link, error) {
	path := c.pin(id, h)
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := prove(pinned, h); err != nil {
		return nil, errors.Join(fmt.Errorf("inspect %s: %w", path, err), pinned.Close())
	}
	return pinned, nil
}

// prove looks at a link's hook and program, which it keeps when it is off.
func prove(pinned link.Link, h hook) error {
	info, err := pinned.Info()
	if err != nil {
		return err
	}
	if on := info.Cgroup(); on == nil || ebpf.AttachType(on.AttachType) != h.attach {
		return fmt.Errorf("%w: the link is for another hook", ErrForeign)
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return err
	}
	defer program.Close()
	about, err := program.Info()
	if err == nil && !strings.HasPrefix(about.Name, namePrefix) {
		err = fmt.Errorf("%w: the link has program %q", ErrForeign, about.Name)
	}
	return err
}

// explain says what an error of the kernel means.
func explain(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
