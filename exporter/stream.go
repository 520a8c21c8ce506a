// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/quota"
)

// Live tells what has changed while it changes: *live.Hub. It is called concurrently.
type Live interface {
	Join(interval time.Duration, cut func()) (*live.Viewer, error)
	Recent() live.Recent
}

// The names of the events of GET /api/v1/stream. docs/openapi.yaml documents them.
const (
	EventContainers = "containers" // StreamContainers
	EventSample     = "sample"     // StreamSample
	EventStarted    = "started"    // StreamStarted
	EventStopped    = "stopped"    // StreamStopped
	EventRemoved    = "removed"    // StreamRemoved
	EventQuota      = "quota"      // StreamQuota
	EventAlert      = "alert"      // Alert
)

// StreamReading says when totals were read.
type StreamReading struct {
	TakenAt time.Time `json:"taken_at"`
	// BootMS is CLOCK_BOOTTIME in milliseconds. Rates go by it: the wall clock may be set.
	BootMS int64 `json:"boot_ms"`
}

// StreamContainers are containers that are new or have another identity, or with Replace all that
// there are.
type StreamContainers struct {
	StreamReading
	Replace    bool              `json:"replace"`
	Source     string            `json:"source"` // as that of [Containers]
	Containers []StreamContainer `json:"containers"`
}

// StreamContainer is a container and what it has used in its life.
type StreamContainer struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Runtime   string            `json:"runtime"`
	Image     string            `json:"image"`
	Namespace string            `json:"namespace"`
	Pod       string            `json:"pod"`
	User      string            `json:"user"`
	Labels    map[string]string `json:"labels"`
	Cgroup    string            `json:"cgroup"`
	State     string            `json:"state"`
	StartedAt *time.Time        `json:"started_at"`
	StoppedAt *time.Time        `json:"stopped_at"`
	Network   string            `json:"network"`    // "bridge", "host", "none", "container:" and a name, …
	CountedBy string            `json:"counted_by"` // "interfaces", "cgroup" or ""
	Recalled  bool              `json:"recalled"`   // false: the totals may lack what was counted earlier
	PartOf    string            `json:"part_of"`    // the container whose numbers include these
	ParentID  string            `json:"parent_id"`  // the container that it is nested in, whose tcp includes this one's
	Accounted bool              `json:"accounted"`
	Reason    string            `json:"reason"`
	Kernel    string            `json:"kernel"`
	Receive   StreamCounts      `json:"receive"`
	Transmit  StreamCounts      `json:"transmit"`
	TCP       *StreamTCP        `json:"tcp"` // nil where connections are not counted, or in part
}

// StreamTCP is what became of the TCP connections of a container's sockets, as in [TCP].
type StreamTCP struct {
	Connects        uint64 `json:"connects"`
	Accepts         uint64 `json:"accepts"`
	ConnectFailures uint64 `json:"connect_failures"`
	Resets          uint64 `json:"resets"`
}

// StreamCounts is one direction, as the container sees it.
type StreamCounts struct {
	Volume
	TCPSYN        uint64 `json:"tcp_syn"`
	SeededBytes   uint64 `json:"seeded_bytes"` // part of the bytes, of no time
	SeededPackets uint64 `json:"seeded_packets"`
}

// StreamSample has the totals that have changed since the last one.
type StreamSample struct {
	StreamReading
	Containers []StreamTotal `json:"containers"`
}

// StreamTotal is what a container has used in its life.
type StreamTotal struct {
	ID       string       `json:"id"`
	Receive  StreamCounts `json:"receive"`
	Transmit StreamCounts `json:"transmit"`
	TCP      *StreamTCP   `json:"tcp"`
}

// StreamStarted says that a container runs.
type StreamStarted struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// StreamStopped says that a container has ended.
type StreamStopped struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	StoppedAt *time.Time `json:"stopped_at"`
}

// StreamRemoved says which containers are forgotten.
type StreamRemoved struct {
	IDs []string `json:"ids"`
}

// StreamQuota says how quotas stand.
type StreamQuota struct {
	Quotas   []Quota                   `json:"quotas"`   // the 500 with the highest ratios
	Foremost map[string]StreamForemost `json:"foremost"` // by container
}

// StreamForemost is the quota of which a container, with others of its key, has used most.
type StreamForemost struct {
	Quota string  `json:"quota"`
	Key   string  `json:"key"`
	Ratio float64 `json:"ratio"`
}

// Recent is the body of GET /api/v1/recent: what was used in the last 15 minutes, per step.
type Recent struct {
	StreamReading              // of the last step
	StepMS        int64        `json:"step_ms"`
	EndBootMS     int64        `json:"end_boot_ms"` // of the last step
	Steps         int          `json:"steps"`       // how many there are in each list, oldest first
	Containers    []RecentUsed `json:"containers"`  // that used something
	Others        RecentUsed   `json:"others"`      // beyond the 1,000 that used most
}

// RecentUsed is what a container used in each step, null where that is not known.
type RecentUsed struct {
	ID              string    `json:"id,omitempty"`
	ReceiveBytes    []*uint64 `json:"receive_bytes"`
	TransmitBytes   []*uint64 `json:"transmit_bytes"`
	ReceivePackets  []*uint64 `json:"receive_packets"`
	TransmitPackets []*uint64 `json:"transmit_packets"`
	ReceiveTCPSYN   []*uint64 `json:"receive_tcp_syn"`
	TransmitTCPSYN  []*uint64 `json:"transmit_tcp_syn"`
}

// heartbeat is after how much silence a viewer gets a comment, so that neither it nor a proxy
// takes the connection for dead. slowViewer is how long it may take to read one batch.
const (
	heartbeat  = 15 * time.Second
	slowViewer = 10 * time.Second
)

var errNotLive = errors.New("watch usage: it can't be watched here")

// stream answers a viewer until it leaves, is dropped or nettally ends.
func (e *Exporter) stream(w http.ResponseWriter, r *http.Request) {
	interval, err := parseInterval(r.URL.RawQuery)
	if err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	if e.live == nil {
		e.fail(w, http.StatusServiceUnavailable, errNotLive)
		return
	}
	control := http.NewResponseController(w)
	ctx, end := context.WithCancel(r.Context())
	defer end()
	cut := func() {
		e.fronts.refuse(r, refusedSlow)
		end()
		_ = control.SetWriteDeadline(time.Now()) // only fails where the client has gone
	}
	sit := &seat{peer: peerOf(r), cut: cut}
	if err := e.seats.take(sit); err != nil {
		e.fronts.refuse(r, refusedBusy)
		w.Header().Set("Retry-After", "5")
		e.fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer e.seats.leave(sit)
	viewer, err := e.live.Join(interval, cut)
	if err != nil {
		w.Header().Set("Retry-After", "1")
		e.fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer viewer.Leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	if r.Method == http.MethodHead {
		return
	}
	e.show(ctx, w, control, viewer)
}

// show writes what a viewer gets, until it can't be written or there is no more.
func (e *Exporter) show(ctx context.Context, w http.ResponseWriter, control *http.ResponseController, viewer *live.Viewer) {
	silence := time.NewTicker(heartbeat)
	defer silence.Stop()
	deadline := func(t time.Time) { _ = control.SetWriteDeadline(t) } // a client that has gone fails the write
	defer func() { deadline(time.Now().Add(e.times.viewer)) }()       // for the end of the answer
	for {
		var texts [][]byte
		select {
		case <-ctx.Done():
			return
		case batch, there := <-viewer.C:
			if !there {
				return
			}
			for _, m := range batch {
				texts = append(texts, m.Text(e.event))
			}
			silence.Reset(heartbeat)
		case <-silence.C:
			texts = [][]byte{[]byte(":\n\n")}
		}
		deadline(time.Now().Add(e.times.viewer))
		if ctx.Err() != nil {
			return // it is cut off, and had a deadline
		}
		for _, text := range texts {
			if _, err := w.Write(text); err != nil {
				return
			}
		}
		if control.Flush() != nil {
			return
		}
		deadline(time.Time{}) // one that passes ends a stream of HTTP/2, also where nothing is written
	}
}

// parseInterval reads the parameter of a stream.
func parseInterval(raw string) (time.Duration, error) {
	p, err := parseParameters(raw, "interval")
	if err != nil {
		return 0, err
	}
	if p["interval"] == "" {
		return live.Shortest, nil
	}
	interval, err := time.ParseDuration(p["interval"])
	if err != nil || interval < live.Shortest || interval > live.Longest || interval%time.Second != 0 {
		return 0, fmt.Errorf("query parameter interval: %q is not a whole number of seconds from 1s to 60s", p["interval"])
	}
	return interval, nil
}

// event returns an event as a stream has it.
func (e *Exporter) event(event any) []byte {
	var name string
	var data any
	switch v := event.(type) {
	case live.Containers:
		name, data = EventContainers, e.streamContainersOf(&v)
	case live.Sample:
		name, data = EventSample, streamSampleOf(&v)
	case live.Started:
		name, data = EventStarted, StreamStarted{clean(v.ID), clean(v.Name)}
	case live.Stopped:
		name, data = EventStopped, StreamStopped{clean(v.ID), clean(v.Name), utc(v.At)}
	case live.Removed:
		name, data = EventRemoved, StreamRemoved{v.IDs}
	case live.QuotaState:
		name, data = EventQuota, streamQuotaOf(&v)
	case live.Alert:
		name, data = EventAlert, alertOf(v.Alert)
	}
	text, err := json.Marshal(data)
	if err != nil { // can't be: all of it is texts, numbers and times of this era
		return []byte(":" + strconv.Quote(err.Error()) + "\n\n")
	}
	return bytes.Join([][]byte{[]byte("event: " + name), append([]byte("data: "), text...), nil, nil}, []byte("\n"))
}

func (e *Exporter) streamContainersOf(c *live.Containers) StreamContainers {
	out := StreamContainers{
		StreamReading: readingOf(c.Reading), Replace: c.Replace, Source: e.source,
		Containers: make([]StreamContainer, len(c.Containers)),
	}
	for i := range c.Containers {
		out.Containers[i] = streamContainerOf(&c.Containers[i])
	}
	return out
}

func streamContainerOf(c *live.Container) StreamContainer {
	labels := c.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return StreamContainer{
		ID: c.ID, Name: c.Name, Runtime: c.Runtime, Image: c.Image, Namespace: c.Namespace, Pod: c.Pod, User: c.User,
		Labels: labels, Cgroup: c.Cgroup, State: string(c.State), StartedAt: utc(c.StartedAt), StoppedAt: utc(c.StoppedAt),
		Network: c.Network, CountedBy: string(c.CountedBy), Recalled: c.Recalled, PartOf: c.PartOf,
		Accounted: c.Accounted(), Reason: string(c.Reason), Kernel: c.Kernel,
		ParentID: c.ParentID, Receive: streamCountsOf(c.Receive), Transmit: streamCountsOf(c.Transmit), TCP: streamTCPOf(c.TCP),
	}
}

func streamSampleOf(s *live.Sample) StreamSample {
	out := StreamSample{StreamReading: readingOf(s.Reading), Containers: make([]StreamTotal, len(s.Totals))}
	for i, t := range s.Totals {
		out.Containers[i] = StreamTotal{t.ID, streamCountsOf(t.Receive), streamCountsOf(t.Transmit), streamTCPOf(t.TCP)}
	}
	return out
}

func streamCountsOf(a live.Amount) StreamCounts {
	return StreamCounts{Volume(a.Volume), a.SYN, a.Seeded.Bytes, a.Seeded.Packets}
}

func streamTCPOf(c live.Connections) *StreamTCP {
	if !c.Known {
		return nil
	}
	return &StreamTCP{c.Connects, c.Accepts, c.Failures, c.Resets}
}

func streamQuotaOf(q *live.QuotaState) StreamQuota {
	out := StreamQuota{Quotas: make([]Quota, len(q.Quotas)), Foremost: map[string]StreamForemost{}}
	for i, s := range q.Quotas {
		out.Quotas[i] = quotaOf(s)
	}
	for id, f := range q.Foremost {
		out.Foremost[id] = foremostOf(f)
	}
	return out
}

func foremostOf(f quota.Foremost) StreamForemost {
	return StreamForemost{f.Quota, clean(f.Key), f.Ratio}
}

func readingOf(r live.Reading) StreamReading {
	return StreamReading{r.TakenAt.UTC(), r.Boot.Milliseconds()}
}

// recent answers with what was used in the last 15 minutes.
func (e *Exporter) recent(w http.ResponseWriter, r *http.Request) {
	if _, err := parseParameters(r.URL.RawQuery); err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	if e.live == nil {
		e.fail(w, http.StatusServiceUnavailable, errNotLive)
		return
	}
	used := e.live.Recent()
	if used.TakenAt.IsZero() {
		w.Header().Set("Retry-After", "1")
		e.fail(w, http.StatusServiceUnavailable, live.ErrEnded)
		return
	}
	body := Recent{
		StreamReading: readingOf(used.Reading),
		StepMS:        live.StepOf.Milliseconds(), EndBootMS: used.End.Milliseconds(), Steps: len(used.Others.Steps),
		Containers: make([]RecentUsed, len(used.Series)), Others: recentOf(&used.Others),
	}
	for i := range used.Series {
		body.Containers[i] = recentOf(&used.Series[i])
	}
	e.answer(w, body)
}

func recentOf(s *live.Series) RecentUsed {
	of := func(number func(*live.Growth) *uint64) []*uint64 {
		all := make([]*uint64, len(s.Steps))
		for i, g := range s.Steps {
			if g != nil {
				all[i] = number(g)
			}
		}
		return all
	}
	return RecentUsed{
		ID:              s.ID,
		ReceiveBytes:    of(func(g *live.Growth) *uint64 { return &g.Receive.Bytes }),
		TransmitBytes:   of(func(g *live.Growth) *uint64 { return &g.Transmit.Bytes }),
		ReceivePackets:  of(func(g *live.Growth) *uint64 { return &g.Receive.Packets }),
		TransmitPackets: of(func(g *live.Growth) *uint64 { return &g.Transmit.Packets }),
		ReceiveTCPSYN:   of(func(g *live.Growth) *uint64 { return &g.Receive.SYN }),
		TransmitTCPSYN:  of(func(g *live.Growth) *uint64 { return &g.Transmit.SYN }),
	}
}
