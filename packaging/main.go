// SPDX-License-Identifier: Apache-2.0

// Command packaging makes a release of nettally: binaries, archives, packages and container
// images, with their sums. `make release VERSION=1.2.3` runs it.
//
// It needs Go and the modules, and neither root nor other programs. All that it writes is
// determined by the source, the version, SOURCE_DATE_EPOCH and the release of Go: two runs
// make the same files, byte for byte.
//
// It is a module of its own, so that what it takes to make packages and images stays out of
// the product's go.mod.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// architectures are those that are released, as Go calls them.
var architectures = []string{"amd64", "arm64"}

// versions are of semantic versioning. Those of deb and rpm are made of them.
var versions = regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?$`)

// release is what is made, of what.
type release struct {
	source   string // the product's folder
	out      string // the folder that the artefacts are made in
	version  string
	revision string
	date     time.Time // of everything in the artefacts
	staging  string    // an empty folder for what goes into them; "" for one that is gone afterwards
}

func main() {
	var r release
	flag.StringVar(&r.source, "source", "..", "`folder` of the product's source")
	flag.StringVar(&r.out, "out", "../dist", "`folder` to make the release in; what it has is removed")
	flag.StringVar(&r.version, "version", "", "version, as 1.2.3 or 1.2.3-rc.1")
	flag.StringVar(&r.revision, "revision", "unknown", "`commit` that the source is of")
	flag.Parse()
	err := r.date1970(os.Getenv("SOURCE_DATE_EPOCH"))
	if err == nil {
		err = r.make()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

// date1970 sets the date from seconds since 1970.
func (r *release) date1970(epoch string) error {
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH is %q: set it to the seconds since 1970 of the commit (git log -1 --format=%%ct)", epoch)
	}
	r.date = time.Unix(seconds, 0).UTC()
	return nil
}

func (r *release) make() (err error) {
	if !versions.MatchString(r.version) {
		return fmt.Errorf("version %q: say `make release VERSION=1.2.3`, or 1.2.3-rc.1", r.version)
	}
	if _, err := os.Stat(filepath.Join(r.source, "go.mod")); err != nil {
		return fmt.Errorf("find the source: %w", err)
	}
	if err := r.empty(); err != nil {
		return err
	}
	if r.staging == "" {
		if r.staging, err = os.MkdirTemp("", "nettally-release-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(r.staging)) }()
	}

	if err := r.manual(); err != nil {
		return err
	}
	for _, arch := range architectures {
		if err := r.build(arch); err != nil {
			return err
		}
	}
	if err := errors.Join(r.licences(), r.objects()); err != nil {
		return err
	}
	for _, arch := range architectures {
		if err := r.archive(arch); err != nil {
			return fmt.Errorf("archive for %s: %w", arch, err)
		}
		if err := r.packages(arch); err != nil {
			return fmt.Errorf("packages for %s: %w", arch, err)
		}
	}
	if err := r.images(); err != nil {
		return err
	}
	return r.sums()
}

// empty makes the folder for the artefacts. It removes what a release before has left there,
// and refuses a folder that is none of a release.
func (r *release) empty() error {
	entries, err := os.ReadDir(r.out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(r.out, sumsFile)); err != nil {
			return fmt.Errorf("%s holds other files than a release's: remove it, or choose another folder by -out", r.out)
		}
	}
	return errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755), os.WriteFile(r.path(sumsFile), nil, 0o644))
}

// path returns the path of an artefact.
func (r *release) path(name string) string { return filepath.Join(r.out, name) }

// staged returns the path of a file that goes into artefacts.
func (r *release) staged(name string) string { return filepath.Join(r.staging, name) }
