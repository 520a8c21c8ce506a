// SPDX-License-Identifier: Apache-2.0

package quota

import (
	"testing"
	"time"

	"github.com/nettally/nettally/internal/usage"
)

// request has a container receive HTTP requests, and transmit twice as many, of two methods each.
func (b *bench) request(id string, n uint64) {
	c := b.find(id)
	var said usage.Requests
	if c.Requests != nil {
		said = *c.Requests
	}
	for i, more := range []uint64{n - n/2, n / 2} {
		said.Receive.HTTPRequests[i] += more
		said.Transmit.HTTPRequests[i] += 2 * more
	}
	c.Requests, c.Layer7 = &said, usage.Layer7{HTTP: true}
}

// HTTP requests count where they are counted, whatever the bytes are counted by. Where they are not
// for a while, or begin anew, that costs no other number.
func TestHTTPRequests(t *testing.T) {
	in, out := monthly(named("in"), counting(ReceiveHTTPRequests)), monthly(named("out"), counting(TransmitHTTPRequests))
	b := newBench(t, monthly(), in, out)
	b.pass(time.Second)
	b.start("a1", "web").Requests = &usage.Requests{}
	b.find("a1").Layer7 = usage.Layer7{DNS: true}
	b.transmit("a1", 100)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 100})
	b.request("a1", 249)
	same(t, said(b.pass(time.Second)), []string(nil))
	b.request("a1", 1)
	alerts := b.pass(time.Second)
	same(t, said(alerts), []string{"out web 50 firing"})
	same(t, alerts[0].Unit, "requests")
	same(t, b.used(), map[string]uint64{"m/web": 100, "in/web": 250, "out/web": 500})

	c := b.find("a1")
	was := c.Requests
	c.Requests, c.Layer7 = nil, usage.Layer7{}
	b.transmit("a1", 30)
	b.pass(time.Second)
	c.Requests = was
	b.request("a1", 7)
	b.restart()
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 130, "in/web": 257, "out/web": 514})

	c.Requests = nil
	b.request("a1", 3)
	b.transmit("a1", 20)
	b.pass(time.Second)
	b.request("a1", 1)
	byCgroup(c, b.now, 20) // the numbers of another kind
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 150, "in/web": 258, "out/web": 516})
	sources := map[string]string{}
	for _, s := range b.engine.Status() {
		sources[s.Quota] = s.Source
	}
	same(t, sources, map[string]string{"m": "mixed", "in": sourceHTTP, "out": sourceHTTP})
}

// A container that shares a network has its own requests. Those of a nested one are in the numbers
// of the outer one already.
func TestHTTPRequestsOfMembersAndNested(t *testing.T) {
	b := newBench(t, monthly(named("all"), per(PerAll), counting(ReceiveHTTPRequests)), monthly(named("each"), counting(ReceiveHTTPRequests)))
	b.pass(time.Second)
	for i, id := range []string{"a1", "b2", "c3"} {
		b.start(id, "n"+id)
		b.request(id, []uint64{100, 20, 3}[i])
	}
	byCgroup(b.find("b2"), b.now, 0)
	b.find("b2").Shares, b.find("b2").SharesWith = true, "a1"
	b.find("c3").ParentID = "a1"
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"all/all": 120, "each/na1": 100, "each/nb2": 20, "each/nc3": 3})
}

func TestRateOfHTTPRequests(t *testing.T) {
	b := newBench(t, Rule{Name: "busy", Per: PerContainer, Count: ReceiveHTTPRequests, Rate: &Rate{Above: 50, Clear: 50, For: 2 * time.Second}})
	b.pass(0)
	b.start("a1", "web")
	more := func(n uint64) []Alert {
		b.request("a1", n)
		return b.pass(time.Second)
	}
	more(0)
	same(t, said(more(51)), []string(nil))
	alerts := more(51)
	same(t, said(alerts), []string{"busy a1 rate firing"})
	same(t, alerts[0].Unit, "requests/s")
	more(50)
	same(t, said(more(50)), []string{"busy a1 rate resolved"})
}

// Versions before this one saved ten numbers of each container.
func TestHTTPRequestsAfterAnUpgrade(t *testing.T) {
	b := newBench(t, monthly())
	b.pass(time.Second)
	b.start("a1", "web")
	b.connect("a1", 8)
	b.transmit("a1", 300)
	b.pass(time.Second)
	b.store.documents[containerKey("a1")] = []byte(`{"t":[0,0,0,300,3,0,8,8,0,0],"s":"interface"}`)
	b.rules = []Rule{monthly(), monthly(named("c"), counting(TCPConnects)), monthly(named("h"), counting(ReceiveHTTPRequests))}
	b.restart()
	b.transmit("a1", 100)
	b.connect("a1", 1)
	b.request("a1", 5)
	b.pass(time.Second)
	same(t, b.used(), map[string]uint64{"m/web": 400, "c/web": 1, "h/web": 5})
}
