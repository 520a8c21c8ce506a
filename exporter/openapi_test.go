// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/nettally/nettally/internal/usage"
)

// document is the part of docs/openapi.yaml that the answers are held against.
type document struct {
	Paths map[string]struct {
		Get struct {
			Parameters []struct{ Name, In string }
			Responses  map[string]response
		}
		Post struct{ Responses map[string]response }
	}
	Components struct {
		Schemas   map[string]*schema
		Responses map[string]response
	}
}

type response struct {
	Ref     string `yaml:"$ref"`
	Content map[string]struct{ Schema *schema }
}

type schema struct {
	Ref        string    `yaml:"$ref"`
	Type       yaml.Node // a type or a list of types
	Enum       []string
	Format     string
	Offset     string `yaml:"x-offset"` // "local" unless times are in UTC
	Properties map[string]*schema
	Required   []string
	Items      *schema
	Additional *schema `yaml:"additionalProperties"`
}

func readDocument(t *testing.T) *document {
	t.Helper()
	text, err := os.ReadFile("../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return &doc
}

func (d *document) content(t *testing.T, path, code, mediaType string) *schema {
	t.Helper()
	r, ok := d.Paths[path].Get.Responses[code]
	if !ok {
		r, ok = d.Paths[path].Post.Responses[code]
	}
	if !ok {
		t.Fatalf("%s: answer %s is not documented", path, code)
	}
	if r.Ref != "" {
		r = d.Components.Responses[strings.TrimPrefix(r.Ref, "#/components/responses/")]
	}
	c, ok := r.Content[mediaType]
	if !ok {
		t.Fatalf("%s: answer %s has no documented %s", path, code, mediaType)
	}
	return c.Schema
}

// check returns what of a value is not as documented. A property that is
// documented must be there, even where it is optional, if all is set.
func (d *document) check(at string, s *schema, value any, all bool) error {
	if s.Ref != "" {
		s = d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")]
	}
	if s == nil {
		return fmt.Errorf("%s: no schema", at)
	}
	if kind := typeOf(value); !slices.Contains(s.types(), kind) && (kind != "integer" || !slices.Contains(s.types(), "number")) {
		return fmt.Errorf("%s: is %s, documented %v", at, typeOf(value), s.types())
	}
	switch v := value.(type) {
	case map[string]any:
		return d.checkObject(at, s, v, all)
	case []any:
		for i, item := range v {
			if err := d.check(fmt.Sprintf("%s[%d]", at, i), s.Items, item, all); err != nil {
				return err
			}
		}
	case string:
		return s.checkString(at, v)
	}
	return nil
}

func (d *document) checkObject(at string, s *schema, object map[string]any, all bool) error {
	want := s.Required
	if all {
		want = slices.Collect(maps.Keys(s.Properties))
	}
	var errs []error
	for _, key := range want {
		if _, ok := object[key]; !ok {
			errs = append(errs, fmt.Errorf("%s.%s: missing", at, key))
		}
	}
	for key, value := range object {
		property := s.Properties[key]
		if property == nil {
			property = s.Additional
		}
		if property == nil {
			errs = append(errs, fmt.Errorf("%s.%s: not documented", at, key))
			continue
		}
		errs = append(errs, d.check(at+"."+key, property, value, all))
	}
	return errors.Join(errs...)
}

func (s *schema) checkString(at, value string) error {
	if s.Enum != nil && !slices.Contains(s.Enum, value) {
		return fmt.Errorf("%s: %q, documented %v", at, value, s.Enum)
	}
	if s.Format != "date-time" {
		return nil
	}
	when, err := time.Parse(time.RFC3339, value)
	if err != nil || s.Offset != "local" && when.Location() != time.UTC {
		return fmt.Errorf("%s: %q is not an RFC 3339 time in UTC", at, value)
	}
	return nil
}

func (s *schema) types() []string {
	var types []string
	for _, node := range append([]*yaml.Node{&s.Type}, s.Type.Content...) {
		types = append(types, node.Value)
	}
	return types
}

func typeOf(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return "number"
		}
		return "integer"
	}
	return fmt.Sprintf("%T", value)
}

func TestOpenAPIAnswers(t *testing.T) {
	doc := readDocument(t)
	opts := withQuotas(withHistory(options(requested(tracked(true, true), allRead))))
	early := options(snapshot())
	early.Snapshot = func(context.Context) (usage.Snapshot, error) {
		return usage.Snapshot{}, errors.New("take over what was counted before: context deadline exceeded")
	}
	scene, watched := newScene(t, snapshot())
	for range 30 { // some steps of the last 15 minutes
		scene.change(func(snap *usage.Snapshot) { used(snap, "aaa111", 100) })
	}
	checked := options(snapshot())
	checked.Checks = func(context.Context) []Check { return []Check{{"kernel", VerdictOK, "Linux 6.12.48"}} }
	notReady := options(snapshot())
	notReady.Ready = func() error { return errors.New("read cgroups: not yet") }
	tests := []struct {
		path, method, target string
		opts                 Options
		code                 int
		mediaType            string
	}{
		{"/api/v1/containers", "GET", "/api/v1/containers?all=true", opts, 200, "application/json"},
		{"/api/v1/containers", "GET", "/api/v1/containers", opts, 200, "application/json"},
		{"/api/v1/containers", "GET", "/api/v1/containers?x=y", opts, 400, "application/json"},
		{"/api/v1/containers", "POST", "/api/v1/containers", opts, 405, "application/json"},
		{"/api/v1/containers/{container}", "GET", "/api/v1/containers/aaa111", opts, 200, "application/json"},
		{"/api/v1/containers/{container}", "GET", "/api/v1/containers/aaa111?x=y", opts, 400, "application/json"},
		{"/api/v1/containers/{container}", "GET", "/api/v1/containers/nobody", opts, 404, "application/json"},
		{"/api/v1/containers/{container}", "DELETE", "/api/v1/containers/aaa111", opts, 405, "application/json"},
		{"/api/v1/containers/{container}", "GET", "/api/v1/containers/aaa", opts, 409, "application/json"},
		{"/api/v1/containers", "GET", "/api/v1/containers", early, 503, "application/json"},
		{"/api/v1/containers/{container}", "GET", "/api/v1/containers/aaa111", early, 503, "application/json"},
		{"/api/v1/stream", "HEAD", "/api/v1/stream", watched, 200, "text/event-stream"},
		{"/api/v1/stream", "GET", "/api/v1/stream?x=y", watched, 400, "application/json"},
		{"/api/v1/stream", "POST", "/api/v1/stream", watched, 405, "application/json"},
		{"/api/v1/stream", "GET", "/api/v1/stream", opts, 503, "application/json"},
		{"/api/v1/recent", "GET", "/api/v1/recent", watched, 200, "application/json"},
		{"/api/v1/recent", "GET", "/api/v1/recent?x=y", watched, 400, "application/json"},
		{"/api/v1/recent", "POST", "/api/v1/recent", watched, 405, "application/json"},
		{"/api/v1/recent", "GET", "/api/v1/recent", opts, 503, "application/json"},
		{"/api/v1/checks", "GET", "/api/v1/checks", checked, 200, "application/json"},
		{"/api/v1/checks", "GET", "/api/v1/checks?x=y", checked, 400, "application/json"},
		{"/api/v1/checks", "POST", "/api/v1/checks", checked, 405, "application/json"},
		{"/api/v1/checks", "GET", "/api/v1/checks", opts, 503, "application/json"},
		{"/api/v1/history", "GET", "/api/v1/history", opts, 200, "application/json"},
		{"/api/v1/history", "GET", "/api/v1/history?by=label:team&step=month", opts, 200, "application/json"},
		{"/api/v1/history", "GET", "/api/v1/history?format=csv", opts, 200, "text/csv"},
		{"/api/v1/history", "GET", "/api/v1/history?step=year", opts, 400, "application/json"},
		{"/api/v1/history", "POST", "/api/v1/history", opts, 405, "application/json"},
		{"/api/v1/history", "GET", "/api/v1/history", early, 503, "application/json"},
		{"/api/v1/quotas", "GET", "/api/v1/quotas", opts, 200, "application/json"},
		{"/api/v1/quotas", "GET", "/api/v1/quotas?x=y", opts, 400, "application/json"},
		{"/api/v1/quotas", "POST", "/api/v1/quotas", opts, 405, "application/json"},
		{"/api/v1/quotas", "GET", "/api/v1/quotas", early, 503, "application/json"},
		{"/api/v1/alerts", "GET", "/api/v1/alerts", opts, 200, "application/json"},
		{"/api/v1/alerts", "GET", "/api/v1/alerts?x=y", opts, 400, "application/json"},
		{"/api/v1/alerts", "POST", "/api/v1/alerts", opts, 405, "application/json"},
		{"/api/v1/alerts", "GET", "/api/v1/alerts", early, 503, "application/json"},
		{"/healthz", "GET", "/healthz", notReady, 200, "application/json"},
		{"/healthz", "PUT", "/healthz", opts, 405, "application/json"},
		{"/readyz", "GET", "/readyz", opts, 200, "application/json"},
		{"/readyz", "PUT", "/readyz", opts, 405, "application/json"},
		{"/readyz", "GET", "/readyz", notReady, 503, "application/json"},
		{"/version", "GET", "/version", opts, 200, "application/json"},
		{"/version", "PATCH", "/version", opts, 405, "application/json"},
		{"/metrics", "GET", "/metrics", opts, 200, "text/plain"},
		{"/metrics", "GET", "/metrics", early, 503, "application/json"},
		{"/metrics", "POST", "/metrics", opts, 405, "application/json"},
		{"/", "GET", "/", opts, 200, "text/html"},
		{"/", "POST", "/", opts, 405, "application/json"},
	}
	tested := map[string]bool{}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.method, test.target, test.code), func(t *testing.T) {
			tested[fmt.Sprint(test.path, " ", test.code)] = true
			want := doc.content(t, test.path, fmt.Sprint(test.code), test.mediaType)
			code, header, body := request(t, newExporter(t, test.opts).Handler(), test.method, test.target)
			if code != test.code {
				t.Fatalf("status %d, want %d: %s", code, test.code, body)
			}
			mediaType, _, _ := strings.Cut(header.Get("Content-Type"), ";")
			if mediaType != test.mediaType {
				t.Fatalf("content type %s, want %s", mediaType, test.mediaType)
			}
			if mediaType != "application/json" {
				return
			}
			all := strings.Contains(test.target, "all=true")
			if err := doc.check("body", want, decode(t, body), all); err != nil {
				t.Error(err)
			}
		})
	}
	testChanges(t, func(path, code, body string) {
		tested[path+" "+code] = true
		if err := doc.check("body", doc.content(t, path, code, "application/json"), decode(t, body), false); err != nil {
			t.Errorf("%s %s: %v", path, code, err)
		}
	})
	for path, item := range doc.Paths {
		for code := range item.Post.Responses {
			if !tested[path+" "+code] {
				t.Errorf("%s: documented answer %s is not tested", path, code)
			}
		}
		for code := range item.Get.Responses {
			if !tested[path+" "+code] {
				t.Errorf("%s: documented answer %s is not tested", path, code)
			}
		}
	}
}

// The document and the handler know the same query parameters.
func TestOpenAPIParameters(t *testing.T) {
	_, ofContainers := parseQuery("unknown=1")
	_, _, ofHistory := parseHistory("unknown=1", now)
	for path, err := range map[string]error{"/api/v1/containers": ofContainers, "/api/v1/history": ofHistory} {
		var want []string
		for _, p := range readDocument(t).Paths[path].Get.Parameters {
			want = append(want, p.Name)
		}
		got := strings.Split(strings.TrimPrefix(err.Error(), `query parameter "unknown": unknown; there are `), ", ")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: parameters (-documented +known):\n%s", path, diff)
		}
	}
}

// The documents know every reason that usage may give.
func TestReasonsDocumented(t *testing.T) {
	metrics, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := parser.ParseFile(token.NewFileSet(), "../internal/usage/types.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	ast.Inspect(source, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Reason" {
			reason, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons = append(reasons, reason)
		}
		return true
	})
	if diff := cmp.Diff(reasons, readDocument(t).Components.Schemas["Container"].Properties["reason"].Enum); diff != "" {
		t.Errorf("reasons in openapi.yaml (-usage +documented):\n%s", diff)
	}
	for _, reason := range reasons {
		if reason != "" && !strings.Contains(string(metrics), "\n| `"+reason+"` |") {
			t.Errorf("METRICS.md: reason %s is not documented", reason)
		}
	}
}

func decode(t *testing.T, body string) any {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(body))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	return value
}
