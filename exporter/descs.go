// SPDX-License-Identifier: Apache-2.0

package exporter

import "github.com/prometheus/client_golang/prometheus"

// Directions as the container sees them. They index arrays.
const (
	receive = iota
	transmit
)

// Label names, sorted as the exposition formats want them. Values are given in
// the same order.
var (
	seriesLabels    = []string{"container_id", "interface", "name", "namespace", "pod"}
	protocolLabels  = []string{"container_id", "interface", "name", "namespace", "pod", "protocol"}
	familyLabels    = []string{"container_id", "family", "interface", "name", "namespace", "pod"}
	flagLabels      = []string{"container_id", "flag", "interface", "name", "namespace", "pod"}
	ipLabels        = []string{"container_id", "name", "namespace", "pod"}
	infoLabels      = []string{"cgroup", "container_id", "image", "kernel", "name", "namespace", "network_mode", "parent_id", "pod", "runtime", "user"}
	accountedLabels = []string{"container_id", "name", "reason"}
	cadvisorLabels  = []string{"id", "image", "interface", "name", "namespace", "pod"}
	causeLabels     = []string{"cause"}
	hookLabels      = []string{"hook"}
	limitLabels     = []string{"limit"}
)

// descs are the metrics of [collector]. docs/METRICS.md says what each means.
type descs struct {
	network  [2]networkDescs
	ip       [2]networkDescs
	tcp      tcpDescs
	sockets  socketDescs
	requests requestDescs
	lost     [2]lossDescs
	iface    [2]volumeDescs
	protocol [2]volumeDescs
	family   [2]volumeDescs
	tcpFlags [2]*prometheus.Desc
	cadvisor [2]volumeDescs
	lostAs   [2]lossDescs // as cAdvisor names them

	undelivered *prometheus.Desc

	accounted               *prometheus.Desc
	containers, attachments *prometheus.Desc
	beyond                  *prometheus.Desc
	unowned                 unownedDescs
	uncounted, unclassified *prometheus.Desc
	quota                   quotaDescs
	periodStart, periodEnd  *prometheus.Desc
	conntrack               conntrackDescs
	nflog                   nflogDescs

	all []*prometheus.Desc
}

// unownedDescs are of interfaces that no container owns: those there are, by direction, and
// those that are gone.
type unownedDescs struct {
	interfaces *prometheus.Desc
	bytes      [2]*prometheus.Desc
	ended      [2]volumeDescs
}

type volumeDescs struct{ bytes, packets *prometheus.Desc }

// lossDescs are of packets that were lost, by what the kernel calls that.
type lossDescs struct{ dropped, errors *prometheus.Desc }

type networkDescs struct {
	volumeDescs
	syn *prometheus.Desc
}

func newDescs() descs {
	var d descs
	for i, dir := range [...]struct{ name, verb string }{
		receive:  {"receive", "received"},
		transmit: {"transmit", "transmitted"},
	} {
		d.direction(i, dir.name, dir.verb)
	}
	d.tcp = d.addTCP()
	d.sockets = d.addSockets()
	d.requests = d.addRequests()
	d.undelivered = d.add("nettally_container_network_receive_undelivered_packets_total",
		"Packets that the host's end of the interface has dropped behind our hook, for a shaper or since the container's end took no more. "+
			"They are part of receive_packets_total.", seriesLabels...)
	d.accounted = d.add("nettally_container_accounted",
		"1 if the container's traffic is counted, 0 if not; reason then says why not.", accountedLabels...)
	d.containers = d.add("nettally_containers", "Containers that run on this host.")
	d.attachments = d.add("nettally_attachments",
		"Interfaces and cgroups that are counted now, also those whose container is not known, by the hook in use.", hookLabels...)
	d.uncounted = d.add("nettally_uncounted_packets_total",
		"Packets that our programs saw and could not count for any container, by cause.", causeLabels...)
	d.unclassified = d.add("nettally_unclassified_packets_total",
		"Packets that are counted and whose headers could not be read to the end, by cause. "+
			"They are in the last protocol that could be told, or other, and in no TCP flag.", causeLabels...)
	d.beyond = d.add("nettally_beyond_limits",
		"Containers, interfaces and keys of quotas and periods that are beyond a bound of the section limits: counted with others, or left out here.", limitLabels...)
	d.unowned.interfaces = d.add("nettally_unowned_interfaces",
		"Interfaces that are counted now and whose container is not known: it is starting, is left out by the configuration, or there is none.")
	for i, name := range [...]string{receive: "receive", transmit: "transmit"} {
		d.unowned.bytes[i] = d.add("nettally_unowned_interfaces_"+name+"_bytes",
			"Bytes that those have counted so far, in the direction of what is behind them. A container that is found later gets all of them.")
		d.unowned.ended[i] = d.volume("nettally_unowned_"+name,
			"Counted on interfaces that were gone before a container was known that owns them, such as those of image builds, since this process began")
	}
	d.quota = d.addQuotas()
	d.periodStart = d.add("nettally_period_start_seconds", "When the period began, as Unix time.", "ledger", "period")
	d.periodEnd = d.add("nettally_period_end_seconds", "When the period ends, or ended, as Unix time.", "ledger", "period")
	d.conntrack = d.addConntrack()
	d.nflog = d.addNFLOG()
	return d
}

func (d *descs) direction(i int, name, verb string) {
	wire := "The container " + verb + " at layer 2, segments of super-packets counted one by one"
	d.network[i] = networkDescs{
		volumeDescs: d.volume("nettally_container_network_"+name, wire, seriesLabels...),
		syn: d.add("nettally_container_network_"+name+"_tcp_syn_total",
			"TCP packets with SYN and without ACK that the container "+verb+". A retransmitted SYN counts again.",
			seriesLabels...),
	}
	socket := "Sockets of the container's cgroup " + verb + " from the IP header on, segments of super-packets counted one by one, without loopback"
	d.ip[i] = networkDescs{
		volumeDescs: d.volume("nettally_container_ip_"+name, socket, ipLabels...),
		syn: d.add("nettally_container_ip_"+name+"_tcp_syn_total",
			"TCP packets with SYN and without ACK that sockets of the container's cgroup "+verb+", without loopback. A retransmitted SYN counts again.",
			ipLabels...),
	}
	d.losses(i, name, verb)
	d.iface[i] = d.volume("nettally_container_interface_"+name,
		"The container "+verb+", a super-packet counted as one packet as the kernel's interface counters do", seriesLabels...)
	d.protocol[i] = d.volume("nettally_container_protocol_"+name, wire+", by transport protocol", protocolLabels...)
	d.family[i] = d.volume("nettally_container_family_"+name, wire+", by network-layer family", familyLabels...)
	d.tcpFlags[i] = d.add("nettally_container_tcp_flags_"+name+"_packets_total",
		"TCP packets that the container "+verb+", by flag: syn is SYN without ACK, synack SYN with ACK. "+
			"A packet with several flags is in several of them.", flagLabels...)
	d.cadvisor[i] = d.volume("container_network_"+name,
		"The container "+verb+", as cAdvisor names it, counted as the kernel's interface counters do", cadvisorLabels...)
}

// losses adds what the kernel's counters of the container's end say.
func (d *descs) losses(i int, name, verb string) {
	prefix := "nettally_container_network_" + name
	d.lost[i] = lossDescs{
		dropped: d.add(prefix+"_dropped_packets_total",
			"Packets that the container would have "+verb+", dropped by the kernel at its interface: the column drop of /proc/net/dev there.", seriesLabels...),
		errors: d.add(prefix+"_error_packets_total",
			"Packets that the container would have "+verb+", lost to an error at its interface: the column errs of /proc/net/dev there.", seriesLabels...),
	}
	prefix = "container_network_" + name
	d.lostAs[i] = lossDescs{
		dropped: d.add(prefix+"_packets_dropped_total", "Packets that the container would have "+verb+", dropped at its interface, as cAdvisor names it.", cadvisorLabels...),
		errors:  d.add(prefix+"_errors_total", "Packets that the container would have "+verb+", lost to an error at its interface, as cAdvisor names it.", cadvisorLabels...),
	}
}

func (d *descs) volume(prefix, help string, labels ...string) volumeDescs {
	return volumeDescs{
		bytes:   d.add(prefix+"_bytes_total", "Bytes. "+help+".", labels...),
		packets: d.add(prefix+"_packets_total", "Packets. "+help+".", labels...),
	}
}

func (d *descs) add(name, help string, labels ...string) *prometheus.Desc {
	desc := prometheus.NewDesc(name, help, labels, nil)
	d.all = append(d.all, desc)
	return desc
}
