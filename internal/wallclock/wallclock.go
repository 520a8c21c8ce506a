// SPDX-License-Identifier: Apache-2.0

// Package wallclock tells whether the host's wall clock can be trusted, and what time it is
// while it can't.
//
// A clock may be wrong in both directions: a host without a real-time clock boots months
// behind until NTP corrects it, a virtual machine that was paused is stepped ahead, someone
// mistypes a date. Whoever closes a period, or removes what is old, on its word forgives
// usage or loses history. So [Clock] holds it against the last save and against
// CLOCK_BOOTTIME, which nobody can set.
package wallclock

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Clock is a [Guard] of the host's clocks. It is safe for concurrent use.
type Clock struct {
	read func() Reading
	log  *slog.Logger

	mu    sync.Mutex
	guard Guard
	told  State
}

// New returns a clock that trusts its first reading, unless a mark is restored before.
func New(read func() Reading, log *slog.Logger) *Clock { return &Clock{read: read, log: log} }

// Host returns how the host's clocks are read. It needs no capability. Where adjtimex(2) is
// forbidden, as by systemd's ProtectClock, the clock is never synchronised, and SteadyFor
// and BootedFor hold.
func Host() (read func() Reading, err error) {
	const path = "/proc/sys/kernel/random/boot_id"
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	// 60 of 122 random bits are enough to tell two boots apart.
	digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
	id, err := strconv.ParseInt(digits[:min(15, len(digits))], 16, 64)
	if err != nil {
		return nil, fmt.Errorf("parse boot id in %s: %w", path, err)
	}
	return func() Reading {
		return Reading{Wall: wall(), Boot: SinceBoot(), BootID: id, Synced: synced()}
	}, nil
}

// SinceBoot returns the time since the host booted, asleep or not.
func SinceBoot() time.Duration {
	var now unix.Timespec
	// Cannot fail: the clock is there since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return time.Duration(now.Nano())
}

// synced reports whether the kernel calls the clock synchronised. Any step clears that until
// an NTP client says so again (ntp_clear in kernel/time/ntp.c).
func synced() bool {
	var t unix.Timex // no modes: it only reads
	state, err := unix.Adjtimex(&t)
	const timeError = 5 // TIME_ERROR in <sys/timex.h>
	return err == nil && state != timeError && t.Status&unix.STA_UNSYNC == 0
}

// Steadily returns when something of this boot began, of which the kernel says when that was by
// the wall clock. It has a monotonic reading, so what happens to the clock from now on does not
// change how long ago it was. Nothing is older than the boot.
func Steadily(began time.Time) time.Time {
	// In this order, or what is cut is older than the boot by the time between both readings.
	boot := SinceBoot()
	now := time.Now()
	return now.Add(-min(max(now.Sub(began), 0), boot))
}

// Look is how the clock stands at a moment.
type Look struct {
	State State
	// Now is the time: see [Guard.Now]. It has a monotonic reading only while State is Agrees.
	Now time.Time
	// Wall is what the wall clock says, right or wrong, and Boot is CLOCK_BOOTTIME.
	Wall time.Time
	Boot time.Duration
	// Mark and Steady are what to save: see [Guard.Restore].
	Mark, Steady Mark
}

// Look reads the clocks and judges them. Each change is logged once.
func (c *Clock) Look() Look {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.read()
	expected := c.guard.Mark().carry(r).expected(r)
	state := c.guard.Look(r)
	if state != c.told {
		c.told = state
		c.tell(state, r, expected)
	}
	return Look{
		State: state, Now: c.guard.Now(), Wall: r.Wall, Boot: r.Boot,
		Mark: c.guard.Mark(), Steady: c.guard.Steady(),
	}
}

// Now returns the time as [Clock.Look] does.
func (c *Clock) Now() time.Time { return c.Look().Now }

// Began returns when something of this boot began, of which the kernel says when that was by
// the wall clock, as it was then. Nothing is older than the boot.
func (c *Clock) Began(wall time.Time) time.Time {
	now := c.Look()
	age := now.Wall.Sub(wall)
	if bounded := min(max(age, 0), now.Boot); now.State != Agrees || bounded != age {
		return now.Now.Round(0).Add(-bounded)
	}
	return wall
}

// Restore makes the mark of the last save the reference: see [Guard.Restore].
func (c *Clock) Restore(m, steady Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guard.Restore(m, steady)
}

// State returns how the clock stood at the last look.
func (c *Clock) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guard.State()
}

// whatToDo is the end of each warning.
const whatToDo = "until then no period ends and nothing old is removed; set the clock, or start an NTP client"

func (c *Clock) tell(s State, r Reading, expected time.Time) {
	with := []any{"clock", r.Wall.Round(0), "expected", expected.Round(0)}
	switch s {
	case Agrees:
		c.log.Info("the clock is trusted again", append(with, "synchronised", r.Synced)...)
	case Unproven:
		c.log.Info("the clock is trusted once an NTP client vouches for it, or it has run for a while since the boot",
			append(with, "while", BootedFor)...)
	case Ahead:
		c.log.Warn("the clock jumped ahead: it is trusted once it is back, or is synchronised, or has run for a day; "+whatToDo, with...)
	case Behind:
		c.log.Warn("the clock is behind the last save: it is trusted once it is past that, or is synchronised, or has run for a day; "+whatToDo, with...)
	}
}

// Distrust says why the clock is not trusted in one line, "" while it is.
func (c *Clock) Distrust() string {
	switch c.State() {
	case Unproven:
		return "the clock is not proven yet since the host booted: periods end when it is synchronised, or has run for 10 minutes"
	case Ahead:
		return "the clock jumped ahead: no period ends and nothing old is removed; set the clock, or start an NTP client"
	case Behind:
		return "the clock is behind the last save: no period ends and nothing old is removed; set the clock, or start an NTP client"
	}
	return ""
}

var trusted = prometheus.NewDesc("nettally_clock_trusted",
	"1 while the host's wall clock agrees with the last save and the time since boot; else 0 and the reason: unproven, ahead or behind.",
	[]string{"reason"}, nil)

// Describe implements [prometheus.Collector].
func (c *Clock) Describe(to chan<- *prometheus.Desc) { to <- trusted }

// Collect implements [prometheus.Collector].
func (c *Clock) Collect(to chan<- prometheus.Metric) {
	value, reason := 1.0, ""
	if s := c.State(); s != Agrees {
		value, reason = 0, s.String()
	}
	to <- prometheus.MustNewConstMetric(trusted, prometheus.GaugeValue, value, reason)
}
