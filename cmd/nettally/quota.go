// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

func newQuota() *cobra.Command {
	group := &cobra.Command{
		Use:   "quota",
		Short: "Show how quotas stand, correct what was used, and try notifiers",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	group.AddCommand(newQuotaList(), newQuotaSet(), newQuotaReset(), newQuotaTest())
	return group
}

func newQuotaList() *cobra.Command {
	var output string
	var check bool
	list := &cobra.Command{
		Use:   "list [NAME…]",
		Short: "Show what was used of each quota, by key",
		Long: `Show what was used of each quota, by key, or of those quotas that are named.

With --check it prints one line as a plugin of Nagios does, and ends with its exit code:
0 OK        no level fires
1 WARNING   a level below 100 % fires, or the projection
2 CRITICAL  a level of 100 % or more fires, or a rate
3 UNKNOWN   that can't be told: nettally does not answer, or there is no quota`,
		Example:           `  nettally quota list --check monthly-egress`,
		ValidArgsFunction: completeQuotas,
		RunE: func(cmd *cobra.Command, args []string) error {
			print, ok := map[string]func(io.Writer, *exporter.QuotaList) error{
				"table": printQuotas,
				"json":  printJSON[exporter.QuotaList],
			}[output]
			if !ok {
				return fmt.Errorf("%w: --output: expected table or json, got %q", errUsage, output)
			}
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			found, err := exporter.FetchQuotas(cmd.Context(), config.Exporter.Socket)
			if err != nil {
				return err
			}
			if err := onlyQuotas(found, args); err != nil {
				return err
			}
			if check {
				return printVerdict(cmd.OutOrStdout(), found)
			}
			return print(cmd.OutOrStdout(), found)
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	list.Flags().BoolVar(&check, checkFlag, false, "print one line for Nagios and end with its exit code: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN")
	list.MarkFlagsMutuallyExclusive(checkFlag, "output")
	return list
}

// onlyQuotas leaves those with one of the names, or all where there is no name.
func onlyQuotas(found *exporter.QuotaList, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(found.Quotas, func(q exporter.Quota) bool { return q.Quota == name }) {
			return fmt.Errorf("find quota %q: there is none; see `nettally quota list`", name)
		}
	}
	found.Quotas = slices.DeleteFunc(found.Quotas, func(q exporter.Quota) bool {
		return len(names) > 0 && !slices.Contains(names, q.Quota)
	})
	return nil
}

// printQuotas prints a line per key, and per quota without one, for people.
func printQuotas(w io.Writer, found *exporter.QuotaList) error {
	if len(found.Quotas) == 0 {
		return say(w, "no quotas; see quotas in the configuration")
	}
	t := newTable("QUOTA", "KEY", "USED", "LIMIT", "", "RATIO", "PROJECTED", "RESETS AT", "ALERTS")
	t.bars = 4
	for _, q := range found.Quotas {
		projected := "-"
		if q.Projected != nil {
			projected = quota.Amount(*q.Projected, q.Unit, q.Decimal)
		}
		t.row(q.Quota, dash(quotaKey(q)), quota.Amount(q.Used, q.Unit, q.Decimal), quota.Amount(q.Limit, q.Unit, q.Decimal), bar(min(q.Ratio, 1), lookOf(w)),
			fmt.Sprintf("%.1f%%", 100*q.Ratio), projected, resetsAt(q), alertsOf(q))
	}
	if err := t.print(w); err != nil || found.ClockDistrust == "" {
		return err
	}
	return say(w, "%s", found.ClockDistrust)
}

// quotaKey is the key as people know it: a container by its name, too.
func quotaKey(q exporter.Quota) string {
	if q.Per != quota.PerContainer {
		return q.Key
	}
	if q.Name == "" || q.Name == q.Key {
		return usage.ShortID(q.Key)
	}
	return q.Name + " (" + usage.ShortID(q.Key) + ")"
}

func resetsAt(q exporter.Quota) string {
	switch {
	case q.PeriodEnd != nil:
		return q.PeriodEnd.Local().Format("2006-01-02 15:04")
	case q.Every == "":
		return "-"
	}
	return q.Every
}

func alertsOf(q exporter.Quota) string {
	var firing []string
	for _, l := range q.Levels {
		if l.Firing {
			firing = append(firing, l.Level)
		}
	}
	return dash(strings.Join(firing, ","))
}

func newQuotaSet() *cobra.Command {
	var key string
	set := &cobra.Command{
		Use:     "set NAME AMOUNT",
		Short:   "Say what was used in the running period",
		Example: "  nettally quota set monthly-egress 37.5GiB --key web",
		Args:    arguments(cobra.ExactArgs(2)),

		ValidArgsFunction: completeQuotas,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			count, keys, err := countOf(cmd, config, args[0])
			if err != nil {
				return err
			}
			used, err := configs.ParseAmount(args[1], count)
			if err != nil {
				return fmt.Errorf("%w: AMOUNT: %w", errUsage, err)
			}
			if key == "" && keys > 1 {
				return fmt.Errorf("%w: quota %s has %d keys: give --key to say whose usage it is", errUsage, args[0], keys)
			}
			return exporter.ChangeQuota(cmd.Context(), config.Exporter.Socket, args[0], exporter.QuotaChange{Key: key, Used: &used})
		},
	}
	set.Flags().StringVar(&key, "key", "", "the `key` whose usage it is, as the JSON of quota list has it; needed unless it is the only one")
	return set
}

// countOf asks the daemon what a quota counts, and for how many keys: the file may have
// changed since.
func countOf(cmd *cobra.Command, config *configs.Config, name string) (count string, keys int, err error) {
	found, err := exporter.FetchQuotas(cmd.Context(), config.Exporter.Socket)
	if err != nil {
		return "", 0, err
	}
	for _, q := range found.Quotas {
		if q.Quota == name {
			count = q.Count
			if q.Key != "" {
				keys++
			}
		}
	}
	switch {
	case count == "":
		return "", 0, fmt.Errorf("find quota %q: there is none; see `nettally quota list`", name)
	case keys == 0:
		return "", 0, fmt.Errorf("set quota %s: no container is counted by it yet", name)
	}
	return count, keys, nil
}

func newQuotaReset() *cobra.Command {
	var key string
	var all bool
	reset := &cobra.Command{
		Use:   "reset NAME",
		Short: "Begin at 0 again within the running period",
		Args:  arguments(cobra.ExactArgs(1)),

		ValidArgsFunction: completeQuotas,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (key == "") != all {
				return fmt.Errorf("%w: give either --key or --all: see `%s --help`", errUsage, cmd.CommandPath())
			}
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			return exporter.ChangeQuota(cmd.Context(), config.Exporter.Socket, args[0], exporter.QuotaChange{Key: key})
		},
	}
	reset.Flags().StringVar(&key, "key", "", "the `key` to begin anew, as the JSON of quota list has it")
	reset.Flags().BoolVar(&all, "all", false, "begin all keys anew")
	return reset
}

func newQuotaTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test NOTIFIER",
		Short: "Send a test alert by one of the notifiers",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := loadClientConfig(cmd)
			if err != nil {
				return err
			}
			if err := exporter.TestNotifier(cmd.Context(), config.Exporter.Socket, args[0]); err != nil {
				return err
			}
			return say(cmd.OutOrStdout(), "the test alert was sent")
		},
	}
}

// quotaRules are the quotas of a configuration, in the words of the room that counts them.
func quotaRules(config *configs.Config) []quota.Rule {
	rules := make([]quota.Rule, len(config.Quotas))
	for i, q := range config.Quotas {
		rules[i] = quota.Rule{
			Name: q.Name, Per: q.Per, Count: quota.Count(q.Count), Limit: q.Limit, AlertAt: q.AlertAt,
			Match: quota.Match{
				Name: q.Match.Name, ID: q.Match.ID, Image: q.Match.Image, Runtime: q.Match.Runtime,
				Namespace: q.Match.Namespace, Pod: q.Match.Pod, User: q.Match.User,
			},
			Period:     quota.Period{Every: quota.Every(q.Every), Day: q.Day, Location: q.Location, Window: q.Window},
			Projection: q.Projection, Initial: q.Initial, Decimal: q.Decimal, Notify: q.Notify,
		}
		for _, l := range q.Match.Labels {
			rules[i].Match.Labels = append(rules[i].Match.Labels, quota.LabelMatch(l))
		}
		if q.Rate != nil {
			rate := quota.Rate(*q.Rate)
			rules[i].Rate = &rate
		}
	}
	return rules
}

// ruleCache makes the rules of a configuration once.
type ruleCache struct {
	config *configs.Config
	rules  []quota.Rule
}

func (c *ruleCache) of(config *configs.Config) []quota.Rule {
	if c.config != config {
		c.config, c.rules = config, quotaRules(config)
	}
	return c.rules
}
