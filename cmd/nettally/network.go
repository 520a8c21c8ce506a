// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
)

// errOtherNetwork says that the host's interfaces are out of sight. A container on the host's
// network would be taken for the owner of all of them.
var errOtherNetwork = errors.New("this is not the network namespace of process 1, so containers of the host are counted wrongly or not at all; " +
	"where nettally runs in a container, start it with --network=host (hostNetwork in Kubernetes)")

// network says whether nettally is in the host's network namespace, as far as that can be seen.
// Where process 1 can't be looked at it says nothing.
func network(proc string) error {
	own, err := os.Stat(proc + "/self/ns/net")
	if err != nil {
		return nil
	}
	host, err := os.Stat(proc + "/1/ns/net")
	if err != nil || os.SameFile(own, host) {
		return nil
	}
	return errOtherNetwork
}
