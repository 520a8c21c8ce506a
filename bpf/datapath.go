// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the classifiers and their counters: it loads them into the
// kernel and reads what they counted.
//
// One pair of programs serves every interface. A filter's classid names its slot
// (16 bits, the minor number), and a slot is a row of counters per direction and
// CPU. Rows live in chunks of 64 slots, so that memory follows the attachments,
// and are mapped into the process, so that reading takes no system call.
//
// A second pair is for tcx, where a link has no classid: it finds the slot by the
// interface's index, once [Datapath.Bind] has said which. See [Datapath.Quiesce] for how
// an interface moves from one to the other.
//
// A third pair is for cgroups, whose sockets' packets they count. They find the slot in the
// storage that the kernel has for each cgroup, once [Datapath.BindCgroup] has said which.
//
// What becomes of the TCP connections of a cgroup is counted by a program of an object of its
// own, on slots of its own: [Datapath.LoadTCP].
//
// With each slot a [Note] is kept in the kernel for the next process, so that the end of
// this one at any moment loses nothing. What an earlier layout of the maps left is
// [Datapath.Old].
package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// MaxSlots is how many interfaces and cgroups can be counted at once: slot 0 is what a filter
// without a classid would count on, and belongs to nobody.
const MaxSlots = int(classifierCapacitySLOTS) - 1

var (
	// ErrInUse means that another process has the pin path.
	ErrInUse = errors.New("in use by another nettally")
	// ErrFull means that every slot is taken.
	ErrFull = errors.New("every slot is taken")
	// ErrReleased means that the slot was released, and maybe taken again.
	ErrReleased = errors.New("slot was released")
	// ErrNewer means that there are counters of a layout that this nettally does not know.
	ErrNewer = errors.New("made by a newer nettally")
)

// Options say where the counters live.
type Options struct {
	// PinPath is a folder on a bpffs below which the maps are pinned, so that
	// counting outlives the process. Empty: nothing is pinned, and the counters
	// end with the process and the last filter.
	PinPath string
	// MaxSlots bounds the slots in use, MaxSlots if 0.
	MaxSlots int
}

// Datapath is the kernel side: the programs and their counters.
//
// Its methods are safe for concurrent use.
type Datapath struct {
	// Ingress and Egress are the programs for the two clsact hooks of a host veth.
	Ingress *ebpf.Program
	Egress  *ebpf.Program
	// TCXIngress and TCXEgress are those for its tcx hooks, which need Linux 6.6.
	TCXIngress *ebpf.Program
	TCXEgress  *ebpf.Program
	// CgroupIngress and CgroupEgress are those for a cgroup of the cgroup2 hierarchy.
	CgroupIngress *ebpf.Program
	CgroupEgress  *ebpf.Program

	// TCP is the program for the connections of a cgroup, nil before [Datapath.LoadTCP].
	TCP *ebpf.Program
	// RequestsIngress and RequestsEgress are those for what its sockets say at layer 7, nil before
	// [Datapath.LoadRequests].
	RequestsIngress *ebpf.Program
	RequestsEgress  *ebpf.Program

	programs      classifierPrograms // all of the above but TCP
	maps          classifierMaps
	tcp           tcpMaps   // nothing before LoadTCP
	sockets       *sockets  // nil before LoadSockets
	requests      *requests // nil before LoadRequests
	requestCounts *ebpf.Map // also of an earlier process, nil if there are none
	pinPath       string
	lock          *os.File      // holds the pin path, nil if not pinned
	live          *ebpf.Program // tells other processes that this one runs
	own           ebpf.MapID    // of the chunks
	cpus          int
	maxSlots      int
	chunk         *ebpf.MapSpec
	troubles      []classifierCpuTroubles // by CPU, mapped

	// making is held while chunks are made or freed, which may take an RCU grace
	// period, and while one is waited for. It is locked before mu, which never waits so
	// long.
	making     sync.Mutex
	background sync.WaitGroup

	mu          sync.RWMutex
	closed      bool
	chunks      map[uint16]chunk                // by index
	used        [MaxSlots/slotsPerChunk + 1]int // slots in use, by chunk
	taken       map[uint16]Slot
	connections int    // of those, how many count connections
	newest      uint64 // generation
	lowest      int    // no slot below it is free

	older []*older          // layouts that are not settled, oldest first
	heirs map[uint64]uint16 // by generation, what may have inherited from those
}

// Load puts the programs and maps into the kernel, or opens the maps that are
// pinned already, with the slots that are in use. What it finds of older layouts is
// left as it is, for [Datapath.Old].
//
// It needs Linux 5.10, and CAP_BPF with CAP_NET_ADMIN to load, CAP_SYS_ADMIN to
// open the chunks of an earlier process. Close leaves pinned maps behind; [Unpin]
// removes them.
//
// Returns an error wrapping [ErrInUse] while another process has the pin path,
// [ErrNewer] if slots are in use there that a newer nettally took, and
// [trusted.ErrUntrusted] if others can change what is pinned.
func Load(o Options) (_ *Datapath, err error) {
	d := &Datapath{pinPath: o.PinPath, maxSlots: o.MaxSlots, chunks: map[uint16]chunk{}, taken: map[uint16]Slot{}, heirs: map[uint64]uint16{}, lowest: 1}
	if d.maxSlots == 0 {
		d.maxSlots = MaxSlots
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()

	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift RLIMIT_MEMLOCK: %w (needs CAP_SYS_RESOURCE before Linux 5.11)", err)
	}
	var folder string
	if o.PinPath != "" {
		folder = filepath.Join(o.PinPath, Layout)
		if d.lock, err = claim(o.PinPath, folder); err != nil {
			return nil, err
		}
	}
	members, err := openMembers(o.PinPath, classifierMapMembers, loadClassifier)
	if err != nil {
		return nil, err
	}
	defer members.Close() // what is loaded has it by another descriptor
	if err := d.load(folder, members); err != nil {
		return nil, err
	}
	if d.requestCounts, err = openRequestCounts(o.PinPath); err != nil {
		return nil, err
	}
	if err := d.makeChunk(0); err != nil {
		return nil, explain(err, folder)
	}
	if err := d.recall(); err != nil {
		return nil, fmt.Errorf("read slots: %w", err)
	}
	if o.PinPath != "" {
		if err := d.openOlder(o.PinPath, olderLayouts()); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// load puts the programs and maps into the kernel. members is nil for a map of their own.
func (d *Datapath) load(folder string, members *ebpf.Map) error {
	spec, err := loadClassifier()
	if err != nil {
		return err
	}
	if d.cpus, err = ebpf.PossibleCPU(); err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	spec.Maps[classifierMapTroubles].MaxEntries = uint32(d.cpus)
	d.chunk = spec.Maps[classifierMapChunks].InnerMap
	d.chunk.MaxEntries = uint32(slotsPerChunk * directions * (d.cpus + 1)) // the carry rows
	if folder == "" {
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinNone
		}
	}

	options := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: folder}}
	if members != nil {
		options.MapReplacements = map[string]*ebpf.Map{classifierMapMembers: members}
	}
	var objects classifierObjects
	err = spec.LoadAndAssign(&objects, options)
	if err != nil {
		return explain(err, folder)
	}
	d.Ingress, d.Egress = objects.NettallyIngress, objects.NettallyEgress
	d.TCXIngress, d.TCXEgress = objects.NettallyTcxIn, objects.NettallyTcxEg
	d.CgroupIngress, d.CgroupEgress = objects.NettallyCgIn, objects.NettallyCgEg
	d.programs, d.maps = objects.classifierPrograms, objects.classifierMaps
	if d.troubles, err = mapped[classifierCpuTroubles](d.maps.Troubles); err != nil {
		return fmt.Errorf("map error cells: %w", err)
	}
	info, err := d.maps.Chunks.Info()
	if err != nil {
		return fmt.Errorf("look at chunks: %w", err)
	}
	d.own, _ = info.ID()
	if d.live, err = live(d.maps.Chunks); err != nil {
		return explain(err, folder)
	}
	return nil
}

// explain says what to do about an error of loading.
func explain(err error, folder string) error {
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		return fmt.Errorf("open counters in %s: %w: run `nettally detach` to discard them", folder, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load classifiers: %w: needs root, or CAP_BPF and CAP_NET_ADMIN", err)
	}
	return fmt.Errorf("load classifiers: %w", err)
}

// Close gives up what the process holds. Filters go on counting; pinned maps stay.
func (d *Datapath) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.background.Wait()
	d.making.Lock()
	defer d.making.Unlock()

	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, rows := range d.chunks {
		errs = append(errs, unmap(rows))
	}
	clear(d.chunks)
	clear(d.taken) // what reads meanwhile gets ErrReleased
	if d.troubles != nil {
		errs = append(errs, unmap(d.troubles))
		d.troubles = nil
	}
	for _, o := range d.older {
		errs = append(errs, o.close())
	}
	d.older = nil
	if d.Ingress != nil {
		errs = append(errs, d.programs.Close(), d.maps.Close(), d.live.Close())
		d.Ingress = nil
	}
	if d.TCP != nil {
		errs = append(errs, d.TCP.Close(), d.tcp.Close())
		d.TCP = nil
	}
	errs = append(errs, d.sockets.close())
	d.sockets = nil
	if d.requests == nil && d.requestCounts != nil {
		errs = append(errs, d.requestCounts.Close())
	}
	errs = append(errs, d.requests.close())
	d.requests, d.requestCounts = nil, nil
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
		d.lock = nil
	}
	return errors.Join(errs...)
}

// mapped maps the values of an array into the process.
func mapped[T any](m *ebpf.Map) ([]T, error) {
	size := uintptr(m.MaxEntries()) * unsafe.Sizeof(*new(T))
	data, err := unix.MmapPtr(m.FD(), 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*T)(data), m.MaxEntries()), nil
}

func unmap[T any](values []T) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(values)), uintptr(len(values))*unsafe.Sizeof(*new(T)))
}
