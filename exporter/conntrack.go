// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
)

var (
	changeLabels = []string{"container_id", "direction", "name", "namespace", "pod", "protocol"}
	entryLabels  = []string{"container_id", "direction", "name", "namespace", "pod", "protocol", "state"}
)

// conntrackDescs are of connections.
type conntrackDescs struct{ entries, opened, closed *prometheus.Desc }

func (d *descs) addConntrack() conntrackDescs {
	const what = " of the connection tracking, by the direction of the packet that opened the connection"
	return conntrackDescs{
		entries: d.add("nettally_container_conntrack_entries",
			"Entries"+what+", at the last look at the whole table. established: of TCP in the state ESTABLISHED, of others answered.",
			entryLabels...),
		opened: d.add("nettally_container_conntrack_opened_total",
			"Entries"+what+", that were made since this process came to know the container.", changeLabels...),
		closed: d.add("nettally_container_conntrack_closed_total",
			"Entries"+what+", that have ended since. An entry ends when its time is over, after the connection has.", changeLabels...),
	}
}

// connections sends what is known of a container's connections.
func (s *scrape) connections(c *usage.Container, of series) {
	to, since := &s.descs.conntrack, created(c.Conntrack.Since)
	for d, all := range [2]*[usage.Protocols]usage.Connections{receive: &c.Conntrack.Receive, transmit: &c.Conntrack.Transmit} {
		direction := [...]string{receive: "receive", transmit: "transmit"}[d]
		for p := range usage.Protocols {
			n := &all[p]
			if c.Conntrack.Listed {
				s.gauge(to.entries, pairs(entryLabels, of.id, direction, of.name, of.namespace, of.pod, p.String(), "established"), float64(n.Established))
				s.gauge(to.entries, pairs(entryLabels, of.id, direction, of.name, of.namespace, of.pod, p.String(), "other"), float64(n.Other))
			}
			if c.Conntrack.Told {
				labels := pairs(changeLabels, of.id, direction, of.name, of.namespace, of.pod, p.String())
				s.counter(to.opened, labels, n.Opened, since)
				s.counter(to.closed, labels, n.Closed, since)
			}
		}
	}
}

// Conntrack is what the connection tracking has of a container in JSON.
type Conntrack struct {
	Since    *time.Time            `json:"since"`    // opened and closed count from then on
	Receive  ConnectionsByProtocol `json:"receive"`  // opened from outside
	Transmit ConnectionsByProtocol `json:"transmit"` // opened by the container
}

// ConnectionsByProtocol splits connections by transport protocol.
type ConnectionsByProtocol struct {
	TCP   Connections `json:"tcp"`
	UDP   Connections `json:"udp"`
	ICMP  Connections `json:"icmp"`
	Other Connections `json:"other"`
}

// Connections are entries of the connection tracking; nil is what is not known.
type Connections struct {
	Established *uint64 `json:"established"`
	Other       *uint64 `json:"other"`
	Opened      *uint64 `json:"opened"`
	Closed      *uint64 `json:"closed"`
}

func conntrackOf(c *usage.Conntrack) *Conntrack {
	if c == nil {
		return nil
	}
	return &Conntrack{Since: utc(c.Since), Receive: connectionsOf(c, &c.Receive), Transmit: connectionsOf(c, &c.Transmit)}
}

func connectionsOf(c *usage.Conntrack, all *[usage.Protocols]usage.Connections) ConnectionsByProtocol {
	of := func(p usage.Protocol) (out Connections) {
		n := all[p]
		if c.Listed {
			out.Established, out.Other = &n.Established, &n.Other
		}
		if c.Told {
			out.Opened, out.Closed = &n.Opened, &n.Closed
		}
		return out
	}
	return ConnectionsByProtocol{
		TCP: of(usage.ProtocolTCP), UDP: of(usage.ProtocolUDP), ICMP: of(usage.ProtocolICMP), Other: of(usage.ProtocolOther),
	}
}
