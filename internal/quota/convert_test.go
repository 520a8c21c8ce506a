// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"cmp"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/usage"
)

// earlierWrite is one write of an earlier version: see testdata/README.md.
type earlierWrite struct {
	Kind  string
	Put   map[string]json.RawMessage
	Drop  []string
	Taken map[string][]string // "delivery id state", by notifier, since the last write
}

// earlier is what an earlier version has said, kept and told up to some write.
type earlier struct {
	documents map[string][]byte
	said      []string                   // "id state", as quota's documents had it
	number    map[string]uint64          // of what was said
	taken     map[string]map[string]bool // "id state", by notifier
	noted     map[string]map[string]bool // of those, what the documents know
}

func newEarlier() *earlier {
	return &earlier{documents: map[string][]byte{}, number: map[string]uint64{}, taken: map[string]map[string]bool{}, noted: map[string]map[string]bool{}}
}

func (e *earlier) write(t *testing.T, w earlierWrite) {
	prefix := map[string]string{"quota": "", "notify": earlierPrefix}[w.Kind]
	for key, value := range w.Put {
		e.documents[prefix+key] = value
		if strings.HasPrefix(key, alertPrefix) && w.Kind == "quota" {
			var a savedAlert
			if err := json.Unmarshal(value, &a); err != nil {
				t.Fatal(err)
			}
			if said := a.ID + " " + a.State; !slices.Contains(e.said, said) {
				e.said = append(e.said, said)
				e.number[said] = a.Sequence
			}
		}
	}
	for _, key := range w.Drop {
		delete(e.documents, prefix+key)
	}
	for name, taken := range w.Taken {
		for _, delivery := range taken {
			_, said, _ := strings.Cut(delivery, " ")
			set(e.taken, name, said)
		}
	}
	for key, value := range e.documents {
		var th thread
		if strings.HasPrefix(key, earlierPrefix) && json.Unmarshal(value, &th) == nil && th.Told != nil {
			set(e.noted, th.Notifier, th.Told.ID+" "+th.Told.State)
			set(e.noted, th.Notifier, th.Told.ID+" "+Firing) // it came before
		}
	}
}

func set(in map[string]map[string]bool, name, value string) {
	if in[name] == nil {
		in[name] = map[string]bool{}
	}
	in[name][value] = true
}

// bench is an engine of this version with those documents, at their time.
func (e *earlier) bench(t *testing.T) *bench {
	to := []string{"hook", "run", "gone", "am"}
	b := newBench(t,
		Rule{Name: "m", Per: PerName, Count: TransmitBytes, Limit: 1000, AlertAt: []int{50, 80, 100}, Notify: to,
			Period: Period{Every: Hourly, Location: time.UTC}},
		Rule{Name: "r", Per: PerName, Count: TransmitBytes, Rate: &Rate{Above: 5, Clear: 5}, Notify: to})
	b.means = map[string]Means{"hook": ByDelivery, "run": ByDelivery, "am": ByState}
	b.store.documents = maps.Clone(e.documents)
	var rule savedRule
	var total savedContainer
	for key, into := range map[string]any{ruleKey("m"): &rule, containerKey("a1"): &total} {
		if err := json.Unmarshal(e.documents[key], into); err != nil {
			t.Fatal(err)
		}
	}
	b.now = rule.End.Add(-time.Second)
	b.restart()
	c := b.start("a1", "web")
	c.StartedAt = rule.Start
	c.Interfaces[0].AttachedAt = rule.Start
	c.Transmit.Cells[usage.FamilyIPv4][usage.ProtocolTCP] = usage.Volume{Bytes: total.Last[3], Packets: total.Last[4]}
	return b
}

// told takes all deliveries for a notifier, as "id state".
func (b *bench) told(name string) (all []string) {
	for d, ok := b.engine.Next(name, 0); ok; d, ok = b.engine.Next(name, 0) {
		all = append(all, d.Alert.ID+" "+d.Alert.State)
		b.engine.Done(d, false)
	}
	return all
}

// Wherever an earlier version ended, an upgrade loses nothing, tells nothing twice that was
// noted as told, and converts its documents in one transaction.
func TestUpgrade(t *testing.T) {
	text, err := os.ReadFile("testdata/earlier.json")
	if err != nil {
		t.Fatal(err)
	}
	var writes []earlierWrite
	if err := json.Unmarshal(text, &writes); err != nil {
		t.Fatal(err)
	}
	e := newEarlier()
	for n, w := range writes {
		e.write(t, w)
		b := e.bench(t)
		b.check(0)
		for _, name := range []string{"hook", "run"} {
			same(t, b.told(name), []string(nil)) // not before it is saved
		}
		b.save()
		if b.store.saves > 1 {
			t.Fatalf("after write %d: converted in %d transactions", n, b.store.saves)
		}
		for _, name := range []string{"hook", "run"} {
			got := b.told(name)
			for _, said := range e.said {
				told := slices.Index(got, said)
				if told < 0 && !e.taken[name][said] {
					t.Errorf("after write %d: %s is not told %s", n, name, said)
				}
				if told >= 0 && e.noted[name][said] {
					t.Errorf("after write %d: %s is told again %s", n, name, said)
				}
				if end := strings.TrimSuffix(said, Firing) + Resolved; told > slices.Index(got, end) && slices.Contains(got, end) && strings.HasSuffix(said, Firing) {
					t.Errorf("after write %d: %s is told %s after its end", n, name, said)
				}
			}
			began := slices.DeleteFunc(slices.Clone(got), func(said string) bool { return strings.HasSuffix(said, Resolved) })
			if !slices.IsSortedFunc(began, func(x, y string) int { return cmp.Compare(e.number[x], e.number[y]) }) {
				t.Errorf("after write %d: %s is told in another order: %q", n, name, began)
			}
			if len(slices.Compact(slices.Sorted(slices.Values(got)))) != len(got) {
				t.Errorf("after write %d: %s is told twice: %q", n, name, got)
			}
		}
		b.save()
		b.restart()
		b.check(time.Second / 2)
		b.save()
		for _, name := range []string{"hook", "run"} {
			same(t, b.told(name), []string(nil))
		}
		for key := range b.store.documents {
			if strings.HasPrefix(key, earlierPrefix) || strings.HasPrefix(key, deliveryPrefix) {
				t.Errorf("after write %d: %s is left", n, key)
			}
		}
		if t.Failed() {
			t.Fatal(b.log.String())
		}
	}
	if removed := "msg=\"notifier removed\" notifier=gone dropped="; !strings.Contains(e.log(t), removed) {
		t.Errorf("nothing says that deliveries were dropped:\n%s", e.log(t))
	}
}

// The same in a real ledger: what it has of both kinds becomes deliveries of one.
func TestUpgradeOfLedger(t *testing.T) {
	text, err := os.ReadFile("testdata/earlier.json")
	if err != nil {
		t.Fatal(err)
	}
	var writes []earlierWrite
	if err := json.Unmarshal(text, &writes); err != nil {
		t.Fatal(err)
	}
	e := newEarlier()
	for _, w := range writes[:30] { // hook is away
		e.write(t, w)
	}
	b := e.bench(t)
	l := ledger.New(ledger.Options{Path: filepath.Join(t.TempDir(), "ledger.db"), Clock: b.engine.Clock, Log: b.engine.Log,
		Retention: func() (hours, days time.Duration) { return year, year }})
	t.Cleanup(func() { l.Close() })
	kinds := map[string]map[string][]byte{"quota": {}, "notify": {}}
	for key, value := range e.documents {
		if rest, ok := strings.CutPrefix(key, earlierPrefix); ok {
			kinds["notify"][rest] = value
		} else {
			kinds["quota"][key] = value
		}
	}
	for kind, documents := range kinds {
		if err := l.Documents(kind).Save(documents, nil); err != nil {
			t.Fatal(err)
		}
	}
	options := b.engine.Options
	options.Store = l.Documents("quota", "notify")
	b.engine = New(options)
	b.keeper = &keeper{Engine: b.engine, results: make(chan result, 1)}
	b.keeper.load()
	b.check(0)
	b.engine.Flush()
	b.engine.publish(everything)
	waiting, _ := b.engine.Waiting("hook")
	if waiting == 0 {
		t.Error("nothing waits for the webhook that was away")
	}
	left, err := l.Documents("notify").Load()
	same(t, len(left), 0)
	same(t, err, nil)
	now, err := l.Documents("quota").Load()
	same(t, err, nil)
	deliveries := 0
	for key := range now {
		if strings.HasPrefix(key, deliveryPrefix) && strings.HasSuffix(key, "/hook") {
			deliveries++
		}
	}
	same(t, deliveries, waiting)
}

// What an earlier version was killed with between two queues: an end that was handed to none.
func TestUpgradeOfOwedEnd(t *testing.T) {
	for owed, want := range map[bool][]string{true: {"m web 50 resolved"}, false: nil} {
		b := newBench(t, monthly())
		b.pass(0)
		a := Alert{ID: "x", Quota: "m", Key: "web", Level: "50", State: Resolved, StartsAt: noon, EndsAt: noon, Notifiers: []string{"ops", "gone"}}
		b.store.documents[alertKey("x")], _ = json.Marshal(struct {
			Alert
			Sequence uint64 `json:"sequence"`
			Owed     bool   `json:"owed,omitempty"`
		}{a, 7, owed})
		b.restart()
		b.pass(0)
		same(t, b.took(), want)
		same(t, b.store.saves, 2+len(want)) // the second has it in this version's words, the third no delivery
		b.restart()
		b.pass(0)
		same(t, b.took(), []string(nil))
	}
}

func (e *earlier) log(t *testing.T) string { return e.bench(t).log.String() }
