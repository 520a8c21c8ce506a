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

//go:embed conntrack.sh
var conntrackScript string

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
	modules  []string          // beside those that nettally needs
	memory   int               // in MiB; 0 for one GiB
	steps    string            // after init.sh
	date     string            // of its real-time clock, in UTC; "" for the machine's
	files    map[string][]byte // beside what each guest has
}

// boot runs the steps and returns their results.
func (g guest) boot(tb testing.TB) map[string]result {
	tb.Helper()
	folder := tb.TempDir()
	console := filepath.Join(folder, "console")
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-rtc", "base="+cmp.Or(g.date, "utc"),
		"-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(cmp.Or(g.memory, 1024)),
		"-nodefaults", "-nic", "none", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", one(tb, filepath.Join(g.unpacked, "boot", "vmlinuz-*")),
		"-initrd", g.initramfs(tb),
		// A stall is the machine's, which may have other things to do.
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1")
	var complaints strings.Builder
	qemu.Stderr = &complaints
	report, err := qemu.Output()
	results, complete := parse(string(report))
	if err != nil || !complete {
		said, _ := os.ReadFile(console) // empty if there is none
		tb.Fatalf("the guest did not end as it should: %v\n%s\nreport:\n%s\nconsole:\n%s", err, &complaints, report, said)
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
func (g guest) initramfs(tb testing.TB) string {
	tb.Helper()
	root := tb.TempDir()
	for _, folder := range []string{"bin", "dev", "modules", "proc", "run", "sys", "tmp", "var"} {
		if err := os.Mkdir(filepath.Join(root, folder), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		tb.Fatal(err)
	}
	copyFile(tb, filepath.Join(root, "bin/busybox"), busybox)
	copyFile(tb, filepath.Join(root, "bin/nettally"), g.nettally)
	for _, program := range g.programs {
		copyFile(tb, filepath.Join(root, "bin", filepath.Base(program)), program)
	}
	if err := os.WriteFile(filepath.Join(root, "init"), append(slices.Clone(initScript), g.steps...), 0o755); err != nil {
		tb.Fatal(err)
	}
	for name, content := range g.files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, content, 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range slices.Concat(modules, g.modules) {
		copyModule(tb, filepath.Join(root, "modules", name+".ko"), g.unpacked, name)
	}
	return archive(tb, root)
}

func copyFile(tb testing.TB, to, from string) {
	tb.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// copyModule copies a module, which some packages have compressed.
func copyModule(tb testing.TB, to, unpacked, name string) {
	tb.Helper()
	from := ""
	err := filepath.WalkDir(filepath.Join(unpacked, "lib/modules"), func(path string, _ fs.DirEntry, err error) error {
		if file, _, _ := strings.Cut(filepath.Base(path), "."); file == name {
			from = path
		}
		return err
	})
	if err != nil || from == "" {
		tb.Fatalf("the package of the kernel has no module %s: %v", name, err)
	}
	if filepath.Ext(from) != ".xz" {
		copyFile(tb, to, from)
		return
	}
	if err := os.WriteFile(to, []byte(output(tb, exec.Command("busybox", "xz", "-dc", from))), 0o644); err != nil {
		tb.Fatal(err)
	}
}

// archive packs a folder in the form that the kernel unpacks.
func archive(tb testing.TB, root string) string {
	tb.Helper()
	var names strings.Builder
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, _ fs.DirEntry, err error) error {
		names.WriteString(path + "\n")
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	cpio := exec.Command("busybox", "cpio", "-o", "-H", "newc", "-R", "0:0") // nettally wants its folders to be root's
	cpio.Dir = root
	cpio.Stdin = strings.NewReader(names.String())
	path := filepath.Join(tb.TempDir(), "initramfs")
	if err := os.WriteFile(path, []byte(output(tb, cpio)), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
