// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"strings"
	"testing"
)

// Names that LXC, ECS and people give end in what tells them apart.
func TestShortID(t *testing.T) {
	hex := strings.Repeat("3f", 32)
	for id, want := range map[string]string{
		hex:                       "3f3f3f3f3f3f",
		"1000~" + hex:             "1000~3f3f3f3f3f3f",
		"field-production-web-01": "field-production-web-01",
		"field-production-web-02": "field-production-web-02",
		"1000~production-web-01":  "1000~production-web-01",
		hex[:32] + "-1234567890":  hex[:32] + "-1234567890",
		hex[:63]:                  hex[:63],
		hex + "0":                 hex + "0",
		hex[:63] + "g":            hex[:63] + "g",
		"":                        "",
	} {
		if got := ShortID(id); got != want {
			t.Errorf("%s: got %s, want %s", id, got, want)
		}
	}
}
