// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Hook is where packets pass rules.
type Hook struct {
	Family string // "ip", "ip6", "inet" or "bridge"
	Name   string // "forward", "input", …
}

func (h Hook) String() string { return h.Family + " " + h.Name }

// Of nfnetlink and nf_tables, which x/sys/unix has in part.
const (
	getChain = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN
	getRule  = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE

	sizeofNfgenmsg = 4
)

var (
	families = map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet", unix.NFPROTO_BRIDGE: "bridge"}
	hooks    = []string{"prerouting", "input", "forward", "output", "postrouting"}
)

// chain is a chain of a table.
type chain struct {
	family      byte
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
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	defer conn.Close()
	t := tables{bases: map[chain]Hook{}, jumps: map[chain][]chain{}, logs: map[chain]bool{}}
	for _, list := range []struct {
		of   netlink.HeaderType
		read func(family byte, attrs *netlink.AttributeDecoder)
	}{{getChain, t.addChain}, {getRule, func(f byte, a *netlink.AttributeDecoder) { t.addRule(f, a, group) }}} {
		reply, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: list.of, Flags: netlink.Request | netlink.Dump},
			Data:   make([]byte, sizeofNfgenmsg),
		})
		if err != nil {
			return nil, fmt.Errorf("list rules of nf_tables: %w", err)
		}
		for _, m := range reply {
			if len(m.Data) < sizeofNfgenmsg {
				continue
			}
			attrs, err := netlink.NewAttributeDecoder(m.Data[sizeofNfgenmsg:])
			if err != nil {
				return nil, fmt.Errorf("parse rules of nf_tables: %w", err)
			}
			attrs.ByteOrder = binary.BigEndian
			if list.read(m.Data[0], attrs); attrs.Err() != nil {
				return nil, fmt.Errorf("parse rules of nf_tables: %w", attrs.Err())
			}
		}
	}
	return t.reaching(), nil
}

func (t *tables) addChain(family byte, attrs *netlink.AttributeDecoder) {
	c, number, base := chain{family: family}, uint32(len(hooks)), false
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_CHAIN_TABLE:
			c.table = attrs.String()
		case unix.NFTA_CHAIN_NAME:
			c.name = attrs.String()
		case unix.NFTA_CHAIN_HOOK:
			base = true
			attrs.Nested(func(hook *netlink.AttributeDecoder) error {
				for hook.Next() {
					if hook.Type() == unix.NFTA_HOOK_HOOKNUM {
						number = hook.Uint32()
					}
				}
				return nil
			})
		}
	}
	if name := families[family]; base && name != "" && int(number) < len(hooks) {
		t.bases[c] = Hook{Family: name, Name: hooks[number]}
	}
}

func (t *tables) addRule(family byte, attrs *netlink.AttributeDecoder, group uint16) {
	c := chain{family: family}
	var targets []string
	logs := false
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_RULE_TABLE:
			c.table = attrs.String()
		case unix.NFTA_RULE_CHAIN:
			c.name = attrs.String()
		case unix.NFTA_RULE_EXPRESSIONS:
			attrs.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(expression *netlink.AttributeDecoder) error {
						to, toGroup := readExpression(expression, group)
						logs = logs || toGroup
						if to != "" {
							targets = append(targets, to)
						}
						return nil
					})
				}
				return nil
			})
		}
	}
	t.logs[c] = t.logs[c] || logs
	for _, name := range targets {
		t.jumps[c] = append(t.jumps[c], chain{family, c.table, name})
	}
}

// readExpression returns the chain that an expression jumps to, "" for none, and whether it
// logs to a group.
func readExpression(attrs *netlink.AttributeDecoder, group uint16) (to string, logs bool) {
	kind := ""
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_EXPR_NAME:
			kind = attrs.String()
		case unix.NFTA_EXPR_DATA:
			switch kind {
			case "log":
				attrs.Nested(func(log *netlink.AttributeDecoder) error { logs = logsTo(log, group); return nil })
			case "target":
				attrs.Nested(func(target *netlink.AttributeDecoder) error { logs = targetsTo(target, group); return nil })
			case "immediate":
				attrs.Nested(func(value *netlink.AttributeDecoder) error { to = verdictOf(value); return nil })
			}
		}
	}
	return to, logs
}

func logsTo(log *netlink.AttributeDecoder, group uint16) (logs bool) {
	for log.Next() {
		if log.Type() == unix.NFTA_LOG_GROUP {
			logs = log.Uint16() == group
		}
	}
	return logs
}

// targetsTo reads a target of xtables, as iptables-nft has it: struct xt_nflog_info.
func targetsTo(target *netlink.AttributeDecoder, group uint16) bool {
	name, to := "", uint16(0)
	for target.Next() {
		switch target.Type() {
		case unix.NFTA_TARGET_NAME:
			name = target.String()
		case unix.NFTA_TARGET_INFO:
			if info := target.Bytes(); len(info) >= 6 {
				to = binary.NativeEndian.Uint16(info[4:])
			}
		}
	}
	return name == "NFLOG" && to == group
}

// verdictOf returns the chain of a verdict.
func verdictOf(value *netlink.AttributeDecoder) (to string) {
	for value.Next() {
		if value.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		value.Nested(func(data *netlink.AttributeDecoder) error {
			for data.Next() {
				if data.Type() != unix.NFTA_DATA_VERDICT {
					continue
				}
				data.Nested(func(verdict *netlink.AttributeDecoder) error {
					for verdict.Next() {
						if verdict.Type() == unix.NFTA_VERDICT_CHAIN {
							to = verdict.String()
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return to
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
