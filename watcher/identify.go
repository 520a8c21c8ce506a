// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// shape is how one runtime names the cgroup directory of a container.
type shape struct {
	runtime string
	above   func(parent string) bool // judges the path above the directory; nil accepts any
	inner   string                   // the container is the directory of this name, right below the one that is named
	after   string                   // the id follows this text, whatever stands before it
	prefix  string
	suffix  string
	id      func(string) bool
	scope   string // of ids that are unique in there only
}

// shapes is tried from the top, first match wins. Names that are close to one of
// these and are no container, such as crio-conmon-<id>.scope, libpod-conmon-<id>
// or buildkit's workers, fail because what is left of them is not an id.
var shapes = []shape{
	// The systemd driver's scopes, and the runtimes that write the same names
	// without systemd.
	{runtime: "docker", prefix: "docker-", suffix: ".scope", id: isHex64},
	{runtime: "containerd", prefix: "cri-containerd-", suffix: ".scope", id: isHex64},
	{runtime: "containerd", prefix: "nerdctl-", suffix: ".scope", id: isHex64},
	{runtime: "crio", prefix: "crio-", suffix: ".scope", id: isHex64},
	{runtime: "crio", prefix: "crio-", id: isHex64},
	{runtime: "podman", prefix: "libpod-", suffix: ".scope", id: isHex64},
	{runtime: "podman", prefix: "libpod-", id: isHex64},
	{runtime: "podman", prefix: "libpod-payload-", id: isHex64}, // --cgroups=split, Quadlet's default

	// containerd's CRI with systemd's form of a path and without its driver: slice,
	// prefix and id in one directory name.
	{runtime: "containerd", after: ":cri-containerd:", id: isHex64},
	// Kata makes the same of the paths of others, too.
	{runtime: "docker", after: ":docker:", id: isHex64},
	{runtime: "crio", after: ":crio:", id: isHex64},
	// Where Kata names the cgroup of its sandbox anew, which has its virtual machine. What it
	// keeps out of there is the same sandbox.
	{prefix: kataPrefix, above: notKataOverhead, id: isHex64},

	// A bare id: what is above it names the runtime.
	{runtime: "podman", above: inPodmanScope, id: isHex64},
	{runtime: "docker", above: named("docker"), id: isHex64},
	{runtime: "docker", above: inECSTask, id: isHex64},
	{runtime: "ecs", above: inECSTask, id: isECS},
	{runtime: "containerd", above: inPod, id: isHex64},

	{runtime: "lxc", prefix: "lxc.payload.", id: notEmpty},
	{runtime: "lxc", above: at("/lxc.payload"), id: notEmpty},
	{runtime: "lxc", above: at("/lxc"), id: notEmpty},

	{runtime: "nspawn", above: at("/machine.slice"), prefix: "systemd-nspawn@", suffix: ".service", id: notEmpty},
	{runtime: "nspawn", above: at("/machine.slice"), prefix: "machine-", suffix: ".scope", id: isMachine},
	// Newer nspawn makes its scope itself, as it always has with --register=no: it has the bare
	// name of the machine. vmspawn's machines have such scopes, too, and no payload.
	{runtime: "nspawn", above: at("/machine.slice"), inner: "payload", suffix: ".scope", id: isBareMachine},

	// ctr and nerdctl write /<containerd namespace>/<id>, and the id is any name.
	// Taking every second level for that would make containers of all kinds of
	// cgroups, so only the namespaces that these tools use unasked count. Others
	// need a pattern, or an id of 64 digits, which the last shape takes.
	{runtime: "containerd", above: at("/default"), id: isContainerd},
	{runtime: "containerd", above: at("/k8s.io"), id: isHex64},
	{runtime: "containerd", above: at("/k8s.io"), id: isContainerd, scope: "k8s.io"},

	// Docker with --cgroup-parent, podman inside a service, containerd in another
	// namespace: surely a container, and the path does not say whose.
	{above: mayHoldAny, id: isHex64},
}

// Identify says which container a cgroup belongs to, by its path within the
// hierarchy alone. The innermost container wins; Cgroup is that container's own
// directory, which is p or one above it, and ParentID the container around it.
//
// Each of patterns has a group named id and may have one named runtime. They are
// tried before the known shapes, on a directory's path; a match counts if it
// ends in the directory's own name, the last one where there are several.
//
// IDs, and a pattern's runtimes, are of 1 to 253 letters, digits and . _ : @ - of ASCII; one
// that is unique in a namespace of containerd only has "k8s.io~" before it. A directory whose
// id would be another text is no container's.
func Identify(p string, patterns []*regexp.Regexp) (Container, bool) {
	c, _ := identify(p, patterns)
	return c, c.ID != ""
}

// identify is [Identify]. It returns [ErrNoID] if the directory itself would be a container's,
// but for its id.
func identify(p string, patterns []*regexp.Regexp) (c Container, err error) {
	own := path.Clean(p)
	for dir := own; dir != "/" && dir != "."; dir = path.Dir(dir) {
		id, scope, runtime, ok := identifyDir(dir, patterns)
		if ok && !(isID(id) && (runtime == "" || isID(runtime))) {
			ok = false
			if dir == own {
				err = ErrNoID
			}
		}
		id = scoped(scope, id)
		if ok && runtime == "" && holdsPodmans(dir, c.Cgroup) {
			continue
		}
		if ok && c.ID != "" {
			c.ParentID = id
			return c, err
		}
		if ok {
			c = Container{ID: id, Runtime: runtime, Cgroup: dir}
		}
		if c.ID != "" && c.PodUID == "" {
			c.PodUID = podUID(path.Base(dir))
		}
	}
	return c, err
}

// holdsPodmans says whether a directory whose name is a bare id is a podman pod, since a
// container is right below. A container of podman has another name.
func holdsPodmans(dir, container string) bool {
	return isHex64(path.Base(dir)) && path.Dir(container) == dir && strings.HasPrefix(path.Base(container), "libpod-")
}

// identifyDir says whether a directory is a container's own. The scope is of ids that are
// unique in there only.
func identifyDir(dir string, patterns []*regexp.Regexp) (id, scope, runtime string, ok bool) {
	for _, re := range patterns {
		if id, runtime, ok = matchPattern(dir, re); ok {
			return id, "", runtime, true
		}
	}
	parent, name := path.Dir(dir), path.Base(dir)
	for _, s := range shapes {
		if id, ok := s.match(parent, name); ok {
			return id, s.scope, s.runtime, true
		}
	}
	return "", "", "", false
}

func (s shape) match(parent, name string) (string, bool) {
	if s.inner != "" {
		if name != s.inner {
			return "", false
		}
		parent, name = path.Dir(parent), path.Base(parent)
	}
	if s.above != nil && !s.above(parent) {
		return "", false
	}
	if s.after != "" {
		_, rest, ok := strings.Cut(name, s.after)
		if !ok {
			return "", false
		}
		name = rest
	}
	id, ok := strings.CutPrefix(name, s.prefix)
	if !ok {
		return "", false
	}
	if id, ok = strings.CutSuffix(id, s.suffix); !ok || !s.id(id) {
		return "", false
	}
	return unescape(id), true
}

// matchPattern applies a user's pattern to one directory.
func matchPattern(dir string, re *regexp.Regexp) (id, runtime string, ok bool) {
	all := re.FindAllStringSubmatchIndex(dir, -1)
	if len(all) == 0 {
		return "", "", false
	}
	match := all[len(all)-1]
	if match[1] <= strings.LastIndexByte(dir, '/')+1 {
		return "", "", false // ends in a directory above
	}
	group := func(name string) string {
		i := re.SubexpIndex(name)
		if i < 0 || match[2*i] < 0 {
			return ""
		}
		return dir[match[2*i]:match[2*i+1]]
	}
	id = group("id")
	return id, group("runtime"), id != ""
}

// compilePatterns compiles a user's patterns.
func compilePatterns(patterns []string) ([]*regexp.Regexp, error) {
	var compiled []*regexp.Regexp
	for i, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("compile cgroup pattern %d: %w", i, err)
		}
		if re.SubexpIndex("id") < 0 {
			return nil, fmt.Errorf("compile cgroup pattern %d: %q has no group named id, such as (?P<id>[^/]+)", i, p)
		}
		compiled = append(compiled, re)
	}
	return compiled, nil
}

// podUID returns the pod's UID of a pod's cgroup name: pod<uid>, or
// kubepods[-<qos>]-pod<uid>.slice where underscores stand for dashes.
func podUID(name string) string {
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok {
		slice, _, isSlice := strings.Cut(name, ".slice")
		i := strings.LastIndex(slice, "-pod")
		if !isSlice || i < 0 {
			return ""
		}
		uid = strings.ReplaceAll(slice[i+len("-pod"):], "_", "-")
	}
	// A UUID, or the 32 digits of a static pod.
	if (len(uid) != 36 && len(uid) != 32) || strings.Trim(uid, "0123456789abcdef-") != "" {
		return ""
	}
	return uid
}

// unescape undoes systemd's \x2d in unit names.
func unescape(name string) string {
	if !strings.Contains(name, `\x`) {
		return name
	}
	var out strings.Builder
	for i := 0; i < len(name); i++ {
		if strings.HasPrefix(name[i:], `\x`) && len(name) >= i+4 {
			if b, err := strconv.ParseUint(name[i+2:i+4], 16, 8); err == nil {
				out.WriteByte(byte(b))
				i += 3
				continue
			}
		}
		out.WriteByte(name[i])
	}
	return out.String()
}

func at(dir string) func(string) bool { return func(parent string) bool { return parent == dir } }

func named(name string) func(string) bool {
	return func(parent string) bool { return path.Base(parent) == name }
}

func inPod(parent string) bool { return podUID(path.Base(parent)) != "" }

func inECSTask(parent string) bool { return path.Base(path.Dir(parent)) == "ecs" }

// inPodmanScope accepts rootless podman's podman-<pid>.scope.
func inPodmanScope(parent string) bool {
	name := path.Base(parent)
	return strings.HasPrefix(name, "podman-") && strings.HasSuffix(name, ".scope")
}

// mayHoldAny refuses libpod_parent, where a bare id is a pod with containers in it, and
// where Kata has the rest of a sandbox.
func mayHoldAny(parent string) bool {
	return path.Base(parent) != "libpod_parent" && notKataOverhead(parent)
}

func notKataOverhead(parent string) bool { return parent != kataOverhead }

func notEmpty(id string) bool { return id != "" }

// maxID is how long an id may be, as long as the name of a host.
const maxID = 253

// ErrNoID means that a cgroup would be a container's by its name or a user's pattern, but that
// the text where the id has to be can't be one.
var ErrNoID = errors.New("no container id, which is 1 to 253 letters, digits and any of . _ : @ -")

// isID accepts what an id may be. Anybody who has a cgroup makes directories in it: what may
// not be in an id can't get from there into logs, URLs and queries.
func isID(id string) bool {
	if id == "" || len(id) > maxID || strings.Trim(id, ".") == "" {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("._:@-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func isHex64(id string) bool { return len(id) == 64 && isHex(id) }

func isHex(id string) bool { return strings.Trim(id, "0123456789abcdef") == "" }

// isECS accepts <32 hex digits>-<decimal digits>.
func isECS(id string) bool {
	hex, number, ok := strings.Cut(id, "-")
	return ok && len(hex) == 32 && isHex(hex) && number != "" && strings.Trim(number, "0123456789") == ""
}

// isContainerd accepts containerd's identifiers: letters and digits with single
// separators between, at most 76.
func isContainerd(id string) bool {
	return len(id) <= 76 && containerdID.MatchString(id)
}

var containerdID = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

// isMachine refuses the scopes of libvirt, whose qemu machines are no containers.
func isMachine(id string) bool {
	return id != "" && !strings.HasPrefix(id, `qemu\x2d`) && !strings.HasPrefix(id, `lxc\x2d`)
}

// isBareMachine refuses the scopes of others in machine.slice, and those of the shape above.
func isBareMachine(id string) bool {
	for _, prefix := range []string{"machine-", "libpod-", "crio-", "docker-"} {
		if strings.HasPrefix(id, prefix) {
			return false
		}
	}
	return id != ""
}
