// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
)

// kernels are the oldest that is supported and newer ones, each with the suite in which
// Debian keeps it up to date and the form of its packages' names.
var kernels = []struct{ series, suite, form string }{
	{"5.10", "bullseye-security", `^linux-image-5\.10\.0-\d+-cloud-amd64$`},
	{"6.1", "bookworm-security", `^linux-image-6\.1\.0-\d+-cloud-amd64$`},
	{"6.12", "bookworm-security", `^linux-image-6\.12\.\d+\+deb12-cloud-amd64$`},
}

// expectations say how each step of lacks.sh ends, and what it prints: where that is an
// error, one line.
var expectations = []struct {
	step   string
	code   int
	prints string
}{
	{"run without veth", 1, `^nettally: classifiers: .*load the module veth\n$`},
	{"load veth", 0, `^$`},
	{"run without sch_ingress", 1, `^nettally: classifiers: .*not supported by the kernel: the kernel has no clsact: load module sch_ingress .*\n$`},
	{"check without sch_ingress", 1, `\nFAILED +classifiers .*load module sch_ingress .*\n(.*\n)*nettally: this host can't be counted on: classifiers, source\n$`},
	{"load sch_ingress", 0, `^$`},
	{"run without cls_bpf", 1, `^nettally: classifiers: .*not supported by the kernel: the kernel has no bpf classifier: load module cls_bpf .*\n$`},
	{"check without cls_bpf", 0, `\nok +source +proc: the kernel's files instead of our programs, for: .*load module cls_bpf .*\n`},
	{"load cls_bpf", 0, `^$`},
	{"check", 0, `\nok +classifiers (.*\n)*ok +source +bpf: our programs\nok +cgroups +v2, `},
	{"selftest", 0, `^(ok .*\n)+ok +tcp connects +40 of 40\n(ok .*\n)+exact\n$`},
	{"left by selftest", 0, `^lo\n$`},
	{"start", 0, `^$`},
	{"list", 0, `^\{\n  "containers": \[\],\n`},
	{"bpffs", 0, `.`},
	{"stop", 0, ` msg="stopped; .*\n$`},
	{"start with all", 0, `^$`},
	{"stop with all", 0, ` msg="stopped; .*\n$`},
	{"sockets and requests", 0, `\n--- PASS: TestSockets (.*\n)*PASS\n$`},
	{"detach", 0, `^took filters off 0 interfaces\n$`},
	{"left", 0, `^/var/lib/nettally/ledger\.db\nlo\n$`},
	{"unload cls_bpf", 0, `^$`},
	{"unload sch_ingress", 0, `^$`},
	{"tainted", 0, `^0\n$`},
	// No warnings, except what the kernel says of time where the machine is slow.
	{"log", 0, `^(<[567]>.*\n|<4>\[ *[0-9.]+\] (clocksource|hrtimer|tsc|sched): .*\n)*$`},
}

// nettally says what a kernel lacks as long as it does, is exact on it afterwards, and
// leaves nothing.
func TestKernels(t *testing.T) {
	need.Debian(t)
	need.Commands(t, "qemu-system-x86_64", "busybox")
	nettally, tests := build(t), testsOf(t, "bpf")
	for _, kernel := range kernels {
		t.Run(kernel.series, func(t *testing.T) {
			a := newApt(t, kernel.suite)
			name := a.newest(t, regexp.MustCompile(kernel.form))
			unpacked := a.download(t, name)

			start := time.Now()
			results := guest{unpacked: unpacked, nettally: nettally, programs: []string{tests}, steps: lacksScript}.boot(t)
			t.Logf("%s: up after %s s, off after %.1f s", name,
				strings.TrimSpace(results["uptime"].output), time.Since(start).Seconds())
			release := strings.TrimPrefix(name, "linux-image-")
			if got := results["check"].output; !strings.Contains(got, "Linux "+release+"\n") {
				t.Errorf("check says nothing of Linux %s:\n%s", release, got)
			}
			judge(t, results)
			log, tests := results["stop with all"].output, results["sockets and requests"].output
			refused := strings.Contains(log, `msg="requests are not counted"`)
			if old := kernel.series == "5.10"; refused != old || old != strings.Contains(tests, "--- SKIP") {
				t.Errorf("requests are refused: %v\n%s; the tests of them:\n%s", refused, log, tests)
			}
			by := map[bool]string{true: "the tracepoints", false: "the kernel's functions"}[kernel.series == "6.12"]
			if !strings.Contains(results["check"].output, "unix sockets, by "+by) || strings.Contains(log, `send and receive is not counted"`) {
				t.Errorf("sockets are not counted by %s:\n%s%s", by, results["check"].output, log)
			}
		})
	}
}

// build returns the path of nettally's binary.
func build(tb testing.TB) string { return buildOf(tb, "cmd/nettally") }

// buildOf returns the path of a command's binary.
func buildOf(tb testing.TB, command string) string {
	tb.Helper()
	return compiled(tb, command, "build")
}

// testsOf returns the path of the binary of a package's tests.
func testsOf(tb testing.TB, pkg string) string {
	tb.Helper()
	return compiled(tb, pkg, "test", "-c")
}

// compiled returns the path of a binary that runs anywhere, whatever is installed there.
func compiled(tb testing.TB, pkg string, command ...string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	if command[0] == "test" {
		path += ".test"
	}
	compile := exec.Command("go", append(command, "-o", path, "github.com/nettally/nettally/"+pkg)...)
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	output(tb, compile)
	return path
}

func judge(t *testing.T, results map[string]result) {
	t.Helper()
	for _, want := range expectations {
		got, ok := results[want.step]
		if !ok || got.code != want.code || !regexp.MustCompile(want.prints).MatchString(got.output) {
			t.Errorf("%s: ended with %d and printed:\n%swant %d and %s", want.step, got.code, got.output, want.code, want.prints)
		}
	}
}
