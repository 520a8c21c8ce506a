// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"testing"
	"testing/synctest"
	"time"
)

func plan(p *Plan) *Plan { return p }

func TestTimerWaitsForTheFirstPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plans := map[string]*Plan{"never": {}, "late": {}, "soon": {}}
		if fires, _ := Timer(plans, plan); fires != nil {
			t.Fatal("a timer without a plan")
		}
		plans["late"].From(time.Second)
		plans["late"].Again()
		plans["soon"].From(5 * time.Millisecond)
		plans["soon"].Again()
		began := time.Now()
		fires, stop := Timer(plans, plan)
		defer stop()
		now := <-fires
		if waited := now.Sub(began); waited != 5*time.Millisecond {
			t.Errorf("fired after %v, want 5ms", waited)
		}
		for name, due := range map[string]bool{"never": false, "late": false, "soon": true} {
			if plans[name].Due(now) != due {
				t.Errorf("%s is due: %t, want %t", name, !due, due)
			}
		}
		plans["soon"].Stop()
		if plans["soon"].Due(now) || plans["soon"].Planned() {
			t.Error("a stopped plan is due")
		}
	})
}

func TestDelaysDoubleToASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Plan
		p.From(300 * time.Millisecond)
		for _, want := range []time.Duration{300, 600, 1000, 1000} {
			p.Again()
			if got := time.Until(p.next); got != want*time.Millisecond {
				t.Errorf("waits %v, want %v", got, want*time.Millisecond)
			}
		}
	})
}
