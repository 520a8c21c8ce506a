// SPDX-License-Identifier: Apache-2.0

package names

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// textMax is the most bytes that are kept of one text.
const textMax = 512

// pick returns the labels with the given names, of the first of the sets that
// has each.
func pick(names []string, sets ...map[string]string) map[string]string {
	picked := make(map[string]string)
	for _, name := range names {
		for _, labels := range sets {
			if value, ok := labels[name]; ok {
				picked[name] = clean(value)
				break
			}
		}
	}
	return picked
}

// clean makes a text from outside one that can go into a log, a terminal and a
// metric's label.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r // RuneError for what is not UTF-8
	}, text)
	if len(text) > textMax {
		text = strings.ToValidUTF8(text[:textMax], "") // no half rune at the end
	}
	return text
}

// isID says whether an id is of the form that all runtimes give: 64 hex digits.
func isID(id string) bool {
	_, id = userAndID(id)
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// userAndID takes the id of a user's container apart: "1000~<id>". The user of root's is "".
func userAndID(id string) (user, bare string) {
	user, bare, ok := strings.Cut(id, "~")
	if !ok {
		return "", id
	}
	return user, bare
}
