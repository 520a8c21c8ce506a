// SPDX-License-Identifier: Apache-2.0

/* Calls on unix sockets by which TestSocketCalls shows what counts as what. It ends with 0 if
 * each call did what it was to do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DATAGRAMS = 5, SIZE = 10 };

static int failed(const char *what)
{
	perror(what);
	return 1;
}

/* Five datagrams by one system call each way, a look at one of them, and one that is not there. */
static int many(void)
{
	struct mmsghdr messages[DATAGRAMS] = {};
	struct iovec parts[DATAGRAMS];
	char text[DATAGRAMS][SIZE] = {};
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return failed("socketpair");
	for (int i = 0; i < DATAGRAMS; i++) {
		parts[i] = (struct iovec){text[i], SIZE};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	if (sendmmsg(pair[0], messages, DATAGRAMS, 0) != DATAGRAMS)
		return failed("sendmmsg");
	if (recv(pair[1], text[0], SIZE, MSG_PEEK) != SIZE)
		return failed("recv with MSG_PEEK");
	if (recvmmsg(pair[1], messages, DATAGRAMS, 0, NULL) != DATAGRAMS)
		return failed("recvmmsg");
	if (recv(pair[1], text[0], SIZE, MSG_DONTWAIT) != -1 || errno != EAGAIN)
		return failed("recv of nothing");
	return 0;
}

/* 7 bytes that are spliced from the socket, and the end of the connection. */
static int spliced(void)
{
	int pair[2], through[2];
	char text[7] = {};

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(through))
		return failed("socketpair");
	if (write(pair[0], text, sizeof text) != sizeof text)
		return failed("write");
	if (splice(pair[1], NULL, through[1], NULL, sizeof text, 0) != sizeof text)
		return failed("splice");
	close(pair[0]);
	return read(pair[1], text, sizeof text) ? failed("read of the end") : 0;
}

/* 9 bytes each way by io_uring. */
static int queued(void)
{
	struct io_uring_params params = {};
	int ring = syscall(SYS_io_uring_setup, 2, &params), pair[2];
	char text[9] = {};

	if (ring < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return failed("io_uring_setup");
	char *queue = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
			   MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE,
					    MAP_SHARED, ring, IORING_OFF_SQES);

	if (queue == MAP_FAILED || entries == MAP_FAILED)
		return failed("mmap of io_uring");
	unsigned *tail = (unsigned *)(queue + params.sq_off.tail), *array = (unsigned *)(queue + params.sq_off.array);

	for (unsigned i = 0; i < 2; i++) {
		entries[i] = (struct io_uring_sqe){
			.opcode = i ? IORING_OP_RECV : IORING_OP_SEND,
			.fd = pair[i],
			.addr = (unsigned long)text,
			.len = sizeof text,
		};
		array[i] = i;
		__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
		if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
			return failed("io_uring_enter");
	}
	return 0;
}

int main(void) { return many() || spliced() || queued(); }
