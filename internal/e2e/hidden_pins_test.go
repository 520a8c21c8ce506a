// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
	"github.com/nettally/nettally/tcctl"
)

// hide mounts another bpffs over the pins of a nettally. The function takes it off again.
func (d *daemon) hide() (show func()) {
	d.t.Helper()
	if err := unix.Mount("bpf", d.pins, "bpf", 0, "mode=0700"); err != nil {
		d.t.Fatal(err)
	}
	return func() {
		d.t.Helper()
		if err := unix.Unmount(d.pins, 0); err != nil {
			d.t.Fatal(err)
		}
	}
}

// onTCX returns how many programs are on the hooks of an interface.
func onTCX(t *testing.T, n *testnet.Namespace, name string) (count int) {
	t.Helper()
	index := nettest.Must(n.LinkByName(name))(t).Attrs().Index
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		err := n.Do(func() error {
			found, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: hook})
			if err == nil {
				count += len(found.Programs)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return count
}

// Another bpffs is mounted over the pins of a nettally that was killed. The next one finds its
// programs on tcx without them and puts its own in their place, so that each packet is counted
// by one; and `detach` leaves none.
func TestHiddenPins(t *testing.T) {
	need.Root(t)
	need.Kernel(t, "tcx", tcctl.HaveTCX())
	host := nettest.Host(t)
	c := nettest.Container(t, host, testnet.ContainerOptions{LikeDocker: true})
	peer := nettest.Agent(t, host)
	d := startDaemon(t, on{host}, only(c)+"\nattach: {mode: tcx}")
	has := func(what string, want int) {
		t.Helper()
		if got := onTCX(t, host, c.Interfaces[0].HostName); got != want {
			t.Errorf("%s: %d programs on tcx, want %d", what, got, want)
		}
	}
	d.counted(c.ID, 1)
	d.exactly(c, peer)
	has("at first", 2)
	d.kill()
	has("after a crash", 2)

	show := d.hide()
	d.start()
	d.counted(c.ID, 1)
	has("after another start", 2)
	if !strings.Contains(d.log.String(), "took off programs of an earlier run") {
		t.Error("the log says nothing of that")
	}
	d.exactly(c, peer)
	d.kill()

	showBoth := d.hide()
	out, err := d.run("detach")
	if want := "took filters off 1 interfaces\n"; err != nil || out != want {
		t.Errorf("detach: %v, printed %q, want %q", err, out, want)
	}
	has("after detach", 0)
	showBoth()
	show()
	if out, err := d.run("detach"); err != nil { // of the first's pins, with dead links
		t.Errorf("detach: %v: %s", err, out)
	}
	has("at the end", 0)
}
