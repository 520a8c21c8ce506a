// SPDX-License-Identifier: Apache-2.0

//go:build !nettally_layout_next

package bpf

// Layout is the version of the pinned maps. A change of any of their types or
// sizes is a new version in a new folder.
//
//   - v1 had no carry rows, and kept generation, ifindex and flags of a slot.
//   - v2 has carry rows, notes with the slots, and routes for tcx.
//   - v3 has in the notes what was mended, and 32 bytes that are reserved.
//   - v4 has in these what was lost, and slots for the connections of a cgroup, which v3 would
//     take for packets.
const Layout = "v4"

// olderLayouts returns the layouts whose counts are taken over, oldest first.
func olderLayouts() []string { return []string{"v1", "v2", "v3"} }
