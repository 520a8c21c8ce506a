// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/nettally/nettally/internal/testnet/need"
)

// unspecified is TC_ACT_UNSPEC: the filters after ours decide.
const unspecified = ^uint32(0)

// The cells of [Counters].
const (
	tcp4 = iota
	udp4
	icmp4
	other4
	tcp6
	udp6
	icmp6
	other6
	nonIP
)

// load loads the datapath for one test.
func load(tb testing.TB, o Options) *Datapath {
	tb.Helper()
	need.Root(tb)
	d, err := Load(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

func take(tb testing.TB, d *Datapath, ifindex int) Slot {
	tb.Helper()
	s, err := d.Take(Target{Ifindex: ifindex})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// gso is the part of struct __sk_buff that a test run can set.
type gso struct {
	GSOSize uint32
	GSOSegs uint32
}

// words returns the context as the words of struct __sk_buff in linux/bpf.h.
func (c gso) words() []uint32 {
	const gsoSegs, gsoSize, size = 41, 44, 48
	words := make([]uint32, size)
	words[gsoSegs], words[gsoSize] = c.GSOSegs, c.GSOSize
	return words
}

// outcome is what the classifiers made of one packet.
type outcome struct {
	Counters
	Trouble string // how it is counted in Unclassified or Uncounted, if it is
}

// lab runs packets by hand. The programs for clsact count on slot 0 there, since a test
// run cannot set tc_classid, and those for tcx on slot 1, which the loopback interface is
// bound to.
type lab struct {
	*Datapath
	out []byte
}

// loopback is the ifindex that a test run has unless it says another.
const loopback = 1

func newLab(tb testing.TB) *lab {
	tb.Helper()
	d := load(tb, Options{})
	s := take(tb, d, loopback) // slot 1, in the chunk that has the rows of slot 0
	if err := d.Bind(s); err != nil {
		tb.Fatal(err)
	}
	return &lab{Datapath: d, out: make([]byte, 1<<12)}
}

func (l *lab) counted(program *ebpf.Program) Counters {
	switch program {
	case l.Egress:
		return l.sum(0, receive)
	case l.TCXEgress:
		return l.sum(1, receive)
	case l.TCXIngress:
		return l.sum(1, transmit)
	}
	return l.sum(0, transmit)
}

func (l *lab) troubles() map[string]uint64 {
	troubles := l.Unclassified()
	for cause, count := range l.Uncounted() {
		troubles[cause] = count
	}
	return troubles
}

var errChanged = errors.New("the packet was changed")

// try runs one packet through a program, and says what it counted.
func (l *lab) try(program *ebpf.Program, packet []byte, c gso) (outcome, error) {
	row, troubles := l.counted(program), l.troubles()
	options := ebpf.RunOptions{Data: packet, DataOut: l.out[:len(packet)]}
	if c != (gso{}) {
		options.Context = c.words()
	}
	verdict, err := program.Run(&options)
	switch {
	case err != nil:
		return outcome{}, err
	case verdict != unspecified:
		return outcome{}, errors.New("the verdict was not TC_ACT_UNSPEC")
	case !bytes.Equal(options.DataOut, packet):
		return outcome{}, errChanged
	}
	o := outcome{Counters: minus(l.counted(program), row)}
	for cause, count := range l.troubles() {
		for range count - troubles[cause] {
			o.Trouble += cause
		}
	}
	return o, nil
}

func (l *lab) run(tb testing.TB, program *ebpf.Program, packet []byte, c gso) outcome {
	tb.Helper()
	o, err := l.try(program, packet, c)
	if err != nil {
		tb.Fatalf("run %d bytes with %+v: %v\n%.200x", len(packet), c, err, packet)
	}
	return o
}

func minus(a, b Counters) Counters {
	type words [unsafe.Sizeof(Counters{}) / 8]uint64
	to, from := (*words)(unsafe.Pointer(&a)), (*words)(unsafe.Pointer(&b))
	for i := range to {
		to[i] -= from[i]
	}
	return a
}
