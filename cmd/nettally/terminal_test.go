// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/usage"
)

// hostile is a text as a tenant may put it where others read it.
const hostile = "\x1b[31m\u202e\n" + forged + "\x9b\u009b\x7f\u200b\u2028\u2066"

// forged would stand at the beginning of a line.
const forged = "FORGED"

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "",
		"web-1_ü 東京 é 👍 \u0928\u093f":            "web-1_ü 東京 é 👍 \u0928\u093f", // marks belong to letters
		"a\x1b[31mb":                             "a\uFFFD[31mb",
		"a\nb\tc\rd\x00e\x7f":                    "a\uFFFDb\uFFFDc\uFFFDd\uFFFDe\uFFFD",
		"a\u009b31mb\u0085":                      "a\uFFFD31mb\uFFFD",
		"a\x9bb\xff\xc3":                         "a\uFFFDb\uFFFD\uFFFD",
		"\uFFFD":                                 "\uFFFD",
		"a\u202ab\u202e\u2066\u2069\u200e\u061c": "a\uFFFDb" + strings.Repeat("\uFFFD", 5),
		"a\u200bb\u200d\ufeff\u00ad\u2060":       "a\uFFFDb" + strings.Repeat("\uFFFD", 4),
		"a\u2028b\u2029\u00a0\u3000":             "a\uFFFDb" + strings.Repeat("\uFFFD", 3),
		"\u3164\u115f\u034f\ufe0f\U000e0041":     strings.Repeat("\uFFFD", 5), // fillers, joiners and tags
		"\ue000\U0010ffff\u0378":                 strings.Repeat("\uFFFD", 3), // nobody says what these are
	} {
		if got := printable(text); got != want {
			t.Errorf("%q is printed as %q, want %q", text, got, want)
		}
	}
}

func TestTableIsAligned(t *testing.T) {
	table := newTable("A", "B", "C")
	table.row("x", "a\tb\nc", "1")
	table.row("東京", "e\u0301", "2")
	table.row("", "", "")
	var out bytes.Buffer
	if err := table.print(&out); err != nil {
		t.Fatal(err)
	}
	want := "A     B      C\nx     a\uFFFDb\uFFFDc  1\n東京  e\u0301      2\n             \n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What a screen gets comes in pieces that end anywhere.
func TestScreen(t *testing.T) {
	text := "a\tü\n\x1b[31m東\u202eb\xe6\n"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		w := screen(&out)
		for piece := range slices.Chunk([]byte(text), size) {
			if n, err := w.Write(piece); n != len(piece) || err != nil {
				t.Fatalf("%d written, error %v", n, err)
			}
		}
		if want := "a\tü\n\uFFFD[31m東\uFFFDb\uFFFD\n"; out.String() != want {
			t.Errorf("in pieces of %d: %q, want %q", size, out.String(), want)
		}
	}
}

// A command that prints what it should not is tamed all the same.
func TestCommandsPrintOnScreens(t *testing.T) {
	var stdout, stderr bytes.Buffer
	root := newRoot(&stdout, &stderr)
	root.AddCommand(&cobra.Command{Use: "raw", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprint(cmd.OutOrStdout(), "\x1b[31m\n")
		fmt.Fprint(cmd.ErrOrStderr(), "\u202e\n")
		return nil
	}})
	root.SetArgs([]string{"raw"})
	if err := root.ExecuteContext(t.Context()); err != nil || stdout.String() != "\uFFFD[31m\n" || stderr.String() != "\uFFFD\n" {
		t.Errorf("%q, %q, error %v", &stdout, &stderr, err)
	}
}

func TestComplain(t *testing.T) {
	var out bytes.Buffer
	complain(&out, errors.Join(errors.New("one"), fmt.Errorf("look at %s", hostile)))
	want := "nettally: one\n  look at \uFFFD[31m\uFFFD\n  " + forged + strings.Repeat("\uFFFD", 6) + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// JSON has the exact values.
func TestJSONIsExact(t *testing.T) {
	for _, text := range []string{strings.ToValidUTF8(hostile, ""), "\U000e0041\U0010ffff", "ü東京", "\uFFFD"} {
		var out bytes.Buffer
		if err := printJSON(&out, &exporter.Containers{Containers: []exporter.Container{{Name: text}}}); err != nil {
			t.Fatal(err)
		}
		tame(t, "JSON", out.String())
		var got exporter.Containers
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Containers[0].Name != text {
			t.Errorf("%q is read as %q, error %v", text, got.Containers[0].Name, err)
		}
	}
}

// YAML has them, too: who copies the configuration that is in force gets the same.
func TestYAMLIsExact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nettally.yaml")
	content := `names: {labels: ["a\e\u202e\u009b\u200b\U000E0041'\"\\", "b\u202ec\u200b", "b: ü", "東京"]}` + "\n"
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	first := mustOutput(t, "config", "show", "--config", path)
	tame(t, "YAML", first)
	want, err := configs.Load(path, true, pflag.NewFlagSet("", pflag.ContinueOnError))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := configs.Load(path, true, pflag.NewFlagSet("", pflag.ContinueOnError))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Names, got.Names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLogsAreTame(t *testing.T) {
	for _, format := range []string{configs.FormatText, configs.FormatJSON} {
		var out bytes.Buffer
		log := newLog(&out, format, slog.LevelInfo)
		log.Info(hostile, "err", fmt.Errorf("look at %s", hostile), hostile, hostile, "any", []string{hostile})
		log.With(hostile, hostile).WithGroup(hostile).Warn("x", "y", fmt.Stringer(stringer{}))
		tame(t, format, out.String())
		if lines := strings.Count(out.String(), "\n"); lines != 2 {
			t.Errorf("%s: %d lines:\n%s", format, lines, out.String())
		}
		if format == configs.FormatJSON {
			for line := range strings.Lines(out.String()) {
				if !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
		}
	}
}

type stringer struct{}

func (stringer) String() string { return hostile }

// TestCommandsAreTame runs every command of the tree, with each of its outputs, against a
// daemon whose every text is hostile, and one whose every answer is an error.
func TestCommandsAreTame(t *testing.T) {
	var all strings.Builder
	for name, flags := range map[string][]string{
		"answers": hostileDaemon(t, nil),
		"errors":  hostileDaemon(t, errors.New(hostile)),
		"no one":  {"--socket", "/run/" + strings.ToValidUTF8(hostile, ""), "--config", hostileConfig(t)},
		"no file": {"--config", "/etc/" + hostile},
		"refused": {"--config", refusedConfig(t)},
		"misuse":  {"--" + hostile},
	} {
		harmless := name == "no file" || name == "refused" || name == "misuse"
		for _, c := range commands(newRoot(nil, nil)) {
			if actsOnHost[c.CommandPath()] && !harmless {
				continue
			}
			for _, args := range variants(c) {
				args := slices.Concat(strings.Fields(c.CommandPath())[1:], args, flags)
				var stdout, stderr bytes.Buffer
				execute(t.Context(), args, &stdout, &stderr)
				what := fmt.Sprintf("%s: %q", name, args)
				tame(t, what+" to stdout", stdout.String())
				tame(t, what+" to stderr", stderr.String())
				fmt.Fprintf(&all, "%s%s", &stdout, &stderr)
			}
		}
	}
	// The texts did come through: in tables, JSON, CSV and errors.
	for _, want := range []string{
		"not counted: \uFFFD[31m", `"name": "\u001b[31m`, "-05:00,\uFFFD[31m", `Unavailable: \x1b[31m`, "from /run/\uFFFD[31m", "read config /etc/\uFFFD[31m",
		"cgroups.read look at cgroup root /\uFFFD[31m\uFFFD; " + forged, "labels: [\"\\e[31m", "the test alert was sent", "attach.mode: ",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("nothing has printed %q", want)
		}
	}
}

// actsOnHost are the commands that do more than read, which get no further than their
// configuration here. What they print goes the same ways.
var actsOnHost = map[string]bool{"nettally run": true, "nettally selftest": true, "nettally detach": true}

// commands returns those of a tree that can be run, also the ones that cobra adds.
func commands(root *cobra.Command) (all []*cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var add func(c *cobra.Command)
	add = func(c *cobra.Command) {
		if c.Runnable() {
			all = append(all, c)
		}
		for _, child := range c.Commands() {
			add(child)
		}
	}
	add(root)
	return all
}

// variants are arguments for a command: each value of --output, and each switch; what it
// takes by position is hostile, or an amount, or left out where that may be.
func variants(c *cobra.Command) (all [][]string) {
	var hostiles, amounts []string
	mayLack := false
	for _, word := range strings.Fields(c.Use)[1:] {
		mayLack = mayLack || strings.HasPrefix(word, "[") && !strings.HasPrefix(word, "[flags")
		if word == strings.ToUpper(word) && strings.Trim(word, "[]") != "" {
			hostiles, amounts = append(hostiles, hostile), append(amounts, "1GiB")
		}
	}
	options := [][]string{nil}
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		switch {
		case f.Name == "watch": // TestListWatch has it: it does not end by itself
		case f.Name == "format": // TestListFormat has it: who writes a template may print lines
		case f.Name == "output":
			for _, format := range []string{"table", "wide", "json", "csv", hostile} {
				options = append(options, []string{"-o", format})
			}
		case f.Value.Type() == "bool":
			options = append(options, []string{"--" + f.Name})
		default:
			options = append(options, []string{"--" + f.Name, hostile})
		}
	})
	for _, option := range options {
		all = append(all, slices.Concat(option, hostiles))
		if mayLack {
			all = append(all, option)
		}
		if amounts != nil {
			all = append(all, slices.Concat(option, amounts))
		}
	}
	return append(all, []string{hostile, hostile, hostile}, []string{"--by", "label:" + hostile})
}

// hostileDaemon serves texts that are all hostile, or answers everything with an error, and
// returns the flags that lead there.
func hostileDaemon(t *testing.T, err error) []string {
	t.Helper()
	var snapshot usage.Snapshot
	var rows []exporter.HistoryRow
	quotas := &hostileQuotas{err: err}
	fill(reflect.ValueOf(&snapshot).Elem())
	fill(reflect.ValueOf(&rows).Elem())
	fill(reflect.ValueOf(&quotas.status).Elem())
	fill(reflect.ValueOf(&quotas.alerts).Elem())
	flags := serving(t, exporter.Options{
		Snapshot: func(context.Context) (usage.Snapshot, error) { return snapshot, err },
		History:  func(context.Context, exporter.HistoryQuery) ([]exporter.HistoryRow, error) { return rows, err },
		Quotas:   quotas,
		Distrust: func() string { return hostile },
		Source:   configs.SourceProc,

		TestNotifier: func(context.Context, string) error { return err },
	})
	flags[1] = hostileConfig(t)
	return flags
}

type hostileQuotas struct {
	status []quota.Status
	alerts []quota.Alert
	err    error
}

func (q *hostileQuotas) Status() []quota.Status           { return q.status }
func (q *hostileQuotas) Alerts() []quota.Alert            { return q.alerts }
func (q *hostileQuotas) Set(string, string, uint64) error { return q.err }

// fill makes every text in a value hostile, and every collection one of something.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint64:
		v.SetUint(1 << 30)
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(first))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	}
}

// hostileConfig names files, cgroups and labels by hostile texts, and counts by /proc, so that
// a check of it makes nothing.
func hostileConfig(t *testing.T) string {
	t.Helper()
	dir, text := t.TempDir(), strings.ToValidUTF8(hostile, "")
	content := fmt.Sprintf(`state_dir: %s
accounting: {source: proc}
bpf: {pin_path: %s}
watch: {cgroup_root: %s}
names: {docker: %s, podman: "off", cri: "off", labels: [%s]}
`, quoted(dir+"/state"+text), quoted(dir+"/pins"), quoted("/"+text), quoted("unix://"+dir+"/docker"+text), quoted(text))
	path := filepath.Join(dir, "hostile.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// refusedConfig is one that is wrong in two places.
func refusedConfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "refused.yaml")
	valid := quoted(strings.ToValidUTF8(hostile, ""))
	if err := os.WriteFile(path, []byte("log: {level: "+valid+"}\nattach: {mode: "+valid+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// quoted is a text in YAML, which JSON is.
func quoted(text string) string {
	out, _ := json.Marshal(text) // a string can always be
	return string(escape(out, jsonEscape))
}

// tame fails unless a terminal shows a text as it is, and in the lines that we made.
func tame(t *testing.T, what, text string) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("%s: not UTF-8: %q", what, text)
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			t.Errorf("%s: %U in %q", what, r, text)
			return
		}
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, forged) {
			t.Errorf("%s: a forged line in %q", what, text)
		}
	}
}

// TestOnlyTerminalWrites keeps everything else from the terminal.
func TestOnlyTerminalWrites(t *testing.T) {
	forbidden := map[string]string{
		"fmt.Print": "", "fmt.Printf": "", "fmt.Println": "", "fmt.Fprint": "", "fmt.Fprintf": "", "fmt.Fprintln": "",
		"io.WriteString": "", "os.Stdout": "main.go", "os.Stderr": "main.go run.go", // what a screen, or the log, is made of
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	for _, file := range files {
		if file == "terminal.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(set, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, _ := s.X.(*ast.Ident)
			name := s.Sel.Name
			if pkg != nil {
				name = pkg.Name + "." + name
			}
			allowed, bad := forbidden[name]
			if bad && !slices.Contains(strings.Fields(allowed), file) || slices.Contains([]string{"Write", "WriteCSV", "YAML"}, s.Sel.Name) {
				t.Errorf("%s: %s: print by terminal.go", set.Position(s.Pos()), name)
			}
			return true
		})
	}
}
