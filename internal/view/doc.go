// SPDX-License-Identifier: Apache-2.0

// Package view computes what people look at from the daemon's stream: rates, sums, order and
// text. The daemon sends exact totals; a rate is the viewer's.
//
// Nothing in it does I/O, knows a terminal or reads a clock. A [Book] is not safe for
// concurrent use; everything else is.
package view
