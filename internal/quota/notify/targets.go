// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// newTarget returns where a notifier's alerts go. It opens nothing.
func newTarget(c Config, o Options) target {
	log := o.Log.With("notifier", c.Name)
	switch {
	case c.Alertmanager != nil:
		return &alertmanager{
			Alertmanager: *c.Alertmanager, options: o,
			server: server{name: c.Name, configFile: c.Alertmanager.HTTPConfigFile, version: o.Version},
		}
	case c.Webhook != nil:
		return &webhook{
			Webhook: *c.Webhook, options: o,
			server: server{name: c.Name, configFile: c.Webhook.HTTPConfigFile, version: o.Version},
		}
	case c.Exec != nil:
		return &program{command: c.Exec.Command, options: o, log: log}
	}
	return journal{log}
}

// payload is what a webhook and a program get.
type payload struct {
	Version  int         `json:"version"`  // 1; grows when a field changes its meaning
	Delivery string      `json:"delivery"` // the same whenever the same is told
	Instance string      `json:"instance"` // the host
	Alert    quota.Alert `json:"alert"`
}

// payloadOf returns an alert as JSON. An error is for good.
func payloadOf(a quota.Alert, instance string) (delivery string, body []byte, err error) {
	delivery = deliveryKey(a, instance)
	body, err = json.Marshal(payload{Version: 1, Delivery: delivery, Instance: instance, Alert: a})
	if err != nil {
		return "", nil, &failure{cause: fmt.Errorf("encode alert %s: %w", a.ID, err), permanent: true}
	}
	return delivery, body, nil
}

// deliveryKey tells one state of an alert from all others. It is made of what outlives
// a restart, so that one who is told twice can know.
func deliveryKey(a quota.Alert, instance string) string {
	text := []string{instance, a.ID, a.State, a.StartsAt.UTC().Format(time.RFC3339Nano)}
	sum := sha256.Sum256([]byte(strings.Join(text, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// journal tells nettally's own log.
type journal struct{ log *slog.Logger }

func (j journal) deliver(ctx context.Context, alerts []quota.Alert) error {
	for _, a := range alerts {
		level := slog.LevelWarn
		if a.State == quota.Resolved {
			level = slog.LevelInfo
		}
		j.log.Log(ctx, level, "quota alert", "state", a.State, "quota", a.Quota, "key", a.Key, "level", a.Level,
			"used", quota.Whole(a.Used), "limit", quota.Whole(a.Limit), "unit", a.Unit, "since", a.StartsAt, "summary", a.Summary)
	}
	return nil
}

func (journal) close() {}
