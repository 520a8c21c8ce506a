// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func duplicate(fd int) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dup), "netns"), nil
}

// within runs f in a namespace, nil for that of the process. f must not start
// goroutines. within waits for its own.
func within(netns *os.File, f func() error) error {
	if netns == nil {
		return f()
	}
	result := make(chan error, 1)
	go func() { result <- visit(netns, f) }()
	return <-result
}

// visit runs f on a thread that enters the namespace and comes back.
func visit(netns *os.File, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err == nil {
		defer home.Close()
		err = enter(netns)
	}
	if err != nil {
		runtime.UnlockOSThread() // it never left
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	// Where it can't come back it stays locked, and ends with the goroutine.
	if enter(home) == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// enter does not use the descriptor of a file that was closed, which may be another's.
func enter(netns *os.File) error {
	raw, err := netns.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	if err != nil {
		return err
	}
	return refused
}
