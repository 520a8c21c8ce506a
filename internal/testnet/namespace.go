// SPDX-License-Identifier: Apache-2.0

// Package testnet makes throw-away hosts, containers and traffic for the tests
// and for `nettally selftest`.
//
// Everything lives in network namespaces that have no name and no mount: they
// end with the last process and descriptor that holds them, so nothing stays
// behind however the program ends.
package testnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held open.
//
// It is safe for concurrent use.
type Namespace struct {
	// Handle runs netlink requests in the namespace from any goroutine.
	*netlink.Handle
	file *os.File
}

// NewNamespace makes a network namespace with its loopback up. Requires
// CAP_SYS_ADMIN.
func NewNamespace() (*Namespace, error) {
	var file *os.File
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		var err error
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	n, err := adopt(file)
	if err != nil {
		return nil, err
	}
	if err := n.up("lo"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// OpenNamespace opens the network namespace of a file such as /proc/7/ns/net.
func OpenNamespace(path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return adopt(file)
}

func adopt(file *os.File) (*Namespace, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink in namespace: %w", err), file.Close())
	}
	return &Namespace{Handle: handle, file: file}, nil
}

func (n *Namespace) up(name string) error {
	link, err := n.LinkByName(name)
	if err == nil {
		err = n.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// Close gives the namespace up. It ends when no process is left in it.
func (n *Namespace) Close() error {
	n.Handle.Close()
	return n.file.Close()
}

// FD returns the descriptor of the namespace, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Path returns a name other processes can open while this one lives and the
// namespace is not closed.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Do runs f on a thread that is in the namespace. Sockets that f opens stay in
// the namespace; goroutines that f starts do not.
func (n *Namespace) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Start starts a command in the namespace.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run runs a command in the namespace. The error carries what it printed.
func (n *Namespace) Run(name string, args ...string) ([]byte, error) {
	var out []byte
	err := n.Do(func() error {
		var err error
		out, err = exec.Command(name, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return err
	})
	return out, err
}

// onOwnThread runs f on an OS thread that nothing else uses and that ends
// afterwards, so that f may change the thread's namespaces. It waits for f.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread would be parked, not ended, and hold the
			// namespace for good; /proc/self/ns would show it, too. While it is
			// locked to us, another goroutine gets another thread.
			result <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine.
		result <- f()
	}()
	return <-result
}

// Veth joins two namespaces with a veth pair. Both ends are up.
func Veth(a *Namespace, nameA string, b *Namespace, nameB string) error {
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: nameA},
		PeerName:      nameB,
		PeerNamespace: netlink.NsFd(b.FD()),
	}
	if err := a.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s: %w", nameA, err)
	}
	if err := b.up(nameB); err != nil {
		return err
	}
	return a.up(nameA)
}
