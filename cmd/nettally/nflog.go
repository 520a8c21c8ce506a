// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nettally/nettally/internal/nflog"
	"github.com/nettally/nettally/internal/usage"
)

// newRequests returns what counts connection requests by firewall rules, nil where it is off.
func (d *daemon) newRequests() *nflog.Counter {
	group := d.config.Load().Accounting.NFLOG.Group
	if group == 0 {
		return nil
	}
	return nflog.New(nflog.Options{
		Group: group,
		Owner: func(ifindex int) string { return d.accounts.Account(usage.OnHost(ifindex)) },
		Count: d.countSYN,
		Log:   d.log,
	})
}

func newNFLOG() *cobra.Command {
	c := &cobra.Command{
		Use:   "nflog",
		Short: "Connection requests by rules of nftables or iptables",
		Args:  arguments(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newNFLOGRules())
	return c
}

func newNFLOGRules() *cobra.Command {
	var group uint16
	var interfaces []string
	var format string
	c := &cobra.Command{
		Use:   "rules",
		Short: "Print the rules that log connection requests, to add to nftables or iptables",
		Long: "Print the rules that log connection requests to the group of accounting.nflog.group. Add them by\n" +
			"`nettally nflog rules | nft -f -` or `nettally nflog rules --format iptables | sh -e`.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rules, err := rulesFor(cmd, group, interfaces)
			if err != nil {
				return err
			}
			text := ""
			switch format {
			case "nft":
				text = rules.NFT()
			case "iptables":
				text = rules.IPTables()
			default:
				return fmt.Errorf("%w: --format: expected nft or iptables, got %q", errUsage, format)
			}
			for line := range strings.Lines(text) {
				if err := say(cmd.OutOrStdout(), "%s", strings.TrimRight(line, "\n")); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().Uint16Var(&group, "group", 0, "the group, where it is not that of the configuration")
	c.Flags().StringSliceVarP(&interfaces, "interface", "i", nil,
		"bridges of containers, and `interfaces` of those without one, such as docker0 or cali*; by default those that there are now")
	c.Flags().StringVar(&format, "format", "nft", "nft or iptables")
	return c
}

func rulesFor(cmd *cobra.Command, group uint16, interfaces []string) (nflog.Rules, error) {
	r := nflog.Rules{Group: group, Interfaces: interfaces}
	if group == 0 {
		config, err := loadConfig(cmd)
		if err != nil {
			return r, err
		}
		r.Group = config.Accounting.NFLOG.Group
	}
	if r.Group == 0 {
		return r, fmt.Errorf("%w: accounting.nflog.group is 0: set it, or give --group", errUsage)
	}
	for _, name := range interfaces {
		if err := nflog.CheckInterface(name); err != nil {
			return r, fmt.Errorf("%w: --interface: %w", errUsage, err)
		}
	}
	var err error
	if len(interfaces) == 0 {
		if r.Interfaces, err = nflog.Candidates(); err != nil {
			return r, err
		}
		if len(r.Interfaces) == 0 {
			return r, errors.New("there is no interface of a container now: name them by --interface")
		}
	}
	r.IPv4Bridged, r.IPv6Bridged = nflog.Bridged()
	return r, nil
}

// logging looks for the rules that log connection requests.
func logging(ctx context.Context, group uint16) (string, error) {
	hooks, err := nflog.Find(group)
	if err != nil {
		return "", err
	}
	hooks = append(hooks, legacy(ctx, group)...)
	if missing := nflog.Missing(hooks); missing != "" {
		return "", fmt.Errorf("no rule logs connection requests of %s to group %d in the hook forward: add what `nettally nflog rules` prints", missing, group)
	}
	names := make([]string, len(hooks))
	for i, h := range hooks {
		names[i] = h.String()
	}
	says := fmt.Sprintf("rules log to group %d in %s", group, strings.Join(names, ", "))
	ipv4, ipv6 := nflog.Bridged()
	bridged := slices.Contains(hooks, nflog.Hook{Family: "bridge", Name: "forward"})
	switch {
	case bridged && ipv4 && ipv6:
		return "", fmt.Errorf("%s: what passes from port to port of a bridge is logged twice, since net.bridge.bridge-nf-call-iptables is set: `nft delete table bridge nettally`", says)
	case !bridged && (!ipv4 || !ipv6):
		says += "; not what passes from port to port of a bridge"
	}
	return says, nil
}

// legacy returns the hooks of iptables-legacy, whose rules only that itself can list, if it
// has any that log to a group.
func legacy(ctx context.Context, group uint16) []nflog.Hook {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var hooks []nflog.Hook
	for _, of := range []struct{ tables, save, family string }{
		{"/proc/net/ip_tables_names", "iptables-legacy-save", "ip"},
		{"/proc/net/ip6_tables_names", "ip6tables-legacy-save", "ip6"},
	} {
		if names, err := os.ReadFile(of.tables); err != nil || len(names) == 0 {
			continue
		}
		out, err := exec.CommandContext(ctx, of.save).Output()
		logs := regexp.MustCompile(fmt.Sprintf(`(?m)--nflog-group %d( |$)`, group))
		if err == nil && logs.Match(out) {
			hooks = append(hooks, nflog.Hook{Family: of.family, Name: "forward"})
		}
	}
	return hooks
}
