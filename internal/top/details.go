// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/view"
)

// details is one container in full.
type details struct {
	id     string
	loaded *detailsMsg // nil until there is an answer
}

// detailsMsg is what the daemon says of a container.
type detailsMsg struct {
	id        string
	container exporter.Container
	err       error // of the container
	quotas    []exporter.Quota
	history   []exporter.HistoryRow
	noHistory error
}

// wish asks for the details of the container that is shown. An earlier wish that nobody has read
// is as good.
func (m *model) wish() {
	select {
	case m.wishes <- m.details.id:
	default:
	}
}

// loadDetails answers wishes until ctx ends, at most one a second.
func loadDetails(ctx context.Context, c Client, wishes <-chan string, send func(tea.Msg)) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-wishes:
			send(load(ctx, c, id))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// patience is how long details are waited for.
const patience = 10 * time.Second

func load(ctx context.Context, c Client, id string) detailsMsg {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	msg := detailsMsg{id: id}
	if msg.err = c.Get(ctx, "/api/v1/containers/"+url.PathEscape(id), &msg.container); msg.err != nil {
		return msg
	}
	var quotas exporter.QuotaList
	if c.Get(ctx, "/api/v1/quotas", &quotas) == nil { // where there are none this fails
		msg.quotas = slices.DeleteFunc(quotas.Quotas, func(q exporter.Quota) bool { return !concerns(&q, &msg.container) })
	}
	var history exporter.History
	query := url.Values{"container": {id}, "step": {"hour"}, "by": {"container"}}
	if user, _, ok := strings.Cut(id, "~"); ok {
		query.Set("user", user)
	}
	msg.noHistory = c.Get(ctx, "/api/v1/history?"+query.Encode(), &history)
	msg.history = history.History
	return msg
}

// concerns reports whether a quota counts a container, by its key.
func concerns(q *exporter.Quota, c *exporter.Container) bool {
	switch q.Per {
	case "container":
		return q.Key == c.ID
	case "name":
		return q.Key == c.Name
	case "pod":
		return q.Key == c.Namespace+"/"+c.Pod
	case "namespace":
		return q.Key == c.Namespace
	}
	if label, ok := strings.CutPrefix(q.Per, "label:"); ok {
		value, has := c.Labels[label]
		return has && q.Key == value
	}
	return q.Name == c.Name
}

func (m *model) detailTitle() string {
	if r, ok := m.shown().Row(m.details.id); ok {
		return m.signs.text(r.Label())
	}
	return m.signs.text(view.ShortID(m.details.id))
}

const (
	labelWidth  = 22
	numberWidth = 22
)

// page gathers the lines of details.
type page struct {
	m     *model
	lines []string
}

func (p *page) blank() { p.lines = append(p.lines, "") }

func (p *page) heading(text string) {
	p.blank()
	p.lines = append(p.lines, "  "+bold.Render(view.Cut(p.m.signs.text(text), max(0, p.m.width-4), p.m.signs.more)))
}

// factMost is how many lines a fact may take.
const factMost = 30

// fact is a word and what it is, over as many lines as it takes; it is left out where it is "".
func (p *page) fact(word, text string) {
	width := max(1, p.m.width-labelWidth-6)
	text = p.m.signs.text(text)
	for n := 0; text != "" && n < factMost; n++ {
		piece := view.Cut(text, width, "")
		if n == factMost-1 {
			piece = view.Cut(text, width, p.m.signs.more)
		}
		if piece == "" {
			return
		}
		p.row(word, plain, []string{piece}, width, false)
		text, word = strings.TrimPrefix(text, piece), ""
	}
}

func (p *page) row(word string, style lipgloss.Style, texts []string, width int, right bool) {
	cells := []cell{{text: p.m.signs.text(word), style: dim, width: labelWidth, gap: 4}}
	for _, text := range texts {
		cells = append(cells, cell{text: p.m.signs.text(text), style: style, width: width, right: right, gap: 1})
	}
	p.lines = append(p.lines, line(&p.m.signs, p.m.width, nil, cells))
}

// numbers is a line of a number for each direction.
func (p *page) numbers(word string, receive, transmit uint64) {
	p.row(word, plain, []string{strconv.FormatUint(receive, 10), strconv.FormatUint(transmit, 10)}, numberWidth, true)
}

// some is one that is left out where there is nothing.
func (p *page) some(word string, receive, transmit uint64) {
	if receive > 0 || transmit > 0 {
		p.numbers(word, receive, transmit)
	}
}

func (p *page) directions() {
	p.row("", dim, []string{"receive", "transmit"}, numberWidth, true)
}

// detailLines are all lines of the details.
func (m *model) detailLines() []string {
	p := &page{m: m}
	r, ok := m.shown().Row(m.details.id)
	if ok {
		p.summary(&r)
	}
	loaded := m.details.loaded
	switch {
	case loaded == nil:
		p.heading("asking for more" + m.signs.timing)
		return p.lines
	case loaded.err != nil:
		p.heading(loaded.err.Error())
		return p.lines
	}
	c := &loaded.container
	p.heading("in full, of a moment later")
	for i := range c.Interfaces {
		p.iface(&c.Interfaces[i])
	}
	if c.IP != nil {
		p.cgroup(c.IP)
	}
	if c.TCP != nil {
		p.connections(c.TCP)
	}
	p.quotas(loaded.quotas)
	p.history(loaded)
	return p.lines
}

// summary is what the table has, in words and digits.
func (p *page) summary(r *view.Row) {
	c := r.Container
	p.blank()
	p.fact("id", c.ID)
	p.fact("state", r.State()+since(c))
	p.fact("image", c.Image)
	p.fact("runtime", c.Runtime)
	p.fact("network", c.Network)
	p.fact("namespace", c.Namespace)
	p.fact("pod", c.Pod)
	p.fact("user", c.User)
	p.fact("cgroup", c.Cgroup)
	p.fact("counted by", map[string]string{"": "nothing", "interfaces": "its interfaces", "cgroup": "its cgroup (from the IP header on)"}[c.CountedBy])
	p.fact("part of", c.PartOf)
	p.fact("labels", labels(c.Labels))
	p.heading("now")
	p.directions()
	rate := func(word string, known bool, receive, transmit float64, format func(float64) string) {
		texts := []string{p.m.signs.gap, p.m.signs.gap}
		if known {
			texts = []string{format(receive) + "/s", format(transmit) + "/s"}
		}
		p.row(word, plain, texts, numberWidth, true)
	}
	rate("bytes per second", r.Known, r.Receive.Rate.Bytes, r.Transmit.Rate.Bytes, p.m.settings.Unit.Format)
	rate("packets per second", r.Known, r.Receive.Rate.Packets, r.Transmit.Rate.Packets, view.PerSecond)
	rate("SYN per second", r.Known, r.Receive.Rate.SYN, r.Transmit.Rate.SYN, view.PerSecond)
	if r.TCP.Known {
		texts := []string{view.PerSecond(r.TCP.Rate.Opened) + "/s opened", view.PerSecond(r.TCP.Rate.Failed) + "/s failed"}
		p.row("TCP connections", plain, texts, numberWidth, true)
	}
	if r.Counted {
		p.numbers("bytes", r.Receive.Total.Bytes, r.Transmit.Total.Bytes)
		p.numbers("packets", r.Receive.Total.Packets, r.Transmit.Total.Packets)
		p.numbers("SYN", r.Receive.Total.SYN, r.Transmit.Total.SYN)
		p.some("seeded bytes", c.Receive.SeededBytes, c.Transmit.SeededBytes)
	}
	steps := min(view.Steps, max(1, p.m.width-labelWidth-6))
	receive, transmit := p.m.shown().Trace(r, steps)
	nothing := make([]float64, steps)
	minutes := strconv.Itoa(steps/perMin) + " min: "
	p.row(minutes+"receive", accent, []string{p.m.plot(receive, nothing)}, steps, false)
	p.row("transmit", accent, []string{p.m.plot(nothing, transmit)}, steps, false)
}

func since(c *exporter.StreamContainer) string {
	const format = "2006-01-02 15:04:05"
	text := ""
	if c.StartedAt != nil {
		text += ", started " + c.StartedAt.Local().Format(format)
	}
	if c.StoppedAt != nil {
		text += ", ended " + c.StoppedAt.Local().Format(format)
	}
	return text
}

func labels(all map[string]string) string {
	var texts []string
	for key, value := range all {
		texts = append(texts, key+"="+value)
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

func (p *page) iface(i *exporter.Interface) {
	title := "interface " + dash(i.Name)
	if i.HostInterface != "" {
		title += ", " + i.HostInterface + " on the host"
	}
	if i.Hook != "" {
		title += ", counted by " + i.Hook + " in the " + i.At
	}
	if i.Reason != "" {
		title += ", " + i.Reason
	}
	p.heading(title)
	p.directions()
	r, t := &i.Receive, &i.Transmit
	p.numbers("bytes on the wire", r.Bytes, t.Bytes)
	p.numbers("packets on the wire", r.Packets, t.Packets)
	p.numbers("interface bytes", r.InterfaceBytes, t.InterfaceBytes)
	p.numbers("interface packets", r.InterfacePackets, t.InterfacePackets)
	p.some("seeded bytes", r.SeededBytes, t.SeededBytes)
	p.some("seeded packets", r.SeededPackets, t.SeededPackets)
	p.some("mended bytes", r.MendedBytes, t.MendedBytes)
	p.some("mended packets", r.MendedPackets, t.MendedPackets)
	p.maybe("dropped packets", r.DroppedPackets, t.DroppedPackets)
	p.maybe("error packets", r.ErrorPackets, t.ErrorPackets)
	if r.UndeliveredPackets != nil {
		p.maybe("undelivered packets", r.UndeliveredPackets, nil)
	}
	p.flags([2][4]uint64{{r.TCPSYN, r.TCPSYNACK, r.TCPRST, r.TCPFIN}, {t.TCPSYN, t.TCPSYNACK, t.TCPRST, t.TCPFIN}})
	p.protocols(&r.Protocols, &t.Protocols)
	p.some("IPv4 bytes", r.Families.IPv4.Bytes, t.Families.IPv4.Bytes)
	p.some("IPv6 bytes", r.Families.IPv6.Bytes, t.Families.IPv6.Bytes)
	p.some("neither's bytes", r.Families.Other.Bytes, t.Families.Other.Bytes)
}

// maybe is a line of numbers that may not be known.
func (p *page) maybe(word string, receive, transmit *uint64) {
	texts := []string{p.m.signs.gap, p.m.signs.gap}
	for i, n := range []*uint64{receive, transmit} {
		if n != nil {
			texts[i] = strconv.FormatUint(*n, 10)
		}
	}
	p.row(word, plain, texts, numberWidth, true)
}

func (p *page) flags(by [2][4]uint64) {
	for i, word := range []string{"TCP SYN", "TCP SYN-ACK", "TCP RST", "TCP FIN"} {
		p.numbers(word, by[0][i], by[1][i])
	}
}

func (p *page) protocols(r, t *exporter.ByProtocol) {
	p.some("TCP bytes", r.TCP.Bytes, t.TCP.Bytes)
	p.some("UDP bytes", r.UDP.Bytes, t.UDP.Bytes)
	p.some("ICMP bytes", r.ICMP.Bytes, t.ICMP.Bytes)
	p.some("other bytes", r.Other.Bytes, t.Other.Bytes)
}

func (p *page) cgroup(ip *exporter.IP) {
	p.heading("by its cgroup, from the IP header on")
	p.directions()
	r, t := &ip.Receive, &ip.Transmit
	p.numbers("bytes", r.Bytes, t.Bytes)
	p.numbers("packets", r.Packets, t.Packets)
	p.flags([2][4]uint64{{r.TCPSYN, r.TCPSYNACK, r.TCPRST, r.TCPFIN}, {t.TCPSYN, t.TCPSYNACK, t.TCPRST, t.TCPFIN}})
	p.protocols(&r.Protocols, &t.Protocols)
	p.some("IPv4 bytes", r.Families.IPv4.Bytes, t.Families.IPv4.Bytes)
	p.some("IPv6 bytes", r.Families.IPv6.Bytes, t.Families.IPv6.Bytes)
	p.some("loopback bytes", r.Loopback.Bytes, t.Loopback.Bytes)
}

func (p *page) connections(t *exporter.TCP) {
	p.heading("TCP connections")
	one := func(word string, n *uint64) {
		text := "not known"
		if n != nil {
			text = strconv.FormatUint(*n, 10)
		}
		p.row(word, plain, []string{text}, numberWidth, true)
	}
	one("attempts to open", &t.ConnectAttempts)
	one("opened", t.Connects)
	one("refused or failed", t.ConnectFailures)
	one("accepted", &t.Accepts)
	one("reset", &t.Resets)
	one("segments sent again", t.RetransmittedSegments)
	if t.Established != nil {
		one("established now", t.Established)
	}
	if t.RTT != nil && t.RTT.Count > 0 {
		mean := t.RTT.SumSeconds / float64(t.RTT.Count) * 1000
		p.row("mean round trip", plain, []string{strconv.FormatFloat(mean, 'f', 2, 64) + " ms"}, numberWidth, true)
	}
}

func (p *page) quotas(quotas []exporter.Quota) {
	for i := range quotas {
		q := &quotas[i]
		p.heading("quota " + q.Quota + ", key " + q.Key)
		const wide = 30
		full := int(math.Round(min(max(q.Ratio, 0), 1) * wide))
		bar := repeat(p.m.signs.full, full) + repeat(p.m.signs.empty, wide-full)
		p.row("used", levelOf(q.Ratio), []string{bar + " " + percent(q.Ratio)}, wide+8, false)
		p.fact("", p.quotaAmount(q, q.Used)+" of "+p.quotaAmount(q, q.Limit))
		if q.Projected != nil {
			p.fact("projected", p.quotaAmount(q, *q.Projected))
		}
		if q.PeriodEnd != nil {
			p.fact("begins anew", q.PeriodEnd.Local().Format("2006-01-02 15:04"))
		}
		var firing []string
		for _, l := range q.Levels {
			if l.Firing {
				firing = append(firing, l.Level)
			}
		}
		p.fact("firing", strings.Join(firing, ", "))
	}
}

// quotaAmount shows an amount in a quota's unit: bytes in that of its limit.
func (p *page) quotaAmount(q *exporter.Quota, n float64) string {
	switch q.Unit {
	case "bytes":
		return view.Unit{SI: q.Decimal}.Format(n)
	case "bytes/s":
		return view.Unit{SI: q.Decimal}.Format(n) + "/s"
	case "bits/s":
		return view.Unit{Bits: true, SI: true}.Format(n/8) + "/s"
	}
	return view.Number(n) + " " + q.Unit
}

func (p *page) history(loaded *detailsMsg) {
	p.heading("last hours")
	if loaded.noHistory != nil {
		p.fact("not known", loaded.noHistory.Error())
		return
	}
	most := 0.0
	for i := range loaded.history {
		most = max(most, bytesOf(&loaded.history[i]))
	}
	if most == 0 {
		p.fact("nothing", "was counted in the last 24 hours")
		return
	}
	const cellWidth = 12
	p.row("", dim, []string{"receive", "transmit"}, cellWidth, true)
	for i := range loaded.history {
		h := &loaded.history[i]
		wide := max(0, min(40, p.m.width-labelWidth-4-2*(cellWidth+1)-2))
		bar := repeat(p.m.signs.full, int(math.Ceil(bytesOf(h)/most*float64(wide))))
		unit := p.m.settings.Unit
		p.lines = append(p.lines, line(&p.m.signs, p.m.width, nil, []cell{
			{text: h.Start.Format("2006-01-02 15:04"), style: dim, width: labelWidth, gap: 4},
			{text: unit.Format(float64(h.Receive.Bytes)), width: cellWidth, right: true, gap: 1},
			{text: unit.Format(float64(h.Transmit.Bytes)), width: cellWidth, right: true, gap: 1},
			{text: bar, style: accent, width: wide, gap: 2},
		}))
	}
}

func bytesOf(h *exporter.HistoryRow) float64 {
	return float64(h.Receive.Bytes) + float64(h.Transmit.Bytes)
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
