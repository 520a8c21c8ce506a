// SPDX-License-Identifier: Apache-2.0

package usage

import "strings"

// betweenScopeAndName is in no id and no uid, see watcher.Container.
const betweenScopeAndName = "~"

// UserOf returns the uid of the user who a container is of, by its id: "1000" of "1000~web".
// It is "" for a container of root's runtimes.
func UserOf(id string) string {
	scope, _, ok := strings.Cut(id, betweenScopeAndName)
	if !ok || strings.Trim(scope, "0123456789") != "" {
		return ""
	}
	return scope
}

// InScope returns a name with the scope that it is unique in: "1000~web" for user 1000's web.
// What has its scope already, as an id, or is "", stays as it is.
func InScope(user, name string) string {
	if user == "" || name == "" || UserOf(name) == user {
		return name
	}
	return user + betweenScopeAndName + name
}

// Bare returns a name without the user whose it is.
func Bare(user, name string) string {
	if user == "" {
		return name
	}
	return strings.TrimPrefix(name, user+betweenScopeAndName)
}

// ShortID returns an id as people are shown it: of one that is 64 hexadecimal digits the first
// twelve, as Docker does, behind the user whose it is. Any other id is a name that somebody
// chose, and two of them may differ at the end alone.
func ShortID(id string) string {
	const digits, shown = 64, 12
	scope := strings.Index(id, betweenScopeAndName) + 1
	if own := id[scope:]; len(own) == digits && strings.Trim(own, "0123456789abcdef") == "" {
		return id[:scope+shown]
	}
	return id
}

// User is the uid of the user who the container is of, "" for root's runtimes.
func (c Container) User() string { return UserOf(c.ID) }
