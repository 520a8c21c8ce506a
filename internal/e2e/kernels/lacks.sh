# SPDX-License-Identifier: Apache-2.0
#
# Steps of TestKernels: what nettally says as long as modules are missing, and does then.

# left lists what a host without nettally has not, its one interface, and what was
# counted.
left() {
	grep ' - bpf ' /proc/self/mountinfo
	find /sys/fs/cgroup -mindepth 1 -type d
	find /tmp -mindepth 1
	find /run /var ! -type d
	ls /sys/class/net
}

# unload works when no interface of any namespace has a qdisc or a filter any more. A
# namespace that nobody is in goes a little later.
unload() {
	for i in $(seq 1000); do
		rmmod "$1" 2>/dev/null && return
		usleep 20000
	done
	rmmod "$1"
}

# The kernel would load the modules by itself with /sbin/modprobe, which is not here.
# Where it is left to nettally, it counts by /proc as long as modules are missing.
export NETTALLY_ACCOUNTING_SOURCE=bpf
step 'run without veth' nettally run
step 'load veth' insmod /modules/veth.ko
step 'run without sch_ingress' nettally run
step 'check without sch_ingress' nettally check
step 'load sch_ingress' insmod /modules/sch_ingress.ko
step 'run without cls_bpf' nettally run
unset NETTALLY_ACCOUNTING_SOURCE
step 'check without cls_bpf' nettally check
step 'load cls_bpf' insmod /modules/cls_bpf.ko

step 'check' env NETTALLY_ACCOUNTING_SOCKETS=on nettally check
step 'selftest' nettally selftest
step 'left by selftest' left

step 'start' start
step 'list' nettally list -o json
step 'bpffs' grep ' /sys/fs/bpf .* - bpf ' /proc/self/mountinfo
step 'stop' stop

export NETTALLY_ACCOUNTING_SOCKETS=on NETTALLY_REQUESTS_HTTP=on NETTALLY_REQUESTS_TLS=on NETTALLY_REQUESTS_DNS=on
step 'start with all' start
step 'stop with all' stop
step 'sockets and requests' bpf.test -test.v -test.run '^(TestSockets|TestRequests|TestDNS|TestMalformed)$/^(pipelined|tunnels|with_the_handshake)?$'
step 'detach' nettally detach

step 'left' left
step 'unload cls_bpf' unload cls_bpf
step 'unload sch_ingress' unload sch_ingress
step 'tainted' cat /proc/sys/kernel/tainted
step 'log' sh -c "dmesg -r | sed '1,/the guest is up/d'"
poweroff -f
