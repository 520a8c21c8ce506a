// SPDX-License-Identifier: Apache-2.0

package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"syscall"
)

// answerMax is the most bytes that are read of one answer, or of the events of
// one session. A batch of ordinary containers takes a tenth of it.
const answerMax = 1 << 20

// limitedConn fails after so many bytes were read. It reads nothing before the
// first write: what a peer says unasked, net/http would print on our standard
// error, 4 KiB for every attempt.
type limitedConn struct {
	net.Conn
	left  int
	asked chan struct{} // closed by the first Write or Close
	once  sync.Once
}

func (c *limitedConn) Read(p []byte) (int, error) {
	<-c.asked
	if c.left <= 0 {
		return 0, fmt.Errorf("%w: over %d bytes", errTooLarge, answerMax)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (c *limitedConn) Write(p []byte) (int, error) {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Write(p)
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { close(c.asked) })
	return c.Conn.Close()
}

// explain makes a client's error fit for one line of a log: the peer decides on
// its text.
func explain(err error) error {
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	if request := (*url.Error)(nil); errors.As(err, &request) {
		err = request.Err // without the URL, which has the socket's path in it, escaped
	}
	return errors.New(clean(err.Error()))
}
