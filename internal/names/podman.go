// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// podman asks for containers by podman's own API. Docker's, as podman has it,
// tells neither pods nor how a container is networked.
type podman struct {
	*moby
	api   string // version of the API
	modes facts
}

func newPodman(m *moby, api string, modes facts) *podman {
	return &podman{moby: m, api: api, modes: modes}
}

// podmanContainer is what is of use of an element of /libpod/containers/json.
type podmanContainer struct {
	ID       string `json:"Id"`
	Names    []string
	Image    string
	Labels   map[string]string
	Pod      string // its id
	PodName  string
	Networks []string // names; none also where it joins another one's
}

// podmanPod is what is of use of an element of /libpod/pods/json.
type podmanPod struct {
	ID     string `json:"Id"`
	Labels map[string]string
}

// list asks for containers by id, running or not. The infra container of a pod
// has the pod's labels in podman, and the others get them here.
func (p *podman) list(ctx context.Context, ids, labels []string) (map[string]Meta, error) {
	var containers []podmanContainer
	if err := p.get(ctx, "containers", ids, &containers); err != nil {
		return nil, explain(err)
	}
	pods, err := p.podLabels(ctx, containers, labels)
	if err != nil {
		return nil, explain(err)
	}
	told := make(map[string]Meta, len(containers))
	for _, c := range containers {
		if !slices.Contains(ids, c.ID) {
			continue
		}
		mode, err := p.networkMode(ctx, c)
		if err != nil {
			return nil, explain(err)
		}
		told[c.ID] = Meta{
			Name:        clean(ownName(c.Names)),
			Image:       clean(c.Image),
			NetworkMode: mode,
			Runtime:     p.runtime,
			Pod:         clean(c.PodName),
			Labels:      pick(labels, c.Labels, pods[c.Pod]),
		}
	}
	return told, nil
}

// podLabels returns the labels of the containers' pods by the pods' ids.
func (p *podman) podLabels(ctx context.Context, containers []podmanContainer, labels []string) (map[string]map[string]string, error) {
	var ids []string
	for _, c := range containers {
		if c.Pod != "" && !slices.Contains(ids, c.Pod) {
			ids = append(ids, c.Pod)
		}
	}
	if len(ids) == 0 || len(labels) == 0 {
		return nil, nil
	}
	var pods []podmanPod
	if err := p.get(ctx, "pods", ids, &pods); err != nil {
		return nil, err
	}
	found := make(map[string]map[string]string, len(pods))
	for _, pod := range pods {
		found[pod.ID] = pod.Labels
	}
	return found, nil
}

// networkMode names a mode as Docker would. Containers without a network of
// podman's own are looked at one by one, and only once.
func (p *podman) networkMode(ctx context.Context, c podmanContainer) (string, error) {
	if len(c.Networks) > 0 {
		if c.Networks[0] == "podman" { // the default one
			return "bridge", nil
		}
		return clean(c.Networks[0]), nil
	}
	return p.modes.get(c.ID, func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, p.timeout)
		defer cancel()
		told, err := p.client.ContainerInspect(ctx, c.ID, client.ContainerInspectOptions{})
		switch {
		case errdefs.IsNotFound(err): // removed meanwhile
			return "", nil
		case err != nil:
			return "", err
		case told.Container.HostConfig == nil:
			return "", nil
		}
		return networkMode(string(told.Container.HostConfig.NetworkMode)), nil
	})
}

// get asks for containers or pods by id.
func (p *podman) get(ctx context.Context, what string, ids []string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if p.api == "" || strings.Trim(p.api, "0123456789.") != "" {
		return fmt.Errorf("read version of podman's API: %q is none", p.api)
	}
	filters, err := json.Marshal(map[string][]string{"id": ids})
	if err != nil {
		return err
	}
	target := url.URL{Scheme: "http", Host: "podman", Path: "/v" + p.api + "/libpod/" + what + "/json"}
	target.RawQuery = url.Values{"all": {"true"}, "filters": {string(filters)}}.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	answer, err := p.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, textMax))
		return fmt.Errorf("list %s: %s: %s", what, answer.Status, said)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}
