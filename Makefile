# SPDX-License-Identifier: Apache-2.0
#
# make build     bin/nettally
# make run       build it and count, in the foreground, until Ctrl-C
# make test      all tests, with real containers in namespaces of their own
# make bench     the benchmarks whose figures the documents quote
# make generate  the BPF objects, from their C source
# make check     formatting, linters, import rules, and that the objects match the source
# make install   the binary, the systemd unit and the reference configuration
#
# test, bench, generate and check install the Debian or Ubuntu packages that they
# need, if they are missing, and say so. run, test and bench need root.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX  ?= /usr/local
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E env PATH=$$PATH")

export CGO_ENABLED := 0

# What a program is called, and the package that brings it.
TEST_NEEDS := dockerd:docker.io docker:docker.io containerd:containerd runc:runc iptables:iptables \
	busybox:busybox-static tcpdump:tcpdump ethtool:ethtool ip:iproute2 tc:iproute2 unshare:util-linux \
	nsenter:util-linux promtool:prometheus prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager iperf3:iperf3 systemd-analyze:systemd qemu-system-x86_64:qemu-system-x86 \
	ctr:containerd containerd-shim-runc-v2:containerd /usr/lib/cni/bridge:containernetworking-plugins \
	mkfs.ext4:e2fsprogs podman:podman conmon:conmon slirp4netns:slirp4netns /usr/lib/podman/netavark:netavark /usr/lib/podman/aardvark-dns:aardvark-dns
GENERATE_NEEDS := clang-16:clang-16 llvm-strip-16:llvm-16 clang-format-16:clang-format-16 gcc:gcc

# need installs the packages of the programs that are missing.
define need
	@packages=""; \
	for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || packages+=" $${pair#*:}"; done; \
	for file in $(2); do [ -e "$${file%%:*}" ] || packages+=" $${file#*:}"; done; \
	[ -z "$$packages" ] && exit 0; \
	echo "installing$$packages"; \
	command -v apt-get >/dev/null || { echo "no apt-get here: install them yourself" >&2; exit 1; }; \
	$(AS_ROOT) apt-get update -qq; \
	: "newer releases have the client of docker.io in a package of its own"; \
	case "$$packages " in *" docker.io "*) ! apt-cache show docker-cli >/dev/null 2>&1 || packages+=" docker-cli";; esac; \
	$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$packages >/dev/null
endef

.PHONY: build run test bench generate check install

build:
	go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/nettally ./cmd/nettally

run: build
	$(AS_ROOT) bin/nettally run

# Two packages at a time, which mostly wait for something; then the tests of the whole, which
# keep two CPUs busy. Never from the cache, since it does not know the kernel, Docker and
# the rest that the tests are about.
test: build
	$(call need,$(TEST_NEEDS))
	$(AS_ROOT) go test -count 1 -p 2 -timeout 60m $$(go list ./... | grep -v '/internal/e2e$$')
	$(AS_ROOT) go test -count 1 -timeout 60m ./internal/e2e

bench:
	$(call need,$(TEST_NEEDS))
	$(AS_ROOT) go test -p 1 -timeout 60m -run '^$$' -bench . ./...

generate:
	$(call need,$(GENERATE_NEEDS),/usr/include/bpf/bpf_helpers.h:libbpf-dev)
	clang-format-16 -i bpf/classifier.c
	BPF2GO_CFLAGS="-I/usr/include/$$(gcc -print-multiarch)" go generate ./...

check: generate
	@git diff --exit-code -- bpf || { echo "bpf/: the objects do not match their source: run \`make generate\` and commit" >&2; exit 1; }
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w: $$unformatted" >&2; exit 1; }
	go mod tidy -diff
	go vet ./...
	go tool staticcheck ./...
	go tool depguard ./...

install: build
	$(AS_ROOT) install -D -m 0755 bin/nettally $(DESTDIR)$(PREFIX)/bin/nettally
	$(AS_ROOT) install -D -m 0644 configs/nettally.service $(DESTDIR)/etc/systemd/system/nettally.service
	[ -e $(DESTDIR)/etc/nettally/nettally.yaml ] || $(AS_ROOT) install -D -m 0644 configs/reference.yaml $(DESTDIR)/etc/nettally/nettally.yaml
