// SPDX-License-Identifier: Apache-2.0

// Package nettest is package testnet for tests: what it makes is gone when the
// test ends, and what goes wrong fails the test. A test binary that imports it
// can make containers without a TestMain.
//
//	func TestUpload(t *testing.T) {
//		need.Root(t)
//		host := nettest.Host(t)
//		web := nettest.Container(t, host, testnet.ContainerOptions{})
//		peer := nettest.Agent(t, host)
//		sink := nettest.Must(peer.Listen("udp", web.Interfaces[0].HostIPv4))(t)
//		capture := nettest.StartCapture(t, host, web.Interfaces[0].HostName)
//		if err := web.SendUDP(sink.Addr, 1000, 100); err != nil {
//			t.Fatal(err)
//		}
//		capture.Stop()
//		got := capture.Count("udp") // 1000 packets of 142 bytes
//	}
package nettest

import (
	"testing"

	"github.com/nettally/nettally/internal/testnet"
)

func init() { testnet.Main() }

// Host makes a network namespace that plays the host.
func Host(tb testing.TB) *testnet.Namespace {
	tb.Helper()
	host := Must(testnet.NewNamespace())(tb)
	tb.Cleanup(func() { check(tb, host.Close()) })
	return host
}

// Container makes a container on a host.
func Container(
	tb testing.TB, host *testnet.Namespace, options testnet.ContainerOptions,
) *testnet.Container {
	tb.Helper()
	c := Must(testnet.NewContainer(host, options))(tb)
	tb.Cleanup(func() { check(tb, c.Close()) })
	return c
}

// Agent starts an agent in a namespace, as a rule the host's.
func Agent(tb testing.TB, n *testnet.Namespace) *testnet.Agent {
	tb.Helper()
	a := Must(testnet.StartAgent(n))(tb)
	tb.Cleanup(func() { check(tb, a.Close()) })
	return a
}

// Must returns a function that returns the value or fails the test.
func Must[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		fatal(tb, err)
		return value
	}
}

func fatal(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// check reports a failed clean-up and lets the others run.
func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Error(err)
	}
}
