#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# Process 1 of the guest, to which the test adds steps. It does things with nettally and
# reports each one's output and exit code on the second serial port; the first one is the
# kernel's own. Whether that is as it should be, the test on the machine judges.

/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 -opost

step() {
	echo "@begin $1"
	shift
	"$@"
	echo "@end $?"
}

# start runs nettally until it listens; in "as" is a command that is to run it.
start() {
	$as nettally run >>/log 2>&1 &
	daemon=$!
	for i in $(seq 1000); do
		[ -S /run/nettally/nettally.sock ] && return
		usleep 20000
	done
	cat /log
	return 1
}

# stop ends it as a service manager does.
stop() {
	kill $daemon && wait $daemon
	code=$?
	cat /log
	return $code
}

step uptime cut -d' ' -f1 /proc/uptime
echo 'the guest is up' >/dev/kmsg
