// SPDX-License-Identifier: Apache-2.0

package live

import (
	"maps"
	"sync"
	"time"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// Message is an event, for all viewers that get it.
type Message struct {
	// Event is one of Containers, Sample, Started, Stopped, Removed, QuotaState and Alert. It is not
	// to be changed.
	Event any

	once sync.Once
	text []byte
}

// Text returns what encode makes of the event. It is called once, whoever asks.
func (m *Message) Text(encode func(event any) []byte) []byte {
	m.once.Do(func() { m.text = encode(m.Event) })
	return m.text
}

// Used is what was used in one direction.
type Used struct {
	usage.Volume        // wire numbers, or those from the IP header on where its cgroup tells them
	SYN          uint64 // TCP connection requests
}

// Amount is a total in one direction.
type Amount struct {
	Used
	Seeded usage.Volume // the part that belongs to no time
}

// Connections are the TCP connections of a container's sockets in its life.
type Connections struct {
	Known    bool   // whether all of them are counted; the numbers are 0 where they are not
	Connects uint64 // established by an attempt
	Accepts  uint64
	Failures uint64 // attempts that ended otherwise
	Resets   uint64
}

// Total is what a container has used in its life.
type Total struct {
	ID                string
	Receive, Transmit Amount
	TCP               Connections
}

// CountedBy says what a container's totals are counted by.
type CountedBy string

// The ways of counting.
const (
	ByNothing    CountedBy = ""
	ByInterfaces CountedBy = "interfaces"
	ByCgroup     CountedBy = "cgroup"
)

// Container is a container and its totals.
type Container struct {
	Total
	User, Name, Runtime, Image, Namespace, Pod string
	Labels                                     map[string]string // not to be changed
	Cgroup                                     string
	State                                      usage.State
	StartedAt, StoppedAt                       time.Time
	// Network is "bridge", "host", "none", "container:" and a name, the name of a network, or "".
	Network   string
	CountedBy CountedBy
	// Recalled is false while it is not known what was counted earlier: the totals will jump.
	Recalled bool
	PartOf   string // the container whose numbers include these, or ""
	ParentID string // the container that it is nested in, whose connections include its own, or ""
	Reason   usage.Reason
	Kernel   string
}

// Accounted says whether the container's traffic is counted.
func (c *Container) Accounted() bool { return c.Reason == usage.Accounted }

// is says whether the two are the same but for their totals.
func (c *Container) is(d *Container) bool {
	return c.Name == d.Name && c.State == d.State && c.Reason == d.Reason && c.CountedBy == d.CountedBy &&
		c.Recalled == d.Recalled && c.PartOf == d.PartOf && c.ParentID == d.ParentID && c.Network == d.Network && c.User == d.User &&
		c.Runtime == d.Runtime && c.Image == d.Image && c.Namespace == d.Namespace && c.Pod == d.Pod &&
		c.Cgroup == d.Cgroup && c.Kernel == d.Kernel && c.StartedAt.Equal(d.StartedAt) &&
		c.StoppedAt.Equal(d.StoppedAt) && maps.Equal(c.Labels, d.Labels)
}

// Reading says when totals were read.
type Reading struct {
	TakenAt time.Time
	Boot    time.Duration // CLOCK_BOOTTIME: rates go by it, whatever the wall clock does
}

// Containers are those that are new or have another identity, or with Replace all there are.
type Containers struct {
	Reading
	Replace    bool
	Containers []Container // by start, then id
}

// Sample has the totals that have changed.
type Sample struct {
	Reading
	Totals []Total
}

// Started says that a container that was not there, or not running, runs.
type Started struct{ ID, Name string }

// Stopped says that a container has ended. It stays among the containers until it is Removed.
type Stopped struct {
	ID, Name string
	At       time.Time
}

// Removed says which containers are forgotten.
type Removed struct{ IDs []string }

// QuotaState says how quotas stand.
type QuotaState struct {
	Quotas   []quota.Status            // the 500 with the highest ratios
	Foremost map[string]quota.Foremost // by container
}

// Alert is an alert that fires, or is resolved.
type Alert struct{ quota.Alert }
