// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* What is in a tunnel's super-packet, and the bounds of what is believed of any. classifier.c
 * includes this once, behind packet.h.
 */

/* A super-packet is believed if the kernel's own stack could have made it. Whoever may open a
 * packet socket, as Docker's containers may, can give any frame any gso_size
 * (PACKET_VNET_HDR), and the headers of another's packets are that one's to pay.
 */
#define MAX_HEADERS 256	      /* with tags; Ethernet, two tags, IPv4 and TCP have at most 142 */
#define LEAST_GSO_SIZE 8      /* TCP_MIN_GSO_SIZE, include/net/tcp.h */
#define MAX_TINY_SEGMENTS 128 /* UDP_MAX_SEGMENTS: UDP_SEGMENT takes sizes down to 1 */
#define GSO_BY_FRAGS 0xFFFF   /* include/linux/skbuff.h */

static __always_inline __u32 tag_size(struct __sk_buff *skb)
{
	return skb->vlan_present ? 4 : 0;
}

/* filled_by says how many segments a payload fills. */
static __always_inline __u32 filled_by(__u32 payload, __u32 size)
{
	return (payload + size - 1) / size;
}

/* inner_frame reads a frame or packet in a tunnel, and returns it packed. Its headers are all
 * those before the payload, the outer ones too. It returns 0 if there is none.
 *
 * Nothing says that a super-packet is a tunnel's: programs see neither gso_type nor
 * skb->encapsulation. But if it is one, the length in the inner header is that of all the rest.
 * In one of UDP_SEGMENT whose datagrams hold packets it is that of the first one. Who makes such
 * a one look like a tunnel's gains little: the kernel says how many segments it has, which are
 * more than what is behind the inner headers fills, if these are longer than a segment.
 */
__noinline __u64 inner_frame(struct __sk_buff *skb, __u32 ether_type, __u32 offset)
{
	__be16 type = ether_type;
	__u32 size = skb->gso_size;
	struct packet p;
	__u32 fixed;

	if (type == bpf_htons(ETH_P_TEB)) {
		offset += ETH_HLEN;
		if (bpf_skb_load_bytes(skb, offset - sizeof(type), &type, sizeof(type)))
			return 0;
	}
	p = unpack(read_frame(skb, type, offset, 0));
	if (p.trouble != FINE || !p.exact)
		return 0;
	if (p.next != IPPROTO_TCP && p.next != IPPROTO_UDP && p.next != IPPROTO_SCTP)
		return 0;
	fixed = p.headers + p.jumbo;
	if (p.headers + tag_size(skb) > MAX_HEADERS || skb->len <= fixed || !size)
		return 0;
	if (size != GSO_BY_FRAGS && skb->gso_segs > filled_by(skb->len - fixed, size))
		return 0;
	return pack(&p);
}

/* inner_packet is inner_frame for what begins with an IP header. */
static __always_inline __u64 inner_packet(struct __sk_buff *skb, __u32 version, __u32 offset)
{
	return inner_frame(skb, version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6), offset);
}

/* Flags of GRE, RFC 2784 and 2890: each stands for a field of four bytes. */
#define GRE_CHECKSUM 0x8000
#define GRE_KEY 0x2000
#define GRE_SEQUENCE 0x1000

static __noinline __u64 inner_of_gre(struct __sk_buff *skb, __u32 offset)
{
	struct {
		__be16 flags;
		__be16 type;
	} gre;
	__u32 flags;

	if (bpf_skb_load_bytes(skb, offset, &gre, sizeof(gre)))
		return 0;
	flags = bpf_ntohs(gre.flags);
	if (flags & ~(GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE))
		return 0;
	offset += sizeof(gre);
	offset += flags & GRE_CHECKSUM ? 4 : 0;
	offset += flags & GRE_KEY ? 4 : 0;
	offset += flags & GRE_SEQUENCE ? 4 : 0;
	return inner_frame(skb, gre.type, offset);
}

#define MAX_LABELS 4 /* of MPLS, 4 bytes each; the last one has a flag, RFC 3032 */
#define MPLS_BOTTOM 0x100

static __always_inline __u64 inner_of_mpls(struct __sk_buff *skb, __u32 offset)
{
	__be32 label = 0;
	__u8 version;

	for (int i = 0; i < MAX_LABELS && !(label & bpf_htonl(MPLS_BOTTOM)); i++) {
		if (bpf_skb_load_bytes(skb, offset, &label, sizeof(label)))
			return 0;
		offset += sizeof(label);
	}
	if (!(label & bpf_htonl(MPLS_BOTTOM)) ||
	    bpf_skb_load_bytes(skb, offset, &version, sizeof(version)))
		return 0;
	return inner_packet(skb, version >> 4, offset);
}

/* inner_of returns what is in a tunnel whose header has the number of a protocol. */
static __always_inline __u64 inner_of(struct __sk_buff *skb, __u32 number, __u32 offset)
{
	switch (number) {
	case IPPROTO_GRE:
		return inner_of_gre(skb, offset);
	case IPPROTO_IPIP:
		return inner_packet(skb, 4, offset);
	case IPPROTO_IPV6:
		return inner_packet(skb, 6, offset);
	}
	return 0;
}

/* inner_of_udp returns what is in a tunnel over UDP. Its ports are anybody's choice, so that the
 * header has to say what it is. What may be of two kinds is tried as both.
 */
static __always_inline __u64 inner_of_udp(struct __sk_buff *skb, __u32 offset)
{
	struct {
		__u8 first;
		__u8 second;
		__be16 type;
	} h;
	__u64 inner = 0;

	if (bpf_skb_load_bytes(skb, offset, &h, sizeof(h)))
		return 0;
	/* FOU, bare UDP, GUE of variant 1: an IP header. */
	if (h.first >> 4 == 4 || h.first >> 4 == 6)
		return inner_packet(skb, h.first >> 4, offset);
	/* GENEVE, RFC 8926: version 0 and words of options, two flags, an EtherType. */
	if (h.first < 0x40 && !(h.second & 0x3f))
		inner = inner_frame(skb, h.type, offset + 8 + h.first * 4);
	/* FOU of GRE. */
	if (!inner)
		inner = inner_of_gre(skb, offset);
	/* GUE of variant 0: no control message and words of options, a protocol. */
	if (!inner && h.first < 0x20)
		inner = inner_of(skb, h.second, offset + 4 + h.first * 4);
	/* VXLAN, RFC 7348: has a network's number. With GPE there may be IP behind it. */
	if (!inner && h.first & 0x08) {
		__u32 gpe = h.first & 0x04 ? bpf_ntohs(h.type) & 0xff : 0;

		if (gpe == 1 || gpe == 2)
			inner = inner_packet(skb, gpe == 1 ? 4 : 6, offset + 8);
		else
			inner = inner_frame(skb, bpf_htons(ETH_P_TEB), offset + 8);
	}
	return inner;
}

/* inner_of_transport returns what is in a super-packet behind a header of some number, packed,
 * or 0. The kernel makes no super-packet of a tunnel in a tunnel: those are cut up before.
 */
__noinline __u64 inner_of_transport(struct __sk_buff *skb, __u32 number, __u32 offset)
{
	if (number == IPPROTO_UDP)
		return inner_of_udp(skb, offset + 8);
	if (number == IPPROTO_MPLS)
		return inner_of_mpls(skb, offset);
	return inner_of(skb, number, offset);
}
