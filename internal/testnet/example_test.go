// SPDX-License-Identifier: Apache-2.0

package testnet_test

import (
	"errors"
	"fmt"
	"log"

	"github.com/nettally/nettally/internal/testnet"
)

// A thousand datagrams from a container to its host. Tests have package nettest,
// which makes this shorter.
func ExampleNewContainer() {
	testnet.Main() // the first thing in the program's main
	if err := upload(); err != nil {
		log.Fatal(err)
	}
}

func upload() (err error) {
	host, err := testnet.NewNamespace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	web, err := testnet.NewContainer(host, testnet.ContainerOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, web.Close()) }()
	peer, err := testnet.StartAgent(host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.Close()) }()

	sink, err := peer.Listen("udp", web.Interfaces[0].HostIPv4)
	if err != nil {
		return err
	}
	if err := web.SendUDP(sink.Addr, 1000, 100); err != nil {
		return err
	}
	got, err := sink.Received(1000)
	fmt.Println(got.Count, "datagrams", got.Bytes, "bytes")
	return err
}
