// SPDX-License-Identifier: Apache-2.0

package dockerhost

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"strings"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

// importImage makes the image from programs that need no libraries.
func (d *Docker) importImage() {
	d.tb.Helper()
	content := nettest.Must(imageContent(nettest.AgentProgram(d.tb)))(d.tb)
	load := d.Client("import", "--change", `CMD ["/bin/sleep","infinity"]`,
		"--change", "ENV PATH=/bin", "-", Image)
	load.Stdin = content
	if out, err := load.CombinedOutput(); err != nil {
		d.tb.Fatalf("import image: %v: %s", err, out)
	}
}

func imageContent(agent []byte) (*bytes.Buffer, error) {
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for name, program := range map[string][]byte{"bin/busybox": shell, "agent": agent} {
		if err := addProgram(w, name, program); err != nil {
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

func addProgram(w *tar.Writer, name string, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
