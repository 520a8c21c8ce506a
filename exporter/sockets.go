// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
)

// socketLabels are those of what passes sockets.
var socketLabels = []string{"container_id", "name", "namespace", "pod", "protocol"}

// socketKinds names the kinds of sockets.
var socketKinds = [...]string{usage.SocketTCP: "tcp", usage.SocketUDP: "udp", usage.SocketUnix: "unix"}

// socketDescs are of what the processes of a container send and receive.
type socketDescs struct{ sendCalls, sendBytes, receiveCalls, receiveBytes *prometheus.Desc }

func (d *descs) addSockets() socketDescs {
	add := func(name, help string) *prometheus.Desc {
		return d.add("nettally_container_socket_"+name+"_total", help, socketLabels...)
	}
	return socketDescs{
		sendCalls:    add("send_calls", "Calls by which the container's processes sent something. A datagram is a call."),
		sendBytes:    add("send_bytes", "Bytes of payload that the container's processes sent."),
		receiveCalls: add("receive_calls", "Calls by which the container's processes received something, or the end of a connection. A datagram is a call."),
		receiveBytes: add("receive_bytes", "Bytes of payload that the container's processes received."),
	}
}

// sockets sends what was counted at a container's sockets.
func (s *scrape) sockets(c *usage.Container, of series) {
	to, since := &s.descs.sockets, created(c.TCPSince)
	for kind, name := range socketKinds {
		labels := pairs(socketLabels, of.id, of.name, of.namespace, of.pod, name)
		s.counter(to.sendCalls, labels, c.Sockets.Send[kind].Calls, since)
		s.counter(to.sendBytes, labels, c.Sockets.Send[kind].Bytes, since)
		s.counter(to.receiveCalls, labels, c.Sockets.Receive[kind].Calls, since)
		s.counter(to.receiveBytes, labels, c.Sockets.Receive[kind].Bytes, since)
	}
}

// Sockets is what a container's processes sent and received at their sockets, in JSON.
type Sockets struct {
	Send    SocketCallsByProtocol `json:"send"`
	Receive SocketCallsByProtocol `json:"receive"`
}

// SocketCallsByProtocol splits calls by the kind of the socket.
type SocketCallsByProtocol struct {
	TCP  SocketCalls `json:"tcp"`
	UDP  SocketCalls `json:"udp"`
	Unix SocketCalls `json:"unix"`
}

// SocketCalls are calls and the payload that they moved.
type SocketCalls struct {
	Calls uint64 `json:"calls"`
	Bytes uint64 `json:"bytes"`
}

func socketsOf(s *usage.Sockets) *Sockets {
	if s == nil {
		return nil
	}
	of := func(all *[usage.SocketUnix + 1]usage.SocketCalls) SocketCallsByProtocol {
		return SocketCallsByProtocol{
			TCP: SocketCalls(all[usage.SocketTCP]), UDP: SocketCalls(all[usage.SocketUDP]), Unix: SocketCalls(all[usage.SocketUnix]),
		}
	}
	return &Sockets{Send: of(&s.Send), Receive: of(&s.Receive)}
}
