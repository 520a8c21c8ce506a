// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Hook is where packets pass rules.
type Hook struct {
	Family string // "ip", "ip6", "inet" or "bridge"
	Name   string // "forward", "input", …
}

func (h Hook) String() string { return h.Family + " " + h.Name }

var (
	families = map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge",
	}
	hooks = map[nftables.ChainHook]string{
		*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookInput: "input", *nftables.ChainHookForward: "forward",
		*nftables.ChainHookOutput: "output", *nftables.ChainHookPostrouting: "postrouting",
	}
)

// chain is a chain of a table.
type chain struct {
	family      nftables.TableFamily
	table, name string
}

// tables are the chains of nf_tables, which iptables-nft uses too.
type tables struct {
	bases map[chain]Hook
	jumps map[chain][]chain
	logs  map[chain]bool // a rule in it logs to the group
}

// Find returns the hooks of nf_tables from which a rule that logs to a group can be reached by
// jumps. Rules of iptables-legacy are not there, and verdict maps are not followed.
//
// Requires CAP_NET_ADMIN.
func Find(group uint16) ([]Hook, error) { return find(0, group) }

func find(netns int, group uint16) ([]Hook, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(netns))
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains of nf_tables: %w", err)
	}
	t := tables{bases: map[chain]Hook{}, jumps: map[chain][]chain{}, logs: map[chain]bool{}}
	for _, c := range chains {
		at := chain{c.Table.Family, c.Table.Name, c.Name}
		if family := families[at.family]; family != "" && c.Hooknum != nil && hooks[*c.Hooknum] != "" {
			t.bases[at] = Hook{Family: family, Name: hooks[*c.Hooknum]}
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("list rules of nf_tables in %s %s: %w", c.Table.Name, c.Name, err)
		}
		for _, rule := range rules {
			t.add(at, rule, group)
		}
	}
	return t.reaching(), nil
}

// add notes where a rule jumps to, and whether it logs to a group.
func (t *tables) add(at chain, rule *nftables.Rule, group uint16) {
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Log:
			t.logs[at] = t.logs[at] || e.Key&(1<<unix.NFTA_LOG_GROUP) != 0 && e.Group == group
		case *expr.Target:
			t.logs[at] = t.logs[at] || targetsTo(e, group)
		case *expr.Verdict:
			if e.Chain != "" {
				t.jumps[at] = append(t.jumps[at], chain{at.family, at.table, e.Chain})
			}
		}
	}
}

// targetsTo reads a target of xtables, as iptables-nft has it: struct xt_nflog_info.
func targetsTo(target *expr.Target, group uint16) bool {
	info, ok := target.Info.(*xt.Unknown)
	return target.Name == "NFLOG" && ok && len(*info) >= 6 && binary.NativeEndian.Uint16((*info)[4:]) == group
}

// reaching returns the hooks from which a chain that logs is reached.
func (t *tables) reaching() []Hook {
	var found []Hook
	for base, hook := range t.bases {
		if t.reaches(base, map[chain]bool{}) && !slices.Contains(found, hook) {
			found = append(found, hook)
		}
	}
	slices.SortFunc(found, func(a, b Hook) int {
		if a.String() < b.String() {
			return -1
		}
		return 1
	})
	return found
}

func (t *tables) reaches(from chain, seen map[chain]bool) bool {
	if t.logs[from] {
		return true
	}
	seen[from] = true
	return slices.ContainsFunc(t.jumps[from], func(to chain) bool { return !seen[to] && t.reaches(to, seen) })
}

// Missing says what of the traffic that a host forwards no hook logs, "" if nothing.
func Missing(found []Hook) string {
	has := func(family string) bool {
		return slices.Contains(found, Hook{family, "forward"}) || slices.Contains(found, Hook{"inet", "forward"})
	}
	switch {
	case !has("ip") && !has("ip6"):
		return "IPv4 and IPv6"
	case !has("ip"):
		return "IPv4"
	case !has("ip6"):
		return "IPv6"
	}
	return ""
}
