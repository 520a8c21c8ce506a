// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// ofPod is the record of a pod's sandbox, or of a container in it.
func ofPod(id, namespace, pod, name string, n uint64) usage.Record {
	r := record(id, name, n)
	r.Runtime, r.Namespace, r.Pod = "containerd", namespace, pod
	return r
}

// eitherWay checks while usage is in hours, and when it is in days.
func (b *bench) eitherWay(check func()) {
	check()
	b.keep[0] = time.Hour
	b.pass(72 * time.Hour)
	b.tidyAll()
	check()
}

// Pods of one name in two namespaces have a key each, and so have the containers in them.
func TestHistoryOfPods(t *testing.T) {
	b := newBench(t)
	b.flush(
		ofPod("a1", "dev", "redis-0", "redis-0", 100), ofPod("b1", "prod", "redis-0", "redis-0", 500),
		ofPod("b2", "prod", "redis-0", "app", 30), record("c3", "redis-0", 7),
	)
	b.eitherWay(func() {
		same(t, b.received(Query{Step: Month}), []string{
			"03-01 00:00 dev/redis-0 100", "03-01 00:00 prod/redis-0 500", "03-01 00:00 prod/redis-0/app 30", "03-01 00:00 redis-0 7",
		})
		same(t, b.received(Query{Step: Month, By: ByPod}), []string{
			"03-01 00:00  7", "03-01 00:00 dev/redis-0 100", "03-01 00:00 prod/redis-0 530",
		})
		same(t, b.received(Query{Step: Month, Name: "app"}), []string{"03-01 00:00 prod/redis-0/app 30"})
	})
}

// A docker and a podman container of one name have a key each, whatever is asked for.
func TestHistoryOfRuntimes(t *testing.T) {
	b := newBench(t)
	podman, other := record("a1", "web", 100), record("a2", "db", 5)
	podman.Runtime, other.Runtime = "podman", "podman"
	b.flush(podman, other)
	same(t, b.received(Query{Step: Month}), []string{"03-01 00:00 db 5", "03-01 00:00 web 100"})
	b.flush(record("b2", "web", 500))
	b.eitherWay(func() {
		same(t, b.received(Query{Step: Month}), []string{"03-01 00:00 db 5", "03-01 00:00 podman~web 100", "03-01 00:00 web 500"})
	})
	b.flush(record("b3", "web", 1), podman)
	same(t, b.received(Query{Step: Month, Container: "b3"}), []string{"03-01 00:00 web 1"})
}

// What a container used before it was renamed stays under the old name, what it uses from then
// on is under the new one, and the sum is what it has used. Compose's name for what it replaces
// is none.
func TestHistoryOfRenamed(t *testing.T) {
	b := newBench(t)
	id := "249662c60a09" + strings.Repeat("0", 52)
	b.flush(record(id, "web", 100))
	b.flush(record(id, "249662c60a09_web", 150))
	b.flush(record(id, "other", 400))
	b.eitherWay(func() {
		same(t, b.received(Query{Step: Month}), []string{"03-01 00:00 other 250", "03-01 00:00 web 150"})
	})
}
