//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* Counts what the processes of containers send and receive at their sockets: calls, and bytes of
 * payload, of TCP, UDP and unix sockets apart. Two programs on the kernel's tracepoints for that,
 * sock_send_length and sock_recv_length, which every call passes that sends or receives
 * (sock_sendmsg_nosec and sock_recvmsg_nosec, net/socket.c).
 *
 * The cgroup of the process that calls decides, and those above it: a nested container's calls
 * are in the numbers of the outer one, too, as its connections are.
 *
 * Floor: Linux 6.3, with BTF.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "slots.h"

/* What is counted, by its place in the second row of a slot for connections, which those leave
 * empty. A counter is that of its protocol, and BYTES further on that of the bytes.
 */
enum socket_counter {
	SEND_TCP,
	SEND_UDP,
	SEND_UNIX,
	RECEIVE_TCP,
	RECEIVE_UDP,
	RECEIVE_UNIX,
	BYTES,
	SOCKET_COUNTERS = 2 * BYTES,
	ROW_NUMBERS = 32
};

struct socket_row {
	__u64 numbers[ROW_NUMBERS];
};
_Static_assert(sizeof(struct socket_row) == 256, "a row is as long as a classifier's");

struct chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS_PER_CHUNK *ROWS_PER_SLOT); /* times cpus and one, set at load */
	__type(key, __u32);
	__type(value, struct socket_row);
};

/* The classifiers' own map takes its place at load. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS / SLOTS_PER_CHUNK);
	__type(key, __u32);
	__array(values, struct chunk);
} chunks SEC(".maps");

/* Which slot a cgroup has. The storage of a cgroup, where the program for connections finds it,
 * is not for tracing programs.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS / 2);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);   /* cgroup id */
	__type(value, __u32); /* slot */
} socket_slots SEC(".maps");

/* Brings the enum into the object's BTF, as in classifier.c. */
static const struct {
	enum socket_counter counter;
} shared __attribute__((used, section("enums")));

/* What is read of the kernel's own structures, wherever they have it. */
struct sock_common {
	unsigned short skc_family;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

enum {
	AF_UNIX = 1,
	AF_INET = 2,
	AF_INET6 = 10,
	MSG_PEEK = 2,
	/* IPPROTO_TCP, IPPROTO_UDP and IPPROTO_MPTCP */
	TCP = 6,
	UDP = 17,
	MPTCP = 262,
	/* How far below the root a cgroup may be. User space looks no deeper. */
	DEEPEST = 32
};

/* protocol_of returns which of the three a socket has, 3 for none of them. */
static __always_inline __u32 protocol_of(struct sock *sk)
{
	switch (sk->__sk_common.skc_family) {
	case AF_UNIX:
		return SEND_UNIX;
	case AF_INET:
	case AF_INET6:
		if (sk->sk_protocol == TCP || sk->sk_protocol == MPTCP)
			return SEND_TCP;
		if (sk->sk_protocol == UDP)
			return SEND_UDP;
	}
	return SEND_UNIX + 1;
}

/* count is a function of its own since its parameter brings struct socket_row into the object's
 * BTF, as count_any in classifier.c.
 */
static __noinline void count(struct socket_row *row, __u32 counter, __u64 bytes)
{
	if (counter >= BYTES) /* for the verifier */
		return;
	__sync_fetch_and_add(&row->numbers[counter], 1);
	__sync_fetch_and_add(&row->numbers[counter + BYTES], bytes);
}

/* note adds a call to the counters of every container that the process is in. */
static __always_inline void note(__u32 counter, __u64 bytes)
{
	for (int level = 1; level <= DEEPEST; level++) {
		__u64 cgroup = bpf_get_current_ancestor_cgroup_id(level);
		struct socket_row *row;
		__u32 *slot;

		if (!cgroup)
			return; /* the process is no deeper */
		slot = bpf_map_lookup_elem(&socket_slots, &cgroup);
		if (!slot)
			continue;
		row = row_in(&chunks, *slot, 1);
		if (row)
			count(row, counter, bytes);
	}
}

/* The arguments of both are the socket, the length or an error, and the flags. Calls that failed
 * sent and received nothing.
 */
SEC("tp_btf/sock_send_length")
int nettally_send(__u64 *args)
{
	__u32 protocol = protocol_of((struct sock *)args[0]);
	int length = args[1];

	if (length >= 0 && protocol <= SEND_UNIX)
		note(protocol, length);
	return 0;
}

/* What is only looked at is received later. */
SEC("tp_btf/sock_recv_length")
int nettally_receive(__u64 *args)
{
	__u32 protocol = protocol_of((struct sock *)args[0]);
	int length = args[1];

	if (length >= 0 && protocol <= SEND_UNIX && !((int)args[2] & MSG_PEEK))
		note(RECEIVE_TCP + protocol, length);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
