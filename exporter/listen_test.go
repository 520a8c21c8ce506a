// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/trusted"
	"github.com/nettally/nettally/internal/usage"
)

// serve serves on loopback and a socket until the returned function, which
// checks that the shutdown was clean, or the end of the test.
func serve(t testing.TB, opts Options, webConfig string) (l *Listeners, socket string, stop func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := Listen("127.0.0.1:0", socket, webConfig)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	e := newExporter(t, opts)
	go func() { done <- e.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return l, socket, stop
}

func TestServe(t *testing.T) {
	l, socket, stop := serve(t, options(snapshot()), "")
	response, err := http.Get(fmt.Sprintf("http://%s/version", l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if want := `{"version":"1.2.3","revision":"abc","go_version":"go1.26"}` + "\n"; err != nil || string(body) != want {
		t.Errorf("version: %s, %v", body, err)
	}
	for _, all := range []bool{false, true} {
		got, err := Fetch(t.Context(), socket, all)
		if err != nil {
			t.Fatal(err)
		}
		want := &Containers{Containers: containersOf(snapshot().Containers), TakenAt: noon, Source: "bpf", NFLOG: nflogStateOf(snapshot().Log)}
		if all {
			want.Unowned = interfacesOf(snapshot().Unowned)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("fetch all=%t (-want +got):\n%s", all, diff)
		}
	}

	stop()
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket file after shutdown: %v", err)
	}
	if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the TCP port is open after shutdown")
	}
}

// A request under way is answered before Serve returns.
func TestServeDrains(t *testing.T) {
	opts := options(snapshot())
	entered, leave := make(chan struct{}), make(chan struct{})
	take := opts.Snapshot
	opts.Snapshot = func(ctx context.Context) (usage.Snapshot, error) {
		close(entered)
		<-leave
		return take(ctx)
	}
	_, socket, stop := serve(t, opts, "")
	fetched := make(chan error, 1)
	go func() {
		_, err := Fetch(context.Background(), socket, false)
		fetched <- err
	}()
	<-entered
	go func() {
		// The listener is closed first, which shows that the shutdown is on.
		for {
			if _, err := os.Stat(socket); err != nil {
				close(leave)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	stop()
	if err := <-fetched; err != nil {
		t.Error(err)
	}
}

func TestServeNothing(t *testing.T) {
	l, err := Listen("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr() != nil {
		t.Errorf("address %v", l.Addr())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newExporter(t, options(snapshot())).Serve(ctx, l); err != nil {
		t.Error(err)
	}
}

// Passwords are for TCP. The socket's mode guards the socket.
func TestServeWebConfig(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	// bcrypt of "secret", at the lowest cost
	text := "basic_auth_users:\n  ann: $2a$04$Wj5dxOSKN20wER/eCYY.C..QDxBr/rOTGYDP/BzVaMNkw9IWL9tfu\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l, socket, _ := serve(t, options(snapshot()), config)
	for _, test := range []struct {
		user, password string
		code           int
	}{{"", "", 401}, {"ann", "wrong", 401}, {"ann", "secret", 200}} {
		request, err := http.NewRequest("GET", fmt.Sprintf("http://%s/metrics", l.Addr()), nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.user != "" {
			request.SetBasicAuth(test.user, test.password)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != test.code {
			t.Errorf("%s %q: status %d, want %d", test.user, test.password, response.StatusCode, test.code)
		}
	}
	if _, err := Fetch(t.Context(), socket, false); err != nil {
		t.Error(err)
	}
}

func TestListenErrors(t *testing.T) {
	dir := t.TempDir()
	live, err := Listen("127.0.0.1:0", filepath.Join(dir, "live"), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(live.Close)
	file := filepath.Join(dir, "file")
	config := filepath.Join(dir, "config")
	for path, text := range map[string]string{file: "keep me", config: "basic_auth_usrs: {}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, tcp, socket, config, want string
	}{
		{"port in use", live.Addr().String(), "", "",
			"listen on " + live.Addr().String() + ": address already in use (another nettally? set exporter.listen)"},
		{"socket in use", "", dir + "/live", "",
			"listen on " + dir + "/live: address already in use (another nettally? set exporter.socket)"},
		{"file in the way", "", file, "", "listen on " + file + ": a file that is not a socket is in the way"},
		{"no directory", "", file + "/x/s", "", "listen on " + file + "/x/s: not a directory"},
		{"name too long", "", dir + "/" + strings.Repeat("x", 120), "", "listen on " + dir + "/" + strings.Repeat("x", 120) + ": invalid argument"},
		{"no port", "127.0.0.1", "", "", "listen on 127.0.0.1: listen tcp: address 127.0.0.1: missing port in address"},
		{"no web config", "", "", dir + "/none", "read web config " + dir + "/none: open " + dir + "/none: no such file or directory"},
		{"bad web config", "", "", config, "read web config " + config + ": yaml: unmarshal errors:\n  line 1: field basic_auth_usrs not found in type web.Config"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := Listen(test.tcp, test.socket, test.config)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if err.Error() != test.want {
				t.Errorf("error %q\nwant  %q", err, test.want)
			}
			if strings.HasSuffix(test.name, "in use") && !errors.Is(err, syscall.EADDRINUSE) {
				t.Error("does not wrap EADDRINUSE")
			}
		})
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "keep me" {
		t.Errorf("file in the way: %q, %v", text, err)
	}
	if conn, err := net.Dial("unix", filepath.Join(dir, "live")); err != nil {
		t.Errorf("the live socket: %v", err)
	} else {
		conn.Close()
	}
}

// TestListenEarly: the address comes minutes after the exporter, as that of a VPN.
func TestListenEarly(t *testing.T) {
	need.Root(t)
	need.Commands(t, "ip")
	host := nettest.Host(t)
	for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
		t.Run(address, func(t *testing.T) {
			var l *Listeners
			err := host.Do(func() (err error) {
				l, err = Listen(net.JoinHostPort(address, "0"), "", "")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Close)
			if !l.Early() {
				t.Error("the host is said to have the address")
			}
			if out, err := host.Run("ip", "addr", "add", address, "dev", "lo", "nodad"); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // its route comes a moment later
				err = host.Do(func() error {
					conn, err := net.Dial("tcp", l.Addr().String())
					if err != nil {
						return err
					}
					return conn.Close()
				})
				if err == nil || time.Since(began) > time.Minute {
					break
				}
			}
			if err != nil {
				t.Error(err)
			}
			err = host.Do(func() error {
				again, err := Listen(net.JoinHostPort(address, "0"), "", "")
				if err != nil {
					return err
				}
				defer again.Close()
				if again.Early() {
					t.Error("the host is said to lack the address")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestListenSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	socket := filepath.Join(dir, "s")

	// What a killed process leaves: a socket file and no listener.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	check := func(dirMode fs.FileMode) {
		t.Helper()
		l, err := Listen("", socket, "")
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]fs.FileMode{socket: 0o660, dir: dirMode} {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s: mode %o, want %o", path, got, want)
			}
		}
		l.Close()
		if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket file after Close: %v", err)
		}
	}
	check(0o700) // a directory that is there stays as it is
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	check(0o755)
}

// Who can change the directory could put a socket of his own there.
func TestListenInOthersDirectory(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "s"), filepath.Join(dir, "below", "s")} {
		l, err := Listen("", socket, "")
		if err == nil {
			l.Close()
		}
		want := "listen on " + socket + ": " + dir + " belongs to uid 1000 and has mode 0755: others can change it: run `chown root: " + dir + "; chmod 755 " + dir + "`"
		if !errors.Is(err, trusted.ErrUntrusted) || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left there: %v, %v", entries, err)
	}
}

// A half-done Listen leaves nothing behind.
func TestListenUndoes(t *testing.T) {
	blocker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := blocker.Addr().String()
	blocker.Close()
	if _, err := Listen(address, "/dev/null", ""); err == nil {
		t.Fatal("listens on /dev/null")
	}
	again, err := Listen(address, "", "")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestFetchErrors(t *testing.T) {
	dir := t.TempDir()
	answers := func(name string, handler http.HandlerFunc) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: handler}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
		return path
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale")})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	tests := []struct {
		name, socket, want string
		notRunning         bool
	}{
		{"none", dir + "/none", "read containers from %s: nobody answers (is nettally running? see exporter.socket)", true},
		{"stale", dir + "/stale", "read containers from %s: nobody answers (is nettally running? see exporter.socket)", true},
		{"refused", answers("refused", func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 503, failure{"too busy"})
		}), "read containers from %s: 503 Service Unavailable: too busy", false},
		{"stranger", answers("stranger", func(w http.ResponseWriter, _ *http.Request) {
			http.NotFound(w, nil)
		}), "read containers from %s: 404 Not Found: no reason given", false},
		{"no JSON", answers("text", func(w http.ResponseWriter, _ *http.Request) {
			w.Write(bytes.Repeat([]byte("x"), 10))
		}), "parse containers from %s: invalid character 'x' looking for beginning of value", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Fetch(t.Context(), test.socket, false)
			if want := fmt.Sprintf(test.want, test.socket); err == nil || err.Error() != want {
				t.Errorf("error %q\nwant  %q", err, want)
			}
			if errors.Is(err, ErrNotRunning) != test.notRunning {
				t.Errorf("ErrNotRunning: %t, want %t", !test.notRunning, test.notRunning)
			}
		})
	}
}

// A directory that was made for the socket goes with it; one that was there stays.
func TestSocketDirectory(t *testing.T) {
	there := t.TempDir()
	for path, stays := range map[string]bool{there + "/new/socket": false, there + "/socket": true} {
		l, err := Listen("", path, "")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := os.Stat(filepath.Dir(path)); (err == nil) != stays {
			t.Errorf("%s: directory stays: %v, want %v", path, err == nil, stays)
		}
	}
}
