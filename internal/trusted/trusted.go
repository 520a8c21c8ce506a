// SPDX-License-Identifier: Apache-2.0

// Package trusted reports whether only root, or the user that the process runs as, can
// change a file or a folder. What others can change must decide nothing: a folder of pins
// would bring their counters, a program would run with our capabilities.
package trusted

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUntrusted is wrapped by the errors that say who else can change something, and how
// to mend that.
var ErrUntrusted = errors.New("others can change it")

const (
	othersWrite = unix.S_IWGRP | unix.S_IWOTH
	linksMax    = 40 // as in the kernel's own walk
)

// step is a file on the way to a path, the path itself included.
type step struct {
	path string
	stat unix.Stat_t
}

// Check returns an error wrapping [ErrUntrusted] if somebody else owns the file or folder
// at a path or can write to it, or can put another one in its place: by owning or writing
// to a folder above it. Such a folder may be sticky, as /tmp is, since nobody can replace
// root's files there. Symbolic links are followed, and looked at, too.
//
// What does not exist yet is trusted if it can be made only in folders that are trusted or
// sticky: check again when it is made. Other errors are those of looking.
func Check(path string) error {
	steps, exists, err := walk(path)
	if err != nil {
		return err
	}
	for i, s := range steps {
		end := exists && i == len(steps)-1
		if err := s.check(!end); err != nil {
			return err
		}
	}
	return nil
}

// MkdirAll is [os.MkdirAll] in folders that are trusted. It returns the errors of [Check].
func MkdirAll(path string, mode fs.FileMode) error {
	if err := Check(path); err != nil {
		return err
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return Check(path) // somebody may have been faster in a sticky folder
}

// CheckTree is [Check] of a folder and of everything in it. Links in it are not followed.
func CheckTree(path string) error {
	if err := Check(path); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		s := step{path: path}
		if err := unix.Lstat(path, &s.stat); err != nil {
			return ignoreMissing(look(path, err))
		}
		return s.check(false)
	})
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Public reports whether every user can read a file: no folder above it keeps them out.
func Public(path string) (bool, error) {
	steps, exists, err := walk(path)
	if err != nil || !exists {
		return false, err
	}
	for _, s := range steps[:len(steps)-1] {
		if s.is(unix.S_IFDIR) && s.stat.Mode&unix.S_IXOTH == 0 {
			return false, nil
		}
	}
	return steps[len(steps)-1].stat.Mode&unix.S_IROTH != 0, nil
}

// walk returns what is on the way to a path, from the root on. It ends early at what does
// not exist.
func walk(path string) (steps []step, exists bool, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, false, err
	}
	at, names, links := "/", split(path), 0
	root := step{path: at}
	if err := unix.Lstat(at, &root.stat); err != nil {
		return nil, false, look(at, err)
	}
	steps = append(steps, root)
	for len(names) > 0 {
		s := step{path: filepath.Join(at, names[0])}
		names = names[1:]
		err := unix.Lstat(s.path, &s.stat)
		if errors.Is(err, fs.ErrNotExist) {
			return steps, false, nil
		}
		if err != nil {
			return nil, false, look(s.path, err)
		}
		steps = append(steps, s)
		if !s.is(unix.S_IFLNK) {
			at = s.path
			continue
		}
		if links++; links > linksMax {
			return nil, false, look(s.path, unix.ELOOP)
		}
		target, err := os.Readlink(s.path)
		if err != nil {
			return nil, false, err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		names = append(split(target), names...)
	}
	return steps, true, nil
}

// split keeps "..": behind a link it leads elsewhere than a cleaned path says.
func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func look(path string, err error) error { return fmt.Errorf("look at %s: %w", shown(path), err) }

func (s step) is(kind uint32) bool { return s.stat.Mode&unix.S_IFMT == kind }

// check judges one step. above says that it is a folder above the one that is meant.
func (s step) check(above bool) error {
	mode, uid := s.stat.Mode, s.stat.Uid
	owned := uid == 0 || int(uid) == os.Geteuid()
	sticky := above && mode&unix.S_ISVTX != 0
	if owned && (s.is(unix.S_IFLNK) || mode&othersWrite == 0 || sticky) {
		return nil
	}
	path := shown(s.path)
	if s.is(unix.S_IFLNK) {
		return fmt.Errorf("%s is a link of uid %d: %w: run `chown -h root: %s`", path, uid, ErrUntrusted, path)
	}
	mended := mode & 0o777 &^ othersWrite
	if s.is(unix.S_IFDIR) {
		mended |= 0o700
	}
	return fmt.Errorf("%s belongs to uid %d and has mode %04o: %w: run `chown root: %s; chmod %o %s`",
		path, uid, mode&0o7777, ErrUntrusted, path, mended, path)
}

// shown returns a path as a shell takes it. Its names may be others' choice.
func shown(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r)
	}
	if strings.TrimLeftFunc(path, plain) == "" && path != "" {
		return path
	}
	quoted := strconv.Quote(path)
	return "'" + strings.ReplaceAll(quoted[1:len(quoted)-1], "'", `'\''`) + "'"
}
