// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// The kernel's names of programs that are loaded and attached nowhere.
const (
	lockName = "nettally_lock" // is the lock of a network namespace
	lookName = "nettally_look" // looks for that
	liveName = "nettally_live" // says by its map that the process with these counters runs
)

// LockNetNS locks the network namespace of the calling thread until the lock is closed or
// the process ends, however it does. Nobody without CAP_BPF and CAP_NET_ADMIN can take it.
//
// The lock is a program that is loaded and attached nowhere. The kernel lists programs for
// the whole host, so it is seen from other mount namespaces, other containers and other pin
// paths, too.
//
// Returns an error wrapping [ErrInUse] while another process has the lock.
func LockNetNS() (io.Closer, error) {
	lock, err := loadLock(lockName)
	if err != nil {
		return nil, err
	}
	if err := isFirst(lock); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// isFirst returns an error if a lock of the same namespace is older. Of two processes that
// start at once, each has loaded its own before it looks, so one of them goes on.
func isFirst(lock *ebpf.Program) error {
	own, others, err := locksLike(lock)
	if err != nil {
		return err
	}
	return inUse(others, func(other ebpf.ProgramID) bool { return before(other, own) })
}

// NetNSInUse returns an error wrapping [ErrInUse] while a process has the lock of the
// network namespace of the calling thread. It does not take the lock.
func NetNSInUse() error {
	look, err := loadLock(lookName)
	if err != nil {
		return err
	}
	defer look.Close()
	_, others, err := locksLike(look)
	if err != nil {
		return err
	}
	return inUse(others, func(ebpf.ProgramID) bool { return true })
}

// inUse returns an error for the first lock that counts.
func inUse(locks []ebpf.ProgramID, counts func(ebpf.ProgramID) bool) error {
	for _, id := range locks {
		if !counts(id) {
			continue
		}
		var who string
		if pid := holder(id); pid != 0 {
			who = fmt.Sprintf(", pid %d", pid)
		}
		return fmt.Errorf("lock this network namespace: %w%s (stop it: one counts all containers, whatever its bpf.pin_path)", ErrInUse, who)
	}
	return nil
}

// loadLock loads the program for the network namespace of the calling thread.
func loadLock(name string) (*ebpf.Program, error) {
	// Before 5.11 programs count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift RLIMIT_MEMLOCK: %w (needs CAP_SYS_RESOURCE before Linux 5.11)", err)
	}
	spec, err := lockSpec(name)
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("load the lock of the network namespace: %w", err)
	}
	return program, nil
}

// lockSpec returns a program that has the number of the network namespace of the calling
// thread in its instructions, so that their hash (the tag) tells for which one it is. The
// type is one that takes capabilities.
func lockSpec(name string) (*ebpf.ProgramSpec, error) {
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &namespace); err != nil {
		return nil, fmt.Errorf("look at network namespace: %w", err)
	}
	return &ebpf.ProgramSpec{
		Name:    name,
		Type:    ebpf.SchedCLS,
		License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.LoadImm(asm.R1, int64(namespace.Ino), asm.DWord),
			asm.Mov.Imm(asm.R0, -1), // TC_ACT_UNSPEC, should anybody attach it
			asm.Return(),
		},
	}, nil
}

// locksLike returns the locks of the same network namespace as a program's, but for that
// program, and the program's id.
func locksLike(program *ebpf.Program) (own ebpf.ProgramID, locks []ebpf.ProgramID, err error) {
	wanted, err := program.Info()
	if err != nil {
		return 0, nil, fmt.Errorf("look at the lock of the network namespace: %w", err)
	}
	own, _ = wanted.ID() // every kernel since 4.13 says it
	err = eachIdle(lockName, func(id ebpf.ProgramID, lock *ebpf.ProgramInfo) {
		if id != own && lock.Tag == wanted.Tag {
			locks = append(locks, id)
		}
	})
	return own, locks, err
}

// eachIdle calls f for each program on the host that has one of the names above. The type is
// one that takes capabilities to load.
func eachIdle(name string, f func(ebpf.ProgramID, *ebpf.ProgramInfo)) error {
	for id := ebpf.ProgramID(0); ; {
		var err error
		id, err = ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list programs: %w", err)
		}
		if info := inspect(id); info != nil && info.Type == ebpf.SchedCLS && info.Name == name {
			f(id, info)
		}
	}
}

// live loads the program that says that a process with these chunks runs.
func live(chunks *ebpf.Map) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:    liveName,
		Type:    ebpf.SchedCLS,
		License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.LoadMapPtr(asm.R1, chunks.FD()),
			asm.Mov.Imm(asm.R0, -1), // TC_ACT_UNSPEC
			asm.Return(),
		},
	})
}

// CountsElsewhere says whether a program that uses these maps counts for another nettally
// that runs, in another network namespace as a rule. One that has ended owns nothing.
func (d *Datapath) CountsElsewhere(maps []ebpf.MapID) (bool, error) {
	if d.Owns(maps) {
		return false, nil
	}
	return CountsElsewhere(maps)
}

// Owns says whether a program that uses these maps counts with the counters below this pin
// path, in this layout or an older one that has slots in use.
func (d *Datapath) Owns(maps []ebpf.MapID) bool {
	if slices.Contains(maps, d.own) {
		return true
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.ContainsFunc(d.older, func(o *older) bool { return slices.Contains(maps, o.own) })
}

// CountsElsewhere is [Datapath.CountsElsewhere] for a process without a Datapath.
func CountsElsewhere(maps []ebpf.MapID) (elsewhere bool, err error) {
	err = eachIdle(liveName, func(_ ebpf.ProgramID, live *ebpf.ProgramInfo) {
		chunks, _ := live.MapIDs()
		for _, id := range chunks {
			elsewhere = elsewhere || slices.Contains(maps, id)
		}
	})
	return elsewhere, err
}

// inspect returns what the kernel says of a program, nil if it is gone since it was listed
// or a security module keeps it from us.
func inspect(id ebpf.ProgramID) *ebpf.ProgramInfo {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil
	}
	return info
}

// before says whether a program's id was given before another's. The kernel counts to 2^31-1, and then from 1 again.
func before(a, b ebpf.ProgramID) bool {
	const period = 1 << 31
	return a != b && (b-a)%period < period/2
}

// holder returns the id of the process that has a program open, 0 if that can't be seen.
func holder(id ebpf.ProgramID) (pid int) {
	wanted := fmt.Sprintf("\nprog_id:\t%d\n", id)
	descriptors, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	for _, path := range descriptors {
		if target, err := os.Readlink(path); err != nil || target != "anon_inode:bpf-prog" {
			continue // it may have been closed by now
		}
		process, number := filepath.Dir(filepath.Dir(path)), filepath.Base(path)
		text, err := os.ReadFile(filepath.Join(process, "fdinfo", number))
		if err != nil || !strings.Contains(string(text), wanted) {
			continue
		}
		if _, err := fmt.Sscan(filepath.Base(process), &pid); err == nil {
			return pid
		}
	}
	return 0
}
