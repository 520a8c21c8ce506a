// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"slices"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// authorities returns the certificates that Mozilla trusts without conditions, in a fixed
// order. By them notifiers know the hosts that they tell.
func authorities() ([]byte, error) {
	var all [][]byte
	for root := range bundle.Roots() {
		if root.Constraint == nil { // such as: only what it has signed before some day
			all = append(all, root.Certificate)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no certificates of authorities")
	}
	slices.SortFunc(all, bytes.Compare)
	var text bytes.Buffer
	for _, certificate := range all {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: certificate}); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}
