// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Image is the image of containers and sandboxes: busybox, and an agent. Without
// a command it runs until it is stopped.
const Image = "docker.io/library/nettally-test:latest"

// importImage makes the image from programs that need no libraries, and waits
// until CRI knows it: it hears of what others import a moment later.
func (h *Host) importImage() {
	h.tb.Helper()
	layer := nettest.Must(imageLayer(nettest.AgentProgram(h.tb)))(h.tb)
	archive := nettest.Must(imageArchive(layer))(h.tb)
	load := h.Command("ctr", "--address", h.Socket, "--namespace", "k8s.io", "images", "import", "-")
	load.Stdin = archive
	if out, err := load.CombinedOutput(); err != nil {
		h.tb.Fatalf("import image: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for wanted := (&cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: Image}}); ; time.Sleep(10 * time.Millisecond) {
		status, err := h.images.ImageStatus(ctx, wanted)
		if err != nil {
			h.tb.Fatalf("wait for image: %v", err)
		}
		if status.Image != nil {
			return
		}
	}
}

// imageArchive packs an image of one layer as `docker save` does.
func imageArchive(layer []byte) (io.Reader, error) {
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
		"Config": "config.json", "Layers": []string{"layer.tar"}, "RepoTags": []string{Image},
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
	return &archive, w.Close()
}

func imageLayer(agent []byte) ([]byte, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for name, program := range map[string][]byte{"bin/busybox": shell, "agent": agent} {
		if err := addFile(w, name, 0o755, program); err != nil {
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
	return layer.Bytes(), err
}

func addFile(w *tar.Writer, name string, mode int64, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
