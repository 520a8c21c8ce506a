// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// errUnfit is the error of a value that the key's expectation explains.
var errUnfit = errors.New("unfit")

// check makes a Config of settings, and a problem of every value that is unfit.
func (s *source) check(r raw) *Config {
	return &Config{
		StateDir: checked(s, "state_dir", r.StateDir, absolute),
		Log: Log{
			Level:  checked(s, "log.level", r.Log.Level, level),
			Format: checked(s, "log.format", r.Log.Format, oneOf(FormatText, FormatJSON)),
		},
		BPF: BPF{
			PinPath:       checked(s, "bpf.pin_path", r.BPF.PinPath, pinPath),
			MaxInterfaces: int(checked(s, "bpf.max_interfaces", strconv.Itoa(r.BPF.MaxInterfaces), positive16)),
		},
		Attach: Attach{
			Mode:     checked(s, "attach.mode", r.Attach.Mode, oneOf(Auto, ModeClsact, ModeTCX)),
			Priority: checked(s, "attach.priority", strconv.Itoa(r.Attach.Priority), positive16),
			CNIDirs:  checkedList(s, "attach.cni_dirs", r.Attach.CNIDirs, once(absolute)),
			Interfaces: Selection{
				Include: checkedList(s, "attach.interfaces.include", r.Attach.Interfaces.Include, glob),
				Exclude: checkedList(s, "attach.interfaces.exclude", r.Attach.Interfaces.Exclude, glob),
			},
		},
		Watch: s.checkWatch(r),
		Names: Names{
			Docker: checked(s, "names.docker", r.Names.Docker, runtimeSocket),
			Podman: checked(s, "names.podman", r.Names.Podman, runtimeSocket),
			CRI:    checked(s, "names.cri", r.Names.CRI, runtimeSocket),
			Labels: checkedList(s, "names.labels", r.Names.Labels, once(filled)),
		},
		Accounting: Accounting{
			Source: checked(s, "accounting.source", r.Accounting.Source, oneOf(Auto, SourceBPF, SourceProc)),
			Cgroup: checked(s, "accounting.cgroup", r.Accounting.Cgroup, oneOf(Auto, CgroupAll, Off)),
			TCP:    checked(s, "accounting.tcp", r.Accounting.TCP, oneOf(Auto, Off)),

			Sockets:   checked(s, "accounting.sockets", r.Accounting.Sockets, s.onSlotsOfTCP(r)) == On,
			Conntrack: checked(s, "accounting.conntrack", r.Accounting.Conntrack, oneOf(On, Off)) == On,
			NFLOG:     NFLOG{Group: checked(s, "accounting.nflog.group", strconv.Itoa(r.Accounting.NFLOG.Group), number16)},
		},
		Requests: Requests{
			HTTP:  checked(s, "requests.http", r.Requests.HTTP, s.onSlotsOfTCP(r)) == On,
			TLS:   checked(s, "requests.tls", r.Requests.TLS, s.onSlotsOfTCP(r)) == On,
			DNS:   checked(s, "requests.dns", r.Requests.DNS, s.onSlotsOfTCP(r)) == On,
			Ports: checkedList(s, "requests.ports", r.Requests.Ports, once(positive16)),
		},
		Limits: s.checkLimits(r),
		Exporter: Exporter{
			Listen:    checked(s, "exporter.listen", r.Exporter.Listen, orEmpty(address)),
			Socket:    checked(s, "exporter.socket", r.Exporter.Socket, orEmpty(socket)),
			WebConfig: checked(s, "exporter.web_config", r.Exporter.WebConfig, orEmpty(absolute)),
			Hosts:     checkedList(s, "exporter.hosts", r.Exporter.Hosts, once(hostName)),
		},
		Metrics: Metrics{
			Families: checkedList(s, "metrics.families", r.Metrics.Families,
				once(oneOf(FamilyInterface, FamilyProtocol, FamilyFamily, FamilyTCPFlags))),
			Compat:  checked(s, "metrics.compat", r.Metrics.Compat, oneOf("", CompatCadvisor)),
			Periods: s.checkPeriods(r),
		},
		Retention: s.checkRetention(r),
		Quotas:    s.checkQuotas(r),
		Notifiers: s.checkNotifiers(r),
	}
}

// onSlotsOfTCP takes what a key may be whose counts are on the slots that accounting.tcp takes.
func (s *source) onSlotsOfTCP(r raw) reader[string] {
	return func(text string) (string, error) {
		if text == On && r.Accounting.TCP == Off {
			return "", errors.New("accounting.tcp is off")
		}
		return oneOf(On, Off)(text)
	}
}

func (s *source) checkWatch(r raw) Watch {
	return Watch{
		CgroupRoot: checked(s, "watch.cgroup_root", r.Watch.CgroupRoot, cgroupRoot),
		Reconcile:  checked(s, "watch.reconcile", r.Watch.Reconcile, atLeast(time.Second)),
		Containers: Selection{
			Include: checkedList(s, "watch.include", r.Watch.Include, glob),
			Exclude: checkedList(s, "watch.exclude", r.Watch.Exclude, glob),
		},
		Patterns: checkedList(s, "watch.patterns", r.Watch.Patterns, pattern),
	}
}

func (s *source) checkLimits(r raw) Limits {
	number := func(name string, value int) int {
		return checked(s, "limits."+name, strconv.Itoa(value), aMillion)
	}
	return Limits{
		Containers:     number("containers", r.Limits.Containers),
		PerUser:        number("per_user", r.Limits.PerUser),
		Interfaces:     number("interfaces", r.Limits.Interfaces),
		Ended:          number("ended", r.Limits.Ended),
		SlotsForRoot:   checked(s, "limits.slots_for_root", strconv.FormatFloat(r.Limits.SlotsForRoot, 'g', -1, 64), part),
		SeriesPerQuota: number("series_per_quota", r.Limits.SeriesPerQuota),

		SeriesPerPeriod: number("series_per_period", r.Limits.SeriesPerPeriod),
	}
}

// periodsMax is how many ended periods can be kept.
const periodsMax = 31

func (s *source) checkPeriods(r raw) MetricPeriods {
	of := r.Metrics.Periods
	p := MetricPeriods{
		Every: checked(s, "metrics.periods.every", of.Every, oneOf("day", "week", "month")),
		Day: checked(s, "metrics.periods.day", strconv.Itoa(of.Day), func(text string) (int, error) {
			if of.Day < 1 || of.Day > 31 || of.Day != 1 && of.Every != "month" {
				return 0, errUnfit
			}
			return of.Day, nil
		}),
		Location: checked(s, "metrics.periods.timezone", of.Timezone, named(zone)),
		By: checkedList(s, "metrics.periods.by", of.By, once(func(text string) (string, error) {
			if label, isLabel := strings.CutPrefix(text, "label:"); isLabel {
				return fit(text, slices.Contains(r.Names.Labels, label))
			}
			return oneOf("namespace", "name", "pod")(text)
		})),
	}
	least := map[string]time.Duration{"day": day, "week": 7 * day, "month": 28 * day}[of.Every]
	p.Keep = checked(s, "metrics.periods.keep", of.Keep, func(text string) (time.Duration, error) {
		d, err := atLeast(0)(text)
		if err == nil && d > periodsMax*least && least > 0 {
			return 0, fmt.Errorf("metrics.periods.every is %s", of.Every)
		}
		return d, err
	})
	return p
}

// named takes no empty name, which the time package takes for UTC, and not the host's own zone:
// the hosts of a fleet would have periods of one name at different times.
func named(read reader[*time.Location]) reader[*time.Location] {
	return func(text string) (*time.Location, error) {
		if text == "" || text == "Local" {
			return time.UTC, errUnfit
		}
		in, err := read(text)
		if err != nil {
			return time.UTC, err
		}
		return in, nil
	}
}

func (s *source) checkRetention(r raw) Retention {
	good := len(s.problems)
	kept := Retention{
		Metrics: checked(s, "retention.metrics", r.Retention.Metrics, atLeast(0)),
		API:     checked(s, "retention.api", r.Retention.API, atLeast(0)),
		Hours:   checked(s, "retention.hours", r.Retention.Hours, atLeast(day)),
		Days:    checked(s, "retention.days", r.Retention.Days, atLeast(0)),
	}
	if len(s.problems) > good || kept.Hours <= kept.Days {
		return kept
	}
	// The one that was not left at its default is to blame.
	if k, _ := keyAt("retention.days"); r.Retention.Days == k.value {
		s.report("retention.hours", "", r.Retention.Hours, fmt.Errorf("retention.days is %s", r.Retention.Days))
	} else {
		s.report("retention.days", "", r.Retention.Days, fmt.Errorf("retention.hours is %s", r.Retention.Hours))
	}
	return kept
}

// A reader makes a value of its text.
type reader[T any] func(text string) (T, error)

func checked[T any](s *source, path, text string, read reader[T]) T {
	return checkedAt(s, path, "", text, read)
}

func checkedList[T any](s *source, path string, texts []string, read reader[T]) []T {
	values := make([]T, len(texts))
	for i, text := range texts {
		values[i] = checkedAt(s, path, fmt.Sprintf("[%d]", i), text, read)
	}
	return values
}

func checkedAt[T any](s *source, path, index, text string, read reader[T]) T {
	value, err := read(text)
	// Only the environment and flags can hold other than UTF-8, and it could not be
	// written back.
	if err == nil && !utf8.ValidString(text) {
		err = errUnfit
	}
	if err != nil {
		s.report(path, index, text, err)
	}
	return value
}

// fit returns text if it is fit.
func fit(text string, is bool) (string, error) {
	if !is {
		return "", errUnfit
	}
	return text, nil
}

func oneOf(words ...string) reader[string] {
	return func(text string) (string, error) { return fit(text, slices.Contains(words, text)) }
}

func orEmpty(read reader[string]) reader[string] {
	return func(text string) (string, error) {
		if text == "" {
			return "", nil
		}
		return read(text)
	}
}

// once refuses what it has read before, so it is made anew for each list.
func once[T any](read reader[T]) reader[T] {
	seen := map[string]bool{}
	return func(text string) (value T, err error) {
		if seen[text] {
			return value, errUnfit
		}
		seen[text] = true
		return read(text)
	}
}

func filled(text string) (string, error) { return fit(text, strings.TrimSpace(text) != "") }

func level(text string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if text == strings.ToLower(l.String()) {
			return l, nil
		}
	}
	return 0, errUnfit
}

func number16(text string) (uint16, error) {
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, errUnfit
	}
	return uint16(number), nil
}

func positive16(text string) (uint16, error) {
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil || number == 0 {
		return 0, errUnfit
	}
	return uint16(number), nil
}

func aMillion(text string) (int, error) {
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 || number > 1_000_000 {
		return 0, errUnfit
	}
	return number, nil
}

func part(text string) (float64, error) {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil || !(number >= 0 && number <= 1) { // nor NaN
		return 0, errUnfit
	}
	return number, nil
}

func atLeast(least time.Duration) reader[time.Duration] {
	return func(text string) (time.Duration, error) {
		d, err := parseDuration(text)
		if err != nil || d < least {
			return 0, errUnfit
		}
		return d, nil
	}
}

func absolute(text string) (string, error) {
	if !filepath.IsAbs(text) || strings.ContainsRune(text, 0) {
		return "", errUnfit
	}
	return filepath.Clean(text), nil
}

// pinPath takes a directory that nettally may have for itself: detach removes what it
// finds there.
func pinPath(text string) (string, error) {
	clean, err := absolute(text)
	if err != nil || clean == "/" || clean == "/sys/fs/bpf" {
		return "", errUnfit
	}
	return clean, nil
}

// socket takes what fits into sun_path with its closing NUL.
func socket(text string) (string, error) {
	clean, err := absolute(text)
	if err != nil || len(clean) > 107 || clean == "/" {
		return "", errUnfit
	}
	return clean, nil
}

func cgroupRoot(text string) (string, error) {
	if text == Auto {
		return text, nil
	}
	return absolute(text)
}

func runtimeSocket(text string) (string, error) {
	if text == Auto || text == Off {
		return text, nil
	}
	name, isUnix := strings.CutPrefix(text, "unix://")
	if !isUnix {
		return "", errUnfit
	}
	clean, err := socket(name)
	return "unix://" + clean, err
}

func glob(text string) (string, error) {
	_, err := path.Match(text, "")
	return fit(text, err == nil && text != "")
}

func pattern(text string) (*regexp.Regexp, error) {
	compiled, err := regexp.Compile(text)
	var cause *syntax.Error
	switch {
	case errors.As(err, &cause):
		return nil, errors.New(cause.Code.String()) // without the expression once more
	case err != nil:
		return nil, err
	case compiled.SubexpIndex("id") < 0:
		return nil, errUnfit
	}
	return compiled, nil
}

// hostname is deliberately wide: the resolver has the last word.
var hostname = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)

func address(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", errUnfit
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", errUnfit
	}
	return fit(text, host == "" || isHost(host))
}

// hostName takes a name only: addresses are always served.
func hostName(text string) (string, error) {
	_, err := netip.ParseAddr(text)
	return fit(text, err != nil && isHost(text))
}

func isHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	// Numbers and dots alone are an IPv4 address gone wrong, such as 127.0.0.256.
	return hostname.MatchString(host) && strings.Trim(host, "0123456789.") != ""
}
