// SPDX-License-Identifier: Apache-2.0

//go:build !portable

package page_test

import (
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

// Numbers are those of the API to the digit, also beyond what a JavaScript number holds.
func TestNumbersAreTheAPIs(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	h.add("bbb222", "db")
	h.pass("aaa111", 9_007_199_254_740_993, 18_000_000_000_000_000_001)
	h.pass("bbb222", 123_456, 42)
	b := open(t, h, "#/now?unit=si")
	h.pass("aaa111", 1_234_000, 56_700)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "1.23 MB/s"`)
	for column, want := range map[string]string{"tx": "56.7 kB/s", "rxtotal": "9.01 PB", "txtotal": "18.0 EB", "syn": "12 /s", "packets": "1.29 k/s"} {
		if got := b.cell("aaa111", column); got != want {
			t.Errorf("column %s has %q, want %q", column, got, want)
		}
	}
	for column, want := range map[string]string{"rx": "0 B/s", "rxtotal": "123 kB", "txtotal": "42 B"} {
		if got := b.cell("bbb222", column); got != want {
			t.Errorf("column %s of db has %q, want %q", column, got, want)
		}
	}

	b.hash("#/container/aaa111")
	b.wait(`document.querySelectorAll("#exact .digits").length >= 6`)
	c := fetched(t, h.server.URL+"/api/v1/containers/aaa111")
	shown := eval[[]string](b, `[...document.querySelectorAll("#exact .digits")].map((d) => d.innerText)`)
	for i, key := range []string{"bytes", "packets", "tcp_syn"} {
		for j, direction := range []string{"receive", "transmit"} {
			if want := c[direction].(map[string]any)[key].(interface{ String() string }).String(); shown[2*i+j] != want {
				t.Errorf("%s %s is %s, want %s", direction, key, shown[2*i+j], want)
			}
		}
	}
}

// TCP connections have columns, and tiles in a container's page.
func TestConnections(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web", func(c *usage.Container) { c.TCP = &usage.TCP{Connects: 100, Accepts: 20, ConnectFailures: 3} })
	h.add("bbb222", "db")
	b := open(t, h, "#/now?cols=name,connections,failures")
	h.second()
	b.wait(cellOf("aaa111", "connections") + ` === "0 /s"`)
	h.change("aaa111", func(c *usage.Container) { c.TCP = &usage.TCP{Connects: 107, Accepts: 30, ConnectFailures: 5} })
	h.second()
	b.wait(cellOf("aaa111", "connections") + ` === "17 /s"`)
	for id, want := range map[string][2]string{"aaa111": {"17 /s", "2 /s"}, "bbb222": {"–", "–"}} {
		if got := [2]string{b.cell(id, "connections"), b.cell(id, "failures")}; got != want {
			t.Errorf("%s shows %q, want %q", id, got, want)
		}
	}
	b.hash("#/container/aaa111")
	h.change("aaa111", func(c *usage.Container) { c.TCP = &usage.TCP{Connects: 110, Accepts: 30, ConnectFailures: 6} })
	h.second()
	b.wait(`document.querySelector(".tiles").innerText.toLowerCase().replace(/\s+/g, " ").includes("tcp connections 3 /s failed 1 /s")`)
}

func TestTrafficAppearsByItself(t *testing.T) {
	h := newHost(t)
	h.add("aaa111", "web")
	b := open(t, h, "")
	b.wait(`document.querySelector('tr[data-id="aaa111"]')`)
	if got := b.cell("aaa111", "rx"); got != "–" {
		t.Errorf("a rate before there are two readings: %q", got)
	}
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)
	h.pass("aaa111", 2048, 0)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "2.00 KiB/s"`)
	b.wait(`document.getElementById("host-receive").innerText === "2.00 KiB/s"`)
	h.second()
	b.wait(cellOf("aaa111", "rx") + ` === "0 B/s"`)

	// So does a container, and it goes when it ends.
	h.add("bbb222", "job")
	h.second()
	b.wait(cellOf("bbb222", "rx") + ` === "–"`)
	h.pass("bbb222", 512, 0)
	h.second()
	b.wait(cellOf("bbb222", "rx") + ` === "512 B/s"`)
	h.change("bbb222", func(c *usage.Container) { c.State, c.StoppedAt = usage.Stopped, h.began.Add(h.boot) })
	h.second()
	b.wait(`!document.querySelector('tr[data-id="bbb222"]')`)
	b.hash("#/now?ended=1")
	b.wait(cellOf("bbb222", "state") + `.startsWith("ended")`)
}
