// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CgroupRoots returns the mount points of all cgroup hierarchies, v1 and v2.
func CgroupRoots() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var roots []string
	for line := range strings.Lines(string(data)) {
		// 32 24 0:27 /root /mount/point options … - type source options
		mount, filesystem, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(filesystem, "cgroup") {
			roots = append(roots, strings.Fields(mount)[4])
		}
	}
	if len(roots) == 0 {
		return nil, errors.New("find cgroup hierarchies: none is mounted")
	}
	return roots, nil
}

// cgroup is a directory of the same path in several hierarchies.
type cgroup struct {
	roots []string
	path  string
	made  []string // what make made, by root
}

// tree serialises changes of the directories above the containers' own, which
// go with the last container.
var tree sync.Mutex

// make makes the directories. The last one of the path must be new.
func (g *cgroup) make() error {
	tree.Lock()
	defer tree.Unlock()
	for _, root := range g.roots {
		dir := filepath.Join(root, g.path)
		if err := makeParents(root, dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		g.made = append(g.made, root)
		if err := inheritCPUs(dir); err != nil {
			return err
		}
	}
	return nil
}

func makeParents(root, dir string) error {
	parent := filepath.Dir(dir)
	if parent == filepath.Clean(root) {
		return nil
	}
	if err := makeParents(root, parent); err != nil {
		return err
	}
	if err := os.Mkdir(parent, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return inheritCPUs(parent)
}

// inheritCPUs gives a new directory of the v1 cpuset hierarchy its parent's
// CPUs and memory nodes: it starts with none, and then takes no process.
func inheritCPUs(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "cpuset.effective_cpus")); err != nil {
		return nil // another hierarchy, or v2
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), value, 0)
		}
		if err != nil {
			return fmt.Errorf("copy %s from parent cgroup: %w", name, err)
		}
	}
	return nil
}

// join moves a process into all of the directories.
func (g *cgroup) join(pid int) error {
	for _, root := range g.roots {
		procs := filepath.Join(root, g.path, "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("move process %d into cgroup: %w", pid, err)
		}
	}
	return nil
}

// remove removes what make made, and the directories above that are empty.
func (g *cgroup) remove() error {
	tree.Lock()
	defer tree.Unlock()
	var errs []error
	for _, root := range g.made {
		dir := filepath.Join(root, g.path)
		errs = append(errs, removeDir(dir))
		for up := filepath.Dir(dir); up != filepath.Clean(root); up = filepath.Dir(up) {
			if unix.Rmdir(up) != nil { // others are still in it
				break
			}
		}
	}
	g.made = nil
	return errors.Join(errs...)
}

// removeDir waits for processes that have just ended: they leave their cgroup
// a moment after they can be waited for.
func removeDir(dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}
