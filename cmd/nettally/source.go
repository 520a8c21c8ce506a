// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/internal/cgroupctl"
	"github.com/nettally/nettally/internal/controller"
	"github.com/nettally/nettally/internal/procnet"
	"github.com/nettally/nettally/internal/roster"
	"github.com/nettally/nettally/internal/trusted"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// noProgram says that the kernel does not let us count by programs: it is too old, or we
// lack a capability. Then /proc may stand in.
type noProgram struct{ error }

func (r noProgram) Unwrap() error { return r.error }

// refusals are the errors by which the kernel refuses what it does not know, or us.
var refusals = []error{
	unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINVAL, ebpf.ErrNotSupported, tcctl.ErrUnsupported,
}

// refusal marks the error of an attempt to load or attach programs if it is a refusal.
// Anything else, such as a lack of memory, may not be there the next time.
func refusal(err error) error {
	if slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
		return noProgram{err}
	}
	return err
}

// choose says whether to count by /proc, and why, where that was left to us.
func choose(config *configs.Config) (proc bool, why, err error) {
	if config.Accounting.Source != configs.SourceProc {
		why = required(config)
	}
	if !errors.As(why, new(noProgram)) && config.Accounting.Source == configs.Auto || config.Accounting.Source == configs.SourceBPF {
		return false, nil, why
	}
	return true, why, noPrograms(config)
}

// noPrograms returns an error if programs of an earlier run count: beside them everything
// would be counted twice.
func noPrograms(config *configs.Config) error {
	pinned, err := bpf.Pinned(config.BPF.PinPath)
	if err != nil || !pinned {
		return err
	}
	slots, err := bpf.PinnedSlots(config.BPF.PinPath)
	if err == nil && len(slots) == 0 {
		return nil
	}
	if errors.Is(err, bpf.ErrInUse) || errors.Is(err, trusted.ErrUntrusted) {
		return err
	}
	return fmt.Errorf("count by /proc: programs of an earlier run count already, in %s: run `nettally detach` as root first, or let nettally load its programs", config.BPF.PinPath)
}

// source says what counts, and why.
func source(config *configs.Config) (string, error) {
	proc, why, err := choose(config)
	switch {
	case err != nil:
		return "", err
	case why != nil:
		return fmt.Sprintf("proc: the kernel's files instead of our programs, for: %v", why), nil
	case proc:
		return "proc: the kernel's files, as accounting.source says", nil
	}
	return "bpf: our programs", nil
}

// counter counts, by programs or by files.
type counter struct {
	run     func(context.Context, <-chan watcher.Event) error
	adopted <-chan struct{} // closed when all that an earlier process counted is known
	ready   <-chan struct{} // closed when everything was looked at once
	reload  func()
	metrics []prometheus.Collector
}

// counting is the counter of a roster with a backend.
func counting[F any](d *daemon, backend roster.Backend[F], adopted <-chan struct{}, own []prometheus.Collector) *counter {
	who := roster.New(roster.Options[F]{
		Containers: d.watch.Containers,
		Missed:     d.watch.Missed,
		Backend:    tellConnections(d, backend),
		Accounts:   d.accounts,
		Names:      d.names,
		Settings:   d.known,
		Log:        d.log,
	})
	return &counter{
		run: who.Run, adopted: adopted, ready: who.Ready(), reload: who.Reload,
		metrics: slices.Concat(who.Metrics(), own),
	}
}

// countByPrograms opens what the classifiers need. It comes first that no other nettally
// has programs in this network namespace: the two would take one another's away for ever.
func (d *daemon) countByPrograms(config *configs.Config) error {
	lock, err := bpf.LockNetNS()
	if err != nil {
		return err
	}
	d.closers = append(d.closers, lock)
	datapath, err := bpf.Load(bpf.Options{PinPath: config.BPF.PinPath, MaxSlots: config.BPF.MaxInterfaces})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, datapath)
	if config.Accounting.TCP == configs.Auto {
		if err := datapath.LoadTCP(); err != nil {
			d.log.Warn("what becomes of TCP connections is not counted", "err", err)
		}
	}
	if config.Accounting.Sockets {
		if err := datapath.LoadSockets(); err != nil {
			d.log.Warn("what processes send and receive is not counted", "err", err)
		}
	}
	if requests := requestsOf(config); requests.Any() {
		if err := datapath.LoadRequests(requests); err != nil {
			d.log.Warn("requests are not counted", "err", err)
		}
	}
	control, err := tcctl.Open(tcctl.Options{
		Priority: config.Attach.Priority, Pins: linkPins(config), Elsewhere: datapath.CountsElsewhere, Own: datapath.Owns,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, control)
	d.detachStrays(control)
	d.datapath = datapath
	d.newControl = func() (*counter, error) {
		options := controller.Options{
			Host: d.watch,
			Hooks: &controller.Hooks{
				Controller: control,
				Ingress:    datapath.Ingress, Egress: datapath.Egress,
				TCXIngress: datapath.TCXIngress, TCXEgress: datapath.TCXEgress,
			},
			Accounts: d.accounts,
			TCX:      tcctl.HaveTCX() == nil,
			Settings: d.attaching,
			Log:      d.log,
		}
		root := d.watch.Layout().Unified
		if err := socketsByCgroup(); root != "" && err != nil {
			d.log.Warn("containers are not counted by cgroup", "err", err)
			root = ""
		}
		if root != "" {
			options.Cgroups = &controller.Cgroups{
				Controller: cgroupctl.New(cgroupctl.Options{Root: root, Pins: cgroupPins(config)}),
				Programs:   []*ebpf.Program{datapath.CgroupIngress, datapath.CgroupEgress},
			}
			options.Sockets = d.atSockets(datapath, cgroupctl.Options{Root: root, Pins: cgroupPins(config)})
			options.CountSockets = datapath.TCP != nil
		}
		options.CountNamespaces = config.Accounting.TCP == configs.Auto && !options.CountSockets
		backend := controller.New(options)
		return counting(d, backend, backend.Adopted(), backend.Metrics()), nil
	}
	return nil
}

// requestsOf is what is read at layer 7.
func requestsOf(config *configs.Config) bpf.RequestOptions {
	r := config.Requests
	return bpf.RequestOptions{HTTP: r.HTTP, TLS: r.TLS, DNS: r.DNS, Ports: r.Ports}
}

// atSockets puts on cgroups what counts connections, and with it what counts requests. Where that
// is not counted any more it takes off what an earlier run has left.
func (d *daemon) atSockets(datapath *bpf.Datapath, o cgroupctl.Options) *controller.Cgroups {
	requests := o
	requests.Hooks, o.Hooks = cgroupctl.Requests, cgroupctl.Connections
	connections := &controller.Cgroups{Controller: cgroupctl.New(o), Programs: []*ebpf.Program{datapath.TCP}, Log: d.log}
	left := cgroupctl.New(requests)
	if datapath.CountsRequests() {
		connections.Beside = &controller.Cgroups{
			Controller: left, Programs: []*ebpf.Program{datapath.RequestsIngress, datapath.RequestsEgress},
		}
		return connections
	}
	ids, err := left.IDs()
	for _, id := range ids {
		err = errors.Join(err, left.Detach(id))
	}
	if err != nil {
		d.log.Warn("could not take off the programs for requests of an earlier run", "err", err)
	}
	return connections
}

// detachStrays comes before anything is attached: what an earlier run has left on tcx, where
// its pins can't be found, would stay for as long as the interface.
func (d *daemon) detachStrays(control *tcctl.Controller) {
	ifindexes, err := control.DetachStrays()
	if err != nil {
		d.log.Warn("look for programs of an earlier run on tcx, of which the pins are hidden or elsewhere", "err", err)
	}
	if len(ifindexes) > 0 {
		d.log.Warn("took off programs of an earlier run; their pins are hidden, as by another bpffs, or in another bpf.pin_path",
			"ifindexes", ifindexes)
	}
}

// countByFiles prepares to count by /proc. why is nil if the configuration says so.
func (d *daemon) countByFiles(config *configs.Config, why error) {
	if why != nil {
		d.log.Warn("counting by /proc, which tells less: our programs can't be loaded or attached", "err", why)
	}
	datapath := procnet.NewDatapath(config.BPF.MaxInterfaces)
	d.datapath, d.proc = datapath, true
	d.newControl = func() (*counter, error) {
		backend, err := procnet.New(procnet.Options{
			Host:      d.watch,
			Datapath:  datapath,
			Accounts:  d.accounts,
			Interface: func(name string) bool { return d.attaching().Interface(name) },
			Requests:  config.Accounting.NFLOG.Group != 0,
			TCP:       config.Accounting.TCP == configs.Auto,
			Log:       d.log,
		})
		if err != nil {
			return nil, err
		}
		d.refresh, d.readings, d.countSYN = backend.Refresh, backend.Changing, backend.CountSYN
		return counting(d, backend, backend.Adopted(), backend.Metrics()), nil
	}
}

// source is what counts, as the JSON says it.
func (d *daemon) source() string {
	if d.proc {
		return configs.SourceProc
	}
	return configs.SourceBPF
}

// bySource shows what counts.
func (d *daemon) bySource() prometheus.Collector {
	shown := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nettally_accounting_source_proc",
		Help: "1 while containers are counted by the kernel's files in /proc, which tell less than our programs; the log says why.",
	})
	if d.proc {
		shown.Set(1)
	}
	return shown
}
