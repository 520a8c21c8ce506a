// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstDueWaitsForTheFirstPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var root, users agenda
		plans := map[string]*plan{"never": {in: &users}, "late": {in: &users}, "soon": {in: &root}}
		if fires, _ := firstDue(root, users); fires != nil {
			t.Fatal("a timer without a plan")
		}
		plans["late"].from(time.Second)
		plans["late"].again()
		plans["soon"].from(5 * time.Millisecond)
		plans["soon"].again()
		began := time.Now()
		fires, stop := firstDue(root, users)
		defer stop()
		now := <-fires
		if waited := now.Sub(began); waited != 5*time.Millisecond {
			t.Errorf("fired after %v, want 5ms", waited)
		}
		for name, due := range map[string]bool{"never": false, "late": false, "soon": true} {
			if plans[name].due(now) != due {
				t.Errorf("%s is due: %t, want %t", name, !due, due)
			}
		}
		plans["soon"].stop()
		if plans["soon"].due(now) || plans["soon"].planned() {
			t.Error("a stopped plan is due")
		}
	})
}

// Plans that change at random are due in the order of their times.
func TestAgenda(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		var a agenda
		members := make([]*member, 200)
		for i := range members {
			m := &member{}
			m.look = plan{of: m, in: &a}
			members[i] = m
		}
		for range 5000 {
			switch m := members[random.IntN(len(members))]; random.IntN(4) {
			case 0:
				m.look.stop()
			case 1:
				m.look.soon()
			default:
				m.look.from(time.Duration(random.IntN(1000)) * time.Millisecond)
				m.look.again()
			}
			time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
			var want []*member
			now, most := time.Now(), random.IntN(20)
			for _, m := range members {
				if m.look.due(now) {
					want = append(want, m)
				}
			}
			slices.SortFunc(want, func(a, b *member) int { return a.look.next.Compare(b.look.next) })
			found := a.due(now, most)
			if len(found) != min(most, len(want)) {
				t.Fatalf("%d are due, want %d of %d", len(found), most, len(want))
			}
			for i, m := range found { // several may have the same time
				if !m.look.next.Equal(want[i].look.next) {
					t.Fatalf("the due one %d is of %v, want %v", i, m.look.next, want[i].look.next)
				}
			}
		}
		members[0].look.soon()
		members[0].look.end()
		members[0].look.soon()
		if slices.Contains(a.due(time.Now(), len(members)), members[0]) {
			t.Error("one that has ended is due")
		}
	})
}

func TestDelaysDoubleToASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plan
		p.from(300 * time.Millisecond)
		for _, want := range []time.Duration{300, 600, 1000, 1000} {
			p.again()
			if got := time.Until(p.next); got != want*time.Millisecond {
				t.Errorf("waits %v, want %v", got, want*time.Millisecond)
			}
		}
	})
}
