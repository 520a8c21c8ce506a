// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nettally/nettally/exporter"
	"github.com/nettally/nettally/internal/testnet/dockerhost"
	"github.com/nettally/nettally/internal/testnet/need"
	"github.com/nettally/nettally/internal/testnet/nettest"
)

// documented returns the flags of `docker run` in docs/INSTALL.md, up to the image.
func documented(t *testing.T) []string {
	t.Helper()
	text := nettest.Must(os.ReadFile("../docs/INSTALL.md"))(t)
	for line := range strings.Lines(string(text)) {
		if flags, is := strings.CutPrefix(line, "docker run -d "); is {
			words := strings.Fields(flags)
			if last := len(words) - 1; words[last] == "nettally:1.2.3" {
				return words[:last]
			}
		}
	}
	t.Fatal("no `docker run -d … nettally:1.2.3` in docs/INSTALL.md")
	return nil
}

// The image, loaded into a Docker and run with the documented flags, counts a container beside it.
func TestImageCounts(t *testing.T) {
	need.Root(t)
	r := nettest.Must(made())(t)
	docker := dockerhost.Start(t, dockerhost.Options{})
	image := r.path("nettally_1.2.3_image_" + runtime.GOARCH + ".tar")
	if out := docker.CLI("load", "-i", image); !strings.Contains(out, "nettally:1.2.3") {
		t.Fatalf("docker load: %s", out)
	}
	if out := docker.CLI("run", "--rm", "--network", "none", "nettally:1.2.3", "version"); !strings.HasPrefix(out, "nettally 1.2.3 ") {
		t.Fatalf("docker run: %s", out)
	}

	flags := documented(t)
	for i, flag := range flags { // what is not this machine's
		switch {
		case strings.HasPrefix(flag, "/sys/fs/bpf:"):
			flags[i] = nettest.BPFFS(t) + ":/sys/fs/bpf"
		case strings.HasPrefix(flag, "/var/run/docker.sock:"):
			flags[i] = docker.Socket + ":/var/run/docker.sock:ro"
		}
	}
	run := append([]string{"run", "-d", "-e", "NETTALLY_WATCH_INCLUDE=" + docker.CgroupParent + "/*"}, append(flags, "nettally:1.2.3")...)
	docker.CLI(run...)
	beside := docker.Run("--name", "beside", dockerhost.Image)
	docker.Exec(beside, "ping", "-c", "3", "-i", "0.2", "10.231.0.1")

	var problem error
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if problem = counts(docker, beside); problem == nil {
			break
		}
		if time.Now().After(deadline) {
			log, _ := docker.Client("logs", "nettally").CombinedOutput()
			t.Fatalf("%v\n%s", problem, log)
		}
	}
	if out := docker.CLI("exec", "nettally", "/usr/bin/nettally", "check"); strings.Contains(out, "FAILED") {
		t.Errorf("nettally check:\n%s", out)
	} else {
		t.Logf("nettally check:\n%s", out)
	}
	docker.CLI("stop", "nettally")
	detach := slices.Concat([]string{"run", "--rm"}, slices.DeleteFunc(slices.Clone(flags), func(flag string) bool {
		return slices.Contains([]string{"--name", "nettally", "--restart", "unless-stopped"}, flag)
	}), []string{"nettally:1.2.3", "detach"})
	if out := docker.CLI(detach...); !strings.Contains(out, "took filters off 1 interfaces") {
		t.Errorf("detach: %s", out)
	}
}

// counts compares what nettally says of a container with the kernel's own counters.
func counts(docker *dockerhost.Docker, id string) error {
	out, err := docker.Client("exec", "nettally", "/usr/bin/nettally", "list", "-o", "json").CombinedOutput()
	if err != nil {
		return fmt.Errorf("list: %w: %s", err, out)
	}
	var list struct{ Containers []exporter.Container }
	if err := json.Unmarshal(out, &list); err != nil {
		return fmt.Errorf("list: %w: %s", err, out)
	}
	kernel := docker.NetDev(id)["eth0"]
	for _, c := range list.Containers {
		if c.ID != id {
			continue
		}
		if c.Name != "beside" || c.Transmit.InterfaceBytes != kernel.TransmitBytes || c.Receive.InterfaceBytes != kernel.ReceiveBytes || kernel.TransmitBytes == 0 {
			return fmt.Errorf("%s: transmitted %d and received %d, and the kernel says %+v", c.Name, c.Transmit.InterfaceBytes, c.Receive.InterfaceBytes, kernel)
		}
		return nil
	}
	return fmt.Errorf("container %.12s is not listed: %s", id, out)
}

// podman takes the image, too, and that of all architectures.
func TestImageInPodman(t *testing.T) {
	need.Root(t)
	need.Commands(t, "podman")
	r := nettest.Must(made())(t)
	for _, name := range []string{"image_" + runtime.GOARCH, "image_oci"} {
		folder := t.TempDir()
		podman := func(args ...string) *exec.Cmd {
			return exec.Command("podman", append([]string{"--root", folder + "/root", "--runroot", folder + "/run", "--tmpdir", folder + "/tmp",
				"--storage-driver", "vfs", "--events-backend", "file"}, args...)...)
		}
		if out, err := podman("load", "-i", r.path("nettally_1.2.3_"+name+".tar")).CombinedOutput(); err != nil {
			t.Errorf("podman load of %s: %v: %s", name, err, out)
		}
		out := nettest.Must(podman("images", "--format", "{{.Tag}} {{.Size}}").Output())(t)
		if len(strings.Fields(string(out))) == 0 {
			t.Errorf("podman has no image of %s", name)
		}
	}
}

// compose grants what the documented line grants.
func TestComposeIsDocumented(t *testing.T) {
	var file struct {
		Services map[string]struct {
			NetworkMode string `yaml:"network_mode"`
			Pid, Cgroup string
			CapDrop     []string `yaml:"cap_drop"`
			CapAdd      []string `yaml:"cap_add"`
			SecurityOpt []string `yaml:"security_opt"`
			Tmpfs       []string
			Volumes     []string
			ReadOnly    bool `yaml:"read_only"`
			Restart     string
			Name        string `yaml:"container_name"`
		}
	}
	if err := yaml.Unmarshal(nettest.Must(os.ReadFile("compose.yaml"))(t), &file); err != nil {
		t.Fatal(err)
	}
	s := file.Services["nettally"]
	flags := []string{"--name", s.Name, "--restart", s.Restart, "--network", s.NetworkMode, "--pid", s.Pid, "--cgroupns", s.Cgroup}
	add := func(flag string, values []string) {
		for _, value := range values {
			flags = append(flags, flag, value)
		}
	}
	add("--cap-drop", s.CapDrop)
	add("--cap-add", s.CapAdd)
	add("--security-opt", s.SecurityOpt)
	if s.ReadOnly {
		flags = append(flags, "--read-only")
	}
	add("--tmpfs", s.Tmpfs)
	add("-v", s.Volumes)
	if got, want := strings.Join(flags, " "), strings.Join(documented(t), " "); got != want {
		t.Errorf("compose.yaml says\n%s\nand docs/INSTALL.md\n%s", got, want)
	}
}
