// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nettally/nettally/internal/usage"
)

// info is the metric nettally_container_info with some of the containers' labels, under the
// names that kube-state-metrics gives to labels of pods.
type info struct {
	desc  *prometheus.Desc
	names []string // of the metric's labels, sorted
	keys  []string // of the container's label for each of them, "" for what is always there
}

func newInfo(labels []string) info {
	type pair struct{ name, key string }
	var all []pair
	for _, name := range infoLabels {
		all = append(all, pair{name: name})
	}
	for i, name := range labelNames(labels) {
		all = append(all, pair{name, labels[i]})
	}
	slices.SortFunc(all, func(a, b pair) int { return cmp.Compare(a.name, b.name) })
	var of info
	for _, p := range all {
		of.names, of.keys = append(of.names, p.name), append(of.keys, p.key)
	}
	of.desc = prometheus.NewDesc("nettally_container_info",
		"1, labelled by what is known of the container. Joins with the other metrics by container_id.", of.names, nil)
	return of
}

var (
	notInLabelName = regexp.MustCompile(`[^a-zA-Z0-9_]`)
	wordInWord     = regexp.MustCompile(`([a-z0-9])([A-Z])`)
)

// labelNames returns the name of a metric's label for each key of a container's: in snake case,
// with _ for what it can't have. Keys that come to the same name have it with a number.
func labelNames(keys []string) []string {
	names := make([]string, len(keys))
	same := map[string][]int{}
	for i, key := range keys {
		word := notInLabelName.ReplaceAllString(key, "_")
		names[i] = "label_" + strings.ToLower(wordInWord.ReplaceAllString(word, "${1}_${2}"))
		same[names[i]] = append(same[names[i]], i)
	}
	for _, at := range same {
		if len(at) == 1 {
			continue
		}
		slices.SortFunc(at, func(a, b int) int { return cmp.Compare(keys[a], keys[b]) })
		for n, i := range at {
			names[i] += "_conflict" + strconv.Itoa(n+1)
		}
	}
	return names
}

// info sends what is known of a container. The values are those of infoLabels, in their order.
func (s *scrape) info(c *usage.Container, values ...string) {
	all := make([]string, len(s.about.names))
	for i, key := range s.about.keys {
		if key == "" {
			all[i], values = values[0], values[1:]
		} else {
			all[i] = s.text(c.Labels[key])
		}
	}
	s.gauge(s.about.desc, pairs(s.about.names, all...), 1)
}
