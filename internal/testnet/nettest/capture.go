// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/internal/testnet/need"
)

// patience bounds everything that should happen at once.
const patience = time.Minute

// Capture is a tcpdump on an interface: a count of packets that nobody here
// wrote. It sees socket buffers, so a super-packet of segmentation offload is
// one packet, with its whole length.
type Capture struct {
	// Dropped is what the kernel dropped for want of room, known after Stop.
	// A test fails by itself if it is not 0.
	Dropped int

	tb     testing.TB
	file   string
	cmd    *exec.Cmd
	lines  chan string // what tcpdump prints, closed at its end
	stop   sync.Once
	exited error // after lines is closed

	numbers map[string]int
}

// Volume is an amount of captured traffic. Bytes are original lengths at layer
// 2, whatever was cut off in the file.
type Volume struct{ Packets, Bytes uint64 }

// StartCapture captures both directions of an interface, and returns when it
// really does.
func StartCapture(tb testing.TB, n *testnet.Namespace, iface string) *Capture {
	tb.Helper()
	return startCapture(tb, n, iface, 160) // headers are enough
}

// StartFullCapture is StartCapture, of whole packets, for [Capture.Fields].
func StartFullCapture(tb testing.TB, n *testnet.Namespace, iface string) *Capture {
	tb.Helper()
	return startCapture(tb, n, iface, 0)
}

func startCapture(tb testing.TB, n *testnet.Namespace, iface string, size int) *Capture {
	tb.Helper()
	need.Commands(tb, "tcpdump")
	c := &Capture{
		tb: tb, file: filepath.Join(tb.TempDir(), "capture.pcap"),
		lines: make(chan string, 16), numbers: make(map[string]int),
	}
	// The buffer is 64 MiB. Without -Z the file would belong
	// to a user that may not write it.
	c.cmd = exec.Command("tcpdump", "-i", iface, "-w", c.file, "-U", "-n",
		"--immediate-mode", "-s", strconv.Itoa(size), "-B", "65536", "-Z", "root")
	stderr, err := c.cmd.StderrPipe()
	if err == nil {
		err = n.Start(c.cmd)
	}
	if err != nil {
		tb.Fatalf("start capture on %s: %v", iface, err)
	}
	go c.follow(stderr)
	tb.Cleanup(c.Stop)
	if c.await("listening on"); c.cmd.Process.Signal(syscall.Signal(0)) != nil {
		tb.Fatalf("capture on %s did not start", iface)
	}
	return c
}

func (c *Capture) follow(stderr io.Reader) {
	for s := bufio.NewScanner(stderr); s.Scan(); {
		c.lines <- s.Text()
	}
	c.exited = c.cmd.Wait()
	close(c.lines)
}

// await reads what tcpdump prints until a line with the text, or its end.
func (c *Capture) await(text string) {
	c.tb.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, more := <-c.lines:
			c.note(line)
			if !more || strings.Contains(line, text) {
				return
			}
		case <-timeout:
			_ = c.cmd.Process.Kill()
			c.tb.Fatalf("capture: tcpdump did not print %q", text)
		}
	}
}

// 3 packets captured, 3 packets received by filter, 0 packets dropped by kernel
var statistic = regexp.MustCompile(`(\d+) packets? (captured|received|dropped)`)

// note keeps the last numbers, which come on one line or on three.
func (c *Capture) note(line string) {
	for _, match := range statistic.FindAllStringSubmatch(line, -1) {
		c.numbers[match[2]] = number(match[1])
	}
}

// caughtUp says whether tcpdump had seen all of the packets by then.
func (c *Capture) caughtUp() bool {
	return c.numbers["captured"]+c.numbers["dropped"] >= c.numbers["received"]
}

// Stop ends the capture when it has written what the interface had passed until
// then. Stopping again does nothing. It is no error that the interface vanished,
// unless packets were lost by it.
func (c *Capture) Stop() {
	c.tb.Helper()
	c.stop.Do(func() {
		c.CatchUp()
		_ = c.cmd.Process.Signal(os.Interrupt)
		for line := range c.lines {
			c.note(line)
		}
		if c.exited != nil && !c.caughtUp() {
			c.tb.Errorf("capture ended too early: %v", c.exited)
		}
		if c.Dropped = c.numbers["dropped"]; c.Dropped > 0 {
			c.tb.Errorf("capture: the kernel dropped %d packets, counts are too low", c.Dropped)
		}
	})
}

// CatchUp waits until tcpdump has seen all that the kernel has for it: at an interrupt, and
// when the interface goes, it forgets what is still in the buffer.
func (c *Capture) CatchUp() {
	c.tb.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err := c.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return // it has ended
		}
		if c.await(" captured"); c.caughtUp() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	c.tb.Error("capture: tcpdump does not catch up")
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // digits only
	return n
}

// Count counts the packets that match a filter in tcpdump's language; "" counts
// all.
func (c *Capture) Count(filter string) Volume {
	c.tb.Helper()
	var sum Volume
	for _, p := range c.Packets(filter) {
		sum.Packets++
		sum.Bytes += uint64(p.Length)
	}
	return sum
}

// Packets returns time and lengths of the packets that match a filter.
func (c *Capture) Packets(filter string) []gopacket.CaptureInfo {
	c.tb.Helper()
	c.Stop()
	args := []string{"-r", c.file, "-w", "-"}
	if filter != "" {
		args = append(args, filter)
	}
	cmd := exec.Command("tcpdump", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.tb.Fatalf("read capture with filter %q: %v: %s", filter, err, &stderr)
	}
	packets, err := readPackets(bytes.NewReader(out))
	if err != nil {
		c.tb.Fatalf("read capture: %v", err)
	}
	return packets
}

// Fields returns the values that tshark finds of a field in the packets, counted.
func (c *Capture) Fields(field string) map[string]uint64 {
	c.tb.Helper()
	need.Commands(c.tb, "tshark")
	c.Stop()
	cmd := exec.Command("tshark", "-r", c.file, "-Y", field, "-T", "fields", "-e", field, "-E", "occurrence=a", "-E", "aggregator=/s")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.tb.Fatalf("read capture with tshark: %v: %s", err, &stderr)
	}
	found := map[string]uint64{}
	for _, value := range strings.Fields(string(out)) {
		found[value]++
	}
	return found
}

func readPackets(r io.Reader) ([]gopacket.CaptureInfo, error) {
	pcap, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, err
	}
	var packets []gopacket.CaptureInfo
	for {
		_, info, err := pcap.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return packets, nil
		}
		if err != nil {
			return nil, fmt.Errorf("packet %d: %w", len(packets)+1, err)
		}
		packets = append(packets, info)
	}
}
