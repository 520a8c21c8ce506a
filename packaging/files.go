// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// file is one of those that archives and packages hold.
type file struct {
	archived  string // path in the archive; "" if it is not in there
	installed string // path on a host that has a package; "" if packages lack it
	mode      os.FileMode
	config    bool // is the user's once it is there
	content   []byte
}

// minimal is the configuration that packages bring.
//
//go:embed nettally.yaml
var minimal []byte

const documents = "/usr/share/doc/nettally/"

// files returns what archives and packages for an architecture hold, in a fixed order.
func (r *release) files(arch string) ([]file, error) {
	var all []file
	var failed error
	add := func(f file, path string) {
		content, err := os.ReadFile(path)
		if err != nil && failed == nil {
			failed = err
		}
		f.content = content
		all = append(all, f)
	}
	source := func(name string) string { return filepath.Join(r.source, name) }
	add(file{archived: "nettally", installed: "/usr/bin/nettally", mode: 0o755}, r.binary(arch))
	add(file{archived: "LICENSE", installed: documents + "copyright", mode: 0o644}, source("LICENSE"))
	add(file{archived: "LICENCES", installed: documents + "LICENCES", mode: 0o644}, r.path(r.licencesFile()))
	add(file{archived: "CHANGELOG.md", installed: documents + "CHANGELOG.md", mode: 0o644}, source("CHANGELOG.md"))
	add(file{archived: "reference.yaml", installed: documents + "reference.yaml", mode: 0o644}, source("configs/reference.yaml"))
	add(file{archived: "prometheus/rules.yaml", installed: documents + "prometheus/rules.yaml", mode: 0o644}, source("configs/prometheus/rules.yaml"))
	add(file{archived: "prometheus/fleet-rules.yaml", installed: documents + "prometheus/fleet-rules.yaml", mode: 0o644}, source("configs/prometheus/fleet-rules.yaml"))
	add(file{archived: "grafana/nettally.json", installed: documents + "grafana/nettally.json", mode: 0o644}, source("configs/grafana/nettally.json"))
	add(file{archived: "nettally.service", mode: 0o644}, source("configs/nettally.service"))
	add(file{archived: "completions/nettally.bash", installed: "/usr/share/bash-completion/completions/nettally", mode: 0o644}, r.staged(shells["bash"]))
	add(file{archived: "completions/_nettally", installed: "/usr/share/zsh/site-functions/_nettally", mode: 0o644}, r.staged(shells["zsh"]))
	add(file{archived: "completions/nettally.fish", installed: "/usr/share/fish/vendor_completions.d/nettally.fish", mode: 0o644}, r.staged(shells["fish"]))
	if failed != nil {
		return nil, failed
	}
	pages, err := r.pages()
	if err != nil {
		return nil, err
	}
	unit, err := packagedUnit(source("configs/nettally.service"))
	if err != nil {
		return nil, err
	}
	return append(append(all, pages...),
		file{installed: "/usr/lib/systemd/system/nettally.service", mode: 0o644, content: unit},
		file{installed: "/etc/nettally/nettally.yaml", mode: 0o640, config: true, content: minimal}), nil
}

// pages returns the manual pages.
func (r *release) pages() (all []file, err error) {
	entries, err := os.ReadDir(r.staged("man")) // sorted
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(r.staged("man"), entry.Name()))
		if err != nil {
			return nil, err
		}
		var packed bytes.Buffer
		w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		name := entry.Name() + ".gz"
		all = append(all, file{archived: "man/" + name, installed: "/usr/share/man/man8/" + name, mode: 0o644, content: packed.Bytes()})
	}
	return all, nil
}

// packagedUnit returns the unit as packages have it: with their path of the binary, and with
// the group that they make, whose members may use the socket.
func packagedUnit(path string) ([]byte, error) {
	const start, packaged = "\nExecStart=/usr/local/bin/nettally run\n", "\nExecStart=/usr/bin/nettally run\nGroup=nettally\n"
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if strings.Count(string(text), start) != 1 {
		return nil, fmt.Errorf("%s has no line %q", path, strings.TrimSpace(start))
	}
	return []byte(strings.Replace(string(text), start, packaged, 1)), nil
}
