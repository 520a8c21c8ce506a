// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"testing"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Of events that are lost nothing is ever told but that. The look at everything that
// follows finds the containers that came, and those that are gone.
func TestOverflowed(t *testing.T) {
	need.Root(t)
	host := nettest.Host(t)
	early := nettest.Container(t, host, testnet.ContainerOptions{})
	overflow := make(chan watcher.Event)
	r := startWith(t, host, "", CgroupOff, func(_ *watcher.Watcher, ctx context.Context, to chan<- watcher.Event) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case e := <-overflow:
				to <- e
			}
		}
	})
	r.waitCounted(early.ID, 1)
	late := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	if err := early.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range r.accounts.Snapshot().Containers {
		if c.ID == late.ID || c.ID == early.ID && c.State == usage.Stopped {
			t.Errorf("told of %s, %s, by nobody: is this a test of anything?", c.ID, c.State)
		}
	}

	overflow <- watcher.Overflowed{Source: "inotify"}
	r.waitCounted(late.ID, 1)
	r.wait(early.ID, "stopped", func(c usage.Container) bool { return c.State == usage.Stopped })
}
