// SPDX-License-Identifier: Apache-2.0

// Package top shows on a terminal who uses the network now, from the daemon's stream.
//
// [Run] owns the terminal until it returns, and waits for its goroutines. Every text that comes
// from outside is replaced as [view.Printable] does before it is drawn.
package top

import (
	"context"
	"errors"
	"iter"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/exporter"
)

// Client asks a nettally: *exporter.Client.
type Client interface {
	Follow(ctx context.Context, interval time.Duration) iter.Seq2[exporter.StreamEvent, error]
	Get(ctx context.Context, target string, body any) error
}

// Options say what is shown, and where.
type Options struct {
	Client   Client
	Interval time.Duration // whole seconds
	Where    string        // the daemon's address for the header, "" for this host's

	Out      *os.File // the terminal
	ASCII    bool     // it shows no other characters
	NoColor  bool
	Settings Settings
	Path     string // where settings are saved
	Notice   string // is shown until a key is pressed

	Now func() time.Time // nil is time.Now
}

// retry is how long a lost connection is left alone before the next try, at first and at most.
const (
	retry     = time.Second
	retryMost = 10 * time.Second
)

// The messages that goroutines send to the model.
type (
	eventMsg  struct{ event exporter.StreamEvent }
	lostMsg   struct{ err error }
	recentMsg struct{ recent *exporter.Recent }
	tickMsg   struct{} // a second has gone by
)

// Run shows until the user quits or ctx ends. It returns an error if nobody answers at the
// beginning; later it waits for the daemon to come back, and says so.
func Run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wishes := make(chan string, 1)
	options := []tea.ProgramOption{tea.WithContext(ctx), tea.WithOutput(o.Out), tea.WithoutSignalHandler()}
	if o.NoColor {
		options = append(options, tea.WithColorProfile(colorprofile.ASCII))
	}
	program := tea.NewProgram(newModel(o, wishes), options...)

	var group errgroup.Group
	answered := make(chan error, 1)
	group.Go(func() error {
		follow(ctx, o.Client, o.Interval, func(m tea.Msg) {
			select {
			case answered <- errorOf(m):
			default:
			}
			program.Send(m)
		})
		return nil
	})
	group.Go(func() error {
		loadDetails(ctx, o.Client, wishes, program.Send)
		return nil
	})
	group.Go(func() error {
		tick(ctx, program.Send)
		return nil
	})
	err := first(ctx, answered)
	if err == nil {
		_, err = program.Run()
	}
	cancel()         // also lets go what waits to be sent to a program that does not run
	_ = group.Wait() // they only end with ctx
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil {
		return nil // somebody ended us
	}
	return err
}

// first waits for what the first connection comes to.
func first(ctx context.Context, answered <-chan error) error {
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func errorOf(m tea.Msg) error {
	if lost, ok := m.(lostMsg); ok {
		return lost.err
	}
	return nil
}

// follow sends what a stream tells, over as many connections as it takes, until ctx ends.
func follow(ctx context.Context, c Client, interval time.Duration, send func(tea.Msg)) {
	pause := retry
	for ctx.Err() == nil {
		for event, err := range c.Follow(ctx, interval) {
			if err != nil {
				send(lostMsg{err})
				break
			}
			send(eventMsg{event})
			if all, ok := event.(*exporter.StreamContainers); ok && all.Replace {
				pause = retry
				var recent exporter.Recent
				if c.Get(ctx, "/api/v1/recent", &recent) == nil { // without it plots begin empty
					send(recentMsg{&recent})
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, retryMost)
		}
	}
}

// tick says that time goes by, also where nothing else happens.
func tick(ctx context.Context, send func(tea.Msg)) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			send(tickMsg{})
		}
	}
}
