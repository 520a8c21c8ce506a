// SPDX-License-Identifier: Apache-2.0

package enclosure

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
)

const agentPackage = "github.com/nettally/nettally/internal/testnet/agent"

// Layer returns the files of the image that the hosts run: busybox, and /agent.
// They need no libraries. It is made once.
var Layer = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "nettally-agent-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	agent := filepath.Join(dir, "agent")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", agent, agentPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build agent: %w: %s", err, out)
	}
	return layer(agent)
})

func layer(agent string) ([]byte, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for name, from := range map[string]string{"bin/busybox": busybox, "agent": agent} {
		if err := AddProgram(w, name, from); err != nil {
			return nil, err
		}
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet == "busybox" {
			continue
		}
		link := &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}
		if err := w.WriteHeader(link); err != nil {
			return nil, err
		}
	}
	err = w.Close()
	return content.Bytes(), err
}

// AddProgram adds a file that can be executed.
func AddProgram(w *tar.Writer, name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return addFile(w, name, 0o755, data)
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// Archive returns an image of that layer under a name, packed as `docker save`
// does. Without a command it runs until it is stopped.
func Archive(image string) ([]byte, error) {
	layer, err := Layer()
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Cmd": []string{"/bin/sleep", "infinity"}, "Env": []string{"PATH=/bin"}},
		"rootfs": object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]object{{
		"Config": "config.json", "Layers": []string{"layer.tar"}, "RepoTags": []string{image},
	}})
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, file := range []struct {
		name    string
		content []byte
	}{{"config.json", config}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		if err := addFile(w, file.name, 0o644, file.content); err != nil {
			return nil, err
		}
	}
	err = w.Close()
	return archive.Bytes(), err
}
