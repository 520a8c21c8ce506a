// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/top"
	"github.com/nettally/nettally/internal/view"
)

// topFlags are those of `nettally top`.
type topFlags struct {
	interval                  time.Duration
	once                      bool
	output, url, cacert, user string
}

func newTop() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch who uses the network now",
		Long: `Watch who uses the network now: rates, totals, quotas and details of every container.
The key ? shows all keys. Ctrl-S saves columns, sort and unit in nettally/top.yaml below XDG_CONFIG_HOME or ~/.config.`,
		Example: `  nettally top --url https://web1:9819 --cacert ca.pem -u admin
  nettally top --once -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runTop(cmd, &f) },
	}
	cmd.Flags().DurationVar(&f.interval, "interval", time.Second, "how often numbers are read, 1s to 60s")
	cmd.Flags().BoolVar(&f.once, "once", false, "print one reading, of an interval, and end")
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", "table or json, a line per interval without --once")
	cmd.Flags().StringVar(&f.url, "url", "", "watch the nettally at this `address`, as https://host:9819, rather than at the socket")
	cmd.Flags().StringVar(&f.cacert, "cacert", "", "`file` in PEM of who may have signed the certificate of --url")
	cmd.Flags().StringVarP(&f.user, "user", "u", "", "log in at --url as `USER[:PASSWORD]`; asks for a password that is left out")
	return cmd
}

func runTop(cmd *cobra.Command, f *topFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	terminal := terminalOf(cmd.OutOrStdout())
	if terminal == nil && !f.once && f.output != "json" {
		return fmt.Errorf("%w: the output is no terminal; use --once or -o json", errUsage)
	}
	client, err := f.client(cmd)
	if err != nil {
		return err
	}
	defer client.Close()
	if f.once || f.output == "json" {
		return f.print(cmd, client)
	}
	return f.watch(cmd, client, terminal)
}

func (f *topFlags) check() error {
	switch {
	case f.output != "table" && f.output != "json":
		return fmt.Errorf("%w: --output: expected table or json, got %q", errUsage, f.output)
	case f.interval < time.Second || f.interval > time.Minute || f.interval%time.Second != 0:
		return fmt.Errorf("%w: --interval: expected whole seconds from 1s to 60s, got %s", errUsage, f.interval)
	case f.url == "" && f.cacert != "":
		return fmt.Errorf("%w: --cacert: it is of use with --url only", errUsage)
	case f.url == "" && f.user != "":
		return fmt.Errorf("%w: --user: it is of use with --url only", errUsage)
	}
	return nil
}

func (f *topFlags) client(cmd *cobra.Command) (*exporter.Client, error) {
	options := exporter.ClientOptions{URL: f.url, CAFile: f.cacert}
	if f.url == "" {
		config, err := loadClientConfig(cmd)
		if err != nil {
			return nil, err
		}
		options.Socket = config.Exporter.Socket
		return exporter.NewClient(options)
	}
	var complete bool
	if options.User, options.Password, complete = strings.Cut(f.user, ":"); f.user != "" && !complete {
		password, err := askPassword(cmd, options.User)
		if err != nil {
			return nil, err
		}
		options.Password = password
	}
	return exporter.NewClient(options)
}

// askPassword asks on the terminal, as curl does.
func askPassword(cmd *cobra.Command, user string) (string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(in.Fd()) {
		return "", fmt.Errorf("%w: --user: expected USER:PASSWORD where nobody can be asked for the password", errUsage)
	}
	if err := say(cmd.ErrOrStderr(), "password of %s:", user); err != nil {
		return "", err
	}
	password, err := term.ReadPassword(in.Fd())
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return string(password), nil
}

// where is what the header calls a daemon elsewhere.
func (f *topFlags) where() string {
	u, err := url.Parse(f.url)
	if err != nil {
		return ""
	}
	return u.Host
}

func (f *topFlags) watch(cmd *cobra.Command, client *exporter.Client, terminal *os.File) error {
	options := top.Options{
		Client: client, Interval: f.interval, Where: f.where(),
		Out: terminal, ASCII: lookOf(cmd.OutOrStdout()).ascii, NoColor: os.Getenv("NO_COLOR") != "",
		Settings: top.Defaults(),
	}
	path, err := top.SettingsPath()
	if err == nil {
		options.Path = path
		options.Settings, err = top.LoadSettings(path)
	}
	if err != nil {
		options.Notice = err.Error()
	}
	return top.Run(cmd.Context(), options)
}

// print prints readings: one, or one per interval.
func (f *topFlags) print(cmd *cobra.Command, client *exporter.Client) error {
	book, first := view.NewBook(), int64(-1)
	for event, err := range client.Follow(cmd.Context(), f.interval) {
		if err != nil {
			if cmd.Context().Err() != nil && !f.once {
				return nil // somebody ended us
			}
			return err
		}
		book.Take(event)
		switch e := event.(type) {
		case *exporter.StreamContainers:
			if first < 0 {
				first = e.BootMS
			}
		case *exporter.StreamSample:
			if e.BootMS-first < time.Second.Milliseconds()/2 {
				continue // of the same moment: there is no rate yet
			}
			if err := f.printReading(cmd.OutOrStdout(), book); err != nil || f.once {
				return err
			}
		}
	}
	return errors.New("watch usage: the stream has ended")
}

func (f *topFlags) printReading(w io.Writer, book *view.Book) error {
	if f.output == "table" {
		return printTop(w, book)
	}
	reading := topReadingOf(book)
	if f.once {
		return printJSON(w, &reading)
	}
	return printJSONLine(w, &reading)
}

// printTop prints a line per container that runs, those that receive most first.
func printTop(w io.Writer, book *view.Book) error {
	rows := book.Rows(view.Filter{}, false)
	view.Sort(rows, view.ReceiveRate, false, false)
	t := newTable("NAME", "RECEIVE/s", "TRANSMIT/s", "RECEIVED", "TRANSMITTED", "PACKETS/s", "SYN/s", "QUOTA", "STATE")
	for i := range rows {
		r := &rows[i]
		unit := view.Unit{}
		rate, total := func(float64, func(float64) string) string { return "-" }, func(uint64) string { return "-" }
		if r.Known {
			rate = func(n float64, format func(float64) string) string { return format(n) }
		}
		if r.Counted {
			total = func(n uint64) string { return unit.Format(float64(n)) }
		}
		used := "-"
		if r.Foremost != nil {
			used = fmt.Sprintf("%d%%", int(min(r.Foremost.Ratio, 1e6)*100))
		}
		t.row(r.Label(), rate(r.Receive.Rate.Bytes, unit.Format), rate(r.Transmit.Rate.Bytes, unit.Format),
			total(r.Receive.Total.Bytes), total(r.Transmit.Total.Bytes),
			rate(r.Receive.Rate.Packets+r.Transmit.Rate.Packets, view.PerSecond), rate(r.Receive.Rate.SYN+r.Transmit.Rate.SYN, view.PerSecond),
			used, r.State())
	}
	return t.print(w)
}

// topReading is what `nettally top -o json` prints per interval.
type topReading struct {
	TakenAt    time.Time      `json:"taken_at"`
	Source     string         `json:"source"`
	Containers []topContainer `json:"containers"` // by name, those that have stopped too
	Receive    topFlow        `json:"receive"`    // the sum over those that run
	Transmit   topFlow        `json:"transmit"`
}

// topContainer is a container as the stream has it, with its rates.
type topContainer struct {
	exporter.StreamContainer
	Receive  topCounts                `json:"receive"`
	Transmit topCounts                `json:"transmit"`
	Quota    *exporter.StreamForemost `json:"quota"` // that of which it has used most, null without one
}

type topCounts struct {
	exporter.StreamCounts
	topRate
}

// topFlow is a sum.
type topFlow struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	TCPSYN  uint64 `json:"tcp_syn"`
	topRate
}

// topRate is null where it is not known.
type topRate struct {
	BytesPerSecond   *float64 `json:"bytes_per_second"`
	PacketsPerSecond *float64 `json:"packets_per_second"`
	TCPSYNPerSecond  *float64 `json:"tcp_syn_per_second"`
}

func topReadingOf(book *view.Book) topReading {
	rows := book.Rows(view.Filter{}, true)
	view.Sort(rows, view.Name, false, false)
	out := topReading{TakenAt: book.TakenAt(), Source: book.Source(), Containers: make([]topContainer, len(rows))}
	for i := range rows {
		r := &rows[i]
		out.Containers[i] = topContainer{
			StreamContainer: *r.Container,
			Receive:         topCounts{r.Container.Receive, topRateOf(r.Known, r.Receive.Rate)},
			Transmit:        topCounts{r.Container.Transmit, topRateOf(r.Known, r.Transmit.Rate)},
			Quota:           r.Foremost,
		}
	}
	sum := view.Sum("", book.Rows(view.Filter{}, false))
	of := func(f view.Flow) topFlow {
		return topFlow{f.Total.Bytes, f.Total.Packets, f.Total.SYN, topRateOf(sum.Known, f.Rate)}
	}
	out.Receive, out.Transmit = of(sum.Receive), of(sum.Transmit)
	return out
}

func topRateOf(known bool, r view.Rate) topRate {
	if !known {
		return topRate{}
	}
	return topRate{&r.Bytes, &r.Packets, &r.SYN}
}
