// SPDX-License-Identifier: Apache-2.0

// Package quota compares what containers use with what rules allow them, and says which
// alerts fire.
//
// # What is counted
//
// A rule counts one number of each container that it matches, under a key: the
// container's id, its name, its pod, its namespace, a label, or one for all. Usage
// under a name goes on when the container is made anew under that name, and follows a container
// that alone has used it to another name. What is added is
// the growth of a container's total since the last check, and that total never goes
// back, over restarts of the container, of nettally and of the host. So what passes while
// nettally is down is counted when it is back, in the period of that moment. The same
// goes for what passes while its programs see nothing, which is mended when that is noticed:
// who takes them off evades no rule. What was seeded belongs to no period.
//
// Each byte is counted in one period. A check a moment after the end of a period puts
// that moment, at most a second, into the next one.
//
// A container that is new counts from its first byte. A rule that is new counts what comes from
// now on, of all containers alike, and `initial` or `quota set` supply the rest; only one that
// counts lifetimes takes in what the containers that run have used before. A container that comes to match a rule later counts from
// then on. A container without a name is left for three seconds, since runtimes tell names
// a moment late; if it gets one later still, what it used goes along.
//
// # Alerts
//
// Each level of a limit fires once per key and period, and is resolved when the period
// ends. Levels of a rolling window fire when they are reached, are resolved below nine
// tenths of the level, and may then fire again. A rate fires when it has been above its
// bound for a while, and is resolved when it has not been above `clear` for as long. A
// projection is made when a tenth of the period has been seen; it fires once per
// period, and is resolved when it has fallen below nine tenths of the limit.
//
// # The clock
//
// A period ends when a clock that is trusted has passed its end (see package wallclock). While
// it is not, what is used counts for the running period, so a wrong clock forgives nothing. A
// clock that is set back leaves the running period as it is, so that no period is opened
// twice; only if a clock that was ahead by more than a period was trusted, the running period
// ends with the calendar's next one. Rates and `for` are measured on the monotonic clock.
//
// # Durability
//
// Usage is saved every ten seconds, together with the totals that it was made of. What
// was counted since the last save is found again as the difference to the totals then,
// so nothing is lost and nothing counted twice by a kill at any time.
//
// An alert is saved with one delivery for each notifier in one transaction, and told
// afterwards, as [Engine.Next] and [Engine.Firing] say. Deliveries are deleted once they are
// acknowledged: a kill in between makes one told again, with the same id. A disk that fails
// delays an alert by half a second and stops nothing.
package quota
