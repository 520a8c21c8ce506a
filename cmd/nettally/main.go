// SPDX-License-Identifier: Apache-2.0

// Command nettally accounts the network traffic of every container on a host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // quotas have time zones, and a host may have no files of them

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/testnet"
)

// Exit codes. Only `quota list --check` has others, see verdict.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	// exitPipe is a shell's code for a program that SIGPIPE has ended: nobody reads any more.
	exitPipe = 128 + int(unix.SIGPIPE)
)

// errUsage wraps errors about the command line.
var errUsage = errors.New("wrong use")

func main() {
	// The agents of a selftest are this program run again.
	testnet.Main()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var found verdict
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errNoReader):
		return exitPipe
	case errors.As(err, &found):
		return int(found)
	case checking(cmd):
		return int(unknown(root.OutOrStdout(), err))
	}
	complain(root.ErrOrStderr(), err)
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// forPackagers makes commands that only a build with the tag `man` has. What writes the manual
// pages would make every binary larger by 260 KB.
var forPackagers []func() *cobra.Command

// newRoot makes the commands. What they print goes through a screen.
func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "nettally",
		Short:         "Account the network traffic of every container on this host",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          arguments(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(screen(stdout))
	root.SetErr(screen(stderr))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w: see `%s --help`", errUsage, err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.String("config", configs.DefaultPath, "configuration `file`")
	configs.BindFlags(flags)
	root.AddCommand(newRun(), newTop(), newList(), newHistory(), newQuota(), newCheck(), newSelftest(), newNFLOG(), newConfig(), newDetach(), newVersion())
	for _, command := range forPackagers {
		root.AddCommand(command())
	}
	return root
}

// arguments makes what cobra says of positional arguments a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fmt.Errorf("%w: %w: see `%s --help`", errUsage, err, cmd.CommandPath())
		}
		return nil
	}
}

// loadConfig reads the configuration as the flags of a command say.
func loadConfig(cmd *cobra.Command) (*configs.Config, error) {
	flag := cmd.Flags().Lookup("config")
	return configs.Load(flag.Value.String(), flag.Changed, cmd.Flags())
}

// loadClientConfig reads the socket of the daemon, and other keys that a command needs.
func loadClientConfig(cmd *cobra.Command, others ...string) (*configs.Config, error) {
	flag := cmd.Flags().Lookup("config")
	return configs.LoadForClient(flag.Value.String(), flag.Changed, cmd.Flags(), append(others, "exporter.socket")...)
}
