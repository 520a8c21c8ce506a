// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"path"
	"strings"

	"github.com/nettally/nettally/exporter"
)

// Filter says which containers are shown. The zero value lets all through.
type Filter struct{ words []word }

// word is one condition of a filter.
type word struct {
	label string // the key of the label whose value is matched; "" for names
	glob  string
}

// ParseFilter reads words with spaces between them, each of which a container has to match.
//
//	web          the name, namespace or pod has it in it, or the id begins with it
//	web-*        the name, the namespace or the pod is like that
//	tier=front*  the label tier has a value like that
//
// A glob is one of path.Match in which * also stands for /.
func ParseFilter(text string) (Filter, error) {
	var f Filter
	for _, text := range strings.Fields(text) {
		w := word{glob: text}
		if key, value, ok := strings.Cut(text, "="); ok && key != "" {
			w = word{key, value}
		}
		if _, err := match(w.glob, ""); err != nil {
			return Filter{}, fmt.Errorf("%q is not a glob", w.glob)
		}
		f.words = append(f.words, w)
	}
	return f, nil
}

// Matches reports whether a filter lets a container through.
func (f Filter) Matches(c *exporter.StreamContainer) bool {
	for _, w := range f.words {
		if !w.matches(c) {
			return false
		}
	}
	return true
}

func (w word) matches(c *exporter.StreamContainer) bool {
	if w.label != "" {
		value, ok := c.Labels[w.label]
		return ok && like(w.glob, value)
	}
	if !strings.ContainsAny(w.glob, `*?[\`) {
		return strings.HasPrefix(c.ID, w.glob) || strings.Contains(c.Name, w.glob) ||
			strings.Contains(c.Namespace, w.glob) || strings.Contains(c.Pod, w.glob)
	}
	return like(w.glob, c.Name) || like(w.glob, c.Namespace) || like(w.glob, c.Pod)
}

func like(glob, text string) bool {
	ok, err := match(glob, text)
	return ok && err == nil
}

// match is path.Match without the special role of /.
func match(glob, text string) (bool, error) {
	flat := strings.NewReplacer("/", "\x00")
	return path.Match(flat.Replace(glob), flat.Replace(text))
}
