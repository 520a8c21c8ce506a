// SPDX-License-Identifier: Apache-2.0

// Command agent makes traffic on orders from its standard input. Tests build it
// without CGO and put it into the images of their containers.
package main

import (
	"fmt"
	"os"

	"github.com/nettally/nettally/internal/testnet"
)

func main() {
	if err := testnet.ServeAgent(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
