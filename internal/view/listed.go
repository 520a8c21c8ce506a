// SPDX-License-Identifier: Apache-2.0

package view

import (
	"strings"

	"github.com/nettally/nettally/exporter"
)

// Listed returns the body of GET /api/v1/containers as the event that begins a stream.
func Listed(found *exporter.Containers) *exporter.StreamContainers {
	names := make(map[string]string, len(found.Containers))
	for i := range found.Containers {
		names[found.Containers[i].ID] = found.Containers[i].Name
	}
	e := &exporter.StreamContainers{Replace: true, Source: found.Source}
	e.TakenAt, e.BootMS = found.TakenAt, found.BootMS
	for i := range found.Containers {
		c := Identity(&found.Containers[i])
		c.Network = network(&found.Containers[i], names)
		e.Containers = append(e.Containers, c)
	}
	return e
}

// Identity returns a container as a stream has it, but for the word for its network.
func Identity(c *exporter.Container) exporter.StreamContainer {
	s := exporter.StreamContainer{
		ID: c.ID, Name: c.Name, Runtime: c.Runtime, Image: c.Image, Namespace: c.Namespace, Pod: c.Pod,
		User: c.User, Labels: c.Labels, Cgroup: c.Cgroup, State: c.State, StartedAt: c.StartedAt, StoppedAt: c.StoppedAt,
		CountedBy: c.CountedBy, Recalled: c.Recalled, PartOf: c.PartOf,
		Accounted: c.Accounted, Reason: c.Reason, Kernel: c.Kernel, ParentID: c.ParentID,
	}
	if t := c.TCP; t != nil && t.Connects != nil && t.ConnectFailures != nil {
		s.TCP = &exporter.StreamTCP{Connects: *t.Connects, Accepts: t.Accepts, ConnectFailures: *t.ConnectFailures, Resets: t.Resets}
	}
	if c.CountedBy == "cgroup" && c.IP != nil {
		s.Receive, s.Transmit = streamed(c.IP.Receive.Volume, c.IP.Receive.TCPSYN), streamed(c.IP.Transmit.Volume, c.IP.Transmit.TCPSYN)
		return s
	}
	s.Receive, s.Transmit = streamed(c.Receive.Volume, c.Receive.TCPSYN), streamed(c.Transmit.Volume, c.Transmit.TCPSYN)
	s.Receive.SeededBytes, s.Receive.SeededPackets = c.Receive.SeededBytes, c.Receive.SeededPackets
	s.Transmit.SeededBytes, s.Transmit.SeededPackets = c.Transmit.SeededBytes, c.Transmit.SeededPackets
	return s
}

func streamed(v exporter.Volume, syn uint64) (c exporter.StreamCounts) {
	c.Bytes, c.Packets, c.TCPSYN = v.Bytes, v.Packets, syn
	return c
}

// network returns the word for a container's network. A runtime names the container that it is
// shared with by its id.
func network(c *exporter.Container, names map[string]string) string {
	other, shared := strings.CutPrefix(c.NetworkMode, "container:")
	switch {
	case c.OnHost:
		return "host"
	case c.SharesWith != "":
		other = c.SharesWith
	case !shared:
		return c.NetworkMode
	}
	if name := names[other]; name != "" && name != other {
		return "container:" + name
	}
	return "container:" + ShortID(other)
}

// NamedByGlob is what [Names] returns for a glob. What is higher is a whole name.
const NamedByGlob = 2

// Names reports whether a word that people type means a container, and how well: the highest
// number is the best. It may be the id (6), the name of a container that runs (5) or has ended
// (4), namespace/pod/name (3), a glob of these (2), or the beginning of the id (1); 0 is not at all.
func Names(word string, c *exporter.StreamContainer) (fits int) {
	row := Row{Container: c}
	glob := strings.ContainsAny(word, `*?[`)
	switch {
	case word == "":
		return 0
	case word == c.ID:
		return 6
	case word == c.Name && c.State != stopped:
		return 5
	case word == c.Name:
		return 4
	case word == row.Label():
		return 3
	case glob && (like(word, c.Name) || like(word, row.Label()) || like(word, c.ID)):
		return NamedByGlob
	case strings.HasPrefix(c.ID, word):
		return 1
	}
	return 0
}
