// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// earlier is the packages of an earlier version, of the same binary.
var earlier = sync.OnceValues(func() (*release, error) {
	now, err := made()
	if err != nil {
		return nil, err
	}
	r := *now
	r.version, r.out = "1.2.2", filepath.Join(scratch, "earlier")
	return &r, errors.Join(
		os.Mkdir(r.out, 0o700),
		os.Link(now.binary(runtime.GOARCH), r.binary(runtime.GOARCH)),
		os.Link(now.path(now.licencesFile()), r.path(r.licencesFile())),
		r.packages(runtime.GOARCH))
})

// guest is a host to install packages on: a folder that has busybox, and its own kernel's
// view while a command runs, so that `nettally detach` there can reach nothing of this machine.
type guest struct {
	t    *testing.T
	root string
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	need.Root(t)
	need.Commands(t, "dpkg", "rpm", "busybox", "unshare", "nsenter")
	g := &guest{t, t.TempDir()}
	if err := os.Chmod(g.root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/rpm"} {
		if err := os.MkdirAll(filepath.Join(g.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox := nettest.Must(os.ReadFile(nettest.Must(exec.LookPath("busybox"))(t)))(t)
	g.write("bin/busybox", 0o755, string(busybox))
	g.write("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")
	g.write("etc/group", 0o644, "root:x:0:\n")
	g.write("var/lib/dpkg/status", 0o644, "")
	g.write("usr/sbin/groupadd", 0o755, "#!/bin/sh\necho \"$2:x:999:\" >>/etc/group\n")
	g.write("usr/sbin/groupdel", 0o755, "#!/bin/sh\nsed -i \"/^$1:/d\" /etc/group\n")
	g.run("chroot", g.root, "/bin/busybox", "--install", "-s", "/bin")
	return g
}

func (g *guest) write(name string, mode os.FileMode, text string) {
	g.t.Helper()
	path := filepath.Join(g.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) read(name string) string {
	g.t.Helper()
	return string(nettest.Must(os.ReadFile(filepath.Join(g.root, name)))(g.t))
}

// run runs a command of this machine in a network and a mount namespace of its own, in which the
// guest has /proc, /sys and a bpffs, and returns what it prints.
func (g *guest) run(name string, args ...string) string {
	g.t.Helper()
	const script = `root=$1; shift
mount -t proc proc "$root/proc"; mount -t sysfs sysfs "$root/sys"; mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs tmpfs "$root/dev"; mknod -m 666 "$root/dev/null" c 1 3
exec "$@"`
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--", "sh", "-ec", script, "guest", g.root, name}, args...)...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DPKG_FRONTEND_LOCKED=", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		g.t.Fatalf("%s %s: %v:\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// manager installs packages of one format.
type manager struct {
	install func(g *guest, r *release) string // or upgrades
	remove  func(g *guest) string
}

func packageFile(r *release, format string) (string, error) {
	found, err := filepath.Glob(r.path("nettally*." + format))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d packages of %s", len(found), format)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

var managers = map[string]manager{
	"deb": {
		func(g *guest, r *release) string {
			return g.run("dpkg", "--root="+g.root, "--force-not-root", "-i", nettest.Must(packageFile(r, "deb"))(g.t))
		},
		func(g *guest) string { return g.run("dpkg", "--root="+g.root, "-r", "nettally") },
	},
	"rpm": {
		func(g *guest, r *release) string {
			return g.run("rpm", "--root="+g.root, "--dbpath=/var/lib/rpm", "--nodeps", "--force-debian", "-U", nettest.Must(packageFile(r, "rpm"))(g.t))
		},
		func(g *guest) string {
			return g.run("rpm", "--root="+g.root, "--dbpath=/var/lib/rpm", "--nodeps", "--force-debian", "-e", "nettally")
		},
	},
}

// tree returns the modes of all files, without the databases of the package managers.
func (g *guest) tree() map[string]string {
	g.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(g.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, g.root)
		for _, own := range []string{"/var/lib/dpkg", "/var/lib/rpm", "/var/log", "/var/cache", "/tmp"} {
			if name == own {
				return fs.SkipDir
			}
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		all[name] = info.Mode().String()
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return all
}

// added returns what is there and was not.
func (g *guest) added(before map[string]string) map[string]string {
	g.t.Helper()
	all := g.tree()
	for name := range before {
		delete(all, name)
	}
	return all
}

// A package brings its files, and nothing is left of them when it is removed, but the state and
// a configuration that was changed. Nothing in this guest is systemd's.
func TestPackageLife(t *testing.T) {
	r := nettest.Must(made())(t)
	before122 := nettest.Must(earlier())(t)
	for format, m := range managers {
		t.Run(format, func(t *testing.T) {
			g := newGuest(t)
			before := g.tree()
			m.install(g, before122)

			wantFiles := map[string]string{}
			for _, f := range nettest.Must(r.files(runtime.GOARCH))(t) {
				if f.installed != "" {
					wantFiles[f.installed] = f.mode.String()
				}
			}
			installed := g.added(before)
			for name, mode := range installed {
				if strings.HasPrefix(mode, "d") {
					delete(installed, name)
				}
			}
			if diff := cmp.Diff(wantFiles, installed); diff != "" {
				t.Fatalf("installed (-want +got):\n%s", diff)
			}
			if mode := installed["/etc/nettally/nettally.yaml"]; mode != "-rw-r-----" {
				t.Errorf("the configuration's mode is %s", mode)
			}
			if group := g.read("etc/group"); !regexp.MustCompile(`(?m)^nettally:x:[0-9]+:$`).MatchString(group) {
				t.Errorf("no group nettally in %q", group)
			}
			if out := g.run("chroot", g.root, "/usr/bin/nettally", "config", "check"); !strings.Contains(out, "is good") {
				t.Errorf("config check: %s", out)
			}

			g.write("etc/nettally/nettally.yaml", 0o600, "log: {level: debug}\n")
			g.write("var/lib/nettally/ledger.db", 0o600, "what was counted")
			out := m.install(g, r)
			if text := g.read("etc/nettally/nettally.yaml"); text != "log: {level: debug}\n" {
				t.Errorf("after an upgrade the configuration is %q", text)
			}
			if strings.Contains(out, "took filters off") {
				t.Errorf("an upgrade detaches: %s", out)
			}
			if out := g.run("chroot", g.root, "/usr/bin/nettally", "version"); !strings.Contains(out, "nettally 1.2.3 ") {
				t.Errorf("after an upgrade: %s", out)
			}

			out = m.remove(g)
			if !strings.Contains(out, "took filters off 0 interfaces") {
				t.Errorf("removal does not detach: %s", out)
			}
			left := g.added(before)
			for name := range left {
				if !strings.HasPrefix(name, "/var/lib/nettally") && !strings.HasPrefix(name, "/etc/nettally") && !strings.HasPrefix(left[name], "d") {
					t.Errorf("removal leaves %s", name)
				}
			}
			if text := g.read("var/lib/nettally/ledger.db"); text != "what was counted" {
				t.Errorf("after removal the ledger is %q", text)
			}
			if format != "deb" {
				return
			}
			g.run("dpkg", "--root="+g.root, "-P", "nettally")
			if diff := cmp.Diff(before, g.tree()); diff != "" {
				t.Errorf("after purging (-before +after):\n%s", diff)
			}
			if group := g.read("etc/group"); strings.Contains(group, "nettally") {
				t.Errorf("after purging there is %q", group)
			}
		})
	}
}

// What the scripts ask of systemd where it runs.
func TestPackageAndSystemd(t *testing.T) {
	r := nettest.Must(made())(t)
	before122 := nettest.Must(earlier())(t)
	const enable, disable, reload = "--no-reload enable nettally.service", "--no-reload disable nettally.service", "daemon-reload"
	for format, m := range managers {
		t.Run(format, func(t *testing.T) {
			g := newGuest(t)
			g.write("bin/systemctl", 0o755, "#!/bin/sh\necho \"$@\" >>/tmp/asked\n")
			g.write("run/systemd/system/.keep", 0o644, "")
			asked := func() []string {
				lines := strings.Split(strings.TrimSpace(g.read("tmp/asked")), "\n")
				g.write("tmp/asked", 0o644, "")
				return lines
			}
			for _, step := range []struct {
				name string
				do   func()
				want []string
			}{
				{"install", func() { m.install(g, before122) }, []string{enable, reload, "start nettally.service"}},
				{"upgrade", func() { m.install(g, r) }, []string{reload, "try-restart nettally.service"}},
				{"remove", func() { m.remove(g) }, []string{"stop nettally.service", disable, reload}},
				{"install again", func() { m.install(g, r) }, []string{enable, reload, "start nettally.service"}},
			} {
				step.do()
				if diff := cmp.Diff(step.want, asked()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", step.name, diff)
				}
			}
		})
	}
}

// rpm reads the header as it should.
func TestRPMHeader(t *testing.T) {
	need.Commands(t, "rpm")
	r := nettest.Must(made())(t)
	path := nettest.Must(packageFile(r, "rpm"))(t)
	query := func(args ...string) string {
		t.Helper()
		args = append([]string{"--dbpath", t.TempDir(), "-qp"}, append(args, path)...)
		return strings.TrimSpace(string(nettest.Must(exec.Command("rpm", args...).Output())(t)))
	}
	if got, want := query("--qf", "%{NAME} %{VERSION} %{RELEASE} %{LICENSE} %{OS} %{BUILDTIME} %{BUILDHOST}"),
		"nettally 1.2.3 1 Apache-2.0 linux 1700000000 localhost"; got != want {
		t.Errorf("header %q, want %q", got, want)
	}
	if got := query("--configfiles"); got != "/etc/nettally/nettally.yaml" {
		t.Errorf("configuration files %q", got)
	}
	files := query("--qf", "[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags} %{FILENAMES}\n]")
	for _, want := range []string{
		"-rw-r----- root root cn /etc/nettally/nettally.yaml", "-rwxr-xr-x root root  /usr/bin/nettally",
		"-rw-r--r-- root root  /usr/lib/systemd/system/nettally.service",
	} {
		if !strings.Contains(files, want) {
			t.Errorf("no %q in\n%s", want, files)
		}
	}
}

// systemd takes the unit of packages, with a program in place of nettally that exists, and finds
// it confined as that of the source is.
func TestPackagedUnit(t *testing.T) {
	need.Commands(t, "systemd-analyze")
	text := string(nettest.Must(packagedUnit("../configs/nettally.service"))(t))
	program := nettest.Must(os.Executable())(t)
	replaced := strings.Replace(text, "ExecStart=/usr/bin/nettally run", "ExecStart="+program+" run", 1)
	if replaced == text || !strings.Contains(text, "\nGroup=nettally\n") {
		t.Fatalf("the unit of packages starts something else, or has no group:\n%s", text)
	}
	folder := t.TempDir()
	unit := filepath.Join(folder, "nettally.service")
	if err := os.WriteFile(unit, []byte(replaced), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", unit).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
