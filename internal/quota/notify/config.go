// SPDX-License-Identifier: Apache-2.0

package notify

import "time"

// defaultTimeout is how long one attempt may take where a configuration says nothing.
const defaultTimeout = 10 * time.Second

// Config is one notifier, which package configs has checked. Exactly one of the pointers
// is set.
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
