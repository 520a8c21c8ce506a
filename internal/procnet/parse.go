// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/nettally/nettally/internal/usage"
)

// volume is an amount of traffic.
type volume = usage.Volume

// duplex is both directions, as the container sees them.
type duplex struct{ receive, transmit volume }

// deviceReading is what the kernel has counted on an interface.
type deviceReading struct {
	duplex
	lost losses
}

// losses is what the kernel has lost on an interface, in packets.
type losses struct{ receive, transmit usage.Loss }

// less says whether a number is lower than it was.
func (d duplex) less(was duplex) bool {
	return d.receive.Bytes < was.receive.Bytes || d.receive.Packets < was.receive.Packets ||
		d.transmit.Bytes < was.transmit.Bytes || d.transmit.Packets < was.transmit.Packets
}

// parseDev reads a net/dev file: what the kernel has counted on each interface of a
// namespace, by name. Two lines of headings come first, then a line per interface with 8
// numbers of what it received and 8 of what it transmitted: bytes, packets, errors, drops, and
// what is not used (dev_seq_printf_stats in net/core/net-procfs.c).
func parseDev(text []byte) (map[string]deviceReading, error) {
	const columns, transmit = 16, 8
	found := map[string]deviceReading{}
	for number, line := range bytes.Split(text, []byte("\n")) {
		if number < 2 || len(line) == 0 {
			continue
		}
		// No name of an interface has a colon in it (dev_valid_name).
		name, rest, _ := bytes.Cut(line, []byte(":"))
		name = bytes.TrimSpace(name)
		fields := bytes.Fields(rest)
		if len(name) == 0 || len(fields) < columns {
			return nil, fmt.Errorf("parse net/dev: line %d: expected a name and %d numbers, got %q", number+1, columns, line)
		}
		var numbers [columns]uint64
		for i := range numbers {
			var err error
			if numbers[i], err = parseNumber(fields[i]); err != nil {
				return nil, fmt.Errorf("parse net/dev: line %d: %w", number+1, err)
			}
		}
		in, out := numbers[:transmit], numbers[transmit:]
		found[string(name)] = deviceReading{
			duplex{receive: volume{Bytes: in[0], Packets: in[1]}, transmit: volume{Bytes: out[0], Packets: out[1]}},
			losses{receive: usage.Loss{Errors: in[2], Dropped: in[3]}, transmit: usage.Loss{Errors: out[2], Dropped: out[3]}},
		}
	}
	return found, nil
}

// connections is what a namespace's TCP has opened.
type connections struct{ active, passive uint64 }

// parseSNMP reads the connections from a net/snmp file: for each protocol a line of names
// and one of values (snmp_seq_show in net/ipv4/proc.c).
func parseSNMP(text []byte) (connections, error) {
	var names [][]byte
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		return connectionsIn(names, fields)
	}
	return connections{}, errors.New("parse net/snmp: expected two lines of Tcp")
}

func connectionsIn(names, values [][]byte) (found connections, err error) {
	missing := map[string]*uint64{"ActiveOpens": &found.active, "PassiveOpens": &found.passive}
	for i, name := range names[:min(len(names), len(values))] {
		to := missing[string(name)]
		if to == nil {
			continue
		}
		if *to, err = parseNumber(values[i]); err != nil {
			return connections{}, fmt.Errorf("parse net/snmp: %s: %w", name, err)
		}
		delete(missing, string(name))
	}
	if len(missing) > 0 {
		return connections{}, errors.New("parse net/snmp: expected ActiveOpens and PassiveOpens among those of Tcp")
	}
	return found, nil
}

// ipv6 is what passed the IPv6 layer of an interface: bytes from the IP header on.
type ipv6 struct {
	index int // of the interface
	duplex
}

// parseSNMP6 reads a file of net/dev_snmp6, which has the lines of net/snmp6 for one
// interface, and its index before them: a name and a number in each
// (snmp6_dev_seq_show in net/ipv6/proc.c).
func parseSNMP6(text []byte) (found ipv6, err error) {
	var index uint64
	missing := map[string]*uint64{
		"ifIndex":       &index,
		"Ip6InReceives": &found.receive.Packets, "Ip6InOctets": &found.receive.Bytes,
		"Ip6OutRequests": &found.transmit.Packets, "Ip6OutOctets": &found.transmit.Bytes,
	}
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) != 2 || missing[string(fields[0])] == nil {
			continue
		}
		if *missing[string(fields[0])], err = parseNumber(fields[1]); err != nil {
			return ipv6{}, fmt.Errorf("parse net/dev_snmp6: %s: %w", fields[0], err)
		}
		delete(missing, string(fields[0]))
	}
	if len(missing) > 0 || index == 0 || index > maxIndex {
		return ipv6{}, errors.New("parse net/dev_snmp6: expected ifIndex, Ip6InReceives, Ip6InOctets, Ip6OutRequests and Ip6OutOctets")
	}
	found.index = int(index)
	return found, nil
}

// maxIndex is the greatest index of an interface: the kernel has it as an int.
const maxIndex = 1<<31 - 1

// parseIGMP reads the indexes of the interfaces that are up from a net/igmp file, by
// name: each is in the group of all hosts. A line per interface begins with its index,
// one per group with a tab (igmp_mc_seq_show in net/ipv4/igmp.c).
func parseIGMP(text []byte) (map[string]int, error) {
	found := map[string]int{}
	for number, line := range bytes.Split(text, []byte("\n")) {
		if number == 0 || len(line) == 0 || line[0] == '\t' {
			continue
		}
		before, _, ok := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(before)
		if !ok || len(fields) != 2 {
			return nil, fmt.Errorf("parse net/igmp: line %d: expected an index and a name, got %q", number+1, line)
		}
		index, err := parseNumber(fields[0])
		if err != nil || index == 0 || index > maxIndex {
			return nil, fmt.Errorf("parse net/igmp: line %d: expected an index, got %q", number+1, fields[0])
		}
		found[string(fields[1])] = int(index)
	}
	return found, nil
}

func parseNumber(text []byte) (uint64, error) {
	number, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("expected a number, got %q", text)
	}
	return number, nil
}
