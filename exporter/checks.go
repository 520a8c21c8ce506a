// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Verdict is how a check ended.
type Verdict string

// The verdicts.
const (
	VerdictOK      Verdict = "ok"
	VerdictNone    Verdict = "none"    // the host does not have it, which is no fault
	VerdictWarning Verdict = "warning" // something is counted in part, or not named
	VerdictFailed  Verdict = "failed"  // counting is impossible without it
)

// Check is one thing that nettally needs of the host.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Found is what was found in one line. Unless the verdict is ok it says what to do.
	Found string `json:"found"`
}

// Checks is the body of /api/v1/checks.
type Checks struct {
	CheckedAt time.Time `json:"checked_at"`
	Checks    []Check   `json:"checks"`
}

// checksAge is how long checks are answered without checking again: they load programs, read
// the whole hierarchy of cgroups and ask the container runtimes.
const checksAge = time.Minute

var errNoChecks = errors.New("check the host: nobody checks it here")

// checker keeps the last checks. One request checks at a time, and the others wait for it.
type checker struct {
	run  func(context.Context) []Check
	boot func() time.Duration // CLOCK_BOOTTIME
	turn chan struct{}        // holds a token while somebody checks

	// Whoever has the turn may use these.
	last  Checks
	until time.Duration // when last is old
}

func newChecker(run func(context.Context) []Check, boot func() time.Duration) *checker {
	return &checker{run: run, boot: boot, turn: make(chan struct{}, 1)}
}

// checks returns the last checks, or those that it makes if they are old.
func (c *checker) checks(ctx context.Context) (Checks, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return Checks{}, fmt.Errorf("check the host: %w", ctx.Err())
	}
	if c.last.CheckedAt.IsZero() || c.boot() >= c.until {
		found := c.run(ctx)
		if err := ctx.Err(); err != nil { // checks that were given up say nothing of the host
			return Checks{}, fmt.Errorf("check the host: %w", err)
		}
		c.last = Checks{CheckedAt: time.Now().UTC(), Checks: append([]Check{}, found...)} // never null
		c.until = c.boot() + checksAge
	}
	return c.last, nil
}

func (e *Exporter) checks(w http.ResponseWriter, r *http.Request) {
	if _, err := parseParameters(r.URL.RawQuery); err != nil {
		e.fail(w, http.StatusBadRequest, err)
		return
	}
	if e.checker.run == nil {
		e.fail(w, http.StatusServiceUnavailable, errNoChecks)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), waitTimeout)
	defer cancel()
	found, err := e.checker.checks(ctx)
	if err != nil {
		e.fail(w, http.StatusServiceUnavailable, err)
		return
	}
	e.answer(w, found)
}
