// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/nettest"
)

var scratch string // a folder for all tests

func TestMain(m *testing.M) {
	folder, err := os.MkdirTemp("", "nettally-packaging-")
	if err != nil {
		panic(err)
	}
	scratch = folder
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

func newRelease(source, out string) *release {
	return &release{source: source, out: out, version: "1.2.3", revision: "0123456789abcdef", date: time.Unix(1_700_000_000, 0).UTC()}
}

// made is a release that is made once for all tests. One for this machine's architecture alone:
// compiling for another takes minutes where nothing of it is in Go's cache.
var made = sync.OnceValues(func() (*release, error) {
	architectures = []string{runtime.GOARCH}
	r := newRelease("..", filepath.Join(scratch, "dist"))
	r.staging = filepath.Join(scratch, "staging")
	return r, errors.Join(os.Mkdir(r.staging, 0o700), r.make())
})

// sumsOf returns the sums of a release's artefacts by name.
func sumsOf(t *testing.T, r *release) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for line := range strings.Lines(string(nettest.Must(os.ReadFile(r.path(sumsFile)))(t))) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		sums[name] = sum
	}
	return sums
}

// A release of the same source in another folder, made later, is the same.
func TestReproducible(t *testing.T) {
	first := nettest.Must(made())(t)
	source := filepath.Join(t.TempDir(), "elsewhere")
	copySource(t, source)
	second := newRelease(source, filepath.Join(t.TempDir(), "dist"))
	t.Setenv("TZ", "Asia/Tokyo")
	t.Setenv("GOFLAGS", "-tags=nettally_layout_next")
	if err := second.make(); err != nil {
		t.Fatal(err)
	}
	sums := sumsOf(t, first)
	if diff := cmp.Diff(sums, sumsOf(t, second)); diff != "" {
		t.Errorf("two releases of one source (-first +second):\n%s", diff)
	}
	arch := runtime.GOARCH
	for _, name := range []string{
		"nettally_1.2.3_linux_" + arch, "nettally_1.2.3_linux_" + arch + ".tar.gz", "nettally_1.2.3_" + arch + ".deb",
		"nettally_1.2.3_image_" + arch + ".tar", "nettally_1.2.3_image_oci.tar",
	} {
		if sums[name] == "" {
			t.Errorf("no %s in %s", name, sumsFile)
		}
	}
	check := exec.Command("sha256sum", "--check", "--strict", "--quiet", sumsFile)
	check.Dir = first.out
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, out)
	}
}

// copySource copies what git knows of.
func copySource(t *testing.T, to string) {
	t.Helper()
	list := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = ".."
	for name := range strings.SplitSeq(string(nettest.Must(list.Output())(t)), "\x00") {
		content, err := os.ReadFile(filepath.Join("..", name))
		if name == "" || errors.Is(err, os.ErrNotExist) { // removed, and not yet committed
			continue
		}
		path := filepath.Join(to, name)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBinaryIsStatic(t *testing.T) {
	r := nettest.Must(made())(t)
	f := nettest.Must(elf.Open(r.binary(runtime.GOARCH)))(t)
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary needs a loader: it has a header %v", p.Type)
		}
	}
	out := nettest.Must(exec.Command(r.binary(runtime.GOARCH), "version").Output())(t)
	if want := "nettally 1.2.3 (revision 0123456789abcdef, "; !strings.HasPrefix(string(out), want) {
		t.Errorf("version prints %q, want %q", out, want)
	}
}

// The archive has what the documents say it has.
func TestArchive(t *testing.T) {
	r := nettest.Must(made())(t)
	folder := t.TempDir()
	name := "nettally_1.2.3_linux_" + runtime.GOARCH
	if out, err := exec.Command("tar", "-xzf", r.path(name+".tar.gz"), "-C", folder).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	for file, text := range map[string]string{
		"nettally": "", "LICENSE": "Apache License", "LICENCES": "github.com/cilium/ebpf v", "CHANGELOG.md": "# Changelog",
		"reference.yaml": "state_dir:", "nettally.service": "ExecStart=/usr/local/bin/nettally run\n", "prometheus/rules.yaml": "groups:",
		"completions/nettally.bash": "__nettally", "completions/_nettally": "#compdef nettally", "completions/nettally.fish": "complete ",
		"man/nettally.8.gz": "", "man/nettally-quota-set.8.gz": "",
	} {
		if content := nettest.Must(os.ReadFile(filepath.Join(folder, name, file)))(t); !bytes.Contains(content, []byte(text)) {
			t.Errorf("%s has no %q", file, text)
		}
	}
}

// Whatever go.mod brings into the binary is in the bill of materials.
func TestMaterials(t *testing.T) {
	r := nettest.Must(made())(t)
	var bom struct {
		Components []struct {
			Name     string
			Hashes   []any
			Licenses []any
		}
	}
	if err := json.Unmarshal(nettest.Must(os.ReadFile(r.binary(runtime.GOARCH)+".cdx.json"))(t), &bom); err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, c := range bom.Components {
		known[c.Name] = true
		if len(c.Licenses) == 0 || len(c.Hashes) == 0 && c.Name != "std" {
			t.Errorf("%s has no licence or no hash", c.Name)
		}
	}
	out := nettest.Must(exec.Command("go", "version", "-m", r.binary(runtime.GOARCH)).Output())(t)
	count := 0
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); words[0] == "dep" {
			count++
			if !known[words[1]] {
				t.Errorf("%s is linked in, and not in the bill of materials", words[1])
			}
		}
	}
	if count < 10 || len(bom.Components) != count+1 {
		t.Errorf("%d components, want one for Go's library and %d for modules", len(bom.Components), count)
	}
}

// A module without a licence, or with one that nobody knows, ends the release.
func TestUnknownLicence(t *testing.T) {
	folder := t.TempDir()
	m := module{path: "example.org/m"}
	if err := m.read(folder); err == nil {
		t.Error("no error without a licence")
	}
	if err := os.WriteFile(filepath.Join(folder, "LICENSE"), []byte("Do what the author says on the phone."), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.read(folder); err == nil {
		t.Errorf("no error with an unknown licence, but %q", m.licences)
	}
}

func TestRefused(t *testing.T) {
	for version, want := range map[string]string{"": "VERSION=1.2.3", "v1.2.3": "VERSION=1.2.3", "1.2": "VERSION=1.2.3", "1.2.3-rc_1": "VERSION=1.2.3"} {
		r := newRelease("..", t.TempDir())
		r.version = version
		if err := r.make(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("version %q: %v", version, err)
		}
	}
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := newRelease("..", filepath.Dir(precious)).make(); err == nil || !strings.Contains(err.Error(), "-out") {
		t.Errorf("a folder with others' files: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := new(release).date1970(""); err == nil || !strings.Contains(err.Error(), "git log") {
		t.Errorf("no date: %v", err)
	}
}
