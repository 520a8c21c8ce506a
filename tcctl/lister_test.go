// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// qdiscMessage is a qdisc as the kernel sends it.
func qdiscMessage(tb testing.TB, ifindex int, kind string) []byte {
	tb.Helper()
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.TCA_KIND, Data: append([]byte(kind), 0)},
		{Type: unix.TCA_HW_OFFLOAD, Data: []byte{0}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return append(tcmsg(ifindex, clsactHandle, clsactParent, 0), attributes...)
}

// Interrupted dumps and failed reads cannot be had from the kernel at will.
func TestDump(t *testing.T) {
	answer := func(request netlink.Message, ifindex int, flags netlink.HeaderFlags) netlink.Message {
		m := request
		m.Header.Flags = flags
		m.Data = qdiscMessage(t, ifindex, "clsact")
		return m
	}
	tests := map[string]struct {
		answer func(try int, request netlink.Message) []netlink.Message
		want   []qdisc
		err    error
	}{
		"interrupted once": {
			answer: func(try int, request netlink.Message) []netlink.Message {
				if try == 1 {
					return []netlink.Message{answer(request, 1, netlink.DumpInterrupted)}
				}
				return []netlink.Message{answer(request, 2, 0)}
			},
			want: []qdisc{{ifindex: 2, kind: "clsact"}},
		},
		"interrupted always": {
			answer: func(_ int, request netlink.Message) []netlink.Message {
				return []netlink.Message{answer(request, 1, netlink.DumpInterrupted)}
			},
			err: errInterrupted,
		},
		"left from an earlier request": {
			answer: func(try int, request netlink.Message) []netlink.Message {
				if try == 1 {
					m := answer(request, 1, 0)
					m.Header.Sequence--
					return []netlink.Message{m}
				}
				return []netlink.Message{answer(request, 2, 0)}
			},
			want: []qdisc{{ifindex: 2, kind: "clsact"}},
		},
		"short": {
			answer: func(_ int, request netlink.Message) []netlink.Message {
				request.Data = request.Data[:8]
				return []netlink.Message{request}
			},
			err: errShort,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			tries := 0
			var request netlink.Message
			conn := nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
				tries++
				if len(requests) > 0 {
					request = requests[0]
				}
				return test.answer(tries, request), nil
			})
			defer conn.Close()
			got, err := lister{conn}.qdiscs()
			if !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(qdisc{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(qdiscMessage(f, 1, "clsact"))
	f.Add(qdiscMessage(f, 1, "bpf"))
	f.Add(make([]byte, sizeofTcmsg))
	f.Add([]byte{})
	f.Add([]byte("12-ingress"))
	f.Fuzz(func(t *testing.T, data []byte) {
		parseQdisc(data)
		parseFilter(data)
		if p, ok := parsePlace(string(data)); ok && p.name() != string(data) {
			t.Errorf("%q is the pin of %v", data, p)
		}
	})
}
