// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* What the headers of a packet say. classifier.c includes this once, behind its enums. */

/* How the kernel cuts a super-packet with such headers up. */
enum segmentation {
	NEVER,	     /* its own stack makes none */
	BY_SIZE,     /* into payloads of gso_size bytes */
	SCTP_CHUNKS, /* where gso_size is GSO_BY_FRAGS, into the packets it was made of */
};

/* What the headers of a packet say. */
struct packet {
	__u32 cell;
	__u32 headers; /* bytes that each segment of a super-packet repeats */
	__u32 jumbo;   /* bytes of a header that only the super-packet has */
	__u32 tcp_flags;
	enum segmentation segmentation;
	__u32 trouble;
	bool exact;   /* the IP header says just the length that there is */
	__u32 next;   /* number of the header behind those of IP, if that could be reached */
	__u32 begins; /* where that header begins */
};

/* pack makes one number of what is known of a packet, as functions return it that the kernel
 * verifies by themselves. The headers of IPv6 are the longest, 16 KB; those of a packet in
 * another one, twice that.
 */
static __always_inline __u64 pack(const struct packet *p)
{
	return p->cell | p->jumbo << 4 | p->tcp_flags << 8 | p->next << 16 | p->segmentation << 24 |
	       p->trouble << 26 | p->exact << 29 | (__u64)p->headers << 32 | (__u64)p->begins << 48;
}

static __always_inline struct packet unpack(__u64 packed)
{
	__u32 low = packed;

	return (struct packet){
		.cell = low & 0xf,
		.jumbo = low >> 4 & 0xf,
		.tcp_flags = low >> 8 & 0xff,
		.next = low >> 16 & 0xff,
		.segmentation = low >> 24 & 0x3,
		.trouble = low >> 26 & 0x7,
		.exact = low >> 29 & 1,
		.headers = packed >> 32 & 0xffff,
		.begins = packed >> 48,
	};
}
_Static_assert(CELLS <= 1 << 4 && TROUBLES <= 1 << 3, "a packet can be packed");

static __always_inline __u32 protocol_of(__u8 number, __u8 icmp)
{
	switch (number) {
	case IPPROTO_TCP:
		return TCP;
	case IPPROTO_UDP:
		return UDP;
	}
	return number == icmp ? ICMP : OTHER;
}

/* header_size is what each segment repeats of a transport header without options. */
static __always_inline __u32 header_size(__u8 number)
{
	switch (number) {
	case IPPROTO_UDP:
		return 8;
	case IPPROTO_SCTP:
		return 12;
	}
	return 0;
}

/* segmentation_of says how super-packets of a protocol are cut up: BY_SIZE where the kernel has
 * a gso_segment callback for it (inet_add_offload and inet6_add_offload). Behind a header of
 * ESP are more headers, which each segment has and which are not counted.
 */
static __always_inline enum segmentation segmentation_of(__u8 number)
{
	switch (number) {
	case IPPROTO_TCP:
	case IPPROTO_UDP: /* UDP_SEGMENT, and tunnels: VXLAN, Geneve, … */
	case IPPROTO_GRE:
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_ESP:
		return BY_SIZE;
	case IPPROTO_SCTP:
		return SCTP_CHUNKS;
	}
	return NEVER;
}

/* read_transport reads the header behind the IP headers, of whose packet `room`
 * bytes are left.
 */
static __always_inline __u32 read_transport(struct __sk_buff *skb, __u8 next, __u32 offset,
					    __u32 room, struct packet *p)
{
	struct tcphdr tcp;

	p->next = next;
	p->begins = offset;
	p->headers += header_size(next);
	p->segmentation = segmentation_of(next);
	if (next != IPPROTO_TCP)
		return FINE;
	if (room < sizeof(tcp) || bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return TRUNCATED;
	if (tcp.doff < 5)
		return MALFORMED;
	if (tcp.doff * 4 > room)
		return TRUNCATED;
	p->headers += tcp.doff * 4;
	p->tcp_flags = ((__u8 *)&tcp)[13];
	return FINE;
}

/* The bytes of an IP packet, from its first header on: what it says, or what
 * there is where it says nothing (0: larger than 64 KB, "BIG TCP") or too much.
 */
static __always_inline __u32 real_length(__u32 said, __u32 there)
{
	return said && said < there ? said : there;
}

/* is_exact says whether a header says just the length that there is, as the kernel's own do
 * (iph_set_totlen, ip6_xmit): 0 where the field has no room for it.
 */
static __always_inline bool is_exact(__u32 said, __u32 there)
{
	return said == (there > 0xffff ? 0 : there);
}

static __always_inline __u32 read_ipv4(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct iphdr ip;
	__u32 length, header;

	p->cell = IPV4 * PROTOCOLS + OTHER;
	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return TRUNCATED;
	if (ip.version != 4 || ip.ihl < 5)
		return MALFORMED;
	p->cell = IPV4 * PROTOCOLS + protocol_of(ip.protocol, IPPROTO_ICMP);

	header = ip.ihl * 4;
	if (ip.tot_len && bpf_ntohs(ip.tot_len) < header)
		return MALFORMED;
	length = real_length(bpf_ntohs(ip.tot_len), skb->len - offset);
	p->exact = is_exact(bpf_ntohs(ip.tot_len), skb->len - offset);
	if (length < header)
		return TRUNCATED;
	p->headers = offset + header;
	if (ip.frag_off & bpf_htons(0x1fff)) /* a later fragment: no transport header */
		return FINE;
	return read_transport(skb, ip.protocol, offset + header, length - header, p);
}

/* As in the kernel's own walk, net/ipv6/exthdrs_core.c. */
static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT ||
	       next == IPPROTO_AH || next == IPPROTO_DSTOPTS;
}

/* struct hop_jumbo_hdr of net/ipv6.h. */
#define JUMBO_HEADER 8

/* Real packets have one or two; RFC 8200 section 4.1 knows five kinds. */
#define MAX_EXTENSIONS 8

static __always_inline __u32 read_ipv6(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct ipv6hdr ip;
	bool later = false;
	__u32 room, size;
	__u8 next;

	p->cell = IPV6 * PROTOCOLS + OTHER;
	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return TRUNCATED;
	if (ip.version != 6)
		return MALFORMED;
	offset += sizeof(ip);
	p->headers = offset;
	room = real_length(bpf_ntohs(ip.payload_len), skb->len - offset);
	p->exact = is_exact(bpf_ntohs(ip.payload_len), skb->len - offset);
	next = ip.nexthdr;

	for (int i = 0; i < MAX_EXTENSIONS && !later && is_extension(next); i++) {
		struct {
			__u8 next;
			__u8 length;
			__be16 fragment;
		} ext;

		if (room < 8 || bpf_skb_load_bytes(skb, offset, &ext, sizeof(ext)))
			return TRUNCATED;
		if (next == IPPROTO_FRAGMENT)
			size = 8;
		else if (next == IPPROTO_AH) /* RFC 4302 section 2.2 */
			size = (ext.length + 2) * 4;
		else
			size = (ext.length + 1) * 8;
		if (next == IPPROTO_AH && size < 12)
			return MALFORMED;
		if (size > room)
			return TRUNCATED;
		/* "BIG TCP": a super-packet above 64 KB says so in a jumbo payload
		 * option, which segmentation takes out. It is alone in its header, directly
		 * before TCP (ipv6_has_hopopt_jumbo): anything else stays.
		 */
		if (i == 0 && next == IPPROTO_HOPOPTS && !ip.payload_len && skb->gso_size &&
		    size == JUMBO_HEADER && ext.next == IPPROTO_TCP)
			p->jumbo = size;
		else
			p->headers += size;
		later = next == IPPROTO_FRAGMENT && ext.fragment & bpf_htons(0xfff8);
		next = ext.next;
		offset += size;
		room -= size;
	}
	if (!later && is_extension(next))
		return TOO_MANY_HEADERS;
	p->cell = IPV6 * PROTOCOLS + protocol_of(next, IPPROTO_ICMPV6);
	if (later) /* no transport header */
		return FINE;
	return read_transport(skb, next, offset, room, p);
}

static __always_inline bool is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* read_type reads what is behind the EtherType of a frame. Up to two VLAN tags are stepped over,
 * of which the kernel may have taken out some. Returns a trouble.
 */
static __always_inline __u32 read_type(struct __sk_buff *skb, __be16 type, __u32 offset, int tags,
				       struct packet *p)
{
	p->cell = NON_IP;
	p->headers = offset;
	for (; tags < 2 && is_vlan(type); tags++) {
		struct {
			__be16 tci;
			__be16 type;
		} tag;

		if (bpf_skb_load_bytes(skb, offset, &tag, sizeof(tag)))
			return TRUNCATED;
		type = tag.type;
		offset += sizeof(tag);
		p->headers = offset;
	}
	if (type == bpf_htons(ETH_P_IP))
		return read_ipv4(skb, offset, p);
	if (type == bpf_htons(ETH_P_IPV6))
		return read_ipv6(skb, offset, p);
	/* The kernel segments behind labels (net/mpls/mpls_gso.c), and a veth leaves that to
	 * whoever comes behind it. No other protocol without IP has both.
	 */
	if (type == bpf_htons(ETH_P_MPLS_UC) || type == bpf_htons(ETH_P_MPLS_MC)) {
		p->segmentation = BY_SIZE;
		p->next = IPPROTO_MPLS;
		p->begins = offset;
	}
	return FINE;
}

/* read_frame reads any frame, non-linear ones too, from behind its EtherType on. The kernel
 * verifies a global function once, by itself, however many call it.
 */
__noinline __u64 read_frame(struct __sk_buff *skb, __u32 type, __u32 offset, __u32 tags)
{
	struct packet p = {};

	p.trouble = read_type(skb, type, offset, tags & 3, &p);
	return pack(&p);
}
