// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
)

// A follower takes the steps of WatchFile one by one: an edit is finished before
// it is read, however slow the machine.
type follower struct {
	*fileWatch
	t       *testing.T
	watcher *fsnotify.Watcher
	applied []string
}

// follow follows a file that is loaded as it is now.
func follow(t *testing.T, path string) *follower {
	t.Helper()
	current, err := Load(path, false, nil)
	must(t, err)
	return followFrom(t, path, current)
}

func followFrom(t *testing.T, path string, current *Config) *follower {
	t.Helper()
	f := &follower{t: t}
	f.fileWatch = &fileWatch{
		path:   path,
		last:   current.digest,
		settle: 5 * time.Millisecond,
		load:   func() (*Config, error) { return Load(path, true, nil) },
		apply:  f.note,
	}
	watcher, err := f.start()
	must(t, err)
	t.Cleanup(func() { watcher.Close() })
	f.watcher = watcher
	return f
}

func (f *follower) note(c *Config, err error) {
	if err != nil {
		f.applied = append(f.applied, "error: "+strings.ReplaceAll(err.Error(), f.path, "FILE"))
		return
	}
	f.applied = append(f.applied, c.Log.Level.String())
}

// step does what WatchFile does after an edit. Events that come too late for it
// make the next step shorter, which must not change anything.
func (f *follower) step() {
	f.t.Helper()
	must(f.t, f.wait(f.t.Context(), f.watcher))
	f.check()
}

func (f *follower) expect(want ...string) {
	f.t.Helper()
	if diff := cmp.Diff(want, f.applied); diff != "" {
		f.t.Errorf("applied (-want +got):\n%s", diff)
	}
}

// again makes events without another content.
func (f *follower) again() {
	f.t.Helper()
	text, err := os.ReadFile(f.path)
	if err == nil {
		err = os.WriteFile(f.path, text, 0o644)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.step()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func levelFile(level string) []byte { return []byte("log: {level: " + level + "}\n") }

func TestWatchInPlace(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	f := follow(t, path)
	for _, level := range []string{"warn", "debug", "error"} {
		must(t, os.WriteFile(path, levelFile(level), 0o644))
		f.step()
	}
	f.again()
	f.expect("WARN", "DEBUG", "ERROR")
}

// One edit in many steps, as an editor does it: truncate, write by the piece,
// change the mode, leave a backup.
func TestWatchManySteps(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	f := follow(t, path)
	file, err := os.Create(path)
	must(t, err)
	for _, piece := range []string{"log:\n", "  level: ", "warn\n", "  format: json\n"} {
		_, err := file.WriteString(piece)
		must(t, err)
	}
	must(t, file.Close())
	must(t, os.Chmod(path, 0o600))
	must(t, os.WriteFile(path+"~", nil, 0o600))
	f.step()
	f.again()
	f.expect("WARN")
}

func TestWatchRenameReplace(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	f := follow(t, path)
	for _, level := range []string{"warn", "debug"} {
		must(t, os.WriteFile(path+".new", levelFile(level), 0o644))
		must(t, os.Rename(path+".new", path))
		f.step()
	}
	// The other order: the old file is moved away first.
	must(t, os.Rename(path, path+"~"))
	must(t, os.WriteFile(path, levelFile("error"), 0o644))
	f.step()
	f.again()
	f.expect("WARN", "DEBUG", "ERROR")
}

// A ConfigMap is a directory of links through ..data, which is a link to the
// directory of one version and is replaced by rename.
func TestWatchConfigMap(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "nettally.yaml")
	version := 0
	publish := func(level string) {
		version++
		name := fmt.Sprintf("..2026_01_0%d", version)
		must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name, "nettally.yaml"), levelFile(level), 0o644))
		must(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		if version > 1 {
			must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..2026_01_0%d", version-1))))
		}
	}
	publish("info")
	must(t, os.Symlink(filepath.Join("..data", "nettally.yaml"), path))

	f := follow(t, path)
	publish("warn")
	f.step()
	publish("debug")
	f.step()
	publish("debug") // another version of the map, the same file
	f.step()
	publish("error")
	f.step()
	f.expect("WARN", "DEBUG", "ERROR")
}

func TestWatchBadFile(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	f := follow(t, path)
	must(t, os.WriteFile(path, levelFile("loud"), 0o644))
	f.step()
	f.again() // said once
	must(t, os.Remove(path))
	f.step()
	must(t, os.WriteFile(path, levelFile("info"), 0o644))
	f.step()
	f.expect(
		`error: FILE: log.level: expected debug, info, warn or error, got "loud"`,
		"error: read config FILE: no such file or directory",
		"INFO",
	)
}

func TestWatchFileAppears(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nettally.yaml")
	f := follow(t, path)
	must(t, os.WriteFile(path, levelFile("warn"), 0o644))
	f.step()
	f.again()
	f.expect("WARN")
}

// Between Load and the watch there is no gap.
func TestWatchChangedBefore(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	current, err := Load(path, true, nil)
	must(t, err)
	must(t, os.WriteFile(path, levelFile("warn"), 0o644))
	f := followFrom(t, path, current)
	f.again()
	f.expect("WARN")
}

// A log beside the file, written all the time, is no reason to wait.
func TestWatchIgnoresNeighbours(t *testing.T) {
	path := "/etc/nettally/nettally.yaml"
	w := fileWatch{path: path}
	for _, c := range []struct {
		op   fsnotify.Op
		name string
		want bool
	}{
		{fsnotify.Write, "nettally.yaml", true},
		{fsnotify.Chmod, "nettally.yaml", true},
		{fsnotify.Remove, "nettally.yaml", true},
		{fsnotify.Create, "..data", true},
		{fsnotify.Rename, "..data_tmp", true},
		{fsnotify.Remove, "..data", true},
		{fsnotify.Write, "run.log", false},
		{fsnotify.Chmod, "run.log", false},
	} {
		event := fsnotify.Event{Name: filepath.Join(filepath.Dir(path), c.name), Op: c.op}
		if got := w.concerns(event); got != c.want {
			t.Errorf("%s: concerns = %v, want %v", event, got, c.want)
		}
	}
}

// TestWatchAgain: the directory comes later, goes, and is replaced.
func TestWatchAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "conf")
	path := filepath.Join(dir, "nettally.yaml")
	current, err := Load(path, false, nil)
	must(t, err)
	levels, troubles := make(chan string), make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	w := &fileWatch{
		path: path, last: current.digest, settle: 5 * time.Millisecond, again: 5 * time.Millisecond,
		load: func() (*Config, error) { return Load(path, true, nil) },
		apply: func(c *Config, err error) {
			if err != nil {
				return
			}
			select {
			case levels <- c.Log.Level.String():
			case <-ctx.Done():
			}
		},
		trouble: func(err error) {
			select {
			case troubles <- err:
			case <-ctx.Done():
			}
		},
	}
	done := make(chan struct{})
	go func() { w.run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	deploy := func(name, level string) {
		t.Helper()
		must(t, os.Mkdir(name, 0o755))
		must(t, os.WriteFile(filepath.Join(name, "nettally.yaml"), levelFile(level), 0o644))
	}
	level := func(want string) {
		t.Helper()
		for {
			select {
			case got := <-levels:
				if got != want {
					t.Fatalf("applied %s, want %s", got, want)
				}
				return
			case err := <-troubles: // how many there are depends on when it looks
				t.Log(err)
			}
		}
	}

	err = <-troubles
	want := "watch config directory " + dir + ": no such file or directory"
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	deploy(dir+".1", "warn")
	must(t, os.Rename(dir+".1", dir))
	level("WARN")
	deploy(dir+".2", "error")
	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Rename(dir+".2", dir))
	level("ERROR")
	must(t, os.RemoveAll(dir))
	deploy(dir+".3", "debug")
	must(t, os.Rename(dir+".3", dir))
	level("DEBUG")
	must(t, os.WriteFile(path+".new", levelFile("info"), 0o644))
	must(t, os.Rename(path+".new", path))
	level("INFO")
}

func TestWatchDirectoryGone(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"renamed": func(dir string) error { return os.Rename(dir, dir+"~") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "conf")
			must(t, os.Mkdir(dir, 0o755))
			f := follow(t, filepath.Join(dir, "nettally.yaml"))
			must(t, remove(dir))
			want := "watch config directory " + dir + ": it was removed or renamed"
			if err := f.wait(t.Context(), f.watcher); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
}

// The whole, with the real time to settle.
func TestWatchFile(t *testing.T) {
	path := write(t, "log: {level: info}\n")
	current, err := Load(path, true, nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	applied, done := make(chan *Config), make(chan struct{})
	go func() {
		defer close(done)
		WatchFile(ctx, path, current,
			func() (*Config, error) { return Load(path, true, nil) },
			func(c *Config, err error) {
				if err != nil {
					t.Errorf("apply: %v", err)
				}
				applied <- c
			}, func(err error) { t.Errorf("trouble: %v", err) })
	}()
	must(t, os.WriteFile(path+".new", levelFile("warn"), 0o644))
	must(t, os.Rename(path+".new", path))
	if c := <-applied; c.Log.Level.String() != "WARN" {
		t.Errorf("applied level %v", c.Log.Level)
	}
	cancel()
	<-done
}
