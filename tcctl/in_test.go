// SPDX-License-Identifier: Apache-2.0

package tcctl

import "testing"

// TestIn works in another namespace than the one it was opened for, at the same priority, and
// leaves that one alone.
func TestIn(t *testing.T) {
	h, other := newHost(t), newHost(t)
	here := open(t, h.Namespace, 7)
	there, err := here.In(other.FD())
	if err != nil {
		t.Fatal(err)
	}
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attach(t, there, other.ifindex, 3, ingress, egress)
	wantFilters(t, there, other.ifindex, other.attached(Ingress, 7, 3, ingress), other.attached(Egress, 7, 3, egress))
	wantFilters(t, here, h.ifindex)
	detach(t, there, other.ifindex, true)
	wantFilters(t, there, other.ifindex)
	if err := there.Close(); err != nil {
		t.Error(err)
	}
	wantFilters(t, here, h.ifindex) // still open
}
