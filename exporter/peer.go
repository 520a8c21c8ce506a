// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a connection, as far as limits are concerned: a uid of
// this host, an IPv4 address, or an IPv6 network of /64, which is what a site gives to one
// host.
type peer string

// stranger is the peer of all connections whose other end cannot be identified.
const stranger peer = "unknown"

func uidPeer(uid uint32) peer { return peer("uid " + strconv.FormatUint(uint64(uid), 10)) }

func addressPeer(ip netip.Addr) peer {
	if ip.Is6() {
		network, _ := ip.WithZone("").Prefix(64) // cannot fail: 64 is at most 128
		return peer(network.String())
	}
	return peer(ip.String())
}

// unixPeer identifies the process that connected to a unix socket, by its uid at that time.
func unixPeer(c net.Conn) peer {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return stranger
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return stranger
	}
	found := stranger
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			found = uidPeer(cred.Uid)
		}
	})
	if err != nil {
		return stranger
	}
	return found
}

// lookup identifies the other ends of TCP connections. A socket of this network namespace
// has a uid; every other one has its address alone. It is safe for concurrent use.
//
// The kernel finds a socket by its addresses in constant time (inet_diag, since Linux 3.3;
// no capability is needed). Where it has no inet_diag, /proc/net/tcp and tcp6 are read
// instead, which cost the more the more sockets there are: a reading is never more than a
// tenth of the time. Who connected after the last one is a stranger then.
type lookup struct {
	mu     sync.Mutex
	diag   diag
	find   func(flow) (uid uint32, ok bool, err error) // diag's, but in tests
	owners map[flow]uint32                             // of the last reading
	next   time.Time                                   // not read again before
}

func newLookup() *lookup {
	l := &lookup{}
	l.find = l.diag.owner
	return l
}

// flow is a socket by its own address and the one it is connected to.
type flow struct{ local, remote netip.AddrPort }

func (l *lookup) peer(c net.Conn) peer {
	here, ok := c.LocalAddr().(*net.TCPAddr)
	there, alsoOK := c.RemoteAddr().(*net.TCPAddr)
	if !ok || !alsoOK {
		return stranger
	}
	f := flow{local: unmapped(there), remote: unmapped(here)}
	if uid, ok := l.owner(f); ok {
		return uidPeer(uid)
	}
	if f.local.Addr().IsLoopback() {
		return stranger
	}
	return addressPeer(f.local.Addr())
}

func unmapped(a *net.TCPAddr) netip.AddrPort {
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func (l *lookup) owner(f flow) (uid uint32, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	uid, ok, err := l.find(f)
	if err == nil {
		return uid, ok
	}
	if began := time.Now(); !began.Before(l.next) {
		l.owners = socketOwners(f.remote.Port())
		l.next = time.Now().Add(9 * time.Since(began))
	}
	uid, ok = l.owners[f]
	return uid, ok
}

func (l *lookup) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.diag.close()
}

// socketOwners reads who owns the sockets that are connected to a port, from /proc/net.
func socketOwners(port uint16) map[flow]uint32 {
	owners := map[flow]uint32{}
	for _, name := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		file, err := os.Open(name)
		if err != nil {
			continue // no IPv6
		}
		readOwners(file, port, owners)
		file.Close()
	}
	return owners
}

// readOwners reads a file such as /proc/net/tcp: number, local address, remote address,
// state, queues, timer, retransmissions, uid, time-out, inode, and more.
func readOwners(file io.Reader, port uint16, owners map[flow]uint32) {
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || !strings.HasSuffix(fields[2], suffix) || fields[9] == "0" {
			continue // without an inode nobody has it open any more, and its uid is 0
		}
		local, err := hexAddress(fields[1])
		remote, err2 := hexAddress(fields[2])
		uid, err3 := strconv.ParseUint(fields[7], 10, 32)
		if err == nil && err2 == nil && err3 == nil {
			owners[flow{local, remote}] = uint32(uid)
		}
	}
}

// hexAddress reads an address as /proc/net/tcp has it: words in the byte order of the host.
func hexAddress(text string) (netip.AddrPort, error) {
	address, portText, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(portText, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	bytes, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(bytes); i += 4 {
		binary.NativeEndian.PutUint32(bytes[i:], binary.BigEndian.Uint32(bytes[i:]))
	}
	ip, ok := netip.AddrFromSlice(bytes)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}
