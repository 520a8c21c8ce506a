// SPDX-License-Identifier: Apache-2.0

package main

import (
	"embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // the packagers that formats names
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// formats are those of packages, as nfpm calls them.
var formats = []string{"deb", "rpm"}

// scripts run on the host while a package is installed, upgraded and removed.
//
//go:embed scripts
var scripts embed.FS

// packages makes the packages for an architecture.
func (r *release) packages(arch string) error {
	contents, err := r.contents(arch)
	if err != nil {
		return err
	}
	for _, format := range formats {
		info, err := r.info(format, arch, contents)
		if err != nil {
			return err
		}
		packager, err := nfpm.Get(format)
		if err != nil {
			return err
		}
		name := packager.ConventionalFileName(info)
		if err := create(r.path(name), func(w io.Writer) error { return packager.Package(info, w) }); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// contents stages the files of a package.
func (r *release) contents(arch string) (all files.Contents, err error) {
	list, err := r.files(arch)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp(r.staging, "files-")
	if err != nil {
		return nil, err
	}
	for i, f := range list {
		if f.installed == "" {
			continue
		}
		path := filepath.Join(folder, strconv.Itoa(i))
		if err := os.WriteFile(path, f.content, 0o644); err != nil {
			return nil, err
		}
		c := &files.Content{
			Source: path, Destination: f.installed,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: f.mode, MTime: r.date},
		}
		if f.config {
			c.Type = files.TypeConfigNoReplace
		}
		all = append(all, c)
	}
	return all, nil
}

// info describes a package. What nfpm changes in it is of this format only.
func (r *release) info(format, arch string, contents files.Contents) (*nfpm.Info, error) {
	info := &nfpm.Info{
		Name: "nettally", Arch: arch, Platform: "linux", Version: r.version, Section: "net", Priority: "optional",
		Maintainer: "The nettally authors <nettally@users.noreply.github.com>", Homepage: "https://github.com/nettally/nettally", License: "Apache-2.0",
		Description: "Network accounting per container\n" +
			"nettally counts the bytes, packets and connection requests of every container\non a host in the kernel (eBPF), and shows them as metrics, JSON and a web page.",
		MTime: r.date, DisableGlobbing: true,
	}
	for _, c := range contents {
		its := *c
		info.Contents = append(info.Contents, &its)
	}
	for name, path := range map[string]*string{
		"preinstall.sh": &info.Scripts.PreInstall, "postinstall.sh": &info.Scripts.PostInstall,
		"preremove.sh": &info.Scripts.PreRemove, "postremove.sh": &info.Scripts.PostRemove,
	} {
		text, err := scripts.ReadFile("scripts/" + name)
		if err != nil {
			return nil, err
		}
		*path = r.staged(name)
		if err := os.WriteFile(*path, text, 0o644); err != nil {
			return nil, err
		}
	}
	info.Deb.Compression, info.RPM.Compression = "gzip", "gzip" // every release can read it
	info.RPM.Summary = "Network accounting per container"
	info.RPM.BuildHost = "localhost" // else that of the machine
	info = nfpm.WithDefaults(info)
	return info, nfpm.PrepareForPackager(info, format)
}
