// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/trusted"
)

func TestAttachTCX(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	wantTCX(t, c, h.ifindex, false, false)
	attachTCX(t, c, h.ifindex, ingress, egress)
	wantTCX(t, c, h.ifindex, true, true)
	wantTCXInterfaces(t, c, h.ifindex)
	wantPins(t, c, fmt.Sprintf("%d-egress", h.ifindex), fmt.Sprintf("%d-ingress", h.ifindex))
	h.exchange(t)
	ingress.want(t, noted{Packets: 1})
	egress.want(t, noted{Packets: 1})

	id := linkID(t, c, place{h.ifindex, Ingress})
	newIngress, newEgress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, newIngress, newEgress)
	h.wantOnTCX(t, Ingress, newIngress)
	h.wantOnTCX(t, Egress, newEgress)
	if again := linkID(t, c, place{h.ifindex, Ingress}); again != id {
		t.Error("attaching again made another link")
	}
	h.exchange(t)
	newIngress.want(t, noted{Packets: 1})
	newEgress.want(t, noted{Packets: 1})

	for range 2 {
		detachTCX(t, c, h.ifindex)
		h.wantOnTCX(t, Ingress)
		h.wantOnTCX(t, Egress)
		wantTCX(t, c, h.ifindex, false, false)
		wantTCXInterfaces(t, c)
		wantPins(t, c)
	}
	ingress.want(t, noted{Packets: 1})
}

func TestTCXOutlivesController(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, ingress, egress)
	if err := errors.Join(c.Close(), ingress.Close(), egress.Close()); err != nil {
		t.Fatal(err)
	}
	h.exchange(t)
	ingress.want(t, noted{Packets: 1})
	egress.want(t, noted{Packets: 1})

	c = openPins(t, h.Namespace, c.links.pins)
	wantTCX(t, c, h.ifindex, true, true)
	wantTCXInterfaces(t, c, h.ifindex)
	newIngress, newEgress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, newIngress, newEgress)
	h.wantOnTCX(t, Ingress, newIngress)
	detachTCX(t, c, h.ifindex)
	h.wantOnTCX(t, Ingress)
	wantPins(t, c)
}

// Others keep their places, whenever they came.
func TestTCXBesideOthers(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	early, late, last := load(t, "early"), load(t, "late"), load(t, "last")
	for _, hook := range hooks {
		h.addTCX(t, hook, early.Program, nil)
	}
	attachTCX(t, c, h.ifindex, ingress, egress)
	h.wantOnTCX(t, Ingress, ingress, early)
	h.wantOnTCX(t, Egress, egress, early)
	wantTCX(t, c, h.ifindex, true, true)

	h.addTCX(t, Egress, late.Program, link.Head())
	h.addTCX(t, Egress, last.Program, link.Tail())
	wantTCX(t, c, h.ifindex, true, false)
	attachTCX(t, c, h.ifindex, ingress, egress)
	h.wantOnTCX(t, Egress, late, egress, early, last)

	id := linkID(t, c, place{h.ifindex, Ingress})
	raise(t, c, h.ifindex, ingress, egress)
	h.wantOnTCX(t, Ingress, ingress, early)
	h.wantOnTCX(t, Egress, egress, late, early, last)
	wantTCX(t, c, h.ifindex, true, true)
	if again := linkID(t, c, place{h.ifindex, Ingress}); again != id {
		t.Error("raised where we were first")
	}
	h.exchange(t)
	ingress.want(t, noted{Packets: 1})
	egress.want(t, noted{Packets: 1})
	early.want(t, noted{Packets: 2})
	late.want(t, noted{Packets: 1})

	detachTCX(t, c, h.ifindex)
	h.wantOnTCX(t, Ingress, early)
	h.wantOnTCX(t, Egress, late, early, last)
}

// Somebody before us ends the way of all packets.
func TestRaise(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, ingress, egress)
	const tcxPass = 0
	h.addTCX(t, Ingress, loadVerdict(t, tcxPass), link.Head())
	h.exchange(t)
	egress.want(t, noted{Packets: 1})
	ingress.want(t, noted{})
	wantTCX(t, c, h.ifindex, true, false)

	raise(t, c, h.ifindex, ingress, egress)
	wantTCX(t, c, h.ifindex, true, true)
	h.exchange(t)
	ingress.want(t, noted{Packets: 1})
}

func TestRaiseAttaches(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	raise(t, c, h.ifindex, ingress, egress)
	h.wantOnTCX(t, Ingress, ingress)
	h.wantOnTCX(t, Egress, egress)
	detachTCX(t, c, h.ifindex)
}

// When DetachTCX returns the programs are off, also where somebody else has the link open.
func TestDetachTCXHeldLink(t *testing.T) {
	h, c := newTCXHost(t)
	attachTCX(t, c, h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	held, err := link.LoadPinnedLink(c.links.pin(place{h.ifindex, Ingress}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	detachTCX(t, c, h.ifindex)
	h.wantOnTCX(t, Ingress)
	h.wantOnTCX(t, Egress)
}

// What a failed attach finds is what it leaves.
func TestAttachTCXUndoesFirstHalf(t *testing.T) {
	for name, again := range map[string]bool{"nothing before": false, "older programs": true} {
		t.Run(name, func(t *testing.T) {
			h, c := newTCXHost(t)
			var onIngress, onEgress []*classifier
			if again {
				ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
				attachTCX(t, c, h.ifindex, ingress, egress)
				// From here on only the link holds the program.
				ingress.Close()
				onIngress, onEgress = append(onIngress, ingress), append(onEgress, egress)
			}
			for _, put := range []func(int, program, program) error{c.AttachTCX, c.Raise} {
				err := put(h.ifindex, load(t, "nettally_ingress"), loadWrongType(t))
				if !errors.Is(err, unix.EINVAL) {
					t.Errorf("error %v, want EINVAL", err)
				}
				h.wantOnTCX(t, Ingress, onIngress...)
				h.wantOnTCX(t, Egress, onEgress...)
				wantTCX(t, c, h.ifindex, again, again)
			}
			detachTCX(t, c, h.ifindex)
			wantPins(t, c)
		})
	}
}

// A link that somebody has detached, or unpinned, is replaced, and no other.
func TestAttachTCXMends(t *testing.T) {
	for name, harm := range map[string]func(testing.TB, string){
		"detached": cut,
		"unpinned": func(t testing.TB, pin string) {
			cut(t, pin)
			if err := os.Remove(pin); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := newTCXHost(t)
			ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
			attachTCX(t, c, h.ifindex, ingress, egress)
			id := linkID(t, c, place{h.ifindex, Ingress})
			harm(t, c.links.pin(place{h.ifindex, Egress}))
			wantTCX(t, c, h.ifindex, false, false)

			attachTCX(t, c, h.ifindex, ingress, egress)
			wantTCX(t, c, h.ifindex, true, true)
			h.wantOnTCX(t, Egress, egress)
			if again := linkID(t, c, place{h.ifindex, Ingress}); again != id {
				t.Error("the other link was replaced, too")
			}
			harm(t, c.links.pin(place{h.ifindex, Egress}))
			wantTCXInterfaces(t, c, h.ifindex)
			wantPins(t, c, fmt.Sprintf("%d-ingress", h.ifindex))
			detachTCX(t, c, h.ifindex)
		})
	}
}

func TestTCXInterfaceGone(t *testing.T) {
	for name, clean := range map[string]func(t *testing.T, c *Controller, ifindex int){
		"TCXInterfaces": func(t *testing.T, c *Controller, _ int) { wantTCXInterfaces(t, c) },
		"DetachTCX":     func(t *testing.T, c *Controller, ifindex int) { detachTCX(t, c, ifindex) },
	} {
		t.Run(name, func(t *testing.T) {
			h, c := newTCXHost(t)
			ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
			attachTCX(t, c, h.ifindex, ingress, egress)
			h.deleteLink(t)
			wantTCX(t, c, h.ifindex, false, false)
			clean(t, c, h.ifindex)
			wantPins(t, c)
			if err := c.AttachTCX(h.ifindex, ingress, egress); !errors.Is(err, ErrGone) || !errors.Is(err, unix.ENODEV) {
				t.Errorf("AttachTCX = %v, want ErrGone", err)
			}
			wantPins(t, c)
			if _, err := c.OthersOnTCX(h.ifindex); !errors.Is(err, ErrGone) {
				t.Errorf("Others: %v, want ErrGone", err)
			}
		})
	}
}

func TestTCXReusedIfindex(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, ingress, egress)
	h.deleteLink(t)
	h.addLink(t, h.ifindex)
	wantTCX(t, c, h.ifindex, false, false)
	attachTCX(t, c, h.ifindex, ingress, egress)
	wantTCX(t, c, h.ifindex, true, true)
	h.wantOnTCX(t, Ingress, ingress)
	detachTCX(t, c, h.ifindex)
	wantPins(t, c)
}

func TestAttachTCXToVanishing(t *testing.T) {
	for _, hook := range hooks {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s again=%v", hook, again), func(t *testing.T) {
				h, c := newTCXHost(t)
				programs := map[Hook]program{Ingress: load(t, "nettally_ingress"), Egress: load(t, "nettally_egress")}
				if again {
					attachTCX(t, c, h.ifindex, programs[Ingress], programs[Egress])
				}
				programs[hook] = meanwhile{programs[hook], func() { h.deleteLink(t) }}
				err := c.AttachTCX(h.ifindex, programs[Ingress], programs[Egress])
				if !errors.Is(err, ErrGone) {
					t.Errorf("AttachTCX = %v, want ErrGone", err)
				}
				wantTCXInterfaces(t, c)
				wantPins(t, c)
			})
		}
	}
}

// A link goes along with an interface to another namespace.
func TestTCXInterfaceMoved(t *testing.T) {
	h, c := newTCXHost(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, ingress, egress)
	elsewhere := newNamespace(t)
	v0, err := h.LinkByName("v0")
	if err == nil {
		err = h.LinkSetNsFd(v0, elsewhere.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	moved := ifindexOf(t, elsewhere, "v0")
	t.Logf("ifindex %d is %d there, with %d programs", h.ifindex, moved, len(onTCX(t, elsewhere, moved, Ingress)))
	wantTCX(t, c, h.ifindex, false, false)
	wantTCXInterfaces(t, c)
	wantPins(t, c)
	if left := onTCX(t, elsewhere, moved, Ingress); len(left) != 0 {
		t.Errorf("%d programs are still on it", len(left))
	}
}

// What is pinned under our name but is not ours stays.
func TestTCXForeignPin(t *testing.T) {
	h, c := newTCXHost(t)
	theirs := load(t, "theirs")
	if err := os.Mkdir(c.links.pins, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.addTCX(t, Egress, theirs.Program, nil).Pin(c.links.pin(place{h.ifindex, Egress})); err != nil {
		t.Fatal(err)
	}
	err := c.AttachTCX(h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `the link has program "theirs"`) {
		t.Errorf("AttachTCX = %v, want ErrForeign", err)
	}
	wantTCX(t, c, h.ifindex, false, false)
	wantTCXInterfaces(t, c)
	detachTCX(t, c, h.ifindex)
	h.wantOnTCX(t, Ingress)
	h.wantOnTCX(t, Egress, theirs)
	wantPins(t, c, fmt.Sprintf("%d-egress", h.ifindex))
}

func TestTCXBesideIngressQdisc(t *testing.T) {
	h, c := newTCXHost(t)
	h.run(t, "tc qdisc add dev v0 ingress")
	h.run(t, "tc filter add dev v0 ingress pref 2 protocol ip u32 match u32 0 0 flowid 1:1")
	before := h.show(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	attachTCX(t, c, h.ifindex, ingress, egress)
	h.exchange(t)
	ingress.want(t, noted{Packets: 1})
	egress.want(t, noted{Packets: 1})
	detachTCX(t, c, h.ifindex)
	if diff := cmp.Diff(before, h.show(t)); diff != "" {
		t.Errorf("state (-before +after):\n%s", diff)
	}
}

func TestTCXWithoutPins(t *testing.T) {
	h := newHost(t)
	needTCX(t)
	ingress, egress := load(t, "nettally_ingress"), load(t, "nettally_egress")
	for name, test := range map[string]struct{ pins, says string }{
		"no folder":    {"", "no folder for the pins was given"},
		"not a bpffs":  {filepath.Join(t.TempDir(), "links"), "is not on a bpf filesystem"},
		"no such path": {filepath.Join(t.TempDir(), "missing", "links"), "make folder for pins: "},
	} {
		t.Run(name, func(t *testing.T) {
			c := openPins(t, h.Namespace, test.pins)
			err := c.AttachTCX(h.ifindex, ingress, egress)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("AttachTCX = %v, want %q", err, test.says)
			}
			wantTCX(t, c, h.ifindex, false, false)
			wantTCXInterfaces(t, c)
			detachTCX(t, c, h.ifindex)
			h.wantOnTCX(t, Ingress)
			if test.pins != "" {
				wantPins(t, c)
			}
		})
	}
}

func TestExplainTCX(t *testing.T) {
	tests := []struct {
		err  error
		want error
		says string
	}{
		{explainTCX(unix.ENODEV), ErrGone, "the interface is gone: no such device"},
		{explainTCX(unix.EEXIST), unix.EEXIST, "the program is on the hook already"},
		{explainTCX(unix.EPERM), unix.EPERM, "operation not permitted"},
		{explainQuery(unix.EINVAL), ErrUnsupported,
			"not supported by the kernel: the kernel has no tcx, which Linux 6.6 brought: invalid argument"},
		{explainQuery(unix.ENODEV), ErrGone, "the interface is gone"},
	}
	for _, test := range tests {
		if !errors.Is(test.err, test.want) || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("%v; want %v, %q", test.err, test.want, test.says)
		}
	}
}

func TestParsePlace(t *testing.T) {
	for name, want := range map[string]place{
		"7-ingress": {7, Ingress}, "123456-egress": {123456, Egress},
		"": {}, "ingress": {}, "7": {}, "7-": {}, "07-ingress": {}, "7-ingress2": {}, "x7-ingress": {}, "7 -egress": {},
	} {
		if got, ok := parsePlace(name); got != want || ok != (want != place{}) {
			t.Errorf("parsePlace(%q) = %v, %v", name, got, ok)
		}
	}
}

// In a folder of somebody else's, a pin could be anything.
func TestPinsOfOthers(t *testing.T) {
	need.Root(t)
	const stranger = 1000
	pins := filepath.Join(t.TempDir(), "links")
	if err := os.Mkdir(pins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(pins, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Pins: pins}); !errors.Is(err, trusted.ErrUntrusted) {
		t.Errorf("open: %v, want ErrUntrusted", err)
	}
}

// A folder that somebody made after Open is not pinned in, and nothing stays attached.
func TestPinsMadeByOthers(t *testing.T) {
	const stranger = 1000
	h, c := newTCXHost(t)
	if err := os.Mkdir(c.links.pins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(c.links.pins, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	err := c.AttachTCX(h.ifindex, load(t, "nettally_ingress"), load(t, "nettally_egress"))
	if !errors.Is(err, trusted.ErrUntrusted) {
		t.Errorf("attach: %v, want ErrUntrusted", err)
	}
	h.wantOnTCX(t, Ingress)
	h.wantOnTCX(t, Egress)
}
