// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// defaultTimeout is how long one attempt may take where a configuration says nothing.
const defaultTimeout = 10 * time.Second

// Config is one notifier. Exactly one of the pointers is set.
type Config struct {
	Name    string
	Timeout time.Duration // of one attempt; 0 is 10 s

	Alertmanager *Alertmanager
	Webhook      *Webhook
	Exec         *Exec
	Log          *Log
}

// Alertmanager is told by its API v2.
type Alertmanager struct {
	URL string // without /api/v2/alerts; may have a path, as behind a proxy
	// HTTPConfigFile holds credentials, TLS and proxy settings in Prometheus's
	// http_config format; "" is none. It is read again when it has changed.
	HTTPConfigFile string
}

// Webhook is a server that takes an alert as JSON.
type Webhook struct {
	URL string
	// SecretFile holds the key of the signature, and "" is no signature. It is read at
	// each attempt, and must not be readable by everyone.
	SecretFile     string
	HTTPConfigFile string // as that of Alertmanager
}

// Exec is a program that takes an alert as JSON on its standard input.
type Exec struct {
	Command []string // the program's absolute path, and its arguments; no shell reads them
}

// Log is nettally's own log.
type Log struct{}

// Check says what is wrong with a notifier, as its key and the reason. It looks at no
// file and asks no server.
func (c Config) Check() error {
	if c.Name == "" {
		return errors.New("name: give the notifier a name")
	}
	if c.Timeout < 0 {
		return fmt.Errorf("timeout: %s is negative", c.Timeout)
	}
	kinds := 0
	for _, set := range []bool{c.Alertmanager != nil, c.Webhook != nil, c.Exec != nil, c.Log != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("give one of alertmanager, webhook, exec and log, not %d of them", kinds)
	}
	switch {
	case c.Alertmanager != nil:
		return c.Alertmanager.check()
	case c.Webhook != nil:
		return c.Webhook.check()
	case c.Exec != nil:
		return c.Exec.check()
	}
	return nil
}

func (a Alertmanager) check() error {
	if err := checkURL(a.URL); err != nil {
		return fmt.Errorf("alertmanager.url: %w", err)
	}
	if strings.Contains(a.URL, "/api/v") {
		return fmt.Errorf("alertmanager.url: %s: leave out the part from /api on", withoutPassword(a.URL))
	}
	return checkFile("alertmanager.http_config_file", a.HTTPConfigFile)
}

func (w Webhook) check() error {
	if err := checkURL(w.URL); err != nil {
		return fmt.Errorf("webhook.url: %w", err)
	}
	if err := checkFile("webhook.secret_file", w.SecretFile); err != nil {
		return err
	}
	return checkFile("webhook.http_config_file", w.HTTPConfigFile)
}

func (e Exec) check() error {
	if len(e.Command) == 0 {
		return errors.New("exec.command: give the program's path, and its arguments")
	}
	if !filepath.IsAbs(e.Command[0]) {
		return fmt.Errorf("exec.command: %q is not an absolute path, and no shell looks for it", e.Command[0])
	}
	for _, arg := range e.Command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("exec.command: %q holds a zero byte", arg)
		}
	}
	return nil
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return errors.New("give an address such as http://127.0.0.1:9093")
	case err != nil:
		// The error would repeat the address, with a password that may be in it.
		return errors.New("not an address such as http://127.0.0.1:9093")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("%s is not an address such as http://127.0.0.1:9093", u.Redacted())
	}
	return nil
}

// checkFile wants absolute paths: the daemon's working directory is nobody's business.
func checkFile(key, path string) error {
	if path != "" && !filepath.IsAbs(path) {
		return fmt.Errorf("%s: %s is not an absolute path", key, path)
	}
	return nil
}

func withoutPassword(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "the address"
	}
	return u.Redacted()
}
