// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"
)

// ErrNotRunning says that nobody answers on the unix socket.
var ErrNotRunning = errors.New("nobody answers (is nettally running? see exporter.socket)")

// Fetch asks the nettally behind a unix socket for all its containers, and with
// all set for the interfaces that no container owns too. It needs write
// permission on the socket. It is what [Exporter.Handler] answers, read back.
//
// Returns an error wrapping [ErrNotRunning] if there is no such socket or nobody
// listens on it.
func Fetch(ctx context.Context, socket string, all bool) (*Containers, error) {
	body, err := get(ctx, socket, fmt.Sprintf("/api/v1/containers?all=%t", all))
	if err != nil {
		return nil, fmt.Errorf("read containers from %s: %w", socket, err)
	}
	var containers Containers
	if err := json.Unmarshal(body, &containers); err != nil {
		return nil, fmt.Errorf("parse containers from %s: %w", socket, err)
	}
	return &containers, nil
}

// FetchHistory asks the nettally behind a unix socket for usage over time, by the parameters
// of [ParseHistoryQuery]. It is the one to read them: a date is a day of its time zone, in which
// days and months begin, and not of ours. It needs write permission on the socket.
//
// Returns an error wrapping [ErrNotRunning] as [Fetch] does.
func FetchHistory(ctx context.Context, socket string, parameters map[string]string) (*History, error) {
	values := url.Values{}
	for name, value := range parameters {
		if value != "" {
			values.Set(name, value)
		}
	}
	body, err := get(ctx, socket, "/api/v1/history?"+values.Encode())
	if err != nil {
		return nil, fmt.Errorf("read history from %s: %w", socket, err)
	}
	var history History
	if err := json.Unmarshal(body, &history); err != nil {
		return nil, fmt.Errorf("parse history from %s: %w", socket, err)
	}
	return &history, nil
}

// FetchQuotas asks the nettally behind a unix socket how its quotas stand. It needs write
// permission on the socket.
//
// Returns an error wrapping [ErrNotRunning] as [Fetch] does.
func FetchQuotas(ctx context.Context, socket string) (*QuotaList, error) {
	body, err := get(ctx, socket, "/api/v1/quotas")
	if err != nil {
		return nil, fmt.Errorf("read quotas from %s: %w", socket, err)
	}
	var list QuotaList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("parse quotas from %s: %w", socket, err)
	}
	return &list, nil
}

// ChangeQuota has the nettally behind a unix socket set what a quota's key has used, or
// reset it where change.Used is nil. It needs write permission on the socket.
//
// Returns an error wrapping [ErrNotRunning] as [Fetch] does.
func ChangeQuota(ctx context.Context, socket, name string, change QuotaChange) error {
	verb := "reset"
	if change.Used != nil {
		verb = "set"
	}
	body, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = ask(ctx, socket, http.MethodPost, "/api/v1/quotas/"+url.PathEscape(name)+"/"+verb, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("change quota by %s: %w", socket, err)
	}
	return nil
}

// TestNotifier has the nettally behind a unix socket send a test alert by a notifier, and
// waits for what becomes of it. It needs write permission on the socket.
//
// Returns an error wrapping [ErrNotRunning] as [Fetch] does.
func TestNotifier(ctx context.Context, socket, name string) error {
	_, err := ask(ctx, socket, http.MethodPost, "/api/v1/notifiers/"+url.PathEscape(name)+"/test", nil)
	if err != nil {
		return fmt.Errorf("test notifier by %s: %w", socket, err)
	}
	return nil
}

func get(ctx context.Context, socket, target string) ([]byte, error) {
	return ask(ctx, socket, http.MethodGet, target, nil)
}

func ask(ctx context.Context, socket, method, target string, content io.Reader) ([]byte, error) {
	c, err := NewClient(ClientOptions{Socket: socket})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	response, err := c.open(ctx, method, target, content)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// dialError drops the socket's path from net's errors: the caller names it.
func dialError(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case errors.As(err, &errno):
		return errno
	}
	return err
}
