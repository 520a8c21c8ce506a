// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubeRuntime answers on a socket as a runtime of Kubernetes does.
type kubeRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	server *grpc.Server
	// onList answers lists of containers in place of what there is.
	onList func(context.Context) error

	mu         sync.Mutex
	version    *cri.VersionResponse
	containers map[string]*cri.Container
	sandboxes  map[string]*cri.PodSandbox
	hosts      map[string]bool   // sandboxes in the host's network
	images     map[string]string // of the containers' statuses
	statuses   map[string]int    // requests by id
	lists      int               // requests for all containers
	some       int               // requests for one
}

// startKube starts one without containers, prepared before anybody asks it.
func startKube(t *testing.T, path string, prepare ...func(*kubeRuntime)) *kubeRuntime {
	t.Helper()
	k := &kubeRuntime{
		version:    &cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: "1.6.20", RuntimeApiVersion: "v1"},
		containers: make(map[string]*cri.Container),
		sandboxes:  make(map[string]*cri.PodSandbox),
		hosts:      make(map[string]bool),
		images:     make(map[string]string),
		statuses:   make(map[string]int),
	}
	for _, f := range prepare {
		f(k)
	}
	k.server = serveGRPC(t, path, func(s *grpc.Server) { cri.RegisterRuntimeServiceServer(s, k) })
	return k
}

// serveGRPC serves on a socket until the test ends or the server is stopped.
func serveGRPC(t *testing.T, path string, register func(*grpc.Server)) *grpc.Server {
	t.Helper()
	listener := listen(t, path)
	server := grpc.NewServer(grpc.MaxSendMsgSize(64 << 20))
	register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return server
}

// pod adds a sandbox with the n-th id.
func (k *kubeRuntime) pod(n int, name string, labels map[string]string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sandboxes[id(n)] = &cri.PodSandbox{
		Id: id(n), Labels: labels,
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "prod", Uid: "uid"},
	}
}

// container adds one with the n-th id to the sandbox with the pod-th.
func (k *kubeRuntime) container(n, pod int, name string, labels map[string]string) *cri.Container {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.containers[id(n)] = &cri.Container{
		Id: id(n), PodSandboxId: id(pod), Labels: labels,
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: "bb:1"},
	}
	return k.containers[id(n)]
}

func (k *kubeRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return k.version, nil
}

func (k *kubeRuntime) ListContainers(ctx context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	if k.onList != nil {
		if err := k.onList(ctx); err != nil {
			return nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	answer := &cri.ListContainersResponse{}
	if r.GetFilter().GetId() == "" {
		k.lists++
	} else {
		k.some++
	}
	for id, c := range k.containers {
		if of := r.GetFilter().GetId(); of == "" || of == id {
			answer.Containers = append(answer.Containers, c)
		}
	}
	return answer, nil
}

func (k *kubeRuntime) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	answer := &cri.ListPodSandboxResponse{}
	for id, s := range k.sandboxes {
		if of := r.GetFilter().GetId(); of == "" || of == id {
			answer.Items = append(answer.Items, s)
		}
	}
	return answer, nil
}

func (k *kubeRuntime) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := r.GetPodSandboxId()
	k.statuses[id]++
	if k.sandboxes[id] == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	options := &cri.NamespaceOption{Network: cri.NamespaceMode_POD}
	if k.hosts[id] {
		options.Network = cri.NamespaceMode_NODE
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: id, Labels: k.sandboxes[id].GetLabels(),
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: options}},
	}}, nil
}

func (k *kubeRuntime) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	id := r.GetContainerId()
	k.statuses[id]++
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{
		Id: id, Image: &cri.ImageSpec{Image: k.images[id]},
	}}, nil
}
