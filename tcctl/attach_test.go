// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestAttachTwice(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	if !attach(t, c, h.ifindex, 3, ingress, egress) {
		t.Error("first attach did not make the qdisc")
	}
	newIngress, newEgress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	if attach(t, c, h.ifindex, 4, newIngress, newEgress) {
		t.Error("second attach made a qdisc")
	}
	wantFilters(t, c, h.ifindex,
		h.attached(Ingress, DefaultPriority, 4, newIngress), h.attached(Egress, DefaultPriority, 4, newEgress))
	h.exchange(t)
	newIngress.want(t, noted{Classid: 4, Packets: 1})
	newEgress.want(t, noted{Classid: 4, Packets: 1})
	ingress.want(t, noted{})
	egress.want(t, noted{})
}

// The minor of the classid can be the address of a clsact hook (0xfff1-0xfff3).
func TestSlotReachesProgram(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	for _, slot := range []uint16{1, 300, 0xfff1, 0xfff2, 0xfff3, 65535} {
		attach(t, c, h.ifindex, slot, ingress, egress)
		ingress.forget(t)
		egress.forget(t)
		h.exchange(t)
		ingress.want(t, noted{Classid: uint32(slot), Packets: 1})
		egress.want(t, noted{Classid: uint32(slot), Packets: 1})
		wantFilters(t, c, h.ifindex,
			h.attached(Ingress, DefaultPriority, slot, ingress), h.attached(Egress, DefaultPriority, slot, egress))
	}
}

// The swap of a filter must not let a packet by.
func TestReplaceMissesNothing(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attach(t, c, h.ifindex, 1, ingress, egress)
	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for slot := uint16(2); ; slot++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.Attach(h.ifindex, slot, ingress, egress, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const frames = 300
	for range frames {
		sendFrame(t, h.Namespace, h.ifindex)
	}
	close(stop)
	swaps.Wait()
	eventually(t, func() bool { return egress.noted(t).Packets == frames })
}

func TestAttachMovesToNewPriority(t *testing.T) {
	h := newHost(t)
	old, c := open(t, h.Namespace, 2), open(t, h.Namespace, 7)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attach(t, old, h.ifindex, 3, ingress, egress)
	attach(t, c, h.ifindex, 3, ingress, egress)
	wantFilters(t, c, h.ifindex, h.attached(Ingress, 7, 3, ingress), h.attached(Egress, 7, 3, egress))
	detach(t, old, h.ifindex, true)
	wantFilters(t, c, h.ifindex)
}

// The state a failed attach finds is the state it leaves.
func TestAttachUndoesFirstHalf(t *testing.T) {
	occupy := "tc filter add dev v0 egress protocol ip pref 2 u32 match u32 0 0 flowid 1:1"
	tests := map[string]struct {
		prepare func(t *testing.T, h *host, c *Controller) *classifier // returns the ingress program, if any
		egress  func(t *testing.T) program
		want    error
	}{
		"egress taken": {
			prepare: func(t *testing.T, h *host, _ *Controller) *classifier {
				h.run(t, "tc qdisc add dev v0 clsact")
				h.run(t, occupy)
				return nil
			},
			want: ErrForeign,
		},
		"egress taken, older filter at ingress": {
			prepare: func(t *testing.T, h *host, c *Controller) *classifier {
				ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
				attach(t, c, h.ifindex, 5, ingress, egress)
				h.run(t, "tc filter del dev v0 egress")
				h.run(t, occupy)
				// From here on only the filter holds the program.
				ingress.Close()
				return ingress
			},
			want: ErrForeign,
		},
		"egress refused, no qdisc before": {
			prepare: func(*testing.T, *host, *Controller) *classifier { return nil },
			egress:  loadWrongType,
			want:    unix.EINVAL,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := open(t, h.Namespace, 2)
			older := test.prepare(t, h, c)
			before := h.show(t)
			var egress program = load(t, "nettally_egress")
			if test.egress != nil {
				egress = test.egress(t)
			}
			created, err := c.Attach(h.ifindex, 6, load(t, "nettally_ingress"), egress, nil)
			if !errors.Is(err, test.want) || created {
				t.Fatalf("Attach = %v, %v; want error %v", created, err, test.want)
			}
			if diff := cmp.Diff(before, h.show(t)); diff != "" {
				t.Errorf("state (-before +after):\n%s", diff)
			}
			if older != nil {
				wantFilters(t, c, h.ifindex, h.attached(Ingress, 2, 5, older))
				h.exchange(t)
				older.want(t, noted{Classid: 5, Packets: 1})
			}
		})
	}
}

func loadWrongType(t *testing.T) program {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "nettally_egress", Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// meanwhile is a program that does something when it is about to be attached.
type meanwhile struct {
	program
	do func()
}

func (m meanwhile) FD() int {
	m.do()
	return m.program.FD()
}

func TestAttachToVanishing(t *testing.T) {
	for _, hook := range []string{"", "ingress", "egress"} {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s again=%v", hook, again), func(t *testing.T) {
				h := newHost(t)
				c := open(t, h.Namespace, 0)
				programs := map[string]program{
					"ingress": load(t, "nettally_ingress"), "egress": load(t, "nettally_egress"),
				}
				if again {
					attach(t, c, h.ifindex, 1, programs["ingress"], programs["egress"])
				}
				vanish := func() { h.deleteLink(t) }
				if hook == "" {
					vanish()
				} else {
					programs[hook] = meanwhile{programs[hook], vanish}
				}
				created, err := c.Attach(h.ifindex, 1, programs["ingress"], programs["egress"], nil)
				if !errors.Is(err, ErrGone) || !errors.Is(err, unix.ENODEV) || created {
					t.Errorf("Attach = %v, %v; want ErrGone", created, err)
				}
				detach(t, c, h.ifindex, true)
				wantFilters(t, c, h.ifindex)
			})
		}
	}
}

func TestAttachWhileInterfacesVanish(t *testing.T) {
	ns := newNamespace(t)
	c := open(t, ns, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	ifindexes := addLinks(t, ns, 50)
	var deleter sync.WaitGroup
	deleter.Go(func() {
		for i := range 50 {
			link, err := ns.LinkByName(fmt.Sprintf("a%d", i))
			if err == nil {
				err = ns.LinkDel(link)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	for gone := 0; gone < len(ifindexes); {
		gone = 0
		for _, ifindex := range ifindexes {
			_, err := c.Attach(ifindex, 1, ingress, egress, nil)
			switch {
			case errors.Is(err, ErrGone):
				gone++
			case err != nil:
				t.Error(err)
			}
			if err := c.Detach(ifindex, ifindex%3 == 0); err != nil {
				t.Error(err)
			}
		}
	}
	deleter.Wait()
}

// Whoever attaches is told before the qdisc is made, can prevent it, and is not told where
// somebody has made one before.
func TestAttachTellsBeforeQdisc(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	refused := errors.New("refused")
	before := h.show(t)
	if created, err := c.Attach(h.ifindex, 1, ingress, egress, func() error { return refused }); created || !errors.Is(err, refused) {
		t.Errorf("Attach = %t, %v; want the refusal", created, err)
	}
	if after := h.show(t); after != before {
		t.Errorf("refused, and yet there is\n%s", after)
	}
	told := false
	created, err := c.Attach(h.ifindex, 1, ingress, egress, func() error {
		told = h.show(t) == before
		return nil
	})
	if err != nil || !created || !told {
		t.Errorf("Attach = %t, %v; told before: %t", created, err, told)
	}
	if _, err := c.Attach(h.ifindex, 2, ingress, egress, func() error { return refused }); err != nil {
		t.Errorf("attach where the qdisc is: %v", err)
	}
	// Somebody else is faster.
	detach(t, c, h.ifindex, true)
	created, err = c.Attach(h.ifindex, 1, ingress, egress, func() error {
		h.run(t, "tc qdisc add dev v0 clsact")
		return nil
	})
	if err != nil || created {
		t.Errorf("Attach = %t, %v; want somebody else's qdisc", created, err)
	}
}

// Somebody may delete clsact, and all filters with it, at any moment.
func TestAttachWhileQdiscIsDeleted(t *testing.T) {
	h := newHost(t)
	c := open(t, h.Namespace, 0)
	egress := meanwhile{load(t, "nettally_egress"), func() { h.run(t, "tc qdisc del dev v0 clsact") }}
	_, err := c.Attach(h.ifindex, 1, load(t, "nettally_ingress"), egress, nil)
	if !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrGone) || errors.Is(err, ErrForeign) {
		t.Errorf("Attach = %v, want a plain EINVAL", err)
	}
	attach(t, c, h.ifindex, 1, load(t, "nettally_ingress"), load(t, "nettally_egress"))
}

func TestManyInterfaces(t *testing.T) {
	ns := newNamespace(t)
	c := open(t, ns, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	ifindexes := addLinks(t, ns, 1500)
	for i, ifindex := range ifindexes {
		attach(t, c, ifindex, uint16(i+1), ingress, egress)
	}
	got, err := c.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(ifindexes)
	if diff := cmp.Diff(ifindexes, got); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}
	last := ifindexes[len(ifindexes)-1]
	detach(t, c, last, true)
	if got, err := c.Interfaces(); err != nil || len(got) != len(ifindexes)-1 || slices.Contains(got, last) {
		t.Errorf("after detach: %d interfaces, %v", len(got), err)
	}
}

func TestConcurrentUse(t *testing.T) {
	ns := newNamespace(t)
	c := open(t, ns, 0)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	ifindexes := addLinks(t, ns, 8)
	var users sync.WaitGroup
	for worker := range 32 {
		users.Go(func() {
			// Two workers on each interface.
			ifindex := ifindexes[worker%len(ifindexes)]
			for range 10 {
				_, attachErr := c.Attach(ifindex, uint16(ifindex), ingress, egress, nil)
				filters, listErr := c.Filters(ifindex)
				_, interfacesErr := c.Interfaces()
				err := errors.Join(attachErr, listErr, interfacesErr, c.Detach(ifindex, true))
				if err != nil || len(filters) != 2 && len(filters) != 0 {
					t.Errorf("%d filters, %v", len(filters), err)
				}
			}
		})
	}
	users.Wait()
	if left, err := c.Interfaces(); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func BenchmarkAttach(b *testing.B) {
	ns := newNamespace(b)
	c := open(b, ns, 0)
	ingress, egress := load(b, "nettally_ingress"), load(b, "nettally_egress")
	ifindexes := addLinks(b, ns, 64)
	b.Run("new", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if i%len(ifindexes) == 0 {
				b.StopTimer()
				detachAll(b, c, ifindexes)
				b.StartTimer()
			}
			attach(b, c, ifindexes[i%len(ifindexes)], 1, ingress, egress)
		}
	})
	b.Run("again", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			attach(b, c, ifindexes[i%len(ifindexes)], 1, ingress, egress)
		}
	})
}

func detachAll(tb testing.TB, c *Controller, ifindexes []int) {
	for _, ifindex := range ifindexes {
		detach(tb, c, ifindex, true)
	}
}
