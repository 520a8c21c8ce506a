// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nettally/nettally/internal/trusted"
)

// Quota is a limit on what containers use, or a bound on how fast.
type Quota struct {
	Name  string
	Match QuotaMatch
	Per   string // container, name, pod, namespace, all, or label: and a key
	// Count is {receive,transmit,total}_{bytes,packets,tcp_syn}, {receive,transmit}_http_requests
	// or tcp_{connect_attempts,connects,accepts,connect_failures}.
	Count string

	Limit    uint64         // in what is counted; 0 if there is a rate
	Every    string         // hour, day, week, month, lifetime or rolling; "" if there is a rate
	Day      int            // of the month that a month begins on
	Location *time.Location // of the calendar
	Window   time.Duration  // of a rolling window

	AlertAt    []int // percent, ascending
	Projection bool
	Initial    uint64

	Rate *QuotaRate // nil if there is a limit
	// Decimal says that the limit, or above of the rate, is in kB, MB, ….
	Decimal bool
	Notify  []string // names of Notifiers

	written rawQuota
}

// QuotaMatch chooses containers by globs, "" for any.
type QuotaMatch struct {
	Name, ID, Image, Runtime, Namespace, Pod string
	Labels                                   []QuotaLabel
	// User is a uid, or "*": without it a rule is for the containers of root's runtimes.
	User string
}

// QuotaLabel is a glob on a label's value.
type QuotaLabel struct{ Name, Value string }

// QuotaRate is a bound on how fast a count grows.
type QuotaRate struct {
	Above, Clear float64 // per second, in what is counted
	For          time.Duration
	Bits         bool // it was written in bits
}

// Notifier is where alerts are sent. One of its pointers is set.
type Notifier struct {
	Name         string
	Timeout      time.Duration // 0 for the default
	Alertmanager *Alertmanager
	Webhook      *Webhook
	Exec         *Exec
	Log          bool

	written rawNotifier
}

// Alertmanager is one, as its API v2.
type Alertmanager struct {
	URL            string
	HTTPConfigFile string // absolute, or ""
}

// Webhook is a server that takes an alert as JSON.
type Webhook struct {
	URL            string
	SecretFile     string // absolute, or ""
	HTTPConfigFile string // absolute, or ""
}

// Exec is a program that takes an alert as JSON.
type Exec struct {
	Command []string // the first is absolute
}

// defaultAlertAt is where a limit fires unless the file says it.
var defaultAlertAt = []int{80, 100}

var itemName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func name(text string) (string, error) { return fit(text, itemName.MatchString(text)) }

// lister checks one item of a list of sections. It reports with the item's path.
type lister struct {
	*source
	at string // "quotas[3]."
}

func (s *source) item(list string, i int) *lister {
	return &lister{s, list + "[" + strconv.Itoa(i) + "]."}
}

func (l *lister) report(key, got string, cause error) { l.source.report(l.at+key, "", got, cause) }

// unfit reports something that is more than the value of one key.
func (l *lister) unfit(key, format string, args ...any) {
	where := l.file + ": " + strings.TrimSuffix(l.at+key, ".") + ": "
	l.problems = append(l.problems, fmt.Errorf(where+format, args...))
}

// itemText reads the text of a key; "" is none.
func itemText[T any](l *lister, key, text string, read reader[T]) (value T) {
	if text == "" {
		return value
	}
	return checked(l.source, l.at+key, text, read)
}

func (s *source) checkQuotas(r raw) []Quota {
	unique := once(name)
	quotas := make([]Quota, len(r.Quotas))
	for i, written := range r.Quotas {
		l := s.item("quotas", i)
		q := Quota{
			Name:   checked(s, l.at+"name", written.Name, unique),
			Match:  l.match(written, r.Names.Labels),
			Per:    checked(s, l.at+"per", cmp.Or(written.Per, "name"), l.per(r.Names.Labels)),
			Notify: checkedList(s, l.at+"notify", written.Notify, once(l.notifier(r))),
		}
		if written.Rate != nil {
			l.rate(&q, written)
		} else {
			l.limit(&q, written)
		}
		l.counted(q, r)
		written.Per = cmp.Or(written.Per, "name")
		q.written = written
		quotas[i] = q
	}
	return quotas
}

// counted reports a count of connections or HTTP requests where these are not counted: the quota
// would never fire.
func (l *lister) counted(q Quota, r raw) {
	key, ofHTTP := "count", strings.HasSuffix(q.Count, "_http_requests")
	if q.Rate != nil {
		key = "rate.count"
	}
	switch {
	case unitOf(q.Count) != "connections" && !ofHTTP:
	case r.Accounting.TCP == Off:
		l.report(key, q.Count, errors.New("accounting.tcp is off"))
	case r.Accounting.Source == SourceProc && q.Count != "tcp_connect_attempts" && q.Count != "tcp_accepts":
		l.report(key, q.Count, errors.New("accounting.source is proc"))
	case ofHTTP && r.Requests.HTTP == Off:
		l.report(key, q.Count, errors.New("requests.http is off"))
	}
}

func (l *lister) match(w rawQuota, labels []string) QuotaMatch {
	m := QuotaMatch{
		Name:      itemText(l, "match.name", w.Match.Name, glob),
		ID:        itemText(l, "match.id", w.Match.ID, glob),
		Image:     itemText(l, "match.image", w.Match.Image, glob),
		Runtime:   itemText(l, "match.runtime", w.Match.Runtime, glob),
		Namespace: itemText(l, "match.namespace", w.Match.Namespace, glob),
		Pod:       itemText(l, "match.pod", w.Match.Pod, glob),
		User:      itemText(l, "match.user", w.Match.User, user),
	}
	for i, label := range w.Match.Labels {
		at := fmt.Sprintf("%smatch.labels[%d].", l.at, i)
		m.Labels = append(m.Labels, QuotaLabel{
			Name:  checked(l.source, at+"name", label.Name, labelOf(labels)),
			Value: checked(l.source, at+"value", label.Value, glob),
		})
	}
	return m
}

// user takes those that containers can be of.
func user(text string) (string, error) {
	return fit(text, text == "*" || strings.Trim(text, "0123456789") == "")
}

// labelOf takes the labels that are passed on: of others nothing is known.
func labelOf(labels []string) reader[string] {
	return func(text string) (string, error) { return fit(text, slices.Contains(labels, text)) }
}

func (l *lister) per(labels []string) reader[string] {
	return func(text string) (string, error) {
		label, isLabel := strings.CutPrefix(text, "label:")
		if isLabel {
			return fit(text, slices.Contains(labels, label))
		}
		return oneOf("container", "name", "pod", "namespace", "all")(text)
	}
}

func (l *lister) notifier(r raw) reader[string] {
	return func(text string) (string, error) {
		return fit(text, slices.ContainsFunc(r.Notifiers, func(n rawNotifier) bool { return n.Name == text }))
	}
}

func count(text string) (string, error) { return fit(text, unitOf(text) != "") }

// limit checks a quota that has a limit for a period.
func (l *lister) limit(q *Quota, w rawQuota) {
	q.Count = checked(l.source, l.at+"count", w.Count, count)
	if q.Count == "" {
		return // the units of the rest are not known
	}
	q.Limit = checked(l.source, l.at+"limit", w.Limit, func(text string) (uint64, error) {
		n, err := ParseAmount(text, q.Count)
		if err != nil || n == 0 {
			return 0, errUnfit
		}
		return n, nil
	})
	q.Decimal = decimal(w.Limit)
	q.Initial = itemText(l, "initial", w.Initial, func(text string) (uint64, error) {
		n, err := ParseAmount(text, q.Count)
		if err != nil {
			return 0, errUnfit
		}
		return n, nil
	})
	l.period(q, w)
	l.alertAt(q, w)
	calendar := q.Every != "lifetime" && q.Every != "rolling"
	if q.Projection = w.Projection; w.Projection && !calendar {
		l.report("projection", "true", fmt.Errorf("the period is %s", q.Every))
	}
}

func (l *lister) period(q *Quota, w rawQuota) {
	p := w.Period
	if p.Rolling != "" {
		q.Every = "rolling"
		q.Window = checked(l.source, l.at+"period.rolling", p.Rolling, atLeast(2*time.Minute))
		if p.Every != "" || p.Day != nil || p.Timezone != "" {
			l.report("period.rolling", p.Rolling, errors.New("there are others"))
		}
		return
	}
	q.Every = checked(l.source, l.at+"period.every", p.Every, oneOf("hour", "day", "week", "month", "lifetime"))
	q.Day = 1
	if p.Day != nil {
		q.Day = *p.Day
		if q.Day < 1 || q.Day > 31 || p.Every != "month" {
			l.report("period.day", strconv.Itoa(q.Day), fmt.Errorf("period.every is %s", p.Every))
		}
	}
	q.Location = time.Local
	if p.Timezone != "" {
		q.Location = checked(l.source, l.at+"period.timezone", p.Timezone, zone)
		if p.Every == "lifetime" {
			l.report("period.timezone", p.Timezone, fmt.Errorf("period.every is %s", p.Every))
		}
	}
}

func zone(text string) (*time.Location, error) {
	in, err := time.LoadLocation(text)
	if err != nil {
		return nil, errUnfit
	}
	return in, nil
}

func (l *lister) alertAt(q *Quota, w rawQuota) {
	q.AlertAt = defaultAlertAt
	if w.AlertAt != nil {
		q.AlertAt = w.AlertAt
	}
	last := 0
	for _, percent := range q.AlertAt {
		if percent <= last || percent > 1000 {
			l.report("alert_at", fmt.Sprint(q.AlertAt), nil)
			return
		}
		last = percent
	}
}

// rate checks a quota that bounds a rate.
func (l *lister) rate(q *Quota, w rawQuota) {
	for key, is := range map[string]bool{
		"count": w.Count != "", "limit": w.Limit != "", "period": w.Period != rawQuota{}.Period,
		"alert_at": w.AlertAt != nil, "projection": w.Projection, "initial": w.Initial != "",
	} {
		if is {
			l.unfit(key, "it belongs to a limit, and this quota has a rate")
		}
	}
	q.Count = checked(l.source, l.at+"rate.count", w.Rate.Count, count)
	if q.Count == "" {
		return
	}
	bits := false
	read := func(text string) (float64, error) {
		n, b, err := parseRate(text, q.Count)
		bits = bits || b
		return n, err
	}
	q.Rate = &QuotaRate{
		Above: checked(l.source, l.at+"rate.above", w.Rate.Above, func(text string) (float64, error) {
			if n, err := read(text); err != nil || n > 0 {
				return n, err
			}
			return 0, errUnfit
		}),
		For: itemText(l, "rate.for", w.Rate.For, atLeast(0)),
	}
	q.Rate.Clear, q.Rate.Bits, q.Decimal = q.Rate.Above, bits, decimal(w.Rate.Above)
	if w.Rate.Clear != "" {
		q.Rate.Clear = checked(l.source, l.at+"rate.clear", w.Rate.Clear, func(text string) (float64, error) {
			n, err := read(text)
			if err == nil && q.Rate.Above > 0 && n > q.Rate.Above {
				return 0, fmt.Errorf("rate.above is %s", w.Rate.Above)
			}
			return n, err
		})
	}
}

func (s *source) checkNotifiers(r raw) []Notifier {
	unique := once(name)
	notifiers := make([]Notifier, len(r.Notifiers))
	for i, w := range r.Notifiers {
		l := s.item("notifiers", i)
		n := Notifier{
			Name:    checked(s, l.at+"name", w.Name, unique),
			Timeout: itemText(l, "timeout", w.Timeout, timeout),
			Log:     w.Log != nil,
			written: w,
		}
		kinds := 0
		if w.Log != nil {
			kinds++
		}
		if w.Alertmanager != nil {
			kinds++
			n.Alertmanager = &Alertmanager{
				URL:            l.baseURL("alertmanager.url", w.Alertmanager.URL),
				HTTPConfigFile: itemText(l, "alertmanager.http_config_file", w.Alertmanager.HTTPConfigFile, absolute),
			}
		}
		if w.Webhook != nil {
			kinds++
			n.Webhook = &Webhook{
				URL:            l.url("webhook.url", w.Webhook.URL),
				SecretFile:     itemText(l, "webhook.secret_file", w.Webhook.SecretFile, absolute),
				HTTPConfigFile: itemText(l, "webhook.http_config_file", w.Webhook.HTTPConfigFile, absolute),
			}
		}
		if w.Exec != nil {
			kinds++
			n.Exec = &Exec{Command: w.Exec.Command}
			l.command(w.Exec.Command)
		}
		if kinds != 1 {
			l.unfit("", "expected one of alertmanager, webhook, exec and log, got %d of them", kinds)
		}
		notifiers[i] = n
	}
	return notifiers
}

func timeout(text string) (time.Duration, error) {
	d, err := parseDuration(text)
	if err != nil || d < 100*time.Millisecond || d > 5*time.Minute {
		return 0, errUnfit
	}
	return d, nil
}

// command checks the command of a program. One that is not there, or that we can't look at,
// may be there when it has to run.
func (l *lister) command(words []string) {
	if len(words) == 0 || !filepath.IsAbs(words[0]) || slices.ContainsFunc(words, hasZero) {
		l.report("exec.command", strings.Join(words, " "), nil)
		return
	}
	if err := trusted.Check(words[0]); errors.Is(err, trusted.ErrUntrusted) {
		l.unfit("exec.command", "%v", err)
	}
}

// hasZero says whether a text holds a zero byte, which no argument of a program can.
func hasZero(text string) bool { return strings.ContainsRune(text, 0) }

// url takes a URL without a user. It repeats no more of one than its host: of all the
// rest any part may be a secret.
func (l *lister) url(key, text string) string {
	u, err := url.Parse(text)
	switch {
	case text == "":
		l.report(key, text, nil)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		l.unfit(key, "expected %s", wantURL)
	case u.User != nil:
		l.unfit(key, "expected a URL without a user; put it into http_config_file, got one of host %q", u.Host)
	}
	return text
}

// apiPath is how a URL ends that is not that of an Alertmanager, but of its API.
var apiPath = regexp.MustCompile(`/api/v[0-9]+(/alerts)?/*$`)

// baseURL takes a URL that the path of an API is added to.
func (l *lister) baseURL(key, text string) string {
	if u, err := url.Parse(text); err == nil && apiPath.MatchString(u.Path) {
		l.unfit(key, "expected the base %s, without %s", strings.TrimPrefix(wantURL, "a "), apiPath.FindString(u.Path))
		return text
	}
	return l.url(key, text)
}
