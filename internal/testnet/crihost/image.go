// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"bytes"
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet/enclosure"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Image is the image of containers and sandboxes: busybox, and an agent. Without
// a command it runs until it is stopped.
const Image = "docker.io/library/nettally-test:latest"

// importImage waits until CRI knows the image: it hears of what others import a
// moment later.
func (h *Host) importImage() {
	h.tb.Helper()
	args := h.ctrArgs("k8s.io", "images", "import", "-")
	load := h.Command(args[0], args[1:]...)
	load.Stdin = bytes.NewReader(nettest.Must(enclosure.Archive(Image))(h.tb))
	if err := ran(load); err != nil {
		h.tb.Fatalf("import image: %v", err)
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
