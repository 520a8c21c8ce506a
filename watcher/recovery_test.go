// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRecoveryHasItsPace: the first look is at once, the next ones wait.
func TestRecoveryHasItsPace(t *testing.T) {
	now := time.Now()
	for took, wait := range map[time.Duration]time.Duration{
		time.Millisecond: recoverEvery, time.Second: 9 * time.Second, time.Minute: 9 * time.Minute,
	} {
		r := newRecovery()
		r.want(now)
		<-r.timer.C
		r.done(now, took)
		if got := r.next.Sub(now); got != wait {
			t.Errorf("after a look that took %s the next one is in %s, want %s", took, got, wait)
		}
		r.want(now)
		r.want(now)
		if r.timer.Reset(0); !r.due {
			t.Error("no look is due")
		}
		r.timer.Stop()
	}
}

// TestWritesDoNotStopTheWatcher writes to the files of a cgroup as fast as a user can, so that
// the kernel loses notifications without end. Containers are found all the same, and losses
// cost a look at everything from time to time.
func TestWritesDoNotStopTheWatcher(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/user")
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		r.settle(t)
		var flood sync.WaitGroup
		var stop atomic.Bool
		for range 4 {
			flood.Go(func() { writeOn(t, root+"/user", &stop) })
		}
		defer flood.Wait()
		defer stop.Store(true)

		// The receiver takes its time, as a controller that looks at everything does.
		began, lost, found := time.Now(), 0, 0
		for i := 0; found < 3 || lost < 2; {
			if i == found && found < 3 {
				makeDirs(t, root+"/docker/"+hexID(i))
				i++
			}
			select {
			case e := <-r.events:
				switch e.(type) {
				case ContainerStarted:
					found++
				case Overflowed:
					lost++
				}
				time.Sleep(200 * time.Millisecond)
			case <-time.After(patience):
				t.Fatalf("%d containers found, %d losses told", found, lost)
			}
		}
		if most := 1 + int(time.Since(began)/recoverEvery); lost > most {
			t.Errorf("%d looks at everything in %s, want %d at most", lost, time.Since(began), most)
		}
	})
}

// writeOn writes to two files of a cgroup by turns: the kernel joins equal notifications that
// follow each other.
func writeOn(t *testing.T, dir string, stop *atomic.Bool) {
	names, value := []string{"cgroup.max.depth", "cgroup.max.descendants"}, "max"
	if _, err := os.Stat(dir + "/" + names[0]); err != nil { // v1
		names, value = []string{"notify_on_release", "cgroup.clone_children"}, "0"
	}
	var files []*os.File
	for _, name := range names {
		f, err := os.OpenFile(dir+"/"+name, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		files = append(files, f)
	}
	for !stop.Load() {
		for _, f := range files {
			if _, err := f.WriteString(value); err != nil {
				t.Error(err)
				return
			}
		}
	}
}
