// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
)

// plugins is what we read of a CNI configuration: one plugin, or a list of them (CNI
// specification 1.0, section 1).
type plugins struct {
	Type    string `json:"type"`
	Plugins []struct {
		Type string `json:"type"`
	} `json:"plugins"`
}

// usesBandwidth says whether a container network in a folder uses the plugin `bandwidth`,
// which can't add its `ingress` qdisc to an interface that has a clsact one. What is not
// to be read is nobody's network.
func usesBandwidth(folder string) bool {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		data, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return false
		}
		var found plugins
		if json.Unmarshal(data, &found) != nil {
			return false
		}
		for _, plugin := range found.Plugins {
			if plugin.Type == bandwidthPlugin {
				return true
			}
		}
		return found.Type == bandwidthPlugin
	})
}

const bandwidthPlugin = "bandwidth"
