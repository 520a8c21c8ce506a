// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/trusted"
)

// pinPath returns a place to pin at, which is given back at the end.
func pinPath(t *testing.T) string {
	t.Helper()
	need.Root(t)
	path := filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) }) // unless Unpin has
	return path
}

func TestPinned(t *testing.T) {
	path := pinPath(t)
	first, err := Load(Options{PinPath: path})
	must(t, err)
	a, b := take(t, first, 5), take(t, first, 6)
	b.Note = Note{
		OwnQdisc: true, Handover: true, Container: strings.Repeat("c", 239), Interface: "fifteen-bytes-0",
		SeededReceive: Volume{1, 2}, SeededTransmit: Volume{1 << 63, 4},
		MendedReceive: Volume{5, 6}, MendedTransmit: Volume{7, 1 << 63},
	}
	must(t, first.Keep(b))
	first.row(a.Index, 0, receive).TcpSyn = 42
	slots := map[uint16]Slot{a.Index: a, b.Index: b}
	must(t, first.Close())

	pinned, err := PinnedSlots(path)
	must(t, err)
	if len(pinned) != 2 {
		t.Errorf("slots without loading: %+v, want 2", pinned)
	}
	second := load(t, Options{PinPath: path + "/"})
	if _, err := PinnedSlots(path); !errors.Is(err, ErrInUse) {
		t.Errorf("slots of another process: %v, want ErrInUse", err)
	}
	got := map[uint16]Slot{}
	for _, s := range second.Slots() {
		got[s.Index] = s
	}
	if diff := cmp.Diff(slots, got); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
	if rx, _, err := second.Read(a); err != nil || rx.TCPSYN != 42 {
		t.Errorf("read %+v, %v, want 42 SYN", rx, err)
	}
	if c := take(t, second, 7); c.Index != 3 || c.Generation <= b.Generation {
		t.Errorf("slot %+v, want a third", c)
	}
	if err := Unpin(path); !errors.Is(err, ErrInUse) {
		t.Errorf("unpin: %v, want ErrInUse", err)
	}
	must(t, second.Close())

	must(t, Unpin(path))
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	must(t, Unpin(path)) // nothing left to do
	if pinned, err := PinnedSlots(path); err != nil || len(pinned) != 0 {
		t.Errorf("slots where nothing is pinned: %+v, %v", pinned, err)
	}
}

// Programs of one process count on while and after the next has taken over.
func TestCountsWhileAway(t *testing.T) {
	path := pinPath(t)
	first, err := Load(Options{PinPath: path})
	must(t, err)
	take(t, first, 1)
	program, err := first.Ingress.Clone() // as a filter would
	must(t, err)
	defer program.Close()
	must(t, first.Close())
	packet := join(eth(ipv4Type), ipv4(udp, datagram(9)))
	count := func() {
		t.Helper()
		_, err := program.Run(&ebpf.RunOptions{Data: packet})
		must(t, err)
	}
	count()
	second := load(t, Options{PinPath: path})
	count()
	if got := (&lab{Datapath: second}).counted(second.Ingress).Interface.Packets; got != 2 {
		t.Errorf("%d packets, want 2", got)
	}
	must(t, second.Close())
	must(t, Unpin(path))
}

func TestInUse(t *testing.T) {
	path := pinPath(t)
	load(t, Options{PinPath: path})
	_, err := Load(Options{PinPath: path})
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("second load: %v, want ErrInUse", err)
	}
	if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "bpf.pin_path") {
		t.Errorf("error %q says neither where nor what to do", err)
	}
}

func TestIncompatible(t *testing.T) {
	path := pinPath(t)
	d, err := Load(Options{PinPath: path})
	must(t, err)
	must(t, d.Close())
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(t, err)
	defer other.Close()
	pin := filepath.Join(path, Layout, "slots")
	must(t, os.Remove(pin))
	must(t, other.Pin(pin))

	_, err = Load(Options{PinPath: path})
	if !errors.Is(err, ebpf.ErrMapIncompatible) {
		t.Fatalf("load: %v, want ErrMapIncompatible", err)
	}
	if !strings.Contains(err.Error(), filepath.Join(path, Layout)) || !strings.Contains(err.Error(), "nettally detach") {
		t.Errorf("error %q says neither where nor what to do", err)
	}
	// The failed load holds nothing that keeps one from doing it.
	must(t, Unpin(path))
	must(t, load(t, Options{PinPath: path}).Close())
	must(t, Unpin(path))
}

// Counters of a layout that we do not know are not counted beside.
func TestNewer(t *testing.T) {
	path := pinPath(t)
	must(t, ensureBPFFS(path))
	newer := filepath.Join(path, "v99")
	must(t, os.MkdirAll(newer, 0o700))
	must(t, load(t, Options{PinPath: path}).Close()) // there is nothing in it

	slots, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 1000, MaxEntries: 9})
	must(t, err)
	defer slots.Close()
	must(t, slots.Pin(filepath.Join(newer, "slots")))
	must(t, load(t, Options{PinPath: path}).Close()) // nor now

	must(t, slots.Put(uint64(7), make([]byte, 1000)))
	_, err = Load(Options{PinPath: path})
	if !errors.Is(err, ErrNewer) {
		t.Fatalf("load: %v, want ErrNewer", err)
	}
	want := "open counters in " + newer + ": made by a newer nettally: run that one, or `nettally detach` to discard what it counted"
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if pinned, err := PinnedSlots(path); err != nil || len(pinned) != 0 {
		t.Errorf("slots that we know: %+v, %v", pinned, err)
	}
	must(t, Unpin(path))
	must(t, load(t, Options{PinPath: path}).Close())
	must(t, Unpin(path))
}

// What others have pinned, and a bpffs that others have mounted, stay.
func TestUnpinSparesOthers(t *testing.T) {
	path := pinPath(t)
	must(t, os.Mkdir(path, 0o700))
	must(t, unix.Mount("somebody", path, "bpf", 0, "mode=0755"))
	ours := filepath.Join(path, "nettally")
	must(t, load(t, Options{PinPath: ours}).Close())
	must(t, os.Mkdir(filepath.Join(path, "theirs"), 0o700))
	must(t, Unpin(ours))
	entries, err := os.ReadDir(path)
	must(t, err)
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !foreign(e) })
	if len(entries) != 1 || entries[0].Name() != "theirs" || !isBPFFS(path) {
		t.Errorf("left in their bpffs: %v", entries)
	}

	mounted := filepath.Join(filepath.Dir(path), "mounted")
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	must(t, load(t, Options{PinPath: mounted}).Close())
	must(t, os.Mkdir(filepath.Join(mounted, "theirs"), 0o700))
	must(t, Unpin(mounted))
	if !exists(filepath.Join(mounted, "theirs")) || exists(filepath.Join(mounted, Layout)) {
		t.Error("our bpffs lost what others have in it, or has our pins")
	}
	must(t, os.Remove(filepath.Join(mounted, "theirs")))
	must(t, Unpin(mounted))
	if exists(mounted) {
		t.Error("our bpffs is left when nothing is in it")
	}
}

// Where hosts mount the bpffs it is mounted if it is not, and taken off again.
func TestUsualPlace(t *testing.T) {
	need.Root(t)
	const inside = "NETTALLY_TEST_MOUNT_NAMESPACE"
	if os.Getenv(inside) == "" {
		// In a mount namespace, which is of the whole process: the machine's
		// own /sys/fs/bpf stays as it is.
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUsualPlace$")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in a mount namespace: %v\n%s", err, out)
		}
		return
	}
	for unix.Unmount(bpffsRoot, unix.MNT_DETACH) == nil {
	}
	if isBPFFS(bpffsRoot) {
		t.Fatal("there is a bpffs still")
	}
	path := filepath.Join(bpffsRoot, "nettally")
	d := load(t, Options{PinPath: path})
	if !isBPFFS(bpffsRoot) || !exists(filepath.Join(path, Layout, "slots")) {
		t.Error("nothing is pinned in a bpffs")
	}
	must(t, d.Close())
	must(t, Unpin(path))
	if isBPFFS(bpffsRoot) {
		t.Error("our bpffs is still mounted")
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// What somebody else has pinned, or may pin, is neither counted with nor removed.
func TestPinsOfOthers(t *testing.T) {
	const stranger = 1000
	for name, take := range map[string]func(t *testing.T, path string){
		"the pin path is theirs":     func(t *testing.T, path string) { must(t, os.Chown(path, stranger, stranger)) },
		"everyone can write there":   func(t *testing.T, path string) { must(t, os.Chmod(path, os.ModeSticky|0o777)) },
		"the folder above is theirs": func(t *testing.T, path string) { must(t, os.Chown(filepath.Dir(path), stranger, stranger)) },
		"a folder of a layout is":    func(t *testing.T, path string) { must(t, os.Chown(filepath.Join(path, Layout), stranger, stranger)) },
		"a map is": func(t *testing.T, path string) {
			must(t, os.Chown(filepath.Join(path, Layout, "slots"), stranger, stranger))
		},
		"a group can write to a map": func(t *testing.T, path string) { must(t, os.Chmod(filepath.Join(path, Layout, "slots"), 0o660)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := pinPath(t)
			must(t, os.Mkdir(path, 0o755))
			must(t, unix.Mount("somebody", path, "bpf", 0, "mode=0755"))
			path = filepath.Join(path, "nettally")
			must(t, load(t, Options{PinPath: path}).Close())
			take(t, path)
			_, loaded := Load(Options{PinPath: path})
			_, listed := PinnedSlots(path)
			for what, err := range map[string]error{"load": loaded, "list slots": listed, "unpin": Unpin(path)} {
				if !errors.Is(err, trusted.ErrUntrusted) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want a line that wraps ErrUntrusted", what, err)
				}
			}
			if !exists(filepath.Join(path, Layout, "slots")) {
				t.Error("the map was removed")
			}
		})
	}
}
