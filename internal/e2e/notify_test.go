// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// Where the notified listen, in a host's namespace.
const (
	alertmanagerAddress = "127.0.0.1:9093"
	webhookAddress      = "127.0.0.1:9094"
	webhookSecret       = "only for this test"
)

// notified is an Alertmanager and a webhook on a host.
type notified struct {
	t          *testing.T
	host       *testnet.Namespace
	secretFile string

	mu        sync.Mutex
	delivered map[string]quota.Alert // by delivery key
	order     []string               // "50 firing", as the webhook was told
	again     int
	wrong     []string
}

// startNotified starts a real Alertmanager and a webhook.
func startNotified(t *testing.T, host *testnet.Namespace) *notified {
	t.Helper()
	need.Commands(t, "prometheus-alertmanager")
	n := &notified{t: t, host: host, secretFile: filepath.Join(t.TempDir(), "secret"), delivered: map[string]quota.Alert{}}
	if err := os.WriteFile(n.secretFile, []byte(webhookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.startAlertmanager()
	var listener net.Listener
	err := host.Do(func() (err error) {
		listener, err = net.Listen("tcp", webhookAddress)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(n.take)}}
	server.Start()
	t.Cleanup(server.Close)
	return n
}

func (n *notified) startAlertmanager() {
	n.t.Helper()
	folder := n.t.TempDir()
	config := filepath.Join(folder, "alertmanager.yml")
	if err := os.WriteFile(config, []byte("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("prometheus-alertmanager", "--config.file", config, "--storage.path", filepath.Join(folder, "data"),
		"--web.listen-address", alertmanagerAddress, "--cluster.listen-address", "")
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.host.Start(cmd); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // ended by a signal
		if n.t.Failed() {
			n.t.Logf("log of Alertmanager:\n%s", log)
		}
	})
}

// config tells nettally of both.
func (n *notified) config() string {
	return fmt.Sprintf("notifiers:\n  - {name: ops, alertmanager: {url: %q}}\n  - {name: hook, webhook: {url: %q, secret_file: %q}}\n",
		"http://"+alertmanagerAddress, "http://"+webhookAddress+"/alerts", n.secretFile)
}

// take is what the webhook does.
func (n *notified) take(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	mac := hmac.New(sha256.New, []byte(webhookSecret))
	fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Nettally-Timestamp"), body)
	var said struct {
		Alert quota.Alert `json:"alert"`
	}
	err := json.Unmarshal(body, &said)
	n.mu.Lock()
	defer n.mu.Unlock()
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); err != nil || r.Header.Get("X-Nettally-Signature") != want {
		n.wrong = append(n.wrong, fmt.Sprintf("%v, signature %q, want %q: %s", err, r.Header.Get("X-Nettally-Signature"), want, body))
	}
	key := r.Header.Get("X-Nettally-Delivery")
	if _, before := n.delivered[key]; before {
		n.again++
	} else {
		n.order = append(n.order, said.Alert.Level+" "+said.Alert.State)
	}
	n.delivered[key] = said.Alert
}

// told waits until both were told that these levels fire, the webhook each once and in order.
func (n *notified) told(d *daemon, levels ...string) {
	n.t.Helper()
	var want []string
	for _, level := range levels {
		want = append(want, level+" firing")
	}
	d.poll("told", func() error {
		n.mu.Lock()
		order, wrong, again := slices.Clone(n.order), n.wrong, n.again
		n.mu.Unlock()
		if len(wrong) > 0 {
			n.t.Fatalf("the webhook was told %q", wrong)
		}
		if !slices.Equal(order, want) {
			return fmt.Errorf("the webhook was told %q, want %q (%d again)", order, want, again)
		}
		active, err := n.active()
		if err == nil && !slices.Equal(active, slices.Sorted(slices.Values(levels))) {
			err = fmt.Errorf("active in Alertmanager are %q, want %q", active, levels)
		}
		return err
	})
}

// active returns the levels that the Alertmanager has as active, sorted.
func (n *notified) active() ([]string, error) {
	text, err := fetch(client(n.host), alertmanagerAddress, "/api/v2/alerts?active=true")
	if err != nil {
		return nil, err
	}
	var alerts []struct {
		Labels, Annotations map[string]string
		StartsAt            time.Time
	}
	if err := json.Unmarshal([]byte(text), &alerts); err != nil {
		return nil, err
	}
	var levels []string
	for _, a := range alerts {
		if a.Labels["quota"] != "egress" || a.Labels["key"] != "web" || a.Labels["alertname"] == "" || a.Annotations["summary"] == "" {
			return nil, fmt.Errorf("alert without its labels: %+v", a)
		}
		levels = append(levels, a.Labels["level"])
	}
	slices.Sort(levels)
	return levels, nil
}

// Somebody who sets notifiers up can try them.
func TestQuotaTest(t *testing.T) {
	need.Root(t)
	t.Parallel()
	host := nettest.Host(t)
	n := startNotified(t, host)
	d := startDaemon(t, on{host}, "watch: {include: [\"/none\"]}\nnames: {docker: \"off\", podman: \"off\", cri: \"off\"}\n"+n.config())
	d.poll("sent", func() error {
		out, err := d.run("quota", "test", "ops") // which may be starting
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if out, err := d.run("quota", "test", "hook"); err != nil {
		t.Errorf("quota test hook: %v: %s", err, out)
	}
	n.mu.Lock()
	if len(n.delivered) != 1 || len(n.wrong) != 0 {
		t.Errorf("the webhook was told %+v, %q", n.delivered, n.wrong)
	}
	n.mu.Unlock()
	if out, err := d.run("quota", "test", "nobody"); exitCode(err) != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, `no notifier is called "nobody"`) {
		t.Errorf("quota test nobody: %v: %q", err, out)
	}
}
