// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

// onTerminal runs a command on a pseudo-terminal and returns what it shows.
func onTerminal(t *testing.T, columns uint16, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(master) // ends with EIO when the other end is closed
		shown <- string(text)
	}()
	root := newRoot(slave, t.Output())
	root.SetArgs(args)
	err = root.ExecuteContext(t.Context())
	slave.Close()
	text := strings.ReplaceAll(<-shown, "\r\n", "\n")
	if err != nil {
		t.Fatal(err)
	}
	return trimmed(text)
}

// Bars are on terminals with room for them, and drawn with what the locale has.
func TestBarsWhereTheyAreSeen(t *testing.T) {
	flags := daemonWith(t, usage.Snapshot{}, func(exporter.HistoryQuery) ([]exporter.HistoryRow, error) {
		return []exporter.HistoryRow{row(0, "東", 1<<20, 0, 0), row(0, "web", 3<<30, 1<<30, 17)}, nil
	})
	args := append([]string{"history"}, flags...)
	for _, test := range []struct {
		locale  string
		columns uint16
		want    string
	}{
		{"C.UTF-8", 80, `START       NAME  RECEIVED  SYN  TRANSMITTED  SYN  RECEIVED + TRANSMITTED
2026-11-01  東    1MiB      0    0B           0    ▏
2026-11-01  web   3GiB      17   1GiB         0    ████████████████████`},
		{"C", 0, `START       NAME  RECEIVED  SYN  TRANSMITTED  SYN  RECEIVED + TRANSMITTED
2026-11-01  ?     1MiB      0    0B           0    #
2026-11-01  web   3GiB      17   1GiB         0    ####################`},
		{"C.UTF-8", 72, `START       NAME  RECEIVED  SYN  TRANSMITTED  SYN
2026-11-01  東    1MiB      0    0B           0
2026-11-01  web   3GiB      17   1GiB         0`},
	} {
		t.Setenv("LC_ALL", test.locale)
		if diff := cmp.Diff(test.want, onTerminal(t, test.columns, args...)); diff != "" {
			t.Errorf("%s, %d columns (-want +got):\n%s", test.locale, test.columns, diff)
		}
	}
	if got := mustOutput(t, args...); strings.ContainsAny(got, "█▏#") {
		t.Errorf("bars in a pipe:\n%s", got)
	}
}

// Nothing but ASCII is printed where the locale has no more, and JSON and YAML say the same.
func TestASCII(t *testing.T) {
	snap := usage.Snapshot{Containers: []usage.Container{{ID: "a1", Name: "wéb-東京-👍\x1b", State: usage.Running}}}
	flags := daemonWith(t, snap, nil)
	const labels = "names: {labels: [tëam-東京-👍]}\n"
	if err := os.WriteFile(flags[1], []byte(labels), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LC_ALL", "POSIX")
	printed := map[string]string{}
	for _, args := range [][]string{{"list"}, {"list", "-o", "wide"}, {"list", "-o", "json"}, {"config", "show"}, {"--help"}} {
		got := mustOutput(t, append(args, flags...)...)
		printed[strings.Join(args, " ")] = got
		if strings.ContainsFunc(got, func(r rune) bool { return r > unicode.MaxASCII }) {
			t.Errorf("%v: %s", args, got)
		}
	}
	if !strings.Contains(printed["list"], "w?b-??-??") {
		t.Errorf("list: %s", printed["list"])
	}
	var found exporter.Containers
	if err := json.Unmarshal([]byte(printed["list -o json"]), &found); err != nil || found.Containers[0].Name != snap.Containers[0].Name {
		t.Errorf("JSON: %v, %+v", err, found.Containers)
	}
	if err := os.WriteFile(flags[1], []byte(printed["config show"]), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := configs.Load(flags[1], true, pflag.NewFlagSet("", pflag.ContinueOnError))
	if err != nil || config.Names.Labels[0] != "tëam-東京-👍" {
		t.Errorf("YAML: %v, %+v", err, config)
	}
	if _, err := output(t, append(flags, "list", "-o", "ü")...); err == nil {
		t.Error("no error")
	}
}

func TestLocale(t *testing.T) {
	for _, test := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false},
		{"", "", "en_US.UTF-8", true},
		{"", "", "de_DE.utf8", true},
		{"C", "en_US.UTF-8", "en_US.UTF-8", false},
		{"", "C", "en_US.UTF-8", false},
		{"", "C.UTF-8", "C", true},
		{"", "", "de_DE.ISO-8859-1", false},
	} {
		env := map[string]string{"LC_ALL": test.all, "LC_CTYPE": test.ctype, "LANG": test.lang}
		if got := localeIsUTF8(func(name string) string { return env[name] }); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}
