// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/nettally/nettally/internal/usage"
)

func (s *site) set(name, value string) {
	s.tb.Helper()
	must(s.tb, s.host.Do(func() error { return os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0) }))
}

// get reads a sysctl of the host's.
func (s *site) get(name string) (value string, err error) {
	err = s.host.Do(func() error { value, err = setting(name); return err })
	return value, err
}

// A kernel without connection tracking has none of its sysctls.
func TestCheckAbsent(t *testing.T) {
	none := func(name string) (string, error) {
		return "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if _, err := check(0, none); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
}

// What keeps connections from being counted is told apart, and then nothing is shown, not 0.
func TestCheck(t *testing.T) {
	s := newSite(t)
	tracker := s.track(Options{})
	s.found(tracker)
	if _, err := check(s.host.FD(), s.get); !errors.Is(err, ErrIdle) {
		t.Errorf("nothing is tracked: %v", err)
	}
	if got := tracker.Counted(); len(got) != 0 {
		t.Errorf("nothing is tracked: %+v", got)
	}
	s.send(s.client, outsideAddress+":9", 1)
	if found, err := check(s.host.FD(), s.get); err != nil || !strings.Contains(found, "byte accounting off") || !strings.HasPrefix(found, "1 entries") {
		t.Errorf("%q, %v", found, err)
	}
	s.set("nf_conntrack_acct", "1")
	if found, err := check(s.host.FD(), s.get); err != nil || !strings.Contains(found, "byte accounting on") {
		t.Errorf("%q, %v", found, err)
	}
	s.set("nf_conntrack_events", "0")
	if _, err := check(s.host.FD(), s.get); !errors.Is(err, ErrSilent) {
		t.Errorf("without events: %v", err)
	}
	s.poll("the entry is listed, and what is opened is not known", func() bool {
		c, ok := tracker.Counted()["client"]
		return ok && c.Listed && !c.Told && c.Transmit[usage.ProtocolUDP].Other == 1
	}, func() any { return tracker.Counted() })
}
