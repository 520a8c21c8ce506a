// SPDX-License-Identifier: Apache-2.0

//go:build nettally_layout_next

package bpf

// Layout is the one that comes after the real one, which it equals in form. It exists
// so that tests can upgrade a real daemon to a binary of another layout: no release is
// built with it.
const Layout = "v5"

// olderLayouts returns the layouts whose counts are taken over, oldest first.
func olderLayouts() []string { return []string{"v1", "v2", "v3", "v4"} }
