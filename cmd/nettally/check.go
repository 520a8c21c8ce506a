// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nettally/nettally/bpf"
	"github.com/nettally/nettally/configs"
	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/ledger"
	"github.com/nettally/nettally/internal/names"
	"github.com/nettally/nettally/internal/testnet"
	"github.com/nettally/nettally/tcctl"
	"github.com/nettally/nettally/watcher"
)

// check is something nettally needs of a host. It returns what it found, or an
// error that says what to do.
type check struct {
	name     string
	required bool // counting is impossible without it
	run      func() (found string, err error)
}

// checks are in the order in which a user would have to mend them.
func checks(ctx context.Context, config *configs.Config) []check {
	all := []check{{"source", true, func() (string, error) { return source(config) }}}
	if config.Accounting.Source != configs.SourceProc {
		all = append(programs(config), all...)
	}
	all = append(all, []check{
		{"cgroups", true, func() (string, error) { return cgroups(config) }},
		{"network", false, func() (string, error) { return "the host's namespace", network("/proc") }},
		{"cgroups.read", false, func() (string, error) { return unhidden(config) }},
		{"folders", true, func() (string, error) {
			return "nobody else can change what is pinned, kept or served", folders(config)
		}},
		{"neighbours", false, func() (string, error) { return neighbours(config) }},
		{"secrets", false, func() (string, error) { return secrets(config) }},
		{"ledger", false, func() (string, error) { return kept(ledgerPath(config)) }},
		{"inotify", false, inotify},
		{"sockets", false, func() (string, error) { return socketsCounted(config) }},
		{"requests", false, func() (string, error) { return requestsCounted(config) }},
		{"conntrack", false, func() (string, error) { return connectionsTracked(config) }},
	}...)
	if group := config.Accounting.NFLOG.Group; group != 0 {
		all = append(all, check{"nflog", false, func() (string, error) { return logging(ctx, group) }})
	}
	sources := names.New(names.Options{
		Docker: config.Names.Docker, Podman: config.Names.Podman, CRI: config.Names.CRI,
		Log: slog.New(slog.DiscardHandler),
	})
	for _, kind := range names.Kinds() {
		all = append(all, check{"names." + kind, false, func() (string, error) { return runtimeNames(ctx, sources, kind) }})
	}
	return all
}

// programs are the checks of what the classifiers need. Where /proc may stand in for them
// they are no more than warnings, and the check of the source says what comes of it.
func programs(config *configs.Config) []check {
	required := config.Accounting.Source == configs.SourceBPF
	tcxRequired := required && config.Attach.Mode == configs.ModeTCX
	return []check{
		{"kernel", required, kernel},
		{"privileges", required, func() (string, error) { return "all that are needed", privileged() }},
		{"classifiers", required, func() (string, error) {
			found, err := classifiers(config.Attach.Priority)
			return found, refusal(err)
		}},
		{"counters", required, func() (string, error) { return counters(config.BPF.PinPath) }},
		{"tcx", tcxRequired, func() (string, error) { return tcx(config.Attach.Mode) }},
	}
}

// required runs the checks without which the classifiers would not count, so that it is
// said at once what to do.
func required(config *configs.Config) error {
	bpfOnly := *config
	bpfOnly.Accounting.Source = configs.SourceBPF
	for _, c := range checks(context.Background(), &bpfOnly) {
		if !c.required || slices.Contains([]string{"counters", "source", "folders"}, c.name) { // the daemon opens those itself
			continue
		}
		if _, err := c.run(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say what this host can do, and what to mend",
		Args:  arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			return report(cmd.OutOrStdout(), checks(cmd.Context(), config))
		},
	}
}

// make makes a check, and says in one line how it ended.
func (c check) make() exporter.Check {
	found, err := c.run()
	verdict := exporter.VerdictOK
	switch {
	case err == nil:
	case c.required:
		verdict, found = exporter.VerdictFailed, err.Error()
	case errors.Is(err, names.ErrAbsent):
		verdict, found = exporter.VerdictNone, err.Error()
	default:
		verdict, found = exporter.VerdictWarning, err.Error()
	}
	return exporter.Check{Name: c.name, Verdict: verdict, Found: strings.ReplaceAll(found, "\n", "; ")}
}

// findings makes checks, until the context ends.
func findings(ctx context.Context, all []check) (made []exporter.Check) {
	for _, c := range all {
		if ctx.Err() != nil {
			break
		}
		made = append(made, c.make())
	}
	return made
}

// report prints a line per check. Its error says that a required one failed.
func report(w io.Writer, all []check) error {
	var failed []string
	for _, c := range all {
		made := c.make()
		verdict := string(made.Verdict)
		if made.Verdict == exporter.VerdictFailed {
			verdict = "FAILED"
			failed = append(failed, made.Name)
		}
		if err := say(w, "%-8s %-12s %s", verdict, made.Name, made.Found); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("this host can't be counted on: %s", strings.Join(failed, ", "))
	}
	return nil
}

// kernel looks at the version. 5.10 is what the classifiers and their maps are
// tested from.
func kernel() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return release, nil // a version nobody knows: the checks below will tell
	}
	if cmp.Or(cmp.Compare(major, 5), cmp.Compare(minor, 10)) < 0 {
		return "", noProgram{fmt.Errorf("release %s is too old: the classifiers need Linux 5.10", release)}
	}
	return "Linux " + release, nil
}

// privileged looks at the effective capabilities: to load programs and maps, to
// attach filters, to open pinned chunks and enter namespaces, and to see those of
// other users' processes.
func privileged() error {
	have, err := capabilities()
	if err != nil {
		return err
	}
	var missing []string
	for _, needed := range []struct {
		number int
		name   string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
	} {
		if !have(needed.number) {
			missing = append(missing, needed.name)
		}
	}
	if len(missing) > 0 {
		return noProgram{fmt.Errorf("no %s: run nettally as root", strings.Join(missing, ", "))}
	}
	return nil
}

// capabilities reports which capabilities are effective, by number.
func capabilities() (have func(number int) bool, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	return func(number int) bool { return data[number/32].Effective&(1<<(number%32)) != 0 }, nil
}

// unhidden looks for what hides containers: a directory that only its owner may read, or one
// that is deeper than nettally looks.
func unhidden(config *configs.Config) (string, error) {
	const maxListed = 3
	w, err := newWatcher(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer w.Close()
	if _, err := w.Containers(); err != nil {
		return "", err
	}
	have, err := capabilities()
	if err != nil {
		return "", err
	}
	var wrong []string
	if !have(unix.CAP_DAC_READ_SEARCH) && !have(unix.CAP_DAC_OVERRIDE) {
		wrong = append(wrong, "no CAP_DAC_READ_SEARCH, so a user's `chmod 700` hides containers: run nettally as root, and add it to CapabilityBoundingSet of its unit")
	}
	named, count := w.Skipped()
	for _, s := range named[:min(len(named), maxListed)] {
		wrong = append(wrong, fmt.Sprintf("containers may be missed in %v: %s", s, uncover(s.Err)))
	}
	if count > maxListed {
		wrong = append(wrong, fmt.Sprintf("and below %d others", count-maxListed))
	}
	if len(wrong) > 0 {
		return "", errors.New(strings.Join(wrong, "; "))
	}
	return "every directory can be read", nil
}

// uncover says what to do about a directory that can't be looked at, or is no container's.
func uncover(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "chmod it to 755"
	case errors.Is(err, watcher.ErrTooDeep), errors.Is(err, unix.ENAMETOOLONG):
		return "remove the directories below it, or make them fewer and their names shorter"
	case errors.Is(err, watcher.ErrNoID):
		return "rename what is in it, or mend the pattern in watch.patterns"
	}
	return "look at the kernel's log"
}

func cgroups(config *configs.Config) (string, error) {
	w, err := newWatcher(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer w.Close()
	found, err := w.Containers()
	if err != nil {
		return "", err
	}
	says := fmt.Sprintf("%s, watching %s, %d containers", w.Layout().Mode, w.Layout().Root, len(found))
	if err := socketsByCgroup(); w.Layout().Unified != "" && err != nil {
		says += "; " + err.Error()
	}
	return says, nil
}

// classifiers attaches to a veth in a namespace that is gone afterwards.
func classifiers(priority uint16) (_ string, err error) {
	datapath, err := bpf.Load(bpf.Options{})
	if err != nil {
		return "", err
	}
	defer datapath.Close()
	host, err := testnet.NewNamespace()
	if err != nil {
		return "", err
	}
	defer host.Close()
	inside, err := testnet.NewNamespace()
	if err != nil {
		return "", err
	}
	defer inside.Close()
	if err := testnet.Veth(host, "nettally0", inside, "eth0"); err != nil {
		return "", fmt.Errorf("%w: load the module veth", err)
	}
	link, err := host.LinkByName("nettally0")
	if err != nil {
		return "", err
	}
	control, err := tcctl.Open(tcctl.Options{NetNS: host.FD(), Priority: priority})
	if err != nil {
		return "", err
	}
	defer control.Close()
	if _, err := control.Attach(link.Attrs().Index, 1, datapath.Ingress, datapath.Egress, nil); err != nil {
		return "", err
	}
	return "loaded, and attached to a veth with clsact", nil
}

// tcx looks for the other hook.
func tcx(mode string) (string, error) {
	if err := tcctl.HaveTCX(); err != nil && mode == configs.ModeTCX {
		return "", fmt.Errorf("%w: set attach.mode to auto", err)
	} else if err != nil {
		return "", fmt.Errorf("%w: packets that another's tc filter lets past ours are not counted, nor interfaces with an `ingress` qdisc", err)
	}
	return "there, for interfaces where clsact does not do", nil
}

// kept looks at where totals and history are.
func kept(path string) (string, error) {
	if err := ledger.Check(path); err != nil {
		return "", err
	}
	return "totals and history in " + path, nil
}

// counters looks at where the maps are pinned, and makes nothing there.
func counters(pinPath string) (string, error) {
	slots, err := bpf.PinnedSlots(pinPath)
	switch {
	case errors.Is(err, bpf.ErrInUse):
		return "in use by the nettally that runs, in " + pinPath, nil
	case err != nil:
		return "", err
	}
	// Who may not ask is told so by the check of privileges.
	if err := bpf.NetNSInUse(); errors.Is(err, bpf.ErrInUse) {
		return "", err
	}
	return fmt.Sprintf("%d interfaces counted in %s; no nettally runs", len(slots), pinPath), nil
}

// socketsCounted says what counts at sockets, and whether the kernel has it.
func socketsCounted(config *configs.Config) (string, error) {
	if !config.Accounting.Sockets {
		return "off, by accounting.sockets", nil
	}
	by, err := bpf.SocketsCountedBy()
	return "calls and bytes of TCP, UDP and unix sockets, by " + by, err
}

// requestsCounted says what is read at layer 7, and whether the kernel can.
func requestsCounted(config *configs.Config) (string, error) {
	var kinds []string
	for _, kind := range []struct {
		name string
		on   bool
	}{{"HTTP", config.Requests.HTTP}, {"TLS", config.Requests.TLS}, {"DNS", config.Requests.DNS}} {
		if kind.on {
			kinds = append(kinds, kind.name)
		}
	}
	if len(kinds) == 0 {
		return "off, by requests.http, requests.tls and requests.dns", nil
	}
	return strings.Join(kinds, ", "), bpf.HaveRequests()
}

// inotify looks at the limits that container runtimes share with us: each shim
// takes an instance on cgroup v2.
func inotify() (string, error) {
	const enough = 128
	var found []string
	for _, name := range []string{"max_user_instances", "max_user_watches"} {
		path := "/proc/sys/fs/inotify/" + name
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return "", fmt.Errorf("read %s: %w", path, err)
		}
		if limit < enough {
			return "", fmt.Errorf("fs.inotify.%s is %d, little for a host with many containers: sysctl -w fs.inotify.%s=8192", name, limit, name)
		}
		found = append(found, fmt.Sprintf("%s %d", name, limit))
	}
	return strings.Join(found, ", "), nil
}

// opening says how to have a runtime listen that does not do so by itself.
var opening = map[string]string{"podman": "`systemctl enable --now podman.socket`, or set names.podman if it is elsewhere"}

// runtimeNames looks for who gives containers names. Most hosts have one runtime, so
// one that is not found is no fault.
func runtimeNames(ctx context.Context, sources *names.Resolver, kind string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	found, err := sources.Probe(ctx, kind)
	switch {
	case errors.Is(err, names.ErrAbsent):
		return "", fmt.Errorf("%w: its containers would go by their ids; %s", err, cmp.Or(opening[kind], "set names."+kind+" if it is elsewhere"))
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: its containers go by their ids; start it, or set names.%s to auto or off", err, kind)
	case err != nil:
		return "", fmt.Errorf("%w: its containers go by their ids; mend it, or set names.%s to off", err, kind)
	}
	return found, nil
}
