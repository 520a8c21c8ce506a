// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// Key identifies a container.
type Key struct {
	ID string // with the scope of who named it, see [watcher.Container]
}

// Member is a container, as a backend sees it.
type Member struct {
	Key
	Found  watcher.Container
	Reason usage.Reason // why it is not counted, or that it is
	Shared bool         // it is, or was, in a network namespace with others
	Extent Extent
	Ended  bool // its cgroup is gone: nothing more will become known of it
}

// Alone reports whether a container has its network namespace to itself, so that what the kernel
// counts for that is the container's. Not decided: it is not known yet, or not for a moment.
func (m Member) Alone() (alone, decided bool) {
	switch m.Reason {
	case usage.HostNetwork, usage.SharedNetwork, usage.SeveralNetworks:
		return false, true
	}
	if m.Shared || m.Extent == InMore {
		return false, true
	}
	decided = m.Reason != usage.Starting && m.Extent == InOne && !m.Ended
	return decided, decided
}

// Extent says over how many network namespaces a container's processes are spread.
type Extent int

// The extents.
const (
	InOne Extent = iota
	// MaybeInMore: they were at the last look, which is to be confirmed. A process that enters
	// a container, as with `docker exec`, is in the host's namespace for some milliseconds.
	MaybeInMore
	// InMore: they are in several, or in the host's, or were: what they have opened there may
	// still send.
	InMore
)

// Space is a network namespace with containers in it.
type Space struct {
	// ID is the backend's number for the namespace. No two namespaces have the same at a
	// time; another one may have it once this one has ended.
	ID    uint64
	NSID  int  // the number that the host's namespace has for it, -1 if none
	Nests bool // a container in it has other containers inside
}

// Location says where the processes of a container are. F is the backend's own: what it
// saw there, and gets back with [Backend.Count].
type Location[F any] struct {
	Space
	InHost bool // they are in the host's network namespace, and Space is empty
	// CountedFor are the owners of what is counted there already, by slots that an earlier
	// process took or by the ledger.
	CountedFor []Key
	Spread     watcher.Spread // of the container's processes
	Kernel     watcher.Kernel // that it runs on
	Found      F
}

// Outcome says what became of the interfaces in a namespace.
type Outcome struct {
	Counted int // for the owner
	Failed  int // to be counted, and not
	Waiting int // for their final name, for a hook, or for their end in the host
	Others  int // counted for another container
	// Excluded are not to be counted, by the configuration.
	Excluded int
	// Hidden lead out and can't be counted.
	Hidden int
	// Given says that one of them leads to the host: the container did not make it itself.
	Given bool
}

// Hint asks for another look: at the container of a key, or, if that is empty, at those
// that may own what has come into a namespace.
type Hint struct {
	Key  Key
	NSID int
}

// Backend counts network namespaces and cgroups. The roster calls all methods but Run
// from its own goroutine.
type Backend[F any] interface {
	// Adopt goes on with what an earlier process counted. It comes first.
	Adopt(context.Context)
	// Run does the backend's own work until the context ends. It hands to do whatever needs
	// the state that the other methods use; the roster calls that, and follows the hints.
	Run(ctx context.Context, do chan<- func() []Hint)

	// Locate finds the network namespace of a container. The error may be
	// [watcher.ErrNoProcess].
	Locate(Member) (Location[F], error)
	// Strays reports whether a process of a container is anywhere else than in the namespace
	// that the container was located in. It is cheap.
	Strays(Member, Space) bool
	// Count counts the interfaces of a namespace for the container that owns them. It may
	// be called again at any time, and then mends and adds.
	Count(owner Member, in Location[F]) Outcome
	// Succeed counts for another owner whatever is counted for containers that have ended.
	// What was counted for these stays theirs.
	Succeed(to Member, ended []Key, in Location[F]) error
	// Update tells of a container that is new, has changed, has ended, or was looked at while
	// it is starting.
	Update(Member)
	// Last counts for a container that has ended whatever is not counted for it yet, in the
	// namespace it was in; that has the ID 0 if it was never known.
	Last(Member, Space) Outcome
	// Release gives up what Locate and Count may hold of a container that is starting. It
	// comes after Last.
	Release(Key)
	// Left tells that no container is in a namespace any more.
	Left(Space)

	// Link takes in an event of [watcher] that is about a link or a namespace.
	Link(watcher.Event) []Hint
	// Relist brings links up to date. The containers are brought up to date after it, and
	// then Reconcile repairs whatever no event told of. there reports whether a container is
	// there, or may be; it is nil if the containers could not be listed.
	Relist() []Hint
	Reconcile(there func(Key) bool) []Hint
}
