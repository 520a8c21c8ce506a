// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the tests of the whole: the built nettally, real containers,
// and oracles that are not ours.
//
// Tests that load the machine, or look at all of its processes, run alone. The others
// mostly wait, and run side by side afterwards.
package e2e
