// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// onDisk puts a ledger on a file system of its own with 2 MB.
func onDisk(t *testing.T) (b *bench, mount string) {
	need.Root(t)
	b = newBench(t)
	mount = filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.stop()
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(mount, unix.MNT_DETACH)
		}
	})
	b.path = filepath.Join(mount, "state", "ledger.db")
	b.restart()
	return b, mount
}

// fill takes all space that is left. It returns what gives it back.
func fill(t *testing.T, mount string) (free func()) {
	t.Helper()
	path := filepath.Join(mount, "full")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 4
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func remount(t *testing.T, mount string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

func TestDiskFull(t *testing.T) {
	b, mount := onDisk(t)
	h := newHost()
	const containers = 20
	count := func(n uint64) {
		for i := range containers {
			h.count(record(fmt.Sprintf("id%d", i), fmt.Sprintf("name%d", i), n))
		}
	}
	count(100)
	stop := b.keeping(h)
	eventually(t, "written", func() bool { return h.pending() == 0 })

	free := fill(t, mount)
	n := uint64(100)
	for failed := testutil.ToFloat64(b.metrics.failures); testutil.ToFloat64(b.metrics.failures) < failed+5; {
		n += 10 // some may still find room in the log
		count(n)
		h.start("id1") // waits until it is noticed
		eventually(t, "recalled", func() bool { return len(h.Unrecalled()) == 0 })
	}
	if s := b.Status(); s.Up || !strings.Contains(s.Error, "full") {
		t.Errorf("status %+v", s)
	}
	h.start("id3")
	eventually(t, "recalled", func() bool { kept, _ := h.recalled("id3"); return kept != nil })
	if _, err := b.History(context.Background(), Query{}); err != nil {
		t.Errorf("history on a full disk: %v", err)
	}
	if err := Check(b.path); err == nil || !strings.Contains(err.Error(), "are free; free 64 MiB") {
		t.Errorf("check: %v", err)
	}
	count(n + 50)
	free()
	eventually(t, "written", func() bool { return h.pending() == 0 && b.Status().Up })
	stop()
	same(t, b.log.count("usage is not kept on disk"), b.log.count("kept on disk again"))
	same(t, b.total(), made(slices.Repeat([]uint64{n + 50}, containers)...))
	b.restart()
	same(t, len(b.load(noon)), containers)
	same(t, b.total(), made(slices.Repeat([]uint64{n + 50}, containers)...))
}

// The disk is full when the ledger is first made.
func TestDiskFullFromTheStart(t *testing.T) {
	b, mount := onDisk(t)
	h := newHost()
	free := fill(t, mount)
	h.count(record("a1", "web", 100))
	b.keeping(h)
	eventually(t, "failed", func() bool { return testutil.ToFloat64(b.metrics.failures) > 3 })
	free()
	eventually(t, "written", func() bool { return h.pending() == 0 })
	same(t, b.total(), made(100))
	same(t, b.Status().SetAside, "")
}

// TestLocked: a backup or a shell holds the ledger's lock for longer than a flush waits. Containers
// that start are recalled meanwhile, history is answered, and all is written afterwards.
func TestLocked(t *testing.T) {
	b := newBench(t)
	h := newHost()
	h.count(record("a1", "web", 100))
	stop := b.keeping(h)
	eventually(t, "written", func() bool { return h.pending() == 0 })

	other, err := sql.Open("sqlite", "file:"+b.path+"?_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxOpenConns(1)
	if _, err := other.Exec("BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	h.count(record("a1", "web", 200))
	eventually(t, "failed", func() bool { return !b.Status().Up })
	if s := b.Status(); !strings.Contains(s.Error, "database is locked") || s.SetAside != "" {
		t.Errorf("status %+v", s)
	}
	h.start("a1")
	eventually(t, "recalled", func() bool { kept, _ := h.recalled("a1"); return kept != nil })
	same(t, b.received(Query{}), []string{"03-10 00:00 web 100"})
	h.count(record("a1", "web", 300))
	if _, err := other.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written", func() bool { return h.pending() == 0 && b.Status().Up })
	stop()
	same(t, b.total(), made(300))
	same(t, b.log.count("usage is not kept on disk"), 1)
	same(t, b.log.count("kept on disk again"), 1)
}

func TestReadOnlyDisk(t *testing.T) {
	for name, prepare := range map[string]func(b *bench) error{
		"after a stop": func(*bench) error { return nil },
		// A log that is not in the file yet, with its index or without.
		"after a crash":               func(b *bench) error { return restore(b, "", "-wal", "-shm") },
		"after a crash, without -shm": func(b *bench) error { return restore(b, "", "-wal") },
	} {
		t.Run(name, func(t *testing.T) {
			b, mount := onDisk(t)
			b.flush(record("a1", "web", 70))
			b.restart()
			b.flush(record("a1", "web", 100), record("b2", "db", 100))
			if err := save(b, "", "-wal", "-shm"); err != nil {
				t.Fatal(err)
			}
			b.stop()
			if err := prepare(b); err != nil {
				t.Fatal(err)
			}
			remount(t, mount, unix.MS_RDONLY)
			b.restart()
			records := b.load(noon)
			if name == "after a crash, without -shm" {
				// As it was at the last checkpoint.
				same(t, len(records), 1)
				same(t, b.total(), made(70))
			} else {
				same(t, len(records), 2)
				same(t, b.total(), made(100, 100))
			}
			if err := Check(b.path); err == nil || !strings.Contains(err.Error(), "its file system is read-only; remount it") {
				t.Errorf("check: %v", err)
			}
			h := newHost()
			h.count(record("a1", "web", 150))
			stop := b.keeping(h)
			eventually(t, "failed", func() bool { return testutil.ToFloat64(b.metrics.failures) > 3 })
			same(t, b.log.count("usage is not kept on disk"), 1)
			if s := b.Status(); s.Up || !strings.Contains(strings.ReplaceAll(s.Error, "-", ""), "readonly") {
				t.Errorf("status %+v", s)
			}
			h.count(record("a1", "web", 170))
			remount(t, mount, 0)
			eventually(t, "written", func() bool { return h.pending() == 0 })
			stop()
			same(t, b.total(), made(170, 100))
			same(t, b.Status().SetAside, "")
			b.restart()
			same(t, len(b.load(noon)), 2)
		})
	}
}

// After an error of the disk ext4 takes no writes any more; newer kernels leave it mounted
// for writing.
func TestCheckAfterAnErrorOfTheDisk(t *testing.T) {
	need.Root(t)
	need.Commands(t, "mkfs.ext4", "mount", "umount")
	_, err := os.Stat("/dev/loop-control")
	need.Kernel(t, "loop devices", err)
	image, mount := filepath.Join(t.TempDir(), "image"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("mkfs.ext4", "-q", image, "100M")
	run("mount", "-o", "loop,errors=remount-ro", image, mount)
	t.Cleanup(func() { run("umount", mount) })
	path := filepath.Join(mount, "ledger.db")
	if err := Check(path); err != nil {
		t.Errorf("check before: %v", err)
	}
	device, err := exec.Command("findmnt", "--noheadings", "--output", "SOURCE", mount).Output()
	if err != nil {
		t.Fatal(err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(device))), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte(t.Name()), 0o200); err != nil {
		t.Fatal(err)
	}
	if err := Check(path); err == nil || !strings.Contains(err.Error(), "its file system is read-only; remount it") {
		t.Errorf("check: %v", err)
	}
}

// save copies files of a ledger, restore puts them back: the process between is gone.
func save(b *bench, suffixes ...string) error {
	for _, suffix := range suffixes {
		data, err := os.ReadFile(b.path + suffix)
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.path+".saved"+suffix, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func restore(b *bench, suffixes ...string) error {
	for _, suffix := range suffixes {
		if err := os.Rename(b.path+".saved"+suffix, b.path+suffix); err != nil {
			return err
		}
	}
	return nil
}

const scratchHelper = "NETTALLY_TEST_SCRATCH"

// TestWithoutTemporaryFolder: in a container with a read-only file system sums of many rows have
// no folder but the ledger's own, and none where that can't be written any more.
func TestWithoutTemporaryFolder(t *testing.T) {
	need.Root(t)
	if os.Getenv(scratchHelper) != "" {
		sumWithoutTemporaryFolder(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWithoutTemporaryFolder$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // made private by package syscall
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); name != "TMPDIR" && name != "SQLITE_TMPDIR" {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, scratchHelper+"=yes")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// sumWithoutTemporaryFolder runs in a mount namespace of its own.
func sumWithoutTemporaryFolder(t *testing.T) {
	const volume = "/mnt"
	mount := func(at string, flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", at, "tmpfs", flags, "size=256m"); err != nil {
			t.Fatal(err)
		}
	}
	mount(volume, 0)
	for _, folder := range []string{"/var/tmp", "/usr/tmp", "/tmp"} {
		if _, err := os.Stat(folder); err == nil {
			mount(folder, unix.MS_RDONLY)
		}
	}
	t.Chdir("/tmp")            // the last folder that SQLite tries is the one it is in
	t.Setenv("TMPDIR", volume) // for newBench alone: SQLite has read its environment
	b := newBench(t)
	b.path = filepath.Join(filepath.Dir(b.path), "volume's", "ledger.db")
	if err := os.Unsetenv("TMPDIR"); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.flush(thousand(100)...)
	const hours = 100
	_, err := b.file.write.Exec(`INSERT INTO hours SELECT start - 3600 * h.value, subject, ` + numberColumns + `
		FROM hours, (SELECT value FROM json_each('[` + list(hours-1) + `]')) h`)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(when string) {
		t.Helper()
		rows, err := b.History(context.Background(), Query{Step: Month, From: noon.AddDate(0, 0, -9), To: b.now})
		if err != nil || len(rows) != 1000 || rows[0].Receive.Bytes != hours*100 {
			t.Errorf("%s: %d rows, %v", when, len(rows), err)
		}
	}
	sum("in the ledger's folder")
	b.stop()
	remount(t, volume, unix.MS_RDONLY)
	b.restart()
	b.load(noon)
	sum("in memory")
	b.stop()
	remount(t, volume, 0)
}
