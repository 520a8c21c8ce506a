// SPDX-License-Identifier: Apache-2.0

package tcctl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrGone says that the interface vanished or moved to another namespace:
	// normal life.
	ErrGone = errors.New("the interface is gone")
	// ErrUnsupported says that the kernel lacks clsact or cls_bpf, or tcx.
	ErrUnsupported = errors.New("not supported by the kernel")
	// ErrForeign says that our place on the hook is taken by somebody else's
	// filter, or the name of our pin by somebody else's link. Neither is ever
	// replaced.
	ErrForeign = errors.New("another program's filter is in the way")
	// ErrIngressQdisc says that the interface has an `ingress` qdisc, which
	// excludes clsact and is never replaced.
	ErrIngressQdisc = errors.New("an ingress qdisc is in the way of clsact")
)

func ignoreGone(err error) error {
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// explainQdisc says what the refusal of a clsact qdisc means.
func explainQdisc(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel has no clsact: load module sch_ingress (CONFIG_NET_SCH_INGRESS): %w",
			ErrUnsupported, err)
	}
	return err
}

// explainFilter says what the refusal of a filter means, from what is there
// afterwards: the kernel has one EINVAL for many things.
func (c *Controller) explainFilter(f Filter, err error) error {
	q, lookErr := c.lister.qdisc(f.Ifindex)
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(lookErr, ErrGone):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case lookErr != nil:
		return err
	case q.kind != "clsact":
		return fmt.Errorf("the clsact qdisc was removed meanwhile: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP) && q.shared:
		return fmt.Errorf("%w: the hook uses a shared filter block: %w", ErrForeign, err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: the kernel has no bpf classifier: load module cls_bpf (CONFIG_NET_CLS_BPF): %w",
			ErrUnsupported, err)
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.EINVAL):
		return c.explainPlace(f, err)
	}
	return err
}

// explainTCX says what the refusal of a new link or of a list of programs means.
func explainTCX(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("the program is on the hook already, by a link that is not pinned as ours: %w", err)
	}
	return err
}

// explainQuery says what the refusal to list the programs on a hook means. EINVAL is a
// kernel that has never heard of the hook: there is nothing else to be wrong.
func explainQuery(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: the kernel has no tcx, which Linux 6.6 brought: %w", ErrUnsupported, err)
	}
	return explainTCX(err)
}

// explainPlace looks who has the priority.
func (c *Controller) explainPlace(f Filter, err error) error {
	there, lookErr := c.lister.filters(f.Ifindex, f.Hook, info(f.Priority, 0))
	if lookErr != nil {
		return err
	}
	for _, other := range there {
		// Ours it can be when another process of ours attached at the same moment.
		if ours, _, _ := c.ours(other); other.blocks() && !ours {
			return fmt.Errorf("%w: %v; set attach.priority to a free number: %w", ErrForeign, other, err)
		}
	}
	return err
}

// blocks says whether a filter at our priority keeps ours from being added. A
// priority has one kind and one protocol per chain.
func (f filter) blocks() bool {
	if f.chain != 0 {
		return false
	}
	return f.kind != "bpf" || f.protocol != protocolAll || f.handle == filterHandle
}

func (f filter) String() string {
	s := f.kind + " filter"
	if f.name != "" {
		s = fmt.Sprintf("%s %q", s, f.name)
	}
	s = fmt.Sprintf("%s, priority %d, protocol %#04x", s, f.priority, f.protocol)
	if f.handle != 0 {
		s = fmt.Sprintf("%s, handle %#x", s, f.handle)
	}
	return s
}
