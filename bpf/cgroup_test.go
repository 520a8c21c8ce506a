// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet"
)

// cgroupLab runs packets through the programs for cgroups, which count on slot 0 there: a
// test run has no cgroup.
type cgroupLab struct {
	*lab
	netns   *testnet.Namespace
	ifindex uint32 // of a device that is not loopback
}

func newCgroupLab(t *testing.T) *cgroupLab {
	t.Helper()
	c := newCableUncounted(t, true)
	return &cgroupLab{lab: newLab(t), netns: c.host, ifindex: uint32(c.hostEnd.Attrs().Index)}
}

// passes is what a program for cgroups returns to let a packet pass.
const passes = 1

// try runs one packet, with an Ethernet header that the program does not see, as if it were
// on a device of the thread's namespace.
func (l *cgroupLab) try(program *ebpf.Program, packet []byte, c gso, ifindex uint32) (outcome, error) {
	direction := transmit
	if program == l.CgroupIngress {
		direction = receive
	}
	row, troubles := l.sum(0, direction), l.troubles()
	context := c.words()
	context[skbIfindex] = ifindex
	options := ebpf.RunOptions{Data: packet, DataOut: l.out[:len(packet)], Context: context}
	verdict, err := program.Run(&options)
	switch {
	case err != nil:
		return outcome{}, err
	case verdict != passes:
		return outcome{}, fmt.Errorf("the verdict was %d", verdict)
	case !bytes.Equal(packet[ethernet:], options.DataOut[ethernet:]): // that the kernel puts back empty
		return outcome{}, errChanged
	}
	o := outcome{Counters: minus(l.sum(0, direction), row)}
	for cause, count := range l.troubles() {
		for range count - troubles[cause] {
			o.Trouble += cause
		}
	}
	return o, nil
}

// Packets without an Ethernet header are counted as gopacket reads them, in both directions.
func TestCgroupDifferential(t *testing.T) {
	const seed, rounds = 2, 100_000
	l := newCgroupLab(t)
	m := newMutator(seed)
	must(t, l.netns.Do(func() error { return l.compare(m, rounds) }))
}

func (l *cgroupLab) compare(m *mutator, rounds int) error {
	for i := range rounds {
		packet, c := m.next()
		if kind := binary.BigEndian.Uint16(packet[12:]); kind != ipv4Type && kind != ipv6Type {
			continue // a socket has no other packets
		}
		program := l.CgroupIngress
		if i%2 == 0 {
			program = l.CgroupEgress
		}
		got, err := l.try(program, packet, c, l.ifindex)
		if err != nil {
			return fmt.Errorf("packet %d: %w: %+v %x", i, err, c, packet)
		}
		want, d := expectIP(packet, c)
		if got.Counters != want || !d.is(got.Trouble) {
			return fmt.Errorf("packet %d: classifier says %q, gopacket that doubt is %v\n%+v %x\n(-gopacket +classifier)\n%s",
				i, got.Trouble, d, c, packet, cmp.Diff(want, got.Counters))
		}
	}
	return nil
}

// What passes the loopback interface has a cell of its own, and is nothing else.
func TestCgroupLoopback(t *testing.T) {
	l := newCgroupLab(t)
	packet := join(eth(ipv4Type), ipv4(tcp, segment(synFlag, 0, 0)))
	var want Counters
	want.Cells[nonIP] = Volume{Bytes: uint64(len(packet) - 14), Packets: 1}
	for _, program := range []*ebpf.Program{l.CgroupIngress, l.CgroupEgress} {
		var got outcome
		must(t, l.netns.Do(func() (err error) {
			got, err = l.try(program, packet, gso{}, loopback)
			return err
		}))
		if diff := cmp.Diff(want, got.Counters); diff != "" || got.Trouble != "" {
			t.Errorf("%v: %s (-want +got):\n%s", program, got.Trouble, diff)
		}
	}
}
