// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

// connectionTracking are the modules of it, each after those that it needs.
var connectionTracking = []string{"libcrc32c", "nf_defrag_ipv4", "nf_defrag_ipv6", "nf_conntrack", "nfnetlink", "nf_conntrack_netlink"}

// BenchmarkConntrack runs internal/conntrack's BenchmarkDump with 500,000 entries in a guest's
// own network namespace, and reports what that does: times are those of an emulated CPU. It
// fails if not all of the kernel's entries are seen.
func BenchmarkConntrack(b *testing.B) {
	need.Debian(b)
	need.Commands(b, "qemu-system-x86_64", "busybox")
	const entries = 500_000
	kernel := kernels[len(kernels)-1]
	a := newApt(b, kernel.suite)
	g := guest{
		unpacked: a.download(b, a.newest(b, regexp.MustCompile(kernel.form))),
		nettally: build(b),
		programs: []string{testsOf(b, "internal/conntrack")},
		modules:  connectionTracking,
		memory:   2048,
		steps:    fmt.Sprintf("ENTRIES=%d MODULES='%s'\n%s", entries, strings.Join(connectionTracking, " "), conntrackScript),
	}
	var results map[string]result
	for b.Loop() {
		results = g.boot(b)
		succeeded(b, results)
	}
	b.ReportMetric(0, "ns/op") // of the guest's life
	reported := report(b, results["list"].output)
	for unit, number := range reported {
		b.ReportMetric(number, unit)
	}
	if want := fmt.Sprintf("%d\n", entries); reported["entries"] != entries || results["entries"].output != want {
		b.Errorf("%g entries seen, of %s", reported["entries"], results["entries"].output)
	}
}

// report reads what the one benchmark in a program's output reports, by its unit.
func report(b *testing.B, output string) map[string]float64 {
	b.Helper()
	line := regexp.MustCompile(`(?m)^Benchmark\S+\s+\d+((?:\s+\S+ \S+)+)$`).FindStringSubmatch(output)
	if line == nil {
		b.Fatalf("no benchmark:\n%s", output)
	}
	reported := map[string]float64{}
	for fields := strings.Fields(line[1]); len(fields) > 1; fields = fields[2:] {
		number, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			b.Fatal(err)
		}
		if fields[1] != "ns/op" { // with what is around a listing
			reported[fields[1]] = number
		}
	}
	return reported
}
