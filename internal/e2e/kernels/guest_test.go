// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"cmp"
	"context"
	_ "embed"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

//go:embed init.sh
var initScript []byte

//go:embed lacks.sh
var lacksScript string

//go:embed clock.sh
var clockScript string

// modules are what nettally needs of Debian's kernels that is not built in.
var modules = []string{"veth", "sch_ingress", "cls_bpf"}

// patience is how long a guest may take from power on to power off: ten seconds on an
// idle machine.
const patience = 15 * time.Minute

// result is how a step of init.sh ended.
type result struct {
	output string
	code   int
}

// guest is a machine that is emulated, so that it needs no hardware's help and no
// privileges; it has no network.
type guest struct {
	unpacked string            // a package of a kernel
	nettally string            // the binary
	programs []string          // others, in /bin
	steps    string            // after init.sh
	date     string            // of its real-time clock, in UTC; "" for the machine's
	files    map[string][]byte // beside what each guest has
}

// boot runs the steps and returns their results.
func (g guest) boot(t *testing.T) map[string]result {
	t.Helper()
	folder := t.TempDir()
	console := filepath.Join(folder, "console")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-rtc", "base="+cmp.Or(g.date, "utc"),
		"-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nodefaults", "-nic", "none", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", one(t, filepath.Join(g.unpacked, "boot", "vmlinuz-*")),
		"-initrd", g.initramfs(t),
		// A stall is the machine's, which may have other things to do.
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1")
	var complaints strings.Builder
	qemu.Stderr = &complaints
	report, err := qemu.Output()
	results, complete := parse(string(report))
	if err != nil || !complete {
		said, _ := os.ReadFile(console) // empty if there is none
		t.Fatalf("the guest did not end as it should: %v\n%s\nreport:\n%s\nconsole:\n%s", err, &complaints, report, said)
	}
	return results
}

// parse reads the report of a guest. It is complete if the last step has ended.
func parse(report string) (results map[string]result, complete bool) {
	results = map[string]result{}
	for part := range strings.SplitSeq(report, "@begin ") {
		name, rest, _ := strings.Cut(part, "\n")
		output, code, ended := strings.Cut(rest, "@end ")
		complete = ended && name == "log"
		if !ended {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(code))
		if err != nil {
			n = -1
		}
		results[name] = result{output, n}
	}
	return results, complete
}

// initramfs makes the guest's only file system.
func (g guest) initramfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, folder := range []string{"bin", "dev", "modules", "proc", "run", "sys", "tmp", "var"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(root, "bin/busybox"), busybox)
	copyFile(t, filepath.Join(root, "bin/nettally"), g.nettally)
	for _, program := range g.programs {
		copyFile(t, filepath.Join(root, "bin", filepath.Base(program)), program)
	}
	if err := os.WriteFile(filepath.Join(root, "init"), append(slices.Clone(initScript), g.steps...), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range g.files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range modules {
		copyModule(t, filepath.Join(root, "modules", name+".ko"), g.unpacked, name)
	}
	return archive(t, root)
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// copyModule copies a module, which some packages have compressed.
func copyModule(t *testing.T, to, unpacked, name string) {
	t.Helper()
	from := one(t, filepath.Join(unpacked, "lib/modules/*/kernel/*/*", name+".ko*"))
	if filepath.Ext(from) != ".xz" {
		copyFile(t, to, from)
		return
	}
	if err := os.WriteFile(to, []byte(output(t, exec.Command("busybox", "xz", "-dc", from))), 0o644); err != nil {
		t.Fatal(err)
	}
}

// archive packs a folder in the form that the kernel unpacks.
func archive(t *testing.T, root string) string {
	t.Helper()
	var names strings.Builder
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, _ fs.DirEntry, err error) error {
		names.WriteString(path + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cpio := exec.Command("busybox", "cpio", "-o", "-H", "newc", "-R", "0:0") // nettally wants its folders to be root's
	cpio.Dir = root
	cpio.Stdin = strings.NewReader(names.String())
	path := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(path, []byte(output(t, cpio)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
