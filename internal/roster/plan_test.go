// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstDueWaitsForTheFirstPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plans := map[Key]*member{{ID: "never"}: {}, {ID: "late"}: {}, {ID: "soon"}: {}}
		if fires, _ := firstDue(plans); fires != nil {
			t.Fatal("a timer without a plan")
		}
		plans[Key{ID: "late"}].look.from(time.Second)
		plans[Key{ID: "late"}].look.again()
		plans[Key{ID: "soon"}].look.from(5 * time.Millisecond)
		plans[Key{ID: "soon"}].look.again()
		began := time.Now()
		fires, stop := firstDue(plans)
		defer stop()
		now := <-fires
		if waited := now.Sub(began); waited != 5*time.Millisecond {
			t.Errorf("fired after %v, want 5ms", waited)
		}
		for name, due := range map[string]bool{"never": false, "late": false, "soon": true} {
			if plans[Key{ID: name}].look.due(now) != due {
				t.Errorf("%s is due: %t, want %t", name, !due, due)
			}
		}
		plans[Key{ID: "soon"}].look.stop()
		if plans[Key{ID: "soon"}].look.due(now) || plans[Key{ID: "soon"}].look.planned() {
			t.Error("a stopped plan is due")
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
