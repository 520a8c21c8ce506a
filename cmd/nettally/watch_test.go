// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/usage"
)

// paper is a writer that ends a command when it has printed something often enough.
type paper struct {
	mu   sync.Mutex
	text bytes.Buffer
	what string
	n    int
	end  context.CancelFunc
}

func (p *paper) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text.Write(text)
	if strings.Count(p.text.String(), p.what) >= p.n {
		p.end()
	}
	return len(text), nil
}

// In a pipe each reading is behind the one before, and a daemon that is away for a while is
// waited for.
func TestListWatch(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	n := 0
	flags := serving(t, exporter.Options{Snapshot: func(context.Context) (usage.Snapshot, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		if n == 4 {
			return usage.Snapshot{}, errors.New("it has just\x1b begun")
		}
		return sharing(uint64(n) * 1024), nil
	}})
	ctx, end := context.WithCancel(t.Context())
	p := &paper{what: "CONTAINER ID", n: 3, end: end}
	args := append(append([]string{}, quick...), append(flags, "-w", "web")...)
	if code := execute(ctx, args, p, t.Output()); code != exitDone {
		t.Errorf("exit code %d when it is interrupted, want %d", code, exitDone)
	}
	for _, want := range []string{"  20KiB ", "  30KiB ", "  50KiB ", "KiB/s  ", "nettally: read containers from ", "it has just\\x1b begun\n"} {
		if !strings.Contains(p.text.String(), want) {
			t.Errorf("no %q in\n%s", want, p.text.String())
		}
	}
	if strings.ContainsRune(p.text.String(), '\x1b') {
		t.Errorf("a terminal's escapes in a pipe: %q", p.text.String())
	}
}

// Interrupted before it has two readings, it has nothing to print.
func TestListInterrupted(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"list"}, {"list", "-w"}} {
		ctx, end := context.WithCancel(t.Context())
		served := serving(t, exporter.Options{Snapshot: func(context.Context) (usage.Snapshot, error) {
			defer end()
			return listed(), nil
		}})
		var out bytes.Buffer
		execute(ctx, append(args, served...), &out, io.Discard)
		if out.Len() > 0 {
			t.Errorf("%v: %s", args, &out)
		}
		end()
	}
}

// On a terminal a frame takes the place of the one before, and has as much as there is room for.
func TestReprint(t *testing.T) {
	const columns, rows = 20, 4
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer master.Close()
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}))
	slave, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(master) // ends with EIO when the other end is closed
		shown <- string(text)
	}()
	w := screen(slave)
	for _, lines := range []int{2, 5} {
		must(t, reprint(w, func(w io.Writer) error {
			for i := range lines {
				if err := say(w, "%d is \x1b[31m%s", i, strings.Repeat("wide", i*3)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	must(t, slave.Close())
	const home, end, below = "\x1b[H", "\x1b[K\r\n", "\x1b[J"
	want := home + "0 is �[31m" + end + "1 is �[31mwidewidew>" + end + below +
		home + "0 is �[31m" + end + "1 is �[31mwidewidew>" + end + "and 3 lines more" + end + below
	if got := <-shown; got != want {
		t.Errorf("printed\n%q, want\n%q", got, want)
	}
}

// A shell completes with names, but for those that it would take for something else.
func TestCompletion(t *testing.T) {
	snap := sharing(1)
	snap.Containers = append(snap.Containers, usage.Container{ID: "z", Name: "w$(reboot)", State: usage.Running}, usage.Container{ID: "y", Name: "w\tx", State: usage.Running})
	flags := serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return snap, nil },
		Quotas:   someStanding(),
	})
	for _, test := range []struct{ args, want string }{
		{"list w", "web"}, {"list web d", "db"}, {"history --name no", "node"}, {"quota list e", "egress"}, {"quota set s", "syn"}, {"quota set syn ", ""},
		{"list --sort rec", "receive-rate received"}, {"list --by p", "project pod"}, {"history --step w", "week"}, {"list -o w", "wide"},
		{"list --by proj", "project"}, {"history --by la", "label:"},
	} {
		words := strings.Split(test.args, " ")
		args := append([]string{"__complete", words[0]}, flags...)
		out := mustOutput(t, append(args, words[1:]...)...)
		var got []string
		for word := range strings.Lines(out) {
			// What does not begin so is left out by the shell.
			if word = strings.TrimSpace(word); word != "" && word[0] != ':' && strings.HasPrefix(word, words[len(words)-1]) {
				got = append(got, word)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %s", test.args, got, test.want)
		}
	}
	if out := mustOutput(t, "__complete", "list", "--socket", "/nobody", "w"); strings.Contains(out, "web") {
		t.Errorf("nobody answers: %s", out)
	}
}
