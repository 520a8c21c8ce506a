// SPDX-License-Identifier: Apache-2.0

// Package configs loads and checks nettally's configuration, and holds the files
// that people copy: the reference configuration and the systemd unit.
//
// A setting comes from a flag, else from the environment, else from the file, else
// it has its default. Everything is strict: what is not understood is refused
// with the place it came from and what was expected there.
package configs

import (
	"log/slog"
	"regexp"
	"slices"
	"time"
)

// DefaultPath is where the configuration lies unless the user says otherwise.
const DefaultPath = "/etc/nettally/nettally.yaml"

// Values of settings that are words. Auto and Off belong to [Attach.Mode],
// [Watch.CgroupRoot], the sources of [Names], and [Accounting.Source], [Accounting.Cgroup] and
// [Accounting.TCP], the rest to the field they are named after.
const (
	Auto = "auto"
	Off  = "off"

	FormatText = "text"
	FormatJSON = "json"

	FamilyInterface = "interface"
	FamilyProtocol  = "protocol"
	FamilyFamily    = "family"
	FamilyTCPFlags  = "tcp_flags"

	CompatCadvisor = "cadvisor"

	ModeClsact = "clsact"
	ModeTCX    = "tcx"

	On = "on"

	CgroupAll  = "all"
	SourceBPF  = "bpf"
	SourceProc = "proc"
)

// Config is a checked configuration. It is made by [Load] and never changes
// afterwards, so that goroutines may share it; a reload makes a new one.
type Config struct {
	StateDir string // absolute, clean

	Log        Log
	BPF        BPF
	Attach     Attach
	Watch      Watch
	Names      Names
	Accounting Accounting
	Requests   Requests
	Limits     Limits
	Exporter   Exporter
	Metrics    Metrics
	Retention  Retention
	Quotas     []Quota    // each name once
	Notifiers  []Notifier // each name once

	file   string // it came from, "" for none
	digest digest // of that
}

// Secrets returns the files that may hold secrets: its own, whose URLs may, and those that
// notifiers name.
func (c *Config) Secrets() []string {
	var files []string
	add := func(path string) {
		if path != "" && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	add(c.file)
	for _, n := range c.Notifiers {
		if n.Webhook != nil {
			add(n.Webhook.SecretFile)
			add(n.Webhook.HTTPConfigFile)
		}
		if n.Alertmanager != nil {
			add(n.Alertmanager.HTTPConfigFile)
		}
	}
	return files
}

// Log says what is logged, and how.
type Log struct {
	Level  slog.Level
	Format string // FormatText or FormatJSON
}

// BPF says where the counters live and how many there can be.
type BPF struct {
	PinPath       string // absolute, clean
	MaxInterfaces int    // 1 to 65535
}

// Attach says where filters are put.
type Attach struct {
	Mode       string    // Auto, ModeClsact or ModeTCX
	Priority   uint16    // never 0: there the kernel would choose
	CNIDirs    []string  // absolute clean paths
	Interfaces Selection // by the host interface's name
}

// Watch says which containers there are.
type Watch struct {
	CgroupRoot string // Auto, or an absolute clean path
	Reconcile  time.Duration
	Containers Selection        // by cgroup path or full container id
	Patterns   []*regexp.Regexp // on cgroup paths; each has a group named id
}

// Names says where names and labels of containers come from.
type Names struct {
	Docker string   // Auto, Off, or unix:// and an absolute path
	Podman string   // the same
	CRI    string   // the same
	Labels []string // the label keys that are passed on, each once
}

// Accounting says what counts, and what else than interfaces is counted.
type Accounting struct {
	Source string // Auto, SourceBPF or SourceProc
	Cgroup string // Auto, CgroupAll or Off
	TCP    string // Auto or Off

	Sockets   bool // whether what processes send and receive is counted
	Conntrack bool // whether connections are counted
	NFLOG     NFLOG
}

// Requests says what containers say to others is counted.
type Requests struct {
	HTTP, TLS, DNS bool
	Ports          []uint16 // that HTTP and TLS are counted on, each once; none says all
}

// NFLOG says what firewall rules log of connection requests.
type NFLOG struct {
	Group uint16 // 0 is off
}

// Limits bounds what containers can take of the host by being there. What is beyond a bound is
// counted together.
type Limits struct {
	Containers     int     // of root's with an account of their own, and of all users' together
	PerUser        int     // of one user's
	Interfaces     int     // of one container, with numbers of their own
	Ended          int     // that are remembered
	SlotsForRoot   float64 // the part of the slots that users' containers can't take, 0 to 1
	SeriesPerQuota int     // keys of a quota in the metrics

	SeriesPerPeriod int // keys with a total of their own, of each period
}

// Exporter says where the numbers are served. What is "" is off.
type Exporter struct {
	Listen    string   // host:port
	Socket    string   // absolute, clean, short enough for a unix socket
	WebConfig string   // absolute path of exporter-toolkit's file
	Hosts     []string // names of this host, beside localhost, each once
}

// Metrics says what is shown beyond the primary metrics.
type Metrics struct {
	Families []string // FamilyInterface, …, each once
	Compat   string   // "" or CompatCadvisor
	Periods  MetricPeriods
}

// MetricPeriods says which totals of periods are shown.
type MetricPeriods struct {
	Every    string         // day, week or month
	Day      int            // of the month that a month begins on
	Location *time.Location // of the calendar
	By       []string       // namespace, name, pod, or label: and a key, each once; none is off
	Keep     time.Duration  // after a period's end
}

// Retention says how long an ended container is still shown, and how far the history
// reaches back.
type Retention struct {
	Metrics time.Duration
	API     time.Duration
	Hours   time.Duration // at least a day
	Days    time.Duration // at least Hours
}
