// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// Containers is the body of GET /api/v1/containers. docs/openapi.yaml documents
// it and the types it is made of.
type Containers struct {
	Containers []Container `json:"containers"`
	// Unowned are the interfaces that are counted and whose container is not
	// known. It is nil, and not in the JSON, unless it was asked for.
	Unowned []Interface `json:"unowned,omitzero"`
	TakenAt time.Time   `json:"taken_at"`
	// BootMS is CLOCK_BOOTTIME in milliseconds at that time. Rates go by it: the wall clock may jump.
	BootMS int64       `json:"boot_ms"`
	Source string      `json:"source"` // of the numbers: "bpf" or "proc"
	NFLOG  *NFLOGState `json:"nflog"`  // nil where firewall rules are not asked
}

// Container is one container in JSON.
type Container struct {
	ID          string            `json:"id"`
	ParentID    string            `json:"parent_id"` // the container around a nested one, or ""
	User        string            `json:"user"`      // the uid of the user whose it is, "" for root's runtimes
	Name        string            `json:"name"`
	Runtime     string            `json:"runtime"`
	Image       string            `json:"image"`
	Namespace   string            `json:"namespace"`
	Pod         string            `json:"pod"`
	Labels      map[string]string `json:"labels"`
	Cgroup      string            `json:"cgroup"`
	State       string            `json:"state"` // "running" or "stopped"
	StartedAt   *time.Time        `json:"started_at"`
	StoppedAt   *time.Time        `json:"stopped_at"` // nil while running
	NetworkMode string            `json:"network_mode"`
	Kernel      string            `json:"kernel"`       // "gvisor" or "kata", its own, or ""
	OnHost      bool              `json:"on_host"`      // found in the host's network: IP has all of it
	NoInterface bool              `json:"no_interface"` // none is known that leads out of its network
	CountedBy   string            `json:"counted_by"`   // what tells what it used: "interfaces", "cgroup" or ""
	SharesWith  string            `json:"shares_with"`  // the container whose interfaces it uses, or ""
	PartOf      string            `json:"part_of"`      // the container whose numbers include these, or ""
	Recalled    bool              `json:"recalled"`     // false: the totals may lack what was counted earlier
	Accounted   bool              `json:"accounted"`
	Reason      string            `json:"reason"` // why not accounted, or ""
	Interfaces  []Interface       `json:"interfaces"`
	Receive     Counts            `json:"receive"`  // the sum over Interfaces
	Transmit    Counts            `json:"transmit"` // the sum over Interfaces
	IP          *IP               `json:"ip"`       // by its cgroup, nil where that is not counted
	TCP         *TCP              `json:"tcp"`      // nil where that is not counted

	Sockets   *Sockets   `json:"sockets"`   // nil where it is not counted
	Requests  *Requests  `json:"requests"`  // nil where nothing of it is counted
	Conntrack *Conntrack `json:"conntrack"` // nil where it is not counted
	NFLOG     *NFLOG     `json:"nflog"`     // by firewall rules, nil where they log nothing of it
}

// IP is what the sockets in a container's cgroup sent and received.
type IP struct {
	Receive  IPCounts `json:"receive"`
	Transmit IPCounts `json:"transmit"`
}

// IPCounts is one direction, from the IP header on.
type IPCounts struct {
	Volume           // wire numbers, without what passed loopback
	TCPSYN    uint64 `json:"tcp_syn"` // without ACK; retransmitted ones too
	TCPSYNACK uint64 `json:"tcp_synack"`
	TCPRST    uint64 `json:"tcp_rst"`
	TCPFIN    uint64 `json:"tcp_fin"`

	Protocols ByProtocol `json:"protocols"`
	Families  IPFamilies `json:"families"`
	Loopback  Volume     `json:"loopback"` // beside the others
}

// IPFamilies splits what has an IP header.
type IPFamilies struct {
	IPv4 Volume `json:"ipv4"`
	IPv6 Volume `json:"ipv6"`
}

// Interface is one interface of a container in JSON.
type Interface struct {
	Name          string     `json:"name"` // as the container calls it
	HostInterface string     `json:"host_interface"`
	Hook          string     `json:"hook"` // "clsact" or "tcx"
	At            string     `json:"at"`   // where that is: "host" or "container"
	AttachedAt    *time.Time `json:"attached_at"`
	Reason        string     `json:"reason"`       // "shadowed", or ""
	SeededBytes   uint64     `json:"seeded_bytes"` // of both directions
	MendedBytes   uint64     `json:"mended_bytes"` // of both directions
	Receive       Counts     `json:"receive"`
	Transmit      Counts     `json:"transmit"`
}

// Counts is one direction, as the container sees it.
type Counts struct {
	Volume                  // wire numbers
	InterfaceBytes   uint64 `json:"interface_bytes"`
	InterfacePackets uint64 `json:"interface_packets"`
	SeededBytes      uint64 `json:"seeded_bytes"` // part of both, and in no protocol or family
	SeededPackets    uint64 `json:"seeded_packets"`
	MendedBytes      uint64 `json:"mended_bytes"` // the same, but in the history and in quotas
	MendedPackets    uint64 `json:"mended_packets"`
	// What the kernel has lost at the container's end, of nothing above; nil if nobody knows.
	DroppedPackets *uint64 `json:"dropped_packets"`
	ErrorPackets   *uint64 `json:"error_packets"`
	// UndeliveredPackets are part of Packets: the host's end has dropped them behind our hook.
	// Nil in transmit, and where the host's end has none.
	UndeliveredPackets *uint64 `json:"undelivered_packets"`
	TCPSYN             uint64  `json:"tcp_syn"` // without ACK; retransmitted ones too
	TCPSYNACK          uint64  `json:"tcp_synack"`
	TCPRST             uint64  `json:"tcp_rst"`
	TCPFIN             uint64  `json:"tcp_fin"`

	Protocols ByProtocol `json:"protocols"`
	Families  ByFamily   `json:"families"`
}

// Volume is an amount of traffic.
type Volume struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
}

// ByProtocol splits wire numbers by transport protocol.
type ByProtocol struct {
	TCP   Volume `json:"tcp"`
	UDP   Volume `json:"udp"`
	ICMP  Volume `json:"icmp"`
	Other Volume `json:"other"`
}

// ByFamily splits wire numbers by network-layer family.
type ByFamily struct {
	IPv4  Volume `json:"ipv4"`
	IPv6  Volume `json:"ipv6"`
	Other Volume `json:"other"`
}

func containersOf(containers []usage.Container) []Container {
	out := make([]Container, len(containers))
	for i := range containers {
		out[i] = containerOf(&containers[i])
	}
	return out
}

func containerOf(c *usage.Container) Container {
	labels := c.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return Container{
		ID:          c.ID,
		User:        c.User(),
		ParentID:    c.ParentID,
		Name:        c.Name,
		Runtime:     c.Runtime,
		Image:       c.Image,
		Namespace:   c.Namespace,
		Pod:         c.Pod,
		Labels:      labels,
		Cgroup:      c.Cgroup,
		State:       string(c.State),
		StartedAt:   utc(c.StartedAt),
		StoppedAt:   utc(c.StoppedAt),
		NetworkMode: c.NetworkMode,
		Kernel:      c.Kernel,
		OnHost:      c.OnHost,
		NoInterface: c.NoInterface,
		CountedBy:   countedBy(c),
		SharesWith:  c.SharesWith,
		PartOf:      c.PartOf(),
		Recalled:    !c.Unrecalled,
		Accounted:   c.Accounted(),
		Reason:      string(c.Reason),
		Interfaces:  interfacesOf(c.Interfaces),
		Receive:     receiveOf(&c.Traffic),
		Transmit:    transmitOf(&c.Traffic),
		IP:          ipOf(c.IP),
		TCP:         tcpOf(c),

		Sockets:   socketsOf(c.Sockets),
		Requests:  requestsOf(c),
		Conntrack: conntrackOf(c.Conntrack),
		NFLOG:     nflogOf(c.Logged),
	}
}

// countedBy returns what tells what a container used.
func countedBy(c *usage.Container) string {
	switch _, byCgroup := c.Used(); {
	case byCgroup:
		return "cgroup"
	case len(c.Interfaces) > 0:
		return "interfaces"
	}
	return ""
}

func ipOf(t *usage.Traffic) *IP {
	if t == nil {
		return nil
	}
	return &IP{Receive: ipCountsOf(&t.Receive), Transmit: ipCountsOf(&t.Transmit)}
}

func ipCountsOf(c *usage.Counts) IPCounts {
	all := countsOf(c)
	return IPCounts{
		Volume:    all.Volume,
		TCPSYN:    all.TCPSYN,
		TCPSYNACK: all.TCPSYNACK,
		TCPRST:    all.TCPRST,
		TCPFIN:    all.TCPFIN,
		Protocols: all.Protocols,
		Families:  IPFamilies{IPv4: all.Families.IPv4, IPv6: all.Families.IPv6},
		Loopback:  Volume(c.Loopback),
	}
}

func interfacesOf(interfaces []usage.Interface) []Interface {
	out := make([]Interface, len(interfaces))
	for i := range interfaces {
		iface := &interfaces[i]
		out[i] = Interface{
			Name:          iface.Name,
			HostInterface: iface.HostInterface,
			Hook:          iface.Hook,
			At:            string(cmp.Or(iface.At, usage.AtHost)),
			AttachedAt:    utc(iface.AttachedAt),
			Reason:        reasonOf(iface),
			SeededBytes:   usage.Add(iface.Receive.Seeded.Bytes, iface.Transmit.Seeded.Bytes),
			MendedBytes:   usage.Add(iface.Receive.Mended.Bytes, iface.Transmit.Mended.Bytes),
			Receive:       receiveOf(&iface.Traffic),
			Transmit:      transmitOf(&iface.Traffic),
		}
	}
	return out
}

func reasonOf(iface *usage.Interface) string {
	if iface.Shadowed {
		return string(usage.Shadowed)
	}
	return ""
}

func receiveOf(t *usage.Traffic) Counts {
	c := countsOf(&t.Receive)
	c.lose(t.Lost.Known, t.Lost.Receive)
	if t.Lost.Followed {
		c.UndeliveredPackets = &t.Lost.Undelivered
	}
	return c
}

func transmitOf(t *usage.Traffic) Counts {
	c := countsOf(&t.Transmit)
	c.lose(t.Lost.Known, t.Lost.Transmit)
	return c
}

func (c *Counts) lose(known bool, lost usage.Loss) {
	if known {
		c.DroppedPackets, c.ErrorPackets = &lost.Dropped, &lost.Errors
	}
}

func countsOf(c *usage.Counts) Counts {
	return Counts{
		Volume:           Volume(c.Wire()),
		InterfaceBytes:   c.Interface.Bytes,
		InterfacePackets: c.Interface.Packets,
		SeededBytes:      c.Seeded.Bytes,
		SeededPackets:    c.Seeded.Packets,
		MendedBytes:      c.Mended.Bytes,
		MendedPackets:    c.Mended.Packets,
		TCPSYN:           c.SYN,
		TCPSYNACK:        c.SYNACK,
		TCPRST:           c.RST,
		TCPFIN:           c.FIN,
		Protocols: ByProtocol{
			TCP:   Volume(c.Protocol(usage.ProtocolTCP)),
			UDP:   Volume(c.Protocol(usage.ProtocolUDP)),
			ICMP:  Volume(c.Protocol(usage.ProtocolICMP)),
			Other: Volume(c.Protocol(usage.ProtocolOther)),
		},
		Families: ByFamily{
			IPv4:  Volume(c.Family(usage.FamilyIPv4)),
			IPv6:  Volume(c.Family(usage.FamilyIPv6)),
			Other: Volume(c.Family(usage.FamilyOther)),
		},
	}
}

// utc returns nil for a time that is not known.
func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
