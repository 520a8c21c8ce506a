// SPDX-License-Identifier: Apache-2.0

package tcctl_test

import (
	"errors"
	"log"
	"net"

	"github.com/cilium/ebpf"

	"github.com/nettally/nettally/tcctl"
)

func ExampleController_Attach() {
	var ingress, egress *ebpf.Program // loaded, with names that begin with "nettally_"

	c, err := tcctl.Open(tcctl.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	veth, err := net.InterfaceByName("veth12ab")
	if err != nil {
		log.Fatal(err)
	}
	createdQdisc, err := c.Attach(veth.Index, 300, ingress, egress, nil)
	if errors.Is(err, tcctl.ErrGone) {
		return // the container ended
	}
	if err != nil {
		log.Fatal(err)
	}
	// Both programs now see 300 in skb->tc_classid. Take them off again:
	if err := c.Detach(veth.Index, createdQdisc); err != nil {
		log.Fatal(err)
	}
}
