// SPDX-License-Identifier: Apache-2.0

package notify

import (
	"context"
	"time"

	"github.com/nettally/nettally/internal/quota"
)

// aloneFor is how long a delivery may hold up others that would pass.
const aloneFor = time.Hour

// deliverer tells a webhook, a program or the log: each change of an alert once, in order.
type deliverer struct {
	*worker
	head   uint64    // the number of the delivery that comes next
	since  time.Time // it fails as others may not, zero for never
	probed uint64    // the last that was tried in its stead
}

func (d *deliverer) round(ctx context.Context) time.Duration {
	head, ok := d.source.Next(d.config.Name, 0)
	if !ok {
		return idle
	}
	if head.Number != d.head {
		d.head, d.since, d.probed = head.Number, time.Time{}, head.Number
	}
	result, err := d.tell(ctx, head)
	switch {
	case result == taken || result == refused:
		return 0
	case result == cut:
		return idle
	case result == alone && d.since.IsZero():
		d.since = d.now()
	case result == alone && d.now().Sub(d.since) >= aloneFor && d.othersPass(ctx, head):
		return d.last(ctx, head)
	}
	return d.pause(head.Alert, err)
}

// tell tells of a delivery once.
func (d *deliverer) tell(ctx context.Context, delivery quota.Delivery) (outcome, error) {
	result, err := d.attempt(ctx, []quota.Alert{delivery.Alert})
	switch result {
	case taken:
		d.series.sent.Add(1)
		d.source.Done(delivery, false)
	case refused:
		d.drop(delivery, "notifier refuses an alert; it was dropped", err)
	}
	return result, err
}

func (d *deliverer) drop(delivery quota.Delivery, why string, err error) {
	d.log.Error(why, "alert", delivery.Alert.ID, "state", delivery.Alert.State, "err", err)
	d.source.Done(delivery, true)
}

// othersPass tries the next delivery of another alert in the head's stead, each time a later
// one, so that several which fail alone do not vouch for each other.
func (d *deliverer) othersPass(ctx context.Context, head quota.Delivery) bool {
	other, ok := d.source.Next(d.config.Name, d.probed)
	for ok && other.Alert.ID == head.Alert.ID {
		other, ok = d.source.Next(d.config.Name, other.Number)
	}
	if !ok {
		d.probed = head.Number // from the beginning again
		return false
	}
	d.probed = other.Number
	result, _ := d.tell(ctx, other)
	return result == taken
}

// last tries the head once more, now that another delivery has passed, and drops it if it still
// fails alone.
func (d *deliverer) last(ctx context.Context, head quota.Delivery) time.Duration {
	result, err := d.tell(ctx, head)
	switch result {
	case alone:
		d.drop(head, "an alert fails where others pass, for an hour; it was dropped", err)
		return 0
	case cut:
		return idle
	case away:
		return d.pause(head.Alert, err)
	}
	return 0
}
