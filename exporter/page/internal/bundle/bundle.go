// SPDX-License-Identifier: Apache-2.0

//go:build !portable

// Command bundle makes the files of the page from their TypeScript: those that package page
// embeds. It is run by go generate, in exporter/page.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/evanw/esbuild/pkg/api"
)

func main() {
	if err := write("src", "dist"); err != nil {
		fmt.Fprintln(os.Stderr, "bundle:", err)
		os.Exit(1)
	}
}

// write makes the files of the folder dist from those of src.
func write(src, dist string) error {
	files, err := build(src)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dist); err != nil {
		return err
	}
	if err := os.MkdirAll(dist, 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dist, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// build returns the files of the page by their names. The libraries have to be those that
// were vendored.
func build(src string) (map[string][]byte, error) {
	if err := verify(filepath.Join(src, "third_party")); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(src)
	if err != nil {
		return nil, err
	}
	result := api.Build(api.BuildOptions{
		AbsWorkingDir:     absolute,
		EntryPoints:       []string{"main.tsx", "worker.ts"},
		Outdir:            absolute,
		Bundle:            true,
		MinifyWhitespace:  true,
		MinifyIdentifiers: true,
		MinifySyntax:      true,
		Charset:           api.CharsetUTF8,
		LegalComments:     api.LegalCommentsNone, // NOTICE.txt of the page has them
		Format:            api.FormatIIFE,
		Target:            api.ES2022,
		JSXFactory:        "h",
		JSXFragment:       "Fragment",
		Alias: map[string]string{
			"preact":                   "./third_party/preact/dist/preact.mjs",
			"preact/hooks":             "./third_party/preact/hooks/dist/hooks.mjs",
			"uplot":                    "./third_party/uplot/dist/uPlot.esm.js",
			"uplot/dist/uPlot.min.css": "./third_party/uplot/dist/uPlot.min.css",
		},
	})
	var wrong []error
	for _, m := range append(result.Errors, result.Warnings...) {
		place := ""
		if m.Location != nil {
			place = fmt.Sprintf("%s:%d: ", m.Location.File, m.Location.Line)
		}
		wrong = append(wrong, errors.New(place+m.Text))
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	files := map[string][]byte{}
	for _, f := range result.OutputFiles {
		files[filepath.Base(f.Path)] = f.Contents
	}
	for _, name := range []string{"index.html", "icon.svg"} {
		if files[name], err = os.ReadFile(filepath.Join(src, name)); err != nil {
			return nil, err
		}
	}
	files["NOTICE.txt"], err = notice(filepath.Join(src, "third_party"))
	return files, err
}

// notice returns the licences of the libraries in the bundle, which have to come with it.
func notice(libraries string) ([]byte, error) {
	var out bytes.Buffer
	for _, name := range []string{"preact", "uplot"} {
		licence, err := os.ReadFile(filepath.Join(libraries, name, "LICENSE"))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%s\n\n%s\n\n", name, bytes.TrimSpace(licence))
	}
	return out.Bytes(), nil
}

// verify compares the files of a folder with its SHA256SUMS, which has to name all of them.
func verify(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		return err
	}
	sums := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok {
			return fmt.Errorf("read %s/SHA256SUMS: %q is not a sum and a name", dir, lines.Text())
		}
		sums[name] = sum
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "SHA256SUMS" || name == "README.md" {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		if sums[filepath.ToSlash(name)] != hex.EncodeToString(sum[:]) {
			return fmt.Errorf("verify %s: it is not the file that SHA256SUMS says", path)
		}
		delete(sums, filepath.ToSlash(name))
		return nil
	})
	for name := range sums {
		err = errors.Join(err, fmt.Errorf("verify %s: it is not there", filepath.Join(dir, name)))
	}
	return err
}
