// SPDX-License-Identifier: Apache-2.0

package procsource

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// A snapshot says when the files were read, which is not when it was taken.
func TestSnapshotSaysWhenRead(t *testing.T) {
	datapath := NewDatapath(1)
	accounts := usage.New(usage.Options{Datapath: datapath, Retention: func() time.Duration { return time.Hour }})
	c := &Controller{Options: Options{Datapath: datapath, Accounts: accounts}, metrics: newMetrics()}
	c.pollAll()
	read := c.polled
	time.Sleep(time.Millisecond)
	if s := c.Snapshot(); !s.ReadAt.Equal(read) || !s.TakenAt.After(read) {
		t.Errorf("read at %s, taken at %s; want it read at %s", s.ReadAt, s.TakenAt, read)
	}
	c.pollAll()
	if s := c.Snapshot(); !s.ReadAt.After(read) {
		t.Errorf("read at %s after another reading", s.ReadAt)
	}
}
