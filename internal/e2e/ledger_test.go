// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// keeping is a place whose nettally keeps its ledger in a folder.
type keeping struct {
	place
	folder string
}

func (k keeping) Command(name string, args ...string) *exec.Cmd {
	return k.place.Command("env", append([]string{"NETTALLY_STATE_DIR=" + k.folder, name}, args...)...)
}

// kept is a host whose nettally keeps a ledger on a disk of its own, with something that
// happens to it.
type kept struct {
	t          *testing.T
	fault      fault
	host       *testnet.Namespace
	peer       *testnet.Agent
	disk       string
	d          *daemon
	parent     string // the containers' cgroup
	started    int
	containers []*testnet.Container // that run
	ended      usages               // of those that ended
	written    usages               // before the fault
	lost       usages               // of that, with a damaged file
}

// fault is something that happens to a ledger.
type fault struct {
	name  string
	first bool // there is none before
	stop  bool // it happens while no nettally runs
	begin func(k *kept)
	end   func(k *kept) // nil: nettally puts an end to it by itself
	mend  string        // what `nettally check` tells to do
}

func faults() []fault {
	const aside = "`nettally run` sets it aside and takes over what can be read"
	return []fault{
		{name: "full", begin: fill, end: free, mend: "0 MiB are free; free 64 MiB or set state_dir to another folder"},
		{
			name: "read-only", stop: true,
			begin: func(k *kept) { k.remount(unix.MS_RDONLY) },
			end:   func(k *kept) { k.remount(0) },
			mend:  "its file system is read-only; remount it or set state_dir to another folder",
		},
		{
			name: "no folder", first: true, stop: true,
			begin: func(k *kept) { k.check(os.WriteFile(k.folder(), nil, 0o600)) },
			end:   func(k *kept) { k.check(os.Remove(k.folder())) },
			mend:  "is no folder; set state_dir to a folder",
		},
		{name: "garbage while it runs", begin: garble},
		{name: "garbage while it is stopped", stop: true, begin: garble, mend: aside},
	}
}

// Whatever happens to the ledger, counting goes on, exactly, over a crash, too. Once the
// fault is over the history has everything, once. The faults are gone through side by
// side: each has to wait for the ledger's next attempt to write.
func TestLedgerFaults(t *testing.T) {
	t.Parallel()
	need.Root(t)
	var all []*kept
	for _, f := range faults() {
		all = append(all, newKept(t, f))
	}
	for _, phase := range []func(*kept){
		(*kept).before, (*kept).happens, (*kept).noticed, (*kept).crash, (*kept).over, (*kept).after,
	} {
		for _, k := range all {
			phase(k)
		}
	}
}

func newKept(t *testing.T, f fault) *kept {
	t.Helper()
	k := &kept{
		t: t, fault: f, host: nettest.Host(t), disk: filepath.Join(t.TempDir(), "disk"),
		parent: fmt.Sprintf("/nettally-ledger-%d-%s", os.Getpid(), strings.ReplaceAll(f.name, " ", "-")),
		ended:  usages{},
	}
	k.check(os.Mkdir(k.disk, 0o700))
	k.check(unix.Mount("tmpfs", k.disk, "tmpfs", 0, "size=70m"))
	t.Cleanup(func() {
		if err := unix.Unmount(k.disk, 0); err != nil {
			t.Errorf("%s: unmount: %v", f.name, err)
			_ = unix.Unmount(k.disk, unix.MNT_DETACH)
		}
	})
	if f.first {
		f.begin(k)
	}
	k.d = startDaemon(t, keeping{on{k.host}, k.folder()},
		fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: \"off\"}\nwatch: {include: [%q]}", k.parent+"/*"))
	k.peer = nettest.Agent(t, k.host)
	k.start()
	k.start()
	return k
}

// before has something written, which is done at the end of nettally at the latest.
func (k *kept) before() {
	k.t.Helper()
	k.send(100)
	k.exact()
	if k.fault.first {
		return
	}
	k.d.stop()
	if k.fault.stop {
		k.fault.begin(k)
		k.told()
	}
	k.d.start()
	if !k.fault.stop {
		k.settled()
		k.written = k.exact()
		k.fault.begin(k)
	}
}

// happens has a container count, another one start and one end.
func (k *kept) happens() {
	k.t.Helper()
	k.send(200)
	k.start()
	k.send(50)
	k.exact()
	last := k.containers[0]
	k.containers = k.containers[1:]
	k.check(last.Close())
	k.d.poll("stopped", func() error {
		c, err := k.d.container(last.ID)
		if err == nil && (c.State != "stopped" || c.Receive.Protocols.UDP.Packets != 2*350) {
			err = fmt.Errorf("%s: it is %s: %+v", k.fault.name, c.State, c.Receive.Protocols.UDP)
		}
		k.ended[last.ID] = usageOf(c)
		return err
	})
}

// noticed waits until nettally has seen the fault, and said so once.
func (k *kept) noticed() {
	k.t.Helper()
	if k.fault.end == nil {
		k.setAside()
		return
	}
	failures := 1.0
	if k.fault.stop {
		failures = 2 // at the start, and once more
	}
	k.d.poll("noticed", func() error {
		up, failed := k.metric("nettally_ledger_up"), k.metric("nettally_ledger_flush_failures_total")
		if up != 0 || failed < failures {
			return fmt.Errorf("%s: up %v, %v failures", k.fault.name, up, failed)
		}
		return nil
	})
	k.said("usage is not kept on disk; counting goes on", 1)
	k.told()
	if k.fault.first {
		return
	}
	if before, err := k.history(); err != nil || len(before) != 2 {
		k.t.Errorf("%s: history of before: %v, %v", k.fault.name, before, err)
	}
}

// setAside waits until a damaged file was replaced and the new one written.
func (k *kept) setAside() {
	k.t.Helper()
	k.d.poll("set aside", func() error {
		_, _ = k.history() // whoever reads it finds it damaged
		up, damaged := k.metric("nettally_ledger_up"), k.metric("nettally_ledger_damaged_total")
		if up != 1 || damaged != 1 {
			return fmt.Errorf("%s: up %v, %v damaged", k.fault.name, up, damaged)
		}
		return nil
	})
	found := nettest.Must(filepath.Glob(k.path() + ".damaged-*Z"))(k.t)
	if len(found) != 1 {
		k.t.Fatalf("%s: set aside: %q", k.fault.name, found)
	}
	k.said("the ledger is damaged; it was set aside", 1)
	k.said("set_aside="+found[0], 1)
	if !k.fault.stop {
		// It is known to have been part of some hour, and does not become part of this one.
		k.lost = k.written
	}
	k.settled()
}

// crash kills nettally, which is started again before the fault is over.
func (k *kept) crash() {
	k.t.Helper()
	k.d.kill()
	k.send(70)
	k.d.start()
	k.exact()
}

func (k *kept) over() {
	k.t.Helper()
	if k.fault.end != nil {
		k.fault.end(k)
	}
	k.send(30)
}

// after expects all that was counted to be kept, now and after a restart.
func (k *kept) after() {
	k.t.Helper()
	k.settled()
	if k.metric("nettally_ledger_up") != 1 {
		k.t.Errorf("%s: the ledger is not up", k.fault.name)
	}
	if k.fault.end != nil {
		k.said("usage is not kept on disk; counting goes on", 2) // by each process
		k.said("usage is kept on disk again", 1)
	}
	k.fault.mend = ""
	k.told()
	k.d.stop()
	k.d.start()
	k.settled()
}

// told expects `nettally check` to name the ledger and what to do.
func (k *kept) told() {
	k.t.Helper()
	want := `(?m)^warning  ledger .*` + regexp.QuoteMeta(k.folder()) + `.*` + regexp.QuoteMeta(k.fault.mend) + `$`
	if k.fault.mend == "" {
		want = `(?m)^ok       ledger .*` + regexp.QuoteMeta(k.path()) + `$`
	}
	k.d.poll("told by check", func() error {
		if out, err := k.d.run("check"); err != nil || !regexp.MustCompile(want).MatchString(out) {
			return fmt.Errorf("%s: check: %v, %s\nwant %s", k.fault.name, err, out, want)
		}
		return nil
	})
}

// said expects so many lines of the log.
func (k *kept) said(text string, times int) {
	k.t.Helper()
	k.d.poll(fmt.Sprintf("said %q %d times", text, times), func() error {
		if got := strings.Count(k.d.log.String(), text); got != times {
			return fmt.Errorf("%s: %d times", k.fault.name, got)
		}
		return nil
	})
}

func (k *kept) check(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatalf("%s: %v", k.fault.name, err)
	}
}

func (k *kept) folder() string { return filepath.Join(k.disk, "state") }

func (k *kept) path() string { return filepath.Join(k.folder(), "ledger.db") }

// start starts one more container.
func (k *kept) start() {
	k.t.Helper()
	k.started++
	// No other nettally on the machine may know it by the same.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", k.parent, k.started))
	id := hex.EncodeToString(sum[:])
	k.containers = append(k.containers, nettest.Container(k.t, k.host, testnet.ContainerOptions{
		ID: id, Cgroup: k.parent + "/" + id, LikeDocker: true,
	}))
	k.d.counted(id, 1)
}

// send sends datagrams both ways between the host and every container that runs.
func (k *kept) send(count int) {
	k.t.Helper()
	for _, c := range k.containers {
		i := c.Interfaces[0]
		up, down := nettest.Must(k.peer.Listen("udp", i.HostIPv4))(k.t), nettest.Must(c.Listen("udp", i.IPv4))(k.t)
		if err := c.SendUDP(up.Addr, count, 100); err != nil {
			k.t.Fatal(err)
		}
		if err := k.peer.SendUDP(down.Addr, 2*count, 100); err != nil {
			k.t.Fatal(err)
		}
	}
}

// usages are numbers of both directions, by container.
type usages map[string][2]exporter.HistoryCounts

// counted returns what nettally has counted of each container. It has to be what the
// kernel says of those that run, since nothing is segmented here, and unchanged of the
// others.
func (k *kept) counted() (usages, error) {
	all := usages{}
	listed := map[string]exporter.Container{}
	for _, c := range k.d.list().Containers {
		listed[c.ID] = c
		all[c.ID] = usageOf(c)
	}
	for id, was := range k.ended {
		if diff := cmp.Diff(was, all[id]); diff != "" || listed[id].State != "stopped" {
			return nil, fmt.Errorf("%s: ended container %.12s is %s (-then +now):\n%s", k.fault.name, id, listed[id].State, diff)
		}
	}
	for _, running := range k.containers {
		kernel := nettest.Must(testnet.InterfaceCounters(running.PID()))(k.t)["eth0"]
		c := listed[running.ID]
		got := testnet.Counters{
			ReceiveBytes: c.Receive.Bytes, ReceivePackets: c.Receive.Packets,
			TransmitBytes: c.Transmit.Bytes, TransmitPackets: c.Transmit.Packets,
		}
		if diff := cmp.Diff(kernel, got); diff != "" || c.State != "running" {
			return nil, fmt.Errorf("%s: container %.12s, %s (-kernel +ours):\n%s", k.fault.name, running.ID, c.State, diff)
		}
	}
	return all, nil
}

// usageOf is what is to be in the history: what was seeded belongs to no hour.
func usageOf(c exporter.Container) (both [2]exporter.HistoryCounts) {
	for i, n := range []exporter.Counts{c.Receive, c.Transmit} {
		both[i] = exporter.HistoryCounts{Bytes: n.Bytes - n.SeededBytes, Packets: n.Packets - n.SeededPackets, TCPSYN: n.TCPSYN}
	}
	return both
}

func (k *kept) exact() (exact usages) {
	k.t.Helper()
	k.d.poll("exact", func() (err error) {
		exact, err = k.counted()
		return err
	})
	return exact
}

// history returns what the history has of each container.
func (k *kept) history() (usages, error) {
	out, err := k.d.run("history", "-o", "json", "--by", "container", "--step", "month")
	if err != nil {
		return nil, fmt.Errorf("history: %w: %s", err, out)
	}
	var h exporter.History
	if err := json.Unmarshal([]byte(out), &h); err != nil {
		return nil, err
	}
	all := usages{}
	for _, row := range h.History {
		all[row.Key] = plus(all[row.Key], [2]exporter.HistoryCounts{row.Receive, row.Transmit})
	}
	return all, nil
}

func plus(a, b [2]exporter.HistoryCounts) [2]exporter.HistoryCounts {
	for i := range a {
		a[i].Bytes += b[i].Bytes
		a[i].Packets += b[i].Packets
		a[i].TCPSYN += b[i].TCPSYN
	}
	return a
}

// settled waits until the history has what was counted, once, but for what was lost with
// a damaged file.
func (k *kept) settled() {
	k.t.Helper()
	k.d.poll("what was counted is in the history", func() error {
		counted, err := k.counted()
		if err != nil {
			return err
		}
		history, err := k.history()
		for id, lost := range k.lost {
			history[id] = plus(history[id], lost)
		}
		if diff := cmp.Diff(counted, history); err == nil && diff != "" {
			err = fmt.Errorf("%s (-counted +history):\n%s", k.fault.name, diff)
		}
		return err
	})
}

func (k *kept) metric(name string) float64 {
	k.t.Helper()
	found := nettest.Must(parse(nettest.Must(k.d.get("/metrics"))(k.t)))(k.t)
	value, ok := found[name]
	if !ok {
		k.t.Fatalf("no metric %s", name)
	}
	return value
}

func (k *kept) remount(flags uintptr) {
	k.check(unix.Mount("", k.disk, "", unix.MS_REMOUNT|flags, ""))
}

// fill takes all space that is left on the disk.
func fill(k *kept) {
	f := nettest.Must(os.Create(filepath.Join(k.disk, "full")))(k.t)
	defer f.Close()
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		if errors.Is(err, unix.ENOSPC) {
			size /= 4
			continue
		}
		k.check(err)
	}
}

func free(k *kept) { k.check(os.Remove(filepath.Join(k.disk, "full"))) }

// garble writes garbage over every page.
func garble(k *kept) {
	info := nettest.Must(os.Stat(k.path()))(k.t)
	f := nettest.Must(os.OpenFile(k.path(), os.O_WRONLY, 0))(k.t)
	defer f.Close()
	nettest.Must(f.WriteString(strings.Repeat("garbage ", int(info.Size())/8)))(k.t)
}
