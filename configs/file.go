// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// read returns the text of the file, which is nil if there is none and none is
// required, and not nil if the file is empty.
func read(path string, required bool) ([]byte, error) {
	if path == "" && !required {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return nil, nil
	}
	if err != nil {
		if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
			err = cause.Err // its path would say the name twice
		}
		return nil, fmt.Errorf("read config %s: %w", path, err)
	}
	return text, nil
}

// parse turns the text of a file into nested maps that hold known keys with
// values of their type only; everything else is a problem.
//
// This is done on the YAML tree because viper and mapstructure are too kind: they
// ignore the case of keys, take 2.7 for a number and a number for a text, and
// know no lines.
//
// What is not needed is left out, and may be anything.
func parse(file string, text []byte, needed func(path string) bool) (map[string]any, []error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil // nothing but comments
	} else if err != nil {
		return nil, []error{syntaxError(file, err)}
	}
	if err := decoder.Decode(new(yaml.Node)); err == nil {
		return nil, []error{fmt.Errorf("%s: expected one YAML document, got several", file)}
	} else if !errors.Is(err, io.EOF) {
		return nil, []error{syntaxError(file, err)}
	}
	return parseTop(file, resolve(document.Content[0]), needed)
}

func parseTop(file string, top *yaml.Node, needed func(path string) bool) (map[string]any, []error) {
	switch {
	case isNull(top):
		return nil, nil
	case top.Kind != yaml.MappingNode:
		return nil, []error{fmt.Errorf("%s: expected sections such as log and exporter, got %s", file, describe(top))}
	}
	p := parser{file: file, needed: needed}
	return p.section("", top), p.problems
}

type parser struct {
	file     string
	needed   func(path string) bool
	problems []error
}

func (p *parser) report(format string, args ...any) {
	p.problems = append(p.problems, fmt.Errorf(p.file+": "+format, args...))
}

func (p *parser) section(prefix string, node *yaml.Node) map[string]any {
	values := map[string]any{}
	lines := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, child := resolve(node.Content[i]), resolve(node.Content[i+1])
		path := prefix + plain(name.Value)
		if !p.needed(path) {
			continue
		}
		if first, twice := lines[name.Value]; twice {
			p.problems = append(p.problems, fmt.Errorf("%s:%d: %s: already set in line %d", p.file, name.Line, path, first))
			continue
		}
		lines[name.Value] = name.Line
		if value := p.entry(path, name, child); value != nil {
			values[name.Value] = value
		}
	}
	return values
}

// entry returns a section or a value, or nil if there is none to be had.
func (p *parser) entry(path string, name, child *yaml.Node) any {
	// A dot in a name would look like a nested key from here on.
	if name.Kind != yaml.ScalarNode || strings.Contains(name.Value, ".") {
		p.report("%s: expected a plain key, with the keys below it indented, got %s", path, describe(name))
		return nil
	}
	if k, known := keyAt(path); known {
		return p.value(path, k, child)
	}
	switch {
	case !isSection(path):
		if meant := meant(path); meant != "" {
			p.report("%s: unknown key; did you mean %s?", path, meant)
		} else {
			p.report("%s: unknown key", path)
		}
	case child.Kind == yaml.MappingNode:
		return p.section(path+".", child)
	case !isNull(child): // a section whose keys are all commented out is fine
		p.report("%s: expected keys below it, got %s", path, describe(child))
	}
	return nil
}

func (p *parser) value(path string, k key, node *yaml.Node) any {
	switch k.value.(type) {
	case int:
		var number int
		if node.ShortTag() == "!!int" && node.Decode(&number) == nil {
			return number
		}
	case float64:
		var number float64
		if tag := node.ShortTag(); (tag == "!!int" || tag == "!!float") && node.Decode(&number) == nil {
			return number
		}
	case string:
		if isText(node) {
			return node.Value
		}
	case []string, numbers:
		if node.Kind == yaml.SequenceNode {
			return p.list(path, k, node)
		}
		p.report("%s: expected a list, got %s", path, describe(node))
		return nil
	case items:
		return p.sections(path, node)
	default:
		if value, ok := p.itemValue(k, node); ok {
			return value
		}
	}
	p.report("%s: expected %s, got %s", path, k.want, describe(node))
	return nil
}

func (p *parser) list(path string, k key, node *yaml.Node) any {
	values, is := []string{}, isText
	if _, ok := k.value.(numbers); ok {
		is = isNumber
	}
	for i, item := range node.Content {
		item = resolve(item)
		if !is(item) {
			p.report("%s[%d]: expected %s, got %s", path, i, k.want, describe(item))
			continue
		}
		values = append(values, item.Value)
	}
	return values
}

// plain quotes the name of a key where it would spoil the line.
func plain(name string) string {
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` || name == "" {
		return quoted
	}
	return name
}

func isText(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!str"
}

func isNumber(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!int"
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// resolve follows an alias to its anchor.
func resolve(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func describe(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "keys below it"
	case node.Kind == yaml.SequenceNode && len(node.Content) == 0:
		return "an empty list"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(node):
		return "nothing"
	case strings.Contains(node.Value, "://"):
		return "a URL" // which may have a secret in it
	}
	return strconv.Quote(node.Value)
}

var (
	yamlError = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)
	// What the YAML parser says, as opposed to its scanner, has the line before.
	yamlParser = regexp.MustCompile(`^did not find expected (?:<|node|key|',|'-)`)
)

// syntaxError puts the line where editors and people look for it.
func syntaxError(file string, err error) error {
	parts := yamlError.FindStringSubmatch(err.Error())
	if parts == nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	line, _ := strconv.Atoi(parts[1])
	if yamlParser.MatchString(parts[2]) {
		line++
	}
	if line == 0 {
		return fmt.Errorf("%s: %s", file, parts[2])
	}
	return fmt.Errorf("%s:%d: %s", file, line, parts[2])
}
