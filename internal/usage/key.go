// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"strings"
)

const runtimeDocker = "docker"

// PodKey returns what the usage of the container's pod is summed up under: the namespace, a
// slash and the pod. It is "" for a container in no pod.
func (c *Container) PodKey() string {
	if c.Pod == "" {
		return ""
	}
	return c.Namespace + "/" + c.Pod
}

// NameKey returns what the container's usage is summed up under where that goes by name: its
// id while it has no name.
//
// In Kubernetes a name is unique in its pod, and a pod's name in its namespace. So the key of
// a pod's sandbox is [Container.PodKey], and that of a container in it has the name behind
// that. Docker's own names are unique on the host, also where a kubelet gave them.
func (c *Container) NameKey() string {
	name := cmp.Or(c.Name, c.ID)
	switch {
	case name == c.ID:
		return name
	case c.Namespace == "" || c.Pod == "" || c.Runtime == runtimeDocker:
		return c.LastingName()
	case name == c.Pod:
		return c.PodKey()
	}
	return c.PodKey() + "/" + Bare(UserOf(name), name)
}

// LastingName returns the container's name without the prefix that compose puts before it
// while it replaces the container: "web" of "249662c60a09_web". Compose leaves that name
// behind where it fails. The prefix is part of an id: of the container's own, or of the one that it
// replaces; that is believed of containers which are compose's by their labels.
func (c *Container) LastingName() string {
	user := UserOf(c.Name)
	digits, name, ok := strings.Cut(Bare(user, c.Name), "_")
	if !ok || name == "" || len(digits) != shownDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return c.Name
	}
	own := strings.HasPrefix(Bare(UserOf(c.ID), c.ID), digits)
	_, inService := c.Labels["com.docker.compose.service"]
	_, inProject := c.Labels["com.docker.compose.project"]
	if !own && !inService && !inProject {
		return c.Name
	}
	return InScope(user, name)
}

// shownDigits is how much of an id Docker shows.
const shownDigits = 12

// OfRuntime returns a key by name of a container whose runtime is not the only one that has
// this name: "podman~web". Docker's names stay as they are.
func OfRuntime(key, runtime string) string {
	if runtime == "" || runtime == runtimeDocker {
		return key
	}
	user := UserOf(key)
	return InScope(user, runtime+betweenScopeAndName+Bare(user, key))
}

// FirstRuntime returns which of two runtimes keeps a name that both have: Docker, or else the
// first by the alphabet. "" is for one that is not known, and never kept.
func FirstRuntime(a, b string) string {
	switch {
	case a == "" || b == runtimeDocker:
		return cmp.Or(b, a)
	case b == "" || a == runtimeDocker:
		return a
	}
	return min(a, b)
}
