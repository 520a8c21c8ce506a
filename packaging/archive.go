// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// archive makes the tar.gz of an architecture.
func (r *release) archive(arch string) error {
	files, err := r.files(arch)
	if err != nil {
		return err
	}
	folder := "nettally_" + r.version + "_linux_" + arch
	return create(r.path(folder+".tar.gz"), func(w io.Writer) error {
		packed, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
		if err != nil {
			return err
		}
		t := tarball{tar.NewWriter(packed), r.date, map[string]bool{}}
		for _, f := range files {
			if f.archived != "" {
				if err := t.add(path.Join(folder, f.archived), f.mode, f.content); err != nil {
					return err
				}
			}
		}
		return errors.Join(t.Close(), packed.Close())
	})
}

// create makes a file of what write writes.
func create(path string, write func(w io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// tarball writes an archive that tells nothing of who makes it, or when.
type tarball struct {
	*tar.Writer
	date    time.Time
	folders map[string]bool // that it has
}

// add adds a file, and the folders above it.
func (t *tarball) add(name string, mode os.FileMode, content []byte) error {
	if err := t.folder(path.Dir(name), 0o755); err != nil {
		return err
	}
	header := t.header(name, tar.TypeReg, mode)
	header.Size = int64(len(content))
	if err := t.WriteHeader(header); err != nil {
		return err
	}
	_, err := t.Write(content)
	return err
}

// folder adds a folder, and those above it, if it is not there.
func (t *tarball) folder(name string, mode os.FileMode) error {
	if name == "." || t.folders[name] {
		return nil
	}
	if err := t.folder(path.Dir(name), 0o755); err != nil {
		return err
	}
	t.folders[name] = true
	return t.WriteHeader(t.header(name+"/", tar.TypeDir, mode))
}

func (t *tarball) header(name string, kind byte, mode os.FileMode) *tar.Header {
	bits := int64(mode.Perm())
	if mode&os.ModeSticky != 0 {
		bits |= 0o1000
	}
	return &tar.Header{Name: name, Typeflag: kind, Mode: bits, ModTime: t.date, Uname: "root", Gname: "root", Format: tar.FormatPAX}
}

const sumsFile = "SHA256SUMS"

// sums writes the sums of all artefacts, as sha256sum checks them.
func (r *release) sums() error {
	entries, err := os.ReadDir(r.out) // sorted
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, entry := range entries {
		if entry.Name() == sumsFile {
			continue
		}
		sum, err := hash(r.path(entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%s  %s\n", sum, entry.Name())
	}
	return os.WriteFile(r.path(sumsFile), []byte(text.String()), 0o644)
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}
