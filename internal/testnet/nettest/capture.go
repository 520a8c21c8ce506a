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
const patience = 10 * time.Second

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
}

// Volume is an amount of captured traffic. Bytes are original lengths at layer
// 2, whatever was cut off in the file.
type Volume struct{ Packets, Bytes uint64 }

// StartCapture captures both directions of an interface, and returns when it
// really does.
func StartCapture(tb testing.TB, n *testnet.Namespace, iface string) *Capture {
	tb.Helper()
	need.Commands(tb, "tcpdump")
	c := &Capture{
		tb: tb, file: filepath.Join(tb.TempDir(), "capture.pcap"),
		lines: make(chan string, 16),
	}
	// Headers are enough. The buffer is 64 MiB. Without -Z the file would belong
	// to a user that may not write it.
	c.cmd = exec.Command("tcpdump", "-i", iface, "-w", c.file, "-U", "-n",
		"--immediate-mode", "-s", "160", "-B", "65536", "-Z", "root")
	stderr, err := c.cmd.StderrPipe()
	if err == nil {
		err = n.Start(c.cmd)
	}
	if err != nil {
		tb.Fatalf("start capture on %s: %v", iface, err)
	}
	go c.follow(stderr)
	tb.Cleanup(c.Stop)
	c.await("listening on")
	return c
}

func (c *Capture) follow(stderr io.Reader) {
	for s := bufio.NewScanner(stderr); s.Scan(); {
		c.lines <- s.Text()
	}
	c.exited = c.cmd.Wait()
	close(c.lines)
}

// await returns the next line with the text, and "" if tcpdump ended before.
func (c *Capture) await(text string) string {
	c.tb.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, more := <-c.lines:
			if !more && text != statistics {
				c.tb.Fatalf("capture ended: %v", c.exited)
			}
			if !more || strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			_ = c.cmd.Process.Kill()
			c.tb.Fatalf("capture: tcpdump did not print %q", text)
		}
	}
}

const statistics = " captured"

// 3 packets captured, 3 packets received by filter, 0 packets dropped by kernel
var statisticsLine = regexp.MustCompile(
	`(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel`)

// Stop ends the capture when it has written what the interface had passed until
// then. Stopping again does nothing. An interface that has vanished is no error.
func (c *Capture) Stop() {
	c.tb.Helper()
	c.stop.Do(func() {
		c.drain()
		_ = c.cmd.Process.Signal(os.Interrupt)
		for range c.lines { //nolint:revive // until it has ended
		}
		if c.Dropped > 0 {
			c.tb.Errorf("capture: the kernel dropped %d packets, counts are too low", c.Dropped)
		}
	})
}

// drain waits until tcpdump has seen all that the kernel has for it: at an
// interrupt it forgets what is still in the buffer.
func (c *Capture) drain() {
	c.tb.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err := c.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return // it has ended
		}
		numbers := statisticsLine.FindStringSubmatch(c.await(statistics))
		if numbers == nil {
			return // ended
		}
		captured, received := number(numbers[1]), number(numbers[2])
		c.Dropped = number(numbers[3])
		if captured+c.Dropped >= received {
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
