// SPDX-License-Identifier: Apache-2.0

package usage

import "time"

// Conntrack is what the kernel's connection tracking in the host's network namespace has of a
// container. Nil where it is not counted.
type Conntrack struct {
	Since  time.Time // Opened and Closed count from then on
	Listed bool      // the numbers of entries are known
	Told   bool      // Opened and Closed are: the kernel tells of both

	Receive  [Protocols]Connections // opened from outside
	Transmit [Protocols]Connections // opened by the container
}

// Connections are entries of the connection tracking.
type Connections struct {
	Established uint64 // that there are now, of TCP in the state ESTABLISHED, of others answered
	Other       uint64 // that there are now
	Opened      uint64
	Closed      uint64
}
