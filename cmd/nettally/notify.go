// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/quota/notify"
)

// notifiers are those of the configuration, in notify's words.
func notifiers(config *configs.Config) []notify.Config {
	all := make([]notify.Config, len(config.Notifiers))
	for i, n := range config.Notifiers {
		c := notify.Config{Name: n.Name, Timeout: n.Timeout}
		if n.Alertmanager != nil {
			c.Alertmanager = &notify.Alertmanager{URL: n.Alertmanager.URL, HTTPConfigFile: n.Alertmanager.HTTPConfigFile}
		}
		if n.Webhook != nil {
			c.Webhook = &notify.Webhook{URL: n.Webhook.URL, SecretFile: n.Webhook.SecretFile, HTTPConfigFile: n.Webhook.HTTPConfigFile}
		}
		if n.Exec != nil {
			c.Exec = &notify.Exec{Command: n.Exec.Command}
		}
		if n.Log {
			c.Log = &notify.Log{}
		}
		all[i] = c
	}
	return all
}

// means are how the notifiers of a configuration are told.
func means(config *configs.Config) map[string]quota.Means {
	all := map[string]quota.Means{}
	for _, n := range config.Notifiers {
		all[n.Name] = quota.ByDelivery
		if n.Alertmanager != nil {
			all[n.Name] = quota.ByState
		}
	}
	return all
}

// generatorURL is where people read more of an alert, as far as we know: our own page.
func generatorURL(config *configs.Config) string {
	if config.Exporter.Listen == "" {
		return ""
	}
	return "http://" + config.Exporter.Listen + "/"
}

// testNotifier has a notifier tell a test alert, at once.
func (d *daemon) testNotifier(ctx context.Context, name string) error {
	known := slices.ContainsFunc(d.config.Load().Notifiers, func(n configs.Notifier) bool { return n.Name == name })
	if !known {
		return fmt.Errorf("%w: no notifier is called %q", quota.ErrUnknown, name)
	}
	return d.notify.Test(ctx, name)
}
