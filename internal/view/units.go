// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"math"
	"strconv"
)

// Unit is what amounts of traffic are shown in.
type Unit struct {
	Bits bool // or bytes
	SI   bool // powers of 1000, or of 1024
}

// Units are all units, in the order in which a key goes through them, by their names.
var Units = []struct {
	Name string
	Unit Unit
}{
	{"bytes", Unit{}},
	{"bytes-si", Unit{SI: true}},
	{"bits", Unit{Bits: true, SI: true}},
	{"bits-iec", Unit{Bits: true}},
}

// ParseUnit reads the name of a unit.
func ParseUnit(text string) (Unit, error) {
	for _, u := range Units {
		if u.Name == text {
			return u.Unit, nil
		}
	}
	return Unit{}, fmt.Errorf("expected bytes, bytes-si, bits or bits-iec, got %q", text)
}

// String returns what ParseUnit reads.
func (u Unit) String() string {
	for _, named := range Units {
		if named.Unit == u {
			return named.Name
		}
	}
	return ""
}

// Next returns the unit after this one.
func (u Unit) Next() Unit {
	for i, named := range Units {
		if named.Unit == u {
			return Units[(i+1)%len(Units)].Unit
		}
	}
	return Unit{}
}

// Symbol returns what the unit is called without a prefix: "B" or "bit".
func (u Unit) Symbol() string {
	if u.Bits {
		return "bit"
	}
	return "B"
}

const prefixes = " KMGTPEZ"

// Split returns bytes as a number of at most four characters and its unit: "1.24", "MiB".
func (u Unit) Split(bytes float64) (number, unit string) {
	base, infix := 1024.0, "i"
	if u.SI {
		base, infix = 1000, ""
	}
	if u.Bits {
		bytes *= 8
	}
	n, power := bytes, 0
	for n >= 999.5 && power < len(prefixes)-1 {
		n, power = n/base, power+1
	}
	if power == 0 {
		if bytes > 0 && bytes < 0.5 {
			return "<1", u.Symbol()
		}
		return strconv.FormatFloat(math.Round(n), 'f', 0, 64), u.Symbol()
	}
	prefix := prefixes[power : power+1]
	if u.SI && prefix == "K" {
		prefix = "k"
	}
	return Three(n), prefix + infix + u.Symbol()
}

// Format returns bytes with their unit: "1.24 MiB".
func (u Unit) Format(bytes float64) string {
	number, unit := u.Split(bytes)
	return number + " " + unit
}

// Number returns a number of things in at most five characters: "999", "1.24k".
func Number(n float64) string {
	power := 0
	for n >= 999.5 && power < len(prefixes)-1 {
		n, power = n/1000, power+1
	}
	if power == 0 {
		return strconv.FormatFloat(math.Round(n), 'f', 0, 64)
	}
	prefix := prefixes[power : power+1]
	if prefix == "K" {
		prefix = "k"
	}
	return Three(n) + prefix
}

// PerSecond returns a number of things per second, with a decimal where there are few: "0.3".
func PerSecond(n float64) string {
	switch {
	case n > 0 && n < 0.05:
		return "<0.1"
	case n > 0 && n < 9.95:
		return strconv.FormatFloat(n, 'f', 1, 64)
	}
	return Number(n)
}

// Three returns a number below 1000 with three digits.
func Three(n float64) string {
	switch {
	case n < 9.995:
		return strconv.FormatFloat(n, 'f', 2, 64)
	case n < 99.95:
		return strconv.FormatFloat(n, 'f', 1, 64)
	}
	return strconv.FormatFloat(n, 'f', 0, 64)
}
