// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the tests of the whole: the built nettally, real containers,
// and oracles that are not ours.
package e2e
