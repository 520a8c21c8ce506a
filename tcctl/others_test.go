// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
)

func TestOthers(t *testing.T) {
	filter := func(place string) string {
		return "tc filter add dev v0 egress protocol ip " + place + " u32 match u32 0 0 flowid 1:1"
	}
	run := func(commands ...string) func(*testing.T, *host, *Controller) {
		return func(t *testing.T, h *host, _ *Controller) {
			for _, command := range commands {
				h.run(t, command)
			}
		}
	}
	attachOurs := func(t *testing.T, h *host, c *Controller) {
		attach(t, c, h.ifindex, 1, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	}
	tests := map[string]struct {
		prepare func(t *testing.T, h *host, c *Controller)
		want    Others
	}{
		"nothing":       {run(), Others{}},
		"clsact":        {run("tc qdisc add dev v0 clsact"), Others{}},
		"ingress qdisc": {run("tc qdisc add dev v0 ingress"), Others{IngressQdisc: true}},
		"filter before": {run("tc qdisc add dev v0 clsact", filter("pref 1")), Others{Before: true}},
		"filter after":  {run("tc qdisc add dev v0 clsact", filter("pref 3")), Others{}},
		"filter of another chain": {
			run("tc qdisc add dev v0 clsact", filter("pref 1 chain 3")), Others{},
		},
		"ours": {
			func(t *testing.T, h *host, c *Controller) {
				attachOurs(t, h, c)
				attachTCX(t, c, h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
			},
			Others{},
		},
		"filter before ours": {
			func(t *testing.T, h *host, c *Controller) {
				attachOurs(t, h, c)
				h.run(t, filter("pref 1"))
			},
			Others{Before: true},
		},
		// The kernel puts the newest of a priority first.
		"of our priority, newer": {
			func(t *testing.T, h *host, c *Controller) {
				attachOurs(t, h, c)
				h.addBPF(t, Ingress, DefaultPriority, 9, "theirs", load(t, "theirs"))
			},
			Others{Before: true},
		},
		"of our priority, older": {
			func(t *testing.T, h *host, c *Controller) {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.addBPF(t, Ingress, DefaultPriority, 9, "theirs", load(t, "theirs"))
				attachOurs(t, h, c)
			},
			Others{},
		},
		"tcx": {
			func(t *testing.T, h *host, _ *Controller) { h.addTCX(t, Egress, load(t, "theirs").Program, nil) },
			Others{TCX: true},
		},
		"tcx beside ours": {
			func(t *testing.T, h *host, c *Controller) {
				attachTCX(t, c, h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
				h.addTCX(t, Ingress, load(t, "theirs").Program, link.Tail())
			},
			Others{TCX: true},
		},
		"tcx, named like ours": {
			func(t *testing.T, h *host, _ *Controller) {
				h.addTCX(t, Egress, load(t, "nettally_egress").Program, nil)
			},
			Others{TCX: true},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, c := newTCXHost(t)
			test.prepare(t, h, c)
			got, err := c.Others(h.ifindex)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			detachTCX(t, c, h.ifindex)
		})
	}
}
