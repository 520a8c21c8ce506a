// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"fmt"
	"time"
)

// Record is what is kept of a container for good: enough to go on counting it after
// the end of this process, and of the host.
type Record struct {
	Container         // without Interfaces; Traffic and IP are what the Tallies hold
	Tallies   []Tally // of the interfaces by name, then of the cgroup, then of its connections
}

// add adds a tally to the totals.
func (r *Record) add(t Tally) {
	sum := t.Sum()
	switch t.kind() {
	case ofConnections:
		r.addTCP(sum.TCP, false)
		r.Requests = sum.Requests
	case ofNamespace:
		r.addTCP(sum.TCP, r.TCP == nil)
	case ofCgroup:
		r.IP = &sum
	default:
		r.Traffic = r.Traffic.Plus(sum)
	}
}

// addTCP adds connections to the totals.
func (r *Record) addTCP(more TCP, inPart bool) {
	if r.TCP != nil {
		more = r.TCP.Plus(more)
	}
	more.InPart = inPart
	r.TCP = &more
}

// Total makes the totals of a record those of its tallies.
func (r *Record) Total() {
	r.Traffic, r.IP, r.TCP, r.TCPSince, r.Requests = Traffic{}, nil, nil, time.Time{}, nil
	for _, t := range r.Tallies {
		r.add(t)
		switch t.kind() {
		case ofConnections, ofNamespace:
			r.TCPSince = earlier(r.TCPSince, t.AttachedAt)
		case ofCgroup:
			r.IPSince = t.AttachedAt
		}
	}
}

// Tally is the usage of one interface of a container, over all host veths it had, of its
// cgroup, or of connections.
type Tally struct {
	Name          string    `json:"name"` // as the container calls it
	Cgroup        bool      `json:"cgroup,omitempty"`
	Sockets       bool      `json:"sockets,omitempty"` // of the cgroup's connections, or those of network namespaces
	HostInterface string    `json:"host_interface"`
	Hook          string    `json:"hook"`
	At            Place     `json:"at,omitempty"`
	AttachedAt    time.Time `json:"attached_at"`
	// Final is what was counted on host veths that are gone.
	Final Traffic `json:"final"`
	// Attachments are the host veths that are counted, or were until a moment ago.
	Attachments []Attachment `json:"attachments,omitempty"`
}

// Attachment is what one host veth has counted by now. The kernel goes on counting it
// on its slot: after a restart of nettally the slot says more.
type Attachment struct {
	Boot       string `json:"boot"` // the kernel's boot id
	Generation uint64 `json:"generation"`
	Target
	Counted Traffic `json:"counted"`
	Passed  Opens   `json:"passed,omitzero"` // see [Slots.Pass]
	// Told is what the kernel said of a network namespace's connections last, see
	// [Accounts.CountNamespace]; nil of other targets.
	Told *Told `json:"told,omitempty"`
	// Earlier is what was counted of the target before, if that was for other containers.
	Earlier Traffic `json:"earlier,omitzero"`
	// Guest is the container that this is of, on an account for others.
	Guest string `json:"guest,omitempty"`
	// Torn: somebody has taken the programs off, so what the kernel has counted of the target
	// since is to be mended.
	Torn bool `json:"torn,omitempty"`
	// Folded: Counted is part of Final already, and the slot is to be released.
	Folded bool `json:"folded,omitempty"`
}

// Told holds the kernel's last counters of a network namespace, as a slot for it has them.
type Told struct {
	NamespaceTCP
	Generation uint64 `json:"generation"` // of the slot
	// Lost says that what is counted since is not the container's alone, or nobody knows.
	Lost bool `json:"lost,omitempty"`
}

// newer returns the one of two, either of which may be nil, whose slot was taken later.
func (t *Told) newer(u *Told) *Told {
	if t == nil || u != nil && u.Generation > t.Generation {
		return u
	}
	return t
}

func (t Tally) kind() kind {
	switch {
	case t.Sockets && !t.Cgroup:
		return ofNamespace
	case t.Sockets:
		return ofConnections
	case t.Cgroup:
		return ofCgroup
	}
	return ofInterface
}

// Sum returns what a tally holds.
func (t Tally) Sum() Traffic {
	sum := t.Final
	for _, at := range t.Attachments {
		if !at.Folded {
			sum = sum.Plus(at.Counted)
		}
	}
	return sum
}

// fields are the numbers of a Counts in the order they are kept in.
func (c *Counts) fields() []*uint64 {
	fields := []*uint64{
		&c.Interface.Bytes, &c.Interface.Packets, &c.Seeded.Bytes, &c.Seeded.Packets,
		&c.SYN, &c.SYNACK, &c.RST, &c.FIN,
	}
	for f := range c.Cells {
		for p := range c.Cells[f] {
			fields = append(fields, &c.Cells[f][p].Bytes, &c.Cells[f][p].Packets)
		}
	}
	return append(fields, &c.Loopback.Bytes, &c.Loopback.Packets, &c.Mended.Bytes, &c.Mended.Packets)
}

// MarshalJSON keeps counts short: a list of numbers without the zeros at its end.
func (c Counts) MarshalJSON() ([]byte, error) {
	fields := c.fields()
	for len(fields) > 0 && *fields[len(fields)-1] == 0 {
		fields = fields[:len(fields)-1]
	}
	return json.Marshal(fields)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *Counts) UnmarshalJSON(data []byte) error {
	var numbers []uint64
	if err := json.Unmarshal(data, &numbers); err != nil {
		return err
	}
	*c = Counts{}
	fields := c.fields()
	if len(numbers) > len(fields) {
		return fmt.Errorf("read counts: %d numbers, expected at most %d", len(numbers), len(fields))
	}
	for i, n := range numbers {
		*fields[i] = n
	}
	return nil
}
