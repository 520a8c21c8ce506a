// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// The names of what [RequestCounters] tells apart, in the order of its fields. Methods are those of
// RFC 9110 section 9 and PATCH; types and codes of DNS have the names of IANA's registry.
var (
	HTTPMethods   = [...]string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "_OTHER"}
	StatusClasses = [...]string{"1xx", "2xx", "3xx", "4xx", "5xx"}
	DNSTypes      = [...]string{"A", "NS", "CNAME", "SOA", "PTR", "MX", "TXT", "AAAA", "SRV", "HTTPS", "other"}
	DNSCodes      = [...]string{"NoError", "FormErr", "ServFail", "NXDomain", "NotImp", "Refused", "other"}
	ResyncCauses  = [...]string{"joined", "gap", "malformed", "too_long", "pipelined"}
)

// RequestCounters is what the sockets of a cgroup, and of those below it, have said in one
// direction at layer 7, as far as it was read.
type RequestCounters struct {
	HTTPRequests    [len(HTTPMethods)]uint64   // HTTP/1, by method
	HTTPResponses   [len(StatusClasses)]uint64 // HTTP/1, by the first digit of the status
	HTTP2Streams    uint64                     // opened by requests, on connections that begin in clear text
	TLSClientHellos uint64                     // connections that began with one
	DNSQueries      [len(DNSTypes)]uint64
	DNSResponses    [len(DNSCodes)]uint64
	Resyncs         [len(ResyncCauses)]uint64 // of HTTP: how often bytes of messages were not read, by cause
}

// fields are the numbers in the order in which the kernel has them.
func (c *RequestCounters) fields() (all []*uint64) {
	for _, numbers := range [][]uint64{
		c.HTTPRequests[:], c.HTTPResponses[:], nil, c.DNSQueries[:], c.DNSResponses[:], c.Resyncs[:],
	} {
		if numbers == nil {
			all = append(all, &c.HTTP2Streams, &c.TLSClientHellos)
		}
		for i := range numbers {
			all = append(all, &numbers[i])
		}
	}
	return all
}

// Numbers returns all counters, in an order that stays.
func (c RequestCounters) Numbers() (numbers [requestsRequestCounterREQUEST_COUNTERS]uint64) {
	for i, field := range c.fields() {
		numbers[i] = *field
	}
	return numbers
}

// RequestCountersOf returns the counters that have these numbers, as [RequestCounters.Numbers] has
// them.
func RequestCountersOf(numbers [requestsRequestCounterREQUEST_COUNTERS]uint64) (c RequestCounters) {
	for i, field := range c.fields() {
		*field = numbers[i]
	}
	return c
}

// RequestOptions say what is read at layer 7.
type RequestOptions struct {
	HTTP, TLS bool     // of TCP, on Ports
	DNS       bool     // of TCP and UDP, on port 53
	Ports     []uint16 // at either end; none says all
}

// Any reports whether anything is read.
func (o RequestOptions) Any() bool { return o.HTTP || o.TLS || o.DNS }

// requestPins is the folder of the pinned maps, below the pin path. It is none of a layout: the
// streams of connections go on over an upgrade, and counts belong to a slot's generation, which
// stays the same. Its number is that of the types of these maps.
const requestPins = "requests1"

// requests is the object of the programs that read packets at layer 7.
type requests struct {
	requestsObjects
	options RequestOptions
}

// openRequestCounts opens what an earlier process has counted of requests, nil if there is nothing.
// It is part of totals also where nothing is counted any more.
func openRequestCounts(pinPath string) (*ebpf.Map, error) {
	if pinPath == "" {
		return nil, nil
	}
	counts, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, requestPins, requestsMapRequestCounts), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open counts of requests: %w", err)
	}
	return counts, nil
}

// LoadRequests loads the programs that count requests: [Datapath.RequestsIngress] and
// RequestsEgress, which are put on the cgroups of the slots for connections. What was counted stays
// with such a slot.
//
// It comes after [Datapath.LoadTCP], and needs Linux 5.17, CAP_BPF and CAP_NET_ADMIN.
func (d *Datapath) LoadRequests(o RequestOptions) error {
	if d.TCP == nil {
		return errors.New("load the programs for requests: the program for connections, whose slots they use, is not loaded")
	}
	loaded, err := loadRequestObjects(d.pinPath, o)
	if err != nil {
		return fmt.Errorf("load the programs for requests: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(loaded.open(o.Ports), loaded.tidy(d.generations())); err != nil {
		return errors.Join(fmt.Errorf("load the programs for requests: %w", err), loaded.close())
	}
	for _, s := range d.taken {
		if s.Sockets && d.CgroupBound(s) {
			err = errors.Join(err, loaded.bind(s))
		}
	}
	if err != nil {
		return errors.Join(err, loaded.close())
	}
	if d.requestCounts != nil {
		err = d.requestCounts.Close()
	}
	d.requests, d.requestCounts = loaded, loaded.RequestCounts
	d.RequestsIngress, d.RequestsEgress = loaded.NettallyReqIn, loaded.NettallyReqEg
	return err
}

// generations are those of the slots in use, of older layouts, too. The caller holds mu.
func (d *Datapath) generations() map[uint64]bool {
	all := map[uint64]bool{}
	for _, s := range d.taken {
		all[s.Generation] = true
	}
	for _, o := range d.older {
		for generation := range o.left {
			all[generation] = true
		}
	}
	return all
}

func loadRequestObjects(pinPath string, o RequestOptions) (*requests, error) {
	if err := HaveRequests(); err != nil {
		return nil, err
	}
	spec, err := loadRequests()
	if err != nil {
		return nil, err
	}
	for name, on := range map[string]bool{
		requestsVarCountHttp: o.HTTP, requestsVarCountTls: o.TLS, requestsVarCountDns: o.DNS, requestsVarAllPorts: len(o.Ports) == 0,
	} {
		if err := spec.Variables[name].Set(on); err != nil {
			return nil, err
		}
	}
	options := &ebpf.CollectionOptions{}
	if pinPath == "" {
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinNone
		}
	} else {
		options.Maps.PinPath = filepath.Join(pinPath, requestPins)
		if err := os.MkdirAll(options.Maps.PinPath, 0o700); err != nil {
			return nil, err
		}
	}
	loaded := &requests{options: o}
	return loaded, spec.LoadAndAssign(&loaded.requestsObjects, options)
}

// HaveRequests returns why [Datapath.LoadRequests] can't work with this kernel, nil if it can.
func HaveRequests() error {
	if err := features.HaveProgramHelper(ebpf.CGroupSKB, asm.FnLoop); err != nil {
		return fmt.Errorf("the kernel's programs have no bpf_loop: %w (needs Linux 5.17)", err)
	}
	return nil
}

// CountsRequests reports whether requests are counted.
func (d *Datapath) CountsRequests() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.requests != nil
}

// RequestsCounted returns what is counted of requests: nothing before [Datapath.LoadRequests].
func (d *Datapath) RequestsCounted() RequestOptions {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.requests == nil {
		return RequestOptions{}
	}
	return d.requests.options
}

// ReadRequests returns what was counted so far for the cgroup of a slot for connections. Each
// number only grows.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken.
func (d *Datapath) ReadRequests(s Slot) (receive, transmit RequestCounters, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if !d.valid(s) {
		return receive, transmit, ErrReleased
	}
	if d.requestCounts == nil {
		return receive, transmit, nil
	}
	var counted requestsRequests
	err = d.requestCounts.Lookup(s.Generation, &counted)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return receive, transmit, nil
	}
	return RequestCountersOf(counted.Numbers[receiveRequests]), RequestCountersOf(counted.Numbers[transmitRequests]), err
}

// The directions, as requests.c has them.
const (
	receiveRequests = iota
	transmitRequests
)

// open says which ports are read.
func (r *requests) open(ports []uint16) error {
	words := map[uint32]uint64{}
	for _, port := range ports {
		words[uint32(port)/64] |= 1 << (port % 64)
	}
	for index, word := range words {
		if err := r.RequestPorts.Put(index, word); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes what was counted on slots that are gone.
func (r *requests) tidy(generations map[uint64]bool) error {
	var gone, left []uint64
	var cgroup, generation uint64
	var counted requestsRequests
	entries := r.RequestCounts.Iterate()
	for entries.Next(&generation, &counted) {
		if !generations[generation] {
			gone = append(gone, generation)
		}
	}
	err := entries.Err()
	members := r.RequestMembers.Iterate()
	for members.Next(&cgroup, &generation) {
		if !generations[generation] {
			left = append(left, cgroup)
		}
	}
	err = errors.Join(err, members.Err())
	for _, generation := range gone {
		err = errors.Join(err, without(r.RequestCounts, generation))
	}
	for _, cgroup := range left {
		err = errors.Join(err, without(r.RequestMembers, cgroup))
	}
	return err
}

// bind counts a cgroup on a slot.
func (r *requests) bind(s Slot) error {
	if r == nil {
		return nil
	}
	err := r.RequestCounts.Update(s.Generation, requestsRequests{}, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		err = nil
	}
	if err == nil {
		err = r.RequestMembers.Put(s.Cgroup, s.Generation)
	}
	if err == nil {
		err = r.RequestOwn.Update(s.Cgroup, s.Generation, ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) { // the programs are not attached
		return nil
	}
	if err != nil {
		return fmt.Errorf("bind the requests of cgroup %d: %w", s.Cgroup, err)
	}
	return nil
}

// release forgets which slot a cgroup had. The caller forgets what was counted.
func (r *requests) release(s Slot) error {
	if r == nil {
		return nil
	}
	var bound uint64
	err := r.RequestMembers.Lookup(s.Cgroup, &bound)
	if err == nil && bound == s.Generation {
		err = r.RequestMembers.Delete(s.Cgroup)
	}
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		err = r.RequestOwn.Lookup(s.Cgroup, &bound)
	}
	if err == nil && bound == s.Generation {
		err = r.RequestOwn.Update(s.Cgroup, uint64(0), ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // it is gone
	}
	return err
}

// without removes a key from a map, where it may be missing.
func without(m *ebpf.Map, key any) error {
	if err := m.Delete(key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func (r *requests) close() error {
	if r == nil {
		return nil
	}
	return r.requestsObjects.Close()
}
