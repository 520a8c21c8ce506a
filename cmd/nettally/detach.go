// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

func newDetach() *cobra.Command {
	return &cobra.Command{
		Use:   "detach",
		Short: "Take every trace of nettally off this host's interfaces and bpffs; what was counted stays in the ledger",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			flag := cmd.Flags().Lookup("config")
			config, err := configs.LoadForDetach(flag.Value.String(), flag.Changed, cmd.Flags())
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return err
			}
			lock, err := lockToDetach()
			if err != nil {
				return err
			}
			defer lock.Close()
			if err := folders(config); err != nil {
				return err
			}
			// Before the counts are written down, which gives up slots.
			slots, err := bpf.PinnedSlots(config.BPF.PinPath)
			if err != nil {
				return err
			}
			if err := saveCounts(config, slots); errors.Is(err, bpf.ErrInUse) {
				return err
			} else if err != nil {
				complain(cmd.ErrOrStderr(), fmt.Errorf("not kept, what was counted since the last run: %w", err))
			}
			count, err := detach(config, slots)
			if err != nil {
				return err
			}
			said := fmt.Sprintf("took filters off %d interfaces", count.interfaces)
			if count.cgroups > 0 {
				said += fmt.Sprintf(", and programs off %d cgroups", count.cgroups)
			}
			return say(cmd.OutOrStdout(), "%s", said)
		},
	}
}

// lockToDetach keeps every nettally of this network namespace out, also those of other pin
// paths: what is taken off would be theirs. Where no program may be loaded, none runs.
func lockToDetach() (io.Closer, error) {
	lock, err := bpf.LockNetNS()
	if err == nil {
		return lock, nil
	}
	if errors.As(refusal(err), new(noProgram)) {
		return closer(func() {}), nil
	}
	return nil, err
}

// saveCounts writes down what the kernel has counted since the last run ended.
func saveCounts(config *configs.Config, slots []bpf.Slot) error {
	if len(slots) == 0 {
		return nil
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
		if err := d.accounts.Retire(left); err != nil {
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

// detach removes our programs, the qdiscs that we made, as the slots in use say, and the
// pinned maps.
func detach(config *configs.Config, slots []bpf.Slot) (count detached, err error) {
	if count.interfaces, err = detachInside(config, slots); err != nil {
		return count, err
	}
	onHost, err := detachInterfaces(config, slots)
	count.interfaces += onHost
	if err != nil {
		return count, err
	}
	if count.cgroups, err = detachCgroups(config); err != nil {
		return count, err
	}
	return count, bpf.Unpin(config.BPF.PinPath)
}

func detachCgroups(config *configs.Config) (count int, err error) {
	control := cgroupctl.New(cgroupctl.Options{
		Pins: cgroupPins(config), Hooks: slices.Concat(cgroupctl.Packets, cgroupctl.Connections, cgroupctl.Requests),
	})
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

func detachInterfaces(config *configs.Config, slots []bpf.Slot) (int, error) {
	ours := ownQdiscs(slots)
	control, err := tcctl.Open(tcctl.Options{Pins: linkPins(config), Elsewhere: bpf.CountsElsewhere})
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
	strays, err := control.DetachStrays() // those of which the pins can't be found
	if err != nil {
		return 0, err
	}
	taken := slices.Concat(links, strays)
	slices.Sort(taken)
	taken = slices.Compact(taken)
	count := len(taken)
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
		if len(filters) > 0 && !slices.Contains(taken, ifindex) {
			count++
		}
	}
	return count, nil
}

// ownQdiscs returns the interfaces of the host whose qdisc we made, by what is pinned.
func ownQdiscs(slots []bpf.Slot) map[int]bool {
	ours := map[int]bool{}
	for _, s := range slots {
		if s.Target == usage.OnHost(s.Ifindex) {
			ours[s.Ifindex] = ours[s.Ifindex] || s.OwnQdisc
		}
	}
	return ours
}

// detachInside removes our programs and qdiscs from the interfaces that we count in the
// namespaces of containers, by what is pinned. It returns the number of interfaces.
func detachInside(config *configs.Config, slots []bpf.Slot) (count int, err error) {
	inodes := map[uint64]bool{}
	for _, s := range slots {
		if s.NetNS != 0 && !s.Sockets {
			inodes[s.NetNS] = true
		}
	}
	if len(inodes) == 0 {
		return 0, nil
	}
	watch, err := newWatcher(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	defer watch.Close()
	err = watch.VisitNamespaces(inodes, func(ns *watcher.Namespace) error {
		control, err := tcctl.Open(tcctl.Options{NetNS: ns.FD(), Elsewhere: bpf.CountsElsewhere})
		if err != nil {
			return err
		}
		defer control.Close()
		for _, s := range slots {
			if s.NetNS != ns.Inode() || s.Sockets {
				continue
			}
			took, err := takeOff(control, s)
			if err != nil {
				return err
			}
			if took {
				count++
			}
		}
		return nil
	})
	return count, err
}

// takeOff removes the programs that count on a slot, and the qdisc if we made it. The
// namespace may be another one than it was, so an interface without such a program is left
// alone.
func takeOff(control *tcctl.Controller, s bpf.Slot) (took bool, err error) {
	filters, err := control.Filters(s.Ifindex)
	if errors.Is(err, tcctl.ErrGone) || err == nil && !slices.ContainsFunc(filters, func(f tcctl.Filter) bool { return f.Slot == s.Index }) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, control.Detach(s.Ifindex, s.OwnQdisc)
}
