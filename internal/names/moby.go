// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// mobyBatch is how many containers one request asks for.
const mobyBatch = 32

// moby is a connection to a Docker daemon, or to what answers like one.
type moby struct {
	client  *client.Client
	http    *http.Client // the same, for what only podman has
	timeout time.Duration
	runtime string
}

// newMoby returns what connects to Docker's API.
func newMoby() connect {
	modes := make(facts)
	return func(ctx context.Context, path string, within time.Duration) (*connection, error) {
		m, err := newClient(path, within)
		if err != nil {
			return nil, err
		}
		c, err := m.identify(ctx, modes)
		if err != nil {
			m.close()
			return nil, explain(err)
		}
		return c, nil
	}
}

// newClient returns a client that negotiates the API version with its first
// request. It makes a connection for every request, so that the limit on a
// connection is one on an answer.
func newClient(path string, timeout time.Duration) (*moby, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return &limitedConn{Conn: conn, left: answerMax, asked: make(chan struct{})}, nil
	}
	h := &http.Client{CheckRedirect: client.CheckRedirect, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       dial,
		// The answer to events has no end, so only its beginning can be late.
		ResponseHeaderTimeout: timeout,
	}}
	c, err := client.New(
		client.WithHTTPClient(h),
		client.WithHost("unix://"+path),
		// Said, since the client takes any transport made by hand for one with TLS.
		client.WithScheme("http"),
		client.WithDialContext(dial),
		client.WithUserAgent("nettally"),
	)
	return &moby{client: c, http: h, timeout: timeout}, err
}

// close leaves the daemon. Streams of events end with their context.
func (m *moby) close() { _ = m.client.Close() }

// identify asks who is there. What podman's containers have for a network is
// kept in modes.
func (m *moby) identify(ctx context.Context, modes facts) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	told, err := m.client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, err
	}
	m.runtime = "docker"
	c := &connection{
		version: clean(told.Version),
		api:     m.client.ClientVersion(),
		batch:   mobyBatch,
		list:    m.list,
		renames: m.renames,
		close:   m.close,
	}
	for _, component := range told.Components {
		// podman-docker puts it on Docker's socket.
		if component.Name == "Podman Engine" {
			m.runtime = "podman"
			c.list = newPodman(m, component.Details["MinAPIVersion"], modes).list
		}
	}
	c.runtime = m.runtime
	return c, nil
}

// list asks for containers by id, running or not.
func (m *moby) list(ctx context.Context, ids, labels []string) (map[string]Meta, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	answer, err := m.client.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("id", ids...),
	})
	if err != nil {
		return nil, explain(err)
	}
	told := make(map[string]Meta, len(answer.Items))
	for _, summary := range answer.Items {
		told[summary.ID] = m.meta(summary, labels)
	}
	return told, nil
}

// renames subscribes, and returns when the daemon has said yes, no, or nothing
// in time.
func (m *moby) renames(ctx context.Context) renames {
	ctx, cancel := context.WithCancel(ctx)
	stream := m.client.Events(ctx, client.EventsListOptions{
		Filters: make(client.Filters).Add("type", "container").Add("event", "rename"),
	})
	ids := make(chan string)
	go func() { // stop waits for it
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

func (m *moby) meta(summary container.Summary, labels []string) Meta {
	return Meta{
		Name:        clean(ownName(summary.Names)),
		Image:       clean(summary.Image),
		NetworkMode: clean(networkMode(summary.HostConfig.NetworkMode)),
		Runtime:     m.runtime,
		Namespace:   clean(summary.Labels["io.kubernetes.pod.namespace"]),
		Pod:         clean(summary.Labels["io.kubernetes.pod.name"]),
		Labels:      pick(labels, summary.Labels),
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

// facts remembers by id what is asked for container by container and never
// changes.
type facts map[string]string

// factsMax bounds the memory: those that are still of use are asked for again.
const factsMax = 10_000

// get returns what is known, or asks. What can't be told now is asked again.
func (f facts) get(id string, ask func() (string, error)) (string, error) {
	if fact, ok := f[id]; ok {
		return fact, nil
	}
	fact, err := ask()
	if err != nil {
		return "", err
	}
	if len(f) >= factsMax {
		clear(f)
	}
	f[id] = clean(fact)
	return f[id], nil
}
