// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/trusted"
)

// bpffsRoot is where hosts mount the bpffs, if they do.
const bpffsRoot = "/sys/fs/bpf"

// marker is a folder in the root of a bpffs that we mounted: [Unpin] takes off no
// other. The mount's source would say it too, but Linux 5.10 loses that of a bpffs.
const marker = "mounted-by-nettally"

// claim makes the folder for pins and locks the pin path, mounting a bpffs if it
// lies on none.
func claim(pinPath, folder string) (_ *os.File, err error) {
	if err := trusted.Check(pinPath); err != nil {
		return nil, fmt.Errorf("use pin path: %w", err)
	}
	if err := ensureBPFFS(pinPath); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(pinPath, 0o700); err != nil {
		return nil, fmt.Errorf("make pin path: %w", err)
	}
	lock, err := lockPath(pinPath)
	if err != nil {
		return nil, err
	}
	if err := refuseNewer(pinPath); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make pin path: %w", err), lock.Close())
	}
	return lock, nil
}

// lockPath locks a folder for this process, until the file is closed. It refuses what others
// can change: they could have pinned maps there, with counts of theirs.
func lockPath(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open pin path: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrInUse
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w (stop it, or set another bpf.pin_path)", path, err), file.Close())
	}
	if err := trusted.CheckTree(path); err != nil {
		return nil, errors.Join(fmt.Errorf("use pin path: %w", err), file.Close())
	}
	return file, nil
}

// ensureBPFFS mounts a bpffs where the pin path lies on none: at the usual place if
// the path is below that, at the path itself otherwise.
func ensureBPFFS(pinPath string) error {
	if isBPFFS(pinPath) {
		return nil
	}
	at := mountPoint(pinPath)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return fmt.Errorf("make mount point of bpffs: %w", err)
	}
	if err := unix.Mount("nettally", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w: run `mount -t bpf bpf %s`, or set bpf.pin_path to a bpffs", at, err, at)
	}
	if err := os.Mkdir(filepath.Join(at, marker), 0o700); err != nil {
		return fmt.Errorf("mark bpffs as ours: %w", err)
	}
	return nil
}

// isBPFFS says whether a path, or the nearest parent that exists, is on a bpffs.
func isBPFFS(path string) bool {
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(path, &fs)
		if err == nil {
			return uint64(fs.Type) == unix.BPF_FS_MAGIC
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, unix.ENOENT) || parent == path {
			return false
		}
		path = parent
	}
}

// mountPoint returns where we mount a bpffs for a pin path, as the kernel spells it.
func mountPoint(pinPath string) string {
	pinPath = filepath.Clean(pinPath)
	if pinPath == bpffsRoot || strings.HasPrefix(pinPath, bpffsRoot+"/") {
		return bpffsRoot
	}
	return pinPath
}

// Unpin removes the pinned maps of every layout below the pin path, the folders we
// made for them, and the bpffs if we mounted it and nothing else is in it. What is
// not there is fine.
//
// Returns an error wrapping [ErrInUse] while a process has the pin path.
func Unpin(pinPath string) error {
	if _, err := os.Stat(pinPath); errors.Is(err, os.ErrNotExist) {
		return unmountOurs(pinPath)
	}
	lock, err := lockPath(pinPath)
	if err != nil {
		return err
	}
	defer lock.Close()
	if isBPFFS(pinPath) {
		if err := removePins(pinPath); err != nil {
			return fmt.Errorf("remove pins: %w", err)
		}
	}
	// The lock keeps the mount busy.
	if err := lock.Close(); err != nil {
		return err
	}
	return unmountOurs(pinPath)
}

// layouts returns the folders of all layouts that are pinned below a path.
func layouts(pinPath string) ([]string, error) {
	return filepath.Glob(filepath.Join(pinPath, "v[0-9]*"))
}

// removePins removes v1, v2, … with the maps in them, and what all layouts share, and the pin path if that
// leaves it empty and it is not the mount itself.
func removePins(pinPath string) error {
	folders, err := layouts(pinPath)
	if err != nil {
		return err
	}
	for _, shared := range []string{classifierMapMembers, tcpMapTcpMembers, requestPins} {
		folders = append(folders, filepath.Join(pinPath, shared))
	}
	for _, pin := range folders {
		if err := os.RemoveAll(pin); err != nil {
			return err
		}
	}
	if err := os.Remove(pinPath); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// unmountOurs takes the bpffs that the pin path lies on off, if it is ours and
// empty.
func unmountOurs(pinPath string) error {
	at := mountPoint(pinPath)
	if _, err := os.Stat(filepath.Join(at, marker)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	entries, err := os.ReadDir(at)
	if err != nil || slices.ContainsFunc(entries, foreign) {
		return err
	}
	if err := unix.Unmount(at, 0); err != nil {
		return fmt.Errorf("unmount bpffs from %s: %w", at, err)
	}
	if at == bpffsRoot {
		return nil
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// foreign says whether an entry of a bpffs is neither our marker nor one of the two
// iterators that the kernel itself puts into each new one (kernel/bpf/preload).
func foreign(e os.DirEntry) bool {
	return e.Name() != marker && e.Name() != "maps.debug" && e.Name() != "progs.debug"
}

// Pinned says whether slots of any layout are pinned below a pin path. It needs no more
// than the right to look into that folder; where that is missing, it does not know of any.
func Pinned(pinPath string) (bool, error) {
	found, err := filepath.Glob(filepath.Join(pinPath, "v[0-9]*", classifierMapSlots))
	if err != nil {
		return false, fmt.Errorf("look for pinned slots: %w", err)
	}
	return len(found) > 0, nil
}

// PinnedSlots returns the slots that are in use below a pin path, of this layout and
// of the older ones, without loading anything: none if nothing is pinned.
//
// Returns an error wrapping [ErrInUse] while a process has the pin path.
func PinnedSlots(pinPath string) ([]Slot, error) {
	if _, err := os.Stat(pinPath); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	lock, err := lockPath(pinPath)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	// What a newer layout has inherited from an older one is the same attachment.
	newest := map[uint64]Slot{}
	for _, layout := range append(olderLayouts(), Layout) {
		slots, err := slotsPinned(filepath.Join(pinPath, layout))
		if err != nil {
			return nil, err
		}
		for _, s := range slots {
			newest[s.Generation] = s
		}
	}
	return slices.Collect(maps.Values(newest)), nil
}

// slotsPinned returns the slots in a layout's folder, none if there is no such folder.
func slotsPinned(folder string) ([]Slot, error) {
	pinned, err := openSlots(folder)
	if pinned == nil {
		return nil, err
	}
	defer pinned.Close()
	return slotsIn(pinned)
}

// openSlots opens the map of slots in a layout's folder. It returns nil if there is
// none.
func openSlots(folder string) (*ebpf.Map, error) {
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(folder, classifierMapSlots), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned slots in %s: %w", folder, err)
	}
	return pinned, nil
}

// refuseNewer returns an error wrapping [ErrNewer] if a layout that comes after ours has
// slots: to count beside it would count twice, and what it has could not be told.
func refuseNewer(pinPath string) error {
	folders, err := layouts(pinPath)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if version(folder) <= version(Layout) {
			continue
		}
		slots, err := openSlots(folder)
		if err != nil {
			return err
		}
		if slots == nil {
			continue
		}
		first, err := slots.NextKeyBytes(nil)
		if err := errors.Join(err, slots.Close()); err != nil {
			return fmt.Errorf("read slots in %s: %w", folder, err)
		}
		if first != nil {
			return fmt.Errorf("open counters in %s: %w: run that one, or `nettally detach` to discard what it counted", folder, ErrNewer)
		}
	}
	return nil
}

// version returns the number in the name of a layout, 0 for what is none.
func version(layout string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(layout), "v"))
	if err != nil {
		return 0
	}
	return n
}
