// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

var (
	one    = netip.MustParseAddr("10.0.0.1")
	two    = netip.MustParseAddr("10.0.0.2")
	remote = netip.MustParseAddr("192.0.2.1")
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

func out(from netip.Addr) entry { return entry{from: from, to: remote, protocol: usage.ProtocolTCP} }

func (b *book) tcp(id string) usage.Connections {
	return b.shown(true, true)[id].Transmit[usage.ProtocolTCP]
}

// The first connections of a container may be told before its address is known.
func TestRecall(t *testing.T) {
	b := newBook()
	b.opened(out(one), noon.Add(-time.Second)) // of whoever had the address before
	b.opened(out(one), noon.Add(time.Second))
	b.opened(entry{from: remote, to: one, protocol: usage.ProtocolTCP}, noon.Add(time.Second))
	b.claim(Sandbox{ID: 1, Owner: "a", Since: noon}, []netip.Addr{one}, noon.Add(2*time.Second))
	if got := b.tcp("a").Opened; got != 1 {
		t.Errorf("opened %d", got)
	}
	if got := b.shown(true, true)["a"].Receive[usage.ProtocolTCP].Opened; got != 1 {
		t.Errorf("opened from outside %d", got)
	}
	b.claim(Sandbox{ID: 1, Owner: "a", Since: noon}, nil, noon.Add(3*time.Second))
	b.claim(Sandbox{ID: 1, Owner: "a", Since: noon}, []netip.Addr{one}, noon.Add(3*time.Second))
	if got := b.tcp("a").Opened; got != 1 {
		t.Errorf("the same connections were counted again: opened %d", got)
	}
}

// An address is of who had it first, until that one has ended; what ends later is still its,
// while nobody else has the address.
func TestHolders(t *testing.T) {
	b := newBook()
	b.claim(Sandbox{ID: 1, Owner: "a", Since: noon}, []netip.Addr{one}, noon)
	b.claim(Sandbox{ID: 2, Owner: "thief", Since: noon}, []netip.Addr{one, two}, noon)
	b.opened(out(one), noon)
	b.opened(out(two), noon)
	if a, thief := b.tcp("a").Opened, b.tcp("thief").Opened; a != 1 || thief != 1 {
		t.Fatalf("opened %d and %d", a, thief)
	}
	b.end("a", noon)
	b.leave(1)
	b.closed(out(one))
	if got := b.tcp("a").Closed; got != 1 {
		t.Errorf("closed %d after the end", got)
	}
	b.opened(out(one), noon.Add(2*time.Second)) // the next one's
	b.claim(Sandbox{ID: 3, Owner: "b", Since: noon.Add(time.Second)}, []netip.Addr{one}, noon.Add(3*time.Second))
	if a, next := b.tcp("a").Opened, b.tcp("b").Opened; a != 1 || next != 1 {
		t.Errorf("opened %d, and %d of the next one", a, next)
	}
	b.forget(noon.Add(time.Hour))
	if _, there := b.tallies["a"]; there || len(b.holders) != 2 || len(b.sandbox) != 2 {
		t.Errorf("left: %v, %v", b.holders, b.sandbox)
	}
}

// Containers and addresses beyond a bound are nobody's, until others have gone.
func TestBookIsBounded(t *testing.T) {
	b := newBook()
	for i := range maxTallies + 1 {
		b.claim(Sandbox{ID: uint64(i), Owner: fmt.Sprint(i), Since: noon}, nil, noon)
	}
	if len(b.tallies) != maxTallies || len(b.sandbox) > maxTallies {
		t.Fatalf("%d containers, %d sandboxes", len(b.tallies), len(b.sandbox))
	}
	addrs := make([]netip.Addr, maxAddresses+1)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	const each = 64
	for i := range len(addrs)/each + 1 {
		b.claim(Sandbox{ID: uint64(i), Owner: fmt.Sprint(i), Since: noon}, addrs[i*each:min((i+1)*each, len(addrs))], noon)
	}
	if len(b.holders) != maxAddresses {
		t.Fatalf("%d addresses", len(b.holders))
	}
	last, late := addrs[maxAddresses], fmt.Sprint(maxAddresses/each)
	b.opened(out(last), noon)
	if got := b.tcp(late).Opened; got != 0 {
		t.Errorf("opened %d from an address beyond the bound", got)
	}

	b.leave(0)
	b.end("0", noon)
	b.forget(noon.Add(time.Second))
	b.claim(Sandbox{ID: maxAddresses / each, Owner: late, Since: noon}, []netip.Addr{last}, noon)
	b.opened(out(last), noon.Add(time.Second))
	if got := b.tcp(late).Opened; got != 2 {
		t.Errorf("opened %d after there was room, one of which is recalled", got)
	}
	b.claim(Sandbox{ID: maxTallies, Owner: "new", Since: noon}, []netip.Addr{addrs[0]}, noon)
	if b.tallies["new"] == nil || len(b.holders) != maxAddresses-each+2 {
		t.Errorf("no room for another container, or %d addresses", len(b.holders))
	}
}

// What a dump shows is added only where it is certain that events were missed.
func TestListed(t *testing.T) {
	for _, c := range []struct {
		name           string
		before         uint64 // entries of the dump before
		opened, closed int    // told between the two
		next           listing
		unlisted       int64
		wantOpened     uint64
		wantClosed     uint64
	}{
		{"nothing missed", 5, 3, 2, listing{other: 6}, 0, 3, 2},
		{"openings missed", 5, 0, 0, listing{other: 9}, 0, 4, 0},
		{"endings missed", 5, 0, 0, listing{established: 2}, 0, 0, 3},
		{"opened while listed, and not in there", 5, 0, 0, listing{other: 5, opened: 2}, 0, 2, 0},
		{"closed while listed, and in there", 5, 0, 0, listing{other: 5, closed: 2}, 0, 0, 2},
		{"time is over, not told yet", 5, 0, 0, listing{other: 1}, 4, 0, 0},
		{"more missed than time is over", 5, 0, 0, listing{other: 0}, 3, 0, 2},
	} {
		var cell cell
		cell.next.other = c.before
		cell.listed(0)
		cell.next = listing{}
		for range c.opened {
			cell.open()
		}
		for range c.closed {
			cell.close()
		}
		cell.next = listing{}
		for range c.next.opened {
			cell.open()
		}
		for range c.next.closed {
			cell.close()
		}
		cell.next.established, cell.next.other = c.next.established, c.next.other
		cell.listed(c.unlisted)
		if cell.opened != c.wantOpened || cell.closed != c.wantClosed {
			t.Errorf("%s: opened %d, closed %d, want %d, %d", c.name, cell.opened, cell.closed, c.wantOpened, c.wantClosed)
		}
	}
}

// What came while endings were not told yet is not counted again when they are.
func TestListedLate(t *testing.T) {
	var c cell
	c.next.other = 10
	c.listed(0)
	c.next = listing{other: 4} // six are over, and not told
	c.listed(6)
	for range 6 {
		c.close()
	}
	c.next = listing{other: 4}
	c.listed(0)
	if c.opened != 0 || c.closed != 6 {
		t.Errorf("opened %d, closed %d", c.opened, c.closed)
	}
}
