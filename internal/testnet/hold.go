// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
)

// hold opens connections that stay until letGo, or the end of the process.
func (s *server) hold(o order) error {
	for range o.Count {
		c, err := dial(o.Addr)
		if err != nil {
			return err
		}
		s.held = append(s.held, c)
	}
	return nil
}

func (s *server) letGo(o order) error {
	if o.Count > len(s.held) {
		return fmt.Errorf("only %d connections are held", len(s.held))
	}
	going := s.held[:o.Count]
	s.held = s.held[o.Count:]
	for _, c := range going {
		if !o.Reset {
			if err := hangUp(c); err != nil {
				return err
			}
			continue
		}
		if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
			return err
		}
	}
	return nil
}
