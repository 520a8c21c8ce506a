// SPDX-License-Identifier: Apache-2.0

package procnet

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/usage"
)

const devHead = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
`

// outcome is what a parser returns: its value or its error.
func outcome[T any](found T, err error) any {
	if err != nil {
		return err.Error()
	}
	return found
}

func TestParse(t *testing.T) {
	dev := func(text string) any { return outcome(parseDev([]byte(text))) }
	snmp := func(text string) any { return outcome(parseSNMP([]byte(text))) }
	snmp6 := func(text string) any {
		found, err := parseSNMP6([]byte(text))
		return outcome(fmt.Sprint(found), err)
	}
	igmp := func(text string) any { return outcome(parseIGMP([]byte(text))) }
	const six = "ifIndex \t7\nIp6InReceives\t1\nIp6InOctets\t2\nIp6OutRequests\t3\nIp6OutOctets\t4\nIcmp6InMsgs\t9\n"
	const opens = "parse net/snmp: expected ActiveOpens and PassiveOpens among those of Tcp"
	const wants6 = "parse net/dev_snmp6: expected ifIndex, Ip6InReceives, Ip6InOctets, Ip6OutRequests and Ip6OutOctets"

	for name, test := range map[string]struct{ want, got any }{
		"dev": {
			map[string]deviceReading{
				"lo": {},
				"eth0": {
					duplex{receive: volume{Bytes: 18446744073709551615, Packets: 2}, transmit: volume{Bytes: 3, Packets: 4}},
					losses{receive: usage.Loss{Errors: 6, Dropped: 7}, transmit: usage.Loss{Errors: 8, Dropped: 9}},
				},
			},
			dev(devHead + "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n" +
				"  eth0:18446744073709551615 2 6 7 5 5 5 5 3 4 8 9 5 5 5 5\n"),
		},
		"dev, nothing":       {map[string]deviceReading{}, dev("")},
		"dev, short":         {`parse net/dev: line 3: expected a name and 16 numbers, got " eth0: 1 2"`, dev(devHead + " eth0: 1 2")},
		"dev, no name":       {`parse net/dev: line 3: expected a name and 16 numbers, got ": 1"`, dev(devHead + ": 1")},
		"dev, negative":      {`parse net/dev: line 3: expected a number, got "-1"`, dev(devHead + "e: -1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0")},
		"snmp":               {connections{active: 5, passive: 6}, snmp("Ip: A\nIp: 1\nTcp: MaxConn ActiveOpens PassiveOpens New\nTcp: -1 5 6 7\nUdp: X\nUdp: 1\n")},
		"snmp, other order":  {connections{active: 6, passive: 5}, snmp("Tcp: PassiveOpens ActiveOpens\nTcp: 5 6\n")},
		"snmp, no values":    {"parse net/snmp: expected two lines of Tcp", snmp("Tcp: ActiveOpens PassiveOpens\n")},
		"snmp, few values":   {opens, snmp("Tcp: ActiveOpens PassiveOpens\nTcp: 5\n")},
		"snmp, not a number": {`parse net/snmp: ActiveOpens: expected a number, got "x"`, snmp("Tcp: ActiveOpens PassiveOpens\nTcp: x 5\n")},
		"snmp6":              {"{7 {{2 1} {4 3}}}", snmp6(six)},
		"snmp6, incomplete":  {wants6, snmp6(strings.ReplaceAll(six, "Ip6InOctets", "Ip6InOctet"))},
		"snmp6, no index":    {wants6, snmp6(strings.ReplaceAll(six, "\t7\n", "\t0\n"))},
		"snmp6, no number":   {`parse net/dev_snmp6: Ip6OutOctets: expected a number, got "x"`, snmp6(strings.ReplaceAll(six, "\t4\n", "\tx\n"))},
		"igmp": {
			map[string]int{"lo": 1, "eth0": 12},
			igmp("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n12\teth0      :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"),
		},
		"igmp, no name":  {`parse net/igmp: line 2: expected an index and a name, got "12 :"`, igmp("Idx\n12 :")},
		"igmp, no index": {`parse net/igmp: line 2: expected an index, got "x"`, igmp("Idx\nx eth0 : 1")},
		"igmp, zero":     {`parse net/igmp: line 2: expected an index, got "0"`, igmp("Idx\n0 eth0 : 1")},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.got, cmp.AllowUnexported(deviceReading{}, duplex{}, losses{}, connections{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// This kernel's own files can be read.
func TestParseOwn(t *testing.T) {
	f := files{"/proc"}
	number, err := f.namespace(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if host, err := f.host(); err != nil || host != number {
		t.Errorf("our own namespace is %d, %v, and by our pid %d", host, err, number)
	}
	if _, err := f.read(os.Getpid(), number); err != nil {
		t.Error(err)
	}
	if _, err := f.read(os.Getpid(), number+1); err != errElsewhere {
		t.Errorf("another namespace: %v, want %v", err, errElsewhere)
	}
}

// FuzzParse says that no text makes a parser panic, and that what net/dev says of an
// interface is what it is told of it.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"net/dev", "net/snmp", "net/igmp", "net/dev_snmp6/lo"} {
		if text, err := os.ReadFile("/proc/self/" + name); err == nil {
			f.Add(text, uint64(1), uint64(2))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, bytes, packets uint64) {
		_, _ = parseSNMP(text)
		_, _ = parseSNMP6(text)
		_, _ = parseIGMP(text)
		_, _ = parseDev(text)
		line := fmt.Sprintf("%6s:%8d %7d 0 0 0 0 0 0 %d %d 0 0 0 0 0 0\n", "eth0", bytes, packets, packets, bytes)
		found, err := parseDev([]byte(devHead + line))
		want := duplex{receive: volume{Bytes: bytes, Packets: packets}, transmit: volume{Bytes: packets, Packets: bytes}}
		if err != nil || found["eth0"].duplex != want {
			t.Errorf("%q is %+v, %v", line, found, err)
		}
	})
}
