// SPDX-License-Identifier: Apache-2.0

package wallclock

import "time"

const (
	// Tolerance is how far a right clock may be from where it is expected. The kernel slews
	// the wall clock and the time since boot alike, so only steps set them apart. A host
	// without NTP drifts by at most 43 s a day (500 ppm, the most that the kernel corrects), so
	// that a daily correction is within the tolerance. A step below it moves the end of an
	// hour, the shortest period, by a sixtieth.
	Tolerance = time.Minute

	// SyncedFor is how long a clock that contradicts the last save has to run steadily if the
	// kernel calls it synchronised. Each step clears that flag, so whoever has set it since is
	// an NTP client that takes this time for right. One with a single bad server is put right
	// by its next answer, within about a minute.
	SyncedFor = time.Minute
	// BootedFor is how long a clock that is past the last save, but of another boot, has to
	// run steadily if it is not synchronised. The host may have been off for as long; an NTP
	// client has corrected the clock by then.
	BootedFor = 10 * time.Minute
	// SteadyFor is how long a clock that contradicts the last save has to run steadily if it
	// is not synchronised: long enough for a person to see the warning.
	SteadyFor = 24 * time.Hour
)

// State says how far the wall clock can be trusted.
type State uint8

const (
	// Agrees with the last save and the time since boot, or was taken for right.
	Agrees State = iota
	// Unproven is past the last save, which is of another boot: the host may have been off.
	Unproven
	// Ahead of the last save by more than the time since.
	Ahead
	// Behind the last save, or the time since.
	Behind
)

func (s State) String() string {
	return [...]string{"agrees", "unproven", "ahead", "behind"}[s]
}

// Reading is one look at the host's clocks.
type Reading struct {
	Wall   time.Time
	Boot   time.Duration // CLOCK_BOOTTIME, which goes on in suspend and is never set
	BootID int64         // tells one run of the kernel from another; 0 is unknown
	// Synced is what adjtimex(2) says: an NTP client vouches for the wall clock.
	Synced bool
}

func (r Reading) mark() Mark { return Mark{Wall: r.Wall.Round(0), Boot: r.Boot, BootID: r.BootID} }

// Mark is a moment at which the wall clock was trusted. It is saved with all that was
// written by that time. An older version saved the wall time alone: BootID is 0 then.
type Mark struct {
	Wall   time.Time
	Boot   time.Duration
	BootID int64
	// Carried means that the time was trusted in another boot, or on another host, and was
	// carried over to this one: it is the earliest that it can be.
	Carried bool
}

// IsZero reports whether nothing is known of an earlier time.
func (m Mark) IsZero() bool { return m.Wall.IsZero() }

// expected returns the wall time that a reading of the same boot should have; at least that,
// if the mark was carried over.
func (m Mark) expected(r Reading) time.Time { return m.Wall.Add(r.Boot - m.Boot) }

// carry returns the mark for the boot that a reading is of. On the same host the time since
// boot has passed since the mark. But a ledger may come from another host, which was at work
// while this one was up for years: so only the time that a service takes to start is added,
// and none that contradicts a wall clock which is past the mark.
func (m Mark) carry(r Reading) Mark {
	if m.BootID == r.BootID || m.IsZero() {
		return m
	}
	wall := m.Wall
	if m.BootID != 0 { // else it may be of this boot
		wall = wall.Add(min(r.Boot, BootedFor))
	}
	if past := r.Wall.Sub(m.Wall); past >= -Tolerance && r.Wall.Before(wall) {
		wall = m.Wall.Add(max(past, 0))
	}
	return Mark{Wall: wall.Round(0), Boot: r.Boot, BootID: r.BootID, Carried: true}
}

// follows reports whether the wall clock has gone steadily from m to a reading.
func (m Mark) follows(r Reading) bool {
	return m.BootID == r.BootID && !m.IsZero() && r.Wall.Sub(m.expected(r)).Abs() <= Tolerance
}

// Guard judges readings of the host's clocks. The zero Guard trusts its first one.
type Guard struct {
	state State
	mark  Mark // the last reading that was trusted, or what it was carried over to
	since Mark // the wall clock has gone steadily
	now   time.Time
}

// Restore makes the mark of the last save the reference, unless there was none. Readings that
// were trusted before, for want of it, are judged anew. steady is what [Guard.Steady] said at
// that time, so that a process that is often restarted comes to trust a clock all the same.
func (g *Guard) Restore(m, steady Mark) {
	if !m.IsZero() {
		g.mark = m
	}
	if !steady.IsZero() {
		g.since = steady
	}
}

// Look judges a reading, and returns how the clock stands from now on.
func (g *Guard) Look(r Reading) State {
	if !g.since.follows(r) {
		g.since = r.mark()
	}
	g.mark = g.mark.carry(r)
	expected := g.mark.expected(r)
	g.state = g.judge(r, expected)
	if g.state != Agrees && r.Boot-g.since.Boot >= patience(g.state, r.Synced) {
		g.state = Agrees
	}
	g.now = expected.Round(0)
	if g.state == Agrees {
		g.now, g.mark = r.Wall, r.mark()
	}
	return g.state
}

func (g *Guard) judge(r Reading, expected time.Time) State {
	diff := r.Wall.Sub(expected)
	switch {
	case g.mark.IsZero():
		return Agrees // there is nothing yet that it could harm
	case diff < -Tolerance:
		return Behind
	case g.mark.Carried:
		return Unproven
	case diff > Tolerance:
		return Ahead
	}
	return Agrees
}

// patience is how long a clock in a state has to run steadily to be taken for right.
func patience(s State, synced bool) time.Duration {
	switch {
	case s == Unproven && synced:
		return 0
	case s == Unproven:
		return BootedFor
	case synced:
		return SyncedFor
	}
	return SteadyFor
}

// State returns how the clock stood at the last look.
func (g *Guard) State() State { return g.state }

// Now returns the time at the last look: the wall clock's while it is trusted, and otherwise
// the last trusted one with what has passed since, as far as that is known. It goes back only
// when a clock that is behind is taken for right.
func (g *Guard) Now() time.Time { return g.now }

// Mark returns the reference to save.
func (g *Guard) Mark() Mark { return g.mark }

// Steady returns since when the wall clock has gone steadily, to be saved beside the mark.
func (g *Guard) Steady() Mark { return g.since }
