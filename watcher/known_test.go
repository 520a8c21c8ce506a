// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestIndex takes directories in and out at random, and compares with a look at all of them.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	i, all := index{}, map[string]bool{}
	known := func(dir string) bool { return all[dir] }
	any := func() string {
		dir := "/"
		for range random.IntN(5) {
			dir = path.Join(dir, strconv.Itoa(random.IntN(3)))
		}
		return dir
	}
	for range 20_000 {
		if dir := any(); random.IntN(2) == 0 {
			all[dir] = true
			i.add(dir)
		} else {
			delete(all, dir)
			i.remove(dir, known)
		}
		dir := any()
		var got, want []string
		for _, d := range i.below(dir) {
			if all[d] {
				got = append(got, d)
			}
		}
		for d := range all {
			if d == dir || strings.HasPrefix(d, strings.TrimSuffix(dir, "/")+"/") {
				want = append(want, d)
			}
		}
		for n, d := range got {
			if slices.ContainsFunc(got[n:], func(later string) bool { return strings.HasPrefix(later, d+"/") }) {
				t.Fatalf("%s comes before what is in it: %q", d, got)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("below %s (-want +got):\n%s", dir, diff)
		}
	}
	for dir := range all {
		delete(all, dir)
		i.remove(dir, known)
	}
	if len(i) != 0 {
		t.Errorf("of nothing %d directories are left", len(i))
	}
}

// TestIndexOfMany: the end of a directory costs no look at its neighbours.
func TestIndexOfMany(t *testing.T) {
	i := index{}
	for n := range 1000 {
		i.add("/user/" + strconv.Itoa(n))
	}
	i.add("/user/7/a/b")
	if got := i.below("/user/none"); !slices.Equal(got, []string{"/user/none"}) {
		t.Errorf("looked at %q", got)
	}
	if got := i.below("/user/7"); !slices.Equal(got, []string{"/user/7/a/b", "/user/7/a", "/user/7"}) {
		t.Errorf("looked at %q", got)
	}
}
