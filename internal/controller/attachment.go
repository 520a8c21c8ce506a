// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"time"

	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/watcher"
)

// attachment is a thing that is counted, or is to be: a host veth, an interface inside of a
// container, or a cgroup. These differ by the [site] that the programs are put on. The slot's
// note in package usage has its owner, whether its qdisc is ours, whether it is being handed
// over between two hooks, and what was seeded and mended.
type attachment struct {
	usage.Target
	name    string // for the log
	state   state
	back    state  // that it was in before a job, which takes it there again if it fails
	hook    string // it is counted on, "" for none
	slot    uint16
	since   time.Time            // we know it
	failure string               // of the last attempt to attach, as it stands in the log
	seen    watcher.LinkCounters // of the kernel, right before our programs were first put on
	glance  *reading             // right after that, where it took long; nil if there is none
	check   *check               // nil until the kernel's counters were read
	mend    backoff
}

// state is where an attachment is between being seen and being gone, which it may be in any
// of them. What takes grace periods of the kernel is done by a job beside the roster's
// goroutine; while it is at an attachment, nothing else changes that.
//
//	new ---> waiting <---failed---> opening     adopted <--- left by an earlier process
//	            |                      |           |
//	            '------- attach -------+-- done ---+-- replaced
//	                                   v
//	           .---- job ----> moving, leaving (job done: gone, or elsewhere)
//	           |                       |
//	       counting <--- done, failed -'
//	        ^     |
//	      seen   blind
//	        |     v
//	       shadowed <--- failed ---> mending ---- done ----> counting
type state int

const (
	waiting   state = iota // to be counted, and not yet: new, or failed, or after a CNI plugin
	adopted                // counted by an earlier process's programs, ours are still to come
	opening                // a job puts it on its first hook
	counting               //
	shadowed               // counted, but packets pass unseen
	moving                 // counted, while a job moves it to another hook
	mending                // shadowed, while a job puts our programs where they see the packets
	leaving                // a job takes our programs off
	elsewhere              // packets bypass it: it is counted at its other end
)

var stateNames = [...]string{"waiting", "adopted", "opening", "counting", "shadowed", "moving", "mending", "leaving", "elsewhere"}

func (s state) String() string { return stateNames[s] }

// follows says which states come after one. A job that fails takes an attachment back.
var follows = [...][]state{
	waiting:   {counting, opening, leaving, elsewhere},
	adopted:   {counting},
	opening:   {counting, waiting},
	counting:  {shadowed, moving, leaving},
	shadowed:  {counting, mending, leaving},
	moving:    {counting},
	mending:   {counting, shadowed},
	leaving:   {elsewhere, waiting, counting, shadowed},
	elsewhere: {leaving},
}

// attached says that our programs are on it, as far as we know.
func (a *attachment) attached() bool { return a.hook != "" }

// atWork says that a job is at it.
func (a *attachment) atWork() bool {
	switch a.state {
	case opening, moving, mending, leaving:
		return true
	}
	return false
}

// isElsewhere says that it is counted at its other end, also while a job sees to it that it is
// no more.
func (a *attachment) isElsewhere() bool {
	return a.state == elsewhere || a.state == leaving && a.back == elsewhere
}

// unseen says that packets pass it that our programs don't see.
func (a *attachment) unseen() bool { return a.state == shadowed || a.state == mending }

// onHost says that it is a host veth.
func (a *attachment) onHost() bool { return a.NetNS == 0 && a.Cgroup == 0 }

// kind is what it is called in the log.
func (a *attachment) kind() string {
	if a.Cgroup != 0 {
		return "cgroup"
	}
	return "interface"
}
