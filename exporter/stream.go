// SPDX-License-Identifier: Apache-2.0

package exporter

import "time"

// StreamContainers is the data of an event containers of GET /api/v1/stream.
type StreamContainers struct {
	TakenAt    time.Time         `json:"taken_at"`
	BootMS     int64             `json:"boot_ms"` // CLOCK_BOOTTIME
	Replace    bool              `json:"replace"` // there are no others
	Source     string            `json:"source"`
	Containers []StreamContainer `json:"containers"`
}

// StreamContainer is who a container is, and its totals.
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
	Network   string            `json:"network"`
	CountedBy string            `json:"counted_by"` // "interfaces", "cgroup", or "" where it is not counted
	Recalled  bool              `json:"recalled"`
	PartOf    string            `json:"part_of"` // the id of a container whose totals include these, or ""
	Accounted bool              `json:"accounted"`
	Reason    string            `json:"reason"`
	Kernel    string            `json:"kernel"`
	Receive   StreamCounts      `json:"receive"`
	Transmit  StreamCounts      `json:"transmit"`
}

// StreamCounts are the totals of one direction.
type StreamCounts struct {
	Bytes         uint64 `json:"bytes"`
	Packets       uint64 `json:"packets"`
	TCPSYN        uint64 `json:"tcp_syn"`
	SeededBytes   uint64 `json:"seeded_bytes"`
	SeededPackets uint64 `json:"seeded_packets"`
}

// StreamSample is the data of an event sample.
type StreamSample struct {
	TakenAt    time.Time      `json:"taken_at"`
	BootMS     int64          `json:"boot_ms"`
	Containers []StreamTotals `json:"containers"` // those that changed
}

// StreamTotals are the totals of a container.
type StreamTotals struct {
	ID       string       `json:"id"`
	Receive  StreamCounts `json:"receive"`
	Transmit StreamCounts `json:"transmit"`
}
