//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* Counts the packets of container interfaces at the clsact or tcx hooks of their host
 * veths, and those of the sockets in a container's cgroup. Every path at the hooks of an
 * interface returns TC_ACT_UNSPEC, which is TCX_NEXT too, and every one at a cgroup's
 * lets the packet pass: nothing here decides about a packet.
 *
 * Only __sk_buff and uapi headers are used, so no kernel BTF is needed. Floor:
 * Linux 5.10.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "slots.h"

/* Direction as the container sees it. */
enum direction { RECEIVE, TRANSMIT, DIRECTIONS };

/* Where a packet's wire bytes go: cell = family * PROTOCOLS + protocol. A frame
 * that is neither IPv4 nor IPv6 has the one cell NON_IP.
 */
enum family { IPV4, IPV6 };
enum protocol { TCP, UDP, ICMP, OTHER, PROTOCOLS };
enum cell { NON_IP = 2 * PROTOCOLS, CELLS };

enum trouble {
	FINE,
	NO_ROW,		  /* not counted: user space made no row for the slot */
	TRUNCATED,	  /* counted, but the packet ends within its headers */
	MALFORMED,	  /* counted, but a header contradicts itself */
	TOO_MANY_HEADERS, /* counted, but an IPv6 header chain is too long */
	NO_SLOT,	  /* not counted: user space bound no slot to the interface */
	IMPLAUSIBLE_GSO,  /* counted as one packet, but claims segments that it can't have */
	TROUBLES
};

struct volume {
	__u64 bytes;
	__u64 packets;
};

/* Plain packets, TCP and UDP without anything special, are the same on the interface and
 * on the wire. They are counted once, here: plain = family * PLAIN_PROTOCOLS + protocol.
 */
enum plain { PLAIN_PROTOCOLS = UDP + 1, PLAIN = (IPV6 + 1) * PLAIN_PROTOCOLS };

/* The counters of one slot, direction and CPU: four cache lines, of which plain packets
 * touch one. Each packet is in plain, or in both of interface and cells.
 */
struct row {
	struct volume plain[PLAIN];
	struct volume interface;    /* one packet per skb, skb->len */
	struct volume cells[CELLS]; /* on the wire */
	__u64 tcp_syn;
	__u64 tcp_synack;
	__u64 tcp_rst;
	__u64 tcp_fin;
};
_Static_assert(sizeof(struct row) == 4 * 64, "a row fills its cache lines");
_Static_assert(DIRECTIONS == ROWS_PER_SLOT, "a row for each direction");

/* One CPU's troubles, a cache line. */
struct cpu_troubles {
	__u64 count[8];
};
_Static_assert(sizeof(struct cpu_troubles) == 64 && TROUBLES <= 8, "troubles fit a cache line");

/* Rows by CPU, then slot, then direction. One more "CPU" is user space's: what an older
 * layout of these maps had counted.
 */
struct chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SLOTS_PER_CHUNK *ROWS_PER_SLOT); /* times cpus and one, set at load */
	__type(key, __u32);
	__type(value, struct row);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SLOTS / SLOTS_PER_CHUNK);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct chunk);
} chunks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* cpus, set at load */
	__type(key, __u32);
	__type(value, struct cpu_troubles);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} troubles SEC(".maps");

enum slot_flags {
	OWN_QDISC = 1, /* user space made the interface's clsact qdisc */
	HANDOVER = 2,  /* filters leave alone what a tcx program has counted */
	TOLD = 4,      /* the counts of a cgroup have been shown to somebody */
	OTHERS = 8,    /* the owner has no account of its own */
	SOCKETS = 16,  /* the row is that of tcp.c: the connections of a cgroup, not its packets */
};

/* Who has a slot: kept by user space, read back after a restart. Each layout of the maps
 * begins this with what the one before had, so that any can be read in the form of a
 * later one. What is reserved has to be 0. A later version may keep something there without
 * another layout, if 0 says that nothing is known and what is old does no harm: a version
 * that does not know it leaves it as it is, or writes 0.
 */
struct slot {
	__u64 generation; /* boot time in ns when it was taken: never twice the same */
	__u32 ifindex;
	__u32 flags;
	struct volume seeded[DIRECTIONS]; /* counted by the kernel before us */
	__u8 interface[16];		  /* as the owner calls it; ends with a 0 */
	__u8 container[240];		  /* id of the owner; ends with a 0 */
	__u64 netns;			  /* inode of the interface's namespace, 0 for the host's */
	__u64 cgroup;			  /* id of a cgroup, which has the slot, not an interface */
	struct volume mended[DIRECTIONS]; /* counted by the kernel while we were off */
	__u64 reserved[4];		  /* user space's: what was lost (note.go) */
};
_Static_assert(sizeof(struct slot) == 384, "a slot has no padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct slot);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} slots SEC(".maps");

/* Which slot an interface has, for tcx: a link there has no classid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SLOTS);
	__type(key, __u32);   /* ifindex */
	__type(value, __u32); /* slot */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} routes SEC(".maps");

/* Which slot a cgroup has: a number that the kernel keeps with each cgroup that our
 * programs are attached to, found without a lookup. It is 0, nobody's, until user space has
 * said, and goes with the cgroup; the counts stay in the slot. One for both directions, since 5.9.
 * Newer kernels call the type deprecated, and their other one can't be used here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);   /* cgroup id */
	__type(value, __u32); /* slot */
} members SEC(".maps");

/* The enums that user space shares. No program uses this, and no loader makes a map of its
 * section: it brings the enums into the object's BTF, from which bpf2go has them for Go.
 */
static const struct {
	enum direction direction;
	enum family family;
	enum protocol protocol;
	enum cell cell;
	enum plain plain;
	enum trouble trouble;
	enum capacity capacity;
	enum slot_flags slot_flags;
} shared __attribute__((used, section("enums")));

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static __always_inline void count_trouble(__u32 trouble)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_troubles *mine = bpf_map_lookup_elem(&troubles, &cpu);

	if (mine && trouble < TROUBLES)
		__sync_fetch_and_add(&mine->count[trouble], 1);
}

/* Where a packet is counted, which says how many bytes are before its IP header. */
enum place { CGROUP = 0, INTERFACE = ETH_HLEN };

/* add adds to a counter of this CPU. At an interface bottom halves are off, so that nobody
 * comes between. What a cgroup's sockets send runs in a process, too, which packets of the
 * same cgroup may interrupt (net/ipv4/ip_output.c, ip_finish_output).
 */
static __always_inline void add(__u64 *counter, __u64 n, const enum place place)
{
	if (place == CGROUP)
		__sync_fetch_and_add(counter, n);
	else
		*counter += n;
}

static __always_inline void add_volume(struct volume *to, struct volume v, const enum place place)
{
	add(&to->bytes, v.bytes, place);
	add(&to->packets, v.packets, place);
}

static __always_inline struct row *row_of(__u32 slot, enum direction direction)
{
	return row_in(&chunks, slot, direction);
}

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

static __always_inline void count_flags(struct row *row, __u32 flags, const enum place place)
{
	if (flags & TCP_SYN) {
		if (flags & TCP_ACK)
			add(&row->tcp_synack, 1, place);
		else
			add(&row->tcp_syn, 1, place);
	}
	if (flags & TCP_RST)
		add(&row->tcp_rst, 1, place);
	if (flags & TCP_FIN)
		add(&row->tcp_fin, 1, place);
}

static __always_inline bool count_plain(struct row *row, __u32 plain, __u32 len,
					const enum place place)
{
	add(&row->plain[plain].bytes, len, place);
	add(&row->plain[plain].packets, 1, place);
	return true;
}

/* plain_tcp is plain for a TCP header, of whose packet `room` bytes are left; fewer than
 * none if the packet contradicts itself.
 */
static __always_inline bool plain_tcp(struct row *row, struct tcphdr *tcp, void *end, __s32 room,
				      __u32 plain, __u32 len, const enum place place)
{
	__s32 header;
	__u32 flags;

	if (unlikely((void *)(tcp + 1) > end))
		return false;
	header = tcp->doff * 4;
	if (unlikely(header < (__s32)sizeof(*tcp) || header > room))
		return false;
	flags = ((__u8 *)tcp)[13];
	if (unlikely(flags & (TCP_SYN | TCP_RST | TCP_FIN)))
		count_flags(row, flags, place);
	return count_plain(row, plain, len, place);
}

/* plain counts the packets that are nearly all: TCP and UDP over IPv4 without options or
 * IPv6 without extension headers, directly after the Ethernet header or without one, whole, in the linear part, of one segment, without a VLAN tag. It returns false,
 * having counted nothing, for anything else. The order and the hints keep the way of TCP
 * over IPv4 short.
 */
static __always_inline bool plain(struct __sk_buff *skb, struct row *row, __u32 len,
				  const enum place place)
{
	void *end = (void *)(long)skb->data_end;
	void *ip = (void *)(long)skb->data + place;
	__u32 there = len - place;

	/* As long as IPv6, and as IPv4 and TCP. */
	if (unlikely(ip + sizeof(struct ipv6hdr) > end || skb->gso_size || skb->vlan_present))
		return false;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *v4 = ip;
		__u32 length = bpf_ntohs(v4->tot_len);

		if (unlikely((*(__u8 *)v4 ^ 0x45) | (v4->frag_off & bpf_htons(0x1fff))))
			return false;
		if (unlikely(length > there))
			return false;
		if (likely(v4->protocol == IPPROTO_TCP))
			return plain_tcp(row, (void *)(v4 + 1), end,
					 (__s32)length - (__s32)sizeof(*v4),
					 IPV4 * PLAIN_PROTOCOLS + TCP, len, place);
		if (v4->protocol == IPPROTO_UDP && length >= sizeof(*v4))
			return count_plain(row, IPV4 * PLAIN_PROTOCOLS + UDP, len, place);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *v6 = ip;
		__u32 room = bpf_ntohs(v6->payload_len);

		if (*(__u8 *)v6 >> 4 != 6 || room > there - sizeof(*v6))
			return false;
		if (v6->nexthdr == IPPROTO_TCP)
			return plain_tcp(row, (void *)(v6 + 1), end, room,
					 IPV6 * PLAIN_PROTOCOLS + TCP, len, place);
		if (v6->nexthdr == IPPROTO_UDP)
			return count_plain(row, IPV6 * PLAIN_PROTOCOLS + UDP, len, place);
	}
	return false;
}

#include "packet.h"
#include "tunnel.h"

/* read_headers reads any packet, and what is in it if it is a tunnel's super-packet. The kernel
 * has taken the outermost VLAN tag out of most frames already (skb->vlan_present).
 */
static __always_inline struct packet read_headers(struct __sk_buff *skb, __u32 offset)
{
	__u32 tags = skb->vlan_present ? 1 : 0;
	struct packet p = unpack(read_frame(skb, skb->protocol, offset, tags));
	struct packet inner;
	__u64 packed;

	if (!skb->gso_size || p.trouble != FINE || p.next == IPPROTO_TCP ||
	    p.segmentation != BY_SIZE)
		return p;
	packed = inner_of_transport(skb, p.next, p.begins);
	if (!packed)
		return p;
	inner = unpack(packed);
	p.headers = inner.headers;
	p.jumbo = inner.jumbo;
	p.segmentation = inner.segmentation;
	return p;
}

/* segments_of says how many segments a super-packet stands for: as many as its payload fills.
 * The kernel's own count may be less, where a part of that are a tunnel's inner headers. It
 * is never believed to be more: of a forged packet the kernel works it out anew from lengths
 * that have headers in them. Packets from outside the kernel (tap, packet sockets) have none.
 *
 * SCTP's packets differ in length. Each has at least a header of a chunk and some data.
 */
static __always_inline __u32 segments_of(struct __sk_buff *skb, const struct packet *p,
					 __u32 payload)
{
	__u32 said = skb->gso_segs;
	__u32 size = skb->gso_size;
	__u32 filled;

	if (size == GSO_BY_FRAGS && p->segmentation == SCTP_CHUNKS) {
		size = LEAST_GSO_SIZE;
		if (!said)
			return 1;
	}
	filled = filled_by(payload, size);
	return said && said < filled ? said : filled;
}

/* wire says what the packet is on a wire: a super-packet is the segments it stands for, each
 * with headers of its own, and a VLAN tag is 4 bytes wherever the kernel keeps it.
 * skb->wire_len is no help: on ingress it leaves the headers out (net/core/dev.c,
 * qdisc_pkt_len_init). Returns the trouble that the packet is counted under.
 *
 * No packet counts for more than 87 times skb->len. With h bytes of headers, those in a tunnel
 * among them, and s of payload
 * in each of n segments that is n(h + s) of h + ns, which grows with h and n: at most 33
 * from 8 bytes of payload on, and 128 * 257 of 380 below, with a tag that skb->len has not.
 */
static __always_inline __u32 wire(struct __sk_buff *skb, const struct packet *p, struct volume *v)
{
	__u32 tag = tag_size(skb);
	__u32 headers = p->headers + tag;
	__u32 fixed = p->headers + p->jumbo;
	__u32 segments;

	v->bytes = skb->len + tag;
	v->packets = 1;
	if (!skb->gso_size || p->trouble != FINE || skb->len <= fixed)
		return p->trouble;
	segments = segments_of(skb, p, skb->len - fixed);
	if (segments <= 1)
		return FINE;
	if (p->segmentation == NEVER || headers > MAX_HEADERS ||
	    (skb->gso_size < LEAST_GSO_SIZE && segments > MAX_TINY_SEGMENTS))
		return IMPLAUSIBLE_GSO;
	v->packets = segments;
	v->bytes += (__u64)(segments - 1) * headers - p->jumbo;
	return FINE;
}

static __always_inline void count_headers(struct __sk_buff *skb, struct row *row,
					  const enum place place)
{
	struct packet p = read_headers(skb, place);
	struct volume v;
	__u32 trouble = wire(skb, &p, &v);

	add(&row->interface.bytes, skb->len, place);
	add(&row->interface.packets, 1, place);
	if (trouble != FINE)
		count_trouble(trouble);
	if (p.cell < CELLS)
		add_volume(&row->cells[p.cell], v, place);
	count_flags(row, p.tcp_flags, place);
}

/* count_any counts the packets that are not plain. A function of its own keeps it out of
 * the way of those, and its parameter brings struct row into the object's BTF, which
 * clang would leave out where only an inner map names it.
 */
static __noinline void count_any(struct __sk_buff *skb, struct row *row)
{
	count_headers(skb, row, INTERFACE);
}

/* count_any_ip is count_any for packets without an Ethernet header. */
static __noinline void count_any_ip(struct __sk_buff *skb, struct row *row)
{
	count_headers(skb, row, CGROUP);
}

/* account adds a packet to its slot, and says whether it did. */
static __always_inline bool account(struct __sk_buff *skb, __u32 slot, enum direction direction)
{
	struct row *row = row_of(slot, direction);

	if (unlikely(!row)) {
		/* User space makes the row before it attaches us, so this is a bug
		 * there. An undercount nobody can see would be worse.
		 */
		count_trouble(NO_ROW);
		return false;
	}
	if (unlikely(!plain(skb, row, skb->len, INTERFACE)))
		count_any(skb, row);
	return true;
}

/* While an interface is handed over from a filter to tcx, or back, a packet may meet
 * both. tcx comes first: it leaves a mark in cb, which is free for programs to use, and
 * nothing writes there before the filters of the same hook run. The mark is what "n" and
 * the direction begin.
 */
#define MARK(direction) (0x6e000000 | (direction) << 16)

/* handing_over says whether a mark may be believed. Where no tcx program has run, cb is
 * what an earlier user of the packet left there.
 */
static __noinline bool handing_over(__u32 slot)
{
	struct slot *kept = bpf_map_lookup_elem(&slots, &slot);

	return kept && kept->flags & HANDOVER;
}

/* account_filter counts for a filter. cls_bpf has put the minor number of its classid
 * into tc_classid (net/sched/cls_bpf.c): our slot.
 */
static __always_inline int account_filter(struct __sk_buff *skb, enum direction direction)
{
	__u32 slot = skb->tc_classid;

	if (unlikely((skb->cb[0] ^ slot) == MARK(direction)) && handing_over(slot))
		return TC_ACT_UNSPEC;
	account(skb, slot, direction);
	return TC_ACT_UNSPEC;
}

/* account_tcx counts for tcx. */
static __always_inline int account_tcx(struct __sk_buff *skb, enum direction direction)
{
	__u32 ifindex = skb->ifindex;
	__u32 *slot = bpf_map_lookup_elem(&routes, &ifindex);

	if (unlikely(!slot)) {
		count_trouble(NO_SLOT); /* a bug in user space, as NO_ROW */
		return TC_ACT_UNSPEC;
	}
	if (account(skb, *slot, direction))
		skb->cb[0] = MARK(direction) ^ *slot;
	return TC_ACT_UNSPEC;
}

/* What enters the host veth is what the container transmits; what leaves it is what the
 * container receives. The kernel keeps 15 bytes of the names.
 */
SEC("tc")
int nettally_ingress(struct __sk_buff *skb)
{
	return account_filter(skb, TRANSMIT);
}

SEC("tc")
int nettally_egress(struct __sk_buff *skb)
{
	return account_filter(skb, RECEIVE);
}

SEC("tc")
int nettally_tcx_in(struct __sk_buff *skb)
{
	return account_tcx(skb, TRANSMIT);
}

SEC("tc")
int nettally_tcx_eg(struct __sk_buff *skb)
{
	return account_tcx(skb, RECEIVE);
}

/* The kernel's number for loopback in every namespace, include/net/net_namespace.h. */
#define LOOPBACK_IFINDEX 1

enum { PASS = 1 }; /* kernel/bpf/cgroup.c: anything else drops the packet */

/* account_cgroup counts a packet of a socket in a cgroup, or in one below it; it begins with
 * its IP header. What passes loopback is seen twice, as it goes out and as it comes in, and
 * leaves the host in neither: it has the cell of what is no IP, which there is none of here.
 */
static __always_inline int account_cgroup(struct __sk_buff *skb, enum direction direction)
{
	__u32 *slot = bpf_get_local_storage(&members, 0);
	struct row *row = row_of(*slot, direction);

	if (unlikely(!row))
		count_trouble(NO_ROW);
	else if (skb->ifindex == LOOPBACK_IFINDEX)
		add_volume(&row->cells[NON_IP], (struct volume){ skb->len, 1 }, CGROUP);
	else if (unlikely(!plain(skb, row, skb->len, CGROUP)))
		count_any_ip(skb, row);
	return PASS;
}

SEC("cgroup_skb/ingress")
int nettally_cg_in(struct __sk_buff *skb)
{
	return account_cgroup(skb, RECEIVE);
}

SEC("cgroup_skb/egress")
int nettally_cg_eg(struct __sk_buff *skb)
{
	return account_cgroup(skb, TRANSMIT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
