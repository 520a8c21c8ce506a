// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"math"
	"math/bits"
	"time"
)

// Family is a network-layer protocol family. It indexes [Counts.Cells].
type Family int

// The families that are told apart. A frame that is neither IPv4 nor IPv6 (ARP,
// LLDP, MPLS, …) is FamilyOther.
const (
	FamilyIPv4 Family = iota
	FamilyIPv6
	FamilyOther
	Families
)

func (f Family) String() string { return [Families]string{"ipv4", "ipv6", "other"}[f] }

// Protocol is a transport protocol. It indexes [Counts.Cells].
type Protocol int

// The protocols that are told apart. Everything else, and all of FamilyOther, is
// ProtocolOther.
const (
	ProtocolTCP Protocol = iota
	ProtocolUDP
	ProtocolICMP
	ProtocolOther
	Protocols
)

func (p Protocol) String() string {
	return [Protocols]string{"tcp", "udp", "icmp", "other"}[p]
}

// Volume is an amount of traffic.
type Volume struct {
	Bytes   uint64 // layer 2, without preamble, FCS and inter-frame gap
	Packets uint64
}

func (v Volume) plus(w Volume) Volume {
	return Volume{Bytes: Add(v.Bytes, w.Bytes), Packets: Add(v.Packets, w.Packets)}
}

// Add returns the sum of two totals, or the highest number where that is less: a total that
// went back would look like a new beginning.
func Add(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}

// Counts is what was counted in one direction.
type Counts struct {
	// Interface counts one packet per socket buffer and its length, which is what
	// the kernel's own interface counters say while segmentation offload is on.
	Interface Volume

	// Cells holds the wire numbers: a super-packet of segmentation offload counts
	// as the segments it stands for, each with its own headers.
	Cells [Families][Protocols]Volume

	// Seeded is what the kernel's interface counters said when counting began, part of
	// Interface and of Wire: it belongs to the lifetime of the container and to no
	// hour, period or rate. Of its protocols and families nothing is known.
	Seeded Volume

	// Mended is what those counters say that passed since, while our programs saw nothing:
	// somebody had taken them off, or let packets past them. It is part of Interface and of
	// Wire as well, and belongs to the moment when it was noticed.
	Mended Volume

	// Loopback is what passed the loopback interface, of a cgroup's counts: bytes from the
	// IP header on, and a packet each time it is seen, which is twice where both ends are
	// in the cgroup. It is part of nothing else here.
	Loopback Volume

	SYN    uint64 // SYN without ACK: requests, retransmitted ones too
	SYNACK uint64
	RST    uint64
	FIN    uint64
}

// Wire returns the primary numbers: the wire numbers over all families and protocols,
// and what was seeded and mended.
func (c Counts) Wire() Volume { return c.Timed().plus(c.Seeded) }

// Timed returns the wire numbers that belong to a time, and so to hours, periods and rates:
// all but what was seeded.
func (c Counts) Timed() Volume { return c.Counted().plus(c.Mended) }

// Counted returns the wire numbers that we counted ourselves.
func (c Counts) Counted() Volume {
	var sum Volume
	for family := range c.Cells {
		sum = sum.plus(c.Family(Family(family)))
	}
	return sum
}

// Family returns the wire numbers of one family.
func (c Counts) Family(f Family) Volume {
	var sum Volume
	for _, v := range c.Cells[f] {
		sum = sum.plus(v)
	}
	return sum
}

// Protocol returns the wire numbers of one protocol.
func (c Counts) Protocol(p Protocol) Volume {
	var sum Volume
	for _, cells := range c.Cells {
		sum = sum.plus(cells[p])
	}
	return sum
}

// Plus returns the sum of two counts, as [Add] makes it.
func (c Counts) Plus(d Counts) Counts {
	sum := Counts{
		Interface: c.Interface.plus(d.Interface),
		Seeded:    c.Seeded.plus(d.Seeded),
		Mended:    c.Mended.plus(d.Mended),
		Loopback:  c.Loopback.plus(d.Loopback),
		SYN:       Add(c.SYN, d.SYN),
		SYNACK:    Add(c.SYNACK, d.SYNACK),
		RST:       Add(c.RST, d.RST),
		FIN:       Add(c.FIN, d.FIN),
	}
	for f := range c.Cells {
		for p := range c.Cells[f] {
			sum.Cells[f][p] = c.Cells[f][p].plus(d.Cells[f][p])
		}
	}
	return sum
}

// Traffic is what was counted in both directions, as the container sees them.
type Traffic struct {
	Receive  Counts
	Transmit Counts
	// TCP is what the program for connections counted, which counts nothing else.
	TCP TCP `json:",omitzero"`
	// Sockets is what was counted on the slot of that program, of calls.
	Sockets Sockets `json:",omitzero"`
	// Requests is what was counted on that slot at layer 7, nil for nothing. Traffics share what it
	// points to, so that is never changed.
	Requests *Requests `json:",omitempty"`
	Lost     Lost      `json:",omitzero"`
}

// Plus returns the sum of two traffics.
func (t Traffic) Plus(u Traffic) Traffic {
	return Traffic{
		Receive: t.Receive.Plus(u.Receive), Transmit: t.Transmit.Plus(u.Transmit),
		TCP: t.TCP.Plus(u.TCP), Sockets: t.Sockets.Plus(u.Sockets), Requests: t.Requests.Plus(u.Requests),
		Lost: t.Lost.plus(u.Lost),
	}
}

// State says whether a container runs.
type State string

// The states of a container.
const (
	Running State = "running"
	Stopped State = "stopped"
)

// Reason says why a container's traffic is not counted.
type Reason string

// The reasons for a container not to be accounted.
const (
	Accounted     Reason = ""
	Starting      Reason = "starting"       // its namespace or its veth is not there yet
	Ended         Reason = "ended"          // it ended before its veth was there
	HostNetwork   Reason = "host_network"   // shares the host's namespace
	SharedNetwork Reason = "shared_network" // counted with the container that owns the namespace
	// SeveralNetworks: its processes are in several namespaces, or may be, and only the
	// interfaces in one are counted.
	SeveralNetworks Reason = "several_networks"
	NoHostVeth      Reason = "no_host_veth"  // no interface, or one without an end in the host
	AttachFailed    Reason = "attach_failed" // see the log
	// CgroupTaken: it could be counted by its cgroup alone, and another's program there, or on
	// a cgroup above, allows none beside it.
	CgroupTaken Reason = "cgroup_taken"
	Excluded    Reason = "excluded" // it is not to be counted any more, by the configuration
	// InterfaceExcluded: one of its interfaces is not to be counted, by the configuration.
	InterfaceExcluded Reason = "interface_excluded"
	// PartlyCounted: one of its interfaces leads out and can't be counted.
	PartlyCounted Reason = "partly_counted"
	Shadowed      Reason = "shadowed" // another's program lets packets past that we don't see
)

// ByInterfaces says that what a container used is told by its interfaces alone, all or in part.
func (r Reason) ByInterfaces() bool {
	return r == Accounted || r == InterfaceExcluded || r == PartlyCounted
}

// inPart says that a part of what a container used is told, whatever else is counted.
func (r Reason) inPart() bool { return r == Shadowed || r == InterfaceExcluded || r == PartlyCounted }

// Place says where an interface is counted.
type Place string

// The places.
const (
	AtHost      Place = "host"      // on the host veth
	AtContainer Place = "container" // on the interface itself, which has no end in the host
)

// Interface is one interface of a container, or an attachment nobody owns.
type Interface struct {
	Name          string // as the container calls it, "" when nobody owns it
	HostInterface string // the host veth's name, the last one where there were several
	Hook          string // how it is counted: "clsact" or "tcx"
	At            Place  // where that hook is
	AttachedAt    time.Time
	Attached      bool // false: the numbers are final until a new veth takes over
	Shadowed      bool // the kernel counts packets here that do not reach our filters
	Traffic
}

// Container is the usage of one container.
type Container struct {
	ID        string // full, as in the cgroup path, and with its user if it is not root's: "1000~<id>"
	ParentID  string // the container around a nested one, or ""
	Name      string // the runtime's name, or the id while none is known; with its user, too
	Runtime   string // "docker", "containerd", "crio", "podman", … or ""
	Image     string
	Namespace string // Kubernetes namespace
	Pod       string // Kubernetes pod name, or its uid while none is known
	Labels    map[string]string
	Cgroup    string // path within the hierarchy, "/docker/<id>"

	State       State
	StartedAt   time.Time
	StoppedAt   time.Time     // zero while running
	StoppedFor  time.Duration // when the snapshot was taken, whatever the clock did meanwhile
	NetworkMode string        // "bridge", "host", "none", "container", … or ""
	Reason      Reason        // Accounted, or why not
	// Unrecalled says that the ledger was not asked yet what it counted before: a disk hangs.
	Unrecalled bool
	// OnHost says that it was found in the host's network namespace, whatever a runtime says.
	OnHost bool
	// NoInterface says that no interface is known that leads out of its network namespace.
	NoInterface bool
	// Shares says that it is in another container's network namespace: what it sends and
	// receives is on the interfaces of that one.
	Shares bool
	// SharesWith is the id of that one, if it is known and there.
	SharesWith string
	// Kernel is the kernel of its own that it runs on by its processes' names: "gvisor", "kata",
	// or "" for the host's. What it sends by that kernel has no socket in its cgroup.
	Kernel string

	Interfaces []Interface // by name
	Traffic                // the sum over Interfaces

	// IP is what the sockets of the container's cgroup sent and received, from the IP header
	// on: what tells apart containers that share a namespace. Nil where that is not counted.
	IP      *Traffic
	IPSince time.Time // it is counted

	// TCP is what became of the TCP connections of the container's cgroup. Nil where that is
	// not counted.
	TCP      *TCP
	TCPSince time.Time // it is counted
	// Established is how many of them are established now, nil where that is not known.
	Established *uint64
	// Sockets is what its processes sent and received at their sockets, nil where that is not
	// counted.
	Sockets *Sockets
	// Requests is what its sockets said at layer 7, nil where nothing of that is counted, and
	// Layer7 which of it is counted.
	Requests *Requests
	Layer7   Layer7
	// Conntrack is filled in by who has it, see package conntrack.
	Conntrack *Conntrack
	// Logged is nil where firewall rules are not asked, and until they log something of it.
	Logged *Logged
}

// Accounted says whether the container's traffic is counted.
func (c Container) Accounted() bool { return c.Reason == Accounted }

// Used returns what a container has used in its life, and whether its cgroup tells it: on the
// host's network, whatever interfaces it has made beside that, and where it has no interface of
// its own, as in another container's namespace. The owner of an interface that others share has
// what they use, too.
func (c *Container) Used() (t *Traffic, byCgroup bool) {
	if c.IP != nil && (c.OnHost || len(c.Interfaces) == 0) {
		return c.IP, true
	}
	return &c.Traffic, false
}

// PartOf returns the id of the container of the same user whose numbers include what this one
// used, by its cgroup: the one around a nested container, or the owner of the interfaces that it
// shares. It is "" where there is none, or none is known.
func (c *Container) PartOf() string {
	if _, byCgroup := c.Used(); !byCgroup {
		return ""
	}
	for _, id := range []string{c.ParentID, c.SharesWith} {
		if id != "" && UserOf(id) == c.User() {
			return id
		}
	}
	return ""
}

// Snapshot is the usage of the whole host at one moment. It belongs to the
// caller.
type Snapshot struct {
	TakenAt    time.Time
	ReadAt     time.Time   // the counters were brought up to date; zero if that was at TakenAt
	Containers []Container // by start time, then id
	Unowned    []Interface // attachments without a container, by host interface
	// Orphaned is what interfaces have counted that went before a container was known that
	// owns them, since this process began. It only grows.
	Orphaned Traffic
	Cgroups  int       // that are counted now
	Sockets  int       // cgroups whose connections are counted now
	Beyond   Beyond    // the bounds of [Limits]
	Log      *LogState // nil where firewall rules are not asked

	// Uncounted counts packets that no slot took, by cause.
	Uncounted map[string]uint64
	// Unclassified counts packets whose bytes were counted and whose headers
	// could not be read, by cause.
	Unclassified map[string]uint64
}
