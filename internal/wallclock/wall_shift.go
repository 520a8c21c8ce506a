// SPDX-License-Identifier: Apache-2.0

//go:build nettally_clock_shift

package wallclock

import (
	"os"
	"strings"
	"time"
)

// wall returns what the host's wall clock says, and the duration in the file that CLOCK_SHIFT
// names more: a test can't set the clock of its host. Nothing else is built with this.
func wall() time.Time {
	text, err := os.ReadFile(os.Getenv("CLOCK_SHIFT"))
	if err != nil {
		panic(err)
	}
	shift, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil {
		panic(err)
	}
	return time.Now().Add(shift)
}
