// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"math/big"
	"regexp"
	"strings"
)

// Counts that a quota can have, by what they are counted in.
var counts = map[string][]string{
	"bytes":       {"receive_bytes", "transmit_bytes", "total_bytes"},
	"packets":     {"receive_packets", "transmit_packets", "total_packets"},
	"requests":    {"receive_tcp_syn", "transmit_tcp_syn", "total_tcp_syn", "receive_http_requests", "transmit_http_requests"},
	"connections": {"tcp_connect_attempts", "tcp_connects", "tcp_accepts", "tcp_connect_failures"},
}

// unitOf returns what a count is in, or "".
func unitOf(count string) string {
	for unit, names := range counts {
		for _, name := range names {
			if name == count {
				return unit
			}
		}
	}
	return ""
}

var (
	byteUnits = map[string]int64{
		"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}
	bitUnits  = map[string]int64{"bit": 1, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9, "Tbit": 1e12}
	manyUnits = map[string]int64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
)

var amountText = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$`)

// amountMax is far more than anything counts up to, and leaves room to add.
var amountMax = big.NewRat(1<<62, 1)

// ParseAmount reads an amount of what a count counts: 100GiB, 1.5TB or 0B of bytes; 1000
// or 5M of all else. A fraction of the smallest part is rounded up.
func ParseAmount(text, count string) (uint64, error) {
	units, want := manyUnits, "a number such as 1000 or 5M"
	if unitOf(count) == "bytes" {
		units, want = byteUnits, "an amount with a unit such as 100GiB or 1.5TB"
	}
	n, err := amount(text, units)
	if err != nil {
		return 0, fmt.Errorf("expected %s, got %q", want, text)
	}
	rounded := new(big.Int).Add(n.Num(), n.Denom())
	rounded.Sub(rounded, big.NewInt(1)).Quo(rounded, n.Denom())
	return rounded.Uint64(), nil
}

// parseRate reads what a count may grow by in a second: 10Mbit/s or 1MB/s of bytes,
// 200/s or 5k/s of all else. bits says that it was in bits.
func parseRate(text, count string) (perSecond float64, bits bool, err error) {
	rest, ok := strings.CutSuffix(text, "/s")
	if !ok {
		return 0, false, errUnfit
	}
	units := manyUnits
	if unitOf(count) == "bytes" {
		units = byteUnits
		if strings.HasSuffix(rest, "bit") {
			units, bits = bitUnits, true
		}
	}
	n, err := amount(rest, units)
	if err != nil {
		return 0, false, err
	}
	perSecond, _ = n.Float64()
	if bits {
		perSecond /= 8
	}
	return perSecond, bits, nil
}

// decimal reports whether an amount or a rate is in B, kB, MB, ….
func decimal(text string) bool { return strings.Contains(text, "B") && !strings.Contains(text, "iB") }

func amount(text string, units map[string]int64) (*big.Rat, error) {
	parts := amountText.FindStringSubmatch(text)
	if parts == nil {
		return nil, errUnfit
	}
	factor, known := units[parts[2]]
	n, ok := new(big.Rat).SetString(parts[1])
	if !known || !ok {
		return nil, errUnfit
	}
	if n.Mul(n, new(big.Rat).SetInt64(factor)).Cmp(amountMax) > 0 {
		return nil, errUnfit
	}
	return n, nil
}
