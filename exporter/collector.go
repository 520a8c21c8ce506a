// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// What the trouble counter's cause says.
const (
	causeDuplicateContainer = "duplicate_container"
	causeDuplicateInterface = "duplicate_interface"
	causeDuplicateQuota     = "duplicate_quota"
	causeInvalidText        = "invalid_text"
)

// collector shows snapshots as metrics. Labels come from outside and may hold
// anything, and one bad or repeated label set would fail the whole scrape, so
// both are dealt with here and counted.
type collector struct {
	settings func() Settings
	descs    descs
	trouble  *prometheus.CounterVec
}

func newCollector(settings func() Settings) *collector {
	c := &collector{settings: settings, descs: newDescs()}
	c.trouble = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nettally_scrape_troubles_total",
		Help: "Containers, interfaces or quotas left out of a scrape because an earlier one had the same labels, " +
			"and label values shown with replacement characters because they were not UTF-8. Counts again in every scrape.",
	}, []string{"cause"})
	for _, cause := range []string{causeDuplicateContainer, causeDuplicateInterface, causeDuplicateQuota, causeInvalidText} {
		c.trouble.WithLabelValues(cause)
	}
	return c
}

// of returns the metrics of one snapshot. A scrape has its own, since prometheus has no
// way to hand Collect the context of the request.
func (c *collector) of(snap usage.Snapshot, periods Periods, quotas ...quota.Status) prometheus.Collector {
	return snapshotMetrics{c, snap, quotas, periods, newPeriodLabels(c.settings(), periods)}
}

// reserved takes the names of a collector, so that no other metric can have them.
type reserved struct{ *collector }

// Collect implements [prometheus.Collector].
func (reserved) Collect(chan<- prometheus.Metric) {}

type snapshotMetrics struct {
	*collector
	snap   usage.Snapshot
	quotas []quota.Status

	periods      Periods
	periodLabels periodLabels
}

// Describe implements [prometheus.Collector].
func (c snapshotMetrics) Describe(ch chan<- *prometheus.Desc) {
	c.describe(ch, c.periodLabels)
}

// Describe implements [prometheus.Collector]. It sends the metrics of all
// families, since a reload may turn one on.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	c.describe(ch, newPeriodLabels(c.settings(), Periods{}))
}

func (c *collector) describe(ch chan<- *prometheus.Desc, periods periodLabels) {
	for _, desc := range c.descs.all {
		ch <- desc
	}
	ch <- newInfo(c.settings().Labels).desc
	ch <- periods.desc
	c.trouble.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (c snapshotMetrics) Collect(ch chan<- prometheus.Metric) {
	defer c.trouble.Collect(ch) // last, so that it counts what this scrape met
	s := &scrape{
		descs:    &c.descs,
		ch:       ch,
		settings: c.settings(),
		trouble:  c.trouble,
	}
	s.about = newInfo(s.settings.Labels)
	s.run(c.snap)
	s.quotas(c.quotas)
	s.periods(c.periods, c.periodLabels)
}

// scrape is one run of Collect.
type scrape struct {
	descs    *descs
	ch       chan<- prometheus.Metric
	settings Settings
	trouble  *prometheus.CounterVec
	about    info
	cadvisor map[[6]string]struct{} // label sets sent so far
}

func (s *scrape) run(snap usage.Snapshot) {
	s.host(snap)
	s.cadvisor = map[[6]string]struct{}{}
	seen := make(map[string]struct{}, len(snap.Containers))
	for _, c := range byID(snap.Containers) {
		if c.State == usage.Stopped && c.StoppedFor > s.settings.MetricsRetention {
			continue
		}
		id := s.text(c.ID)
		if _, ok := seen[id]; ok {
			s.trouble.WithLabelValues(causeDuplicateContainer).Inc()
			continue
		}
		seen[id] = struct{}{}
		s.container(c, id)
	}
}

// byID returns the containers in the order of their ids, and otherwise as they
// were. The registry sorts each family by label values, container_id first or
// nearly, and is quick where that is done.
func byID(containers []usage.Container) []*usage.Container {
	sorted := make([]*usage.Container, len(containers))
	for i := range containers {
		sorted[i] = &containers[i]
	}
	slices.SortStableFunc(sorted, func(a, b *usage.Container) int { return strings.Compare(a.ID, b.ID) })
	return sorted
}

// host sends the metrics that belong to no container.
func (s *scrape) host(snap usage.Snapshot) {
	running := snap.Beyond.Root + snap.Beyond.Users
	hooks := map[string]int{"clsact": 0, "tcx": 0, "cgroup": snap.Cgroups, "sock_ops": snap.Sockets} // there from the start, for alerts
	count := func(interfaces []usage.Interface) {
		for i := range interfaces {
			if interfaces[i].Attached {
				hooks[interfaces[i].Hook]++
			}
		}
	}
	for i := range snap.Containers {
		if snap.Containers[i].State == usage.Running && !usage.IsOthers(snap.Containers[i].ID) {
			running++
		}
		count(snap.Containers[i].Interfaces)
	}
	count(snap.Unowned)

	s.unowned(snap)
	s.nflog(snap.Log)
	s.gauge(s.descs.containers, nil, float64(running))
	s.beyond("containers", snap.Beyond.Root)
	s.beyond("per_user", snap.Beyond.Users)
	s.beyond("interfaces", snap.Beyond.Interfaces)
	for hook, n := range hooks {
		s.gauge(s.descs.attachments, pairs(hookLabels, s.text(hook)), float64(n))
	}
	for cause, n := range snap.Uncounted {
		s.counter(s.descs.uncounted, pairs(causeLabels, s.text(cause)), n, nil)
	}
	for cause, n := range snap.Unclassified {
		s.counter(s.descs.unclassified, pairs(causeLabels, s.text(cause)), n, nil)
	}
}

// unowned sends what interfaces without a container have counted.
func (s *scrape) unowned(snap usage.Snapshot) {
	n, sum := 0, usage.Traffic{}
	for i := range snap.Unowned {
		if snap.Unowned[i].Attached { // else it is among the orphaned
			n++
			sum = sum.Plus(snap.Unowned[i].Traffic)
		}
	}
	s.gauge(s.descs.unowned.interfaces, nil, float64(n))
	for d, counts := range [2][2]*usage.Counts{receive: {&sum.Receive, &snap.Orphaned.Receive}, transmit: {&sum.Transmit, &snap.Orphaned.Transmit}} {
		s.gauge(s.descs.unowned.bytes[d], nil, float64(counts[0].Wire().Bytes))
		s.volume(s.descs.unowned.ended[d], nil, counts[1].Wire(), nil)
	}
}

func (s *scrape) beyond(limit string, n int) {
	s.gauge(s.descs.beyond, pairs(limitLabels, limit), float64(n))
}

func (s *scrape) container(c *usage.Container, id string) {
	// Cleaned once: a bad name is one trouble, not one per interface.
	name, namespace, pod := s.text(c.Name), s.text(c.Namespace), s.text(c.Pod)
	image, cgroup := s.text(c.Image), s.text(c.Cgroup)

	s.info(c, cgroup, id, image, s.text(c.Kernel), name, namespace, s.text(c.NetworkMode), s.text(c.ParentID), pod, s.text(c.Runtime), c.User())
	accounted := 0.0
	if c.Accounted() {
		accounted = 1
	}
	s.gauge(s.descs.accounted, pairs(accountedLabels, id, name, s.text(string(c.Reason))), accounted)

	if c.Logged != nil {
		s.logged(c.Logged, series{id: id, name: name, namespace: namespace, pod: pod})
	}
	if c.IP != nil {
		s.ip(c, series{id: id, name: name, namespace: namespace, pod: pod})
	}
	if c.TCP != nil {
		s.tcp(c, pairs(ipLabels, id, name, namespace, pod))
	}
	if c.Sockets != nil {
		s.sockets(c, series{id: id, name: name, namespace: namespace, pod: pod})
	}
	if c.Requests != nil {
		s.requests(c, pairs(ipLabels, id, name, namespace, pod))
	}
	if c.Conntrack != nil {
		s.connections(c, series{id: id, name: name, namespace: namespace, pod: pod})
	}
	for i := range c.Interfaces {
		iface := &c.Interfaces[i]
		if repeated(c.Interfaces[:i], iface.Name) {
			s.trouble.WithLabelValues(causeDuplicateInterface).Inc()
			continue
		}
		ifname := s.text(iface.Name)
		began := beginnings(c, iface)
		s.network(iface, series{id, ifname, name, namespace, pod}, began)
		if s.settings.CompatCAdvisor {
			s.compat(iface, began, [6]string{cgroup, image, ifname, name, namespace, pod})
		}
	}
}

// repeated says whether an interface of the name is among a container's few.
func repeated(before []usage.Interface, name string) bool {
	for i := range before {
		if clean(before[i].Name) == clean(name) {
			return true
		}
	}
	return false
}

// series are the label values of an interface's metrics.
type series struct{ id, iface, name, namespace, pod string }

// network sends an interface's counters of all families.
func (s *scrape) network(iface *usage.Interface, of series, began began) {
	labels := pairs(seriesLabels, of.id, of.iface, of.name, of.namespace, of.pod)
	since := began.ours
	for d, counts := range directions(iface) {
		wire, to := counts.Wire(), &s.descs.network[d]
		s.volume(to.volumeDescs, labels, wire, began.all)
		s.counter(to.syn, labels, counts.SYN, since)
		if s.settings.shows(FamilyInterface) {
			s.volume(s.descs.iface[d], labels, counts.Interface, began.all)
		}
	}
	s.losses(&s.descs.lost, labels, &iface.Lost, began)
	if iface.Lost.Followed {
		s.counter(s.descs.undelivered, labels, iface.Lost.Undelivered, since)
	}
	if s.settings.shows(FamilyProtocol) {
		s.protocols(iface, of, since)
	}
	if s.settings.shows(FamilyFamily) {
		s.families(iface, of, since)
	}
	if s.settings.shows(FamilyTCPFlags) {
		s.tcpFlags(iface, of, since)
	}
}

// ip sends what was counted by a container's cgroup. It is counted from the beginning of
// that, or from when we came.
func (s *scrape) ip(c *usage.Container, of series) {
	labels := pairs(ipLabels, of.id, of.name, of.namespace, of.pod)
	since := created(c.IPSince)
	for d, counts := range [2]*usage.Counts{receive: &c.IP.Receive, transmit: &c.IP.Transmit} {
		s.volume(s.descs.ip[d].volumeDescs, labels, counts.Wire(), since)
		s.counter(s.descs.ip[d].syn, labels, counts.SYN, since)
	}
}

func (s *scrape) protocols(iface *usage.Interface, of series, since *timestamppb.Timestamp) {
	for p := range usage.Protocols {
		labels := pairs(protocolLabels, of.id, of.iface, of.name, of.namespace, of.pod, p.String())
		for d, counts := range directions(iface) {
			s.volume(s.descs.protocol[d], labels, counts.Protocol(p), since)
		}
	}
}

func (s *scrape) families(iface *usage.Interface, of series, since *timestamppb.Timestamp) {
	for f := range usage.Families {
		labels := pairs(familyLabels, of.id, f.String(), of.iface, of.name, of.namespace, of.pod)
		for d, counts := range directions(iface) {
			s.volume(s.descs.family[d], labels, counts.Family(f), since)
		}
	}
}

func (s *scrape) tcpFlags(iface *usage.Interface, of series, since *timestamppb.Timestamp) {
	for i, flag := range [...]string{"syn", "synack", "rst", "fin"} {
		labels := pairs(flagLabels, of.id, flag, of.iface, of.name, of.namespace, of.pod)
		for d, c := range directions(iface) {
			n := [...]uint64{c.SYN, c.SYNACK, c.RST, c.FIN}[i]
			s.counter(s.descs.tcpFlags[d], labels, n, since)
		}
	}
}

// compat sends an interface's counters as cAdvisor names them. Those are keyed
// by cgroup, which is not ours and may be unknown.
func (s *scrape) compat(iface *usage.Interface, began began, values [6]string) {
	if _, ok := s.cadvisor[values]; ok {
		s.trouble.WithLabelValues(causeDuplicateInterface).Inc()
		return
	}
	s.cadvisor[values] = struct{}{}
	labels := pairs(cadvisorLabels, values[:]...)
	for d, counts := range directions(iface) {
		s.volume(s.descs.cadvisor[d], labels, counts.Interface, began.all)
	}
	s.losses(&s.descs.lostAs, labels, &iface.Lost, began)
}

// losses sends what was lost at the container's end, if that is known.
func (s *scrape) losses(to *[2]lossDescs, labels []*dto.LabelPair, lost *usage.Lost, began began) {
	if !lost.Known {
		return
	}
	for d, n := range [2]usage.Loss{receive: lost.Receive, transmit: lost.Transmit} {
		s.counter(to[d].dropped, labels, n.Dropped, began.lost)
		s.counter(to[d].errors, labels, n.Errors, began.lost)
	}
}

func (s *scrape) volume(to volumeDescs, labels []*dto.LabelPair, v usage.Volume, since *timestamppb.Timestamp) {
	s.counter(to.bytes, labels, v.Bytes, since)
	s.counter(to.packets, labels, v.Packets, since)
}

func (s *scrape) counter(desc *prometheus.Desc, labels []*dto.LabelPair, n uint64, since *timestamppb.Timestamp) {
	value := float64(n)
	s.ch <- &sample{desc: desc, labels: labels, counter: &dto.Counter{Value: &value, CreatedTimestamp: since}}
}

func (s *scrape) gauge(desc *prometheus.Desc, labels []*dto.LabelPair, value float64) {
	s.ch <- &sample{desc: desc, labels: labels, gauge: &dto.Gauge{Value: &value}}
}

// text returns a label value that the exposition formats can carry.
func (s *scrape) text(value string) string {
	if utf8.ValidString(value) {
		return value
	}
	s.trouble.WithLabelValues(causeInvalidText).Inc()
	return clean(value)
}

func clean(value string) string { return strings.ToValidUTF8(value, "\uFFFD") }

// sample is a metric with label pairs it shares with others, which
// prometheus.NewConstMetric can't: making the pairs is most of the cost, and an
// interface has at least six metrics with the same.
type sample struct {
	desc      *prometheus.Desc
	labels    []*dto.LabelPair
	counter   *dto.Counter
	gauge     *dto.Gauge
	histogram *dto.Histogram
}

// Desc implements [prometheus.Metric].
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write implements [prometheus.Metric].
func (s *sample) Write(m *dto.Metric) error {
	m.Label, m.Counter, m.Gauge, m.Histogram = s.labels, s.counter, s.gauge, s.histogram
	return nil
}

// pairs joins label names and values, both in the order of the names. Like
// prometheus.MakeLabelPairs, with few allocations.
func pairs(names []string, values ...string) []*dto.LabelPair {
	values = slices.Clone(values)
	slab := make([]dto.LabelPair, len(names))
	labels := make([]*dto.LabelPair, len(names))
	for i := range labels {
		slab[i].Name, slab[i].Value = &names[i], &values[i]
		labels[i] = &slab[i]
	}
	return labels
}

func directions(iface *usage.Interface) [2]*usage.Counts {
	return [2]*usage.Counts{receive: &iface.Receive, transmit: &iface.Transmit}
}

// began says when counters were at 0: all, and those of what we saw ourselves. They
// differ where an interface began with what the kernel had counted before us. What was lost
// at the container's end is the kernel's from the interface's beginning.
type began struct{ all, ours, lost *timestamppb.Timestamp }

func beginnings(c *usage.Container, iface *usage.Interface) began {
	ours := created(iface.AttachedAt)
	if c.StartedAt.After(iface.AttachedAt) { // it has been restarted since
		return began{all: ours, ours: ours, lost: ours}
	}
	start := created(c.StartedAt)
	if iface.Receive.Seeded == (usage.Volume{}) && iface.Transmit.Seeded == (usage.Volume{}) {
		return began{all: ours, ours: ours, lost: start}
	}
	return began{all: start, ours: ours, lost: start}
}

// created is when a series began to count from 0. There is none where that is
// not known.
func created(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
