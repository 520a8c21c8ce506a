// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// PodOptions say how a pod is made.
type PodOptions struct {
	// Namespace is the Kubernetes namespace, "default" if empty.
	Namespace string
	// Class is the quality of service, [Burstable] if empty.
	Class Class
	// HostNetwork leaves the pod in the host's network namespace.
	HostNetwork bool
	// Ingress and Egress are rates in bits per second, 0 for none, as the
	// annotations kubernetes.io/ingress-bandwidth and egress-bandwidth say them.
	// Without [Options.Bandwidth] they have no effect, as on other nodes.
	Ingress, Egress uint64
	// Labels are the pod's own, besides those that the kubelet adds.
	Labels map[string]string
	// Annotations are the pod's, besides those for the rates.
	Annotations map[string]string
}

// Class is a quality of service as Kubernetes knows it. It says where the pod's
// cgroup is.
type Class string

// The classes: the kubelet has directories for two of them, and puts guaranteed
// pods beside those.
const (
	Burstable  Class = "burstable"
	BestEffort Class = "besteffort"
	Guaranteed Class = "guaranteed"
)

// cgroup returns the path of a class's pods' cgroups.
func (h *Host) cgroup(c Class) string {
	pods := h.enclosure.Cgroup + "/kubepods"
	if c == Guaranteed {
		return pods
	}
	return pods + "/" + string(c)
}

// Container is a container of a pod.
type Container struct {
	Name string
	// Command is what it runs, and until it is stopped if there is none.
	Command []string
	// Labels are the container's own, besides those that the kubelet adds.
	Labels map[string]string
}

// connect opens the connection. It is there when containerd is.
func (h *Host) connect() {
	h.tb.Helper()
	soon := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}
	h.client = nettest.Must(grpc.NewClient("unix://"+h.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: time.Second})))(h.tb)
	h.runtime, h.images = cri.NewRuntimeServiceClient(h.client), cri.NewImageServiceClient(h.client)
}

// ready says what containerd lacks to run pods.
func (h *Host) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := h.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range answer.GetStatus().GetConditions() {
		if !condition.GetStatus() {
			return fmt.Errorf("%s: %s: %s", condition.GetType(), condition.GetReason(), condition.GetMessage())
		}
	}
	return nil
}

// RunPod makes a sandbox and starts containers in it, one after the other. After
// an error nothing is left of the pod. It may be called from any goroutine.
func (h *Host) RunPod(name string, o PodOptions, containers ...Container) (*Pod, error) {
	if o.Class == "" {
		o.Class = Burstable
	}
	p := &Pod{Name: name, UID: newUID(), Containers: make(map[string]string), host: h}
	p.CgroupPath = h.cgroup(o.Class) + "/pod" + p.UID
	p.config = h.sandbox(p, o)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := h.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run sandbox of pod %s: %w", name, err), p.removeCgroups())
	}
	p.ID = answer.GetPodSandboxId()
	err = p.look(ctx)
	for i := 0; err == nil && i < len(containers); i++ {
		err = p.Start(containers[i])
	}
	if err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

// newUID returns a random UID, version 4 of RFC 9562.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// sandbox says what the kubelet would.
func (h *Host) sandbox(p *Pod, o PodOptions) *cri.PodSandboxConfig {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: o.Namespace, Uid: p.UID},
		Hostname:     p.Name,
		LogDirectory: filepath.Join(h.enclosure.Dir, "logs", p.UID),
		Labels: union(o.Labels, map[string]string{
			"io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.namespace": o.Namespace,
			"io.kubernetes.pod.uid": p.UID,
		}),
		Annotations: union(o.Annotations, rates(o)),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: p.CgroupPath,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER,
			}},
			Sysctls: map[string]string{
				// Nothing is said unasked, as in Docker's containers: the kernel
				// would look for IPv6 routers at times of its own choice.
				"net.ipv6.conf.all.disable_ipv6": "1",
				// Whatever containers send at once can wait until the MAC address
				// of their gateway is known. By default one socket's fits, and
				// with two, most would be dropped.
				"net.ipv4.neigh.eth0.unres_qlen_bytes": strconv.Itoa(64 << 20),
				// It is asked for as long as a busy machine takes to answer.
				"net.ipv4.neigh.eth0.mcast_solicit": "60",
			},
		},
	}
	if o.HostNetwork {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		// The host's are not the pod's to set, and a name needs a namespace of
		// its own.
		c.Linux.Sysctls, c.Hostname = nil, ""
	}
	return c
}

func rates(o PodOptions) map[string]string {
	annotations := make(map[string]string)
	for name, rate := range map[string]uint64{"ingress": o.Ingress, "egress": o.Egress} {
		if rate > 0 {
			annotations["kubernetes.io/"+name+"-bandwidth"] = strconv.FormatUint(rate, 10)
		}
	}
	return annotations
}

func union(a, b map[string]string) map[string]string {
	all := make(map[string]string, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// removePods removes all pods there are.
func (h *Host) removePods() {
	h.tb.Helper()
	if h.runtime == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pods, err := h.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return // containerd is gone, and the script takes care of the rest
	}
	for _, found := range pods.GetItems() {
		if err := h.removeSandbox(ctx, found.GetId()); err != nil {
			h.tb.Error(err)
		}
	}
}

func (h *Host) removeSandbox(ctx context.Context, id string) error {
	if _, err := h.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop sandbox %.12s: %w", id, err)
	}
	if _, err := h.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove sandbox %.12s: %w", id, err)
	}
	return nil
}

// removeCgroups removes the pod's own cgroup, which is the kubelet's to do.
func (p *Pod) removeCgroups() error {
	roots, err := testnet.CgroupRoots()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeCgroup(filepath.Join(root, p.CgroupPath)))
	}
	return errors.Join(errs...)
}

// removeCgroup waits for processes that have just ended: they leave their cgroup
// a moment after they can be waited for.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := os.Remove(dir)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}
