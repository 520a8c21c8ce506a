// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
)

// asCommand is set in the environment of a test's program that is to be nettally itself.
const asCommand = "NETTALLY_TEST_AS_COMMAND"

// The locale that tests run in, unless they are about another one.
func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	os.Setenv("LC_ALL", "C.UTF-8")
	os.Exit(m.Run())
}
