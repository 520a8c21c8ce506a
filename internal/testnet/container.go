// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
)

// ContainerOptions say how a container is made. The zero value makes one in all
// mounted hierarchies.
type ContainerOptions struct {
	// ID is the container's id; 64 random hexadecimal digits by default.
	ID string

	// Cgroup is the container's path in the hierarchies, and by default
	// /nettally-testnet-<pid>/<ID>. It goes with the container, and so do the
	// directories above it that are empty then.
	Cgroup string

	// CgroupRoots are the mount points of the hierarchies; nil means all.
	CgroupRoots []string

	// Interface is the name of the first interface, "eth0" by default.
	Interface string

	// NoInterface leaves the container's namespace with lo alone. It may be given
	// interfaces by [Container.AddInterface] and [Container.TakeDevice] then.
	NoInterface bool

	// LikeDocker makes the container in Docker's order: the cgroup appears while
	// its process is in the host's namespace, and the peer appears in the host
	// before it is moved; at the end the cgroup goes before the veth. Otherwise
	// it is podman's: the veth is the first to come and the first to go.
	LikeDocker bool

	// Join puts the container into an existing namespace, that of the host or
	// of another container, without an interface of its own.
	Join *Namespace
}

// Container is what a runtime makes, without one: an agent process in its own
// cgroups and network namespace, with a veth to the host.
//
// Its methods are not safe for concurrent use, apart from the agent's. Closed
// is closed: nothing is left in cgroups and namespaces. If the program dies,
// the process, the namespace and the veth go too, and only empty cgroup
// directories stay.
type Container struct {
	*Agent
	// ID and Cgroup are as in the options, defaults filled in.
	ID     string
	Cgroup string
	// Namespace is the network namespace and Interfaces what is in it, the first
	// one first. Both change with Restart.
	Namespace  *Namespace
	Interfaces []Interface

	host    *Namespace
	options ContainerOptions
	cgroup  cgroup
	moved   []cgroup // what Move made
}

// NewContainer makes a container on a host. Requires CAP_SYS_ADMIN,
// CAP_NET_ADMIN and the right to make cgroups.
func NewContainer(host *Namespace, options ContainerOptions) (*Container, error) {
	if options.ID == "" {
		options.ID = randomHex(32)
	}
	if options.Cgroup == "" {
		options.Cgroup = fmt.Sprintf("/nettally-testnet-%d/%s", os.Getpid(), options.ID)
	}
	if options.Interface == "" {
		options.Interface = "eth0"
	}
	if options.CgroupRoots == nil {
		var err error
		if options.CgroupRoots, err = CgroupRoots(); err != nil {
			return nil, err
		}
	}
	c := &Container{
		ID: options.ID, Cgroup: path.Clean(options.Cgroup),
		host: host, options: options,
		cgroup: cgroup{roots: options.CgroupRoots, path: options.Cgroup},
	}
	if options.Join == nil && !options.NoInterface {
		nic, err := newInterface(host, options.Interface)
		if err != nil {
			return nil, err
		}
		c.Interfaces = append(c.Interfaces, nic)
	}
	if err := c.start(); err != nil {
		return nil, err
	}
	return c, nil
}

// start makes everything, or nothing.
func (c *Container) start() error {
	c.Namespace = c.options.Join
	if c.Namespace == nil {
		var err error
		if c.Namespace, err = NewNamespace(); err != nil {
			return err
		}
	}
	run := c.startLikePodman
	if c.options.LikeDocker {
		run = c.startLikeDocker
	}
	if err := run(); err != nil {
		return errors.Join(fmt.Errorf("start container %.12s: %w", c.ID, err), c.Close())
	}
	return nil
}

func (c *Container) startLikePodman() error {
	for i := range c.Interfaces {
		nic := &c.Interfaces[i]
		if err := nic.create(c.Namespace); err != nil {
			return err
		}
		if err := nic.configure(c.Namespace); err != nil {
			return err
		}
	}
	agent, err := StartAgent(c.Namespace)
	if err != nil {
		return err
	}
	c.Agent = agent
	if err := c.cgroup.make(); err != nil {
		return err
	}
	return c.cgroup.join(agent.PID())
}

func (c *Container) startLikeDocker() error {
	for i := range c.Interfaces {
		nic := &c.Interfaces[i]
		if err := nic.create(nic.host); err != nil {
			return err
		}
	}
	agent, err := StartAgent(c.host)
	if err != nil {
		return err
	}
	c.Agent = agent
	if err := c.cgroup.make(); err != nil {
		return err
	}
	if err := c.cgroup.join(agent.PID()); err != nil {
		return err
	}
	if _, err := agent.do(order{Verb: "enter", Path: c.Namespace.Path()}); err != nil {
		return err
	}
	for i := range c.Interfaces {
		nic := &c.Interfaces[i]
		if err := nic.move(c.Namespace); err != nil {
			return err
		}
		if err := nic.configure(c.Namespace); err != nil {
			return err
		}
	}
	return nil
}

// AddInterface gives the running container one more interface, as `docker
// network connect` does. The host may be another namespace than the container's
// host, as Docker's is that joins machines by an overlay: then there is no host
// veth in the host.
func (c *Container) AddInterface(host *Namespace, name string) (Interface, error) {
	nic, err := newInterface(host, name)
	if err != nil {
		return nic, err
	}
	if err := nic.create(c.Namespace); err != nil {
		return nic, err
	}
	c.Interfaces = append(c.Interfaces, nic)
	return nic, nic.configure(c.Namespace)
}

// Restart stops the container and starts it again with the same id, cgroup path
// and addresses; process, namespace and host veths are new ones. If it fails,
// the container is closed.
func (c *Container) Restart() error {
	links := slices.Clone(c.Interfaces)
	for i := range links {
		links[i].HostName = hostName()
	}
	if err := c.Close(); err != nil {
		return err
	}
	c.Interfaces = links
	return c.start()
}

// Close kills the process and removes veths and cgroups. Closing again does
// nothing.
func (c *Container) Close() error {
	if c.Agent != nil {
		c.kill()
	}
	steps := []func() error{c.removeInterfaces, c.removeCgroups}
	if c.options.LikeDocker {
		steps[0], steps[1] = steps[1], steps[0]
	}
	errs := []error{steps[0](), steps[1]()}
	if c.options.Join == nil && c.Namespace != nil {
		errs = append(errs, c.Namespace.Close())
	}
	c.Namespace = nil
	return errors.Join(errs...)
}

// Move moves the container's process into a cgroup that is made for it, in all of
// the container's hierarchies, as the first process of systemd in a container
// does: below the container's own cgroup, or elsewhere, which leaves that empty.
// The cgroup goes with the container; after Restart the process is where it was
// at first.
func (c *Container) Move(to string) error {
	g := cgroup{roots: c.options.CgroupRoots, path: path.Clean(to)}
	err := g.make()
	c.moved = append(c.moved, g)
	if err == nil {
		err = g.join(c.PID())
	}
	if err != nil {
		return fmt.Errorf("move container %.12s to %s: %w", c.ID, to, err)
	}
	return nil
}

func (c *Container) removeCgroups() error {
	var errs []error
	for _, g := range slices.Backward(c.moved) {
		errs = append(errs, g.remove())
	}
	c.moved = nil
	return errors.Join(append(errs, c.cgroup.remove())...)
}

func (c *Container) removeInterfaces() error {
	var errs []error
	for i := range c.Interfaces {
		errs = append(errs, c.Interfaces[i].remove())
	}
	c.Interfaces = nil
	return errors.Join(errs...)
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
