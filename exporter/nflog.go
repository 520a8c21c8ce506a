// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
)

// NFLOG is what the host's firewall rules log of a container.
type NFLOG struct {
	Receive  LoggedRequests `json:"receive"`
	Transmit LoggedRequests `json:"transmit"`
	Since    time.Time      `json:"since"` // it is counted
}

// LoggedRequests is how often a connection was asked for in one direction, as the container sees
// it.
type LoggedRequests struct {
	Connections uint64 `json:"connections"` // of all protocols
	TCPSYN      uint64 `json:"tcp_syn"`     // of TCP; retransmitted ones too
}

// NFLOGState says how complete the containers' NFLOG is, since nettally was started.
type NFLOGState struct {
	Group        uint16 `json:"group"`
	Bound        bool   `json:"bound"`        // what is logged now is counted
	Logged       uint64 `json:"logged"`       // packets that came
	Lost         uint64 `json:"lost"`         // packets that were logged and did not come
	Overruns     uint64 `json:"overruns"`     // times that the queue was full
	Ignored      uint64 `json:"ignored"`      // packets that ask for no connection
	Unattributed uint64 `json:"unattributed"` // requests of containers that were not found
}

func nflogOf(l *usage.Logged) *NFLOG {
	if l == nil {
		return nil
	}
	return &NFLOG{
		Receive:  LoggedRequests{Connections: l.Receive.Connections, TCPSYN: l.Receive.SYN},
		Transmit: LoggedRequests{Connections: l.Transmit.Connections, TCPSYN: l.Transmit.SYN},
		Since:    l.Since.UTC(),
	}
}

func nflogStateOf(s *usage.LogState) *NFLOGState {
	if s == nil {
		return nil
	}
	shown := NFLOGState(*s)
	return &shown
}

var nflogLabels = []string{"container_id", "direction", "name", "namespace", "pod"}

// nflogDescs are the metrics of firewall rules that log connection requests.
type nflogDescs struct {
	connections, bound, logged, lost, overruns, ignored, unattributed *prometheus.Desc
}

func (d *descs) addNFLOG() nflogDescs {
	return nflogDescs{
		connections: d.add("nettally_container_nflog_connections_total",
			"Connection requests of the container that the host's firewall rules logged: SYNs of TCP, retransmitted ones too, and the first packets of others' connections. "+
				"There from the container's first one on.", nflogLabels...),
		bound: d.add("nettally_nflog_bound",
			"1 while the group of NFLOG is read, 0 while it can't be had; the log says why."),
		logged: d.add("nettally_nflog_packets_total", "Packets of the group of NFLOG that came."),
		lost: d.add("nettally_nflog_lost_total",
			"Packets of the group of NFLOG that the kernel could not deliver, told by the next one that it could: connection requests that are missing."),
		overruns: d.add("nettally_nflog_overruns_total", "Times that the queue of the group of NFLOG was full."),
		ignored: d.add("nettally_nflog_ignored_total",
			"Packets of the group of NFLOG that ask for no connection: a rule logs more than it should."),
		unattributed: d.add("nettally_nflog_unattributed_total",
			"Connection requests from or to a bridge or a host veth, there to or from no container that is known."),
	}
}

// nflog sends how complete what the rules log is.
func (s *scrape) nflog(state *usage.LogState) {
	if state == nil {
		return
	}
	bound := 0.0
	if state.Bound {
		bound = 1
	}
	d := &s.descs.nflog
	s.gauge(d.bound, nil, bound)
	s.counter(d.logged, nil, state.Logged, nil)
	s.counter(d.lost, nil, state.Lost, nil)
	s.counter(d.overruns, nil, state.Overruns, nil)
	s.counter(d.ignored, nil, state.Ignored, nil)
	s.counter(d.unattributed, nil, state.Unattributed, nil)
}

// logged sends what the rules log of a container.
func (s *scrape) logged(l *usage.Logged, of series) {
	for _, d := range [...]struct {
		name string
		r    usage.LoggedRequests
	}{{"receive", l.Receive}, {"transmit", l.Transmit}} {
		s.counter(s.descs.nflog.connections, pairs(nflogLabels, of.id, d.name, of.name, of.namespace, of.pod), d.r.Connections, created(l.Since))
	}
}
