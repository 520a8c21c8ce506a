// SPDX-License-Identifier: Apache-2.0

package bpf

import (
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
	*ebpf.Collection
	links []ebpflink.Link
}

// Two ways to count sockets: the kernel's tracepoints or functions, each with its program.
// The functions are those of struct proto_ops, and every call passes just one that is counted.
var (
	socketTracepoints = map[string]string{
		"sock_send_length": socketsProgNettallySend,
		"sock_recv_length": socketsProgNettallyReceive,
	}
	socketFunctions = map[string]string{
		"inet_sendmsg":           socketsProgNettallySendmsg,
		"inet6_sendmsg":          socketsProgNettallySendmsg,
		"unix_stream_sendmsg":    socketsProgNettallySendmsg,
		"unix_seqpacket_sendmsg": socketsProgNettallySendmsg,
		"unix_dgram_sendmsg":     socketsProgNettallySendDgram,
		"unix_stream_sendpage":   socketsProgNettallySendpage,
		"inet_sendpage":          socketsProgNettallyInetPage,
		"sock_no_sendpage":       socketsProgNettallyNoPage,
		"inet_recvmsg":           socketsProgNettallyRecvmsg,
		"inet6_recvmsg":          socketsProgNettallyRecvmsg,
		"unix_stream_recvmsg":    socketsProgNettallyRecvmsg,
		"unix_seqpacket_recvmsg": socketsProgNettallyRecvmsg,
		"unix_dgram_recvmsg":     socketsProgNettallyRecvDgram,
	}
)

// LoadSockets has counted what the processes of cgroups send and receive at their sockets, on the
// slots of targets that say Sockets: [Datapath.ReadSockets]. It counts while the datapath is open,
// and what was counted stays with the slot.
//
// It comes after [Datapath.LoadTCP], and needs a kernel with BTF, CAP_BPF and CAP_PERFMON. Before
// Linux 6.5 it needs trampolines to the kernel's functions, too: amd64, or arm64 since Linux 6.4.
func (d *Datapath) LoadSockets() error {
	if d.TCP == nil {
		return errors.New("load the programs for sockets: the program for connections, whose slots they use, is not loaded")
	}
	loaded, err := loadSocketPrograms(map[string]*ebpf.Map{socketsMapChunks: d.maps.Chunks})
	if err != nil {
		return fmt.Errorf("load the programs for sockets: %w", err)
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

// loadSocketPrograms loads the programs that are right for this kernel, with some maps of others in
// place of their own.
func loadSocketPrograms(replaced map[string]*ebpf.Map) (*sockets, error) {
	programs, err := socketPrograms()
	if err != nil {
		return nil, err
	}
	spec, err := loadSockets()
	if err != nil {
		return nil, err
	}
	all := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	for target, name := range programs {
		spec.Programs[target] = all[name].Copy()
		spec.Programs[target].AttachTo = target
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replaced})
	if err != nil {
		return nil, err
	}
	return &sockets{Collection: loaded}, nil
}

// socketPrograms returns where sockets are counted, and by which program.
func socketPrograms() (map[string]string, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("find the kernel's types: %w (needs a kernel with BTF)", err)
	}
	// Where there are functions for pages, the tracepoints don't tell of sendfile and splice.
	var pages *btf.Func
	if kernel.TypeByName("inet_sendpage", &pages) != nil {
		if _, err := kernel.AnyTypeByName("btf_trace_sock_send_length"); err != nil {
			return nil, fmt.Errorf("find the tracepoint sock_send_length: %w (needs Linux 6.3)", err)
		}
		return socketTracepoints, nil
	}
	for name := range socketFunctions {
		var function *btf.Func
		if err := kernel.TypeByName(name, &function); err != nil {
			return nil, fmt.Errorf("find the function %s: %w", name, err)
		}
	}
	// That came with the fix by which a function that a program was taken off may still end.
	if _, err := kernel.AnyTypeByName("bpf_tramp_image"); err != nil {
		return nil, fmt.Errorf("find trampolines that can be taken off safely: %w (needs Linux 5.12, or 5.10 with its updates)", err)
	}
	return socketFunctions, nil
}

// SocketsCountedBy says by what [Datapath.LoadSockets] counts with this kernel, or why it can't. To
// know it, it attaches the programs for a moment, in which they count nothing. It needs what
// LoadSockets does.
func SocketsCountedBy() (string, error) {
	loaded, err := loadSocketPrograms(nil)
	if err != nil {
		return "", fmt.Errorf("load the programs for sockets: %w", err)
	}
	by := "the tracepoints sock_send_length and sock_recv_length"
	if _, ok := loaded.Programs["inet_sendmsg"]; ok {
		by = "the kernel's functions (fexit)"
	}
	if err := errors.Join(loaded.attach(), loaded.close()); err != nil {
		return "", err
	}
	return by, nil
}

// CountsSockets reports whether what processes send and receive is counted.
func (d *Datapath) CountsSockets() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.sockets != nil
}

func (s *sockets) attach() error {
	for target, program := range s.Programs {
		attached, err := ebpflink.AttachTracing(ebpflink.TracingOptions{Program: program})
		if errors.Is(err, ebpflink.ErrNotSupported) {
			return fmt.Errorf("attach a program to %s: %w (before Linux 6.5 needs amd64, or arm64 with Linux 6.4)", target, err)
		}
		if err != nil {
			return fmt.Errorf("attach a program to %s: %w", target, err)
		}
		s.links = append(s.links, attached)
	}
	return nil
}

func (s *sockets) bind(slot Slot) error {
	if s == nil {
		return nil
	}
	if err := s.Maps[socketsMapSocketSlots].Put(slot.Cgroup, uint32(slot.Index)); err != nil {
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
	err := s.Maps[socketsMapSocketSlots].Lookup(slot.Cgroup, &bound)
	if err == nil && bound == uint32(slot.Index) {
		err = s.Maps[socketsMapSocketSlots].Delete(slot.Cgroup)
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
	s.Collection.Close()
	return errors.Join(errs...)
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
