// SPDX-License-Identifier: Apache-2.0

// Package kernels runs nettally on other kernels than the machine's: the oldest that
// is supported, and those that distributions ship.
package kernels
