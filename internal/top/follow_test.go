// SPDX-License-Identifier: Apache-2.0

package top

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/exporter"
)

// fakeClient answers from scripts: one for each connection, and then none.
type fakeClient struct {
	mu      sync.Mutex
	scripts [][]any // events, and an error at the end
	asked   []string
}

func (c *fakeClient) Follow(ctx context.Context, _ time.Duration) iter.Seq2[exporter.StreamEvent, error] {
	c.mu.Lock()
	defer c.mu.Unlock()
	script := []any{errors.New("no more")}
	if len(c.scripts) > 0 {
		script, c.scripts = c.scripts[0], c.scripts[1:]
	}
	return func(yield func(exporter.StreamEvent, error) bool) {
		for _, e := range script {
			err, failed := e.(error)
			if failed && !yield(nil, err) || !failed && !yield(e, nil) {
				return
			}
		}
	}
}

func (c *fakeClient) Get(_ context.Context, target string, body any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, target)
	switch body := body.(type) {
	case *exporter.Container:
		body.ID, body.Name, body.Namespace, body.Pod = "1000~x", "web", "prod", "pod"
		body.Labels = map[string]string{"tier": "front"}
	case *exporter.QuotaList:
		for _, of := range [][2]string{{"container", "1000~x"}, {"container", "other"}, {"name", "web"}, {"name", "db"}, {"pod", "prod/pod"}, {"pod", "prod/other"},
			{"namespace", "prod"}, {"namespace", "test"}, {"label:tier", "front"}, {"label:tier", "back"}, {"label:none", ""}} {
			body.Quotas = append(body.Quotas, exporter.Quota{Per: of[0], Key: of[1]})
		}
	case *exporter.History:
		return errors.New("no ledger")
	}
	return nil
}

// A connection that is lost is made again, and says what became of it.
func TestFollow(t *testing.T) {
	all := &exporter.StreamContainers{Replace: true}
	c := &fakeClient{scripts: [][]any{
		{all, &exporter.StreamSample{}, errors.New("lost")},
		{&exporter.StreamContainers{}, &exporter.StreamSample{}, errors.New("lost again")},
		{all, &exporter.StreamSample{}, errors.New("last")},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	follow(ctx, c, time.Second, func(m tea.Msg) {
		switch m := m.(type) {
		case eventMsg:
			got = append(got, strings.TrimPrefix(fmt.Sprintf("%T", m.event), "*exporter.Stream"))
		case recentMsg:
			got = append(got, "recent")
		case lostMsg:
			got = append(got, m.err.Error())
			if m.err.Error() == "last" {
				cancel()
			}
		}
	})
	want := []string{"Containers", "recent", "Sample", "lost", "Containers", "Sample", "lost again", "Containers", "recent", "Sample", "last"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whoever can't be reached at the beginning is an error, not a screen.
func TestRunWithoutDaemon(t *testing.T) {
	refused := errors.New("refused")
	err := Run(t.Context(), Options{Client: &fakeClient{scripts: [][]any{{refused}}}, Interval: time.Second, Settings: Defaults()})
	if !errors.Is(err, refused) {
		t.Errorf("error %v, want %v", err, refused)
	}
}

func TestLoadDetails(t *testing.T) {
	c := &fakeClient{}
	ctx, cancel := context.WithCancel(t.Context())
	wishes := make(chan string, 1)
	wishes <- "1000~x"
	loadDetails(ctx, c, wishes, func(m tea.Msg) {
		defer cancel()
		got, ok := m.(detailsMsg)
		if !ok || got.container.Name != "web" || got.noHistory == nil {
			t.Errorf("%+v", m)
		}
		var keys []string
		for _, q := range got.quotas {
			keys = append(keys, q.Per+" "+q.Key)
		}
		if diff := cmp.Diff([]string{"container 1000~x", "name web", "pod prod/pod", "namespace prod", "label:tier front"}, keys); diff != "" {
			t.Errorf("quotas (-want +got):\n%s", diff)
		}
	})
	want := []string{"/api/v1/containers/1000~x", "/api/v1/quotas", "/api/v1/history?by=container&container=1000~x&step=hour&user=1000"}
	if diff := cmp.Diff(want, c.asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}
