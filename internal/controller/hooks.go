// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"github.com/nettally/nettally/tcctl"
)

// program is a loaded classifier.
type program interface{ FD() int }

// Hooks puts one pair of programs on interfaces.
type Hooks struct {
	Control *tcctl.Controller
	Ingress program
	Egress  program
}

// Attach puts the programs on both hooks of an interface, or in place of our own.
func (h *Hooks) Attach(ifindex int, slot uint16) (createdQdisc bool, err error) {
	return h.Control.Attach(ifindex, slot, h.Ingress, h.Egress)
}

// Detach takes our filters off an interface.
func (h *Hooks) Detach(ifindex int, removeQdisc bool) error {
	return h.Control.Detach(ifindex, removeQdisc)
}

// Interfaces lists the interfaces that may carry our filters.
func (h *Hooks) Interfaces() ([]int, error) { return h.Control.Interfaces() }

// Current returns the slot that both of our filters on an interface count on. Not
// ok: they are not both there.
func (h *Hooks) Current(ifindex int) (slot uint16, ok bool, err error) {
	filters, err := h.Control.Filters(ifindex)
	if err != nil || len(filters) != 2 {
		return 0, false, err
	}
	ok = filters[0].Hook != filters[1].Hook && filters[0].Slot == filters[1].Slot
	return filters[0].Slot, ok, nil
}
