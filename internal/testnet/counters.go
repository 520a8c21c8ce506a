// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"fmt"
	"os"
	"strings"
)

// Counters are the kernel's own numbers of an interface, as its owner sees them.
type Counters struct {
	ReceiveBytes, ReceivePackets   uint64
	TransmitBytes, TransmitPackets uint64
}

// InterfaceCounters reads the kernel's numbers of all interfaces that a process
// sees, by name, from /proc/<pid>/net/dev.
func InterfaceCounters(pid int) (map[string]Counters, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("read interface counters: %w", err)
	}
	all := make(map[string]Counters)
	for line := range strings.Lines(string(data)) {
		name, numbers, ok := strings.Cut(line, ":")
		if !ok {
			continue // heading
		}
		var c Counters
		var skip uint64 // errs drop fifo frame compressed multicast
		_, err := fmt.Sscan(numbers, &c.ReceiveBytes, &c.ReceivePackets,
			&skip, &skip, &skip, &skip, &skip, &skip,
			&c.TransmitBytes, &c.TransmitPackets)
		if err != nil {
			return nil, fmt.Errorf("read interface counters of %s: %w", name, err)
		}
		all[strings.TrimSpace(name)] = c
	}
	return all, nil
}

// Losses are the kernel's own numbers of packets that were lost at an interface.
type Losses struct {
	ReceiveErrors, ReceiveDropped   uint64
	TransmitErrors, TransmitDropped uint64
}

// InterfaceLosses reads the columns errs and drop of all interfaces that a process sees, by
// name, from /proc/<pid>/net/dev, as cAdvisor does.
func InterfaceLosses(pid int) (map[string]Losses, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("read interface losses: %w", err)
	}
	all := make(map[string]Losses)
	for line := range strings.Lines(string(data)) {
		name, numbers, ok := strings.Cut(line, ":")
		if !ok {
			continue // heading
		}
		var columns [12]uint64
		to := make([]any, len(columns))
		for i := range columns {
			to[i] = &columns[i]
		}
		if _, err := fmt.Sscan(numbers, to...); err != nil {
			return nil, fmt.Errorf("read interface losses of %s: %w", name, err)
		}
		all[strings.TrimSpace(name)] = Losses{columns[2], columns[3], columns[10], columns[11]}
	}
	return all, nil
}

// SetOffloads switches segmentation and receive offloads of an interface. Off,
// every packet on the link is one that fits its MTU. Requires ethtool.
func (n *Namespace) SetOffloads(name string, on bool) error {
	state := "off"
	if on {
		state = "on"
	}
	args := []string{"-K", name}
	for _, feature := range []string{"tso", "gso", "gro", "tx-udp-segmentation"} {
		args = append(args, feature, state)
	}
	_, err := n.Run("ethtool", args...)
	return err
}
