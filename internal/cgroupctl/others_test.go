// SPDX-License-Identifier: Apache-2.0

package cgroupctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Programs of others, attached as BPF_PROG_ATTACH allows it, on a cgroup and on those above.
// Where the kernel would refuse ours, or run it instead of the other's, the error names the one
// that is in the way, nothing of ours is left, and ours can be attached once that is gone. The
// witness is the kernel: it says which programs have an effect on the cgroup.
func TestExclusive(t *testing.T) {
	need.Root(t)
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(t)
	t.Cleanup(func() { datapath.Close() })
	const none, override, multi = 0, unix.BPF_F_ALLOW_OVERRIDE, unix.BPF_F_ALLOW_MULTI
	type program struct {
		depth int // of the cgroup: 0 is ours
		hook  hook
		flags uint32
	}
	in, out := Packets[0], Packets[1]
	for name, test := range map[string]struct {
		programs []program
		by       int // the depth of whose is in the way, -1 for nobody's
	}{
		"nobody":                   {nil, -1},
		"above, none beside":       {[]program{{1, in, none}}, 1},
		"far above":                {[]program{{3, out, none}}, 3},
		"egress only":              {[]program{{1, out, none}}, 1},
		"on the same":              {[]program{{0, out, none}}, 0},
		"on the same, overridable": {[]program{{0, in, override}}, 0},
		"above, overridable":       {[]program{{1, in, override}}, 1},
		"above, beside":            {[]program{{1, in, multi}, {2, out, multi}}, -1},
		"beside on the same":       {[]program{{0, in, multi}}, -1},
		"below one that shares":    {[]program{{2, in, multi}, {1, in, none}}, 1},
		"came later":               {[]program{{0, in, multi}, {2, in, none}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(Options{Root: unified(t), Pins: filepath.Join(nettest.BPFFS(t), "cgroups")})
			dirs := cgroupsBelow(t, c.Root)
			foreign := map[ebpf.AttachType]*ebpf.Program{}
			for _, h := range Packets {
				foreign[h.attach] = nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
					Name: "foreign", Type: ebpf.CGroupSKB, AttachType: h.attach, License: "MIT",
					Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
				}))(t)
				defer foreign[h.attach].Close()
			}
			detach := func(p program) error {
				return link.RawDetachProgram(link.RawDetachProgramOptions{
					Target: openDir(t, filepath.Join(c.Root, dirs[p.depth])), Program: foreign[p.hook.attach], Attach: p.hook.attach,
				})
			}
			var attached []program
			for _, p := range test.programs {
				err := link.RawAttachProgram(link.RawAttachProgramOptions{
					Target: openDir(t, filepath.Join(c.Root, dirs[p.depth])), Program: foreign[p.hook.attach], Attach: p.hook.attach, Flags: p.flags,
				})
				if err != nil {
					t.Fatal(err)
				}
				attached = append(attached, p)
			}
			id := nettest.Must(c.ID(dirs[0]))(t)
			inEffect := effective(t, c, dirs[0])
			err := c.Attach(dirs[0], id, datapath.CgroupIngress, datapath.CgroupEgress)
			for _, id := range inEffect {
				if !slices.Contains(effective(t, c, dirs[0]), id) {
					t.Errorf("ours runs instead of program %d", id)
				}
			}
			if test.by < 0 {
				if err != nil {
					t.Error(err)
				}
			} else {
				var named *ExclusiveError
				if !errors.Is(err, ErrExclusive) || !errors.As(err, &named) || named.Cgroup != dirs[test.by] || named.Program != "foreign" {
					t.Errorf("attach: %v, want %s named", err, dirs[test.by])
				}
				for _, h := range Packets {
					on := nettest.Must(c.attachedTo(dirs[0], h))(t)
					for _, p := range attached {
						if p.depth == 0 && p.hook == h {
							on.count--
						}
					}
					if on.count != 0 {
						t.Errorf("%d programs are left on the %s hook", on.count, h.name)
					}
				}
				if ids := nettest.Must(c.IDs())(t); len(ids) > 0 {
					t.Errorf("pins are left: %v", ids)
				}
			}
			for _, p := range attached {
				if err := detach(p); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Attach(dirs[0], id, datapath.CgroupIngress, datapath.CgroupEgress); err != nil {
				t.Errorf("after the other has gone: %v", err)
			}
			if err := c.Detach(id); err != nil {
				t.Error(err)
			}
		})
	}
}

// Another's program comes at any moment while ours are put on: the error names it, or ours are on.
func TestExclusiveComesMeanwhile(t *testing.T) {
	need.Root(t)
	datapath := nettest.Must(bpf.Load(bpf.Options{}))(t)
	t.Cleanup(func() { datapath.Close() })
	c := New(Options{Root: unified(t), Pins: filepath.Join(nettest.BPFFS(t), "cgroups")})
	dirs := cgroupsBelow(t, c.Root)
	id := nettest.Must(c.ID(dirs[0]))(t)
	fence := nettest.Must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "fence", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}))(t)
	defer fence.Close()
	above := openDir(t, filepath.Join(c.Root, dirs[1]))
	for round := range 300 {
		came := make(chan error)
		go func() {
			for end := time.Now().Add(time.Duration(round) * time.Microsecond); time.Now().Before(end); {
			}
			came <- link.RawAttachProgram(link.RawAttachProgramOptions{Target: above, Program: fence, Attach: ebpf.AttachCGroupInetEgress})
		}()
		err := c.Attach(dirs[0], id, datapath.CgroupIngress, datapath.CgroupEgress)
		if err := <-came; err != nil {
			t.Fatal(err)
		}
		if err != nil && !errors.Is(err, ErrExclusive) {
			t.Errorf("after %d µs: %v", round, err)
		}
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: above, Program: fence, Attach: ebpf.AttachCGroupInetEgress}); err != nil {
			t.Fatal(err)
		}
		if err := c.Detach(id); err != nil {
			t.Fatal(err)
		}
	}
}

// effective returns the programs that the kernel runs for a cgroup, also those from above.
func effective(t *testing.T, c *Controller, dir string) (ids []ebpf.ProgramID) {
	t.Helper()
	for _, h := range Packets {
		found := nettest.Must(link.QueryPrograms(link.QueryOptions{
			Target: openDir(t, filepath.Join(c.Root, dir)), Attach: h.attach, QueryFlags: unix.BPF_F_QUERY_EFFECTIVE,
		}))(t)
		for _, p := range found.Programs {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// cgroupsBelow makes a cgroup four deep, and returns the paths from there up.
func cgroupsBelow(t *testing.T, root string) (dirs []string) {
	t.Helper()
	top := fmt.Sprintf("/nettally-test-%d-exclusive", os.Getpid())
	for dir := top + "/a/b/c"; dir != "/"; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	if err := os.MkdirAll(filepath.Join(root, dirs[0]), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range dirs {
			if err := os.Remove(filepath.Join(root, dir)); err != nil {
				t.Error(err)
			}
		}
	})
	return dirs
}

func TestExclusiveError(t *testing.T) {
	err := &ExclusiveError{Cgroup: "/system.slice", Program: "fence", ID: 7, Hook: "egress"}
	for _, part := range []string{`"fence"`, "7", "egress", "/system.slice"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %s", err, part)
		}
	}
}
