// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// ClientOptions say which nettally a [Client] asks, and as whom.
type ClientOptions struct {
	Socket string // its unix socket, if URL is ""

	// URL is its address, as https://host:9819 or with a path before /api, as behind a proxy.
	URL            string
	CAFile         string // PEM, who may have signed its certificate; "" is whom the host trusts
	User, Password string // of basic authentication, none if both are ""
}

// Client asks a nettally. It is safe for concurrent use.
type Client struct {
	base           string // without a slash at the end
	user, password string
	http           *http.Client
	where          string // for errors
}

// NewClient returns a client, which asks nothing yet. It returns an error if the URL is none, or
// if the file of CAFile can't be read or has no certificate.
func NewClient(o ClientOptions) (*Client, error) {
	transport := &http.Transport{ResponseHeaderTimeout: 2 * time.Minute}
	c := &Client{http: &http.Client{Transport: transport}, user: o.User, password: o.Password}
	if o.URL == "" {
		c.base, c.where = "http://nettally", o.Socket
		transport.DialContext = dialer(o.Socket)
		return c, nil
	}
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("parse URL %q: expected http://host:9819 or https://host:9819", o.URL)
	}
	if u.User != nil && c.user == "" {
		c.user = u.User.Username()
		c.password, _ = u.User.Password()
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	c.base, c.where = strings.TrimSuffix(u.String(), "/"), u.Redacted()
	transport.Proxy = http.ProxyFromEnvironment
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificates: %s has none in PEM", o.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	return c, nil
}

func dialer(socket string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}

// Close gives up connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for a path with its query, as "/api/v1/quotas", and reads the answer into body.
//
// Returns an error wrapping [ErrNotRunning] if nobody answers at the socket.
func (c *Client) Get(ctx context.Context, target string, body any) error {
	response, err := c.open(ctx, http.MethodGet, target, nil)
	if err != nil {
		return fmt.Errorf("read %s from %s: %w", target, c.where, err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(body); err != nil {
		return fmt.Errorf("read %s from %s: %w", target, c.where, err)
	}
	return nil
}

// open sends a request, and returns an answer that is a success.
func (c *Client) open(ctx context.Context, method, target string, content io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+target, content)
	if err != nil {
		return nil, err
	}
	if c.user != "" || c.password != "" {
		request.SetBasicAuth(c.user, c.password)
	}
	response, err := c.http.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) { // it repeats the address
			err = failed.Err
		}
		return nil, dialError(err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", response.Status, errorText(body))
}

// StreamEvent is one of *StreamContainers, *StreamSample, *StreamStarted, *StreamStopped,
// *StreamRemoved, *StreamQuota and *Alert.
type StreamEvent any

// silentFor is how long a stream may be silent: there is a heartbeat every 15 s.
const silentFor = 3 * heartbeat

// eventMost is the longest event that is read: some thousands of containers take some MB.
const eventMost = 256 << 20

// Follow watches until ctx ends, the connection breaks or the caller has enough. Events of a kind
// that it does not know are left out. An error is the last that there is: one that wraps
// [ErrNotRunning] where nobody answers, and io.ErrUnexpectedEOF where a stream has ended. The first
// event after that has everything again, so whoever follows once more misses no total.
func (c *Client) Follow(ctx context.Context, interval time.Duration) iter.Seq2[StreamEvent, error] {
	return func(yield func(StreamEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		silence := time.AfterFunc(silentFor, cancel)
		defer silence.Stop()
		fail := func(err error) { yield(nil, fmt.Errorf("watch usage at %s: %w", c.where, err)) }
		response, err := c.open(ctx, http.MethodGet, "/api/v1/stream?interval="+interval.String(), nil)
		if err != nil {
			fail(err)
			return
		}
		defer response.Body.Close()
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(nil, eventMost)
		var name string
		for lines.Scan() {
			silence.Reset(silentFor)
			line := lines.Bytes()
			if kind, ok := bytes.CutPrefix(line, []byte("event: ")); ok {
				name = string(kind)
				continue
			}
			data, ok := bytes.CutPrefix(line, []byte("data: "))
			event := newEvent(name)
			if !ok || event == nil {
				continue
			}
			if err := json.Unmarshal(data, event); err != nil {
				fail(fmt.Errorf("parse event %s: %w", name, err))
				return
			}
			if !yield(event, nil) {
				return
			}
		}
		err = lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		fail(err)
	}
}

// newEvent returns what an event is read into, nil for one that is not known.
func newEvent(name string) StreamEvent {
	switch name {
	case EventContainers:
		return new(StreamContainers)
	case EventSample:
		return new(StreamSample)
	case EventStarted:
		return new(StreamStarted)
	case EventStopped:
		return new(StreamStopped)
	case EventRemoved:
		return new(StreamRemoved)
	case EventQuota:
		return new(StreamQuota)
	case EventAlert:
		return new(Alert)
	}
	return nil
}
