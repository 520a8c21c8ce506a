// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settleTime is how long the file must be left alone before it is read: an editor
// takes several steps to save, and half a file can be valid.
const settleTime = 500 * time.Millisecond

// watchAgain is how long a directory that can't be watched is left alone.
const watchAgain = 10 * time.Second

// WatchFile applies what load returns each time the content of the file has become
// another one, until ctx is done. current is the configuration in use: a change since
// its Load is applied at once.
//
// apply gets a configuration or an error, never both: with an error the one in use
// is to be kept. It is called from the goroutine of WatchFile, as load and trouble are. A file
// that is gone counts as an error, since between two steps of an editor or of a
// deployment is no time to fall back to the defaults.
//
// The directory is watched, not the file, so that it may be replaced by rename, by
// the ..data link of a Kubernetes ConfigMap, or appear later. Not seen are the
// target of a link elsewhere being edited in place, file systems without
// inotify, and what a container does not see of a single file mounted into it:
// there the user has SIGHUP.
//
// A directory that can't be watched, or goes away, is tried again until it can be. trouble is
// told why (an error that wraps [fs.ErrNotExist] if there is none, EMFILE or ENOSPC where
// inotify is exhausted), once for each reason, and nil when that is over.
func WatchFile(ctx context.Context, path string, current *Config, load func() (*Config, error), apply func(*Config, error), trouble func(error)) {
	w := fileWatch{path: path, last: current.digest, settle: settleTime, again: watchAgain, load: load, apply: apply, trouble: trouble}
	w.run(ctx)
}

type fileWatch struct {
	path    string
	last    digest // of the content that was applied or refused last
	settle  time.Duration
	again   time.Duration
	load    func() (*Config, error)
	apply   func(*Config, error)
	trouble func(error)
}

func (w *fileWatch) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		pause := w.again
		watcher, err := w.start()
		if err == nil {
			if said != "" {
				said = ""
				w.trouble(nil)
			}
			pause = w.settle // it may have been replaced
			err = w.follow(ctx, watcher)
		}
		if ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			w.trouble(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// follow applies changes until ctx is done, or the directory can't be watched any more.
func (w *fileWatch) follow(ctx context.Context, watcher *fsnotify.Watcher) error {
	defer watcher.Close()
	for {
		if err := w.wait(ctx, watcher); err != nil {
			return err
		}
		w.check()
	}
}

// start begins to watch and applies what has happened before that.
func (w *fileWatch) start() (*fsnotify.Watcher, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch config directory %s: %w", w.dir(), err)
	}
	if err := watcher.Add(w.dir()); err != nil {
		watcher.Close()
		return nil, fmt.Errorf("watch config directory %s: %w", w.dir(), err)
	}
	w.check()
	return watcher, nil
}

// wait returns when something has happened to the file and then nothing more for
// the settle time.
func (w *fileWatch) wait(ctx context.Context, watcher *fsnotify.Watcher) error {
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled:
			return nil
		case event := <-watcher.Events:
			if event.Name == w.dir() && (event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)) {
				return fmt.Errorf("watch config directory %s: it was removed or renamed", w.dir())
			}
			if w.concerns(event) {
				settled = time.After(w.settle)
			}
		case err := <-watcher.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch config directory %s: %w", w.dir(), err)
			}
			settled = time.After(w.settle) // what was lost may have been ours
		}
	}
}

func (w *fileWatch) dir() string { return filepath.Dir(w.path) }

// concerns says whether the content may be another one after the event. Names that
// come and go may be links on the way to it; writing to another file, such as a
// log beside it, must not put off the reading for ever.
func (w *fileWatch) concerns(event fsnotify.Event) bool {
	return filepath.Base(event.Name) == filepath.Base(w.path) ||
		event.Has(fsnotify.Create) || event.Has(fsnotify.Rename) || event.Has(fsnotify.Remove)
}

// check loads the file if its content is another one than the last time. Comparing
// contents is what makes one edit apply once, however many events it has.
func (w *fileWatch) check() {
	text, err := read(w.path, true)
	now := digestOf(text)
	if now == w.last {
		return
	}
	w.last = now
	if err != nil {
		w.apply(nil, err)
		return
	}
	w.apply(w.load())
}

// digest tells contents of a file apart. The zero digest is that of no file.
type digest [sha256.Size]byte

func digestOf(text []byte) digest {
	if text == nil {
		return digest{}
	}
	return sha256.Sum256(text)
}
