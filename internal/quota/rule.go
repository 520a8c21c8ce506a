// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// Count says what a rule counts.
type Count string

// What can be counted. SYN are TCP packets with SYN and without ACK. Connections are those of
// [usage.TCP], and HTTP requests those of [usage.Requests]; both are told where they are counted.
const (
	ReceiveBytes    Count = "receive_bytes"
	TransmitBytes   Count = "transmit_bytes"
	TotalBytes      Count = "total_bytes"
	ReceivePackets  Count = "receive_packets"
	TransmitPackets Count = "transmit_packets"
	TotalPackets    Count = "total_packets"
	ReceiveSYN      Count = "receive_tcp_syn"
	TransmitSYN     Count = "transmit_tcp_syn"
	TotalSYN        Count = "total_tcp_syn"

	TCPConnectAttempts Count = "tcp_connect_attempts"
	TCPConnects        Count = "tcp_connects"
	TCPAccepts         Count = "tcp_accepts"
	TCPConnectFailures Count = "tcp_connect_failures"

	ReceiveHTTPRequests  Count = "receive_http_requests"
	TransmitHTTPRequests Count = "transmit_http_requests"
)

// Units of counts.
const (
	Bytes       = "bytes"
	Packets     = "packets"
	Requests    = "requests"
	Connections = "connections"
)

// ofTCP says whether connections are counted.
func (c Count) ofTCP() bool { return strings.HasPrefix(string(c), "tcp_") }

// ofOutcomes says whether what becomes of attempts to connect is counted.
func (c Count) ofOutcomes() bool { return c == TCPConnects || c == TCPConnectFailures }

// ofHTTP says whether HTTP requests are counted.
func (c Count) ofHTTP() bool { return strings.HasSuffix(string(c), "_http_requests") }

// bySockets says whether the count is by the container's cgroup, whatever its traffic is counted
// by.
func (c Count) bySockets() bool { return c.ofTCP() || c.ofHTTP() }

// Unit returns what the count is in: Bytes, Packets, Requests or Connections.
func (c Count) Unit() string {
	if c.ofTCP() {
		return Connections
	}
	_, what, _ := strings.Cut(string(c), "_")
	return map[string]string{"bytes": Bytes, "packets": Packets, "tcp_syn": Requests, "http_requests": Requests}[what]
}

// What a rule sums up by. PerLabel is followed by the label's key.
const (
	PerContainer = "container"
	PerName      = "name" // its key is that of usage.Container.NameKey
	PerPod       = "pod"  // its key is the namespace, a slash and the pod
	PerNamespace = "namespace"
	PerAll       = "all" // so is its key
	PerLabel     = "label:"
)

// Rule is one quota. It has a limit, or a rate.
type Rule struct {
	Name  string // without a slash
	Match Match
	Per   string // PerContainer, …
	Count Count

	// Limit is the amount for a period, in the count's unit; 0 for a rule with a rate.
	Limit  uint64
	Period Period
	// AlertAt are the percentages of the limit that fire, ascending.
	AlertAt    []int
	Projection bool
	// Initial is what was used before the rule was first seen, by each key.
	Initial uint64

	Rate *Rate // nil for a rule with a limit
	// Decimal says that the limit or the rate was given in kB, MB, …: so its amounts of bytes
	// are shown. Else they are in KiB, MiB, ….
	Decimal bool

	Notify []string // names of notifiers
}

// Rate is a bound on how fast a count grows.
type Rate struct {
	Above float64 // per second, in the count's unit
	Clear float64 // at most Above
	For   time.Duration
	Bits  bool // bounds are shown in bits
}

// LabelMatch is a glob on the value of a label, which has to be there.
type LabelMatch struct{ Name, Value string }

// Match chooses containers: each glob has to match, "" does not ask. Unlike in
// [path.Match], * and ? match a slash, too.
type Match struct {
	Name, ID, Image, Runtime, Namespace, Pod string
	Labels                                   []LabelMatch
	// User is a uid, or a glob of some; "" is for the containers of root's runtimes: what
	// users call theirs is for nobody else's quota.
	User string
}

func (m Match) matches(c *usage.Container) bool {
	user := c.User()
	if (m.User == "") != (user == "") || user != "" && !globbed(m.User, user) {
		return false
	}
	for _, pair := range [...]struct{ glob, text string }{
		{m.ID, usage.Bare(user, c.ID)}, {m.Image, c.Image}, {m.Runtime, c.Runtime},
		{m.Namespace, usage.Bare(user, c.Namespace)}, {m.Pod, usage.Bare(user, c.Pod)},
	} {
		if pair.glob != "" && !globbed(pair.glob, pair.text) {
			return false
		}
	}
	if m.Name != "" && !globbed(m.Name, usage.Bare(user, c.Name)) && !globbed(m.Name, usage.Bare(user, c.LastingName())) {
		return false
	}
	for _, l := range m.Labels {
		if value, ok := c.Labels[l.Name]; !ok || !globbed(l.Value, value) {
			return false
		}
	}
	return true
}

// ofPods says whether whole pods are chosen, and never some containers of one.
func (m Match) ofPods() bool {
	return m.ID == "" && m.Name == "" && m.Image == "" && len(m.Labels) == 0
}

// globbed hides slashes from path.Match, which would stop a * at them.
func globbed(glob, text string) bool {
	hide := func(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
	ok, err := path.Match(hide(glob), hide(text))
	return ok && err == nil
}

// key returns what a container is counted under, or "" for not at all.
func (r *Rule) key(c *usage.Container, source string) string {
	if !r.Match.matches(c) || r.countedByOwner(c, source) {
		return ""
	}
	switch r.Per {
	case PerContainer:
		return c.ID
	case PerName:
		return c.NameKey()
	case PerPod:
		return c.PodKey()
	case PerNamespace:
		return c.Namespace
	case PerAll:
		return PerAll
	}
	return usage.InScope(c.User(), c.Labels[strings.TrimPrefix(r.Per, PerLabel)])
}

// countedByOwner says whether a container's traffic is in the same sum already, with that of
// the container that owns the interface, or of the one around a nested container.
func (r *Rule) countedByOwner(c *usage.Container, source string) bool {
	sums := r.Per == PerPod || r.Per == PerNamespace || r.Per == PerAll
	// Another user's container is in another rule's sum.
	nested := c.ParentID != "" && usage.UserOf(c.ParentID) == c.User()
	within := nested || c.Shares && usage.UserOf(c.SharesWith) == c.User()
	if r.Count.bySockets() { // the outer one has what passes in the inner one
		return nested && sums && r.Match.ofPods()
	}
	return source == sourceIP && within && sums && r.Match.ofPods()
}

// Where a container's numbers come from.
const (
	sourceInterface = "interface" // it owns the interface
	sourceIP        = "ip"        // by cgroup: it has none
	sourceTCP       = "tcp"       // by cgroup: connections
	sourceHTTP      = "http"      // by cgroup: what they carry
)

// counted returns what a container has used in its life, and where that comes from.
func counted(c usage.Container) (usage.Traffic, string) {
	used, byCgroup := c.Used()
	if byCgroup {
		return *used, sourceIP
	}
	return *used, sourceInterface
}

// numbers are received bytes, packets and SYN, then those transmitted, then attempted, established,
// accepted and failed connections, then HTTP requests received and transmitted. Earlier versions
// saved only the first six, or ten.
type numbers [12]uint64

const (
	ofTraffic = 6 // how many of them are about packets
	firstHTTP = 10
)

// numbersOf returns the numbers of a container. Where its connections or requests are not counted,
// or what becomes of connections is not known, those are as they were.
func numbersOf(t usage.Traffic, c *usage.Container, last numbers) numbers {
	n := last
	for i, c := range [...]*usage.Counts{&t.Receive, &t.Transmit} {
		v := c.Timed()
		n[3*i], n[3*i+1], n[3*i+2] = v.Bytes, v.Packets, c.SYN
	}
	if tcp := c.TCP; tcp != nil {
		n[ofTraffic], n[ofTraffic+2] = tcp.ConnectAttempts, tcp.Accepts
		if !tcp.InPart {
			n[ofTraffic+1], n[ofTraffic+3] = tcp.Connects, tcp.ConnectFailures
		}
	}
	if c.Layer7.HTTP {
		n[firstHTTP], n[firstHTTP+1] = c.HTTPRequests()
	}
	return n
}

// passed says whether there was any traffic.
func (n numbers) passed() bool { return [ofTraffic]uint64(n[:ofTraffic]) != [ofTraffic]uint64{} }

// minus returns the growth since earlier, and false if a number of one kind went back: then none
// of that kind has grown.
func (n numbers) minus(earlier numbers) (growth numbers, ok bool) {
	ok = true
	for _, kind := range [...][2]int{{0, ofTraffic}, {ofTraffic, firstHTTP}, {firstHTTP, len(n)}} {
		for i := kind[0]; i < kind[1]; i++ {
			if n[i] < earlier[i] {
				clear(growth[kind[0]:kind[1]])
				ok = false
				break
			}
			growth[i] = n[i] - earlier[i]
		}
	}
	return growth, ok
}

// span says which numbers make a count: these two, which may be the same.
type span struct{ first, second uint8 }

var spans = map[Count]span{
	ReceiveBytes: {0, 0}, TransmitBytes: {3, 3}, TotalBytes: {0, 3},
	ReceivePackets: {1, 1}, TransmitPackets: {4, 4}, TotalPackets: {1, 4},
	ReceiveSYN: {2, 2}, TransmitSYN: {5, 5}, TotalSYN: {2, 5},
	TCPConnectAttempts: {6, 6}, TCPConnects: {7, 7}, TCPAccepts: {8, 8}, TCPConnectFailures: {9, 9},
	ReceiveHTTPRequests: {10, 10}, TransmitHTTPRequests: {11, 11},
}

func (s span) of(n numbers) uint64 {
	if s.first == s.second {
		return n[s.first]
	}
	return usage.Add(n[s.first], n[s.second])
}

// unit is the unit that alerts and status show.
func (r *Rule) unit() string {
	switch {
	case r.Rate == nil:
		return r.Count.Unit()
	case r.Rate.Bits:
		return "bits/s"
	}
	return r.Count.Unit() + "/s"
}

// scale leads from numbers per second to what is shown.
func (r *Rule) scale() float64 {
	if r.Rate != nil && r.Rate.Bits {
		return 8
	}
	return 1
}

// threshold is the usage that reaches a percentage of the limit.
func (r *Rule) threshold(percent int) uint64 {
	p := uint64(percent)
	return r.Limit/100*p + (r.Limit%100*p+99)/100
}

// sameBasis says whether what was counted by r means something to a changed rule.
func (r *Rule) sameBasis(next *Rule) bool {
	return r.Per == next.Per && r.Count == next.Count && (r.Rate == nil) == (next.Rate == nil) &&
		r.Period.Every == next.Period.Every && r.Period.Window == next.Period.Window
}

// samePeriods says whether periods of both begin at the same moments.
func (r *Rule) samePeriods(next *Rule) bool {
	return r.Period.Day == next.Period.Day && zoneName(r.Period.Location) == zoneName(next.Period.Location)
}

func zoneName(in *time.Location) string {
	if in == nil {
		return ""
	}
	return in.String()
}

// sameLevels says whether usage reaches the same levels of both.
func (r *Rule) sameLevels(next *Rule) bool {
	return r.Limit == next.Limit && slices.Equal(r.AlertAt, next.AlertAt) && r.Projection == next.Projection
}
