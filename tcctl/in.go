// SPDX-License-Identifier: Apache-2.0

package tcctl

// In opens a Controller for another network namespace, given by a descriptor, with the same
// priority and proof. It keeps that namespace alive until Close, so it is for one verb or a few.
//
// It is for clsact only: pins are for one namespace.
func (c *Controller) In(netns int) (*Controller, error) {
	return Open(Options{NetNS: netns, Priority: c.priority, Elsewhere: c.elsewhere, Own: c.own})
}
