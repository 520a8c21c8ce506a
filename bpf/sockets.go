// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	ebpflink "github.com/cilium/ebpf/link"
)

// The sockets that are told apart, which index the fields of [SocketCounters].
const (
	SocketTCP  = int(socketsSocketCounterSEND_TCP) // MPTCP, too
	SocketUDP  = int(socketsSocketCounterSEND_UDP)
	SocketUnix = int(socketsSocketCounterSEND_UNIX)
)

// SocketCounters is what the processes of a cgroup, and of those below it, have sent and received.
type SocketCounters struct{ Send, Receive [SocketUnix + 1]SocketCalls }

// SocketCalls are calls that did not fail, and the payload that they moved. A datagram is a call,
// however many one system call takes.
type SocketCalls struct{ Calls, Bytes uint64 }

// sockets is the object of the programs that count what processes send and receive.
type sockets struct {
	objects socketsObjects
	links   []ebpflink.Link
}

// LoadSockets has counted what the processes of cgroups send and receive at their sockets, on the
// slots of targets that say Sockets: [Datapath.ReadSockets]. It counts while the datapath is open,
// and what was counted stays with the slot.
//
// It comes after [Datapath.LoadTCP], and needs Linux 6.3 with BTF, CAP_BPF and CAP_PERFMON.
func (d *Datapath) LoadSockets() error {
	if d.TCP == nil {
		return errors.New("load the programs for sockets: the program for connections, whose slots they use, is not loaded")
	}
	spec, err := loadSockets()
	if err != nil {
		return err
	}
	loaded := &sockets{}
	replaced := map[string]*ebpf.Map{socketsMapChunks: d.maps.Chunks}
	err = spec.LoadAndAssign(&loaded.objects, &ebpf.CollectionOptions{MapReplacements: replaced})
	if err != nil {
		return fmt.Errorf("load the programs for sockets: %w", cmp.Or(HaveSocketTracepoints(), err))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.taken {
		if s.Sockets && d.CgroupBound(s) {
			err = errors.Join(err, loaded.bind(s))
		}
	}
	if err = errors.Join(err, loaded.attach()); err != nil {
		return errors.Join(err, loaded.close())
	}
	d.sockets = loaded
	return nil
}

// HaveSocketTracepoints returns why [Datapath.LoadSockets] can't work with this kernel, nil if it can.
func HaveSocketTracepoints() error {
	kernel, err := btf.LoadKernelSpec()
	if err == nil {
		_, err = kernel.AnyTypeByName("btf_trace_sock_send_length")
	}
	if err != nil {
		return fmt.Errorf("find the tracepoint sock_send_length: %w (needs Linux 6.3 with BTF)", err)
	}
	return nil
}

// CountsSockets reports whether what processes send and receive is counted.
func (d *Datapath) CountsSockets() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.sockets != nil
}

func (s *sockets) attach() error {
	for _, program := range []*ebpf.Program{s.objects.NettallySend, s.objects.NettallyReceive} {
		attached, err := ebpflink.AttachTracing(ebpflink.TracingOptions{Program: program})
		if err != nil {
			return fmt.Errorf("attach %s: %w", program, err)
		}
		s.links = append(s.links, attached)
	}
	return nil
}

func (s *sockets) bind(slot Slot) error {
	if s == nil {
		return nil
	}
	if err := s.objects.SocketSlots.Put(slot.Cgroup, uint32(slot.Index)); err != nil {
		return fmt.Errorf("bind the sockets of cgroup %d to slot %d: %w", slot.Cgroup, slot.Index, err)
	}
	return nil
}

// unbind undoes bind, unless the cgroup has another slot by now.
func (s *sockets) unbind(slot Slot) error {
	if s == nil {
		return nil
	}
	var bound uint32
	err := s.objects.SocketSlots.Lookup(slot.Cgroup, &bound)
	if err == nil && bound == uint32(slot.Index) {
		err = s.objects.SocketSlots.Delete(slot.Cgroup)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (s *sockets) close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, s.objects.Close())...)
}

// ReadSockets returns what was counted of the sockets of a slot for connections so far. Each number
// only grows.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) ReadSockets(s Slot) (SocketCounters, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.valid(s) {
		return SocketCounters{}, ErrReleased
	}
	sum := d.chunks[chunkOf(s.Index)].sum(s.Index, transmit) // the second row
	return socketCounters((*words)(unsafe.Pointer(&sum))), nil
}

func socketCounters(row *words) (c SocketCounters) {
	calls := func(at int) SocketCalls {
		return SocketCalls{Calls: row[at], Bytes: row[at+int(socketsSocketCounterBYTES)]}
	}
	for kind := range c.Send {
		c.Send[kind] = calls(int(socketsSocketCounterSEND_TCP) + kind)
		c.Receive[kind] = calls(int(socketsSocketCounterRECEIVE_TCP) + kind)
	}
	return c
}
