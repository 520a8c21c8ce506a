// SPDX-License-Identifier: Apache-2.0

// Package need says what a test needs of its machine. Where it is missing the
// test is skipped with the reason, or fails if NETTALLY_REQUIRE_ALL is 1, as it
// is in CI: there a skip would hide a test that never ran. It also says how much of a
// long test to run.
package need

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
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

// Files needs files that are no programs.
func Files(tb testing.TB, names ...string) {
	tb.Helper()
	for _, name := range names {
		if _, err := os.Stat(name); err != nil {
			missing(tb, err.Error()+"; `make test` installs it")
		}
	}
}

// Debian needs a Debian machine on amd64: its mirrors have that architecture's kernels,
// and its programs run on them.
func Debian(tb testing.TB) {
	tb.Helper()
	Commands(tb, "apt-get", "apt-cache", "dpkg-deb")
	release, err := os.ReadFile("/etc/os-release")
	if err != nil || !slices.Contains(strings.Split(string(release), "\n"), "ID=debian") || runtime.GOARCH != "amd64" {
		missing(tb, "Debian on amd64")
	}
}

// Commit needs the history of this source to have a commit, as every clone has that is not
// shallow.
func Commit(tb testing.TB, hash string) {
	tb.Helper()
	Commands(tb, "git")
	if out, err := exec.Command("git", "-c", "safe.directory=*", "cat-file", "-e", hash+"^{commit}").CombinedOutput(); err != nil {
		missing(tb, fmt.Sprintf("commit %s in the history (git fetch --unshallow): %s", hash, out))
	}
}

// Kernel needs a kernel with something, which err says that this one has not.
func Kernel(tb testing.TB, with string, err error) {
	tb.Helper()
	if err != nil {
		missing(tb, with+": "+err.Error())
	}
}

// Native needs to run without an emulator, which is slow and can't start the test's own
// program again. With -short there may be one.
func Native(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		missing(tb, "not to be -short")
	}
}

// Tries returns how many of n random cases a test goes through: all of them, or with -short,
// which is for emulators, a tenth.
func Tries(n int) int {
	if testing.Short() {
		return (n + 9) / 10
	}
	return n
}

func missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("NETTALLY_REQUIRE_ALL") == "1" {
		tb.Fatalf("needs: %s (NETTALLY_REQUIRE_ALL=1)", what)
	}
	tb.Skipf("needs: %s", what)
}
