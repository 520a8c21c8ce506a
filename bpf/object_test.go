// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// Both objects that are committed, one of which this machine cannot run, are what
// the loader expects, and need nothing of a kernel's BTF.
func TestObjects(t *testing.T) {
	for _, file := range []string{"classifier_bpfel.o", "classifier_bpfeb.o"} {
		t.Run(file, func(t *testing.T) {
			object, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
			if err != nil {
				t.Fatal(err)
			}
			types := map[string]ebpf.ProgramType{
				"nettally_ingress": ebpf.SchedCLS, "nettally_egress": ebpf.SchedCLS,
				"nettally_tcx_in": ebpf.SchedCLS, "nettally_tcx_eg": ebpf.SchedCLS,
				"nettally_cg_in": ebpf.CGroupSKB, "nettally_cg_eg": ebpf.CGroupSKB,
			}
			for name, want := range types {
				checkProgram(t, spec, name, want)
			}
			if len(spec.Programs) != len(types) {
				t.Errorf("%d programs, want %d", len(spec.Programs), len(types))
			}
			checkMaps(t, spec)
		})
	}
}

// The same for the object that counts connections, whose rows have to be the classifiers'.
func TestTCPObjects(t *testing.T) {
	for _, file := range []string{"tcp_bpfel.o", "tcp_bpfeb.o"} {
		t.Run(file, func(t *testing.T) {
			object, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
			if err != nil {
				t.Fatal(err)
			}
			checkProgram(t, spec, "nettally_tcp", ebpf.SockOps)
			theirs, err := loadClassifier()
			if err != nil {
				t.Fatal(err)
			}
			ours, chunks := spec.Maps[tcpMapChunks], theirs.Maps[classifierMapChunks]
			if len(spec.Programs) != 1 || len(spec.Maps) != 2 || ours.MaxEntries != chunks.MaxEntries ||
				ours.InnerMap.ValueSize != chunks.InnerMap.ValueSize || ours.InnerMap.MaxEntries != chunks.InnerMap.MaxEntries {
				t.Errorf("%d programs, maps %v", len(spec.Programs), spec.Maps)
			}
		})
	}
	if buckets := int(tcpTcpCounterTCP_COUNTERS - tcpTcpCounterRTT_BUCKETS); buckets != len(TCPCounters{}.RTTs) {
		t.Errorf("%d buckets for round trips, want %d", buckets, len(TCPCounters{}.RTTs))
	}
}

// checkMaps holds the maps to the constants that come with an object, and to their number:
// the section that brings the constants is none of them.
func checkMaps(t *testing.T, spec *ebpf.CollectionSpec) {
	t.Helper()
	sizes := map[string]uint32{}
	for name, m := range spec.Maps {
		sizes[name] = m.MaxEntries
	}
	all := uint32(MaxSlots) + 1
	want := map[string]uint32{
		"chunks": all / uint32(slotsPerChunk), "slots": all, "routes": all,
		"members": 0, "troubles": 1, // by the number of CPUs when they are loaded
	}
	if diff := cmp.Diff(want, sizes); diff != "" {
		t.Errorf("entries of the maps (-want +got):\n%s", diff)
	}
	if rows := spec.Maps["chunks"].InnerMap.MaxEntries; rows != uint32(slotsPerChunk*directions) {
		t.Errorf("%d rows in a chunk per CPU, want %d of each direction", rows, slotsPerChunk)
	}
	for _, m := range []*ebpf.MapSpec{spec.Maps["chunks"].InnerMap, spec.Maps["slots"], spec.Maps["troubles"]} {
		t.Logf("%s has values of %d bytes", m.Name, m.ValueSize)
	}
}

// mostInstructions bounds the size of a program, which loading and reviewing takes.
const mostInstructions = 1200

func checkProgram(t *testing.T, spec *ebpf.CollectionSpec, name string, want ebpf.ProgramType) {
	t.Helper()
	program := spec.Programs[name]
	if program == nil {
		t.Fatalf("no program %s", name)
	}
	if program.Type != want || program.License != "Dual BSD/GPL" {
		t.Errorf("%s is a %v under %q", name, program.Type, program.License)
	}
	for _, instruction := range program.Instructions {
		if btf.CORERelocationMetadata(&instruction) != nil {
			t.Errorf("%s has a CO-RE relocation at %v", name, instruction)
		}
	}
	if n := len(program.Instructions); n > mostInstructions {
		t.Errorf("%s has %d instructions, more than %d", name, n, mostInstructions)
	} else {
		t.Logf("%s has %d instructions", name, n)
	}
}

// The names are what `tc filter` and our own detaching know the programs by.
func TestProgramNames(t *testing.T) {
	d := load(t, Options{})
	var tags []string
	for program, want := range map[*ebpf.Program]string{
		d.Ingress: "nettally_ingress", d.Egress: "nettally_egress",
		d.TCXIngress: "nettally_tcx_in", d.TCXEgress: "nettally_tcx_eg",
		d.CgroupIngress: "nettally_cg_in", d.CgroupEgress: "nettally_cg_eg",
	} {
		info, err := program.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != want { // of which the kernel keeps 15 bytes outside of BTF
			t.Errorf("name %q, want %q", info.Name, want)
		}
		tags = append(tags, info.Tag)
	}
	slices.Sort(tags)
	if slices.Contains(tags, "") || len(slices.Compact(slices.Clone(tags))) != len(tags) {
		t.Errorf("tags %q, want six", tags)
	}
}
