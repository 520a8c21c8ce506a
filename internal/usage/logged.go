// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"time"

	"github.com/nettally/nettally/bpf"
)

// LoggedRequests is how often a connection was asked for, by what the host's firewall rules log.
type LoggedRequests struct {
	Connections uint64 // of all protocols
	SYN         uint64 // of TCP; retransmitted ones too
}

// Plus returns the sum of two.
func (r LoggedRequests) Plus(s LoggedRequests) LoggedRequests {
	return LoggedRequests{Connections: Add(r.Connections, s.Connections), SYN: Add(r.SYN, s.SYN)}
}

// Logged is what the host's firewall rules log of a container.
type Logged struct {
	Receive  LoggedRequests
	Transmit LoggedRequests
	Since    time.Time // it is counted
}

// LogState says how complete [Logged] is. The numbers are of this process.
type LogState struct {
	Group        uint16
	Bound        bool   // the group is ours: what is logged now is counted
	Logged       uint64 // packets that came
	Lost         uint64 // packets that the kernel logged and could not deliver
	Overruns     uint64 // times that the queue was full
	Ignored      uint64 // packets that ask for no connection
	Unattributed uint64 // requests of containers that were not found
}

// Slot returns the slot that a target is counted on.
func (s *Slots) Slot(target Target) (_ bpf.Slot, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.attachments[target]
	if at == nil {
		return bpf.Slot{}, false
	}
	return at.slot, true
}

// Account returns the id of the account that a target is counted for, "" if nobody owns it.
// Unlike [Slots.Owner] it is the others' account for a container beyond the bounds.
func (s *Slots) Account(target Target) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.attachments[target]; at != nil && at.tally != nil && at.tally.account != nil {
		return at.tally.account.ID
	}
	return ""
}
