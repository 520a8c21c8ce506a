// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"

	"github.com/nettally/nettally/bpf"
)

// The sockets that [Sockets] tells apart.
const (
	SocketTCP  = bpf.SocketTCP // MPTCP, too
	SocketUDP  = bpf.SocketUDP
	SocketUnix = bpf.SocketUnix
)

// Sockets is what the processes of a container, and of those inside it, have sent and received, by
// the kind of the socket.
type Sockets bpf.SocketCounters

// SocketCalls are calls that did not fail, and the bytes of payload that they moved.
type SocketCalls = bpf.SocketCalls

// Plus returns the sum of two, as [Add] makes it.
func (s Sockets) Plus(u Sockets) Sockets {
	for kind := range s.Send {
		s.Send[kind] = callsPlus(s.Send[kind], u.Send[kind])
		s.Receive[kind] = callsPlus(s.Receive[kind], u.Receive[kind])
	}
	return s
}

func callsPlus(c, d SocketCalls) SocketCalls {
	return SocketCalls{Calls: Add(c.Calls, d.Calls), Bytes: Add(c.Bytes, d.Bytes)}
}

// readSockets reads the slot of connections, which is ours as in [attachment.read].
func (at *attachment) readSockets(d Datapath) Sockets {
	n, err := d.ReadSockets(at.slot)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an attachment was released: " + at.slot.Target.String())
	}
	return Sockets(n)
}
