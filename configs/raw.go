// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// raw is the configuration as it is written: the shape of the file.
type raw struct {
	StateDir string `yaml:"state_dir"`

	Log struct {
		Level  string `yaml:"level"`
		Format string `yaml:"format"`
	} `yaml:"log"`
	BPF struct {
		PinPath       string `yaml:"pin_path"`
		MaxInterfaces int    `yaml:"max_interfaces"`
	} `yaml:"bpf"`
	Attach struct {
		Mode       string   `yaml:"mode"`
		Priority   int      `yaml:"priority"`
		CNIDirs    []string `yaml:"cni_dirs"`
		Interfaces struct {
			Include []string `yaml:"include,flow"`
			Exclude []string `yaml:"exclude,flow"`
		} `yaml:"interfaces"`
	} `yaml:"attach"`
	Watch struct {
		CgroupRoot string   `yaml:"cgroup_root"`
		Reconcile  string   `yaml:"reconcile"`
		Include    []string `yaml:"include,flow"`
		Exclude    []string `yaml:"exclude,flow"`
		Patterns   []string `yaml:"patterns,flow"`
	} `yaml:"watch"`
	Names struct {
		Docker string   `yaml:"docker"`
		Podman string   `yaml:"podman"`
		CRI    string   `yaml:"cri"`
		Labels []string `yaml:"labels,flow"`
	} `yaml:"names"`
	Accounting struct {
		Source string `yaml:"source"`
		Cgroup string `yaml:"cgroup"`
		TCP    string `yaml:"tcp"`

		Sockets   string `yaml:"sockets"`
		Conntrack string `yaml:"conntrack"`
		NFLOG     struct {
			Group int `yaml:"group"`
		} `yaml:"nflog"`
	} `yaml:"accounting"`
	Requests struct {
		HTTP  string  `yaml:"http"`
		TLS   string  `yaml:"tls"`
		DNS   string  `yaml:"dns"`
		Ports numbers `yaml:"ports,flow"`
	} `yaml:"requests"`
	Limits struct {
		Containers     int     `yaml:"containers"`
		PerUser        int     `yaml:"per_user"`
		Interfaces     int     `yaml:"interfaces"`
		Ended          int     `yaml:"ended"`
		SlotsForRoot   float64 `yaml:"slots_for_root"`
		SeriesPerQuota int     `yaml:"series_per_quota"`

		SeriesPerPeriod int `yaml:"series_per_period"`
	} `yaml:"limits"`
	Exporter struct {
		Listen    string   `yaml:"listen"`
		Socket    string   `yaml:"socket"`
		WebConfig string   `yaml:"web_config"`
		Hosts     []string `yaml:"hosts,flow"`
	} `yaml:"exporter"`
	Metrics struct {
		Families []string `yaml:"families,flow"`
		Compat   string   `yaml:"compat"`
		Periods  struct {
			Every    string   `yaml:"every"`
			Day      int      `yaml:"day"`
			Timezone string   `yaml:"timezone"`
			By       []string `yaml:"by,flow"`
			Keep     string   `yaml:"keep"`
		} `yaml:"periods"`
	} `yaml:"metrics"`
	Retention struct {
		Metrics string `yaml:"metrics"`
		API     string `yaml:"api"`
		Hours   string `yaml:"hours"`
		Days    string `yaml:"days"`
	} `yaml:"retention"`
	Quotas    []rawQuota    `yaml:"quotas"`
	Notifiers []rawNotifier `yaml:"notifiers"`
}

type rawQuota struct {
	Name  string `yaml:"name"`
	Match struct {
		Name      string     `yaml:"name,omitempty"`
		ID        string     `yaml:"id,omitempty"`
		Image     string     `yaml:"image,omitempty"`
		Runtime   string     `yaml:"runtime,omitempty"`
		Namespace string     `yaml:"namespace,omitempty"`
		Pod       string     `yaml:"pod,omitempty"`
		User      string     `yaml:"user,omitempty"`
		Labels    []rawLabel `yaml:"labels,omitempty"`
	} `yaml:"match"`
	Per    string `yaml:"per"`
	Count  string `yaml:"count,omitempty"`
	Limit  string `yaml:"limit,omitempty"`
	Period struct {
		Every    string `yaml:"every,omitempty"`
		Day      *int   `yaml:"day,omitempty"`
		Timezone string `yaml:"timezone,omitempty"`
		Rolling  string `yaml:"rolling,omitempty"`
	} `yaml:"period,omitempty"`
	AlertAt    []int    `yaml:"alert_at,flow,omitempty"`
	Projection bool     `yaml:"projection,omitempty"`
	Initial    string   `yaml:"initial,omitempty"`
	Rate       *rawRate `yaml:"rate,omitempty"`
	Notify     []string `yaml:"notify,flow,omitempty"`
}

type rawLabel struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

type rawRate struct {
	Count string `yaml:"count"`
	Above string `yaml:"above"`
	Clear string `yaml:"clear,omitempty"`
	For   string `yaml:"for,omitempty"`
}

type rawNotifier struct {
	Name         string           `yaml:"name"`
	Timeout      string           `yaml:"timeout,omitempty"`
	Alertmanager *rawAlertmanager `yaml:"alertmanager,omitempty"`
	Webhook      *rawWebhook      `yaml:"webhook,omitempty"`
	Exec         *rawExec         `yaml:"exec,omitempty"`
	Log          *struct{}        `yaml:"log,omitempty"`
}

type rawAlertmanager struct {
	URL            string `yaml:"url"`
	HTTPConfigFile string `yaml:"http_config_file,omitempty"`
}

type rawWebhook struct {
	URL            string `yaml:"url"`
	SecretFile     string `yaml:"secret_file,omitempty"`
	HTTPConfigFile string `yaml:"http_config_file,omitempty"`
}

type rawExec struct {
	Command []string `yaml:"command,flow"`
}

// YAML returns the whole configuration as a file: loaded without environment and
// flags, it gives the same configuration.
func (c *Config) YAML() ([]byte, error) {
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(c.raw()); err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	return text.Bytes(), encoder.Close()
}

func (c *Config) raw() raw {
	var r raw
	r.StateDir = c.StateDir
	r.Log.Level = strings.ToLower(c.Log.Level.String())
	r.Log.Format = c.Log.Format
	r.Accounting.Source = c.Accounting.Source
	r.BPF.PinPath = c.BPF.PinPath
	r.BPF.MaxInterfaces = c.BPF.MaxInterfaces
	r.Attach.Mode = c.Attach.Mode
	r.Attach.Priority = int(c.Attach.Priority)
	r.Attach.CNIDirs = list(c.Attach.CNIDirs)
	r.Attach.Interfaces.Include = list(c.Attach.Interfaces.Include)
	r.Attach.Interfaces.Exclude = list(c.Attach.Interfaces.Exclude)
	r.Watch.CgroupRoot = c.Watch.CgroupRoot
	r.Watch.Reconcile = duration(c.Watch.Reconcile)
	r.Watch.Include = list(c.Watch.Containers.Include)
	r.Watch.Exclude = list(c.Watch.Containers.Exclude)
	r.Watch.Patterns = expressions(c.Watch.Patterns)
	r.Names.Docker = c.Names.Docker
	r.Names.Podman = c.Names.Podman
	r.Names.CRI = c.Names.CRI
	r.Names.Labels = list(c.Names.Labels)
	r.Accounting.Cgroup = c.Accounting.Cgroup
	r.Accounting.TCP = c.Accounting.TCP
	r.Accounting.Sockets = onOff(c.Accounting.Sockets)
	r.Accounting.Conntrack = onOff(c.Accounting.Conntrack)
	r.Accounting.NFLOG.Group = int(c.Accounting.NFLOG.Group)
	r.Requests.HTTP = onOff(c.Requests.HTTP)
	r.Requests.TLS = onOff(c.Requests.TLS)
	r.Requests.DNS = onOff(c.Requests.DNS)
	r.Requests.Ports = numbers{}
	for _, port := range c.Requests.Ports {
		r.Requests.Ports = append(r.Requests.Ports, strconv.Itoa(int(port)))
	}
	r.Limits.Containers = c.Limits.Containers
	r.Limits.PerUser = c.Limits.PerUser
	r.Limits.Interfaces = c.Limits.Interfaces
	r.Limits.Ended = c.Limits.Ended
	r.Limits.SlotsForRoot = c.Limits.SlotsForRoot
	r.Limits.SeriesPerQuota = c.Limits.SeriesPerQuota
	r.Limits.SeriesPerPeriod = c.Limits.SeriesPerPeriod
	r.Exporter.Listen = c.Exporter.Listen
	r.Exporter.Socket = c.Exporter.Socket
	r.Exporter.WebConfig = c.Exporter.WebConfig
	r.Exporter.Hosts = list(c.Exporter.Hosts)
	r.Metrics.Families = list(c.Metrics.Families)
	r.Metrics.Compat = c.Metrics.Compat
	r.Metrics.Periods.Every = c.Metrics.Periods.Every
	r.Metrics.Periods.Day = c.Metrics.Periods.Day
	r.Metrics.Periods.Timezone = c.Metrics.Periods.Location.String()
	r.Metrics.Periods.By = list(c.Metrics.Periods.By)
	r.Metrics.Periods.Keep = duration(c.Metrics.Periods.Keep)
	r.Retention.Metrics = duration(c.Retention.Metrics)
	r.Retention.API = duration(c.Retention.API)
	r.Retention.Hours = duration(c.Retention.Hours)
	r.Retention.Days = duration(c.Retention.Days)
	r.Quotas, r.Notifiers = []rawQuota{}, []rawNotifier{}
	for i := range c.Quotas {
		r.Quotas = append(r.Quotas, c.Quotas[i].written)
	}
	for i := range c.Notifiers {
		r.Notifiers = append(r.Notifiers, c.Notifiers[i].written)
	}
	return r
}

// onOff is how a switch is written.
func onOff(on bool) string {
	if on {
		return On
	}
	return Off
}

// list makes no difference between an empty list and none.
func list(items []string) []string { return append([]string{}, items...) }

func expressions(patterns []*regexp.Regexp) []string {
	texts := make([]string, len(patterns))
	for i, pattern := range patterns {
		texts[i] = pattern.String()
	}
	return texts
}

// fixed are the keys and sections that are used once, when the daemon starts: files and
// maps are opened by them, filters made, containers identified.
var fixed = []string{
	"state_dir", "accounting.source", "accounting.tcp", "accounting.sockets", "accounting.conntrack", "accounting.nflog", "requests", "bpf", "attach.priority", "watch.cgroup_root", "watch.patterns", "names.docker",
	"names.podman", "names.cri", "exporter",
}

// NeedsRestart returns the keys in which next differs and that a running daemon
// can't change. All others can be taken over live.
func (c *Config) NeedsRestart(next *Config) []string {
	before, after := flatten("", reflect.ValueOf(c.raw())), flatten("", reflect.ValueOf(next.raw()))
	var differing []string
	for _, k := range keys {
		isFixed := slices.ContainsFunc(fixed, func(f string) bool {
			return k.path == f || strings.HasPrefix(k.path, f+".")
		})
		if isFixed && before[k.path] != after[k.path] {
			differing = append(differing, k.path)
		}
	}
	return differing
}

// flatten writes the values of a raw by their keys' paths.
func flatten(prefix string, v reflect.Value) map[string]string {
	all := map[string]string{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch field := v.Field(i); field.Kind() {
		case reflect.Struct:
			for path, value := range flatten(prefix+name+".", field) {
				all[path] = value
			}
		case reflect.Int:
			all[prefix+name] = strconv.FormatInt(field.Int(), 10)
		case reflect.Float64:
			all[prefix+name] = strconv.FormatFloat(field.Float(), 'g', -1, 64)
		default:
			all[prefix+name] = fmt.Sprintf("%q", field.Interface())
		}
	}
	return all
}
