// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	"go.uber.org/goleak"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
)

// killedEnv makes the test binary a nettally that another test kills.
const killedEnv = "NOTIFY_TEST_KILLED"

// keys is how many containers cross one level more in each process.
const keys = 5

func TestMain(m *testing.M) {
	if folder := os.Getenv(killedEnv); folder != "" {
		levels, err := strconv.Atoi(os.Getenv(killedEnv + "_LEVELS"))
		if err == nil {
			err = countUntil(context.Background(), folder, os.Getenv(killedEnv+"_URL"), levels)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m) // a goroutine that outlives the tests fails them
}

// countUntil counts containers that have reached so many levels, and tells a webhook, until the
// context ends.
func countUntil(ctx context.Context, folder, url string, levels int) error {
	rule := quota.Rule{Name: "m", Per: quota.PerName, Count: quota.TransmitBytes, Limit: 100, Notify: []string{"hook"},
		Period: quota.Period{Every: quota.Lifetime}}
	for level := range 100 {
		rule.AlertAt = append(rule.AlertAt, level+1)
	}
	rules := []quota.Rule{rule}
	log := slog.New(slog.DiscardHandler)
	read, err := wallclock.Host()
	if err != nil {
		return err
	}
	e := quota.New(quota.Options{
		Rules:     func() []quota.Rule { return rules },
		Notifiers: func() map[string]quota.Means { return map[string]quota.Means{"hook": quota.ByDelivery} },
		Store:     file{filepath.Join(folder, "documents")},
		Clock:     wallclock.New(read, log),
		Log:       log,
	})
	var snap usage.Snapshot
	for i := range keys {
		c := usage.Container{ID: fmt.Sprint("id", i), Name: fmt.Sprint("web", i), State: usage.Running, StartedAt: time.Now(),
			Interfaces: []usage.Interface{{Name: "eth0", AttachedAt: time.Now()}}}
		c.Transmit.Cells[usage.FamilyIPv4][usage.ProtocolTCP] = usage.Volume{Bytes: uint64(levels), Packets: 1}
		snap.Containers = append(snap.Containers, c)
	}
	d := New(Options{Notifiers: func() []Config { return []Config{webhookTo(url)} }, Source: e, Log: log, Instance: "host-1"})
	told := make(chan error, 1)
	go func() { told <- d.Run(ctx) }()
	err = e.Run(ctx, func(bool) usage.Snapshot { snap.TakenAt = time.Now(); return snap })
	err = errors.Join(err, <-told)
	e.Flush()
	return err
}

// A real process that is killed for real, again and again, while the receiver fails now and
// then. What each has seen fires once, in order. It comes twice only with the same key, and only
// if no note on disk says that it was told.
func TestKilledForReal(t *testing.T) {
	need.Native(t)
	site := newSite(t)
	folder := t.TempDir()
	const kills = 25
	arrivals := func() map[string]int {
		times := map[string]int{}
		for _, p := range site.payloads(t) {
			times[p.Alert.ID]++
		}
		return times
	}
	came := map[string]int{} // how often an alert had come when a note said so
	note := func() {
		seen := arrivals()
		for _, id := range notedAsTold(t, folder) {
			if _, before := came[id]; !before {
				came[id] = seen[id]
			}
		}
	}
	for n := range kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedEnv+"="+folder, killedEnv+"_URL="+site.URL, killedEnv+"_LEVELS="+strconv.Itoa(n+1))
		cmd.Stderr = os.Stderr
		if n%3 == 1 {
			site.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
			time.AfterFunc(200*time.Millisecond, func() { site.set(nil) })
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rand.IntN(250)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("it ended by itself: %v", err)
		}
		_ = cmd.Wait() // it was killed
		note()
	}
	site.set(nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- countUntil(ctx, folder, site.URL, kills) }()
	keyOf := map[string]string{} // the delivery's, by alert
	order := map[string][]string{}
	twice := 0
	read := func() bool {
		clear(keyOf)
		clear(order)
		twice = 0
		for _, p := range site.payloads(t) {
			if before, told := keyOf[p.Alert.ID]; told {
				twice++
				if before != p.Delivery {
					t.Fatalf("%s came as %s and %s", p.Alert.ID, before, p.Delivery)
				}
				continue
			}
			keyOf[p.Alert.ID] = p.Delivery
			order[p.Alert.Key] = append(order[p.Alert.Key], p.Alert.Level)
		}
		return len(keyOf) >= keys*kills
	}
	eventually(t, "all has arrived", read)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	read()
	var want []string
	for level := range kills {
		want = append(want, strconv.Itoa(level+1))
	}
	for key, got := range order {
		if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
	t.Logf("%d alerts over %d kills, %d told twice", len(keyOf), kills, twice)
	note()
	if len(came) != keys*kills {
		t.Errorf("notes say of %d alerts that they were told, want all %d", len(came), keys*kills)
	}
	seen := arrivals()
	for id, times := range came {
		if times == 0 || seen[id] > times {
			t.Errorf("%s came %d times before a note said that it was told, and %d times after", id, times, seen[id]-times)
		}
	}
}

// notedAsTold returns the alerts that are on disk and have no delivery that waits.
func notedAsTold(t *testing.T, folder string) (ids []string) {
	t.Helper()
	documents, err := file{filepath.Join(folder, "documents")}.Load()
	if err != nil {
		t.Fatal(err)
	}
	waits := map[string]bool{}
	for key, text := range documents {
		if strings.HasPrefix(key, "delivery/") {
			var a quota.Alert
			if err := json.Unmarshal(text, &a); err != nil {
				t.Fatal(err)
			}
			waits[a.ID] = true
		}
	}
	for key := range documents {
		if id, is := strings.CutPrefix(key, "alert/"); is && !waits[id] {
			ids = append(ids, id)
		}
	}
	return ids
}
