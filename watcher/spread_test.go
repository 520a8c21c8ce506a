// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

func (i inspected) wantSpread(t *testing.T, what string, want Spread) {
	t.Helper()
	if got := i.Stand(i.container).Spread; got != want {
		t.Errorf("%s: spread %d, want %d", what, got, want)
	}
}

// TestSpread has processes of a container in one namespace, in two, and in the host's, in its
// own cgroup and below.
func TestSpread(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		c.wantSpread(t, "nobody", Together)
		startIn(t, c.inner, c.dir())
		startIn(t, c.inner, c.dir())
		c.wantSpread(t, "two in one", Together)
		if s := c.Stand(c.container); s.NetNS != inode(t, c.inner) {
			t.Errorf("standing %+v", s)
		}
		third := newNamespace(t)
		stop := startIn(t, third, c.dir())
		c.wantSpread(t, "in two", Apart)
		veth(t, c.host, "vethhost", c.inner, "eth0")
		c.wantSpread(t, "in two, of which one leads nowhere", Together)
		veth(t, newNamespace(t), "far", third, "eth0")
		c.wantSpread(t, "in two, which lead somewhere", Apart)
		if s := c.inspect(t); s.Spread != Apart || s.NetNS != inode(t, c.inner) {
			t.Errorf("sandbox %+v", s)
		}
		stop()
		c.wantSpread(t, "in one again", Together)

		deep := c.dir() + "/some/where"
		nested := c.dir() + "/docker/" + idB
		makeDirs(t, deep, nested)
		startIn(t, c.host, nested)
		c.wantSpread(t, "a nested container in the host's", Together)
		stop = startIn(t, c.host, deep)
		c.wantSpread(t, "one far below in the host's", AlsoInHost)
		stop()
		c.maxTasks = 2
		c.wantSpread(t, "as many as are looked at", Together)
		c.maxTasks = 1
		c.wantSpread(t, "more than are looked at", Unsure)
	})
}

// TestInspectSeveral: whose interfaces are a container's is not for its oldest process to say,
// which may have gone to a namespace that it made.
func TestInspectSeveral(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		own := newNamespace(t)
		veth(t, newNamespace(t), "a", own, "eth0")
		startIn(t, own, c.dir())
		startIn(t, c.host, c.dir())
		startIn(t, c.inner, c.dir())
		if s := c.inspect(t); s.NetNS != inode(t, own) || s.Given {
			t.Errorf("none has an interface from the host: sandbox %+v", s)
		}
		veth(t, c.host, "real", c.inner, "eth0")
		if s := c.inspect(t); s.NetNS != inode(t, c.inner) || !s.Given || s.Spread != AlsoInHost {
			t.Errorf("the second has an interface from the host: sandbox %+v", s)
		}
	})
}

// TestOldestProcess: pids begin anew, so the oldest process may have the highest one. One whose
// age is not known, since it has ended, comes last.
func TestOldestProcess(t *testing.T) {
	proc := t.TempDir()
	for pid, began := range map[int]int{7: 900, 300: 500, 32000: 100, 32001: 100} {
		makeDirs(t, fmt.Sprint(proc, "/", pid))
		stat := fmt.Sprintf("%d (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d"+strings.Repeat(" 0", 30)+"\n", pid, began)
		if err := os.WriteFile(fmt.Sprint(proc, "/", pid, "/stat"), []byte(stat), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := []process{{pid: 5}, {pid: 7}, {pid: 300}, {pid: 32000}, {pid: 32001}}
	if err := (&Watcher{proc: proc}).sortByAge(found); err != nil {
		t.Fatal(err)
	}
	want := []process{{pid: 32000}, {pid: 32001}, {pid: 300}, {pid: 7}, {pid: 5}}
	if !slices.Equal(found, want) {
		t.Errorf("%v, want %v", found, want)
	}
}

// TestSpreadHidden has more directories than are looked at.
func TestSpreadHidden(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		startIn(t, c.inner, c.dir())
		for n := range maxDirectories {
			makeDirs(t, fmt.Sprint(c.dir(), "/", n))
		}
		c.wantSpread(t, "more directories than are looked at", Unsure)
	})
}

// TestSupervisor: nspawn's stays in the host's network, and is not in the container.
func TestSupervisor(t *testing.T) {
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		makeDirs(t, c.dir()+"/payload", c.dir()+"/supervisor")
		startIn(t, c.host, c.dir()+"/supervisor")
		startIn(t, c.inner, c.dir()+"/payload")
		c.wantSpread(t, "docker", AlsoInHost)
		c.container.Runtime = "nspawn"
		c.wantSpread(t, "nspawn", Together)
	})
}

const threadHelper = "NETTALLY_TEST_THREAD"

// TestThreadElsewhere: a process that has a namespace of its own may have left a thread in
// the host's.
func TestThreadElsewhere(t *testing.T) {
	need.Root(t)
	if path := os.Getenv(threadHelper); path != "" {
		stayBehind(t, path)
		return
	}
	inEachHierarchy(t, func(t *testing.T, root string) {
		c := newInspected(t, root)
		cmd := exec.Command(os.Args[0], "-test.run=^TestThreadElsewhere$")
		cmd.Env = append(os.Environ(), threadHelper+"="+c.host.Path())
		in, err := cmd.StdinPipe()
		check(t, err)
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, c.inner.Start(cmd))
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
		check(t, os.WriteFile(filepath.Join(c.dir(), "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if main, err := namespaceAt(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)); err != nil || main.inode != inode(t, c.inner) {
			t.Fatalf("the process itself is in %+v, %v", main, err)
		}
		c.wantSpread(t, "a thread in the host's", AlsoInHost)
	})
}

// stayBehind has a thread in a namespace until its standard input ends.
func stayBehind(t *testing.T, path string) {
	ns, err := testnet.OpenNamespace(path)
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread stays where it is.
			other := make(chan struct{})
			go func() { defer close(other); enterAndWait(ns) }()
			<-other
			return
		}
		enterAndWait(ns)
	}()
	<-done
	check(t, ns.Close())
}

func enterAndWait(ns *testnet.Namespace) {
	runtime.LockOSThread()
	if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func TestEyes(t *testing.T) {
	const host = 1 // 2 is a helper's in it; 70 and more lead nowhere
	denied := errors.New("denied")
	for name, row := range map[string]struct {
		in   []uint64 // by thread; 0: it has ended; 99: it can't be looked at
		all  bool
		want Standing
	}{
		"nobody":             {nil, true, Standing{}},
		"nobody known":       {nil, false, Standing{Spread: Unsure}},
		"one":                {[]uint64{7, 0, 7}, true, Standing{NetNS: 7}},
		"host":               {[]uint64{1, 1}, true, Standing{NetNS: 1}},
		"two":                {[]uint64{7, 8}, true, Standing{NetNS: 7, Spread: Apart}},
		"two and the host":   {[]uint64{7, 8, 1}, true, Standing{NetNS: 7, Spread: AlsoInHost}},
		"the host first":     {[]uint64{1, 8}, true, Standing{NetNS: 1, Spread: AlsoInHost}},
		"one leads nowhere":  {[]uint64{70, 7, 0, 71, 7}, true, Standing{NetNS: 7, Aside: true}},
		"both lead nowhere":  {[]uint64{70, 71}, true, Standing{NetNS: 70, Spread: Apart}},
		"two lead somewhere": {[]uint64{70, 7, 8}, true, Standing{NetNS: 70, Spread: Apart}},
		"nowhere and host":   {[]uint64{70, 1}, true, Standing{NetNS: 70, Spread: AlsoInHost}},
		"a helper":           {[]uint64{2, 2, 7}, true, Standing{NetNS: 7, Aside: true}},
		"a helper alone":     {[]uint64{2, 2}, true, Standing{NetNS: 1}},
		"a helper, and more": {[]uint64{2, 7}, false, Standing{Spread: Unsure}},
		"a helper and host":  {[]uint64{2, 7, 1}, true, Standing{NetNS: 1, Spread: AlsoInHost}},
		"hidden, and two":    {[]uint64{70, 7, 99}, true, Standing{NetNS: 70, Spread: Unsure}},
		"more":               {[]uint64{7, 7}, false, Standing{Spread: Unsure}},
		"two, and more":      {[]uint64{7, 8}, false, Standing{Spread: Unsure}},
		"the host, and more": {[]uint64{7, 1}, false, Standing{Spread: Unsure}},
		"hidden":             {[]uint64{7, 99}, true, Standing{NetNS: 7, Spread: Unsure}},
	} {
		var ids []int
		for i := range row.in {
			ids = append(ids, i)
		}
		eyes := Eyes{
			Host: host,
			NetNS: func(task int) (uint64, error) {
				switch row.in[task] {
				case 0:
					return 0, fs.ErrNotExist
				case 2:
					return host, nil
				case 99:
					return 0, denied
				}
				return row.in[task], nil
			},
			Open:  func(_ int, netns uint64) bool { return netns < 70 },
			Aside: func(task int) bool { return row.in[task] == 2 },
		}
		got := eyes.Stand(ids, row.all)
		if got != row.want {
			t.Errorf("%s: %+v, want %+v", name, got, row.want)
		}
	}
}

// BenchmarkStand looks at a container of one process, and at one of 20 threads.
func BenchmarkStand(b *testing.B) {
	need.Root(b)
	root := newCgroup(b, hierarchies(b)["v2"])
	c := Container{ID: idA, Cgroup: "/docker/" + idA}
	makeDirs(b, root+c.Cgroup)
	w, err := New(Options{CgroupRoot: root})
	check(b, err)
	defer w.Close()
	for n := range 20 {
		cmd := exec.Command("sleep", "600")
		check(b, cmd.Start())
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		check(b, os.WriteFile(root+c.Cgroup+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
		if n == 0 || n == 19 {
			b.Run(fmt.Sprint(n+1), func(b *testing.B) {
				for b.Loop() {
					w.Stand(c)
				}
			})
		}
	}
}

// TestGiven: an interface that leads to the host's namespace, or is physical, was not made in
// the container's by who is in there.
func TestGiven(t *testing.T) {
	need.Root(t)
	root := newCgroup(t, hierarchies(t)["v2"])
	third := newNamespace(t)
	macvlan := func(t *testing.T, on, in *testnet.Namespace) {
		veth(t, on, "below", third, fmt.Sprint("below", inode(t, in)%1e6))
		check(t, on.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: linkIn(t, on, "below").Attrs().Index},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		}))
		check(t, on.LinkSetNsFd(linkIn(t, on, "mac0"), in.FD()))
	}
	for name, row := range map[string]struct {
		add  func(t *testing.T, c inspected)
		want bool
	}{
		"nothing": {func(*testing.T, inspected) {}, false},
		"bridge": {func(t *testing.T, c inspected) {
			check(t, c.inner.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "b"}}))
		}, false},
		"veth to the host":    {func(t *testing.T, c inspected) { veth(t, c.host, "a", c.inner, "eth0") }, true},
		"veth to a third":     {func(t *testing.T, c inspected) { veth(t, third, "a", c.inner, "eth0") }, false},
		"macvlan on the host": {func(t *testing.T, c inspected) { macvlan(t, c.host, c.inner) }, true},
		"macvlan on a third's": {func(t *testing.T, c inspected) {
			check(t, c.inner.SetNetNsIdByFd(c.host.FD(), 55)) // it knows the host's, too
			macvlan(t, newNamespace(t), c.inner)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newInspected(t, root)
			stop := startIn(t, c.inner, c.dir())
			defer stop()
			row.add(t, c)
			if got := c.inspect(t).Given; got != row.want {
				t.Errorf("given: %t", got)
			}
		})
	}
}
