// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet"
)

// patience is how long a test waits for what has to come.
const patience = 2 * time.Minute

// hierarchies returns a v1 hierarchy, if there is one, and the cgroup2 one, by
// name.
func hierarchies(t testing.TB) map[string]string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mounts, err := parseMounts(f)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, m := range mounts {
		switch {
		case m.fstype == "cgroup2":
			found["v2"] = m.point
		case slices.Contains(m.options, "pids"):
			found["v1"] = m.point
		}
	}
	return found
}

// kindOf returns the kind of filesystem that a directory is on.
func kindOf(t testing.TB, dir string) int64 {
	t.Helper()
	kind, err := filesystem(dir)
	if err != nil {
		t.Fatal(err)
	}
	return kind
}

var cgroups atomic.Int64

// newCgroup makes a cgroup of the test's own, removed with all below it.
func newCgroup(t testing.TB, hierarchy string) string {
	t.Helper()
	if hierarchy == "" {
		t.Fatal("no such hierarchy is mounted")
	}
	dir := filepath.Join(hierarchy, fmt.Sprintf("nettally-test-%d-%d", os.Getpid(), cgroups.Add(1)))
	makeDirs(t, dir)
	t.Cleanup(func() { removeCgroup(t, dir) })
	return dir
}

func makeDirs(t testing.TB, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// removeCgroup removes a cgroup and those below it. A process that was killed
// keeps its own busy for a moment.
func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		eventually(t, func() error {
			if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
				return err
			}
			return nil
		})
	}
}

// eventually polls until f returns nil.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Error(err)
}

func newNamespace(t *testing.T) *testnet.Namespace {
	t.Helper()
	ns, err := testnet.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func newWatcher(t *testing.T, o Options) *Watcher {
	t.Helper()
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// running is a watcher whose Run runs. Nobody reads the events but next.
type running struct {
	*Watcher
	events chan Event
}

func run(t *testing.T, o Options) *running {
	t.Helper()
	return start(t, newWatcher(t, o))
}

func start(t *testing.T, w *Watcher) *running {
	t.Helper()
	r := &running{Watcher: w, events: make(chan Event)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, r.events) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

// next reads events up to the next one of a kind.
func next[E Event](t *testing.T, r *running) E {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case e := <-r.events:
			if e, ok := e.(E); ok {
				return e
			}
			t.Logf("passed over %#v", e)
		case <-timeout:
			var e E
			t.Fatalf("no %T came", e)
		}
	}
}

// settle waits until the root is watched, and discards the events up to there.
func (r *running) settle(t *testing.T) {
	t.Helper()
	timeout := time.After(patience)
	for {
		r.mu.Lock()
		ready := r.tree != nil && len(r.tree.watched) > 0 && len(r.tree.changes) == 0
		r.mu.Unlock()
		if ready {
			return
		}
		select {
		case e := <-r.events:
			t.Logf("at the start: %#v", e)
		case <-time.After(time.Millisecond):
		case <-timeout:
			t.Fatal("the watch does not begin")
		}
	}
}

// inotifyWatches counts the watches of this process.
func inotifyWatches(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		info, _ := os.ReadFile(f) // the descriptor of the listing itself is gone
		n += strings.Count(string(info), "inotify wd:")
	}
	return n
}

// wantWatches waits for the number of watches.
func wantWatches(t *testing.T, want int) {
	t.Helper()
	eventually(t, func() error {
		if n := inotifyWatches(t); n != want {
			return fmt.Errorf("%d watches, want %d", n, want)
		}
		return nil
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
