# SPDX-License-Identifier: Apache-2.0
#
# Steps of BenchmarkConntrack: a table of $ENTRIES entries, more than a machine may have
# whose highest number can't be raised.

net=/proc/sys/net/netfilter

# allow makes room for them.
allow() {
	echo $((2 * ENTRIES)) >$net/nf_conntrack_max && echo $ENTRIES >$net/nf_conntrack_buckets
}

for module in $MODULES; do
	step "load $module" insmod /modules/$module.ko
done
step 'allow' allow
step 'list' conntrack.test -test.run '^$' -test.bench '^BenchmarkDump$' -test.benchtime 1x -own $ENTRIES
step 'entries' cat $net/nf_conntrack_count
step 'log' true
poweroff -f
