// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// criBatch is how many containers are asked for at once: all of a node, since
	// CRI lists either one container or all.
	criBatch = 1 << 16

	// fewIDs is how many containers are rather asked for one by one.
	fewIDs = 4

	// everythingMax is the most bytes that are read of an answer about all
	// containers or all pods. 110 pods, which is Kubernetes' usual limit, take a
	// twentieth of it.
	everythingMax = 4 << 20

	// headerMax is the most bytes that are read of the headers of an answer.
	headerMax = 64 << 10
)

// criRuntime is a connection to a runtime of Kubernetes.
type criRuntime struct {
	client  *grpc.ClientConn
	cri     cri.RuntimeServiceClient
	dialed  *atomic.Pointer[error] // how the last attempt to connect ended
	timeout time.Duration
	runtime string
	crowded bool  // a list of everything is too large
	modes   facts // network modes by the sandbox's id
	images  facts // image names by the container's id
}

// newCRI returns what connects to a runtime of Kubernetes.
func newCRI() connect {
	modes, images := make(facts), make(facts)
	return func(ctx context.Context, path string, within time.Duration) (*connection, error) {
		c := &criRuntime{dialed: new(atomic.Pointer[error]), timeout: within, modes: modes, images: images}
		var err error
		if c.client, err = dialCRI(path, c.dialed); err != nil {
			return nil, explain(err)
		}
		c.cri = cri.NewRuntimeServiceClient(c.client)
		connection, err := c.identify(ctx)
		if err != nil {
			c.close()
			return nil, err
		}
		return connection, nil
	}
}

// dialCRI returns a client that connects with its first request. How that ended
// is left in dialed: gRPC makes a text of it.
func dialCRI(path string, dialed *atomic.Pointer[error]) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		dialed.Store(&err)
		return conn, err
	}
	return grpc.NewClient("unix://"+path,
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(headerMax),
		grpc.WithUserAgent("nettally"),
	)
}

func (c *criRuntime) close() { _ = c.client.Close() }

func (c *criRuntime) identify(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	told, err := c.cri.Version(ctx, &cri.VersionRequest{}, grpc.MaxCallRecvMsgSize(answerMax))
	if status.Code(err) == codes.Unimplemented { // Docker's containerd, for example
		return nil, notCRI
	}
	if err != nil {
		return nil, c.explain(err)
	}
	c.runtime = clean(told.GetRuntimeName())
	if c.runtime == "cri-o" {
		c.runtime = "crio"
	}
	return &connection{
		runtime: c.runtime,
		version: clean(told.GetRuntimeVersion()),
		api:     "CRI " + clean(told.GetRuntimeApiVersion()),
		batch:   criBatch,
		list:    c.list,
		close:   c.close,
	}, nil
}

// explain makes an error fit for one line of a log, as the function of that name
// does. Both sides of a connection say of a message that it is too large by the
// same code.
func (c *criRuntime) explain(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return err
	case codes.DeadlineExceeded:
		return explain(context.DeadlineExceeded)
	case codes.Canceled:
		return context.Canceled
	case codes.ResourceExhausted:
		return fmt.Errorf("%w: %s", errTooLarge, clean(status.Convert(err).Message()))
	}
	if dialed := c.dialed.Load(); dialed != nil && *dialed != nil {
		return explain(*dialed)
	}
	return errors.New(clean(status.Convert(err).Message()))
}

// list asks for containers and sandboxes by id, running or not.
func (c *criRuntime) list(ctx context.Context, ids, labels []string) (map[string]Meta, error) {
	found := node{containers: make(map[string]*cri.Container), sandboxes: make(map[string]*cri.PodSandbox)}
	var err error
	if c.crowded || len(ids) <= fewIDs {
		err = c.each(ctx, ids, found)
	} else {
		err = c.everything(ctx, found)
		c.crowded = errors.Is(err, errTooLarge)
	}
	if err != nil {
		return nil, err
	}
	told := make(map[string]Meta, len(ids))
	for _, id := range ids {
		meta, ok, err := c.meta(ctx, id, found, labels)
		if err != nil {
			return nil, err
		}
		if ok {
			told[id] = meta
		}
	}
	return told, nil
}

// node is what a runtime has, by id.
type node struct {
	containers map[string]*cri.Container
	sandboxes  map[string]*cri.PodSandbox
}

// everything lists all that the runtime has.
func (c *criRuntime) everything(ctx context.Context, found node) error {
	if err := c.containers(ctx, nil, everythingMax, found); err != nil {
		return err
	}
	return c.sandboxes(ctx, nil, everythingMax, found)
}

// each lists containers and sandboxes by id, and the sandboxes of the containers.
// One that is too large costs its containers no more than what only it knows.
func (c *criRuntime) each(ctx context.Context, ids []string, found node) error {
	for _, id := range ids {
		if err := c.containers(ctx, &cri.ContainerFilter{Id: id}, answerMax, found); err != nil {
			return err
		}
		container, isContainer := found.containers[id]
		if isContainer {
			id = container.GetPodSandboxId()
		}
		if _, ok := found.sandboxes[id]; ok {
			continue
		}
		err := c.sandboxes(ctx, &cri.PodSandboxFilter{Id: id}, answerMax, found)
		if err != nil && !(isContainer && errors.Is(err, errTooLarge)) {
			return err
		}
	}
	return nil
}

func (c *criRuntime) containers(ctx context.Context, filter *cri.ContainerFilter, most int, found node) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.cri.ListContainers(ctx, &cri.ListContainersRequest{Filter: filter}, grpc.MaxCallRecvMsgSize(most))
	for _, container := range answer.GetContainers() {
		found.containers[container.GetId()] = container
	}
	return c.explain(err)
}

func (c *criRuntime) sandboxes(ctx context.Context, filter *cri.PodSandboxFilter, most int, found node) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.cri.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: filter}, grpc.MaxCallRecvMsgSize(most))
	for _, sandbox := range answer.GetItems() {
		found.sandboxes[sandbox.GetId()] = sandbox
	}
	return c.explain(err)
}

// meta puts together what is known of a container or a sandbox, if it is any.
// Where the kubelet runs, labels say once more which pod a container is in.
func (c *criRuntime) meta(ctx context.Context, id string, found node, labels []string) (Meta, bool, error) {
	container, isContainer := found.containers[id]
	box := id
	if isContainer {
		box = container.GetPodSandboxId()
	}
	sandbox, isThere := found.sandboxes[box]
	if !isContainer && !isThere {
		return Meta{}, false, nil
	}
	mode, err := c.networkMode(ctx, box)
	if err != nil {
		return Meta{}, false, err
	}
	meta := Meta{
		Name:        clean(sandbox.GetMetadata().GetName()),
		NetworkMode: mode,
		Runtime:     c.runtime,
		Namespace:   clean(sandbox.GetMetadata().GetNamespace()),
		Pod:         clean(sandbox.GetMetadata().GetName()),
		Labels:      pick(labels, container.GetLabels(), sandbox.GetLabels()),
	}
	if !isContainer {
		return meta, true, nil
	}
	meta.Name = clean(container.GetMetadata().GetName())
	if !isThere {
		meta.Namespace = clean(container.GetLabels()["io.kubernetes.pod.namespace"])
		meta.Pod = clean(container.GetLabels()["io.kubernetes.pod.name"])
	}
	meta.Image, err = c.image(ctx, container)
	return meta, true, err
}

// networkMode returns how a pod is networked, which only a sandbox's status says.
func (c *criRuntime) networkMode(ctx context.Context, sandbox string) (string, error) {
	return c.modes.get(sandbox, func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		answer, err := c.cri.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox},
			grpc.MaxCallRecvMsgSize(answerMax))
		if err := c.lasting(err); err != nil {
			return "", err
		}
		options := answer.GetStatus().GetLinux().GetNamespaces().GetOptions()
		switch {
		case options == nil:
			return "", nil
		case options.GetNetwork() == cri.NamespaceMode_NODE:
			return "host", nil
		}
		return "pod", nil
	})
}

// image returns the name of a container's image. The kubelet asks for images by
// their hashes, and the name is then in the container's status.
func (c *criRuntime) image(ctx context.Context, container *cri.Container) (string, error) {
	spec := container.GetImage()
	if name := spec.GetUserSpecifiedImage(); name != "" {
		return clean(name), nil
	}
	if name := spec.GetImage(); !strings.HasPrefix(name, "sha256:") && !isID(name) {
		return clean(name), nil
	}
	return c.images.get(container.GetId(), func() (string, error) {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		answer, err := c.cri.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container.GetId()},
			grpc.MaxCallRecvMsgSize(answerMax))
		if err := c.lasting(err); err != nil {
			return "", err
		}
		if name := answer.GetStatus().GetImage().GetImage(); name != "" {
			return name, nil
		}
		return spec.GetImage(), nil
	})
}

// lasting returns errors of the connection. Others are of one container, of which
// then less is known: it was removed meanwhile, or has too much to tell.
func (c *criRuntime) lasting(err error) error {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Canceled, codes.Unavailable:
		return c.explain(err)
	}
	return nil
}
