// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/wallclock"
)

// spaceMin is the free space below which a ledger is about to fail: it has to hold
// what changes between two checkpoints twice.
const spaceMin = 64 << 20

// Check says what keeps usage from being kept in a file, each as one line with what to
// do, joined as by errors.Join. It changes nothing, and may run beside the process that
// keeps the file. It needs the right to read the folder, which is root's.
func Check(path string) error {
	folder, err := existing(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("find folder of ledger %s: %w; set state_dir to a folder", path, err)
	}
	return errors.Join(checkFolder(folder), checkSpace(folder), checkFile(path))
}

// existing returns the innermost folder of a path that exists: the others will be made.
func existing(folder string) (string, error) {
	for {
		info, err := os.Stat(folder)
		switch {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%s is no folder", folder)
		case err == nil:
			return folder, nil
		case !errors.Is(err, fs.ErrNotExist) || folder == filepath.Dir(folder):
			return "", err
		}
		folder = filepath.Dir(folder)
	}
}

func checkFolder(folder string) error {
	err := unix.Access(folder, unix.W_OK|unix.X_OK)
	if err == nil {
		err = tryWrite(folder)
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("write to %s: its file system is read-only; remount it or set state_dir to another folder", folder)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("write to %s: %w; see dmesg, or set state_dir to another folder", folder, err)
	case err != nil:
		return fmt.Errorf("write to %s: %w; run as root or set state_dir to another folder", folder, err)
	}
	return nil
}

// tryWrite makes a file without a name: after an error of the disk a file system may
// refuse to be written without being mounted read-only. Not every kind can do that.
func tryWrite(folder string) error {
	fd, err := unix.Open(folder, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO):
		return err
	}
	return nil
}

func checkSpace(folder string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return fmt.Errorf("find free space of %s: %w", folder, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < spaceMin {
		return fmt.Errorf("write to %s: %d MiB are free; free %d MiB or set state_dir to another folder",
			folder, free>>20, int64(spaceMin)>>20)
	}
	return nil
}

func checkFile(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx := context.Background()
	f, v, err := openReadable(ctx, path)
	if isDamage(err) {
		return damaged(path, err)
	}
	if err != nil {
		return fmt.Errorf("open ledger %s: %w; run as root, or see who else has it open", path, err)
	}
	defer func() { _ = f.shut() }()
	if newest := len(migrations()); v > newest {
		return fmt.Errorf("open ledger %s: %w (version %d, here %d); install that one again or move the file away",
			path, errNewer, v, newest)
	}
	if v == 0 {
		return nil
	}
	if err := quickCheck(ctx, f.lookup); err != nil {
		return damaged(path, err)
	}
	return checkClock(ctx, f)
}

func damaged(path string, err error) error {
	return fmt.Errorf("read ledger %s: %w; `nettally run` sets it aside and takes over what can be read", path, err)
}

func checkClock(ctx context.Context, f *file) error {
	mark, steady, err := readMarks(ctx, f.lookup)
	if err != nil {
		return fmt.Errorf("read last write of ledger %s: %w", f.path, err)
	}
	read, err := wallclock.Host()
	if err != nil {
		return err
	}
	var guard wallclock.Guard
	guard.Restore(mark, steady)
	now := read()
	if state := guard.Look(now); state == wallclock.Ahead || state == wallclock.Behind {
		return fmt.Errorf("compare the clock with ledger %s: it is %s, and by the last write it should be %s (%s); set the clock",
			f.path, now.Wall.Format(time.RFC3339), guard.Now().Format(time.RFC3339), state)
	}
	return nil
}
