// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// saveTakes is how long the disk takes for a save.
const saveTakes = 50 * time.Millisecond

// slow is a store in memory that takes its time.
type slow struct {
	mu        sync.Mutex
	documents map[string][]byte
	saves     int
}

func (s *slow) Load() (map[string][]byte, error) { return nil, nil }

func (s *slow) Save(put map[string][]byte, drop []string) error {
	time.Sleep(saveTakes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range drop {
		delete(s.documents, key)
	}
	maps.Copy(s.documents, put)
	s.saves++
	return nil
}

// kept counts documents by the beginning of their keys.
func (s *slow) kept(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.documents {
		if strings.HasPrefix(key, prefix) {
			n++
		}
	}
	return n
}

// count returns how many saves there were.
func (s *slow) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saves
}

// tally is a target that takes its time, and counts.
type tally struct {
	takes   time.Duration
	mu      sync.Mutex
	told    map[string]map[string]int // by state, by alert
	sizes   []int                     // of all requests
	endless int                       // ends of what it was not told the beginning of
}

func newTally(takes time.Duration) *tally {
	return &tally{takes: takes, told: map[string]map[string]int{quota.Firing: {}, quota.Resolved: {}}}
}

func (c *tally) deliver(_ context.Context, alerts []quota.Alert) error {
	time.Sleep(c.takes)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes = append(c.sizes, len(alerts))
	for _, a := range alerts {
		if a.State == quota.Resolved && c.told[quota.Firing][a.ID] == 0 {
			c.endless++
		}
		c.told[a.State][a.ID]++
	}
	return nil
}

func (c *tally) close() {}

// want checks that every alert was told once in each state so far, in so many requests.
func (c *tally) want(t *testing.T, each, requests, largest int, states ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, state := range []string{quota.Firing, quota.Resolved} {
		want, most := 0, 0
		if slices.Contains(states, state) {
			want, most = each, 1
		}
		if got := len(c.told[state]); got != want {
			t.Errorf("told that %d alerts are %s, want %d", got, state, want)
		}
		for id, n := range c.told[state] {
			if n > most {
				t.Errorf("told %d times that %s is %s", n, id, state)
				break
			}
		}
	}
	if len(c.sizes) != requests || slices.Max(c.sizes) != largest {
		t.Errorf("%d requests of up to %d alerts, want %d of %d", len(c.sizes), slices.Max(c.sizes), requests, largest)
	}
	if c.endless > 0 {
		t.Errorf("told the end of %d alerts before their beginning", c.endless)
	}
}

// When very many alerts fire at once, and end at once with a period, their notifiers are well and
// only take their time, as does the disk. All are told once, an Alertmanager in requests of 256
// and a webhook while its acknowledgements are written many at once. Checks go on meanwhile, and
// nothing is left in the end but the alerts that are kept to be looked up.
func TestManyEndAtOnce(t *testing.T) {
	const (
		containers = 150
		levels     = 100
		many       = containers * levels
		hookTakes  = time.Millisecond
		batches    = (many + batchMax - 1) / batchMax
		// The period ends less than a minute after all has fired, and just before the 120th check,
		// which forgets old alerts: the ends, which no Alertmanager was told yet, are not among them.
		ends = 118 * time.Second
	)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		store := &slow{documents: map[string][]byte{}}
		log := slog.New(slog.DiscardHandler)
		rule := quota.Rule{
			Name: "m", Per: quota.PerName, Count: quota.TransmitBytes, Limit: levels, Notify: []string{"hook", "manager"},
			Period: quota.Period{Every: quota.Hourly, Location: time.UTC},
		}
		for level := range levels {
			rule.AlertAt = append(rule.AlertAt, level+1)
		}
		rules := []quota.Rule{rule}
		engine := quota.New(quota.Options{
			Rules: func() []quota.Rule { return rules },
			Notifiers: func() map[string]quota.Means {
				return map[string]quota.Means{"hook": quota.ByDelivery, "manager": quota.ByState}
			},
			Store: store,
			Clock: wallclock.New(func() wallclock.Reading {
				return wallclock.Reading{Wall: time.Now().Add(time.Hour - ends), Boot: time.Since(began) + time.Hour, BootID: 1, Synced: true}
			}, log),
			Log: log,
		})
		byDelivery, byState := newTally(hookTakes), newTally(10*hookTakes)
		d := New(Options{
			Notifiers: func() []Config { return []Config{hook("hook"), managed("manager")} },
			Source:    engine, Log: log, Instance: "host-1",
		})
		d.aim = func(c Config) target { return map[string]target{"hook": byDelivery, "manager": byState}[c.Name] }

		var mu sync.Mutex
		var checks []time.Duration // when usage was asked for
		var list []usage.Container
		for i := range containers {
			list = append(list, usage.Container{ID: fmt.Sprint("id", i), Name: fmt.Sprint("web", i), State: usage.Running, StartedAt: began,
				Interfaces: []usage.Interface{{Name: "eth0", AttachedAt: began}}})
		}
		transmit := func(containers []usage.Container, n uint64) {
			mu.Lock()
			defer mu.Unlock()
			for i := range containers {
				containers[i].Transmit.Cells[usage.FamilyIPv4][usage.ProtocolTCP].Bytes += n
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() {
			ended <- engine.Run(ctx, func(bool) usage.Snapshot {
				mu.Lock()
				defer mu.Unlock()
				checks = append(checks, time.Since(began))
				return usage.Snapshot{TakenAt: time.Now(), Containers: slices.Clone(list)}
			})
		}()
		go func() { ended <- d.Run(ctx) }()
		// at waits for a time since the begin.
		at := func(when time.Duration) {
			time.Sleep(time.Until(began.Add(when)))
			synctest.Wait()
		}
		wantLeft := func(wantWaiting bool, alerts int) {
			t.Helper()
			for _, name := range []string{"hook", "manager"} {
				waiting, dropped := engine.Waiting(name)
				if (waiting > 0) != (wantWaiting && name == "hook") || dropped > 0 {
					t.Errorf("%d wait for %s and %d were dropped", waiting, name, dropped)
				}
			}
			if kept := store.kept("delivery/"); (kept > 0) != wantWaiting || kept > many {
				t.Errorf("%d deliveries are kept", kept)
			}
			if kept := store.kept("alert/"); kept != alerts {
				t.Errorf("%d alerts are kept, want %d", kept, alerts)
			}
		}

		at(69500 * time.Millisecond)
		transmit(list, levels)
		at(75500 * time.Millisecond)
		wantLeft(true, many)
		transmit(list[:1], 7)
		at(76500 * time.Millisecond)
		used := map[string]float64{}
		for _, s := range engine.Status() {
			used[s.Key] = s.Used
		}
		if got := used["web0"]; got != levels+7 {
			t.Errorf("%v bytes are counted while alerts are told, want %d", got, levels+7)
		}
		at(ends - time.Second)
		wantLeft(false, many)
		byDelivery.want(t, many, many, 1, quota.Firing)
		byState.want(t, many, batches, batchMax, quota.Firing)

		at(ends + 5500*time.Millisecond)
		wantLeft(true, many)
		at(ends + time.Minute)
		wantLeft(false, many)
		byDelivery.want(t, many, 2*many, 1, quota.Firing, quota.Resolved)
		byState.want(t, many, 2*batches, batchMax, quota.Firing, quota.Resolved)
		inOneSave := int(saveTakes / hookTakes)
		if got, most := store.count(), 2*2*many/inOneSave; got > most {
			t.Errorf("%d saves, want %d at most: %d deliveries are taken while one is written", got, most, inOneSave)
		}

		at(18 * time.Minute) // more than a quarter of an hour after the end
		wantLeft(false, 1000)
		if n := len(engine.Firing("manager")); n > 0 {
			t.Errorf("an Alertmanager is still to know of %d alerts", n)
		}
		byDelivery.want(t, many, 2*many, 1, quota.Firing, quota.Resolved)
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		engine.Flush()
		var want []time.Duration
		for n := range 18*60 + 1 {
			want = append(want, time.Duration(n)*time.Second)
		}
		if diff := cmp.Diff(want, checks); diff != "" {
			t.Errorf("checks came at (-want +got):\n%s", diff)
		}
	})
}
