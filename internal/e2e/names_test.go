// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nettally/nettally/internal/testnet/crihost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// What containerd says of pods is what nettally lists, also after a restart; and `check`
// says who answers.
func TestNamesOfPods(t *testing.T) {
	need.Root(t)
	t.Parallel()
	node := crihost.Start(t, crihost.Options{})
	d := startDaemon(t, node, fmt.Sprintf("names: {docker: \"off\", podman: \"off\", cri: %q, labels: [team]}\nwatch: {include: [%q]}",
		"unix://"+node.Socket, node.CgroupParent+"/*"))
	pod := nettest.Must(node.RunPod("web-0", crihost.PodOptions{Namespace: "prod", Labels: map[string]string{"team": "a"}},
		crihost.Container{Name: "app"}))(t)

	type listed struct {
		Name, Pod, Namespace, Image, Runtime, NetworkMode string
		Labels                                            map[string]string
	}
	want := map[string]listed{
		pod.ID: {Name: "web-0", Pod: "web-0", Namespace: "prod", Runtime: "containerd", NetworkMode: "pod", Labels: map[string]string{"team": "a"}},
		pod.Containers["app"]: {Name: "app", Pod: "web-0", Namespace: "prod", Image: crihost.Image, Runtime: "containerd",
			NetworkMode: "pod", Labels: map[string]string{"team": "a"}},
	}
	named := func() error {
		for id, want := range want {
			c, err := d.container(id)
			if err != nil {
				return err
			}
			got := listed{c.Name, c.Pod, c.Namespace, c.Image, c.Runtime, c.NetworkMode, c.Labels}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("%s (-want +got):\n%s", want.Name, diff)
			}
		}
		return nil
	}
	d.poll("named", named)
	d.stop()
	d.start()
	d.poll("named after a restart", named)
	d.checkSays(t, `ok +names\.docker +off\nok +names\.podman +off\nok +names\.cri +containerd \S+ \(API CRI v1\S*\) at unix://`+node.Socket)
}

// checkSays expects lines of `nettally check`.
func (d *daemon) checkSays(t *testing.T, pattern string) {
	t.Helper()
	out, err := d.run("check")
	if err != nil || !regexp.MustCompile(pattern).MatchString(out) {
		t.Errorf("check: %v, want %s in\n%s", err, pattern, out)
	}
}
