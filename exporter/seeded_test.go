// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

// seeded returns a snapshot whose container web was there for half an hour when
// counting began, and received meanwhile; later our programs were off.
func seeded() usage.Snapshot {
	snap := snapshot()
	web := &snap.Containers[1]
	web.Interfaces[0].AttachedAt = noon.Add(-30 * time.Minute)
	for _, receive := range []*usage.Counts{&web.Receive, &web.Interfaces[0].Receive} {
		receive.Seeded = usage.Volume{Bytes: 1_000_000, Packets: 1_000}
		receive.Mended = usage.Volume{Bytes: 30_000, Packets: 300}
		receive.Interface.Bytes += 1_030_000
		receive.Interface.Packets += 1_300
	}
	return snap
}

func TestSeededJSON(t *testing.T) {
	snap := seeded()
	c := containerOf(&snap.Containers[1])
	for _, receive := range []Counts{c.Receive, c.Interfaces[0].Receive} {
		got := []uint64{receive.Bytes, receive.Packets, receive.InterfaceBytes, receive.InterfacePackets,
			receive.SeededBytes, receive.SeededPackets, receive.MendedBytes, receive.MendedPackets}
		want := []uint64{1_152_700, 13_570, 1_040_001, 11_302, 1_000_000, 1_000, 30_000, 300}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("receive (-want +got):\n%s", diff)
		}
		p, f := receive.Protocols, receive.Families
		if p.TCP.Bytes+p.UDP.Bytes+p.ICMP.Bytes+p.Other.Bytes+receive.SeededBytes+receive.MendedBytes != receive.Bytes ||
			f.IPv4.Packets+f.IPv6.Packets+f.Other.Packets+receive.SeededPackets+receive.MendedPackets != receive.Packets {
			t.Errorf("protocols and families don't add up: %+v", receive)
		}
	}
	if i := c.Interfaces[0]; i.SeededBytes != 1_000_000 || i.MendedBytes != 30_000 {
		t.Errorf("interface: seeded_bytes %d, mended_bytes %d", i.SeededBytes, i.MendedBytes)
	}
	if c.Transmit.SeededBytes != 0 || c.Transmit.Bytes != 182_700 {
		t.Errorf("transmit: %+v", c.Transmit)
	}
}

// What the kernel had counted began with the container, and what we count with us.
func TestSeededMetrics(t *testing.T) {
	opts := options(seeded())
	opts.Settings = everything
	_, _, body := request(t, newExporter(t, opts).Handler(), "GET", "/metrics",
		"Accept", "application/openmetrics-text; version=1.0.0")
	const labels = `{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""} `
	started, attached := float64(noon.Add(-time.Hour).Unix()), float64(noon.Add(-30*time.Minute).Unix())
	for _, want := range []string{
		"nettally_container_network_receive_bytes_total" + labels + "1.1527e+06",
		"nettally_container_interface_receive_packets_total" + labels + "11302.0",
		fmt.Sprintf("nettally_container_network_receive_bytes_created%s%g", labels, started),
		fmt.Sprintf("nettally_container_network_transmit_packets_created%s%g", labels, started),
		fmt.Sprintf("nettally_container_interface_receive_bytes_created%s%g", labels, started),
		fmt.Sprintf("nettally_container_network_receive_tcp_syn_created%s%g", labels, attached),
		fmt.Sprintf(`nettally_container_protocol_receive_bytes_created%s,protocol="tcp"} %g`, strings.TrimSuffix(labels, "} "), attached),
		fmt.Sprintf(`nettally_container_tcp_flags_receive_packets_created{container_id="aaa111",flag="fin",interface="eth0",name="web",namespace="",pod=""} %g`, attached),
		fmt.Sprintf(`container_network_receive_bytes_created{id="/docker/aaa111",image="nginx:1",interface="eth0",name="web",namespace="",pod=""} %g`, started),
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no %q in the scrape", want)
		}
	}
}

// A container that was started again is younger than its counters.
func TestSeededBeforeRestart(t *testing.T) {
	snap := seeded()
	web := snap.Containers[1]
	web.StartedAt = noon.Add(-time.Minute)
	b := beginnings(&web, &web.Interfaces[0])
	if want := web.Interfaces[0].AttachedAt; !b.all.AsTime().Equal(want) || !b.ours.AsTime().Equal(want) {
		t.Errorf("began %v and %v, want %v", b.all.AsTime(), b.ours.AsTime(), want)
	}
}

// What was mended has passed since we came: it takes nothing back to the container's start.
func TestMendedMetrics(t *testing.T) {
	snap := seeded()
	web := snap.Containers[1]
	web.Interfaces[0].Receive.Seeded = usage.Volume{}
	b := beginnings(&web, &web.Interfaces[0])
	if want := web.Interfaces[0].AttachedAt; !b.all.AsTime().Equal(want) || !b.ours.AsTime().Equal(want) {
		t.Errorf("began %v and %v, want %v", b.all.AsTime(), b.ours.AsTime(), want)
	}
}

func TestShadowed(t *testing.T) {
	snap := snapshot()
	web := &snap.Containers[1]
	web.Reason, web.Interfaces[0].Shadowed, web.Interfaces[0].Hook = usage.Shadowed, true, "tcx"
	opts := options(snap)
	opts.Settings = everything
	h := newExporter(t, opts).Handler()

	_, _, body := request(t, h, "GET", "/api/v1/containers/web")
	var c Container
	if err := json.Unmarshal([]byte(body), &c); err != nil {
		t.Fatal(err)
	}
	if c.Accounted || c.Reason != "shadowed" || c.Interfaces[0].Reason != "shadowed" || c.Interfaces[0].Hook != "tcx" {
		t.Errorf("accounted %t, reason %q, interface: %+v", c.Accounted, c.Reason, c.Interfaces[0])
	}
	_, _, metrics := request(t, h, "GET", "/metrics")
	for _, want := range []string{
		`nettally_container_accounted{container_id="aaa111",name="web",reason="shadowed"} 0`,
		`nettally_container_network_receive_bytes_total{container_id="aaa111",interface="eth0",name="web",namespace="",pod=""} 122700`,
		`nettally_attachments{hook="clsact"} 1`,
		`nettally_attachments{hook="tcx"} 1`,
	} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("no %q in the scrape", want)
		}
	}
}
