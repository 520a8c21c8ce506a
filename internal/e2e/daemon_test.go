// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// patience is how long something may take that is bound to happen, of which a look at
// everything may be 30 s.
const patience = 2 * time.Minute

// binary builds nettally once for all tests.
var binary = sync.OnceValues(func() (string, error) { return buildAs("nettally") })

// nextBinary is nettally with the layout of counters that comes after the real one.
var nextBinary = sync.OnceValues(func() (string, error) {
	return buildAs("nettally-next", "-tags", "nettally_layout_next")
})

// buildAs builds nettally into the folder of binaries.
func buildAs(name string, flags ...string) (string, error) {
	folder, err := binaries()
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, name)
	args := append(append([]string{"build"}, flags...), "-o", path, "github.com/nettally/nettally/cmd/nettally")
	build := exec.Command("go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build nettally: %w: %s", err, out)
	}
	return path, nil
}

var binaries = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "nettally-e2e-")
	if err != nil {
		return "", err
	}
	built.folder = folder
	return folder, os.Chmod(folder, 0o755) // others than root must be able to run them, too
})

var built struct{ folder string }

func TestMain(m *testing.M) {
	confine()
	code := m.Run()
	if built.folder != "" {
		os.RemoveAll(built.folder)
	}
	os.Exit(code)
}

// place runs commands where a host's daemons run: a host of one's own, or a
// *dockerhost.Docker.
type place interface {
	Command(name string, args ...string) *exec.Cmd
}

// on is a network namespace as a place.
type on struct{ *testnet.Namespace }

func (n on) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...)
}

// daemon is a nettally that runs.
type daemon struct {
	t      testing.TB
	at     place
	pins   string
	socket string
	config string                 // its file
	binary func() (string, error) // what is run, a test may change it
	cmd    *exec.Cmd
	log    *lockedBuffer // of all its runs
	ended  chan error

	starting time.Duration // the last start took, until it had looked at everything
}

// startDaemon runs nettally until the test ends, with more lines of configuration. Its
// traces are gone afterwards.
func startDaemon(t testing.TB, at place, more string) *daemon {
	t.Helper()
	return startListening(t, at, "", more)
}

// startListening is startDaemon with a TCP address for the exporter.
func startListening(t testing.TB, at place, listen, more string) *daemon {
	t.Helper()
	return startBinary(t, binary, at, listen, more)
}

// startBinary is startListening for another nettally than that of this source.
func startBinary(t testing.TB, binary func() (string, error), at place, listen, more string) *daemon {
	t.Helper()
	folder := t.TempDir()
	d := &daemon{
		t:      t,
		at:     at,
		pins:   filepath.Join(folder, "bpf"),
		socket: filepath.Join(folder, "socket"),
		config: filepath.Join(folder, "nettally.yaml"),
		binary: binary,
		log:    &lockedBuffer{},
	}
	text := fmt.Sprintf("log: {level: debug}\nstate_dir: %q\nbpf: {pin_path: %q}\nexporter: {listen: %q, socket: %q}\n%s\n",
		filepath.Join(folder, "state"), d.pins, listen, d.socket, more)
	write := func() {
		if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	t.Cleanup(func() {
		d.stop()
		write() // the test may have left it with a mistake
		if out, err := d.run("detach"); err != nil {
			t.Errorf("detach: %v: %s", err, out)
		}
		if t.Failed() {
			t.Logf("log of nettally:\n%s", d.log)
		}
	})
	d.start()
	return d
}

// start starts the daemon, again maybe, and waits until it has looked at everything.
func (d *daemon) start() {
	d.t.Helper()
	began := time.Now()
	d.launch()
	d.ready()
	d.starting = time.Since(began)
}

// ready waits until the daemon has looked at everything.
func (d *daemon) ready() {
	d.t.Helper()
	d.poll("ready", func() error {
		d.alive()
		_, err := d.get("/readyz")
		return err
	})
}

// alive fails the test if the daemon has ended by itself.
func (d *daemon) alive() {
	d.t.Helper()
	select {
	case err := <-d.ended:
		d.ended <- err
		d.t.Fatalf("nettally ended by itself: %v\n%s", err, d.log)
	default:
	}
}

// launch starts the daemon and waits for nothing.
func (d *daemon) launch() {
	d.t.Helper()
	d.cmd = d.at.Command(nettest.Must(d.binary())(d.t), "run", "--config", d.config)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.cmd.Wait() }()
}

// stop ends the daemon as a service manager does.
func (d *daemon) stop() { d.end(unix.SIGTERM) }

// kill ends the daemon at once.
func (d *daemon) kill() { d.end(unix.SIGKILL) }

func (d *daemon) end(signal unix.Signal) {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	// It may have ended already; Wait tells.
	_ = d.cmd.Process.Signal(signal)
	err := <-d.ended
	if err != nil && signal == unix.SIGTERM {
		d.t.Errorf("nettally ended: %v\n%s", err, d.log)
	}
	d.cmd = nil
}

// run runs one of nettally's other commands beside the daemon.
func (d *daemon) run(args ...string) (string, error) {
	d.t.Helper()
	out, err := d.at.Command(nettest.Must(d.binary())(d.t), append(args, "--config", d.config)...).CombinedOutput()
	return string(out), err
}

// runIn runs nettally somewhere and returns what it printed.
func runIn(t testing.TB, at place, args ...string) (string, error) {
	t.Helper()
	out, err := at.Command(nettest.Must(binary())(t), args...).CombinedOutput()
	return string(out), err
}

// exitCode returns the exit code behind the error of a command.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// get asks the daemon over its unix socket.
func (d *daemon) get(path string) (string, error) {
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
			},
		},
	}
	return fetch(&client, "nettally", path)
}

// fetch returns what a server answers with, if that is good news.
func fetch(from *http.Client, address, path string) (string, error) {
	answer, err := from.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}

// list returns all containers.
func (d *daemon) list() *exporter.Containers {
	d.t.Helper()
	return nettest.Must(exporter.Fetch(context.Background(), d.socket, true))(d.t)
}

// container returns a container by its id.
func (d *daemon) container(id string) (exporter.Container, error) {
	for _, c := range d.list().Containers {
		if c.ID == id {
			return c, nil
		}
	}
	return exporter.Container{}, fmt.Errorf("container %s is not listed", id)
}

// counted waits until a container is counted on so many interfaces.
func (d *daemon) counted(id string, count int) {
	d.t.Helper()
	d.poll("counted", func() error {
		c, err := d.container(id)
		if err == nil && (!c.Accounted || c.State != "running" || len(c.Interfaces) != count) {
			err = fmt.Errorf("container %s: accounted %v (%s), %s, interfaces %q", c.Name, c.Accounted, c.Reason, c.State, interfaces(c))
		}
		return err
	})
}

// keyed waits until a quota has a key. A quota counts from the first check after the first start,
// and what a container used before that is none of it.
func (d *daemon) keyed(quota, key string) {
	d.t.Helper()
	d.poll("keyed", func() error {
		list, err := exporter.FetchQuotas(d.t.Context(), d.socket)
		if err != nil {
			return err
		}
		for _, q := range list.Quotas {
			if q.Quota == quota && q.Key == key {
				return nil
			}
		}
		return fmt.Errorf("%s has no key %s", quota, key)
	})
}

// interfaces returns the names of a container's interfaces.
func interfaces(c exporter.Container) (names []string) {
	for _, i := range c.Interfaces {
		names = append(names, i.Name)
	}
	return names
}

// poll tries until it works, within patience.
func (d *daemon) poll(what string, try func() error) {
	d.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	d.t.Fatalf("never %s: %v\nlog of nettally:\n%s", what, err, d.log)
}

// leftWith waits until so many interfaces are counted by clsact: Docker removes those of a
// container after its cgroup.
func (d *daemon) leftWith(interfaces float64) {
	d.t.Helper()
	d.poll("left with so many interfaces", func() error {
		if n := d.metric(`nettally_attachments{hook="clsact"}`); n != interfaces {
			return fmt.Errorf("%v are counted, want %v", n, interfaces)
		}
		return nil
	})
}

// lockedBuffer is a buffer that a process may write while a test reads.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
