// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Kinds returns the kinds of sources, by their keys in [Options].
func Kinds() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Probe connects to the runtimes of a kind and says which answer and where, or
// why none does: an error that wraps [ErrAbsent] if "auto" finds none, or
// fs.ErrNotExist if the configured socket is missing. It needs no Run.
func (r *Resolver) Probe(ctx context.Context, kind string) (string, error) {
	var probing sync.WaitGroup
	found := make([]string, len(r.sources))
	errs := make([]error, len(r.sources))
	asked := false
	for i, s := range r.sources {
		if s.kind == kind {
			asked = true
			probing.Go(func() { found[i], errs[i] = s.probe(ctx) })
		}
	}
	if !asked {
		return "off", nil
	}
	probing.Wait()
	if found = slices.DeleteFunc(found, func(f string) bool { return f == "" }); len(found) > 0 {
		return strings.Join(found, "; "), nil
	}
	return "", r.worst(kind, errs)
}

// worst returns the error that says most: of a socket that is there rather than
// of those that are not.
func (r *Resolver) worst(kind string, errs []error) error {
	var places []string
	for i, s := range r.sources {
		if errs[i] != nil && !errors.Is(errs[i], noSocket) {
			return errs[i]
		}
		if errs[i] != nil {
			places = append(places, s.paths[0])
		}
	}
	return fmt.Errorf("find %s at %s: %w", kind, strings.Join(places, ", "), noSocket)
}

func (s *source) probe(ctx context.Context) (string, error) {
	path, err := s.find()
	if err != nil {
		return "", err
	}
	c, err := s.connect(ctx, path, s.r.answerWithin)
	if err != nil {
		return "", s.failed("connect to", path, err)
	}
	defer c.close()
	return fmt.Sprintf("%s %s (API %s) at unix://%s", c.runtime, c.version, c.api, path), nil
}
