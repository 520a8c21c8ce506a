//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* Counts what the processes of containers send and receive at their sockets: calls, and bytes of
 * payload, of TCP, UDP and unix sockets apart. User space loads one of two sets of programs:
 *
 * - two programs on the kernel's tracepoints for that, sock_send_length and sock_recv_length, which
 *   every call passes that sends or receives (sock_sendmsg_nosec and sock_recvmsg_nosec,
 *   net/socket.c);
 * - where sendfile and splice don't pass there but have functions of their own, and before there
 *   were those tracepoints: programs at the end of the functions that sockets have for sending and
 *   receiving (struct proto_ops). Linux 6.5 made all sends one.
 *
 * The cgroup of the process that calls decides, and those above it: a nested container's calls
 * are in the numbers of the outer one, too, as its connections are.
 *
 * Floor: Linux 5.10, with BTF.
 */
#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

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

/* Threads whose inet_sendpage has called sock_no_sendpage, which sends by inet_sendmsg. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} sent_otherwise SEC(".maps");

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

struct socket {
	short type;
	struct sock *sk;
} __attribute__((preserve_access_index));

struct cgroup {
	int level;
	__u64 ancestor_ids[]; /* until Linux 6.0 */
} __attribute__((preserve_access_index));

struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));

struct task_struct {
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

enum {
	AF_UNIX = 1,
	AF_INET = 2,
	AF_INET6 = 10,
	MSG_PEEK = 2,
	SOCK_STREAM = 1,
	SOCK_SEQPACKET = 5,
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

/* ancestor returns the id of the cgroup of a level that the process is in, 0 if it is no deeper.
 * The helper is for tracing programs since Linux 5.15.
 */
static __always_inline __u64 ancestor(int level)
{
	struct task_struct *task;
	struct cgroup *cgroup;
	__u64 id = 0;

	if (!bpf_core_field_exists(struct cgroup, ancestor_ids))
		return bpf_get_current_ancestor_cgroup_id(level);
	task = (struct task_struct *)bpf_get_current_task();
	cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	if (level <= BPF_CORE_READ(cgroup, level))
		bpf_probe_read_kernel(&id, sizeof id, &cgroup->ancestor_ids[0] + level);
	return id;
}

/* note adds a call to the counters of every container that the process is in. */
static __always_inline void note(__u32 counter, __u64 bytes)
{
	for (int level = 1; level <= DEEPEST; level++) {
		__u64 cgroup = ancestor(level);
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

/* sent and received note a call by its length or error. Calls that failed sent and received nothing. */
static __always_inline void sent(struct sock *sk, int length)
{
	__u32 protocol = protocol_of(sk);

	if (length >= 0 && protocol <= SEND_UNIX)
		note(protocol, length);
}

/* What is only looked at is received later. */
static __always_inline void received(struct sock *sk, int length, int flags)
{
	__u32 protocol = protocol_of(sk);

	if (length >= 0 && protocol <= SEND_UNIX && !(flags & MSG_PEEK))
		note(RECEIVE_TCP + protocol, length);
}

/* The arguments of both are the socket, the length or an error, and the flags. */
SEC("tp_btf/sock_send_length")
int nettally_send(__u64 *args)
{
	sent((struct sock *)args[0], args[1]);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int nettally_receive(__u64 *args)
{
	received((struct sock *)args[0], args[1], args[2]);
	return 0;
}

/* The programs below are attached to all functions with the same arguments, by user space; the
 * section names one of them. After the arguments comes what the function returns.
 */

/* socket, message, size */
SEC("fexit/inet_sendmsg")
int nettally_sendmsg(__u64 *args)
{
	sent(((struct socket *)args[0])->sk, args[3]);
	return 0;
}

/* socket, message, size, flags */
SEC("fexit/inet_recvmsg")
int nettally_recvmsg(__u64 *args)
{
	received(((struct socket *)args[0])->sk, args[4], args[3]);
	return 0;
}

/* The functions of SOCK_SEQPACKET, which are counted, call those of SOCK_DGRAM, unless the compiler
 * has put these into those.
 */
SEC("fexit/unix_dgram_sendmsg")
int nettally_send_dgram(__u64 *args)
{
	struct socket *socket = (struct socket *)args[0];

	if (socket->type != SOCK_SEQPACKET)
		sent(socket->sk, args[3]);
	return 0;
}

SEC("fexit/unix_dgram_recvmsg")
int nettally_recv_dgram(__u64 *args)
{
	struct socket *socket = (struct socket *)args[0];

	if (socket->type != SOCK_SEQPACKET)
		received(socket->sk, args[4], args[3]);
	return 0;
}

/* A page of sendfile or splice: socket, page, offset, size, flags. */
SEC("fexit/unix_stream_sendpage")
int nettally_sendpage(__u64 *args)
{
	sent(((struct socket *)args[0])->sk, args[5]);
	return 0;
}

/* All TCP and UDP sockets of IPv4, and TCP of IPv6, have inet_sendpage. It calls sock_no_sendpage if
 * the protocol or the interface can't send pages. The other sockets have that itself.
 */
SEC("fexit/inet_sendpage")
int nettally_inet_page(__u64 *args)
{
	__u64 thread = bpf_get_current_pid_tgid();

	if (bpf_map_delete_elem(&sent_otherwise, &thread))
		sent(((struct socket *)args[0])->sk, args[5]);
	return 0;
}

SEC("fexit/sock_no_sendpage")
int nettally_no_page(__u64 *args)
{
	struct socket *socket = (struct socket *)args[0];
	struct sock *sk = socket->sk;
	__u64 thread = bpf_get_current_pid_tgid();
	__u8 value = 0;

	if (protocol_of(sk) < SEND_UNIX &&
	    (sk->__sk_common.skc_family == AF_INET || socket->type == SOCK_STREAM))
		bpf_map_update_elem(&sent_otherwise, &thread, &value, BPF_ANY);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
