// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// BPFFS mounts a bpffs in a folder of its own, until the test ends: what is still pinned
// then goes with it.
func BPFFS(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0755"); err != nil {
		tb.Fatalf("mount bpffs: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}
