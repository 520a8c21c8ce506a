// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/trusted"
)

const (
	drainTimeout = 5 * time.Second // for requests under way at shutdown
	dialTimeout  = time.Second     // to see whether a socket is live
)

var defaultTimes = times{
	header:     10 * time.Second, // for a client to send its request without the body
	body:       15 * time.Second, // and with it
	answer:     time.Minute,      // for a client to read the answer
	idle:       2 * time.Minute,
	placeWait:  placeWait,
	slowAnswer: slowAnswer,
	viewer:     slowViewer,
}

// Listeners are what [Exporter.Serve] serves on.
type Listeners struct {
	tcp, unix net.Listener // nil: not wanted
	made      string       // the socket's directory if it was not there
	webConfig string
	early     bool // the host does not have the address of tcp
}

// Listen opens a TCP address and a unix socket, either of which may be "". The
// file webConfig, "" for none, sets TLS and authentication of the TCP address
// as exporter-toolkit documents it; the unix socket has neither, and its mode
// 0660 says who may use it.
//
// An address that the host does not have is listened on all the same, and answers once it
// does: a VPN's may come minutes after us, or when somebody logs in. [Listeners.Early] says so.
//
// A socket file that a killed process left is replaced; one that somebody
// listens on, or a file that is no socket, is an error. Close, or the end of
// Serve, removes the socket file; a crash leaves it. A port or socket in use is
// an error that wraps [syscall.EADDRINUSE], and a directory of the socket that others
// can change is one that wraps [trusted.ErrUntrusted].
func Listen(tcp, socketPath, webConfig string) (_ *Listeners, err error) {
	if err := web.Validate(webConfig); err != nil {
		return nil, fmt.Errorf("read web config %s: %w", webConfig, err)
	}
	l := &Listeners{webConfig: webConfig}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if tcp != "" {
		if l.tcp, l.early, err = listenTCP(tcp); err != nil {
			return nil, listenError(tcp, "exporter.listen", err)
		}
	}
	if socketPath != "" {
		if l.made, err = makeParent(socketPath); err != nil {
			return nil, listenError(socketPath, "exporter.socket", err)
		}
		if l.unix, err = listenUnix(socketPath); err != nil {
			return nil, listenError(socketPath, "exporter.socket", err)
		}
	}
	return l, nil
}

// Early says whether the host did not have the TCP address when Listen was called.
func (l *Listeners) Early() bool { return l.early }

// Addr returns the TCP address in use, or nil.
func (l *Listeners) Addr() net.Addr {
	if l.tcp == nil {
		return nil
	}
	return l.tcp.Addr()
}

// Close closes what Serve has not closed yet, and removes the socket file and its directory
// if Listen made that.
func (l *Listeners) Close() {
	for _, listener := range []net.Listener{l.tcp, l.unix} {
		if listener != nil {
			_ = listener.Close() // only fails if it is closed
		}
	}
	if l.made != "" {
		_ = os.Remove(l.made) // others may use it by now
	}
}

// listenTCP listens on an address, and says whether the host does not have it.
func listenTCP(address string) (l net.Listener, early bool, err error) {
	l, err = net.Listen("tcp", address)
	if !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return l, false, err
	}
	free := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) (err error) {
		level, option := unix.SOL_IP, unix.IP_FREEBIND
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
		return errors.Join(controlErr, err)
	}}
	l, err = free.Listen(context.Background(), "tcp", address)
	return l, err == nil, err
}

func listenUnix(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// bind takes the file's mode from the socket's own (and the umask), so that
	// the file is never open to more than it should.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o660) })
		return errors.Join(controlErr, err)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil { // what the umask took
		l.Close()
		return nil, err
	}
	return l, nil
}

// makeParent makes the directory of a path, open to all whatever the umask is, and
// returns it if it was not there.
func makeParent(path string) (made string, err error) {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(err, trusted.Check(dir))
	}
	if err := trusted.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// removeStale removes a socket file that nobody listens on. It returns
// EADDRINUSE if somebody does.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket is in the way")
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		conn.Close()
		return syscall.EADDRINUSE
	}
	if errors.Is(err, syscall.EAGAIN) { // live, with a full backlog
		return syscall.EADDRINUSE
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// listenError names the address once: net's own errors repeat it.
func listenError(address, key string, err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s: %w (another nettally? set %s)", address, syscall.EADDRINUSE, key)
	case errors.As(err, &errno):
		return fmt.Errorf("listen on %s: %w", address, errno)
	}
	return fmt.Errorf("listen on %s: %w", address, err)
}

// Serve answers on the listeners until the context ends, then lets requests
// under way finish for a few seconds and returns nil. It closes the listeners,
// also if it returns an error because one of them broke.
//
// The listeners have limits of their own for connections and for requests at a time.
// Together their connections take at most a quarter of the descriptors that the process
// may open (RLIMIT_NOFILE when Serve begins).
func (e *Exporter) Serve(ctx context.Context, l *Listeners) error {
	defer l.Close()
	group, ctx := errgroup.WithContext(ctx)
	mostTCP, mostUnix := connectionLimits(descriptorLimit())
	if l.tcp != nil {
		peers := newLookup()
		defer peers.close()
		front := e.newFront(frontTCP, l.tcp, mostTCP, peers.peer)
		server, flags := e.server(front), &web.FlagConfig{WebConfigFile: &l.webConfig}
		group.Go(func() error {
			return served(front, web.Serve(front, server, flags, e.log))
		})
		group.Go(func() error { return drain(ctx, server) })
	}
	if l.unix != nil {
		front := e.newFront(frontUnix, l.unix, mostUnix, unixPeer)
		server := e.server(front)
		group.Go(func() error {
			return served(front, server.Serve(front))
		})
		group.Go(func() error { return drain(ctx, server) })
	}
	group.Go(func() error { // Serve blocks also where nothing listens
		<-ctx.Done()
		return nil
	})
	return group.Wait()
}

func served(l net.Listener, err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", l.Addr(), err)
}

// drain shuts a server down when the context ends. Requests that take longer
// than the time there is are cut off; that is no failure of the shutdown.
func drain(ctx context.Context, server *http.Server) error {
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(limit); err != nil {
		server.Close()
	}
	return nil
}
