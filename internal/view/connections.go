// SPDX-License-Identifier: Apache-2.0

package view

import "github.com/nettally/nettally/exporter"

// Connections are TCP connections of a container's sockets.
type Connections struct {
	Opened uint64 // established: begun by the container, or accepted
	Failed uint64 // begun by the container, and never established
}

// ConnectionRate is connections per second.
type ConnectionRate struct{ Opened, Failed float64 }

// TCP is what becomes of a row's connections.
type TCP struct {
	Counted      bool // whether the total is known
	Known        bool // whether the rate is known
	Total        Connections
	Rate, Smooth ConnectionRate // Smooth is over some seconds
}

// tcpEntry is what an entry knows of connections beside their totals.
type tcpEntry struct {
	base         *exporter.StreamTCP // what the rate is computed from, nil where that is not known
	known        bool                // whether the rate is known
	rate, smooth ConnectionRate
	smoothed     bool
	counted      Connections // since [Book.Zero]
}

// count adds the connections between two totals.
func (e *tcpEntry) count(before, now *exporter.StreamTCP) {
	if grown, ok := opened(before, now); ok {
		e.counted = e.counted.plus(grown)
	}
}

// measure computes the rates, elapsed milliseconds after the last time.
func (e *tcpEntry) measure(now *exporter.StreamTCP, elapsed int64, weight float64) {
	grown, ok := opened(e.base, now)
	e.base, e.known, e.rate = now, ok, ConnectionRate{}
	if !ok {
		return
	}
	e.rate = grown.over(elapsed)
	if !e.smoothed {
		e.smoothed, weight = true, 1
	}
	e.smooth.Opened += weight * (e.rate.Opened - e.smooth.Opened)
	e.smooth.Failed += weight * (e.rate.Failed - e.smooth.Failed)
}

// restart begins anew where totals can't be compared with those before.
func (e *tcpEntry) restart(now *exporter.StreamTCP) {
	e.base, e.known, e.rate = now, false, ConnectionRate{}
}

// connections returns 0 where connections are not counted.
func connections(t *exporter.StreamTCP) Connections {
	if t == nil {
		return Connections{}
	}
	return Connections{add(t.Connects, t.Accepts), t.ConnectFailures}
}

// opened returns the connections between two totals. It reports false where one of these is not
// known, or they began anew.
func opened(before, now *exporter.StreamTCP) (Connections, bool) {
	if before == nil || now == nil {
		return Connections{}, false
	}
	a, b := connections(before), connections(now)
	if b.Opened < a.Opened || b.Failed < a.Failed {
		return Connections{}, false
	}
	return Connections{b.Opened - a.Opened, b.Failed - a.Failed}, true
}

func (c Connections) plus(o Connections) Connections {
	return Connections{add(c.Opened, o.Opened), add(c.Failed, o.Failed)}
}

func (c Connections) over(milliseconds int64) ConnectionRate {
	per := func(n uint64) float64 { return float64(n) * 1000 / float64(milliseconds) }
	return ConnectionRate{per(c.Opened), per(c.Failed)}
}

func (r ConnectionRate) plus(o ConnectionRate) ConnectionRate {
	return ConnectionRate{r.Opened + o.Opened, r.Failed + o.Failed}
}

// plus adds the connections of another row. What is not known adds nothing.
func (t TCP) plus(o TCP) TCP {
	if !o.Counted {
		return t
	}
	t.Counted, t.Known = true, t.Known || o.Known
	t.Total = t.Total.plus(o.Total)
	if o.Known {
		t.Rate, t.Smooth = t.Rate.plus(o.Rate), t.Smooth.plus(o.Smooth)
	}
	return t
}
