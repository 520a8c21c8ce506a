// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// keyring has the keys of all of Debian's releases.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptConfig comes after the machine's own configuration. The hooks of that are left out:
// they are for the machine's packages. The user that apt would become may not enter a
// test's folder.
const aptConfig = `
Dir::Etc::SourceList "%[1]s/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "%[1]s/lists";
Dir::State::Status "/dev/null";
Dir::Cache "%[1]s/cache";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
`

// apt is the machine's apt with a source and lists of its own: nothing of it shows on
// the machine.
type apt struct{ folder string }

// newApt fetches the list of a suite from the mirror that the machine has its own
// security updates from.
func newApt(tb testing.TB, suite string) apt {
	tb.Helper()
	a := apt{tb.TempDir()}
	for name, content := range map[string]string{
		"apt.conf": fmt.Sprintf(aptConfig, a.folder),
		// A suite whose support has ended stays signed, but is not renewed.
		"sources.list": fmt.Sprintf("deb [arch=amd64 signed-by=%s check-valid-until=no] %s %s main\n",
			keyring, mirror(tb), suite),
	} {
		if err := os.WriteFile(filepath.Join(a.folder, name), []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range []string{"lists", "cache"} {
		if err := os.Mkdir(filepath.Join(a.folder, name), 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	a.run(tb, "apt-get", "update", "--error-on=any")
	return a
}

// mirror returns where the machine has its security updates from, whatever its
// release is.
func mirror(tb testing.TB) string {
	tb.Helper()
	targets := output(tb, exec.Command("apt-get", "indextargets", "--no-release-info",
		"--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"))
	for line := range strings.Lines(targets) {
		uri, release, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasSuffix(release, "-security") {
			return uri
		}
	}
	tb.Fatalf("apt has no source of security updates:\n%s", targets)
	return ""
}

// newest returns the name of the newest package whose name is of a form.
func (a apt) newest(tb testing.TB, form *regexp.Regexp) string {
	tb.Helper()
	names := slices.DeleteFunc(strings.Fields(a.run(tb, "apt-cache", "pkgnames")), func(name string) bool {
		return !form.MatchString(name)
	})
	if len(names) == 0 {
		tb.Fatalf("the mirror has no package %s", form)
	}
	return slices.MaxFunc(names, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
}

// numbers returns the numbers in a text.
func numbers(text string) []int {
	var all []int
	for _, digits := range regexp.MustCompile(`\d+`).FindAllString(text, -1) {
		n, _ := strconv.Atoi(digits) // digits only
		all = append(all, n)
	}
	return all
}

// download fetches a package and returns the folder that holds what is in it.
func (a apt) download(tb testing.TB, name string) string {
	tb.Helper()
	a.run(tb, "apt-get", "download", name)
	archive := one(tb, filepath.Join(a.folder, name+"_*.deb"))
	unpacked := tb.TempDir()
	output(tb, exec.Command("dpkg-deb", "--extract", archive, unpacked))
	return unpacked
}

func (a apt) run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(name, append([]string{"--config-file", filepath.Join(a.folder, "apt.conf")}, args...)...)
	cmd.Dir = a.folder
	return output(tb, cmd)
}

// one returns the one file whose path matches a pattern.
func one(tb testing.TB, pattern string) string {
	tb.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		tb.Fatalf("found %d files %s: %v, want one", len(found), pattern, err)
	}
	return found[0]
}

// output returns what a command prints.
func output(tb testing.TB, cmd *exec.Cmd) string {
	tb.Helper()
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v\n%s%s", cmd, err, out, &complaints)
	}
	return string(out)
}
