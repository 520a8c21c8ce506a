// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// openMembers opens the pinned map that says which cgroup has which slot, or makes it; nil
// without a pin path. It is none of a layout: what is attached to a cgroup keeps the
// storage that it was attached with, also when another program takes its place.
func openMembers(pinPath, name string, load func() (*ebpf.CollectionSpec, error)) (*ebpf.Map, error) {
	if pinPath == "" {
		return nil, nil
	}
	path := filepath.Join(pinPath, name)
	members, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		return members, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open slots of cgroups: %w", err)
	}
	spec, err := load()
	if err != nil {
		return nil, err
	}
	if members, err = ebpf.NewMap(spec.Maps[name]); err != nil {
		return nil, explain(err, pinPath)
	}
	if err := members.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin slots of cgroups: %w", err), members.Close())
	}
	return members, nil
}

// membersOf returns the map that has a slot's cgroup; nil if the program that uses it is not
// loaded.
func (d *Datapath) membersOf(s Slot) *ebpf.Map {
	if s.Sockets {
		return d.tcp.TcpMembers
	}
	return d.maps.Members
}

// BindCgroup says that what the programs for cgroups see of the slot's cgroup counts on the
// slot. They must be attached to it, or have been: the kernel keeps the element for as long
// as the cgroup is there (bpf_cgroup_storages_alloc, kernel/bpf/cgroup.c). It lasts until
// then, or the slot's release.
//
// Returns [ErrReleased] if the slot is no longer the one that was taken, and an error
// wrapping [ebpf.ErrKeyNotExist] if the programs are not attached.
func (d *Datapath) BindCgroup(s Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.valid(s) {
		return ErrReleased
	}
	members := d.membersOf(s)
	if members == nil {
		return fmt.Errorf("bind cgroup %d: %w", s.Cgroup, errors.ErrUnsupported)
	}
	// The kernel makes the element when a program is attached.
	if err := members.Update(s.Cgroup, uint32(s.Index), ebpf.UpdateExist); err != nil {
		return fmt.Errorf("bind cgroup %d to slot %d: %w", s.Cgroup, s.Index, err)
	}
	if s.Sockets {
		return errors.Join(d.sockets.bind(s), d.requests.bind(s))
	}
	return nil
}

// unbindCgroup undoes BindCgroup, unless the cgroup is bound to another slot: slot 0 is
// nobody's, and this one will be somebody else's.
func (d *Datapath) unbindCgroup(s Slot) error {
	if s.Cgroup == 0 {
		return nil
	}
	if s.Sockets {
		err := errors.Join(d.sockets.unbind(s), d.requests.release(s))
		if d.requestCounts != nil {
			err = errors.Join(err, without(d.requestCounts, s.Generation))
		}
		if err != nil {
			return err
		}
	}
	members := d.membersOf(s)
	if members == nil {
		return nil // what is not loaded is bound before it is attached again
	}
	var bound uint32
	err := members.Lookup(s.Cgroup, &bound)
	if err == nil && bound == uint32(s.Index) {
		err = members.Update(s.Cgroup, uint32(0), ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // the cgroup is gone
	}
	return err
}

// CgroupBound says whether a slot is the one that its cgroup counts on. There may be others
// that it counted on before.
func (d *Datapath) CgroupBound(s Slot) bool {
	members := d.membersOf(s)
	if members == nil {
		return false
	}
	var bound uint32
	err := members.Lookup(s.Cgroup, &bound)
	return err == nil && bound == uint32(s.Index)
}
