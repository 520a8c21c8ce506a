// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"testing"

	"github.com/cilium/ebpf/link"
)

func TestOthersOnTCX(t *testing.T) {
	attachOurs := func(t *testing.T, h *host, c *Controller) {
		attach(t, c, h.ifindex, 1, load(t, "nettally_ingress"), load(t, "nettally_egress"))
		attachTCX(t, c, h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	}
	tests := map[string]struct {
		prepare func(t *testing.T, h *host, c *Controller)
		want    bool
	}{
		"nothing": {func(*testing.T, *host, *Controller) {}, false},
		"ours":    {attachOurs, false},
		"theirs on clsact": {
			func(t *testing.T, h *host, _ *Controller) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.addBPF(t, Ingress, 1, 9, "theirs", load(t, "theirs"))
			},
			false,
		},
		"theirs": {
			func(t *testing.T, h *host, _ *Controller) { h.addTCX(t, Egress, load(t, "theirs").Program, nil) },
			true,
		},
		"theirs beside ours": {
			func(t *testing.T, h *host, c *Controller) {
				attachOurs(t, h, c)
				h.addTCX(t, Ingress, load(t, "theirs").Program, link.Tail())
			},
			true,
		},
		"theirs, named like ours": {
			func(t *testing.T, h *host, _ *Controller) {
				h.addTCX(t, Egress, load(t, "nettally_egress").Program, nil)
			},
			true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, c := newTCXHost(t)
			test.prepare(t, h, c)
			got, err := c.OthersOnTCX(h.ifindex)
			if err != nil || got != test.want {
				t.Errorf("%v, %v, want %v", got, err, test.want)
			}
			detachTCX(t, c, h.ifindex)
		})
	}
}
