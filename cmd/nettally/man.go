// SPDX-License-Identifier: Apache-2.0

//go:build man

package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func init() { forPackagers = append(forPackagers, newMan) }

func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages to a directory",
		Hidden: true,
		Args:   arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			header := &doc.GenManHeader{Section: "8", Source: "nettally " + version, Manual: "nettally"}
			return doc.GenManTree(cmd.Root(), header, args[0])
		},
	}
}
