// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/quota"
)

// Beyond the bound the keys closest to their limit are shown, in the order of all.
func TestClosest(t *testing.T) {
	var all []quota.Status
	add := func(name string, ratios ...float64) {
		for i, r := range ratios {
			all = append(all, quota.Status{Quota: name, Key: fmt.Sprint("k", i), Ratio: r})
		}
	}
	add("egress", .1, .9, .5, .9, 2)
	add("syn", 0)
	add("all", .3, .2, .1, .4)
	say := func(most int) string {
		shown, left := closest(all, most)
		var said []string
		for _, s := range shown {
			said = append(said, fmt.Sprint(s.Quota, "/", s.Key))
		}
		return fmt.Sprint(left, " ", strings.Join(said, " "))
	}
	for most, want := range map[int]string{
		1: "7 egress/k4 syn/k0 all/k3",
		3: "3 egress/k1 egress/k3 egress/k4 syn/k0 all/k0 all/k1 all/k3",
	} {
		if got := say(most); got != want {
			t.Errorf("%d: %s, want %s", most, got, want)
		}
	}
	for _, most := range []int{0, 5, 1000} {
		if shown, left := closest(all, most); len(shown) != len(all) || left != 0 {
			t.Errorf("%d: %d are shown, %d left out", most, len(shown), left)
		}
	}
}
