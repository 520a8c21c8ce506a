//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* Counts what becomes of the TCP connections of a container's cgroup: a sock_ops program,
 * which the kernel runs when a connection begins, changes its state, retransmits, and once
 * per round trip. No packet runs it.
 *
 * It returns 1 always, never writes `reply`, and adds to the callbacks that others asked for:
 * what others' programs decide about a connection stays as they decided.
 *
 * Only bpf_sock_ops and uapi headers are used, so no kernel BTF is needed. Floor: Linux 5.10.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "slots.h"

/* What is counted, by its place in a slot's row. A slot of this kind is one of the
 * classifiers' chunks, whose row is as long: that is what keeps, adopts and inherits it.
 */
enum tcp_counter {
	CONNECT_ATTEMPTS,
	CONNECTS,
	ACCEPTS,
	CONNECT_FAILURES,
	CLOSES,
	RESETS,
	RETRANSMITTED_SEGMENTS,
	ENTERED,	  /* the state ESTABLISHED */
	LEFT,		  /* it again */
	RTT_MICROSECONDS, /* smoothed, summed up over the observations */
	RTT_BUCKETS,	  /* how many observations there were up to each of rtt_bound, and above */
	TCP_COUNTERS = RTT_BUCKETS + 10,
	/* What user space writes into the row that no CPU has. Its reader adds it to the rest. */
	BEFORE = 24,	    /* established before the program came, less those that went unseen */
	BEFORE_KNOWN,	    /* 1 if that is known */
	LISTEN_DROPS,	    /* of the network namespace */
	LISTEN_DROPS_KNOWN, /* 1 if it has one to itself, whose number that is */
	/* Of the slot of a network namespace, on which no program counts: what that had counted of
	 * attempts, accepts, resets and listen drops before what user space has put into their counters.
	 */
	PASSED = 28,
	ROW_NUMBERS = PASSED + 4 /* numbers in a row */
};
_Static_assert(TCP_COUNTERS <= BEFORE && LISTEN_DROPS_KNOWN < PASSED, "a row has room");

struct tcp_row {
	__u64 numbers[ROW_NUMBERS];
};
_Static_assert(sizeof(struct tcp_row) == 256, "a row is as long as a classifier's");

/* The second row of a slot stays empty. */
struct chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS_PER_CHUNK *ROWS_PER_SLOT); /* times cpus and one, set at load */
	__type(key, __u32);
	__type(value, struct tcp_row);
};

/* The classifiers' own map takes its place at load. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS / SLOTS_PER_CHUNK);
	__type(key, __u32);
	__array(values, struct chunk);
} chunks SEC(".maps");

/* Which slot a cgroup's connections have, as `members` of classifier.c. */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);   /* cgroup id */
	__type(value, __u32); /* slot */
} tcp_members SEC(".maps");

/* Brings the enum into the object's BTF, as in classifier.c. */
static const struct {
	enum tcp_counter counter;
} shared __attribute__((used, section("enums")));

#define CALLBACKS                                                                                  \
	(BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG)

static __always_inline struct tcp_row *row_of(__u32 slot)
{
	return row_in(&chunks, slot, 0);
}

/* add adds to a counter of this CPU. In a process the program may be interrupted by a packet
 * of the same cgroup.
 */
static __always_inline void add(struct tcp_row *row, __u32 counter, __u64 n)
{
	__sync_fetch_and_add(&row->numbers[counter], n);
}

/* ask asks for the callbacks that count a connection. Others' stay. It does so at each call,
 * since another's program may set its own in place of all.
 */
static __always_inline void ask(struct bpf_sock_ops *ops)
{
	__u32 flags = ops->bpf_sock_ops_cb_flags;

	if (ops->is_fullsock && (flags & CALLBACKS) != CALLBACKS)
		bpf_sock_ops_cb_flags_set(ops, flags | CALLBACKS);
}

/* changed counts a change of state. args[0], which the kernel fills with the old one, is where
 * another's program that ran before may have written its `reply`; the socket still has it. That
 * a connection of ours is established is told by a call that needs no callback.
 */
static __always_inline void changed(struct tcp_row *row, __u32 from, __u32 to)
{
	if (to == BPF_TCP_ESTABLISHED && from == BPF_TCP_SYN_RECV)
		add(row, ENTERED, 1);
	else if (from == BPF_TCP_ESTABLISHED)
		add(row, LEFT, 1);
	if (to != BPF_TCP_CLOSE)
		return;
	switch (from) {
	case BPF_TCP_SYN_SENT:
		add(row, CONNECT_FAILURES, 1);
		break;
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_CLOSE_WAIT: /* as tcp_set_state counts EstabResets */
		add(row, RESETS, 1);
		add(row, CLOSES, 1);
		break;
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSING:
	case BPF_TCP_LAST_ACK:
		add(row, CLOSES, 1);
	}
}

/* bucket returns which bucket an RTT in microseconds is in. */
static __always_inline __u32 bucket(__u32 rtt)
{
	if (rtt <= 10000) {
		if (rtt <= 100)
			return 0;
		if (rtt <= 500)
			return 1;
		if (rtt <= 1000)
			return 2;
		return rtt <= 5000 ? 3 : 4;
	}
	if (rtt <= 50000)
		return 5;
	if (rtt <= 100000)
		return 6;
	if (rtt <= 500000)
		return 7;
	return rtt <= 1000000 ? 8 : 9;
}

/* observe counts a smoothed RTT in eighths of a microsecond, as the kernel has it. Since Linux 6.10 it
 * is an argument of the call. Before, the socket has the last one at that time, and none at first
 * (tcp_rtt_estimator, net/ipv4/tcp_input.c).
 */
static __always_inline void observe(struct tcp_row *row, __u32 smoothed)
{
	__u32 rtt = smoothed >> 3;
	__u32 counter = RTT_BUCKETS + bucket(rtt);

	if (!smoothed)
		return;
	if (counter < TCP_COUNTERS) /* for the verifier */
		add(row, counter, 1);
	add(row, RTT_MICROSECONDS, rtt);
}

/* count is a function of its own since its parameter brings struct tcp_row into the object's
 * BTF, as count_any in classifier.c.
 */
static __noinline void count(struct bpf_sock_ops *ops, struct tcp_row *row)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		add(row, CONNECT_ATTEMPTS, 1);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		add(row, CONNECTS, 1);
		add(row, ENTERED, 1);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: /* before it changes its state */
		add(row, ACCEPTS, 1);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		changed(row, ops->state, ops->args[1]);
		break;
	case BPF_SOCK_OPS_RETRANS_CB:
		add(row, RETRANSMITTED_SEGMENTS, ops->args[1]);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		observe(row, ops->args[1] ? ops->args[1] : ops->srtt_us);
	}
}

SEC("sockops")
int nettally_tcp(struct bpf_sock_ops *ops)
{
	__u32 *slot = bpf_get_local_storage(&tcp_members, 0);
	struct tcp_row *row = row_of(*slot);

	if (row) /* user space makes it before it binds a cgroup, and slot 0 always has one */
		count(ops, row);
	ask(ops);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
