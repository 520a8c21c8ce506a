// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/tcctl"
)

func newDetach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach",
		Short: "Take every trace of nettally off this host's interfaces and bpffs; what was counted stays in the ledger",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return err
			}
			if err := saveCounts(config); errors.Is(err, bpf.ErrInUse) {
				return err
			} else if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "nettally: not kept, what was counted since the last run: %v\n", err)
			}
			count, err := detach(config)
			if err != nil {
				return err
			}
			said := fmt.Sprintf("took filters off %d interfaces", count.interfaces)
			if count.cgroups > 0 {
				said += fmt.Sprintf(", and programs off %d cgroups", count.cgroups)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		},
	}
}

// saveCounts writes down what the kernel has counted since the last run ended.
func saveCounts(config *configs.Config) error {
	slots, err := bpf.PinnedSlots(config.BPF.PinPath)
	if err != nil || len(slots) == 0 {
		return err
	}
	datapath, err := bpf.Load(bpf.Options{PinPath: config.BPF.PinPath, MaxSlots: config.BPF.MaxInterfaces})
	if err != nil {
		return err
	}
	defer datapath.Close()
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	d.config.Store(config)
	defer d.close()
	if err := d.open(datapath); err != nil {
		return err
	}
	if _, err := d.accounts.Inherit(); err != nil {
		return err
	}
	if err := d.accounts.Settle(); err != nil {
		return err
	}
	for _, left := range d.accounts.Leftovers() {
		if _, err := d.accounts.Retire(left); err != nil {
			return err
		}
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if err := d.ledger.Keep(ended, d.accounts); err != nil { // writes once
		return err
	}
	if status := d.ledger.Status(); !status.Up {
		return errors.New(status.Error)
	}
	return nil
}

// detached is what had programs of ours.
type detached struct{ interfaces, cgroups int }

// detach removes our programs, the qdiscs that we made, and the pinned maps.
func detach(config *configs.Config) (count detached, err error) {
	if count.interfaces, err = detachInterfaces(config); err != nil {
		return count, err
	}
	if count.cgroups, err = detachCgroups(config); err != nil {
		return count, err
	}
	return count, bpf.Unpin(config.BPF.PinPath)
}

func detachCgroups(config *configs.Config) (count int, err error) {
	control := cgroupctl.New(cgroupctl.Options{Pins: cgroupPins(config)})
	ids, err := control.IDs()
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if err := control.Detach(id); err != nil {
			return count, err
		}
		count++
	}
	return count, nil
}

func detachInterfaces(config *configs.Config) (int, error) {
	ours, err := ownQdiscs(config.BPF.PinPath)
	if err != nil {
		return 0, err
	}
	control, err := tcctl.Open(tcctl.Options{Pins: linkPins(config)})
	if err != nil {
		return 0, err
	}
	defer control.Close()
	candidates, err := control.Interfaces()
	if err != nil {
		return 0, err
	}
	links, err := control.TCXInterfaces()
	if err != nil {
		return 0, err
	}
	count := len(links)
	for _, ifindex := range links {
		if err := control.DetachTCX(ifindex); err != nil {
			return count, err
		}
	}
	for _, ifindex := range candidates {
		filters, err := control.Filters(ifindex)
		if err != nil && !errors.Is(err, tcctl.ErrGone) {
			return count, err
		}
		if err := control.Detach(ifindex, ours[ifindex]); err != nil {
			return count, err
		}
		if len(filters) > 0 && !slices.Contains(links, ifindex) {
			count++
		}
	}
	return count, nil
}

// ownQdiscs returns the interfaces whose qdisc we made, by what is pinned.
func ownQdiscs(pinPath string) (map[int]bool, error) {
	slots, err := bpf.PinnedSlots(pinPath)
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{}
	for _, s := range slots {
		if s.NetNS == 0 && s.Cgroup == 0 {
			ours[s.Ifindex] = ours[s.Ifindex] || s.OwnQdisc
		}
	}
	return ours, nil
}
