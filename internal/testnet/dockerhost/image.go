// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

const agentPackage = "github.com/nettally/nettally/internal/testnet/agent"

// importImage makes the image from programs that need no libraries.
func (d *Docker) importImage() {
	d.tb.Helper()
	agent := filepath.Join(d.dir, "agent")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", agent, agentPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		d.tb.Fatalf("build agent: %v: %s", err, out)
	}
	content := nettest.Must(d.imageContent(agent))(d.tb)
	load := d.Client("import", "--change", `CMD ["/bin/sleep","infinity"]`,
		"--change", "ENV PATH=/bin", "-", Image)
	load.Stdin = content
	if out, err := load.CombinedOutput(); err != nil {
		d.tb.Fatalf("import image: %v: %s", err, out)
	}
}

func (d *Docker) imageContent(agent string) (*bytes.Buffer, error) {
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for name, from := range map[string]string{"bin/busybox": busybox, "agent": agent} {
		if err := addProgram(w, name, from); err != nil {
			return nil, err
		}
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
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
	return &content, w.Close()
}

func addProgram(w *tar.Writer, name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
