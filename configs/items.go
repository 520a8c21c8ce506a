// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// items is the value of a key that is a list of sections. Such keys are in the file only:
// no environment variable and no flag can hold them.
type items struct{}

// numbers is the value of a key that is a list of numbers, as texts: the environment has them so.
type numbers []string

// MarshalYAML writes them as numbers.
func (n numbers) MarshalYAML() (any, error) {
	written := []int{}
	for _, text := range n {
		number, err := strconv.Atoi(text)
		if err != nil {
			return nil, err
		}
		written = append(written, number)
	}
	return written, nil
}

// scalar is the value of a key below items that is a text or a number: 100GiB, or 100.
type scalar string

// optional is the value of a key below items that is a text and may be left out. What
// is there and empty is refused: a variable that was not set in a template would have
// a quota match everything, or a webhook unsigned.
type optional string

// mark is the value of a key below items that may have no keys below it: log: {}.
type mark struct{}

// itemKeys are the keys below those that are items, with their place in the list left
// out.
var itemKeys = []key{
	{"quotas[].name", "", "a name of letters, digits, dots, dashes and underscores, each only once"},
	{"quotas[].match.name", optional(""), "a glob such as web-*"},
	{"quotas[].match.id", optional(""), "a glob such as 3f2a*"},
	{"quotas[].match.image", optional(""), "a glob such as nginx:*"},
	{"quotas[].match.runtime", optional(""), "a glob such as docker"},
	{"quotas[].match.namespace", optional(""), "a glob such as prod-*"},
	{"quotas[].match.pod", optional(""), "a glob such as web-*"},
	{"quotas[].match.user", optional(""), "a uid such as 1000, or * for all users"},
	{"quotas[].match.labels", items{}, "labels, each with a name and a value"},
	{"quotas[].match.labels[].name", "", "a label key that names.labels has"},
	{"quotas[].match.labels[].value", "", "a glob such as team-*"},
	{"quotas[].per", optional(""), "container, name, pod, namespace, all, or label:KEY with a key that names.labels has"},
	{"quotas[].count", "", wantCount},
	{"quotas[].limit", scalar(""), "an amount above 0, such as 100GiB of bytes, or 5M of packets, requests or connections"},
	{"quotas[].period.every", "", "hour, day, week, month or lifetime"},
	{"quotas[].period.day", 0, "a day from 1 to 31, of a month"},
	{"quotas[].period.timezone", optional(""), "a time zone such as Europe/Berlin, of an hour, day, week or month"},
	{"quotas[].period.rolling", optional(""), wantDuration + ", at least 2m, and no other key of the period"},
	{"quotas[].alert_at", []int{}, "percentages from 1 to 1000, ascending"},
	{"quotas[].projection", false, "true or false, and true only for an hour, day, week or month"},
	{"quotas[].initial", scalar(""), "an amount such as 20GiB of bytes, or 5M of packets, requests or connections"},
	{"quotas[].rate.count", "", wantCount},
	{"quotas[].rate.above", scalar(""), "a rate above 0, such as 10Mbit/s or 1MB/s of bytes, or 200/s of packets, requests or connections"},
	{"quotas[].rate.clear", scalar(""), "a rate that is not higher than rate.above"},
	{"quotas[].rate.for", optional(""), wantDuration},
	{"quotas[].notify", []string{}, "the name of one of the notifiers, each only once"},

	{"notifiers[].name", "", "a name of letters, digits, dots, dashes and underscores, each only once"},
	{"notifiers[].timeout", optional(""), wantDuration + ", from 100ms to 5m"},
	{"notifiers[].alertmanager.url", "", wantURL},
	{"notifiers[].alertmanager.http_config_file", optional(""), wantPath},
	{"notifiers[].webhook.url", "", wantURL},
	{"notifiers[].webhook.secret_file", optional(""), wantPath},
	{"notifiers[].webhook.http_config_file", optional(""), wantPath},
	{"notifiers[].exec.command", []string{}, "a program's absolute path, and its arguments"},
	{"notifiers[].log", mark{}, "{}"},
}

const (
	wantCount = "receive, transmit or total with _bytes, _packets or _tcp_syn, such as transmit_bytes, receive or transmit with _http_requests, or tcp_connect_attempts, tcp_connects, tcp_accepts or tcp_connect_failures"
	wantURL   = "a URL such as http://127.0.0.1:9093"
)

var place = regexp.MustCompile(`\[[0-9]+\]`)

// general leaves out of a path where in a list it is.
func general(path string) string { return place.ReplaceAllString(path, "[]") }

// sections reads a list of sections.
func (p *parser) sections(path string, node *yaml.Node) any {
	if node.Kind != yaml.SequenceNode {
		p.report("%s: expected a list, got %s", path, describe(node))
		return nil
	}
	list := []any{}
	for i, item := range node.Content {
		item = resolve(item)
		at := path + "[" + strconv.Itoa(i) + "]"
		if item.Kind != yaml.MappingNode {
			p.report("%s: expected keys below it, got %s", at, describe(item))
			continue
		}
		list = append(list, p.section(at+".", item))
	}
	return list
}

// itemValue reads the kinds of values that there are in lists of sections only. A value
// that is not of its kind is told by the caller.
func (p *parser) itemValue(k key, node *yaml.Node) (value any, ok bool) {
	switch k.value.(type) {
	case scalar:
		if isText(node) || node.Kind == yaml.ScalarNode && (node.ShortTag() == "!!int" || node.ShortTag() == "!!float") {
			return node.Value, true
		}
	case optional:
		return node.Value, isText(node) && node.Value != ""
	case bool:
		var is bool
		if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!bool" && node.Decode(&is) == nil {
			return is, true
		}
	case []int:
		var numbers []int
		if node.Kind != yaml.SequenceNode {
			return nil, false
		}
		for _, item := range node.Content {
			var n int
			if item = resolve(item); item.ShortTag() != "!!int" || item.Decode(&n) != nil {
				return nil, false
			}
			numbers = append(numbers, n)
		}
		return numbers, len(numbers) > 0
	case mark:
		return map[string]any{}, isNull(node) || node.Kind == yaml.MappingNode && len(node.Content) == 0
	}
	return nil, false
}

// meant returns the key that was probably meant by an unknown one, or "".
func meant(path string) string {
	found := suggest(general(path))
	section, _ := split(path)
	foundSection, name := split(found)
	if found != "" && foundSection == general(section) {
		return strings.TrimPrefix(section+"."+name, ".")
	}
	return found
}
