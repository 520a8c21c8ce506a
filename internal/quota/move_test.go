// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
)

// inPod puts a container into a pod of Kubernetes.
func inPod(c *usage.Container, namespace, pod string) {
	c.Runtime, c.Namespace, c.Pod = "containerd", namespace, pod
}

// Pods of one name in two namespaces, and containers of one name in two pods, have a key each.
func TestPodsOfOneName(t *testing.T) {
	b := newBench(t, monthly(), monthly(named("pod"), per(PerPod)))
	b.pass(0)
	for id, namespace := range map[string]string{"a1": "dev", "b1": "prod"} {
		inPod(b.start(id, "redis-0"), namespace, "redis-0")
	}
	b.transmit("a1", 100)
	b.transmit("b1", 500)
	b.pass(time.Second)
	want := map[string]uint64{"m/dev/redis-0": 100, "m/prod/redis-0": 500, "pod/dev/redis-0": 100, "pod/prod/redis-0": 500}
	same(t, b.used(), want)
	same(t, b.took(), []string{"m prod/redis-0 50 firing", "pod prod/redis-0 50 firing"})
	inPod(b.start("a2", "app"), "dev", "redis-0")
	byCgroup(b.find("a2"), b.now, 70)
	b.find("a2").Shares = true
	b.restart()
	b.pass(time.Second)
	want["m/dev/redis-0/app"] = 70
	same(t, b.used(), want)
}

// A docker and a podman container of one name have a key each, whichever comes first, and keep it
// over restarts.
func TestRuntimesOfOneName(t *testing.T) {
	for first, second := range map[string]string{"docker": "podman", "podman": "docker"} {
		b := newBench(t, monthly())
		b.pass(0)
		b.start(first, "web").Runtime = first
		b.transmit(first, 600)
		b.pass(time.Second)
		same(t, b.used(), map[string]uint64{"m/web": 600})
		b.start(second, "web").Runtime = second
		b.transmit(second, 30)
		b.pass(time.Second)
		want := map[string]uint64{"m/web": 600, "m/podman~web": 30}
		if first == "podman" {
			want = map[string]uint64{"m/web": 30, "m/podman~web": 600}
		}
		same(t, b.used(), want)
		b.rules = append([]Rule{}, b.rules...)
		b.pass(time.Second)
		b.restart()
		b.pass(time.Second)
		same(t, b.used(), want)
		b.remove("docker")
		b.pass(time.Second)
		b.restart()
		b.transmit("podman", 1)
		b.pass(time.Second)
		want["m/podman~web"]++
		same(t, b.used(), want)
		same(t, b.took(), []string{"m web 50 firing"})
		b.pass(20 * 24 * time.Hour)
		same(t, b.took(), []string{"m web 50 resolved"})
	}
}

// kinds are rules of each kind by name.
func kinds() []Rule {
	return []Rule{
		monthly(), monthly(named("life"), every(Lifetime)),
		monthly(named("window"), func(r *Rule) { r.Period = Period{Every: Rolling, Window: 100 * time.Hour} }),
	}
}

// eachKind is what is used, or said, in all kinds.
func eachKind(key string, used uint64) map[string]uint64 {
	return map[string]uint64{"m/" + key: used, "life/" + key: used, "window/" + key: used}
}

func eachSaid(text string) []string { return []string{"m " + text, "life " + text, "window " + text} }

// What a container has used follows it when it is renamed. No level fires again for that, and
// those that are reached with it by its new name fire once.
func TestRename(t *testing.T) {
	for name, restarts := range map[string]bool{"running": false, "down": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, kinds()...)
			rename := func(to string) {
				if restarts {
					b.restart()
				}
				b.find("a1").Name = to
				b.pass(time.Second)
			}
			b.pass(0)
			b.start("a1", "web")
			b.transmit("a1", 600)
			b.pass(time.Second)
			same(t, b.took(), eachSaid("web 50 firing"))
			rename("old")
			same(t, b.used(), eachKind("old", 600))
			same(t, b.took(), []string(nil))
			b.transmit("a1", 250)
			b.pass(time.Second)
			same(t, b.took(), eachSaid("old 80 firing"))
			b.restart()
			b.pass(time.Second)
			same(t, b.used(), eachKind("old", 850))

			// Somebody else is called what it was called, and has used nothing.
			b.start("b2", "web")
			b.transmit("b2", 510)
			b.pass(time.Second)
			same(t, b.used()["m/web"], uint64(510))
			same(t, b.took(), eachSaid("web 50 firing"))
			b.remove("b2")
			b.pass(time.Second)
			rename("web") // and is called that again
			same(t, b.used(), eachKind("web", 1360))
			same(t, slices.Sorted(slices.Values(b.took())), slices.Sorted(slices.Values(eachSaid("web 100 firing"))))
			same(t, len(b.kept(statePrefix)), 3)
			b.restart()
			b.pass(time.Second)
			same(t, b.took(), []string(nil))

			b.pass(20 * 24 * time.Hour)
			ended := strings.Join(b.took(), "\n")
			for _, alert := range []string{"m web 50", "m old 80", "m web 50", "m web 100", "window web 50", "window old 80", "window web 100"} {
				ended = strings.Replace(ended, alert+" resolved", "", 1)
			}
			same(t, strings.Trim(ended, "\n"), "window web 50 resolved")
		})
	}
}

// Two containers change their names in one moment, as where a new version takes the place of
// the old one, in whatever order they are looked at.
func TestNamesChangeHands(t *testing.T) {
	for _, ids := range [][2]string{{"a1", "b2"}, {"b2", "a1"}} {
		b := newBench(t, kinds()...)
		b.pass(0)
		b.start("a1", "x")
		b.start("b2", "y")
		was, is := ids[0], ids[1]
		b.find(was).Name, b.find(is).Name = "web", "web-new"
		b.transmit(was, 600)
		b.transmit(is, 30)
		b.pass(time.Second)
		b.find(was).Name, b.find(is).Name = "web-old", "web"
		b.pass(time.Second)
		same(t, []uint64{b.used()["m/web-old"], b.used()["m/web"], b.used()["window/web"]}, []uint64{600, 30, 30})
		same(t, len(b.used()), 6)
		same(t, b.took(), eachSaid("web 50 firing"))
	}
}

// What several containers have used under one name stays there when one of them is renamed: it
// can't be told apart. The log says so.
func TestRenameOfOneOfSeveral(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.remove("a1") // made anew
	b.start("b2", "web")
	b.transmit("b2", 10)
	b.pass(time.Second)
	b.find("b2").Name = "other"
	b.transmit("b2", 7)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 610, "m/other": 7})
	same(t, logged(b, "what several used under the old one stays there"), 1)
}

// Beside one that has used nothing, a container takes along all that was used.
func TestRenameBesideIdle(t *testing.T) {
	b := newBench(t, kinds()...)
	b.pass(0)
	b.start("a1", "web")
	b.start("b2", "web")
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.find("a1").Name = "old"
	b.transmit("b2", 5)
	b.pass(time.Second)
	want := eachKind("old", 600)
	for key, used := range eachKind("web", 5) {
		want[key] = used
	}
	same(t, b.used(), want)
	same(t, b.took(), eachSaid("web 50 firing"))
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), want)
	same(t, b.took(), []string(nil))
}

// A rule that matches one of the names alone keeps what was used under it, and takes it up again.
func TestRenameOutOfARule(t *testing.T) {
	b := newBench(t, monthly(func(r *Rule) { r.Match.Name = "web*" }))
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 600)
	b.pass(time.Second)
	b.find("a1").Name = "other"
	b.transmit("a1", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 600})
	b.transmit("a1", 100)
	b.pass(time.Second)
	b.restart()
	b.find("a1").Name = "web-2"
	b.transmit("a1", 5)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web-2": 605})
	same(t, b.took(), []string{"m web 50 firing"})
}

// A rate that fires goes on firing by another name, and is over once.
func TestRenameOfARate(t *testing.T) {
	b := newBench(t, Rule{Name: "r", Per: PerName, Count: TransmitBytes, Rate: &Rate{Above: 1000, Clear: 1000}, Notify: []string{"ops"}})
	b.pass(0)
	b.start("a1", "web")
	for range 3 {
		b.transmit("a1", 1_000_000)
		b.pass(time.Second)
	}
	fired := b.took()
	same(t, len(fired), 1)
	b.find("a1").Name = "old"
	for range 3 {
		b.transmit("a1", 1_000_000)
		b.pass(time.Second)
	}
	same(t, b.took(), []string(nil))
	b.pass(time.Second)
	b.pass(time.Second)
	same(t, b.took(), []string{strings.Replace(fired[0], "firing", "resolved", 1)})
}

// Compose calls a container 249662c60a09_web while it replaces it, and leaves it so where
// that fails. All of it is web's.
func TestComposeRecreates(t *testing.T) {
	id := "249662c60a09" + strings.Repeat("0", 52)
	b := newBench(t, monthly(func(r *Rule) { r.Match.Name = "web*" }))
	b.pass(0)
	b.start(id, "web")
	b.transmit(id, 900)
	b.pass(time.Second)
	b.find(id).Name = "249662c60a09_web"
	b.transmit(id, 50)
	b.pass(time.Second)
	b.start("b2", "web")
	b.transmit("b2", 60)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 1010})
	same(t, b.took(), []string{"m web 50 firing", "m web 80 firing", "m web 100 firing"})
}

// What an earlier version has saved under names goes to the keys that those containers have now,
// and where several had one, it stays.
func TestEarlierKeys(t *testing.T) {
	for _, test := range []struct {
		both bool
		want map[string]uint64
	}{
		{false, map[string]uint64{"m/dev/redis-0": 610, "m/web": 70}},
		{true, map[string]uint64{"m/redis-0": 600, "m/dev/redis-0": 10, "m/prod/redis-0": 0, "m/web": 70}},
	} {
		b := newBench(t, monthly())
		b.pass(0)
		b.start("a1", "redis-0")
		b.start("b2", "web")
		b.transmit("a1", 600)
		b.transmit("b2", 70)
		b.pass(time.Second)
		for key, value := range b.store.documents {
			var fields map[string]any
			if err := json.Unmarshal(value, &fields); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(key, statePrefix) {
				delete(fields, "o")
				delete(fields, "r")
			}
			b.store.documents[key], _ = json.Marshal(fields)
		}
		inPod(b.find("a1"), "dev", "redis-0")
		if test.both {
			inPod(b.start("c3", "redis-0"), "prod", "redis-0")
		}
		b.restart()
		b.pass(time.Second)
		b.transmit("a1", 10)
		b.pass(time.Second)
		same(t, b.used(), test.want)
		same(t, b.took(), []string{"m redis-0 50 firing"})
		b.restart()
		b.pass(time.Second)
		same(t, b.used(), test.want)
		b.pass(20 * 24 * time.Hour)
		same(t, b.took(), []string{"m redis-0 50 resolved"})
		same(t, len(b.used()), len(b.containers))
	}
}

// Short lives without traffic leave nothing behind: no key, no document, no memory.
func TestShortLives(t *testing.T) {
	b := newBench(t, append(kinds(), syn(0), monthly(named("each"), per(PerContainer)), monthly(named("pod"), per(PerPod)))...)
	b.pass(0)
	b.start("a1", "web")
	b.transmit("a1", 1)
	live := func(from, to int) {
		for i := from; i < to; i++ {
			inPod(b.start(fmt.Sprintf("%064x", i), fmt.Sprint("job-", i)), "ci", fmt.Sprint("job-", i))
			if i%100 == 99 {
				b.pass(time.Second)
				b.containers = b.containers[:1:1]
			}
		}
		b.pass(time.Second)
		b.pass(time.Second)
	}
	live(0, 100)
	keys, documents, before := b.used(), len(b.store.documents), heap()
	live(100, need.Tries(100_000))
	same(t, b.used(), keys)
	same(t, len(b.store.documents), documents)
	same(t, len(b.engine.containers), 1)
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d bytes of memory after 100 short lives, %d after 100,000", before, after)
	}
}
