// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

const (
	// answerMax is the most bytes that are read of one answer, or of the events
	// of one session. A batch of ordinary containers takes a tenth of it.
	answerMax = 1 << 20

	// textMax is the most bytes that are kept of one text.
	textMax = 512
)

var errTooLarge = errors.New("answer is too large")

// docker is a connection to a Docker daemon, or to what answers like one.
type docker struct {
	client  *client.Client
	address string
	timeout time.Duration
	runtime string
	version string
}

// connect finds the socket and asks who is there.
func (r *Resolver) connect(ctx context.Context) (*docker, error) {
	address, err := r.address()
	if err != nil {
		return nil, err
	}
	c, err := newClient(strings.TrimPrefix(address, "unix://"), r.answerWithin)
	if err != nil {
		return nil, fmt.Errorf("connect to docker at %s: %w", address, err)
	}
	d := &docker{client: c, address: address, timeout: r.answerWithin}
	if err := d.identify(ctx); err != nil {
		d.close()
		return nil, fmt.Errorf("connect to docker at %s: %w", address, err)
	}
	return d, nil
}

// address returns the socket to use, as "unix:///path".
func (r *Resolver) address() (string, error) {
	if r.options.Docker != "auto" {
		if !strings.HasPrefix(r.options.Docker, "unix://") {
			return "", fmt.Errorf("find docker: %q is none of off, auto and unix:///path", r.options.Docker)
		}
		return r.options.Docker, nil
	}
	for _, path := range r.sockets {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Type() == os.ModeSocket {
			return "unix://" + path, nil
		}
	}
	return "", fmt.Errorf("find docker at %s: %w", strings.Join(r.sockets, " or "), ErrNoSocket)
}

// newClient returns a client that negotiates the API version with its first
// request. It makes a connection for every request, so that the limit on a
// connection is one on an answer.
func newClient(path string, timeout time.Duration) (*client.Client, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		// The answer to events has no end, so only its beginning can be late.
		ResponseHeaderTimeout: timeout,
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return &limitedConn{Conn: conn, left: answerMax, asked: make(chan struct{})}, nil
	}
	return client.New(
		client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect}),
		client.WithHost("unix://"+path),
		// Said, since the client takes any transport made by hand for one with TLS.
		client.WithScheme("http"),
		client.WithDialContext(dial),
		client.WithUserAgent("nettally"),
	)
}

// limitedConn fails after so many bytes were read. It reads nothing before the
// first write: what a peer says unasked, net/http would print on our standard
// error, 4 KiB for every attempt.
type limitedConn struct {
	net.Conn
	left  int
	asked chan struct{} // closed by the first Write or Close
	once  sync.Once
}

func (c *limitedConn) Read(p []byte) (int, error) {
	<-c.asked
	if c.left <= 0 {
		return 0, fmt.Errorf("%w: over %d bytes", errTooLarge, answerMax)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (c *limitedConn) Write(p []byte) (int, error) {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Write(p)
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Close()
}

// close leaves the daemon. Streams of events end with their context.
func (d *docker) close() { _ = d.client.Close() }

func (d *docker) identify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	told, err := d.client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return d.explain(err)
	}
	d.runtime, d.version = "docker", clean(told.Version)
	for _, component := range told.Components {
		if component.Name == "Podman Engine" { // podman-docker puts it on Docker's socket
			d.runtime = "podman"
		}
	}
	return nil
}

// list asks for containers by id, running or not. Those the daemon does not
// know are missing from the result. Returns an error wrapping errTooLarge if
// they have too much to tell.
func (d *docker) list(ctx context.Context, ids, labels []string) (map[string]Meta, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	answer, err := d.client.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("id", ids...),
	})
	if err != nil {
		return nil, fmt.Errorf("list containers of docker at %s: %w", d.address, d.explain(err))
	}
	told := make(map[string]Meta, len(answer.Items))
	for _, summary := range answer.Items {
		told[summary.ID] = d.meta(summary, labels)
	}
	return told, nil
}

// explain makes a client's error fit for one line of a log: the peer decides on
// its text.
func (d *docker) explain(err error) error {
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	if request := (*url.Error)(nil); errors.As(err, &request) {
		err = request.Err // without the URL, which has the socket's path in it, escaped
	}
	return errors.New(clean(err.Error()))
}

// renames is a stream of the ids of renamed containers. Nothing else that can
// happen to a container changes what is told of it.
type renames struct {
	ids  <-chan string // closed when the daemon ends the stream
	stop func()        // ends it and waits for that
}

// renames subscribes, and returns when the daemon has said yes, no, or nothing
// in time.
func (d *docker) renames(ctx context.Context) renames {
	ctx, cancel := context.WithCancel(ctx)
	stream := d.client.Events(ctx, client.EventsListOptions{
		Filters: make(client.Filters).Add("type", "container").Add("event", "rename"),
	})
	ids := make(chan string)
	go func() {
		defer close(ids)
		for {
			select {
			case message := <-stream.Messages:
				select {
				case ids <- message.Actor.ID:
				case <-ctx.Done():
				}
			case <-stream.Err:
				return
			}
		}
	}()
	return renames{ids: ids, stop: func() {
		cancel()
		for range ids {
		}
	}}
}

func (d *docker) meta(summary container.Summary, labels []string) Meta {
	return Meta{
		Name:        clean(ownName(summary.Names)),
		Image:       clean(summary.Image),
		NetworkMode: clean(networkMode(summary.HostConfig.NetworkMode)),
		Runtime:     d.runtime,
		Namespace:   clean(summary.Labels["io.kubernetes.pod.namespace"]),
		Pod:         clean(summary.Labels["io.kubernetes.pod.name"]),
		Labels:      pick(summary.Labels, labels),
	}
}

// ownName returns the container's name among the names it is known by: to a
// container that is linked to it, it is also "/other/alias".
func ownName(names []string) string {
	for _, name := range names {
		name = strings.TrimPrefix(name, "/")
		if !strings.Contains(name, "/") {
			return name
		}
	}
	return ""
}

// networkMode names a mode by what it is: "default" is the bridge, and
// "container:<id>" has an id in it.
func networkMode(mode string) string {
	m := container.NetworkMode(mode)
	switch {
	case m.IsDefault():
		return "bridge"
	case m.IsContainer():
		return "container"
	}
	return mode
}

// pick returns the labels with the given names.
func pick(labels map[string]string, names []string) map[string]string {
	picked := make(map[string]string)
	for _, name := range names {
		if value, ok := labels[name]; ok {
			picked[name] = clean(value)
		}
	}
	return picked
}

// clean makes a text from outside one that can go into a log, a terminal and a
// metric's label.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r // RuneError for what is not UTF-8
	}, text)
	if len(text) > textMax {
		text = strings.ToValidUTF8(text[:textMax], "") // no half rune at the end
	}
	return text
}

// isDockerID says whether an id is of the form that Docker gives: 64 hex digits.
func isDockerID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}
