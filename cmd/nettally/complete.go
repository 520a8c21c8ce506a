// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/exporter"
)

// completeWith makes shells complete flags with words.
func completeWith(cmd *cobra.Command, words map[string][]string) {
	for flag, all := range words {
		// An error is for a flag that there is not: TestCompletion finds that.
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp))
	}
}

// completeContainers completes with the names of containers, if the daemon answers.
func completeContainers(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	config, err := loadClientConfig(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := exporter.Fetch(cmd.Context(), config.Exporter.Socket, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := map[string]bool{}
	for _, c := range found.Containers {
		names[c.Name] = true
	}
	return completed(names, begun), cobra.ShellCompDirectiveNoFileComp
}

// completeQuotas completes with the names of quotas, if the daemon answers. There is one in each
// command but list.
func completeQuotas(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	config, err := loadClientConfig(cmd)
	if err != nil || len(args) > 0 && cmd.Name() != "list" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := exporter.FetchQuotas(cmd.Context(), config.Exporter.Socket)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := map[string]bool{}
	for _, q := range found.Quotas {
		names[q.Quota] = true
	}
	return completed(names, begun), cobra.ShellCompDirectiveNoFileComp
}

// completed returns the names that begin so. Those that are not plain words are left out: a
// shell would run what is in some, and cobra takes a tab for the end of a name.
func completed(names map[string]bool, begun string) (words []string) {
	for name := range names {
		odd := strings.ContainsFunc(name, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_.-/~:", r)
		})
		if name != "" && !odd && strings.HasPrefix(name, begun) {
			words = append(words, name)
		}
	}
	return words
}
