// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/internal/usage"
)

var (
	livesFlag = flag.Int("lives", 6, "how many random lives TestLives plays")
	seedFlag  = flag.Uint64("lives.seed", 0, "the seed of the first one; 0 for another each time")
)

// stepsOfLife is how long a life is: longer ones find nothing that a second one does not.
const stepsOfLife = 25

// TestLives lets the interfaces of two containers live at random in real namespaces, with packets
// between any two steps, and holds these:
//
//   - A container's totals are what the kernel has counted at its own end of each interface whose
//     other end is outside of it, over all that it ever had, both ways, bytes and packets. They are
//     that without a look at everything: events are enough, or what a second's self-check sees.
//   - They are never more than that, not even for a moment, and never go back.
//   - What passes between the container and namespaces of its own is no part of them, nor is what
//     it forwards to these counted a second time.
//   - After the next look just the interfaces that lead out are counted, under the names that they
//     have in the container.
//   - What is counted for a container that has ended changes no more.
//
// A failure says its seed, which -lives.seed plays again, and the steps that do to fail.
func TestLives(t *testing.T) {
	need.Root(t)
	first := *seedFlag
	if first == 0 {
		first = rand.Uint64N(1 << 32)
	}
	for seed := first; seed < first+uint64(*livesFlag); seed++ {
		random := rand.New(rand.NewPCG(seed, 1))
		steps := make([]lifeStep, stepsOfLife)
		for i := range steps {
			steps[i] = lifeStep{random.IntN(len(lifeSteps)), random.IntN(1 << 16), random.IntN(1 << 16)}
		}
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			failed, log := play(t, steps, time.Minute)
			if failed == "" {
				return
			}
			t.Errorf("seed %d: %s, after:\n%s", seed, failed, strings.Join(log, "\n"))
			shorter := shrink(t, steps[:len(log)])
			t.Errorf("seed %d: what does to fail:\n%s", seed, strings.Join(shorter, "\n"))
		})
	}
}

// shrink leaves out steps without which a life fails still, and returns what is left.
func shrink(t *testing.T, steps []lifeStep) (log []string) {
	for i := len(steps) - 1; i >= 0; i-- {
		less := slices.Delete(slices.Clone(steps), i, i+1)
		t.Run(fmt.Sprint("without ", i), func(t *testing.T) {
			if failed, shorter := play(t, less, 2*leakAfter); failed != "" {
				steps, log = less, append(shorter, failed)
			}
		})
	}
	return log
}

// lifeStep is something that happens, to what the two numbers pick of what is there.
type lifeStep struct{ what, a, b int }

// lifeSteps are what may happen. Each says what it did, "" if there was nothing to do it with.
var lifeSteps = []func(*life, *household, lifeStep) string{
	(*life).comes, (*life).comes, (*life).goes, (*life).leaves, (*life).leaves, (*life).returns, (*life).returns,
	(*life).renamed, (*life).swapped, (*life).makesOwn, (*life).makesOwn, (*life).removesOwn, (*life).forwards, (*life).forwards,
	(*life).hostMoves, (*life).hostReturns, (*life).restarts, (*life).looks,
}

// life is a host with containers.
type life struct {
	t           *testing.T
	r           *rig
	host, other *testnet.Namespace // other is one that the host moves its ends to
	agents      map[*testnet.Namespace]*testnet.Agent
	houses      [2]*household
	ended       map[string]duplex // what those that have ended had
	born        int
	patience    time.Duration
	failed      string // by a step
}

// household is a container and what is its own.
type household struct {
	c    *testnet.Container
	own  *testnet.Namespace // one that it has made, nil if there is none
	ways []*wayOut
	gone duplex // what interfaces had that are gone
}

// wayOut is an interface that leads out of a container.
type wayOut struct {
	name, outer string // names in the container, and of the other end
	in, out     *testnet.Namespace
	moved       bool // the other end was in another namespace once
	renamed     bool // since it was last known to be seen
}

// duplex is what a container has received and transmitted.
type duplex struct{ receive, transmit usage.Volume }

func (d duplex) plus(e duplex) duplex {
	return duplex{plus(d.receive, e.receive), plus(d.transmit, e.transmit)}
}

// play plays a life. It returns what is wrong, "" if nothing, and what has happened.
func play(t *testing.T, steps []lifeStep, patience time.Duration) (failed string, log []string) {
	l := &life{t: t, host: nettest.Host(t), other: nettest.Host(t), agents: map[*testnet.Namespace]*testnet.Agent{}, ended: map[string]duplex{}, patience: patience}
	l.agents[l.host], l.agents[l.other] = nettest.Agent(t, l.host), nettest.Agent(t, l.other)
	l.r = start(t, l.host, "")
	for i := range l.houses {
		l.houses[i] = l.settles()
		l.comes(l.houses[i], lifeStep{})
	}
	for _, s := range steps {
		h := l.houses[s.a%len(l.houses)]
		did := lifeSteps[s.what](l, h, s)
		if did != "" {
			did = fmt.Sprintf("container %d %s", s.a%len(l.houses), did)
			l.flows(s)
		}
		log = append(log, did)
		if failed = cmp.Or(l.failed, l.wrong(patience)); failed != "" {
			return failed, log
		}
	}
	l.r.reload()
	return l.wrongNames(patience), log
}

// settles makes a container.
func (l *life) settles() *household {
	c := nettest.Container(l.t, l.host, testnet.ContainerOptions{NoInterface: true})
	l.agents[c.Namespace] = c.Agent
	return &household{c: c}
}

// one picks a way out that is as asked for, nil if there is none.
func (h *household) one(s lifeStep, as func(*wayOut) bool) *wayOut {
	var found []*wayOut
	for _, w := range h.ways {
		if as(w) {
			found = append(found, w)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[s.b%len(found)]
}

func whichever(*wayOut) bool               { return true }
func (h *household) atHome(w *wayOut) bool { return w.in == h.c.Namespace }

// free returns the first name that no interface of a container has.
func (h *household) free(prefix string) string {
	for i := 0; ; i++ {
		name := fmt.Sprint(prefix, i)
		if !slices.ContainsFunc(h.ways, func(w *wayOut) bool { return w.name == name }) {
			return name
		}
	}
}

func (l *life) comes(h *household, _ lifeStep) string {
	if len(h.ways) == 3 {
		return ""
	}
	l.born++
	w := &wayOut{name: h.free("eth"), outer: fmt.Sprint("veth", l.born), in: h.c.Namespace, out: l.host}
	l.join(w.out, w.outer, w.in, w.name)
	h.ways = append(h.ways, w)
	return "gets " + w.name
}

// join joins two namespaces by a veth.
func (l *life) join(a *testnet.Namespace, nameA string, b *testnet.Namespace, nameB string) {
	must(l.t, a.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.FD())}))
	l.up(a, nameA, b, nameB)
}

// up sets both ends of a veth up, and waits until packets pass.
func (l *life) up(a *testnet.Namespace, nameA string, b *testnet.Namespace, nameB string) {
	silent(l.t, a, nameA)
	silent(l.t, b, nameB)
	for _, end := range []struct {
		in   *testnet.Namespace
		name string
	}{{a, nameA}, {b, nameB}} {
		for began := time.Now(); nettest.Must(end.in.LinkByName(end.name))(l.t).Attrs().OperState != netlink.OperUp; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				l.t.Fatalf("%s does not come up", end.name)
			}
		}
	}
}

// ends notes what the kernel has counted on an interface that is about to go.
func (h *household) ends(t *testing.T, w *wayOut) {
	h.gone = h.gone.plus(w.kernel(t))
	h.ways = slices.DeleteFunc(h.ways, func(other *wayOut) bool { return other == w })
}

// kernel is what the kernel has counted at the container's end.
func (w *wayOut) kernel(t *testing.T) duplex {
	s := nettest.Must(w.in.LinkByName(w.name))(t).Attrs().Statistics
	return duplex{usage.Volume{Bytes: s.RxBytes, Packets: s.RxPackets}, usage.Volume{Bytes: s.TxBytes, Packets: s.TxPackets}}
}

func (l *life) goes(h *household, s lifeStep) string {
	w := h.one(s, whichever)
	if w == nil {
		return ""
	}
	h.ends(l.t, w)
	must(l.t, w.in.LinkDel(nettest.Must(w.in.LinkByName(w.name))(l.t)))
	return "loses " + w.name
}

// leaves has the container move an interface to a namespace of its own. It is followed there by
// its other end, so that must have stayed in the host, and those of all others. Its name at home
// is not known there, so that is seen before.
func (l *life) leaves(h *household, s lifeStep) string {
	w := h.one(s, h.atHome)
	if w == nil || h.own == nil || slices.ContainsFunc(h.ways, func(w *wayOut) bool { return w.moved }) {
		return ""
	}
	if w.renamed {
		l.r.reload()
		l.failed = l.wrongNames(l.patience)
		w.renamed = false
	}
	l.move(w, h.own)
	return "moves " + w.name + " to its own namespace"
}

func (l *life) returns(h *household, s lifeStep) string {
	w := h.one(s, func(w *wayOut) bool { return !h.atHome(w) })
	if w == nil {
		return ""
	}
	l.move(w, h.c.Namespace)
	return "moves " + w.name + " back"
}

func (l *life) move(w *wayOut, to *testnet.Namespace) {
	must(l.t, w.in.LinkSetNsFd(nettest.Must(w.in.LinkByName(w.name))(l.t), to.FD()))
	w.in = to
	l.up(w.out, w.outer, w.in, w.name)
}

func (l *life) renamed(h *household, s lifeStep) string {
	w := h.one(s, h.atHome)
	if w == nil {
		return ""
	}
	was := w.name
	w.name, w.renamed = h.free("wan"), true
	must(l.t, w.in.LinkSetName(nettest.Must(w.in.LinkByName(was))(l.t), w.name))
	return "renames " + was + " to " + w.name
}

func (l *life) swapped(h *household, s lifeStep) string {
	v := h.one(s, h.atHome)
	w := h.one(s, func(w *wayOut) bool { return h.atHome(w) && w != v })
	if w == nil {
		return ""
	}
	rename(l.t, h.c, [2]string{v.name, "x"}, [2]string{w.name, v.name}, [2]string{"x", w.name})
	v.name, w.name, v.renamed, w.renamed = w.name, v.name, true, true
	return "swaps the names of " + v.name + " and " + w.name
}

func (l *life) makesOwn(h *household, _ lifeStep) string {
	if h.own != nil {
		return ""
	}
	h.own = nettest.Must(testnet.NewNamespace())(l.t)
	agent := nettest.Agent(l.t, h.own)
	adopt(l.t, h.c, agent.PID())
	l.agents[h.own] = agent
	l.join(h.c.Namespace, "i0", h.own, "i1")
	return "makes a namespace of its own"
}

// removesOwn has a namespace go with what is in it.
func (l *life) removesOwn(h *household, _ lifeStep) string {
	if h.own == nil {
		return ""
	}
	for _, w := range slices.Clone(h.ways) {
		if !h.atHome(w) {
			h.ends(l.t, w)
		}
	}
	must(l.t, l.agents[h.own].Close())
	delete(l.agents, h.own)
	must(l.t, h.own.Close())
	h.own = nil
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := h.c.Namespace.LinkByName("i0"); err != nil {
			return "removes its own namespace"
		}
		if time.Since(began) > time.Minute {
			l.t.Fatal("a namespace does not go")
		}
	}
}

// forwards has the container join its way out and the namespace that it has made by a bridge.
func (l *life) forwards(h *household, s lifeStep) string {
	w := h.one(s, h.atHome)
	if w == nil || h.own == nil {
		return ""
	}
	n := h.c.Namespace
	must(l.t, n.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	bridge := silent(l.t, n, "br0")
	for _, port := range []string{w.name, "i0"} {
		must(l.t, n.LinkSetMaster(nettest.Must(n.LinkByName(port))(l.t), bridge))
	}
	if s.b%2 == 0 {
		l.r.reload() // while it looks like this
	}
	l.sends(w.out, w.outer, s)
	l.sends(h.own, "i1", s)
	must(l.t, n.LinkDel(bridge))
	return "forwards by " + w.name
}

// hostMoves has the host move its end of an interface to another namespace, while all are in the
// container's.
func (l *life) hostMoves(h *household, s lifeStep) string {
	w := h.one(s, func(w *wayOut) bool { return w.out == l.host })
	if w == nil || slices.ContainsFunc(h.ways, func(w *wayOut) bool { return !h.atHome(w) }) {
		return ""
	}
	w.moved = true
	l.moveOuter(w, l.other)
	return "has the other end of " + w.name + " moved to another namespace"
}

func (l *life) hostReturns(h *household, s lifeStep) string {
	w := h.one(s, func(w *wayOut) bool { return w.out == l.other })
	if w == nil {
		return ""
	}
	l.moveOuter(w, l.host)
	return "has the other end of " + w.name + " moved back"
}

func (l *life) moveOuter(w *wayOut, to *testnet.Namespace) {
	must(l.t, w.out.LinkSetNsFd(nettest.Must(w.out.LinkByName(w.outer))(l.t), to.FD()))
	w.out = to
	l.up(w.out, w.outer, w.in, w.name)
}

// restarts ends a container, with all that is its own, and makes another one.
func (l *life) restarts(h *household, s lifeStep) string {
	if s.b%3 != 0 {
		return "" // it is the end of all that has grown
	}
	l.removesOwn(h, s)
	for _, w := range slices.Clone(h.ways) {
		h.ends(l.t, w)
	}
	l.ended[h.c.ID] = h.gone
	delete(l.agents, h.c.Namespace)
	must(l.t, h.c.Close())
	*h = *l.settles()
	l.comes(h, s)
	return "ends, and another one comes"
}

func (l *life) looks(*household, lifeStep) string {
	l.r.reload()
	return "is looked at"
}

// flows has packets pass all there is, both ways.
func (l *life) flows(s lifeStep) {
	for _, h := range l.houses {
		for _, w := range h.ways {
			l.sends(w.out, w.outer, s)
			l.sends(w.in, w.name, s)
		}
		if h.own != nil {
			l.sends(h.c.Namespace, "i0", s)
			l.sends(h.own, "i1", s)
		}
	}
}

// sends has frames that nobody answers leave by an interface.
func (l *life) sends(from *testnet.Namespace, by string, s lifeStep) {
	l.t.Helper()
	frame := testnet.Frame{Interface: by, Size: 60 + s.a%1400, Data: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}}
	must(l.t, l.agents[from].SendFrame(frame, 1+s.b%5))
}

// wrong waits until all is as the kernel has it. It returns what is not, in the end, or what is
// more than it may ever be.
func (l *life) wrong(patience time.Duration) (failed string) {
	want := map[string]duplex{}
	for id, had := range l.ended {
		want[id] = had
	}
	for _, h := range l.houses {
		all := h.gone
		for _, w := range h.ways {
			all = all.plus(w.kernel(l.t))
		}
		want[h.c.ID] = all
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		failed = ""
		known := 0
		for _, c := range l.r.accounts.Snapshot().Containers {
			if _, mine := want[c.ID]; mine {
				known++
			}
			have := duplex{c.Receive.Interface, c.Transmit.Interface}
			if _, mine := want[c.ID]; !mine || have == want[c.ID] {
				continue
			}
			failed = fmt.Sprintf("%.4s has %+v, the kernel %+v; %s", c.ID, have, want[c.ID], interfacesOf(c))
			if max(have.receive.Packets, want[c.ID].receive.Packets) != want[c.ID].receive.Packets ||
				max(have.transmit.Packets, want[c.ID].transmit.Packets) != want[c.ID].transmit.Packets {
				return failed
			}
		}
		if known < len(want) {
			failed = "a container is not known"
		}
		if failed == "" || time.Now().After(deadline) {
			return failed
		}
	}
}

func interfacesOf(c usage.Container) (text string) {
	for _, i := range c.Interfaces {
		text += fmt.Sprintf("%s at %s (%t) received %d, of which seeded %d and mended %d, and sent %d, %d and %d; ", i.Name, i.At, i.Attached,
			i.Receive.Interface.Packets, i.Receive.Seeded.Packets, i.Receive.Mended.Packets,
			i.Transmit.Interface.Packets, i.Transmit.Seeded.Packets, i.Transmit.Mended.Packets)
	}
	return text
}

// wrongNames waits until just what leads out is counted, under the names that it has at home.
func (l *life) wrongNames(patience time.Duration) (failed string) {
	want := map[string]string{}
	inner := map[string]string{} // by the other end's name
	for _, h := range l.houses {
		var names []string
		for _, w := range h.ways {
			names = append(names, w.name)
			inner[w.outer] = w.name
		}
		slices.Sort(names)
		want[h.c.ID] = fmt.Sprint(names)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		failed = ""
		for _, c := range l.r.accounts.Snapshot().Containers {
			var names []string
			for _, i := range c.Interfaces {
				if !i.Attached {
					continue
				}
				names = append(names, i.Name)
				if i.HostInterface != "" && inner[i.HostInterface] != i.Name { // names may have been swapped
					failed = fmt.Sprintf("%.4s is counted on %s as %s", c.ID, i.HostInterface, i.Name)
				}
			}
			if had, mine := want[c.ID]; mine && fmt.Sprint(names) != had {
				failed = fmt.Sprintf("%.4s is counted on %v, and has %s", c.ID, names, had)
			}
		}
		if failed == "" || time.Now().After(deadline) {
			return failed
		}
	}
}
