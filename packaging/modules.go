// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/licensecheck"
)

// module is one of those that a binary is linked of.
type module struct {
	path, version string
	sum           string // as go.sum has it, "" for Go's own library
	licences      []string
	texts         []string // of its licences
}

// licenceFile matches the names of files that hold licences, and what goes with them.
var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|notice)([-._].*)?$`)

// modules returns what a binary says that it is linked of, with Go's own library first. It
// is an error if the licence of one is not known.
func (r *release) modules(arch string) ([]module, error) {
	info, err := buildinfo.ReadFile(r.binary(arch))
	if err != nil {
		return nil, err
	}
	all := []module{{path: "std", version: info.GoVersion}}
	root, err := r.goCommand(arch, "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go: %w", err)
	}
	folders := []string{strings.TrimSpace(string(root))}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		out, err := r.goCommand(arch, "list", "-m", "-f", "{{.Dir}}", dep.Path).Output()
		if err != nil {
			return nil, fmt.Errorf("find module %s: %w", dep.Path, err)
		}
		all = append(all, module{path: dep.Path, version: dep.Version, sum: dep.Sum})
		folders = append(folders, strings.TrimSpace(string(out)))
	}
	for i := range all {
		if err := all[i].read(folders[i]); err != nil {
			return nil, fmt.Errorf("licence of %s %s: %w", all[i].path, all[i].version, err)
		}
	}
	return all, nil
}

// read reads the licences in a module's folder.
func (m *module) read(folder string) error {
	entries, err := os.ReadDir(folder) // sorted
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !licenceFile.MatchString(entry.Name()) || !entry.Type().IsRegular() || filepath.Ext(entry.Name()) == ".go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			return err
		}
		m.texts = append(m.texts, strings.TrimSpace(string(text)))
		for _, match := range licensecheck.Scan(text).Match {
			if !match.IsURL && !slices.Contains(m.licences, match.ID) {
				m.licences = append(m.licences, match.ID)
			}
		}
	}
	if len(m.licences) == 0 {
		return errors.New("no file with one that is known")
	}
	slices.Sort(m.licences)
	return nil
}

// licences writes the licences of all modules: a table, and then the texts, which all of
// them want to be passed on.
func (r *release) licences() error {
	var all []module
	for _, arch := range architectures {
		of, err := r.modules(arch)
		if err != nil {
			return err
		}
		all = append(all, of...)
		if err := r.materials(arch, of); err != nil {
			return err
		}
	}
	// Architectures differ in few.
	slices.SortFunc(all, func(a, b module) int { return cmp.Compare(a.path, b.path) })
	all = slices.CompactFunc(all, func(a, b module) bool { return a.path == b.path })
	var text bytes.Buffer
	fmt.Fprintf(&text, "nettally %s is licensed under Apache-2.0, and is linked of these.\nWhat its web page is made of says the page itself, in NOTICE.txt.\n\n", r.version)
	for _, m := range all {
		fmt.Fprintf(&text, "%s %s: %s\n", m.path, m.version, strings.Join(m.licences, ", "))
	}
	notice, err := os.ReadFile(filepath.Join(r.source, "exporter/page/dist/NOTICE.txt"))
	if err != nil {
		return err
	}
	all = append(all, module{path: "the web page", texts: []string{strings.TrimSpace(string(notice))}})
	for _, m := range all {
		fmt.Fprintf(&text, "\n%s\n%s %s\n\n%s\n", strings.Repeat("-", 72), m.path, m.version, strings.Join(m.texts, "\n\n"))
	}
	return os.WriteFile(r.path(r.licencesFile()), text.Bytes(), 0o644)
}

func (r *release) licencesFile() string { return "nettally_" + r.version + "_licences.txt" }

// materials writes the bill of materials (SBOM) of a binary.
func (r *release) materials(arch string, modules []module) error {
	sum, err := hash(r.binary(arch))
	if err != nil {
		return err
	}
	date := r.date.Format("2006-01-02T15:04:05Z")
	main := cyclonedx.Component{
		BOMRef: "nettally", Type: cyclonedx.ComponentTypeApplication, Name: "nettally", Version: r.version,
		PackageURL: "pkg:golang/github.com/nettally/nettally@v" + r.version,
		Hashes:     &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: sum}},
		Licenses:   licensesOf([]string{"Apache-2.0"}),
		Properties: &[]cyclonedx.Property{{Name: "nettally:architecture", Value: arch}, {Name: "nettally:revision", Value: r.revision}},
	}
	var components []cyclonedx.Component
	refs := []string{}
	for _, m := range modules {
		c := cyclonedx.Component{
			Type: cyclonedx.ComponentTypeLibrary, Name: m.path, Version: m.version, Scope: cyclonedx.ScopeRequired,
			PackageURL: "pkg:golang/" + m.path + "@" + m.version, Licenses: licensesOf(m.licences),
		}
		c.BOMRef = c.PackageURL
		if digest, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:")); err == nil && m.sum != "" {
			c.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: fmt.Sprintf("%x", digest)}}
		}
		components, refs = append(components, c), append(refs, c.BOMRef)
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Timestamp: date, Component: &main}
	bom.Components, bom.Dependencies = &components, &[]cyclonedx.Dependency{{Ref: "nettally", Dependencies: &refs}}
	return create(r.binary(arch)+".cdx.json", func(w io.Writer) error {
		return cyclonedx.NewBOMEncoder(w, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	})
}

func licensesOf(ids []string) *cyclonedx.Licenses {
	var all cyclonedx.Licenses
	for _, id := range ids {
		all = append(all, cyclonedx.LicenseChoice{License: &cyclonedx.License{ID: id}})
	}
	return &all
}

// objects writes the sums of the programs that nettally loads into the kernel, as they are in
// the source and in the binaries.
func (r *release) objects() error {
	names, err := filepath.Glob(filepath.Join(r.source, "bpf", "*.o")) // sorted
	if err != nil || len(names) == 0 {
		return errors.Join(err, errors.New("no BPF objects in the source"))
	}
	var text strings.Builder
	for _, name := range names {
		sum, err := hash(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s  bpf/%s\n", sum, filepath.Base(name))
	}
	return os.WriteFile(r.path("nettally_"+r.version+"_bpf.sha256"), []byte(text.String()), 0o644)
}
