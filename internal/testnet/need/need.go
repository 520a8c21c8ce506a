// SPDX-License-Identifier: Apache-2.0

// Package need says what a test needs of its machine. Where it is missing the
// test is skipped with the reason, or fails if NETTALLY_REQUIRE_ALL is 1, as it
// is in CI: there a skip would hide a test that never ran.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// Root needs the test to run as root.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		missing(tb, "not root")
	}
}

// Commands needs programs to be installed.
func Commands(tb testing.TB, names ...string) {
	tb.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing(tb, name+" is not installed; `make test` installs it")
		}
	}
}

func missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("NETTALLY_REQUIRE_ALL") == "1" {
		tb.Fatalf("needs: %s (NETTALLY_REQUIRE_ALL=1)", what)
	}
	tb.Skipf("needs: %s", what)
}
