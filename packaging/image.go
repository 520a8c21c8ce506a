// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	images "github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// images makes the image of all architectures as one OCI layout, and one archive per
// architecture that `docker load` and `podman load` take.
func (r *release) images() error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	tag, err := name.NewTag("nettally:" + r.version)
	if err != nil {
		return err
	}
	for _, arch := range architectures {
		image, err := r.image(arch)
		if err != nil {
			return fmt.Errorf("image for %s: %w", arch, err)
		}
		if err := create(r.path("nettally_"+r.version+"_image_"+arch+".tar"), func(w io.Writer) error {
			return images.Write(tag, image, w)
		}); err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	folder := r.staged("layout")
	outer := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	outer = mutate.AppendManifests(outer, mutate.IndexAddendum{
		Add: index, Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": r.version}},
	})
	if _, err := layout.Write(folder, outer); err != nil {
		return err
	}
	return create(r.path("nettally_"+r.version+"_image_oci.tar"), func(w io.Writer) error { return r.pack(w, folder) })
}

// image returns the image of an architecture: the binary, its licences, the certificates of
// public authorities for notifiers, and the folders that nettally writes to. It has no shell.
func (r *release) image(arch string) (v1.Image, error) {
	layer, err := r.layer(arch)
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: r.date}, CreatedBy: "make release"}})
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, v1.Time{Time: r.date}
	file.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/nettally"}, Cmd: []string{"run"}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/",
		StopSignal: "SIGTERM",
		Labels: map[string]string{
			"org.opencontainers.image.title": "nettally", "org.opencontainers.image.version": r.version,
			"org.opencontainers.image.revision": r.revision, "org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/nettally/nettally",
			"org.opencontainers.image.description": "Network accounting per container",
		},
	}
	return mutate.ConfigFile(image, file)
}

func (r *release) layer(arch string) (v1.Layer, error) {
	binary, err := os.ReadFile(r.binary(arch))
	if err != nil {
		return nil, err
	}
	licence, err := os.ReadFile(filepath.Join(r.source, "LICENSE"))
	if err != nil {
		return nil, err
	}
	licences, err := os.ReadFile(r.path(r.licencesFile()))
	if err != nil {
		return nil, err
	}
	certificates, err := authorities()
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	t := tarball{tar.NewWriter(&content), r.date, map[string]bool{}}
	err = errors.Join(
		t.add("usr/bin/nettally", 0o755, binary),
		t.add("usr/share/doc/nettally/LICENSE", 0o644, licence),
		t.add("usr/share/doc/nettally/LICENCES", 0o644, licences),
		t.add("etc/ssl/certs/ca-certificates.crt", 0o644, certificates),
		t.folder("etc/nettally", 0o755),
		t.folder("run/nettally", 0o755),
		t.folder("var/lib/nettally", 0o750),
		t.folder("tmp", 0o777|os.ModeSticky),
		t.Close())
	if err != nil {
		return nil, err
	}
	return images.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil },
		images.WithMediaType(types.OCILayer), images.WithCompressedCaching)
}

// pack writes an archive of what is in a folder, sorted.
func (r *release) pack(w io.Writer, folder string) error {
	t := tarball{tar.NewWriter(w), r.date, map[string]bool{}}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		return t.add(relative, 0o644, content)
	})
	return errors.Join(err, t.Close())
}
