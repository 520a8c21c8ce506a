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
func openMembers(pinPath string) (*ebpf.Map, error) {
	if pinPath == "" {
		return nil, nil
	}
	path := filepath.Join(pinPath, classifierMapMembers)
	members, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		return members, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open slots of cgroups: %w", err)
	}
	spec, err := loadClassifier()
	if err != nil {
		return nil, err
	}
	if members, err = ebpf.NewMap(spec.Maps[classifierMapMembers]); err != nil {
		return nil, explain(err, pinPath)
	}
	if err := members.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin slots of cgroups: %w", err), members.Close())
	}
	return members, nil
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
	// The kernel makes the element when a program is attached.
	if err := d.maps.Members.Update(s.Cgroup, uint32(s.Index), ebpf.UpdateExist); err != nil {
		return fmt.Errorf("bind cgroup %d to slot %d: %w", s.Cgroup, s.Index, err)
	}
	return nil
}

// unbindCgroup undoes BindCgroup, unless the cgroup is bound to another slot: slot 0 is
// nobody's, and this one will be somebody else's.
func (d *Datapath) unbindCgroup(s Slot) error {
	if s.Cgroup == 0 {
		return nil
	}
	var bound uint32
	err := d.maps.Members.Lookup(s.Cgroup, &bound)
	if err == nil && bound == uint32(s.Index) {
		err = d.maps.Members.Update(s.Cgroup, uint32(0), ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // the cgroup is gone
	}
	return err
}

// CgroupBound says whether a slot is the one that its cgroup counts on. There may be others
// that it counted on before.
func (d *Datapath) CgroupBound(s Slot) bool {
	var bound uint32
	err := d.maps.Members.Lookup(s.Cgroup, &bound)
	return err == nil && bound == uint32(s.Index)
}
