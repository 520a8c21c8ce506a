// SPDX-License-Identifier: Apache-2.0

package trusted

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/testnet/need"
)

const stranger = 1000

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folder makes a folder with an owner and a mode, and returns its path.
func folder(t *testing.T, path string, uid int, mode os.FileMode) string {
	t.Helper()
	must(t, os.MkdirAll(path, 0o755))
	must(t, os.Chown(path, uid, uid))
	must(t, os.Chmod(path, mode))
	return path
}

// The folders of tests are root's below a sticky /tmp, as those of a service are below /run.
func TestCheck(t *testing.T) {
	need.Root(t)
	top := t.TempDir()
	at := func(name string) string { return filepath.Join(top, name) }
	folder(t, at("theirs"), stranger, 0o755)
	folder(t, at("theirs/below"), 0, 0o755)
	folder(t, at("group"), 0, 0o775)
	folder(t, at("group/below"), 0, 0o755)
	folder(t, at("everyone"), 0, 0o757)
	folder(t, at("sticky"), 0, os.ModeSticky|0o777)
	folder(t, at("sticky/ours"), 0, 0o700)
	folder(t, at("sticky/theirs"), stranger, 0o700)
	folder(t, at("good/odd `name'"), stranger, 0o755)
	must(t, os.WriteFile(at("good/program"), nil, 0o755))
	must(t, os.WriteFile(at("good/open"), nil, 0o600))
	must(t, os.Chmod(at("good/open"), 0o762))
	must(t, os.Symlink("../theirs/below", at("good/astray")))
	must(t, os.Symlink(at("good"), at("link")))
	must(t, os.Symlink(at("good"), at("theirlink")))
	must(t, os.Lchown(at("theirlink"), stranger, stranger))
	must(t, os.Symlink("loop", at("loop")))

	for _, test := range []struct{ path, want string }{ // want has @ for the folder of the test
		{"good", ""},
		{"good/program", ""},
		{"good/not/yet", ""},
		{"link/program", ""},
		{"sticky/ours", ""},
		{"sticky/ours/../../good", ""},
		{"sticky/not-yet", ""},
		{"theirs", "@/theirs belongs to uid 1000 and has mode 0755: others can change it: run `chown root: @/theirs; chmod 755 @/theirs`"},
		{"theirs/below", "@/theirs belongs to uid 1000 and has mode 0755: others can change it: run `chown root: @/theirs; chmod 755 @/theirs`"},
		{"theirs/not/yet", "@/theirs belongs to uid 1000 and has mode 0755: others can change it: run `chown root: @/theirs; chmod 755 @/theirs`"},
		{"group", "@/group belongs to uid 0 and has mode 0775: others can change it: run `chown root: @/group; chmod 755 @/group`"},
		{"group/below", "@/group belongs to uid 0 and has mode 0775: others can change it: run `chown root: @/group; chmod 755 @/group`"},
		{"everyone", "@/everyone belongs to uid 0 and has mode 0757: others can change it: run `chown root: @/everyone; chmod 755 @/everyone`"},
		{"sticky", "@/sticky belongs to uid 0 and has mode 1777: others can change it: run `chown root: @/sticky; chmod 755 @/sticky`"},
		{"sticky/theirs", "@/sticky/theirs belongs to uid 1000 and has mode 0700: others can change it: run `chown root: @/sticky/theirs; chmod 700 @/sticky/theirs`"},
		{"good/open", "@/good/open belongs to uid 0 and has mode 0762: others can change it: run `chown root: @/good/open; chmod 740 @/good/open`"},
		{"good/astray", "@/theirs belongs to uid 1000 and has mode 0755: others can change it: run `chown root: @/theirs; chmod 755 @/theirs`"},
		{"theirlink/program", "@/theirlink is a link of uid 1000: others can change it: run `chown -h root: @/theirlink`"},
		{"good/odd `name'", "'@/good/odd `name'\\''' belongs to uid 1000 and has mode 0755: others can change it: run `chown root: '@/good/odd `name'\\'''; chmod 755 '@/good/odd `name'\\'''`"},
	} {
		err, want := Check(at(test.path)), strings.ReplaceAll(test.want, "@", top)
		if got := text(err); got != want {
			t.Errorf("%s:\n got %s\nwant %s", test.path, got, want)
		}
		if errors.Is(err, ErrUntrusted) != (want != "") {
			t.Errorf("%s: %v wraps ErrUntrusted: %v", test.path, err, want == "")
		}
	}
	if err := Check(at("loop")); err == nil || errors.Is(err, ErrUntrusted) {
		t.Errorf("a link to itself: %v", err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A user's own files are as good as root's to a process of that user.
func TestCheckOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	must(t, MkdirAll(path, 0o700))
	must(t, Check(path))
	must(t, os.Chmod(path, 0o770))
	if err := Check(path); !errors.Is(err, ErrUntrusted) {
		t.Errorf("writable by its group: %v, want ErrUntrusted", err)
	}
}

func TestMkdirAll(t *testing.T) {
	need.Root(t)
	theirs := folder(t, filepath.Join(t.TempDir(), "theirs"), stranger, 0o755)
	if err := MkdirAll(filepath.Join(theirs, "state"), 0o700); !errors.Is(err, ErrUntrusted) {
		t.Errorf("in somebody's folder: %v, want ErrUntrusted", err)
	}
	if _, err := os.Stat(filepath.Join(theirs, "state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}

func TestCheckTree(t *testing.T) {
	need.Root(t)
	top := t.TempDir()
	folder(t, filepath.Join(top, "v1"), 0, 0o700)
	must(t, os.Symlink("nowhere", filepath.Join(top, "link")))
	must(t, CheckTree(top))
	must(t, CheckTree(filepath.Join(top, "not-yet")))
	slots := filepath.Join(top, "v1", "slots")
	must(t, os.WriteFile(slots, nil, 0o600))
	must(t, os.Chown(slots, stranger, stranger))
	if err := CheckTree(top); !errors.Is(err, ErrUntrusted) || !strings.HasPrefix(err.Error(), slots+" belongs to uid 1000") {
		t.Errorf("with a file of somebody's: %v, want ErrUntrusted", err)
	}
}
