// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/conntrack"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// trackConnections prepares to count connections, if they are to be.
func (d *daemon) trackConnections() {
	config := d.config.Load()
	if !config.Accounting.Conntrack {
		return
	}
	d.connections = conntrack.New(conntrack.Options{
		Retention: func() time.Duration { return d.config.Load().Retention.API },
		Log:       d.log,
	})
}

// connectionMetrics are none where connections are not counted.
func (d *daemon) connectionMetrics() []prometheus.Collector {
	if d.connections == nil {
		return nil
	}
	return d.connections.Metrics()
}

// countConnections runs until the context ends.
func (d *daemon) countConnections(ctx context.Context) error {
	if d.connections == nil {
		return nil
	}
	return d.connections.Run(ctx)
}

// withConnections adds to a snapshot what is known of the containers' connections.
func (d *daemon) withConnections(s usage.Snapshot) usage.Snapshot {
	if d.connections == nil {
		return s
	}
	counted := d.connections.Counted()
	for i := range s.Containers {
		if c, ok := counted[s.Containers[i].ID]; ok {
			s.Containers[i].Conntrack = &c
		}
	}
	return s
}

// telling is a backend that tells whose each network namespace is, to who counts connections.
type telling[F any] struct {
	roster.Backend[F]
	to    *conntrack.Tracker
	watch *watcher.Watcher
}

// tellConnections returns the backend itself where connections are not counted.
func tellConnections[F any](d *daemon, backend roster.Backend[F]) roster.Backend[F] {
	if d.connections == nil {
		return backend
	}
	return telling[F]{backend, d.connections, d.watch}
}

// Count implements [roster.Backend]. A nested container's addresses are in the namespace of the
// one around it, which the host does not see. A user can give a namespace any address, so a
// user's container has to have an interface from the host.
func (t telling[F]) Count(owner roster.Member, in roster.Location[F]) roster.Outcome {
	outcome := t.Backend.Count(owner, in)
	if owner.Found.ParentID == "" && (usage.UserOf(owner.ID) == "" || outcome.Given) {
		t.to.Found(conntrack.Sandbox{
			ID: in.ID, Owner: owner.ID, Since: owner.Found.CreatedAt,
			Addresses: func() ([]netip.Addr, error) { return addressesOf(t.watch, owner.Found) },
			Enter: func(visit func(netns int) error) error {
				return enterNamespace(t.watch, owner.Found, func(n *watcher.Namespace) error { return visit(n.FD()) })
			},
		})
	}
	return outcome
}

// Update implements [roster.Backend].
func (t telling[F]) Update(m roster.Member) {
	t.Backend.Update(m)
	if m.Ended {
		t.to.Ended(m.ID)
	}
}

// Left implements [roster.Backend].
func (t telling[F]) Left(in roster.Space) {
	t.Backend.Left(in)
	t.to.Left(in.ID)
}

// addressesOf lists the addresses in a container's network namespace.
func addressesOf(w *watcher.Watcher, c watcher.Container) ([]netip.Addr, error) {
	n, err := w.Hold(c)
	if err != nil {
		return nil, err
	}
	found, err := n.Addresses()
	return found, errors.Join(err, n.Close())
}

// enterNamespace calls visit with a container's network namespace, if that is not the host's.
func enterNamespace(w *watcher.Watcher, c watcher.Container, visit func(*watcher.Namespace) error) error {
	n, err := w.Hold(c)
	if err != nil {
		return err
	}
	if !n.Host() {
		err = visit(n)
	}
	return errors.Join(err, n.Close())
}

// connectionsTracked looks at the connection tracking of the process's network namespace, and of
// those of containers, for `nettally check`.
func connectionsTracked(config *configs.Config) (string, error) {
	if !config.Accounting.Conntrack {
		return "off, by accounting.conntrack", nil
	}
	found, err := conntrack.Check()
	if errors.Is(err, conntrack.ErrAbsent) {
		return "", err
	}
	inside, failed := trackedInside(config)
	if failed != nil {
		inside = "what containers track themselves can't be looked at: " + failed.Error()
	}
	if err != nil {
		return "", fmt.Errorf("%w; %s", err, inside)
	}
	return found + "; " + inside, nil
}

// trackedInside says how many network namespaces of containers have entries of their own.
func trackedInside(config *configs.Config) (string, error) {
	w, err := newWatcher(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer w.Close()
	containers, err := w.Containers()
	if err != nil {
		return "", err
	}
	entries, failed := map[uint64]int64{}, 0 // by namespace, which containers of a pod share
	for _, c := range containers {
		err := enterNamespace(w, c, func(n *watcher.Namespace) error {
			if _, ok := entries[n.Inode()]; ok {
				return nil
			}
			count, err := conntrack.Entries(n.FD())
			if err == nil {
				entries[n.Inode()] = count
			}
			return err
		})
		if err != nil && !errors.Is(err, watcher.ErrNoProcess) {
			failed++
		}
	}
	tracking := 0
	for _, count := range entries {
		if count > 0 {
			tracking++
		}
	}
	says := fmt.Sprintf("%d of %d network namespaces of containers have entries of their own", tracking, len(entries))
	if failed > 0 {
		says += fmt.Sprintf(", those of %d containers can't be looked at", failed)
	}
	return says, nil
}
