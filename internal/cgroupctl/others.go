// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrExclusive says that another's program on the cgroup, or on one above, allows none beside
// it. The error is an [ExclusiveError].
var ErrExclusive = errors.New("another's program allows none beside it")

// ExclusiveError names the program that keeps ours off.
type ExclusiveError struct {
	Cgroup  string // that it is attached to, by its path within the hierarchy
	Program string // its name
	ID      ebpf.ProgramID
	Hook    string
}

// Error implements error.
func (e *ExclusiveError) Error() string {
	return fmt.Sprintf("%v: program %q (id %d) on the %s hook of cgroup %s was attached without BPF_F_ALLOW_MULTI",
		ErrExclusive, e.Program, e.ID, e.Hook, e.Cgroup)
}

// Is says that the error is [ErrExclusive].
func (e *ExclusiveError) Is(target error) bool { return target == ErrExclusive }

// Exclusive looks for a program of another that can't run beside ours on the cgroup at dir: one
// that was attached there, or to the nearest cgroup above that has any, without
// BPF_F_ALLOW_MULTI. It returns nil if there is none.
//
// The kernel refuses ours then, with EPERM (hierarchy_allows_attach, kernel/bpf/cgroup.c),
// unless the other's is above and has BPF_F_ALLOW_OVERRIDE, or came later than ours. In these
// cases ours would run instead of the other's (compute_effective_progs): it would switch off
// what may be a firewall.
//
// Requires CAP_NET_ADMIN, and CAP_SYS_ADMIN to learn the program's name.
func (c *Controller) Exclusive(dir string) (*ExclusiveError, error) {
	for _, h := range c.Hooks {
		found, err := c.exclusiveOn(dir, h)
		if found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

func (c *Controller) exclusiveOn(dir string, h hook) (*ExclusiveError, error) {
	dir = filepath.Join("/", dir)
	for own := true; ; own = false {
		on, err := c.attachedTo(dir, h)
		if err != nil {
			return nil, fmt.Errorf("list programs on cgroup %s: %w", dir, explain(err))
		}
		shared := on.flags&unix.BPF_F_ALLOW_MULTI != 0
		if on.count > 0 && !shared {
			return &ExclusiveError{Cgroup: dir, Program: nameOf(on.first), ID: on.first, Hook: h.name}, nil
		}
		// Above one that shares, the kernel lets others come beside, whatever is further up.
		if shared && !own || dir == "/" {
			return nil, nil
		}
		dir = filepath.Dir(dir)
	}
}

// others are the programs that are attached to a cgroup itself.
type others struct {
	flags uint32
	count uint32
	first ebpf.ProgramID
}

// queryAttr is the kernel's union bpf_attr for BPF_PROG_QUERY, as far as we need it. Package
// link does not return the flags.
type queryAttr struct {
	target, attachType, queryFlags, attachFlags uint32
	programs                                    uint64 // a pointer
	count                                       uint32
	_                                           uint32
}

// maxOthers is how many programs the kernel lets be on one hook (BPF_CGROUP_MAX_PROGS).
const maxOthers = 64

func (c *Controller) attachedTo(dir string, h hook) (others, error) {
	file, err := os.Open(filepath.Join(c.Root, dir))
	if err != nil {
		return others{}, err
	}
	defer file.Close()
	ids := new([maxOthers]ebpf.ProgramID)
	attr := &queryAttr{
		target: uint32(file.Fd()), attachType: uint32(h.attach),
		programs: uint64(uintptr(unsafe.Pointer(ids))), count: maxOthers,
	}
	var pin runtime.Pinner // the kernel writes to ids, of which attr has no Go pointer
	pin.Pin(ids)
	defer pin.Unpin()
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return others{}, errno
	}
	return others{flags: attr.attachFlags, count: attr.count, first: ids[0]}, nil
}

// nameOf returns a program's name, "" if it can't be asked for.
func nameOf(id ebpf.ProgramID) string {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer program.Close()
	about, err := program.Info()
	if err != nil {
		return ""
	}
	return about.Name
}
