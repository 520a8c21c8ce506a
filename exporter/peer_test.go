// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/testnet/need"
)

// visitor is a uid that owns nothing here.
const visitor = 61_234

// as calls a function whose sockets are a uid's.
func as(t *testing.T, uid int, call func()) {
	t.Helper()
	need.Root(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SetfsuidRetUid(uid)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.SetfsuidRetUid(before)
	call()
}

// meet returns both ends of a connection, of the visitor unless it is one of a unix socket.
func meet(t *testing.T, network, listen, dial string) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if network == "unix" {
		dial = listen
	} else {
		dial = net.JoinHostPort(dial, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	connect := func() { client, err = net.Dial(network, dial) }
	if network == "unix" {
		connect()
	} else {
		as(t, visitor, connect)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// withoutDiag is a lookup on a kernel that has no inet_diag.
func withoutDiag() *lookup {
	return &lookup{find: func(flow) (uint32, bool, error) { return 0, false, errNoDiag }}
}

func TestPeerOfTCP(t *testing.T) {
	for _, kind := range []struct {
		name string
		make func() *lookup
	}{
		{"inet_diag", newLookup},
		{"proc", withoutDiag},
	} {
		for _, test := range []struct{ name, listen, dial string }{
			{"IPv4", "127.0.0.1:0", "127.0.0.1"},
			{"another loopback address", "0.0.0.0:0", "127.7.7.7"},
			{"IPv6", "[::1]:0", "::1"},
			{"IPv4 at a listener for both", "[::]:0", "127.0.0.1"},
		} {
			t.Run(kind.name+"/"+test.name, func(t *testing.T) {
				l := kind.make()
				defer l.close()
				client, server := meet(t, "tcp", test.listen, test.dial)
				if got := l.peer(server); got != uidPeer(visitor) {
					t.Errorf("peer %q", got)
				}
				// Some kernels say that a socket that was closed is uid 0's.
				client.Close()
				l.next = time.Time{}
				if got := l.peer(server); got != stranger {
					t.Errorf("peer %q after it closed", got)
				}
			})
		}
	}
}

// Reading /proc is rationed, and who comes in between is a stranger.
func TestPeerByProcIsRationed(t *testing.T) {
	l := withoutDiag()
	_, first := meet(t, "tcp", "127.0.0.1:0", "127.0.0.1")
	if got := l.peer(first); got != uidPeer(visitor) {
		t.Fatalf("peer %q", got)
	}
	l.next = time.Now().Add(time.Hour)
	_, second := meet(t, "tcp", "127.0.0.1:0", "127.0.0.1")
	if got := l.peer(second); got != stranger {
		t.Errorf("peer %q without a reading", got)
	}
	if got := l.peer(first); got != uidPeer(visitor) {
		t.Errorf("peer %q of the last reading", got)
	}
}

// A socket bound to the loopback interface is found, too.
func TestPeerBoundToDevice(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.BindToDevice(fd, "lo"); err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l := newLookup()
	defer l.close()
	if got, want := l.peer(server), uidPeer(uint32(unix.Getuid())); got != want {
		t.Errorf("peer %q, want %q", got, want)
	}
}

func TestPeerOfUnix(t *testing.T) {
	_, server := meet(t, "unix", filepath.Join(t.TempDir(), "s"), "")
	if got, want := unixPeer(server), uidPeer(uint32(unix.Getuid())); got != want {
		t.Errorf("peer %q, want %q", got, want)
	}
}

// addressed is a connection with addresses that a test names.
type addressed struct {
	net.Conn
	local, remote string
}

func (c addressed) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.local))
}
func (c addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.remote))
}

func TestPeerOfAddress(t *testing.T) {
	l := withoutDiag()
	for remote, want := range map[string]peer{
		"192.0.2.7:4000":          "192.0.2.7",
		"[::ffff:192.0.2.7]:4000": "192.0.2.7",
		"[2001:db8:1:2:3::4]:40":  "2001:db8:1:2::/64",
		"[2001:db8:1:2:9::9]:41":  "2001:db8:1:2::/64",
		"[2001:db8:1:3::4]:40":    "2001:db8:1:3::/64",
		"[fe80::1%eth0]:40":       "fe80::/64",
		"127.0.0.1:1":             stranger, // nobody listens there
		"[::1]:1":                 stranger,
	} {
		if got := l.peer(addressed{local: "192.0.2.1:9819", remote: remote}); got != want {
			t.Errorf("%s: peer %q, want %q", remote, got, want)
		}
	}
}

func TestReadOwners(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return // the file is of a little-endian host
	}
	const file = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:265B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31 1 0 100 0 0 10 0
   1: 0100007F:A001 0100007F:265B 01 00000000:00000000 00:00000000 00000000  1000        0 32 1 0 20 4 30 10 -1
   2: 0100007F:A002 0100007F:265B 06 00000000:00000000 03:00000F9C 00000000     0        0 0 3 0
   3: 0100007F:A003 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1001        0 34 1 0 20 4 30 10 -1
   4: 00000000000000000000000001000000:A004 00000000000000000000000001000000:265B 01 00000000:00000000 00:00000000 00000000  1002        0 35 1 0
   5: 0000000000000000FFFF00000100007F:A005 0000000000000000FFFF00000100007F:265B 01 00000000:00000000 00:00000000 00000000  1003        0 36 1 0
   6: XX:A005 0100007F:265B 01 00000000:00000000 00:00000000 00000000  1004        0 36 1 0
`
	got := map[flow]uint32{}
	readOwners(strings.NewReader(file), 9819, got)
	at := netip.MustParseAddrPort
	want := map[flow]uint32{
		{at("127.0.0.1:40961"), at("127.0.0.1:9819")}: 1000,
		{at("[::1]:40964"), at("[::1]:9819")}:         1002,
		{at("127.0.0.1:40965"), at("127.0.0.1:9819")}: 1003,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A client may reach an IPv4 address by a socket of IPv6, and may have said that it sends no
// more: it is the same peer.
func TestPeerOfMappedAddress(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, make := range []func() *lookup{newLookup, withoutDiag} {
		var fd int
		as(t, visitor, func() { fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet6{Port: listener.Addr().(*net.TCPAddr).Port, Addr: netip.MustParseAddr("::ffff:127.0.0.1").As16()}
		if err := unix.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		l := make()
		defer l.close()
		if got := l.peer(server); got != uidPeer(visitor) {
			t.Errorf("peer %q", got)
		}
	}
}
