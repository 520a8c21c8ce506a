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

// User is the uid of the user who the container is of, "" for root's runtimes.
func (c Container) User() string { return UserOf(c.ID) }
