// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What keeps connections from being counted.
var (
	// ErrAbsent: the kernel has no connection tracking, or it can't be asked.
	ErrAbsent = errors.New("no connection tracking in this kernel: load the modules nf_conntrack and nf_conntrack_netlink")
	// ErrIdle: the table is empty.
	ErrIdle = errors.New("nothing is tracked: no rule of iptables or nftables asks for it (NAT, or `ct state`), or there was no connection since")
	// ErrSilent: what is opened and closed is not told.
	ErrSilent = errors.New("the kernel does not tell what is opened and closed: sysctl -w net.netfilter.nf_conntrack_events=1")
)

// explain says what an error of the kernel means.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: no CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// Check says what can be counted in the process's network namespace. The error is [ErrAbsent],
// [ErrIdle] or [ErrSilent], or of a system call.
func Check() (string, error) { return check(0, setting) }

func check(netns int, setting func(string) (string, error)) (string, error) {
	events, err := setting("nf_conntrack_events")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := setting("nf_conntrack_count"); errors.Is(err, fs.ErrNotExist) {
			return "", ErrAbsent
		}
	} else if err != nil {
		return "", err
	}
	entries, any, err := first(netns)
	switch {
	case err != nil:
		return "", explain(err)
	case events == "0" || events == "":
		return "", ErrSilent
	case !any:
		return "", ErrIdle
	}
	bytes := "byte accounting on"
	if acct, err := setting("nf_conntrack_acct"); err == nil && acct == "0" {
		bytes = "byte accounting off (net.netfilter.nf_conntrack_acct), which is not needed"
	}
	return fmt.Sprintf("%d entries, events on, %s", entries, bytes), nil
}

// Entries returns how many entries a network namespace has; 0 where nothing is tracked in it.
// The descriptor has to stay open meanwhile.
func Entries(netns int) (int64, error) {
	s, err := open(netns)
	if err != nil {
		return 0, explain(err)
	}
	defer s.Close()
	entries, err := s.count(context.Background())
	if err != nil {
		return 0, explain(err)
	}
	return entries, nil
}

// first looks whether there is an entry.
func first(netns int) (entries int64, any bool, err error) {
	s, err := open(netns)
	if err != nil {
		return 0, false, err
	}
	defer s.Close()
	if entries, err = s.count(context.Background()); err != nil {
		return 0, false, err
	}
	enough := errors.New("there is one")
	err = s.dump(context.Background(), func(netlink.Message) error { return enough }, func() error { return nil })
	if any = errors.Is(err, enough); any {
		err = nil
	}
	return entries, any, err
}

// tells reports whether the kernel tells what is opened and closed. 2, the default of newer
// kernels, is while somebody listens.
func (t *Tracker) tells() bool {
	events, err := t.setting("nf_conntrack_events")
	return err == nil && events != "0"
}

// setting reads a sysctl of the connection tracking in the process's network namespace: each has
// its own.
func setting(name string) (string, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	return strings.TrimSpace(string(text)), err
}
