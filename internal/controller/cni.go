// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxCNIFiles is how many files of a folder are read. A node has a few.
	maxCNIFiles = 100
	// maxCNIFile is how large a file may be. A configuration has a few kilobytes.
	maxCNIFile = 1 << 20
)

// shapers are the CNI plugins that add an `ingress` qdisc to the host veth while a pod starts.
var shapers = []string{"bandwidth"}

// cni looks at the configuration of container networks.
type cni struct {
	log    *slog.Logger
	warned map[string]bool // paths that could not be read at the last look
}

// shapes reports whether a container network in one of the folders uses a plugin that can't
// add its `ingress` qdisc to an interface that has a clsact one. A folder that is not there
// has no networks. A file that can't be read is logged once, and is nobody's network.
func (c *cni) shapes(folders []string) (found bool) {
	failed := map[string]bool{}
	for _, folder := range folders {
		names, err := networkFiles(folder)
		c.note(failed, folder, err)
		for _, name := range names {
			path := filepath.Join(folder, name)
			shapes, err := shapesIn(path)
			c.note(failed, path, err)
			found = found || shapes
		}
	}
	c.warned = failed
	return found
}

// note logs that a path can't be read, unless that was logged before.
func (c *cni) note(failed map[string]bool, path string, err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if !c.warned[path] && !failed[path] {
		c.log.Warn("could not read the configuration of container networks; a plugin that limits bandwidth may fail beside nettally", "path", path, "err", err)
	}
	failed[path] = true
}

// networkFiles returns the names that libcni loads, no more than maxCNIFiles.
func networkFiles(folder string) ([]string, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var names []string
	for {
		some, err := dir.Readdirnames(maxCNIFiles)
		for _, name := range some {
			if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name)) {
				continue
			}
			if len(names) == maxCNIFiles {
				return names, fmt.Errorf("more than %d files: the others are not read", maxCNIFiles)
			}
			names = append(names, name)
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return names, err
		}
	}
}

// shapesIn reports whether a file names one of the shapers.
func shapesIn(path string) (bool, error) {
	// Opening a FIFO would wait for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil || about.IsDir() {
		return false, err
	}
	if !about.Mode().IsRegular() {
		return false, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(file, maxCNIFile+1))
	if err != nil {
		return false, err
	}
	if len(data) > maxCNIFile {
		return false, fmt.Errorf("larger than %d bytes", maxCNIFile)
	}
	var network any
	if err := json.Unmarshal(data, &network); err != nil {
		return false, err
	}
	return namesShaper(network), nil
}

// namesShaper reports whether a plugin of those types is anywhere in a configuration: alone,
// in a list of `plugins` (CNI specification 1.0, section 1), or in such a list below the
// `delegates` of multus. encoding/json bounds the depth.
func namesShaper(value any) bool {
	switch value := value.(type) {
	case []any:
		return slices.ContainsFunc(value, namesShaper)
	case map[string]any:
		for key, inner := range value {
			// encoding/json, by which plugins read this, ignores case.
			if name, ok := inner.(string); ok && strings.EqualFold(key, "type") && slices.Contains(shapers, name) {
				return true
			}
			if namesShaper(inner) {
				return true
			}
		}
	}
	return false
}
