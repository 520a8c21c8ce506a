// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	promconfig "github.com/prometheus/common/config"
)

const (
	answerShown = 200      // bytes of an answer that an error quotes
	answerRead  = 64 << 10 // and that are read, so that the connection can be used again
)

// server is an HTTP server that alerts are posted to.
type server struct {
	name, configFile, version string

	mu      sync.Mutex
	client  *http.Client
	changed time.Time // the configuration file, as read
}

// ready returns the client. It reads the configuration file if that has changed.
func (s *server) ready() (*http.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	config := &promconfig.DefaultHTTPClientConfig
	var changed time.Time
	if s.configFile != "" {
		info, err := os.Stat(s.configFile)
		if err != nil {
			return nil, fmt.Errorf("read HTTP configuration: %w", err)
		}
		changed = info.ModTime()
	}
	if s.client != nil && changed.Equal(s.changed) {
		return s.client, nil
	}
	if s.configFile != "" {
		loaded, _, err := promconfig.LoadHTTPConfigFile(s.configFile)
		if err != nil {
			return nil, fmt.Errorf("read HTTP configuration %s: %w", s.configFile, oneLineError(err))
		}
		config = loaded
	}
	client, err := promconfig.NewClientFromConfig(*config, s.name)
	if err != nil {
		return nil, fmt.Errorf("use HTTP configuration %s: %w", s.configFile, oneLineError(err))
	}
	client.CheckRedirect = stayOnHost
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	s.client, s.changed = client, changed
	return client, nil
}

// stayOnHost follows a redirection on the same server if the request stays a POST:
// after a 301, 302 and 303 it would be a GET, whose answer says nothing.
func stayOnHost(next *http.Request, before []*http.Request) error {
	first := before[0]
	if next.Method != first.Method || next.URL.Scheme != first.URL.Scheme || next.URL.Host != first.URL.Host || len(before) > 5 {
		return http.ErrUseLastResponse
	}
	return nil
}

// post sends JSON and returns nil if the server took it.
func (s *server) post(ctx context.Context, to string, body []byte, header map[string]string) error {
	client, err := s.ready()
	if err != nil {
		return &failure{cause: err, everyone: true}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return &failure{cause: errors.New("post: the address can't be used"), everyone: true}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "nettally/"+s.version)
	for name, value := range header {
		request.Header.Set(name, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return s.unreachable(ctx, request.URL, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerRead))
	if answer.StatusCode/100 == 2 {
		// It took the alert, whatever became of the rest of what it says.
		return nil
	}
	if err != nil && ctx.Err() != nil {
		return s.unreachable(ctx, request.URL, err)
	}
	return refusal(answer, text)
}

// unreachable is the error of a server that did not answer. It names the server only:
// the rest of an address may be secret. One that hangs may hang on this alert alone.
func (s *server) unreachable(ctx context.Context, to *url.URL, err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("post to %s: no answer in time", to.Host)
	}
	return &failure{cause: fmt.Errorf("post to %s: %w", to.Host, oneLineError(err)), everyone: true}
}

// refusal is the error of an answer that is none of success.
func refusal(answer *http.Response, text []byte) error {
	f := &failure{cause: fmt.Errorf("post to %s: it answered %s%s", answer.Request.URL.Host, answer.Status, quote(text))}
	switch code := answer.StatusCode; {
	case code/100 == 3:
		f.everyone = true
		f.cause = fmt.Errorf("post to %s: it answered %s and names another address, which is not followed; configure that one",
			answer.Request.URL.Host, answer.Status)
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		f.everyone, f.after = true, retryAfter(answer.Header.Get("Retry-After"))
	case code == http.StatusBadGateway, code == http.StatusGatewayTimeout:
		f.everyone = true
	case code/100 == 4:
		f.everyone = mends(code)
		f.permanent = !f.everyone
	}
	return f
}

// mends says which refusals are about the way to the server, and not about the alert:
// someone will put it right, or it is a proxy whose server is not there yet.
func mends(code int) bool {
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusProxyAuthRequired,
		http.StatusRequestTimeout, http.StatusMisdirectedRequest, http.StatusTooEarly:
		return true
	}
	return false
}

// retryAfter reads seconds or a date; 0 if it is neither, or is past.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(max(seconds, 0), int(retryAfterMax/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// quote returns the beginning of an answer in one line, after a colon.
func quote(text []byte) string {
	line := oneLine(string(text[:min(len(text), answerShown)]))
	if line == "" {
		return ""
	}
	return ": " + line
}

// oneLine returns a text that others wrote as part of a line of ours.
func oneLine(text string) string {
	printable := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.Join(strings.Fields(printable), " ")
}

// lineError shows an error in one line.
type lineError struct{ error }

func (e lineError) Error() string { return oneLine(e.error.Error()) }
func (e lineError) Unwrap() error { return e.error }

func oneLineError(err error) error { return lineError{err} }

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
}
