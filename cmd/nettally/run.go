// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/conntrack"
	"github.com/nettally/nettally/internal/controller"
	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/live"
	"github.com/nettally/nettally/internal/names"
	"github.com/nettally/nettally/internal/nflog"
	"github.com/nettally/nettally/internal/quota"
	"github.com/nettally/nettally/internal/quota/notify"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/usage"
	"github.com/nettally/nettally/internal/wallclock"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

func newRun() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Count, until a signal ends it; the kernel goes on counting for the next run",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			hangup := outlive()
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			d, err := newDaemon(config)
			if err != nil {
				return err
			}
			defer d.close()
			return d.run(cmd, hangup)
		},
	}
}

// outlive keeps the process from being ended by what asks for no end. SIGHUP may come before
// there is anything to reload, or after: it is caught until the end, and the first waits. A log
// that nobody reads any more, as when journald was stopped, would end it by SIGPIPE. systemd
// takes both for a proper end, and starts nothing again.
func outlive() (hangup <-chan os.Signal) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // writing fails, and that is all
	return caught
}

// daemon is what runs: the rooms, wired.
type daemon struct {
	config   atomic.Pointer[configs.Config]
	level    slog.LevelVar
	log      *slog.Logger
	reloadOK prometheus.Gauge
	applying sync.Mutex // one reload at a time

	watch    *watcher.Watcher
	clock    *wallclock.Clock
	names    *names.Resolver
	accounts *usage.Accounts
	ledger   *ledger.Ledger
	control  *counter
	requests *nflog.Counter // nil where firewall rules are not asked
	quotas   *quota.Engine
	notify   *notify.Dispatcher
	live     *live.Hub
	exporter *exporter.Exporter
	listen   *exporter.Listeners

	connections *conntrack.Tracker // nil where they are not counted

	proc       bool // /proc is what counts
	datapath   usage.Datapath
	newControl func() (*counter, error)                       // once the accounts are open
	refresh    func(context.Context)                          // brings the counters up to date, nil where they are
	readings   func(r *usage.Reader, all bool) usage.Snapshot // says when they were brought, nil where they are
	countSYN   func(ifindex int, receive, transmit uint64)    // counts requests, nil where programs do
	closers    []io.Closer                                    // in the order they were opened
}

// newDaemon opens all that can fail. On an error nothing stays open.
func newDaemon(config *configs.Config) (_ *daemon, err error) {
	d := &daemon{}
	d.config.Store(config)
	d.level.Set(config.Log.Level)
	d.log = newLog(os.Stderr, config.Log.Format, &d.level)
	slog.SetDefault(d.log)
	defer func() {
		if err != nil {
			d.close()
		}
	}()

	if err := folders(config); err != nil {
		return nil, err
	}
	proc, why, err := choose(config)
	if err != nil {
		return nil, err
	}
	if proc {
		d.countByFiles(config, why)
	} else if err := d.countByPrograms(config); err != nil {
		return nil, err
	}
	if d.listen, err = exporter.Listen(config.Exporter.Listen, config.Exporter.Socket, config.Exporter.WebConfig); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, closer(d.listen.Close))
	if d.listen.Early() {
		d.log.Warn("this host does not have the address of exporter.listen yet: nobody is answered there until it does", "listen", config.Exporter.Listen)
	}
	if d.watch, err = newWatcher(config, d.log); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.watch)
	return d, d.wire()
}

// warnExposed warns of secrets that every user can read.
func (d *daemon) warnExposed(config *configs.Config) {
	if files := exposed(config); len(files) > 0 {
		d.log.Warn("every user can read files that may hold secrets: take that from them by `chmod o-rwx`", "files", files)
	}
}

// wire connects the rooms by what each needs of another.
func (d *daemon) wire() (err error) {
	from := d.config.Load().Names
	d.names = names.New(names.Options{
		Docker: from.Docker, Podman: from.Podman, CRI: from.CRI,
		Labels: func() []string { return d.config.Load().Names.Labels },
		Log:    d.log,
	})
	if err := d.open(d.datapath); err != nil {
		return err
	}
	d.trackConnections()
	if d.control, err = d.newControl(); err != nil {
		return err
	}
	d.requests = d.newRequests()
	d.reloadOK = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nettally_config_last_reload_successful",
		Help: "1 if the configuration in force is the one in the file.",
	})
	d.reloadOK.Set(1)
	d.live = d.newHub()
	d.exporter, err = exporter.New(exporter.Options{
		Snapshot: d.snapshot,
		History:  d.history,
		Live:     d.live,
		Quotas:   d.quotas,
		Periods:  d.periods,

		TestNotifier: d.testNotifier,
		Checks: func(ctx context.Context) []exporter.Check {
			return findings(ctx, checks(ctx, d.config.Load()))
		},
		Settings: func() exporter.Settings {
			c := d.config.Load()
			return exporter.Settings{
				Families:         c.Metrics.Families,
				Labels:           c.Names.Labels,
				SeriesPerQuota:   c.Limits.SeriesPerQuota,
				PeriodBy:         c.Metrics.Periods.By,
				CompatCAdvisor:   c.Metrics.Compat == configs.CompatCadvisor,
				MetricsRetention: c.Retention.Metrics,
			}
		},
		Source: d.source(),
		Build:  buildInfo(),
		Hosts:  d.config.Load().Exporter.Hosts,
		Ready:  d.ready,
		Extra: slices.Concat(d.control.metrics, d.ledger.Metrics(), d.notify.Metrics(),
			d.watching(), d.connectionMetrics(), []prometheus.Collector{d.reloadOK, d.bySource(), d.clock}),
		Now:      d.clock.Now,
		Distrust: d.clock.Distrust,
		Log:      d.log,
	})
	return err
}

// linkPins is the folder for the links of programs on tcx. It is none of a layout: the
// links outlive that.
func linkPins(config *configs.Config) string { return filepath.Join(config.BPF.PinPath, "links") }

// cgroupPins is the folder for the links of programs on cgroups, which outlive a layout, too.
func cgroupPins(config *configs.Config) string { return filepath.Join(config.BPF.PinPath, "cgroups") }

// open opens the accounts, with what the ledger has of them. A ledger that can't be read
// keeps nobody from counting: it is asked again for each container.
func (d *daemon) open(datapath usage.Datapath) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	read, err := wallclock.Host()
	if err != nil {
		return err
	}
	d.clock = wallclock.New(read, d.log)
	d.accounts = usage.New(usage.Options{
		Datapath:  datapath,
		Identify:  d.identify,
		Retention: func() time.Duration { return d.config.Load().Retention.API },
		Boot:      boot,
		Kept:      true,
		Clock:     d.clock,
		Limits:    func() usage.Limits { return limits(d.config.Load()) },
	})
	d.ledger = ledger.New(ledger.Options{
		Path: ledgerPath(d.config.Load()),
		Retention: func() (hours, days time.Duration) {
			r := d.config.Load().Retention
			return r.Hours, r.Days
		},
		Labels:  func() []string { return d.config.Load().Names.Labels },
		Periods: func() *ledger.Periods { return periodsOf(d.config.Load()) },
		Clock:   d.clock,
		Log:     d.log,
	})
	d.closers = append(d.closers, d.ledger)
	records, err := d.ledger.Load(d.config.Load().Retention.API)
	if err != nil {
		d.log.Error("read what was counted before", "err", err)
	}
	d.accounts.Restore(records)
	var rules ruleCache // of the engine's lock
	d.quotas = quota.New(quota.Options{
		Rules:     func() []quota.Rule { return rules.of(d.config.Load()) },
		Notifiers: func() map[string]quota.Means { return means(d.config.Load()) },
		Store:     d.ledger.Documents("quota", "notify"),
		Clock:     d.clock,
		Log:       d.log,
	})
	d.notify = notify.New(notify.Options{
		Notifiers:    func() []notify.Config { return notifiers(d.config.Load()) },
		Source:       d.quotas,
		TimeOfDay:    func() (time.Time, bool) { now := d.clock.Look(); return now.Now, now.State == wallclock.Agrees },
		Log:          d.log,
		GeneratorURL: generatorURL(d.config.Load()),
		Version:      buildInfo().Version,
	})
	return nil
}

func limits(config *configs.Config) usage.Limits {
	l := config.Limits
	return usage.Limits{
		Containers: l.Containers,
		PerUser:    l.PerUser,
		Interfaces: l.Interfaces,
		Ended:      l.Ended,
		UserSlots:  int((1 - l.SlotsForRoot) * float64(config.BPF.MaxInterfaces)),
	}
}

func ledgerPath(config *configs.Config) string { return filepath.Join(config.StateDir, "ledger.db") }

// bootID tells one run of the kernel from another.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// snapshot waits until all that was counted before is known again.
func (d *daemon) snapshot(ctx context.Context) (usage.Snapshot, error) {
	select {
	case <-d.control.adopted:
		if d.refresh != nil {
			d.refresh(ctx)
		}
		snap := d.withConnections(d.accounts.Snapshot())
		if d.requests != nil {
			d.requests.Fill(&snap)
		}
		return snap, nil
	case <-ctx.Done():
		return usage.Snapshot{}, fmt.Errorf("take over what was counted before: %w", ctx.Err())
	}
}

// identify puts what a runtime tells into usage's words.
func (d *daemon) identify(id string) (usage.Identity, bool) {
	if d.names == nil {
		return usage.Identity{}, false // detach asks nobody
	}
	meta, ok := d.names.Lookup(id)
	return usage.Identity{
		Name:        meta.Name,
		Image:       meta.Image,
		Runtime:     meta.Runtime,
		NetworkMode: meta.NetworkMode,
		Namespace:   meta.Namespace,
		Pod:         meta.Pod,
		Labels:      meta.Labels,
	}, ok
}

func newWatcher(config *configs.Config, log *slog.Logger) (*watcher.Watcher, error) {
	o := watcher.Options{Log: log}
	if config.Watch.CgroupRoot != configs.Auto {
		o.CgroupRoot = config.Watch.CgroupRoot
	}
	for _, pattern := range config.Watch.Patterns {
		o.Patterns = append(o.Patterns, pattern.String())
	}
	return watcher.New(o)
}

func newLog(to io.Writer, format string, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == configs.FormatJSON {
		return slog.New(slog.NewJSONHandler(escaping{to}, o))
	}
	return slog.New(slog.NewTextHandler(to, o))
}

// watching shows what the watcher can't see, or sees late.
func (d *daemon) watching() []prometheus.Collector {
	degraded := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nettally_watch_degraded",
		Help: "1 while inotify or netlink events can't be had, so that changes are found seconds late, or while the cgroup hierarchy is lost; the log says why.",
	}, func() float64 {
		if d.watch.Degraded() != nil {
			return 1
		}
		return 0
	})
	skipped := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nettally_watch_skipped_directories",
		Help: "Cgroup directories in which containers may be missed: they can't be read, are too deep, or are named like a container's without an id. The log and `nettally check` name them.",
	}, func() float64 {
		_, count := d.watch.Skipped()
		return float64(count)
	})
	failed := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "nettally_watch_errors_total",
		Help: "Times that a cgroup directory could not be looked at.",
	}, func() float64 { return float64(d.watch.Errors()) })
	return []prometheus.Collector{degraded, skipped, failed}
}

// known is the part of the configuration that says which containers there are.
func (d *daemon) known() roster.Settings {
	c := d.config.Load()
	return roster.Settings{
		Container: func(found watcher.Container) bool { return c.Watch.Containers.Match(found.ID, found.Cgroup) },
		Reconcile: c.Watch.Reconcile,
	}
}

// attaching is the part of the configuration that says where to attach.
func (d *daemon) attaching() controller.Settings {
	c := d.config.Load()
	return controller.Settings{
		Interface: func(name string) bool { return c.Attach.Interfaces.Match(name) },
		Mode:      controller.Mode(c.Attach.Mode),
		Cgroup:    controller.CgroupMode(c.Accounting.Cgroup),
		CNIDirs:   c.Attach.CNIDirs,
	}
}

func (d *daemon) ready() error {
	if err := d.watch.Degraded(); errors.Is(err, watcher.ErrRootLost) {
		return err
	}
	select {
	case <-d.control.ready:
		return nil
	default:
		return errors.New("still looking for containers")
	}
}

// run runs every room until the context ends or one of them fails.
func (d *daemon) run(cmd *cobra.Command, hangup <-chan os.Signal) error {
	group, ctx := errgroup.WithContext(cmd.Context())
	events := make(chan watcher.Event)
	group.Go(func() error { return d.watch.Run(ctx, events) })
	group.Go(func() error { return d.control.run(ctx, events) })
	group.Go(func() error { return d.names.Run(ctx) })
	group.Go(func() error { return d.countConnections(ctx) })
	group.Go(func() error { return d.keep(ctx) })
	if d.requests != nil {
		group.Go(func() error { return d.requests.Run(ctx) })
	}
	// What quotas say in the end is to be told, and that it was is to be saved.
	told, done := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { defer done(); return d.checkQuotas(ctx) })
	group.Go(func() error { defer d.quotas.Flush(); return d.notify.Run(told) })
	group.Go(func() error { return d.live.Run(ctx) })
	group.Go(func() error { return d.exporter.Serve(ctx, d.listen) })
	group.Go(func() error { return d.reloads(ctx, cmd, hangup) })

	c := d.config.Load()
	if err := network("/proc"); err != nil {
		d.log.Warn("look at the network", "err", err)
	}
	d.log.Info("counting", "source", d.source(), "version", buildInfo().Version, "listen", c.Exporter.Listen, "socket", c.Exporter.Socket)
	d.warnExposed(c)
	err := group.Wait()
	if d.proc {
		d.log.Info("stopped")
	} else {
		d.log.Info("stopped; the kernel goes on counting until `nettally detach`")
	}
	return err
}

// keep has the accounts written down from the moment on when they have again what an
// earlier process counted: before, they would replace more by less.
func (d *daemon) keep(ctx context.Context) error {
	select {
	case <-d.control.adopted:
		return d.ledger.Keep(ctx, d.accounts)
	case <-ctx.Done():
		return nil
	}
}

// changing returns how a reader of its own reads what changes. Where files are read, it is what
// they said when they were read last: at each check that would cost too much.
func (d *daemon) changing() func(all bool) usage.Snapshot {
	reader := d.accounts.Reader()
	if d.readings != nil {
		return func(all bool) usage.Snapshot { return d.readings(reader, all) }
	}
	return reader.Changing
}

// newHub makes what viewers are told by. Files are read for them as for a scrape.
func (d *daemon) newHub() *live.Hub {
	read := d.changing()
	return live.New(live.Options{
		Read: func(ctx context.Context, all, watched bool) usage.Snapshot {
			if watched && d.refresh != nil {
				d.refresh(ctx)
			}
			return read(all)
		},
		Ready:  d.control.adopted,
		Quotas: d.quotas,
	})
}

// checkQuotas begins when all that an earlier process counted is known again: what is
// missing would be taken for gone.
func (d *daemon) checkQuotas(ctx context.Context) error {
	select {
	case <-d.control.adopted:
		return d.quotas.Run(ctx, d.changing())
	case <-ctx.Done():
		return nil
	}
}

// reloads takes a new configuration in when the file changes, and on SIGHUP.
func (d *daemon) reloads(ctx context.Context, cmd *cobra.Command, hangup <-chan os.Signal) error {
	load := func() (*configs.Config, error) { return loadConfig(cmd) }

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		path := cmd.Flag("config").Value.String()
		configs.WatchFile(ctx, path, d.config.Load(), load, d.apply, d.unwatched)
		return nil
	})
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangup:
				d.apply(load())
			}
		}
	})
	return group.Wait()
}

// unwatched says whether changes of the configuration are noticed.
func (d *daemon) unwatched(err error) {
	if err != nil {
		d.log.Info("changes of the configuration are taken in on SIGHUP only, until its directory can be watched", "err", err)
		return
	}
	d.log.Info("changes of the configuration are noticed again")
}

// apply puts a new configuration in force as a whole, or keeps the old one.
func (d *daemon) apply(next *configs.Config, err error) {
	d.applying.Lock()
	defer d.applying.Unlock()
	if err == nil {
		if fixed := d.config.Load().NeedsRestart(next); len(fixed) > 0 {
			err = fmt.Errorf("changed while running: %s: restart nettally", strings.Join(slices.Sorted(slices.Values(fixed)), ", "))
		}
	}
	if err == nil && next.Attach.Mode == configs.ModeTCX && !d.proc {
		err = tcctl.HaveTCX()
	}
	if err != nil {
		d.reloadOK.Set(0)
		d.log.Error("configuration not taken in; the old one stays in force", "err", err)
		return
	}
	d.config.Store(next)
	d.level.Set(next.Log.Level)
	d.reloadOK.Set(1)
	d.control.reload()
	d.log.Info("configuration taken in")
	d.warnExposed(next)
}

func (d *daemon) close() {
	for _, c := range slices.Backward(d.closers) {
		if err := c.Close(); err != nil {
			d.log.Error("close", "err", err)
		}
	}
}

// closer is a function that closes something.
type closer func()

func (f closer) Close() error {
	f()
	return nil
}
