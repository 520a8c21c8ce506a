// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
)

// The locale that tests run in, unless they are about another one.
func TestMain(m *testing.M) {
	os.Setenv("LC_ALL", "C.UTF-8")
	os.Exit(m.Run())
}
