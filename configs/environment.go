// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// kubernetesVariable is what Kubernetes sets in every pod for a service whose name begins with
// nettally, such as nettally-exporter.
var kubernetesVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// nearName is how many letters a variable may differ by from the one that was meant.
const nearName = 2

// unknownVariables returns a problem for each variable that was meant to set a key and sets
// none: its name begins as those of a section, or is nearly that of a key. Any other one is
// somebody else's business.
func unknownVariables(environment []string) (problems []error) {
	slices.Sort(environment)
	for _, variable := range environment {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "NETTALLY_") || kubernetesVariable.MatchString(name) {
			continue
		}
		inSection, nearest, letters := false, "", nearName+1
		for _, k := range keys {
			known := envName(k.path)
			if _, list := k.value.(items); list {
				inSection = inSection || strings.HasPrefix(name, known)
				continue
			}
			if section, _ := split(k.path); section != "" {
				inSection = inSection || strings.HasPrefix(name, envName(section)+"_")
			}
			if d := distance(name, known); d < letters {
				nearest, letters = known, d
			}
		}
		switch {
		case letters == 0:
		case nearest != "":
			problems = append(problems, fmt.Errorf("%s: unknown variable; did you mean %s?", name, nearest))
		case inSection:
			problems = append(problems, fmt.Errorf("%s: unknown variable; no key of the configuration is called that", name))
		}
	}
	return problems
}
