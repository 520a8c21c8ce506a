// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// state is what was last said in the log.
type state int

const (
	unsaid state = iota
	connected
	noSocket
	failing
)

// Run keeps what is wanted up to date until ctx ends, and then returns nil. The
// runtime's troubles are logged when they begin and when they are over. One
// request and one stream of events are open at a time. Run it once.
func (r *Resolver) Run(ctx context.Context) error {
	if r.options.Docker == "off" {
		return nil
	}
	wait := r.retryFirst
	for ctx.Err() == nil {
		err := r.session(ctx)
		if err == nil {
			wait = r.retryFirst
			continue
		}
		if ctx.Err() == nil {
			r.report(err)
		}
		pause(ctx, wait)
		wait = min(2*wait, retryLast)
	}
	return nil
}

// session connects, asks for everything, and then for what is wanted or renamed
// until the next refresh is due. A fresh connection for every refresh also
// heals a stream of events that went silent, and meets a runtime that was
// upgraded with the right API version.
func (r *Resolver) session(ctx context.Context) error {
	d, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer d.close()

	// Before the first request, so that no rename falls in between.
	renames := d.renames(ctx)
	defer renames.stop()

	r.askAll()
	if err := r.askPending(ctx, d); err != nil {
		return err
	}
	r.reportConnected(d)
	return r.follow(ctx, d, renames.ids)
}

// follow asks for what is wanted or renamed until the next refresh is due.
func (r *Resolver) follow(ctx context.Context, d *docker, renames <-chan string) error {
	refresh := time.NewTimer(r.refreshEvery)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-refresh.C:
			return nil
		case id, ok := <-renames:
			if !ok { // refused or ended: the refresh sees what it would have told
				renames = nil
				continue
			}
			r.renamed(id)
		case <-r.wake:
			if err := r.askPending(ctx, d); err != nil {
				return err
			}
		}
	}
}

func (r *Resolver) askPending(ctx context.Context, d *docker) error {
	for {
		ids := r.take()
		if len(ids) == 0 {
			return nil
		}
		if err := r.askFor(ctx, d, ids); err != nil {
			return err
		}
	}
}

// askFor asks for some ids. Where the answer is too large, it looks for the
// container that makes it so and leaves only that one out.
func (r *Resolver) askFor(ctx context.Context, d *docker, ids []string) error {
	told, err := d.list(ctx, ids, r.options.Labels())
	if !errors.Is(err, errTooLarge) {
		if err == nil {
			r.store(ids, told)
		}
		return err
	}
	if len(ids) == 1 {
		r.log.Warn("metadata of a container is too large, it stays without a name", "container", ids[0], "err", err)
		r.giveUp(ids[0])
		return nil
	}
	half := len(ids) / 2
	if err := r.askFor(ctx, d, ids[:half]); err != nil {
		return err
	}
	return r.askFor(ctx, d, ids[half:])
}

func (r *Resolver) report(err error) {
	now, level := failing, slog.LevelWarn
	if errors.Is(err, ErrNoSocket) {
		now, level = noSocket, slog.LevelInfo
	}
	if now == r.state {
		r.log.Debug("no names from the runtime", "err", err)
		return
	}
	r.state = now
	r.log.Log(context.Background(), level, "no names from the runtime", "err", err)
}

func (r *Resolver) reportConnected(d *docker) {
	if r.state == connected {
		return
	}
	r.state = connected
	r.log.Info("names come from the runtime", "runtime", d.runtime, "version", d.version, "address", d.address)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
