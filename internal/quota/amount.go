// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"fmt"
	"math"
	"strings"

	"github.com/docker/go-units"
)

// Amount writes an amount as people read it: "1.5GiB", "200 packets", "10Mbit/s". decimal is
// for bytes: "1.5GB".
func Amount(n float64, unit string, decimal bool) string {
	what, rate := strings.CutSuffix(unit, "/s")
	per := ""
	if rate {
		per = "/s"
	}
	switch {
	case what == Bytes && decimal:
		return units.HumanSize(n) + per
	case what == Bytes:
		return units.BytesSize(n) + per
	case what == "bits":
		return units.CustomSize("%.4g%s", n, 1000, []string{"bit", "kbit", "Mbit", "Gbit", "Tbit"}) + per
	case n < 1e6:
		return fmt.Sprintf("%.6g %s%s", n, what, per)
	}
	return units.CustomSize("%.4g%s ", n, 1000, []string{"", "k", "M", "G", "T", "P", "E"}) + what + per
}

// Whole rounds an amount for a log, which writes a number that is not whole with an exponent.
func Whole(n float64) uint64 {
	if n >= math.MaxUint64 {
		return math.MaxUint64
	}
	return uint64(math.Round(max(n, 0)))
}
