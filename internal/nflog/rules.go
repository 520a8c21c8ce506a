// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Rules are rules that log connection requests to a group, in the words of nft or iptables.
// A request is a TCP packet with SYN and without ACK, and of other protocols the first packet
// of a connection that conntrack knows. One packet is logged once, whatever it passes.
type Rules struct {
	Group      uint16
	Interfaces []string // of the host: bridges, and veths without one; "veth*" is all that begin so

	// IPv4Bridged and IPv6Bridged say that frames from port to port of a bridge pass the rules
	// of inet tables as well: br_netfilter is loaded and its sysctl set.
	IPv4Bridged, IPv6Bridged bool
}

// interfaceName is what both tools take without quoting.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.@:-]{1,15}\*?$`)

// CheckInterface returns an error if rules can't name an interface.
func CheckInterface(name string) error {
	if !interfaceName.MatchString(name) {
		return fmt.Errorf("interface %q: expected a name such as docker0, or the beginning of one such as veth*", name)
	}
	return nil
}

// Bridged reads from /proc/sys/net/bridge whether the inet rules of a network namespace see
// what passes a bridge.
func Bridged() (ipv4, ipv6 bool) {
	on := func(name string) bool {
		text, err := os.ReadFile("/proc/sys/net/bridge/" + name)
		return err == nil && strings.TrimSpace(string(text)) != "0"
	}
	return on("bridge-nf-call-iptables"), on("bridge-nf-call-ip6tables")
}

const tcpRequest = "tcp flags & (fin | syn | rst | ack) == syn"

// NFT returns the rules as a file for `nft -f`. Loading it again replaces them.
func (r Rules) NFT() string {
	var b strings.Builder
	say := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	log := fmt.Sprintf("counter log group %d", r.Group)
	say("# Connection requests for nettally. Load it by: nft -f FILE")
	say("table inet nettally")
	say("delete table inet nettally")
	say("table inet nettally {")
	say("  chain requests {")
	say("    %s %s", tcpRequest, log)
	say("    meta l4proto != tcp ct state new ct status & confirmed == 0 %s", log)
	say("  }")
	for _, hook := range []struct {
		name    string
		in, out bool
	}{{"forward", true, true}, {"input", true, false}, {"output", false, true}} {
		say("  chain %s {", hook.name)
		say("    type filter hook %s priority -1; policy accept;", hook.name)
		for _, name := range r.Interfaces {
			if hook.in {
				say("    iifname %q goto requests", name)
			}
			if hook.out {
				say("    oifname %q goto requests", name)
			}
		}
		say("  }")
	}
	say("}")
	r.nftBridge(say, log)
	return b.String()
}

// nftBridge adds the rules for what passes from port to port of a bridge, where no inet rule
// sees that. They do without conntrack, which few kernels have for bridges.
func (r Rules) nftBridge(say func(string, ...any), log string) {
	say("table bridge nettally")
	say("delete table bridge nettally")
	if r.IPv4Bridged && r.IPv6Bridged {
		say("# Frames from port to port of a bridge pass the rules above: net.bridge.bridge-nf-call-iptables is set.")
		return
	}
	say("# Frames from port to port of a bridge. Of these only TCP: few kernels have conntrack there.")
	say("table bridge nettally {")
	say("  chain forward {")
	say("    type filter hook forward priority -1; policy accept;")
	if !r.IPv4Bridged {
		say("    ether type ip %s %s", tcpRequest, log)
	}
	if !r.IPv6Bridged {
		say("    ether type ip6 %s %s", tcpRequest, log)
	}
	say("  }")
	say("}")
}

// chains are the two of ours in the table mangle, which comes before all filters and which
// container runtimes leave alone.
const (
	chainFrom = "NETTALLY"
	chainLog  = "NETTALLY-LOG"
)

// IPTables returns the rules as commands for a shell.
func (r Rules) IPTables() string {
	var b strings.Builder
	say := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	say("# Connection requests for nettally. Run it by: sh -e FILE")
	for _, tool := range []struct {
		name    string
		bridged bool
		sysctl  string
	}{{"iptables", r.IPv4Bridged, "iptables"}, {"ip6tables", r.IPv6Bridged, "ip6tables"}} {
		if !tool.bridged {
			say("# Frames from port to port of a bridge pass %s only with: sysctl -w net.bridge.bridge-nf-call-%s=1", tool.name, tool.sysctl)
		}
		t := tool.name + " -w -t mangle "
		for _, chain := range []string{chainFrom, chainLog} {
			say("%s-N %s 2>/dev/null || %s-F %s", t, chain, t, chain)
		}
		log := fmt.Sprintf("-j NFLOG --nflog-group %d", r.Group)
		say("%s-A %s -p tcp --tcp-flags FIN,SYN,RST,ACK SYN %s", t, chainLog, log)
		say("%s-A %s ! -p tcp -m conntrack --ctstate NEW ! --ctstatus CONFIRMED %s", t, chainLog, log)
		for _, option := range []string{"-i", "-o"} {
			for _, name := range r.Interfaces {
				if prefix, all := strings.CutSuffix(name, "*"); all {
					name = prefix + "+"
				}
				say("%s-A %s %s %s -g %s", t, chainFrom, option, name, chainLog)
			}
		}
		for _, hook := range []string{"FORWARD", "INPUT", "OUTPUT"} {
			jump := hook + " -j " + chainFrom
			say("%s-C %s 2>/dev/null || %s-A %s", t, jump, t, jump)
		}
	}
	return b.String()
}

// Candidates returns the interfaces of the host that rules are for: bridges with host veths,
// and those without a bridge by what their names begin with.
func Candidates() ([]string, error) { return candidates(0) }

func candidates(netns int) ([]string, error) {
	links, err := linksOf(netns)
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var found []string
	for _, l := range links {
		if _, ok := peerNamespace(l); !ok || l.Type() == "bridge" {
			continue
		}
		name := names[l.Attrs().MasterIndex]
		if l.Attrs().MasterIndex == 0 {
			name = family(l.Attrs().Name)
		}
		if name != "" && CheckInterface(name) == nil && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found, nil
}

// family returns a pattern for a host veth's name: runtimes give each a beginning and a number.
func family(name string) string {
	for _, prefix := range []string{"veth", "cali", "lxc", "eni"} {
		if strings.HasPrefix(name, prefix) {
			return prefix + "*"
		}
	}
	return name
}
