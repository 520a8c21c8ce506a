// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"
)

// kind is a sort of source.
type kind struct {
	name    string
	setting func(Options) string
	// usual are the places of its sockets. The paths of one place lead to the
	// same socket, on one host or another.
	usual [][]string
	// connector returns what connects to one socket. It is kept as long as the
	// source, so that it can remember what never changes.
	connector func() connect
}

// kinds are in the order in which they are believed.
var kinds = []kind{
	{
		"docker", func(o Options) string { return o.Docker },
		[][]string{{"/run/docker.sock", "/var/run/docker.sock"}},
		newMoby,
	},
	{
		"podman", func(o Options) string { return o.Podman },
		[][]string{{"/run/podman/podman.sock", "/var/run/podman/podman.sock"}},
		newMoby,
	},
	{
		"cri", func(o Options) string { return o.CRI },
		[][]string{
			{"/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock"},
			{"/run/crio/crio.sock", "/var/run/crio/crio.sock"},
			{"/run/cri-dockerd.sock", "/var/run/cri-dockerd.sock"},
			{"/run/k3s/containerd/containerd.sock"},
		},
		newCRI,
	},
}

// connect connects to a socket and asks who is there. Nothing takes longer than
// within. An error that wraps [ErrAbsent] says that it is somebody else.
type connect func(ctx context.Context, path string, within time.Duration) (*connection, error)

// connection is a runtime that has answered.
type connection struct {
	runtime, version, api string

	// batch is how many containers list can be asked for.
	batch int
	// list tells of containers, running or not. Those that the runtime does not
	// know are missing from the result. Its error wraps errTooLarge if they have
	// too much to tell.
	list func(ctx context.Context, ids, labels []string) (map[string]Meta, error)
	// renames subscribes to the ids of renamed containers; nil if the runtime
	// does not rename any.
	renames func(ctx context.Context) renames
	close   func()
}

// renames is a stream of the ids of renamed containers. Nothing else that can
// happen to a container changes what is told of it.
type renames struct {
	ids  <-chan string // closed when the runtime ends the stream
	stop func()        // ends it and waits for that
}

var errTooLarge = errors.New("answer is too large")

// absence is an [ErrAbsent] that says what is not there.
type absence string

const (
	noSocket absence = "no socket there"
	notCRI   absence = "no CRI v1 is spoken there"
)

func (a absence) Error() string { return string(a) }

func (a absence) Is(target error) bool { return target == ErrAbsent }

// state is what was last said in the log.
type state int

const (
	unsaid state = iota
	connected
	absent
	failing
)

// source is a socket that containers are asked for.
type source struct {
	r       *Resolver
	kind    string
	rank    int      // its index in the resolver's sources
	paths   []string // the first that exists is it
	isUsual bool     // nobody says that it is there
	connect connect
	log     *slog.Logger

	wake  chan struct{} // holds a token while there may be more to ask for
	state state         // belongs to run

	// user is the uid of the socket's owner, "" for root: that one's containers are asked for,
	// and nobody can name another's. The resolver's mu guards it.
	user string

	// pending are the ids to ask for next, all of them wanted; nil while the
	// socket is not in use. missed are those to ask for again, and when. The
	// resolver's mu guards both.
	pending map[string]struct{}
	missed  map[string]time.Time
}

// addSources adds those of a kind by its setting.
func (r *Resolver) addSources(k kind, setting string) {
	places, isUsual := k.usual, true
	switch setting {
	case "off":
		return
	case "auto":
	default:
		places, isUsual = [][]string{{setting}}, false
	}
	for _, paths := range places {
		r.sources = append(r.sources, &source{
			r:       r,
			kind:    k.name,
			rank:    len(r.sources),
			paths:   paths,
			missed:  make(map[string]time.Time),
			isUsual: isUsual,
			connect: k.connector(),
			log:     r.options.Log.With("source", k.name),
			wake:    make(chan struct{}, 1),
		})
	}
}

// run keeps what the source knows up to date until ctx ends. As long as there
// is nothing to ask for it leaves the socket alone: podman's service ends when
// nobody uses it.
func (s *source) run(ctx context.Context) {
	wait := s.r.retryFirst
	for ctx.Err() == nil {
		if !s.open() {
			select {
			case <-s.wake:
			case <-ctx.Done():
			}
			continue
		}
		err := s.session(ctx)
		if err == nil {
			wait = s.r.retryFirst
			continue
		}
		if ctx.Err() == nil {
			s.report(err)
		}
		pause(ctx, wait)
		wait = min(2*wait, retryLast)
	}
}

// session connects, asks for all that is pending, and then for what is wanted
// or renamed until the next refresh is due. A fresh connection for every
// refresh also heals a stream of events that went silent, and meets a runtime
// that was upgraded as what it now is.
func (s *source) session(ctx context.Context) error {
	path, err := s.find()
	if err != nil {
		return err
	}
	s.serves(path)
	c, err := s.connect(ctx, path, s.r.answerWithin)
	if err != nil {
		return s.failed("connect to", path, err)
	}
	defer c.close()

	var ids <-chan string
	if c.renames != nil {
		// Before the first request, so that no rename falls in between.
		renames := c.renames(ctx)
		defer renames.stop()
		ids = renames.ids
	}
	if err := s.askPending(ctx, c); err != nil {
		return s.failed("list containers of", path, err)
	}
	s.reportConnected(c, path)
	return s.failed("list containers of", path, s.follow(ctx, c, ids))
}

// failed says what did not work, and nothing of an error that is none.
func (s *source) failed(what, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s at unix://%s: %w", what, s.kind, path, err)
}

// find returns the path of the socket.
func (s *source) find() (string, error) {
	if !s.isUsual {
		path, isUnix := strings.CutPrefix(s.paths[0], "unix://")
		if !isUnix {
			return "", fmt.Errorf("find %s: %q is none of off, auto and unix:///path", s.kind, s.paths[0])
		}
		return path, nil
	}
	for _, path := range s.paths {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Type() == os.ModeSocket {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s at %s: %w", s.kind, s.paths[0], noSocket)
}

// follow asks for what is wanted, renamed or was missed until the next refresh is due.
func (s *source) follow(ctx context.Context, c *connection, renames <-chan string) error {
	refresh := time.NewTimer(s.r.refreshEvery)
	defer refresh.Stop()
	again := time.NewTimer(s.r.refreshEvery)
	defer again.Stop()
	for {
		again.Reset(s.nextMissed())
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
			s.renamed(id)
		case <-again.C:
			s.askMissed()
		case <-s.wake:
			if err := s.askPending(ctx, c); err != nil {
				return err
			}
		}
	}
}

func (s *source) askPending(ctx context.Context, c *connection) error {
	for {
		ids := s.take(c.batch)
		if len(ids) == 0 {
			return nil
		}
		if err := s.askFor(ctx, c, ids); err != nil {
			return err
		}
	}
}

// askFor asks for some ids. Where the answer is too large, it looks for the
// container that makes it so and leaves only that one out.
func (s *source) askFor(ctx context.Context, c *connection, ids []string) error {
	told, err := listed(ctx, c, ids, s.r.options.Labels())
	if !errors.Is(err, errTooLarge) {
		if err == nil {
			s.store(ids, told)
		}
		return err
	}
	if len(ids) == 1 {
		s.log.Warn("metadata of a container is too large, it stays without a name", "container", ids[0], "err", err)
		s.giveUp(ids[0])
		return nil
	}
	half := len(ids) / 2
	if err := s.askFor(ctx, c, ids[:half]); err != nil {
		return err
	}
	return s.askFor(ctx, c, ids[half:])
}

// listed asks for ids as the runtime knows them.
func listed(ctx context.Context, c *connection, ids, labels []string) (map[string]Meta, error) {
	bare := make([]string, len(ids))
	for i, id := range ids {
		_, bare[i] = userAndID(id)
	}
	told, err := c.list(ctx, bare, labels)
	found := make(map[string]Meta, len(told))
	for i, id := range ids {
		if meta, ok := told[bare[i]]; ok {
			found[id] = meta
		}
	}
	return found, err
}

// report says what is wrong, once. That a usual socket is not there is no news
// before it was.
func (s *source) report(err error) {
	now, level := failing, slog.LevelWarn
	if errors.Is(err, ErrAbsent) && s.isUsual {
		now, level = absent, slog.LevelInfo
	}
	if now == s.state || now == absent && s.state == unsaid {
		level = slog.LevelDebug
	}
	s.state = now
	s.log.Log(context.Background(), level, "no names from the runtime", "err", err)
}

func (s *source) reportConnected(c *connection, path string) {
	if s.state == connected {
		return
	}
	s.state = connected
	s.log.Info("names come from the runtime", "runtime", c.runtime, "version", c.version, "address", "unix://"+path)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
