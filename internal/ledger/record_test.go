// SPDX-License-Identifier: Apache-2.0

package ledger

import "testing"

// What a runtime says of a container's network does not decide which numbers its history
// is made of: members of a pod on the host's network are in "container" mode.
func TestHistoryOnHost(t *testing.T) {
	r := record("a1", "web", 100)
	ip := r.Traffic.Plus(r.Traffic)
	r.IP = &ip
	for _, mode := range []string{"host", "container", "bridge"} {
		for _, onHost := range []bool{false, true} {
			r.NetworkMode, r.OnHost = mode, onHost
			if got, want := counted(r)[0], counted(record("a1", "web", 100))[0]; onHost && got != 2*want || !onHost && got != want {
				t.Errorf("mode %s, found on the host %v: %d bytes received, of an interface %d", mode, onHost, got, want)
			}
		}
	}
}
