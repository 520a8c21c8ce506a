// SPDX-License-Identifier: Apache-2.0

package crihost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/enclosure"
)

// Pod is a pod that runs. It is gone when the test ends, if not before.
//
// One goroutine at a time may use it.
type Pod struct {
	ID   string // the sandbox's, which is a container in a cgroup of its own
	UID  string
	Name string
	// CgroupPath is the path of the pod's cgroup in the hierarchies: those of the
	// sandbox and of the containers are right below it, by their ids.
	CgroupPath string
	// PID is the process of the sandbox, "pause" elsewhere. It is in the pod's
	// network namespace until the pod is removed, whatever the containers do. It is
	// 0 after KillSandbox.
	PID int
	// IPv4 is the address of the pod's eth0, none with the host's network.
	IPv4 netip.Addr
	// Containers are the ids of the containers by name.
	Containers map[string]string

	host   *Host
	config *cri.PodSandboxConfig
}

// look learns what only a sandbox that runs has.
func (p *Pod) look(ctx context.Context) error {
	answer, err := p.host.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil {
		return fmt.Errorf("look at sandbox of pod %s: %w", p.Name, err)
	}
	if p.PID, err = pid(answer.GetInfo()); err != nil {
		return fmt.Errorf("look at sandbox of pod %s: %w", p.Name, err)
	}
	if ip := answer.GetStatus().GetNetwork().GetIp(); ip != "" && !p.hostNetwork() {
		p.IPv4, err = netip.ParseAddr(ip)
	}
	return err
}

func (p *Pod) hostNetwork() bool {
	return p.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE
}

// pid returns the process id in what containerd says when it is asked to be
// verbose: JSON in a map.
func pid(info map[string]string) (int, error) {
	var said struct{ PID int }
	if err := json.Unmarshal([]byte(info["info"]), &said); err != nil {
		return 0, fmt.Errorf("read process id: %w", err)
	}
	if said.PID == 0 {
		return 0, errors.New("read process id: none")
	}
	return said.PID, nil
}

// Start starts one more container in the pod.
func (p *Pod) Start(c Container) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	created, err := p.host.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.ID, SandboxConfig: p.config, Config: p.container(c),
	})
	if err != nil {
		return fmt.Errorf("create container %s of pod %s: %w", c.Name, p.Name, err)
	}
	p.Containers[c.Name] = created.GetContainerId()
	_, err = p.host.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.GetContainerId()})
	if err != nil {
		return fmt.Errorf("start container %s of pod %s: %w", c.Name, p.Name, err)
	}
	return nil
}

func (p *Pod) container(c Container) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: c.Name},
		Image:    &cri.ImageSpec{Image: Image},
		Command:  c.Command,
		LogPath:  c.Name + ".log",
		Labels: union(c.Labels, map[string]string{
			"io.kubernetes.container.name": c.Name, "io.kubernetes.pod.name": p.Name,
			"io.kubernetes.pod.namespace": p.config.GetMetadata().GetNamespace(),
			"io.kubernetes.pod.uid":       p.UID,
		}),
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
}

// SendUDP is the command of a container whose first act is to send so many
// datagrams of size bytes of payload, and whose last: it ends with an error if
// not all were sent.
func SendUDP(to netip.AddrPort, count, size int) []string {
	// The agent ends with its orders, even in the middle of one, so they must stay
	// open until it has answered.
	const script = `mkfifo /tmp/orders && /agent </tmp/orders | {
		exec 3>/tmp/orders
		echo "$0" >&3
		read -r reply
		echo "$reply"
		[ "$reply" = "{}" ]
	}`
	order := fmt.Sprintf(`{"verb":"sendudp","addr":%q,"count":%d,"size":%d}`, to, count, size)
	return []string{"sh", "-c", script, order}
}

// Wait waits until a container ends. It is an error if it ends with one; what it
// printed is then part of it.
func (p *Pod) Wait(container string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		answer, err := p.containerStatus(container)
		if err != nil {
			return err
		}
		status := answer.GetStatus()
		switch {
		case status.GetState() == cri.ContainerState_CONTAINER_EXITED && status.GetExitCode() == 0:
			return nil
		case status.GetState() == cri.ContainerState_CONTAINER_EXITED:
			return fmt.Errorf("container %s of pod %s ended with %d: %s",
				container, p.Name, status.GetExitCode(), p.log(container))
		case time.Now().After(deadline):
			return fmt.Errorf("wait for container %s of pod %s: it is %s", container, p.Name, status.GetState())
		}
	}
}

func (p *Pod) containerStatus(container string) (*cri.ContainerStatusResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := p.host.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{
		ContainerId: p.Containers[container], Verbose: true,
	})
	if err != nil {
		return nil, fmt.Errorf("look at container %s of pod %s: %w", container, p.Name, err)
	}
	return answer, nil
}

// log returns the end of what a container printed.
func (p *Pod) log(container string) string {
	return enclosure.Tail(filepath.Join(p.config.GetLogDirectory(), container+".log"))
}

// ContainerPID returns the id of a container's first process.
func (p *Pod) ContainerPID(container string) (int, error) {
	answer, err := p.containerStatus(container)
	if err != nil {
		return 0, err
	}
	return pid(answer.GetInfo())
}

// Exec runs a command in a container and returns what it prints.
func (p *Pod) Exec(container string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := p.host.runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: p.Containers[container], Cmd: command, Timeout: int64(patience.Seconds()),
	})
	if err == nil && answer.GetExitCode() != 0 {
		err = fmt.Errorf("exit code %d: %s", answer.GetExitCode(), answer.GetStderr())
	}
	if err != nil {
		return "", fmt.Errorf("run %q in container %s of pod %s: %w", command, container, p.Name, err)
	}
	return string(answer.GetStdout()), nil
}

// Agent starts an agent in a container. It ends with the container, or with the
// test.
func (p *Pod) Agent(container string) (*testnet.Agent, error) {
	return p.host.agent("k8s.io", p.Containers[container])
}

// agent starts an agent in a container of one of containerd's namespaces. CRI has
// no such thing without a protocol of its own for the streams.
func (h *Host) agent(namespace, id string) (*testnet.Agent, error) {
	args := h.ctrArgs(namespace, "tasks", "exec", "--exec-id", "agent-"+newUID(), id, "/agent")
	a, err := testnet.CommandAgent(h.Command(args[0], args[1:]...))
	if err != nil {
		return nil, fmt.Errorf("start agent in container %.12s: %w", id, err)
	}
	// No matter how it ends: the container may be long gone.
	h.tb.Cleanup(func() { _ = a.Close() })
	return a, nil
}

// inside returns a process that is in the pod's network namespace.
func (p *Pod) inside() (int, error) {
	if p.PID != 0 {
		return p.PID, nil
	}
	for name := range p.Containers {
		if pid, err := p.ContainerPID(name); err == nil {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("look into pod %s: no process is left", p.Name)
}

// NetDev returns the kernel's counters of the pod's interfaces, by name, also
// after its containers have ended.
func (p *Pod) NetDev() (map[string]testnet.Counters, error) {
	pid, err := p.inside()
	if err != nil {
		return nil, err
	}
	return testnet.InterfaceCounters(pid)
}

// HostVeth returns the host's end of the pod's eth0.
func (p *Pod) HostVeth() (netlink.Link, error) {
	if p.hostNetwork() {
		return nil, fmt.Errorf("find host veth of pod %s: it has the host's network", p.Name)
	}
	pid, err := p.inside()
	if err != nil {
		return nil, err
	}
	link, err := p.host.hostVeth(pid)
	if err != nil {
		return nil, fmt.Errorf("find host veth of pod %s: %w", p.Name, err)
	}
	return link, nil
}

// hostVeth returns the host's end of the eth0 that a process has.
func (h *Host) hostVeth(pid int) (netlink.Link, error) {
	n, err := testnet.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer n.Close()
	inside, err := n.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	return h.Namespace.LinkByIndex(inside.Attrs().ParentIndex)
}

// KillSandbox kills the process of the sandbox, and returns when its cgroup is
// gone, too. The containers go on in the network namespace, which CNI's file
// holds; no more of them can be started.
func (p *Pod) KillSandbox() error {
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill sandbox of pod %s: %w", p.Name, err)
	}
	p.PID = 0
	roots, err := testnet.CgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := awaitGone(filepath.Join(root, p.CgroupPath, p.ID)); err != nil {
			return fmt.Errorf("kill sandbox of pod %s: %w", p.Name, err)
		}
	}
	return nil
}

func awaitGone(dir string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		_, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still there", dir)
		}
	}
}

// Remove kills the pod's containers and removes the pod with its cgroup.
func (p *Pod) Remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(p.host.removeSandbox(ctx, p.ID), p.removeCgroups())
}
