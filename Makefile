# SPDX-License-Identifier: Apache-2.0
#
# make build     bin/nettally
# make run       build it and count, in the foreground, until Ctrl-C
# make test      all tests, with real containers in namespaces of their own; it includes make race
# make race      the tests of the packages whose goroutines share memory, under the race detector
# make test-arm64 and test-32bit: the tests that need no root, built for arm64 and for 32 bits
# make fuzz T=1m each fuzz target of all packages for a time, one after the other
# make bench     the benchmarks whose figures the documents quote
# make generate  the BPF objects, from their C source, and the web page, from its TypeScript
# make check     formatting, linters, types, import rules, and that what is generated matches its source
# make release VERSION=1.2.3  archives, packages and images in dist/
# make install   the binary, the systemd unit and the reference configuration
#
# test, race, bench, generate and check install the Debian or Ubuntu packages that they
# need, if they are missing, and say so. run, test, race, fuzz and bench need root.
#
# fuzz writes an input that fails to testdata/fuzz of its package, where `make test` tries it
# again: commit it with what mends it.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX  ?= /usr/local
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -E env PATH=$$PATH")

export CGO_ENABLED := 0

# What a program is called, and the package that brings it.
TEST_NEEDS := dockerd:docker.io docker:docker.io containerd:containerd runc:runc runsc:runsc iptables:iptables \
	busybox:busybox-static tcpdump:tcpdump nft:nftables conntrack:conntrack ethtool:ethtool ip:iproute2 tc:iproute2 unshare:util-linux \
	nsenter:util-linux promtool:prometheus prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager iperf3:iperf3 nginx:nginx-light curl:curl wrk:wrk dnsmasq:dnsmasq-base openssl:openssl tshark:tshark systemd-analyze:systemd strace:strace qemu-system-x86_64:qemu-system-x86 \
	ctr:containerd containerd-shim-runc-v2:containerd /usr/lib/cni/bridge:containernetworking-plugins \
	rpm:rpm mkfs.ext4:e2fsprogs gcc:gcc chromium:chromium podman:podman tmux:tmux conmon:conmon slirp4netns:slirp4netns newuidmap:uidmap dbus-daemon:dbus /usr/lib/podman/netavark:netavark /usr/lib/podman/aardvark-dns:aardvark-dns
TEST_NEEDS_FILES := /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf:fonts-dejavu-core /usr/include/stdlib.h:libc6-dev /usr/lib/systemd/user/dbus.socket:dbus-user-session
GENERATE_NEEDS := clang-16:clang-16 llvm-strip-16:llvm-16 clang-format-16:clang-format-16 gcc:gcc
CHECK_NEEDS := npm:npm

# need installs the packages of the programs that are missing.
define need
	@packages=""; \
	for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || packages+=" $${pair#*:}"; done; \
	for file in $(2); do [ -e "$${file%%:*}" ] || packages+=" $${file#*:}"; done; \
	[ -z "$$packages" ] && exit 0; \
	echo "installing$$packages"; \
	command -v apt-get >/dev/null || { echo "no apt-get here: install them yourself" >&2; exit 1; }; \
	$(AS_ROOT) apt-get -o DPkg::Lock::Timeout=600 update -qq; \
	: "newer releases have the client of docker.io in a package of its own"; \
	case "$$packages " in *" docker.io "*) ! apt-cache show docker-cli >/dev/null 2>&1 || packages+=" docker-cli";; esac; \
	$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $$packages >/dev/null
endef

# Where nettally runs.
ARCHITECTURES := amd64 arm64 arm 386 riscv64 ppc64le s390x

# Those that test-arm64 and test-32bit compile for as well. For the others `make check` leaves the compiler's
# optimizations out, which take half of its time and find no error.
TESTED := arm64 arm

# The others are built with the tag `portable`, which leaves out what only ever runs on the builder's machine: the page's
# bundler and the tests in a browser, whose libraries take longer to compile than all the rest.
PORTABLE := -tags portable

# What may differ by architecture of the analyzers of go vet. The rest has run for this one.
PORTABLE_VET := -asmdecl -atomic -buildtag -directive -shift -stringintconv -unsafeptr

# The packages whose goroutines share memory, those that take longest first.
RACE := ./internal/controller ./internal/quota ./internal/usage ./internal/nflog ./internal/ledger ./watcher ./internal/quota/notify \
	./exporter ./internal/live ./internal/names ./internal/conntrack ./internal/procnet ./internal/roster ./internal/wallclock ./internal/top ./configs ./cmd/nettally

# Those with tests that need no root. names and notify would mostly wait, for others' daemons.
UNPRIVILEGED := ./bpf ./tcctl ./watcher ./configs ./exporter ./exporter/page/... ./cmd/nettally ./internal/controller ./internal/procnet \
	./internal/roster ./internal/wallclock ./internal/usage ./internal/ledger ./internal/quota ./internal/live ./internal/view ./internal/top

# How long make fuzz gives each target, as go test -fuzztime has it.
T ?= 1m

.PHONY: build run test race test-arm64 test-32bit fuzz bench generate check release install

build:
	go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/nettally ./cmd/nettally

run: build
	$(AS_ROOT) bin/nettally run

# Four packages at a time, which mostly wait for something, each once: those of race under the race
# detector only. Then the tests of the whole, with the machine to themselves, and four at a time. Never from the
# cache, since it does not know the kernel, Docker and the rest that the tests are about.
test: build race
	$(AS_ROOT) go test -count 1 -p 4 -timeout 60m $$(go list ./... | grep -vxF "$$(go list $(RACE) ./internal/e2e)")
	cd packaging && $(AS_ROOT) go test -count 1 -timeout 60m .
	$(AS_ROOT) go test -count 1 -parallel 4 -timeout 60m ./internal/e2e

# The race detector needs cgo. SQLite, which is C in Go's clothes, keeps its own memory and
# would be several times slower under it: the tests of the ledger would run into its limits.
race:
	$(call need,$(TEST_NEEDS),$(TEST_NEEDS_FILES))
	$(AS_ROOT) env CGO_ENABLED=1 go test -race -gcflags 'modernc.org/...=-race=false' -count 1 -p 4 -timeout 60m $(RACE)

# Without NETTALLY_REQUIRE_ALL, also in CI: the tests that need root or programs are skipped
# here, and have run natively with it in `test`. Short, since the emulator is some 20 times slower.
test-arm64:
	$(call need,qemu-aarch64:qemu-user setpriv:util-linux)
	GOARCH=arm64 NETTALLY_REQUIRE_ALL= go test $(PORTABLE) -short -p 2 -timeout 60m \
		-exec "$(CURDIR)/.ci/unprivileged qemu-aarch64" $(UNPRIVILEGED)

# What is wrong on 32 bits shows here: for 386 where the kernel runs that, and else for arm in an
# emulator. (Go does not run in qemu-i386.)
test-32bit:
	$(call need,qemu-arm:qemu-user setpriv:util-linux)
	@if GOARCH=386 go run ./cmd/nettally version >/dev/null 2>&1; then arch=386 emulator=; else arch=arm emulator=qemu-arm; fi; \
	set -x; GOARCH=$$arch NETTALLY_REQUIRE_ALL= go test $(PORTABLE) -short -p 2 -timeout 60m \
		-exec "$(CURDIR)/.ci/unprivileged $$emulator" $(UNPRIVILEGED)

# The targets are those that the packages have, and a failure does not keep the next from its
# turn. Minimizing is bounded, since where the kernel takes part in what is covered it would
# take most of the time.
fuzz:
	@targets=$$($(AS_ROOT) go test -list '^Fuzz' ./... | \
		awk '/^Fuzz/ { names[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, names[i]; n = 0 }'); \
	failed=""; \
	while read -r package name; do \
		echo "$$package $$name"; \
		$(AS_ROOT) go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(T) -fuzzminimizetime 100x "$$package" </dev/null || \
			failed+=" $$package.$$name"; \
	done <<<"$$targets"; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

bench:
	$(call need,$(TEST_NEEDS))
	$(AS_ROOT) go test -p 1 -timeout 60m -run '^$$' -bench . ./...

generate:
	$(call need,$(GENERATE_NEEDS),/usr/include/bpf/bpf_helpers.h:libbpf-dev)
	clang-format-16 -i bpf/*.c bpf/*.h
	BPF2GO_CFLAGS="-I/usr/include/$$(gcc -print-multiarch)" go generate ./...

check: generate
	@git diff --exit-code -- bpf || { echo "bpf/: the objects do not match their source: run \`make generate\` and commit" >&2; exit 1; }
	@[ -z "$$(git status --porcelain -- exporter/page/dist)" ] || { git diff --stat -- exporter/page/dist; echo "exporter/page/dist: the page does not match its source: run \`make generate\` and commit" >&2; exit 1; }
	$(call need,$(CHECK_NEEDS))
	cd exporter/page/src && npm ci --ignore-scripts --no-audit --no-fund --silent && node_modules/@typescript/typescript-*/lib/tsc -p .
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w: $$unformatted" >&2; exit 1; }
	go mod tidy -diff
	go vet ./...
	go vet -tags man ./cmd/nettally
	cd packaging && go mod tidy -diff && go vet ./...
	@for arch in $(filter-out $(shell go env GOHOSTARCH),$(ARCHITECTURES)); do \
		echo "GOARCH=$$arch go build $(PORTABLE) ./... && go vet $(PORTABLE) ./..."; \
		case " $(TESTED) " in *" $$arch "*) flags=;; *) flags='-gcflags=all=-N -l';; esac; \
		GOARCH=$$arch go build $(PORTABLE) $${flags:+"$$flags"} ./...; \
		GOARCH=$$arch go vet $(PORTABLE) $${flags:+"$$flags"} $(PORTABLE_VET) ./...; \
	done
	go tool staticcheck ./...
	staticcheck=$$(go tool -n staticcheck) && cd packaging && "$$staticcheck" ./...
	go tool depguard ./...

# The same source, version and release of Go make the same files. The date is the commit's.
release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
release:
	cd packaging && go run . -source "$(CURDIR)" -out "$(CURDIR)/dist" -version "$(VERSION)" \
		-revision "$$(git rev-parse HEAD)$$(git diff --quiet HEAD || echo -dirty)"

install: build
	$(AS_ROOT) install -D -m 0755 bin/nettally $(DESTDIR)$(PREFIX)/bin/nettally
	$(AS_ROOT) install -D -m 0644 configs/nettally.service $(DESTDIR)/etc/systemd/system/nettally.service
	[ -e $(DESTDIR)/etc/nettally/nettally.yaml ] || $(AS_ROOT) install -D -m 0640 configs/reference.yaml $(DESTDIR)/etc/nettally/nettally.yaml
