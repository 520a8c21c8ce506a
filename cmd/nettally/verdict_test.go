// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/quota"
)

// ended runs a command as main does, and returns what it printed and its exit code.
func ended(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = execute(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), code
}

func TestQuotaCheck(t *testing.T) {
	s := someStanding()
	all := s.status
	flags := serving(t, exporter.Options{Quotas: s})
	level := func(name string) []quota.Level { return []quota.Level{{Name: "50"}, {Name: name, Firing: true}} }
	one := func(levels []quota.Level) []quota.Status {
		return []quota.Status{{Quota: "q", Key: "k", Per: "name", Used: 6, Limit: 10, Unit: "packets", Ratio: 0.6, Levels: levels}}
	}
	foremost := func(word string, firing int) string {
		return fmt.Sprintf("QUOTA %s: %d of 1 keys have a level that fires, foremost q of k: 60.0%% (6 packets of 10 packets) | ", word, firing)
	}
	for name, test := range map[string]struct {
		status []quota.Status
		args   []string
		code   int
		want   string
	}{
		"none fires":            {one([]quota.Level{{Name: "50"}, {Name: "100"}}), nil, 0, foremost("OK", 0) + "'q k'=6;5;10;0;10"},
		"a level below":         {one(level("80")), nil, 1, foremost("WARNING", 1) + "'q k'=6;5;;0;10"},
		"the limit":             {one(level("100")), nil, 2, foremost("CRITICAL", 1) + "'q k'=6;5;10;0;10"},
		"a level above":         {one(level("150")), nil, 2, foremost("CRITICAL", 1) + "'q k'=6;5;15;0;10"},
		"the projection":        {one(level(quota.LevelProjection)), nil, 1, foremost("WARNING", 1) + "'q k'=6;5;;0;10"},
		"a rate":                {one([]quota.Level{{Name: quota.LevelRate, Firing: true}}), nil, 2, foremost("CRITICAL", 1) + "'q k'=6;;10;0;10"},
		"no quotas":             {nil, nil, 3, "QUOTA UNKNOWN: there are no quotas; see quotas in the configuration"},
		"a quota without a key": {[]quota.Status{{Quota: "q", Per: "name", Limit: 10, Unit: "packets"}}, nil, 0, "QUOTA OK: 0 of 0 keys have a level that fires"},
		"a quota that is not there": {all, []string{"nope"}, 3,
			"QUOTA UNKNOWN: find quota \"nope\": there is none; see `nettally quota list`"},
		"several": {all, nil, 2, "QUOTA CRITICAL: 2 of 4 keys have a level that fires, " +
			"foremost syn of web (3f3f3f3f3f3f): 150.0% (300 requests/s of 200 requests/s) | 'syn web (3f3f3f3f3f3f)'=300;;200;0;200 " +
			"'egress w�eb'=91268055040B;53687091200;107374182400;0;107374182400 'all all'=5;;;0;10 'egress db'=0B;;;0;107374182400"},
		"one of several": {all, []string{"egress"}, 1, "QUOTA WARNING: 1 of 2 keys have a level that fires, " +
			"foremost egress of w�eb: 85.0% (85GiB of 100GiB) | 'egress w�eb'=91268055040B;53687091200;107374182400;0;107374182400 'egress db'=0B;;;0;107374182400"},
		"a hostile key": {[]quota.Status{{Quota: "q", Key: "a|b=c'd\n\u202e", Per: "name", Used: 1, Limit: 1e15, Unit: "packets"}}, nil, 0,
			"QUOTA OK: 0 of 1 keys have a level that fires, foremost q of a/b=c'd��: 0.0% (1 packets of 1P packets) | 'q a/b_c''d��'=1;;;0;1000000000000000"},
	} {
		s.status = test.status
		out, errs, code := ended(t, append(append([]string{"quota", "list", "--check"}, test.args...), flags...)...)
		if out != test.want+"\n" || errs != "" || code != test.code {
			t.Errorf("%s: exit code %d, want %d, printed\n%s%swant\n%s", name, code, test.code, out, errs, test.want)
		}
	}
}

// A line that is too long is cut off by who reads it, and in the middle of a number.
func TestQuotaCheckIsBounded(t *testing.T) {
	s := &standing{}
	for i := range 1000 {
		s.status = append(s.status, quota.Status{Quota: "q", Key: fmt.Sprint(i), Per: "name", Used: float64(i), Limit: 1000, Unit: "packets", Ratio: float64(i) / 1000})
	}
	out, _, code := ended(t, append([]string{"quota", "list", "--check"}, serving(t, exporter.Options{Quotas: s})...)...)
	if n := strings.Count(out, ";0;"); n != judged || code != 0 || !strings.Contains(out, "| 'q 999'=999;") {
		t.Errorf("exit code %d, %d keys, want %d and the foremost first: %s", code, n, judged, out)
	}
}

// Whatever goes wrong is UNKNOWN, in one line on the standard output.
func TestQuotaCheckThatFails(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "nobody")
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--socket", nobody}, "QUOTA UNKNOWN: read quotas from " + nobody + ": nobody answers (is nettally running? see exporter.socket)"},
		{[]string{"--socket", nobody, "-o", "json"}, "QUOTA UNKNOWN: if any flags in the group"},
		{[]string{"--frob"}, "QUOTA UNKNOWN: wrong use: unknown flag: --frob"},
	} {
		out, errs, code := ended(t, append([]string{"quota", "list", "--check"}, test.args...)...)
		if code != 3 || !strings.HasPrefix(out, test.want) || strings.Count(out, "\n") != 1 || errs != "" {
			t.Errorf("%v: exit code %d, printed %q and %q", test.args, code, out, errs)
		}
	}
	if _, errs, code := ended(t, "quota", "list", "--socket", nobody); code != exitFailed || !strings.HasPrefix(errs, "nettally: read quotas") {
		t.Errorf("without --check: exit code %d, %q", code, errs)
	}
}
