// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nettally/nettally/bpf"
)

// RequestCounters is one direction of [Requests].
type RequestCounters = bpf.RequestCounters

// The names of what [RequestCounters] tells apart, in the order of its fields.
var (
	HTTPMethods   = bpf.HTTPMethods
	StatusClasses = bpf.StatusClasses
	DNSTypes      = bpf.DNSTypes
	DNSCodes      = bpf.DNSCodes
	ResyncCauses  = bpf.ResyncCauses
)

// Requests is what the sockets of a container, and of those inside it, have said at layer 7.
type Requests struct{ Receive, Transmit RequestCounters }

// Layer7 says which of [Requests] are counted.
type Layer7 struct{ HTTP, TLS, DNS bool }

// Plus returns the sum of two, as [Add] makes it. It changes neither; nil is 0.
func (r *Requests) Plus(u *Requests) *Requests {
	switch {
	case u == nil:
		return r
	case r == nil:
		return u
	}
	return &Requests{Receive: plusRequests(r.Receive, u.Receive), Transmit: plusRequests(r.Transmit, u.Transmit)}
}

func plusRequests(c, d RequestCounters) RequestCounters {
	sum := c.Numbers()
	for i, n := range d.Numbers() {
		sum[i] = Add(sum[i], n)
	}
	return bpf.RequestCountersOf(sum)
}

// MarshalJSON keeps it short, as that of [Counts]. Each number of what was received is followed by
// the same of what was transmitted: so a later version can add numbers at the end.
func (r Requests) MarshalJSON() ([]byte, error) {
	receive, transmit := r.Receive.Numbers(), r.Transmit.Numbers()
	var numbers []uint64
	for i := range receive {
		numbers = append(numbers, receive[i], transmit[i])
	}
	for len(numbers) > 0 && numbers[len(numbers)-1] == 0 {
		numbers = numbers[:len(numbers)-1]
	}
	return json.Marshal(numbers)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Requests) UnmarshalJSON(data []byte) error {
	var numbers []uint64
	if err := json.Unmarshal(data, &numbers); err != nil {
		return err
	}
	receive, transmit := RequestCounters{}.Numbers(), RequestCounters{}.Numbers()
	if most := len(receive) + len(transmit); len(numbers) > most {
		return fmt.Errorf("read counts of requests: %d numbers, expected at most %d", len(numbers), most)
	}
	for i, n := range numbers {
		if i%2 == 0 {
			receive[i/2] = n
		} else {
			transmit[i/2] = n
		}
	}
	*r = Requests{Receive: bpf.RequestCountersOf(receive), Transmit: bpf.RequestCountersOf(transmit)}
	return nil
}

// readRequests reads the slot of connections, which is ours as in [attachment.read]. It returns nil
// where nothing was counted.
func (at *attachment) readRequests(d Datapath) *Requests {
	receive, transmit, err := d.ReadRequests(at.slot)
	if errors.Is(err, bpf.ErrReleased) {
		panic("usage: slot of an attachment was released: " + at.slot.Target.String())
	}
	r := Requests{Receive: receive, Transmit: transmit}
	if r == (Requests{}) {
		return nil
	}
	return &r
}

// addRequests adds what was counted at layer 7, where that is counted.
func (c *Container) addRequests(counted *Requests, d Datapath) {
	o := d.RequestsCounted()
	if !o.Any() {
		return
	}
	c.Layer7 = Layer7{HTTP: o.HTTP, TLS: o.TLS, DNS: o.DNS}
	if c.Requests = counted; counted == nil {
		c.Requests = &Requests{}
	}
}

// HTTPRequests returns how many HTTP/1 requests of all methods a container has received and
// transmitted. Where they are not counted it returns what is known of earlier ones, or 0.
func (c *Container) HTTPRequests() (receive, transmit uint64) {
	if c.Requests == nil {
		return 0, 0
	}
	for i := range HTTPMethods {
		receive = Add(receive, c.Requests.Receive.HTTPRequests[i])
		transmit = Add(transmit, c.Requests.Transmit.HTTPRequests[i])
	}
	return receive, transmit
}
