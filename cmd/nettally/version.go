// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/exporter"
)

// version and revision are set by the Makefile from the git tag, and by a release, which is
// built without git's help. Without a revision it is the one that Go has put in.
var version, revision = "devel", ""

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := buildInfo()
			return say(cmd.OutOrStdout(), "nettally %s (revision %s, %s)", b.Version, b.Revision, b.GoVersion)
		},
	}
}

func buildInfo() exporter.BuildInfo {
	b := exporter.BuildInfo{Version: version, Revision: cmp.Or(revision, "unknown"), GoVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && revision == "" {
			b.Revision = s.Value
		}
	}
	return b
}
