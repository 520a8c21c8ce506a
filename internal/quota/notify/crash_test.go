// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet/need"
)

// world is a caller with state of its own, a dispatcher and a receiver, of which all
// but the receiver can be killed between any two steps.
type world struct {
	*bench
	t      *testing.T
	random *rand.Rand
	now    time.Time
	store  *memory

	// The caller's state, in memory and on its disk: which alerts fire, since when, and
	// how often they have.
	firing, durable map[string]quota.Alert
	turns           map[string]int

	received map[string][]string // keys of deliveries, with their state, by alert
	expected map[string][]string // as it was said, by alert
	fresh    map[string]bool     // alerts that began since the last save
	killed   map[string]bool     // deliveries that were under way, or not yet noted, at a kill
	unsaved  map[string]bool     // deliveries that are not yet noted
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), store: newMemory(), now: start,
		firing: map[string]quota.Alert{}, durable: map[string]quota.Alert{}, turns: map[string]int{},
		received: map[string][]string{}, expected: map[string][]string{},
		fresh: map[string]bool{}, killed: map[string]bool{}, unsaved: map[string]bool{},
	}
	w.bench = newBench(t, w.store, hook("a"))
	w.begin()
	return w
}

// begin is a start of the process: the store is read, and the caller says what fires.
func (w *world) begin() {
	w.options.Now = func() time.Time { return w.now }
	w.log.buf.Reset()
	documents, err := w.store.Load()
	if err != nil {
		w.t.Fatal(err)
	}
	early := w.random.IntN(2) == 0
	if early {
		w.Reconcile(slices.Collect(maps.Values(w.firing)))
	}
	w.load(documents)
	if !early {
		w.Reconcile(slices.Collect(maps.Values(w.firing)))
	}
}

// turn has an alert fire, or end. Each turn is another alert, so that a receiver can
// tell them apart.
func (w *world) turn(name string) {
	a, fires := w.firing[name]
	if fires {
		a.State, a.EndsAt = quota.Resolved, w.now
		delete(w.firing, name)
	} else {
		w.turns[name]++
		a = firing(fmt.Sprint(name, "/", w.turns[name]), "a")
		a.StartsAt = w.now
		w.firing[name] = a
		w.fresh[a.ID] = true
	}
	w.Send(a)
	w.expected[a.ID] = append(w.expected[a.ID], a.State)
}

// deliver is an attempt, whose answer may never be seen.
func (w *world) deliver(fails, dies bool) {
	q := w.queues["a"]
	batch, _ := q.next(w.now)
	if len(batch) == 0 {
		return
	}
	key := deliveryKey(batch[0].alert, "host-1")
	if !fails {
		w.received[batch[0].alert.ID] = append(w.received[batch[0].alert.ID], key+" "+batch[0].alert.State)
		w.unsaved[key] = true
	}
	switch {
	case dies:
		w.kill()
	case fails:
		q.failed(batch, errAway, w.now)
	default:
		q.took(batch, w.now)
	}
}

// save writes what has changed; a process may die before that or after.
func (w *world) save() {
	put, drop, taken := w.take()
	if w.random.IntN(10) == 0 {
		w.putBack(taken)
		return
	}
	if err := w.store.Save(put, drop); err != nil {
		w.t.Fatal(err)
	}
	w.noteKept(taken)
	clear(w.unsaved)
	clear(w.fresh)
	if w.random.IntN(2) == 0 { // the caller's disk has an order of its own
		w.durable = maps.Clone(w.firing)
	}
}

// kill loses all that is in memory, the caller's state too.
func (w *world) kill() {
	for key := range w.unsaved {
		w.killed[key] = true
	}
	clear(w.unsaved)
	// A caller that is killed sees again what fires, but not that it has for long.
	fires := map[string]bool{}
	for name, a := range w.firing {
		if w.durable[name].ID != a.ID {
			a.StartsAt = w.now
			w.firing[name] = a
		}
		fires[a.ID] = true
	}
	// What began and ended since the last save was in no memory but this one.
	for id := range w.fresh {
		if fires[id] {
			continue
		}
		delete(w.fresh, id)
		if len(w.received[id]) > 0 {
			w.t.Errorf("%s was told before it was saved", id)
		}
		delete(w.expected, id)
	}
	w.restart()
	w.begin()
}

// Nothing is lost and all comes in its order, wherever the process is killed; and what
// comes twice had not been noted at a kill, and has the same key.
func TestKilledAnywhere(t *testing.T) {
	for seed := range uint64(100) {
		w := newWorld(t, seed)
		kills := 0
		for range 400 {
			w.now = w.now.Add(time.Duration(w.random.Int64N(int64(time.Minute))))
			switch n := w.random.IntN(100); {
			case n < 25:
				w.turn(fmt.Sprint("quota", w.random.IntN(5)))
			case n < 75:
				w.deliver(n < 35, n == 74)
			case n < 97:
				w.save()
			default:
				w.kill()
				kills++
			}
		}
		for i := 0; i < 2000 && w.queues["a"].waiting > 0; i++ { // more than was said
			w.now = w.now.Add(skipFor)
			w.save()
			w.deliver(false, false)
		}
		if kills == 0 {
			t.Errorf("seed %d: nothing was killed", seed)
		}
		w.compare(seed)
		if t.Failed() {
			return
		}
	}
}

// compare checks what was received against what was said.
func (w *world) compare(seed uint64) {
	for id, want := range w.expected {
		var got []string
		seen := map[string]bool{}
		for _, delivery := range w.received[id] {
			key, state, _ := strings.Cut(delivery, " ")
			if seen[key] && !w.killed[key] {
				w.t.Errorf("seed %d: %s %s came twice, and no kill explains it", seed, id, state)
			}
			if !seen[key] {
				got = append(got, state)
			}
			seen[key] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Errorf("seed %d: %s (-said +received):\n%s", seed, id, diff)
		}
	}
}

// killedEnv has the test binary be a nettally that another test kills.
const killedEnv = "NOTIFY_TEST_KILLED"

func TestMain(m *testing.M) {
	if folder := os.Getenv(killedEnv); folder != "" {
		if err := sendUntilKilled(folder, os.Getenv(killedEnv+"_URL")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m) // a goroutine that outlives the tests fails them
}

// sendUntilKilled sends alerts 0, 1, 2…, each of which fires and then ends. Like a
// quota, it keeps what it has seen: the number of states that were said.
func sendUntilKilled(folder, url string) error {
	state := filepath.Join(folder, "said")
	next := 0
	if text, err := os.ReadFile(state); err == nil {
		if next, err = strconv.Atoi(string(text)); err != nil {
			return err
		}
	}
	b := New(Options{
		Notifiers: func() []Config { return []Config{webhookTo(url)} },
		Store:     file{filepath.Join(folder, "queue")},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Instance:  "host-1",
	})
	go func() { _ = b.Run(context.Background()) }()
	<-b.loaded
	for n := next; ; n++ {
		a := firing(fmt.Sprint(n/2), "hook")
		if n%2 == 1 {
			a = resolved(fmt.Sprint(n/2), "hook")
		}
		b.Send(a)
		// A caller's state is on disk after the alert is, or a crash would lose it; its own
		// checks are seconds apart, and these are as long apart as it takes.
		for !b.allKept() {
			time.Sleep(time.Millisecond)
		}
		if err := (file{state}).write(n + 1); err != nil {
			return err
		}
	}
}

// allKept says whether all that was sent is on disk.
func (d *Dispatcher) allKept() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unkept.IsZero()
}

// saidSoFar is how many states the processes have said.
func saidSoFar(folder string) int {
	text, err := os.ReadFile(filepath.Join(folder, "said"))
	if err != nil {
		return 0
	}
	said, _ := strconv.Atoi(string(text)) // it may just be written
	return said
}

// A real process that is killed for real, again and again, while the receiver fails
// now and then.
func TestKilledForReal(t *testing.T) {
	need.Native(t)
	site := newSite(t)
	folder := t.TempDir()
	const atLeast = 20
	kills := 0 // more where the processes are hardly given the time to speak
	for ; kills < atLeast || kills < 10*atLeast && saidSoFar(folder) < atLeast; kills++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedEnv+"="+folder, killedEnv+"_URL="+site.URL)
		cmd.Stderr = os.Stderr
		if kills%3 == 1 {
			site.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
			time.AfterFunc(200*time.Millisecond, func() { site.set(nil) })
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+rand.IntN(400)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("it ended by itself: %v", err)
		}
		_ = cmd.Wait() // it was killed
	}
	site.set(nil)
	b := newBench(t, file{filepath.Join(folder, "queue")}, webhookTo(site.URL))
	stop := b.run()
	<-b.loaded
	eventually(t, "all has arrived", func() bool { return testutil.ToFloat64(b.metrics.of("hook").queue) == 0 })
	stop()

	twice, order := 0, map[string][]string{}
	seen := map[string]bool{}
	for _, p := range site.payloads(t) {
		if seen[p.Delivery] {
			twice++
			continue
		}
		seen[p.Delivery] = true
		order[p.Alert.ID] = append(order[p.Alert.ID], p.Alert.State)
	}
	said := saidSoFar(folder)
	if said < atLeast {
		t.Fatalf("only %d states were said", said)
	}
	for n := range said / 2 {
		if diff := cmp.Diff([]string{"firing", "resolved"}, order[fmt.Sprint(n)]); diff != "" {
			t.Errorf("alert %d (-want +got):\n%s", n, diff)
		}
	}
	t.Logf("%d states said over %d kills, %d told twice", said, kills, twice)
	if twice > 5*kills { // as many as are told while one note is written
		t.Errorf("%d were told twice, want a few for each kill", twice)
	}
}
