// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
)

// Users name their own directories: a name that root's runtimes give is another container's
// there, whatever its times say. A directory that a runtime gave to a user is named by root.
func TestScopes(t *testing.T) {
	need.Root(t)
	inEachHierarchy(t, func(t *testing.T, root string) {
		const uid = 61_292
		id := hexID(1)
		makeDirs(t, root+"/docker/"+id, root+"/user/docker-"+id+".scope/lxc.payload.in", root+"/shared", root+"/default/one", root+"/k8s.io/one")
		check(t, os.Chown(root+"/docker/"+id, uid, uid)) // as with userns-remap
		check(t, os.Chown(root+"/user", uid, uid))
		check(t, os.Chown(root+"/user/docker-"+id+".scope", uid, uid))
		check(t, os.Chmod(root+"/shared", 0o777))
		makeDirs(t, root+"/shared/lxc.payload.roots", root+"/shared/lxc.payload.theirs")
		check(t, os.Chown(root+"/shared/lxc.payload.theirs", uid+1, uid+1))
		old := time.Unix(1, 0)
		check(t, os.Chtimes(root+"/user/docker-"+id+".scope", old, old))

		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		found, err := r.Containers()
		check(t, err)
		got := map[string]string{}
		for _, c := range found {
			got[c.Cgroup] = c.ID + " in " + c.ParentID
		}
		want := map[string]string{
			"/docker/" + id:                                id + " in ",
			"/user/docker-" + id + ".scope":                "61292~" + id + " in ",
			"/user/docker-" + id + ".scope/lxc.payload.in": "61292~in in 61292~" + id,
			"/shared/lxc.payload.roots":                    "roots in ",
			"/shared/lxc.payload.theirs":                   "61293~theirs in ",
			"/default/one":                                 "one in ",
			"/k8s.io/one":                                  "k8s.io~one in ",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("containers (-want +got):\n%s", diff)
		}
		for i, c := range found {
			if c.ofUser() && i < 4 {
				t.Errorf("%s, of a user, is before one of root's", c.ID)
			}
		}
	})
}

// An id is compared without its user's scope, and with that of containerd's namespace.
func TestUnscoped(t *testing.T) {
	for id, want := range map[string]string{
		"":                "",
		idA:               idA,
		"k8s.io~one":      "k8s.io~one",
		"1000~" + idA:     idA,
		"1000~k8s.io~one": "k8s.io~one",
		"4294967295~101":  "101",
	} {
		if got := unscoped(id); got != want {
			t.Errorf("%q without its user is %q, want %q", id, got, want)
		}
		if got := (Container{ID: id}).ofUser(); got != (id != want) {
			t.Errorf("%q is of a user: %v", id, got)
		}
	}
}

// Two directories of one scope that claim one id are one container, and the log says so.
func TestSameID(t *testing.T) {
	need.Root(t)
	inEachHierarchy(t, func(t *testing.T, root string) {
		makeDirs(t, root+"/docker/"+hexID(1), root+"/system.slice/docker-"+hexID(1)+".scope")
		r := run(t, Options{CgroupRoot: root, NetNS: newNamespace(t).FD()})
		found, err := r.Containers()
		check(t, err)
		if len(found) != 1 || found[0].Cgroup != "/docker/"+hexID(1) {
			t.Errorf("containers %+v", found)
		}
		r.wantSkipped(t, Skipped{"/system.slice/docker-" + hexID(1) + ".scope", ErrSameID})
		check(t, os.Remove(root+"/docker/"+hexID(1)))
		found, err = r.Containers()
		check(t, err)
		if len(found) != 1 || found[0].Cgroup != "/system.slice/docker-"+hexID(1)+".scope" {
			t.Errorf("containers %+v after the first has ended", found)
		}
	})
}
