// SPDX-License-Identifier: Apache-2.0

// Command inside does in a guest of the tests what busybox can't.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
)

const usage = `usage: inside later SECONDS COMMAND...  run a command as if the host were up for so much longer
       inside synced                    call the clock synchronised, as an NTP client does that has set it
       inside container ID              be a container that sends 100 datagrams each time that /send appears`

// The verb later needs the process's first thread: it is the one that /proc/self shows.
func init() { runtime.LockOSThread() }

func main() {
	testnet.Main()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) > 2 && args[0] == "later":
		return later(args[1], args[2], args[3:])
	case len(args) == 1 && args[0] == "synced":
		_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Status: unix.STA_PLL})
		return err
	case len(args) == 2 && args[0] == "container":
		return container(args[1])
	}
	return errors.New(usage)
}

// later runs a command in a time namespace. It passes on the signal to end.
func later(seconds, name string, args []string) error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make time namespace: %w", err)
	}
	if err := os.WriteFile("/proc/self/timens_offsets", fmt.Appendf(nil, "boottime %s 0", seconds), 0); err != nil {
		return fmt.Errorf("set its offset: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	err := cmd.Run()
	if ctx.Err() != nil && cmd.ProcessState.Success() {
		return nil // Run says that the context has ended, and not how the command did
	}
	return err
}

func container(id string) error {
	self, err := testnet.OpenNamespace("/proc/self/ns/net")
	if err != nil {
		return err
	}
	c, err := testnet.NewContainer(self, testnet.ContainerOptions{ID: id, Cgroup: "/docker/" + id})
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(c.Interfaces[0].HostIPv4, 9)
	for ; ; time.Sleep(10 * time.Millisecond) {
		if os.Remove("/send") != nil {
			continue
		}
		if err := c.SendUDP(to, 100, 100); err != nil {
			return err
		}
		if err := os.WriteFile("/sent", nil, 0o600); err != nil {
			return err
		}
	}
}
