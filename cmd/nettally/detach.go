// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/tcctl"
)

func newDetach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach",
		Short: "Take every trace of nettally off this host's interfaces and bpffs; counters are lost",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return err
			}
			count, err := detach(config.BPF.PinPath)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "took filters off %d interfaces\n", count)
			return err
		},
	}
}

// detach removes our filters, the qdiscs that we made, and the pinned maps. It
// returns the number of interfaces that had filters.
func detach(pinPath string) (int, error) {
	ours, err := ownQdiscs(pinPath)
	if err != nil {
		return 0, err
	}
	control, err := tcctl.Open(tcctl.Options{})
	if err != nil {
		return 0, err
	}
	defer control.Close()
	candidates, err := control.Interfaces()
	if err != nil {
		return 0, err
	}
	count := 0
	for _, ifindex := range candidates {
		filters, err := control.Filters(ifindex)
		if err != nil && !errors.Is(err, tcctl.ErrGone) {
			return count, err
		}
		if err := control.Detach(ifindex, ours[ifindex]); err != nil {
			return count, err
		}
		if len(filters) > 0 {
			count++
		}
	}
	return count, bpf.Unpin(pinPath)
}

// ownQdiscs returns the interfaces whose qdisc we made, by what is pinned.
func ownQdiscs(pinPath string) (map[int]bool, error) {
	slots, err := bpf.PinnedSlots(pinPath)
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{}
	for _, s := range slots {
		ours[s.Ifindex] = s.OwnQdisc
	}
	return ours, nil
}
