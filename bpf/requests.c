//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

/* Counts what the sockets of a container's cgroup say to others at layer 7: requests and
 * responses of HTTP/1, streams of HTTP/2 in clear text, connections that begin with TLS, and
 * questions and answers of DNS. Two programs for a cgroup's packets, which let each packet pass.
 *
 * A connection's bytes are read once, in their order, by a machine of states that goes on with
 * the next packet where the last one ended: bodies are stepped over by their length, and what
 * is sent again is told by its sequence number. Where bytes of a message went by unseen, which
 * is counted as a resync, the machine goes on with the next message.
 *
 * What a container's sockets send is in order when it comes here. What they receive may not be:
 * the kernel sorts it afterwards (tcp_filter in tcp_v4_rcv, net/ipv4/tcp_ipv4.c).
 *
 * Only __sk_buff and uapi headers are used, so no kernel BTF is needed. Floor: Linux 5.17, for
 * bpf_loop.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "slots.h"

/* Direction as the container sees it. */
enum direction { RECEIVE, TRANSMIT, DIRECTIONS };

/* What is counted in one direction, by its place. */
enum request_counter {
	HTTP_REQUESTS, /* by method: those of RFC 9110 section 9 and PATCH, then all others */
	HTTP_RESPONSES = HTTP_REQUESTS + 10, /* by the first digit of the status, less 1 */
	HTTP2_STREAMS = HTTP_RESPONSES + 5,
	TLS_CLIENT_HELLOS,
	DNS_QUERIES,			  /* by type: as query_type has them */
	DNS_RESPONSES = DNS_QUERIES + 11, /* by code: 0 to 5, then all others */
	RESYNCS = DNS_RESPONSES + 7,	  /* by cause */
	REQUEST_COUNTERS = RESYNCS + 5
};

enum method { GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH, OTHER_METHOD };

/* Why bytes of a connection's messages were not read. */
enum resync {
	JOINED,	   /* it was there before us */
	GAP,	   /* bytes went by unseen: they came out of order, or our program was off */
	MALFORMED, /* no message of HTTP */
	TOO_LONG,  /* a message's header is longer than MAX_HEADER */
	PIPELINED  /* which request a response belongs to was forgotten: too many were under way */
};

enum query_type {
	TYPE_A,
	TYPE_NS,
	TYPE_CNAME,
	TYPE_SOA,
	TYPE_PTR,
	TYPE_MX,
	TYPE_TXT,
	TYPE_AAAA,
	TYPE_SRV,
	TYPE_HTTPS,
	TYPE_OTHER
};

enum { RCODE_OTHER = 6 };

/* What was counted for a cgroup. */
struct requests {
	__u64 numbers[DIRECTIONS][REQUEST_COUNTERS];
};

/* Which generation of a slot counts a cgroup, and what each has counted. User space makes and
 * removes both. Nobody but these programs counts here, and not for each packet, so that the
 * CPUs share a number.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS / 2);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);   /* cgroup id */
	__type(value, __u64); /* generation */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} request_members SEC(".maps");

/* The same, of the cgroup that a program runs for: datagrams have no state that would tell the
 * programs of nested cgroups that they were read.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);   /* cgroup id */
	__type(value, __u64); /* generation */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} request_own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SLOTS / 2);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* generation */
	__type(value, struct requests);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} request_counts SEC(".maps");

/* How far the machine has come with a message. */
enum stage {
	UNMET,	   /* nothing of this stream was read yet */
	IGNORE,	   /* nothing more of this stream is read */
	FRESH,	   /* at a connection's first byte */
	HELLO,	   /* in what may be a record of TLS */
	MESSAGE,   /* at a message's first byte */
	LOST,	   /* bytes were not seen: looking for a message */
	TARGET,	   /* behind a request's method */
	PREFACE,   /* behind the first line of HTTP/2's, RFC 9113 section 3.4 */
	STATUS,	   /* behind a response's "HTTP/" */
	REASON,	   /* behind the digits of the status */
	NAME,	   /* in the name of a header field */
	LENGTH,	   /* in the value of Content-Length */
	CODING,	   /* in that of Transfer-Encoding */
	FIELD,	   /* in the rest of a field */
	CHUNK,	   /* in the line with a chunk's size */
	EXTENSION, /* behind the size in it */
	TRAILER,   /* at the first byte of a line behind the last chunk */
	TRAILERS,  /* in the rest of that line */
	FRAME,	   /* in the header of a frame of HTTP/2 */
	DNS_SIZE,  /* in the length that is before a message in TCP */
	DNS_HEAD,  /* in a message's header */
	DNS_NAME,  /* at a label of the name that is asked for */
	DNS_TYPE   /* behind the name */
};

/* What is known of how a message is framed, and until its first line is read: whether one is only
 * looked for, and whether it would be the connection's first.
 */
enum framing {
	BY_LENGTH = 1,
	CHUNKED = 2,
	OTHERWISE = 4,
	INVALID = 8,
	RESPONSE = 16,
	TRIED = 32,
	FIRST = 64
};

/* One direction of a connection. */
struct stream {
	__u64 skip;   /* bytes to step over before the stage goes on */
	__u64 length; /* of the body, the chunk or the message */
	__u64 token;  /* the last 8 bytes of a line or a header */
	__u32 next;   /* the sequence number of the next byte */
	__u32 header; /* bytes of the message's header so far */
	__u32 id;     /* the last stream of HTTP/2; id, flags or count of a message of DNS */
	__u16 status;
	__u8 stage;
	__u8 have; /* bytes of the token, or of a name */
	__u8 framing;
	__u8 method;
	__u8 matches;  /* which names of header fields it may be */
	__u8 owed;     /* the resync to be counted when a message is found, and 1; 0 for none */
	__u32 hole;    /* the sequence number where a gap before received bytes ended */
	__u32 through; /* the tunnels that have begun, as far as this direction knows */
};

/* How many requests may wait for their responses. */
#define ASKED 64

struct connection {
	struct stream streams[DIRECTIONS];
	__u32 busy[DIRECTIONS];	 /* a CPU is at it */
	__u32 heard[DIRECTIONS]; /* the other side has sent something since the stream is lost */
	__u32 requests;
	__u32 responses;
	__u32 tunnels;	   /* that have begun: behind CONNECT, or Upgrade */
	__u8 asked[ASKED]; /* the methods of requests, in their order */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connection);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} request_connections SEC(".maps");

/* What one packet has said. */
struct said {
	__u16 numbers[REQUEST_COUNTERS];
};

/* How many requests of a packet wait with it. */
#define FIRST_ASKED 8

/* The handshake's last packet passes the listener, and may have data (tcp_v4_rcv). What it said
 * waits for the connection here, which knows what it has received by then. Whoever sends such
 * packets without a connection only drives out what others wait for: these are resyncs then.
 */
struct flow {
	__u16 remote;
	__u16 local;
	__u32 next;
};

struct first {
	struct stream s;
	__u32 requests;
	struct said said;
	__u8 asked[FIRST_ASKED];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow);
	__type(value, struct first);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} request_firsts SEC(".maps");

/* What is counted, set at load. */
const volatile bool count_http, count_dns, count_tls, all_ports;

/* The ports that HTTP and TLS are counted on, a bit each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / 64);
	__type(key, __u32);
	__type(value, __u64);
} request_ports SEC(".maps");

/* Brings the enums into the object's BTF, as in classifier.c. */
static const struct {
	enum request_counter counter;
	enum method method;
	enum resync resync;
	enum query_type type;
} shared __attribute__((used, section("enums")));

enum {
	PASS = 1,
	MAX_HEADER = 64 << 10,
	BUFFER = 64,
	LISTEN = 10,
	STREAM = 1,
	DATAGRAM = 2,
	DNS_PORT = 53,
	DEEPEST = 32
};

/* walk is a packet's way through the machine. It is in a map and not on the stack, where the
 * verifier would follow each of its numbers.
 */
struct walk {
	__u32 busy; /* on its way */
	__u32 direction;
	__u32 pos; /* of the next byte in the packet */
	__u32 end;
	__u32 base; /* of the buffer's first byte */
	__u32 filled;
	__u32 says; /* something, in this packet */
	__u32 lost; /* its stream was, in this packet */
	__u32 late; /* bytes before it have not come */
	struct first of;
	__u8 buffer[BUFFER + 8];
};

/* How many packets may be on their way on a CPU: one that a process sends can be interrupted, by
 * another process as well.
 */
#define WALKS 16

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WALKS);
	__type(key, __u32);
	__type(value, struct walk);
} request_walks SEC(".maps");

/* way is what a callback of bpf_loop needs. */
struct way {
	struct __sk_buff *skb;
	struct walk *w;
	struct connection *connection; /* NULL for none */
};

static __always_inline void say(struct walk *w, __u32 counter)
{
	/* For the verifier, which knows less than the compiler: that would leave the check out. */
	asm volatile("" : "+r"(counter));
	if (counter >= REQUEST_COUNTERS)
		return;
	w->of.said.numbers[counter]++;
	w->says = true;
}

static __always_inline bool is_token(__u8 c)
{
	/* RFC 9110 section 5.6.2 */
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= '^' && c <= 'z') ||
	       c == '!' || (c >= '#' && c <= '\'') || c == '*' || c == '+' || c == '-' ||
	       c == '.' || c == '|' || c == '~';
}

/* begin brings a stream to the first byte of something. */
static __always_inline void begin(struct stream *s, __u8 stage)
{
	s->stage = stage;
	s->have = 0;
	s->token = 0;
}

static __always_inline void begin_message(struct stream *s, __u8 stage)
{
	begin(s, stage);
	s->header = 0;
	s->framing = 0;
	s->length = 0;
	s->status = 0;
}

/* lose gives a stream up until its next message. What was only tried is as lost as before. */
static __always_inline void lose(struct walk *w, __u8 cause)
{
	struct stream *s = &w->of.s;

	if (!(s->framing & TRIED)) {
		say(w, RESYNCS + cause);
		w->lost = true;
	}
	begin_message(s, LOST);
	s->skip = 0;
	w->pos = w->end;
}

/* refuse gives up what is no message: of a connection that begins so nothing is read. */
static __always_inline void refuse(struct walk *w, bool first)
{
	if (first)
		w->of.s.stage = IGNORE;
	else
		lose(w, MALFORMED);
}

#define WORD3(a, b, c) ((__u64)(a) << 16 | (b) << 8 | (c))
#define WORD4(a, b, c, d) (WORD3(a, b, c) << 8 | (d))
#define WORD8(a, b, c, d, e, f, g, h) ((__u64)WORD4(a, b, c, d) << 32 | WORD4(e, f, g, h))

/* PRI is no method, and begins HTTP/2. UNSEEN is that of a request that went by. */
enum { PRI = OTHER_METHOD + 1, UNSEEN };

static __always_inline __u8 method_of(__u64 token, __u8 have)
{
	if (have > 8)
		return OTHER_METHOD;
	switch (token) {
	case WORD3('G', 'E', 'T'):
		return GET;
	case WORD4('H', 'E', 'A', 'D'):
		return HEAD;
	case WORD4('P', 'O', 'S', 'T'):
		return POST;
	case WORD3('P', 'U', 'T'):
		return PUT;
	case WORD4('D', 'E', 'L', 'E') << 16 | 'T' << 8 | 'E':
		return DELETE;
	case WORD4('C', 'O', 'N', 'N') << 24 | WORD3('E', 'C', 'T'):
		return CONNECT;
	case WORD4('O', 'P', 'T', 'I') << 24 | WORD3('O', 'N', 'S'):
		return OPTIONS;
	case WORD4('T', 'R', 'A', 'C') << 8 | 'E':
		return TRACE;
	case WORD4('P', 'A', 'T', 'C') << 8 | 'H':
		return PATCH;
	case WORD3('P', 'R', 'I'):
		return PRI;
	}
	return OTHER_METHOD;
}

static __always_inline void shift(struct stream *s, __u8 c)
{
	s->token = s->token << 8 | c;
	if (s->have < 255)
		s->have++;
}

/* read_hello reads the beginning of a record: its type, a version and a length; then the message's
 * type (RFC 8446 sections 5.1 and 4).
 */
static __always_inline void read_hello(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	shift(s, c);
	if (s->have < 6)
		return;
	if ((s->token >> 32 & 0xff) == 3 && (s->token & 0xff) == 1)
		say(w, TLS_CLIENT_HELLOS);
	s->stage = IGNORE;
}

/* read_first reads the first bytes of a message, fresh where they are a connection's. */
static __always_inline void read_first(struct walk *w, __u8 c, bool fresh)
{
	struct stream *s = &w->of.s;

	if (fresh && !s->have) {
		s->framing |= FIRST;
		if (c == 0x16 && count_tls) { /* a handshake */
			begin(s, HELLO);
			shift(s, c);
			return;
		}
		if (!count_http) {
			s->stage = IGNORE;
			return;
		}
	}
	if (!s->have && (c == '\r' || c == '\n'))
		return; /* RFC 9112 section 2.2 */
	if (c == '/' && s->have == 4 && s->token == WORD4('H', 'T', 'T', 'P')) {
		begin(s, STATUS);
		return;
	}
	if (c == ' ' && s->have) {
		s->method = method_of(s->token, s->have);
		begin(s, TARGET);
		return;
	}
	if (!is_token(c) || s->have >= 128) {
		refuse(w, fresh);
		return;
	}
	shift(s, c);
}

/* found says that the first line of a message is one. */
static __always_inline void found(struct walk *w)
{
	struct stream *s = &w->of.s;

	if (s->owed)
		say(w, RESYNCS + s->owed - 1);
	s->owed = 0;
	s->framing = 0;
}

/* ask notes a request, whose response has a body or has none. */
static __always_inline void ask(struct way *way, __u8 method)
{
	struct connection *c = way->connection;
	struct walk *w = way->w;
	__u32 at, waiting;

	if (!c) {
		at = w->of.requests++;
		if (at < FIRST_ASKED)
			w->of.asked[at] = method;
		return;
	}
	at = c->requests;
	waiting = at - c->responses;
	if (waiting >= ASKED && c->asked[at % ASKED] != method)
		say(w, RESYNCS + PIPELINED);
	c->asked[at % ASKED] = method;
	__sync_fetch_and_add(&c->requests, 1);
}

/* answered returns the method of the request that a response belongs to: of too many that wait, the
 * one in its place, which was the same unless a resync was told.
 */
static __always_inline __u8 answered(struct connection *c, bool resumed)
{
	__u32 at;

	if (!c)
		return OTHER_METHOD;
	at = c->responses;
	if (at == c->requests)
		return UNSEEN;
	if (resumed)
		at = c->requests - 1;
	c->responses = at + 1;
	return c->asked[at % ASKED];
}

static __always_inline bool is_digit(__u8 c)
{
	return c >= '0' && c <= '9';
}

static __always_inline void read_target(struct way *way, __u8 c)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	bool first = s->framing & FIRST;

	if (c == '\r')
		return;
	if (c != '\n') {
		shift(s, c);
		return;
	}
	if (s->token == WORD8('H', 'T', 'T', 'P', '/', '2', '.', '0') && s->method == PRI &&
	    first) {
		begin(s, PREFACE);
		return;
	}
	if (s->have < 10 || !is_digit(s->token) ||
	    (s->token ^ WORD8('H', 'T', 'T', 'P', '/', '1', '.', 0)) >> 8) {
		refuse(w, first);
		return;
	}
	found(w);
	if (s->method > OTHER_METHOD)
		s->method = OTHER_METHOD;
	say(w, HTTP_REQUESTS + s->method);
	ask(way, s->method);
	begin(s, NAME);
}

static __always_inline void read_reason(struct way *way, __u8 c)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	bool resumed = s->framing & TRIED && !s->owed; /* bytes of other responses were lost */

	if (c != '\n')
		return;
	found(w);
	say(w, HTTP_RESPONSES + s->status / 100 - 1);
	s->framing = RESPONSE;
	if (s->status >= 200 || s->status == 101)
		s->method = answered(way->connection, resumed);
	begin(s, NAME);
}

static __always_inline void read_status(struct way *way, __u8 c)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	__u64 t;

	shift(s, c);
	if (s->have < 8)
		return;
	t = s->token; /* "1.1 200 ", or the end of the line behind the digits */
	if (t >> 48 != ('1' << 8 | '.') || !is_digit(t >> 40) || (t >> 32 & 0xff) != ' ' ||
	    !is_digit(t >> 24) || !is_digit(t >> 16) || !is_digit(t >> 8) ||
	    (t >> 24 & 0xff) < '1' || (t >> 24 & 0xff) > '5' ||
	    (c != ' ' && c != '\r' && c != '\n')) {
		refuse(w, s->framing & FIRST);
		return;
	}
	s->status = ((t >> 24 & 0xf) * 100 + (t >> 16 & 0xf) * 10 + (t >> 8 & 0xf));
	begin(s, REASON);
	if (c == '\n')
		read_reason(way, c);
}

static const char content_length[] = "content-length:", transfer_encoding[] = "transfer-encoding:";

enum { MAY_BE_LENGTH = 1, MAY_BE_CODING = 2 };

/* end_message is at the end of a message: whatever comes is the next one's. */
static __always_inline void end_message(struct walk *w)
{
	begin_message(&w->of.s, MESSAGE);
}

/* tunnel says that what follows in both directions is something of its own. */
static __always_inline void tunnel(struct stream *s, struct connection *c)
{
	if (c)
		s->through = __sync_fetch_and_add(&c->tunnels, 1) + 1;
	begin_message(s, FRESH);
}

/* end_header decides where a message's body ends: RFC 9112 section 6.3. */
static __always_inline void end_header(struct way *way)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	__u8 framing = s->framing;

	if (framing & INVALID) {
		lose(w, MALFORMED);
		return;
	}
	if (framing & RESPONSE) {
		if (s->status == 101 || (s->method == CONNECT && s->status / 100 == 2)) {
			tunnel(s, way->connection);
			return;
		}
		if (s->status < 200 || s->status == 204 || s->status == 304 || s->method == HEAD) {
			end_message(w);
			return;
		}
		if (s->method == UNSEEN) { /* it may have been HEAD: there is a body, or none */
			begin_message(s, LOST);
			return;
		}
		if (framing & OTHERWISE || !(framing & (CHUNKED | BY_LENGTH))) {
			s->stage = IGNORE; /* until the connection ends */
			return;
		}
	}
	if (framing & CHUNKED) {
		s->length = 0;
		begin(s, CHUNK);
		return;
	}
	s->skip = framing & BY_LENGTH ? s->length : 0;
	end_message(w);
}

static __always_inline void read_name(struct way *way, __u8 c)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	__u8 at = s->have;

	if (c == '\n') {
		if (at == 0)
			end_header(way);
		else
			begin(s, NAME);
		return;
	}
	if (c == '\r')
		return;
	if (at == 0)
		s->matches = MAY_BE_LENGTH | MAY_BE_CODING;
	if (c >= 'A' && c <= 'Z')
		c |= 0x20;
	if (at >= sizeof(content_length) - 1 || content_length[at] != c)
		s->matches &= ~MAY_BE_LENGTH;
	if (at >= sizeof(transfer_encoding) - 1 || transfer_encoding[at] != c)
		s->matches &= ~MAY_BE_CODING;
	s->have = at + 1;
	if (!s->matches) {
		begin(s, FIELD);
	} else if (c == ':') {
		if (s->matches & MAY_BE_LENGTH) {
			begin(s, LENGTH);
			if (s->framing & BY_LENGTH)
				s->framing |= INVALID; /* two lengths, even if they are equal */
			s->length = 0;
		} else {
			begin(s, CODING);
		}
	}
}

#define MAX_LENGTH (1ULL << 60)

static __always_inline void read_length(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	if (c == '\n') {
		s->framing |= s->have ? BY_LENGTH : INVALID;
		begin(s, NAME);
	} else if (is_digit(c) && s->length < MAX_LENGTH / 10) {
		s->length = s->length * 10 + (c & 0xf);
		s->have = 1;
	} else if (c != ' ' && c != '\t' && c != '\r') {
		s->framing |= INVALID;
	}
}

static __always_inline void read_coding(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	if (c == '\n') {
		s->framing &= ~(CHUNKED | OTHERWISE);
		s->framing |= s->token << 8 == WORD8('c', 'h', 'u', 'n', 'k', 'e', 'd', 0)
				      ? CHUNKED
				      : OTHERWISE;
		begin(s, NAME);
	} else if (c > ' ') {
		shift(s, c | 0x20);
	}
}

static __always_inline void end_chunk_line(struct walk *w)
{
	struct stream *s = &w->of.s;

	if (!s->have) {
		lose(w, MALFORMED);
		return;
	}
	if (!s->length) {
		begin(s, TRAILER);
		return;
	}
	s->skip = s->length + 2; /* and the end of the line behind it */
	s->length = 0;
	s->header = 0;
	begin(s, CHUNK);
}

static __always_inline void read_chunk(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;
	__u8 lower = c | 0x20;

	if (is_digit(c) || (lower >= 'a' && lower <= 'f')) {
		if (s->length >= MAX_LENGTH >> 4) {
			lose(w, MALFORMED);
			return;
		}
		s->length = s->length << 4 | (is_digit(c) ? c & 0xf : lower - 'a' + 10);
		s->have = 1;
	} else if (c == '\n') {
		end_chunk_line(w);
	} else if (c == ';' || c == ' ' || c == '\t') {
		s->stage = EXTENSION;
	} else if (c != '\r') {
		lose(w, MALFORMED);
	}
}

static __always_inline void read_trailer(struct walk *w, __u8 c)
{
	if (c == '\n')
		end_message(w);
	else if (c != '\r')
		w->of.s.stage = TRAILERS;
}

/* read_frame reads the header of a frame: RFC 9113 section 4.1. A stream is opened by the
 * client's HEADERS, with an id that is odd and higher than all before.
 */
static __always_inline void read_frame_header(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;
	__u32 id;

	shift(s, c);
	if (s->have == 3)
		s->length = s->token & 0xffffff;
	if (s->have < 9)
		return;
	id = s->token & 0x7fffffff;
	if ((s->token >> 40 & 0xff) == 1 && id & 1 && id > s->id) {
		s->id = id;
		say(w, HTTP2_STREAMS);
	}
	s->skip = s->length;
	begin(s, FRAME);
}

/* end_dns is behind what is counted of a message; the rest is stepped over. */
static __always_inline void end_dns(struct stream *s)
{
	s->skip = s->length;
	s->length = 0;
	begin(s, DNS_SIZE);
}

/* cut_dns is where a message ends before all of it was read. What has a header is a question. */
static __always_inline void cut_dns(struct walk *w)
{
	if (w->of.s.stage != DNS_HEAD)
		say(w, DNS_QUERIES + TYPE_OTHER);
	end_dns(&w->of.s);
}

static __always_inline void read_dns_size(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	shift(s, c);
	if (s->have < 2)
		return;
	s->length = s->token & 0xffff;
	begin(s, DNS_HEAD);
}

/* read_dns_head reads a header, RFC 1035 section 4.1.1: an id, flags, and how many questions
 * and answers there are.
 */
static __always_inline void read_dns_head(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;
	__u32 flags, code;

	s->length--;
	shift(s, c);
	if (s->have == 6)
		s->id = s->token;
	if (s->have < 12)
		return;
	flags = s->id >> 16;
	if (flags & 0x7800) { /* no standard query */
		end_dns(s);
		return;
	}
	if (flags & 0x8000) {
		code = flags & 0xf;
		say(w, DNS_RESPONSES + (code < RCODE_OTHER ? code : RCODE_OTHER));
		end_dns(s);
		return;
	}
	if ((s->id & 0xffff) == 0) { /* no question: a cookie alone (RFC 7873) */
		say(w, DNS_QUERIES + TYPE_OTHER);
		end_dns(s);
		return;
	}
	begin(s, DNS_NAME);
}

static __always_inline void read_dns_name(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	s->length--;
	if (c == 0) {
		begin(s, DNS_TYPE);
	} else if (c > 63 || c > s->length) { /* RFC 1035 section 3.1 */
		say(w, DNS_QUERIES + TYPE_OTHER);
		end_dns(s);
	} else {
		s->length -= c;
		s->skip = c;
	}
}

static __always_inline __u32 type_of(__u32 number)
{
	switch (number) {
	case 1:
		return TYPE_A;
	case 2:
		return TYPE_NS;
	case 5:
		return TYPE_CNAME;
	case 6:
		return TYPE_SOA;
	case 12:
		return TYPE_PTR;
	case 15:
		return TYPE_MX;
	case 16:
		return TYPE_TXT;
	case 28:
		return TYPE_AAAA;
	case 33:
		return TYPE_SRV;
	case 65:
		return TYPE_HTTPS;
	}
	return TYPE_OTHER;
}

static __always_inline void read_dns_type(struct walk *w, __u8 c)
{
	struct stream *s = &w->of.s;

	s->length--;
	shift(s, c);
	if (s->have < 2)
		return;
	say(w, DNS_QUERIES + type_of(s->token & 0xffff));
	end_dns(s);
}

/* read takes one byte in. */
static __always_inline void read(struct way *way, __u8 c)
{
	struct walk *w = way->w;
	struct stream *s = &w->of.s;

	switch (s->stage) {
	case FRESH:
		read_first(w, c, true);
		break;
	case HELLO:
		read_hello(w, c);
		break;
	case MESSAGE:
		read_first(w, c, false);
		break;
	case TARGET:
		read_target(way, c);
		break;
	case PREFACE: /* "\r\nSM\r\n\r\n" */
		shift(s, c);
		if (s->have < 8)
			break;
		if (s->token == WORD8('\r', '\n', 'S', 'M', '\r', '\n', '\r', '\n')) {
			s->id = 0;
			begin(s, FRAME);
		} else {
			s->stage = IGNORE;
		}
		break;
	case STATUS:
		read_status(way, c);
		break;
	case REASON:
		read_reason(way, c);
		break;
	case NAME:
		read_name(way, c);
		break;
	case LENGTH:
		read_length(w, c);
		break;
	case CODING:
		read_coding(w, c);
		break;
	case FIELD:
		if (c == '\n')
			begin(s, NAME);
		break;
	case CHUNK:
		read_chunk(w, c);
		break;
	case EXTENSION:
		if (c == '\n')
			end_chunk_line(w);
		break;
	case TRAILER:
		read_trailer(w, c);
		break;
	case TRAILERS:
		if (c == '\n')
			begin(s, TRAILER);
		break;
	case FRAME:
		read_frame_header(w, c);
		break;
	case DNS_SIZE:
		read_dns_size(w, c);
		break;
	case DNS_HEAD:
		read_dns_head(w, c);
		break;
	case DNS_NAME:
		read_dns_name(w, c);
		break;
	case DNS_TYPE:
		read_dns_type(w, c);
		break;
	}
}

#define ONES 0x0101010101010101ULL

/* has_line_feed says whether one of 8 bytes is one. */
static __always_inline bool has_line_feed(__u64 bytes)
{
	__u64 x = bytes ^ ONES * '\n';

	return (x - ONES) & ~x & ONES << 7;
}

/* fill reads the next bytes of the packet into the buffer. */
static __always_inline bool fill(struct __sk_buff *skb, struct walk *w)
{
	__u32 n = w->end - w->pos;

	if (n > BUFFER)
		n = BUFFER;
	/* For the verifier of Linux 6.1, which learns nothing from a comparison with 0. */
	n--;
	asm volatile("" : "+r"(n));
	n = (n & (BUFFER - 1)) + 1;
	if (bpf_skb_load_bytes(skb, w->pos, w->buffer, n))
		return false;
	w->base = w->pos;
	w->filled = n;
	return true;
}

/* step takes a byte in, or as many as nobody has to look at. */
static long step(__u32 index, void *context)
{
	struct way *way = context;
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	__u32 left = w->end - w->pos, at;

	(void)index;
	if (w->pos >= w->end || s->stage == IGNORE)
		return 1;
	if (s->skip) {
		__u32 n = s->skip < left ? s->skip : left;

		s->skip -= n;
		w->pos += n;
		return 0;
	}
	if (s->stage == LOST)
		return 1;
	at = w->pos - w->base;
	if (at >= w->filled) {
		if (!fill(way->skb, w)) {
			s->stage = IGNORE;
			return 1;
		}
		at = 0;
	}
	if (at >= BUFFER) /* for the verifier */
		return 1;
	if ((s->stage == FIELD || s->stage == REASON) && at + 8 <= w->filled) {
		__u64 bytes;

		__builtin_memcpy(&bytes, &w->buffer[at], sizeof(bytes));
		if (!has_line_feed(bytes)) {
			w->pos += 8;
			s->header += 8;
			return 0;
		}
	}
	if (s->stage >= DNS_HEAD && !s->length)
		cut_dns(w);
	w->pos++;
	if (++s->header > MAX_HEADER && s->stage >= TARGET && s->stage <= TRAILERS) {
		lose(w, TOO_LONG);
		return 1;
	}
	read(way, w->buffer[at]);
	return 0;
}

/* run reads a packet's bytes. Each step takes one at least. */
static __always_inline void run(struct way *way)
{
	__u32 most = way->w->end - way->w->pos + 1;

	if (most > 1 << 20)
		most = 1 << 20;
	bpf_loop(most, step, way, 0);
}

/* count adds what was said to the numbers of a container. The kernel verifies a global function
 * once, by itself.
 */
__noinline int count(struct requests *to, struct said *said, __u32 direction)
{
	if (!to || !said || direction >= DIRECTIONS)
		return 0;
	for (int i = 0; i < REQUEST_COUNTERS; i++) {
		if (said->numbers[i])
			__sync_fetch_and_add(&to->numbers[direction][i], said->numbers[i]);
	}
	return 0;
}

/* note counts what was said, for each container that the socket is in. */
__noinline int note(struct __sk_buff *skb, struct said *said, __u32 direction)
{
	for (int level = 1; level <= DEEPEST; level++) {
		__u64 cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		struct requests *to;
		__u64 *generation;

		if (!cgroup)
			return 0;
		generation = bpf_map_lookup_elem(&request_members, &cgroup);
		if (!generation)
			continue;
		to = bpf_map_lookup_elem(&request_counts, generation);
		if (to)
			count(to, said, direction);
	}
	return 0;
}

/* segment is what a packet's headers say. */
struct segment {
	__u32 payload; /* where it begins in the packet, and ends */
	__u32 end;
	__u32 seq;
	bool syn;
	__u16 from;
	__u16 to;
	__u8 protocol;
};

/* read_ip finds the transport header. It returns where that is, 0 if it is none that is read. */
static __always_inline __u32 read_ip(struct __sk_buff *skb, struct segment *g)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		__u32 length;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.frag_off & bpf_htons(0x1fff))
			return 0;
		length = bpf_ntohs(ip.tot_len);
		g->end = length && length < skb->len ? length : skb->len; /* 0: "BIG TCP" */
		g->protocol = ip.protocol;
		return ip.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		__u32 length, offset = sizeof(ip);

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return 0;
		length = bpf_ntohs(ip.payload_len);
		g->end = length && length + offset < skb->len ? length + offset : skb->len;
		g->protocol = ip.nexthdr;
		if (ip.nexthdr == IPPROTO_HOPOPTS) {
			__u8 option[2];

			if (bpf_skb_load_bytes(skb, offset, option, sizeof(option)))
				return 0;
			g->protocol = option[0];
			offset += (option[1] + 1) * 8;
		}
		return offset;
	}
	return 0;
}

static __always_inline bool read_tcp(struct __sk_buff *skb, __u32 at, struct segment *g)
{
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, at, &tcp, sizeof(tcp)))
		return false;
	g->payload = at + tcp.doff * 4;
	g->syn = tcp.syn;
	g->seq = bpf_ntohl(tcp.seq) + tcp.syn;
	g->from = bpf_ntohs(tcp.source);
	g->to = bpf_ntohs(tcp.dest);
	return true;
}

static __always_inline bool read_udp(struct __sk_buff *skb, __u32 at, struct segment *g)
{
	struct udphdr udp;

	if (bpf_skb_load_bytes(skb, at, &udp, sizeof(udp)))
		return false;
	g->payload = at + sizeof(udp);
	g->from = bpf_ntohs(udp.source);
	g->to = bpf_ntohs(udp.dest);
	return true;
}

static __always_inline bool has_port(__u32 port)
{
	__u32 index = port / 64;
	__u64 *ports = bpf_map_lookup_elem(&request_ports, &index);

	return ports && *ports & 1ULL << port % 64;
}

/* is_wanted says whether the connections between two ports are read. */
static __always_inline bool is_wanted(__u32 local, __u32 remote)
{
	if (count_dns && (local == DNS_PORT || remote == DNS_PORT))
		return true;
	if (!count_http && !count_tls)
		return false;
	return all_ports || has_port(local) || has_port(remote);
}

/* first_stage is where the streams of a connection begin. */
static __always_inline __u8 first_stage(__u32 local, __u32 remote)
{
	return count_dns && (local == DNS_PORT || remote == DNS_PORT) ? DNS_SIZE : FRESH;
}

/* join starts a stream in the middle of a connection. */
static __always_inline void join(struct connection *c, struct stream *s, __u32 direction,
				 __u8 stage)
{
	s->stage = IGNORE;
	if (stage != FRESH || !count_http)
		return;
	s->stage = LOST;
	s->owed = JOINED + 1;
	c->heard[direction & 1] = 1;
}

/* adopt takes over what the handshake's last packet said. */
static __always_inline bool adopt(struct way *way, struct bpf_sock *sk, __u32 next)
{
	struct flow flow = { .remote = bpf_ntohs(sk->dst_port),
			     .local = sk->src_port,
			     .next = next };
	struct first *of = bpf_map_lookup_elem(&request_firsts, &flow);
	struct connection *c = way->connection;

	if (!of)
		return false;
	note(way->skb, &of->said, RECEIVE);
	c->streams[RECEIVE] = of->s;
	c->requests = of->requests < ASKED ? of->requests : ASKED;
	for (int i = 0; i < FIRST_ASKED; i++)
		c->asked[i] = of->asked[i];
	bpf_map_delete_elem(&request_firsts, &flow);
	return true;
}

/* meet_received makes the stream of what a socket receives, when it has something in it. */
static __always_inline void meet_received(struct way *way, struct bpf_sock *sk,
					  struct bpf_tcp_sock *tcp)
{
	struct connection *c = way->connection;
	struct stream *s = &c->streams[RECEIVE];
	__u8 stage = first_stage(sk->src_port, bpf_ntohs(sk->dst_port));

	s->next = tcp->rcv_nxt;
	if (tcp->bytes_received == 0)
		s->stage = stage;
	else if (!adopt(way, sk, tcp->rcv_nxt))
		join(c, s, RECEIVE, stage);
}

/* meet_sent makes the stream of what a socket sends. It begins there if the peer has acknowledged
 * our SYN at most, and nobody has sent a SYN with data (RFC 7413) before it is acknowledged.
 */
static __always_inline void meet_sent(struct way *way, struct bpf_sock *sk,
				      struct bpf_tcp_sock *tcp, const struct segment *g)
{
	struct connection *c = way->connection;
	struct stream *s = &c->streams[TRANSMIT];
	__u8 stage = first_stage(sk->src_port, bpf_ntohs(sk->dst_port));

	s->next = g->seq;
	if (g->syn || (tcp->bytes_acked <= 1 && g->seq == tcp->snd_una))
		s->stage = stage;
	else
		join(c, s, TRANSMIT, stage);
}

/* How far ahead of what has arrived a packet may be that we believe. The kernel drops what is
 * outside of its window, which programs don't see: it may be as large as net.ipv4.tcp_rmem has it,
 * 6 MB unless that was raised.
 */
#define WINDOW (16 << 20)

/* A retransmission goes back no further than the largest window, RFC 7323 section 2.3. */
#define LARGEST_WINDOW (1 << 30)

/* is_believed says whether the kernel may take a packet. It comes here before it is checked. */
static __always_inline bool is_believed(const struct walk *w, const struct bpf_tcp_sock *tcp,
					const struct segment *g)
{
	__s32 ahead = g->seq + (g->end - g->payload) - tcp->rcv_nxt;

	return w->direction == TRANSMIT || ahead <= WINDOW;
}

/* heal moves a stream back that has run ahead of the kernel. The kernel did not accept bytes that we
 * read if it now expects bytes from behind a gap, or from far back.
 */
static __always_inline void heal(struct walk *w, const struct bpf_tcp_sock *tcp,
				 const struct segment *g)
{
	struct stream *s = &w->of.s;
	__s32 ahead = g->seq - s->next;
	bool again =
		w->direction == TRANSMIT
			? ahead < -LARGEST_WINDOW
			: g->seq == tcp->rcv_nxt &&
				  (ahead < -WINDOW || (s->hole && (__s32)(g->seq - s->hole) >= 0));

	if (ahead >= 0 || !again)
		return;
	s->hole = 0;
	s->next = g->seq - 1; /* a gap, of at least a byte */
}

/* place finds where a packet's payload goes on in its stream. It returns false where all of that
 * was there before.
 */
static __always_inline bool place(struct walk *w, const struct segment *g)
{
	struct stream *s = &w->of.s;
	__u32 size = g->end - g->payload;
	__s32 ahead = g->seq - s->next;

	w->pos = g->payload;
	w->end = g->end;
	if (ahead < 0) {
		if (-ahead >= (__s32)size)
			return false;
		w->pos += -ahead;
	}
	s->next = g->seq + size;
	if (ahead == 0)
		s->hole = 0; /* the kernel has what was ahead, too */
	if (ahead <= 0)
		return true;
	w->late = true;
	s->hole = g->seq | 1; /* which is not 0 */
	if (s->skip >= (__u64)ahead) {
		s->skip -= ahead; /* a body's bytes, which would not have been read */
	} else if (s->stage == FRESH) {
		s->stage = LOST; /* of what may be no HTTP */
		s->owed = GAP + 1;
	} else if (s->stage >= FRAME) {
		/* Where a frame or a message begins can't be found again. */
		if (s->stage == FRAME)
			say(w, RESYNCS + GAP);
		s->stage = IGNORE;
	} else if (s->stage != LOST && s->stage != IGNORE) {
		lose(w, GAP);
		w->pos = g->payload;
	}
	return true;
}

/* go_on reads what is next of a stream. */
static __always_inline void go_on(struct way *way)
{
	struct connection *c = way->connection;
	struct walk *w = way->w;
	struct stream *s = &w->of.s;
	__u32 tunnels = c->tunnels, direction = w->direction & 1;

	if (s->through != tunnels) {
		s->through = tunnels;
		if (s->stage == MESSAGE || s->stage == LOST)
			begin_message(s, FRESH);
	}
	/* A message begins with the first packet after one of the other side's, if that has come in
	 * order. Later ones may be a body's, which may look like messages.
	 */
	if (s->stage == LOST && !w->late && !w->lost && c->heard[direction]) {
		begin_message(s, MESSAGE);
		s->framing = TRIED;
	}
	run(way);
	if (s->framing & TRIED)
		begin_message(s, LOST);
	if (s->stage == LOST)
		c->heard[direction] = 0;
}

/* enter_stream locks a stream until leave_stream. It returns false if another CPU has it. */
static __always_inline bool enter_stream(struct connection *c, __u32 direction)
{
	return !__sync_lock_test_and_set(&c->busy[direction & 1], 1);
}

static __always_inline void leave_stream(struct connection *c, __u32 direction)
{
	__sync_lock_test_and_set(&c->busy[direction & 1], 0);
}

/* read_connection reads a packet of a connection. */
static __always_inline void read_connection(struct way *way, struct bpf_sock *sk,
					    const struct segment *g)
{
	struct walk *w = way->w;
	__u32 direction = w->direction & 1;
	struct bpf_tcp_sock *tcp;
	struct connection *c;
	struct stream *s;

	tcp = bpf_tcp_sock(sk);
	c = bpf_sk_storage_get(&request_connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	way->connection = c;
	if (!c || !tcp || !is_believed(w, tcp, g))
		return;
	s = &c->streams[direction];
	if (c->streams[!direction].stage == LOST)
		c->heard[!direction] = 1;
	if (s->stage == IGNORE)
		return;
	if (direction == TRANSMIT && c->streams[RECEIVE].stage == UNMET && tcp->bytes_received &&
	    enter_stream(c, RECEIVE)) {
		if (c->streams[RECEIVE].stage == UNMET)
			meet_received(way, sk, tcp);
		leave_stream(c, RECEIVE);
	}
	if (!enter_stream(c, direction))
		return; /* what it has is a gap then */
	if (s->stage == UNMET && direction == TRANSMIT)
		meet_sent(way, sk, tcp, g);
	else if (s->stage == UNMET)
		meet_received(way, sk, tcp);
	w->of.s = *s;
	heal(w, tcp, g);
	if (place(w, g)) {
		go_on(way);
		*s = w->of.s;
		if (w->says)
			note(way->skb, &w->of.said, direction);
	}
	leave_stream(c, direction);
}

/* How much of a packet that passes the listener is read: whoever has no connection may send it. */
#define MOST_BEFORE 4096

/* read_before reads data that arrives at the listener, before the connection exists. */
static __always_inline void read_before(struct way *way, const struct segment *g)
{
	struct flow flow = { .remote = g->from, .local = g->to };
	struct walk *w = way->w;

	if (g->end - g->payload > MOST_BEFORE)
		return; /* the connection is joined then */
	w->of.s.stage = first_stage(g->to, g->from);
	flow.next = w->of.s.next = g->seq + (g->end - g->payload);
	w->pos = g->payload;
	w->end = g->end;
	run(way);
	if (w->of.requests > FIRST_ASKED)
		say(w, RESYNCS + PIPELINED);
	bpf_map_update_elem(&request_firsts, &flow, &w->of, BPF_ANY);
}

/* read_datagram reads a message of DNS. */
static __always_inline void read_datagram(struct way *way, const struct segment *g)
{
	struct walk *w = way->w;

	__u64 *generation = bpf_get_local_storage(&request_own, 0);
	struct requests *to;

	w->of.s.stage = DNS_HEAD;
	w->of.s.length = g->end - g->payload;
	w->pos = g->payload;
	w->end = g->end;
	run(way);
	if (w->of.s.stage > DNS_HEAD)
		cut_dns(w);
	if (!w->says)
		return;
	to = bpf_map_lookup_elem(&request_counts, generation);
	if (to)
		count(to, &w->of.said, w->direction);
}

/* look reads a packet with payload. */
static __always_inline void look(struct way *way, struct bpf_sock *sk, const struct segment *g)
{
	if (g->protocol == IPPROTO_UDP)
		read_datagram(way, g);
	else if (sk->state != LISTEN)
		read_connection(way, sk, g);
	else if (way->w->direction == RECEIVE)
		read_before(way, g);
}

/* enter finds a place for a walk. */
static __always_inline void enter(struct __sk_buff *skb, struct bpf_sock *sk,
				  enum direction direction, const struct segment *g)
{
	for (__u32 i = 0; i < WALKS; i++) {
		__u32 key = i;
		struct way way = { .skb = skb, .w = bpf_map_lookup_elem(&request_walks, &key) };

		if (!way.w)
			return;
		if (__sync_lock_test_and_set(&way.w->busy, 1))
			continue;
		way.w->direction = direction;
		way.w->says = way.w->lost = way.w->late = way.w->filled = way.w->base = 0;
		__builtin_memset(&way.w->of, 0, sizeof(way.w->of));
		look(&way, sk, g);
		__sync_lock_test_and_set(&way.w->busy, 0);
		return;
	}
}

static __always_inline int pass(struct __sk_buff *skb, enum direction direction)
{
	struct bpf_sock *sk = skb->sk;
	struct segment g = {};
	__u32 at;
	bool wanted = false;

	if (!sk)
		return PASS;
	sk = bpf_sk_fullsock(sk);
	at = read_ip(skb, &g);
	if (!sk || !at)
		return PASS;
	if (g.protocol == IPPROTO_TCP && sk->type == STREAM)
		wanted = read_tcp(skb, at, &g) && g.payload < g.end &&
			 is_wanted(sk->src_port, bpf_ntohs(sk->dst_port));
	else if (g.protocol == IPPROTO_UDP && count_dns && sk->type == DATAGRAM)
		/* The packet's ports may be others than a connected socket's by now: a container's
		 * questions to Docker's own server are sent elsewhere (DNAT).
		 */
		wanted = read_udp(skb, at, &g) && g.payload < g.end &&
			 (g.from == DNS_PORT || g.to == DNS_PORT ||
			  bpf_ntohs(sk->dst_port) == DNS_PORT);
	if (wanted)
		enter(skb, sk, direction, &g);
	return PASS;
}

SEC("cgroup_skb/ingress")
int nettally_req_in(struct __sk_buff *skb)
{
	return pass(skb, RECEIVE);
}

SEC("cgroup_skb/egress")
int nettally_req_eg(struct __sk_buff *skb)
{
	return pass(skb, TRANSMIT);
}

char _license[] SEC("license") = "Dual BSD/GPL";
