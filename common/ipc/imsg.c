/* SPDX-License-Identifier: PostgreSQL */
/*
 * Typed messages with descriptors over a SOCK_SEQPACKET pair.
 *
 * Context: event thread of the supervisor or of a worker; one channel per socket.
 *
 * State:  OPEN --EOF, error, garbled, queue full--> ENDED (on_closed was or will be called, once)
 *         OPEN, ENDED --imsg_close--> gone (memory by ev_defer)
 *
 * Invariants:
 *   1. on_closed runs at most once, never from inside imsg_send, and not after imsg_close.
 *   2. Messages leave in the order of imsg_send: nothing is sent past a waiting queue.
 *   3. Every descriptor received is either taken by on_message or closed.
 *
 * On crash: the kernel closes the socket; the peer reads what was sent before, then EOF. A peer
 * that died with unread messages shows as one ECONNRESET ahead of its last words, which are
 * still read.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/imsg.h"

#define IMSG_CHANNEL_MAGIC 0x1359c4a1U
#define IMSG_HEADER_BYTES 16
#define IMSG_PACKET_MAX (IMSG_HEADER_BYTES + IMSG_BODY_MAX)
#define IMSG_READ_BUDGET 64 /* messages per callback, then the others have their turn */

MEM_TYPE(mem_imsg_channel, "imsg channel");
MEM_TYPE(mem_imsg_out, "imsg queued message");

struct imsg_out {
	struct list link;
	size_t len_bytes;
	int fds[IMSG_FDS_MAX];
	size_t n_fds;
	uint8_t packet[];
};

struct imsg_channel {
	uint32_t magic;
	struct ev_loop *loop;
	int fd;
	uint32_t generation;
	const struct imsg_ops *ops;
	void *arg;
	struct ev_io io;
	struct ev_deferred deferred; /* on_closed to be called, then the end of the memory */
	struct list out;
	size_t n_out;
	int end_err;
	bool ended;      /* nothing is read or sent any more */
	bool closed;     /* imsg_close was called: no callbacks */
	bool reset_seen; /* the one ECONNRESET ahead of a dead peer's last words */
	uint8_t packet[IMSG_PACKET_MAX + 1];
};

static void close_fds(int *fds, size_t n_fds)
{
	for (size_t i = 0; i < n_fds; i++) {
		if (fds[i] >= 0)
			(void)close(fds[i]); /* nothing to save: it was never ours to write */
		fds[i] = -1;
	}
}

static void out_free(struct imsg_channel *ch, struct imsg_out *out)
{
	list_remove(&out->link);
	ch->n_out--;
	close_fds(out->fds, out->n_fds);
	mem_free(&mem_imsg_out, out);
}

static void out_drop_all(struct imsg_channel *ch)
{
	while (!list_empty(&ch->out))
		out_free(ch, list_first(&ch->out, struct imsg_out, link));
}

static void on_ended(void *arg)
{
	struct imsg_channel *ch;
	OBJ_CAST(ch, arg, IMSG_CHANNEL_MAGIC);
	if (!ch->closed)
		ch->ops->on_closed(ch->end_err, ch->arg);
}

/* OPEN -> ENDED. on_closed comes at the end of this pass: the caller may be anywhere. */
static void channel_end(struct imsg_channel *ch, int err)
{
	if (ch->ended)
		return;
	ch->ended = true;
	ch->end_err = err;
	ev_io_stop(&ch->io);
	out_drop_all(ch);
	ev_defer(ch->loop, &ch->deferred, on_ended, ch);
}

/* 0, or -errno of sendmsg. */
static int send_packet(int fd, const void *packet, size_t len_bytes, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(IMSG_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)packet, .iov_len = len_bytes};
	struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
	if (n_fds > 0) {
		memset(&control, 0, sizeof(control));
		mh.msg_control = control.bytes;
		mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
	}
	ssize_t n;
	do
		n = sendmsg(fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* Queued messages go out until the socket is full. */
static void channel_write(struct imsg_channel *ch)
{
	while (!list_empty(&ch->out)) {
		struct imsg_out *out = list_first(&ch->out, struct imsg_out, link);
		int err = send_packet(ch->fd, out->packet, out->len_bytes, out->fds, out->n_fds);
		if (err == -EAGAIN)
			break;
		if (err == -EPIPE || err == -ECONNRESET) {
			/* The peer's last words may still be unread: the reader finds the end. */
			out_drop_all(ch);
			break;
		}
		if (err != 0) {
			channel_end(ch, err);
			return;
		}
		out_free(ch, out);
	}
	ev_io_set(&ch->io, ch->fd, list_empty(&ch->out) ? EV_READ : EV_READ | EV_WRITE);
}

int imsg_decode(const void *packet, size_t len_bytes, struct imsg *ret_msg)
{
	struct rd r = rd_make(packet, len_bytes);
	struct imsg m = {.type = rd_be32(&r)};
	uint32_t body_bytes = rd_be32(&r);
	m.id = rd_be32(&r);
	m.generation = rd_be32(&r);
	if (r.failed)
		return -ERR_TRUNCATED;
	if (body_bytes > IMSG_BODY_MAX || body_bytes != r.left_bytes)
		return -ERR_MALFORMED;
	m.body = r;
	for (size_t i = 0; i < IMSG_FDS_MAX; i++)
		m.fds[i] = -1;
	*ret_msg = m;
	return 0;
}

/* Descriptors out of the control data; -ERR_MALFORMED if some were lost on the way. */
static int collect_fds(struct msghdr *mh, struct imsg *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c != NULL; c = CMSG_NXTHDR(mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (msg->n_fds < IMSG_FDS_MAX)
				msg->fds[msg->n_fds++] = fd;
			else
				(void)close(fd); /* cannot be: the control buffer holds no more */
		}
	}
	return (mh->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ? -ERR_MALFORMED : 0;
}

/* 1: a packet in ch->packet; 0: nothing more now; negative: ended, with *ret_end the reason. */
static int receive_packet(struct imsg_channel *ch, struct imsg *msg, size_t *ret_len, int *ret_end)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(IMSG_FDS_MAX * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = ch->packet, .iov_len = sizeof(ch->packet)};
	struct msghdr mh = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes)};
	ssize_t n = recvmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0 && errno == ECONNRESET && !ch->reset_seen) {
		ch->reset_seen = true;
		n = recvmsg(ch->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		*ret_end = n == 0 || errno == ECONNRESET ? 0 : -errno;
		return -1;
	}
	int err = collect_fds(&mh, msg);
	if (err != 0) {
		*ret_end = err;
		return -1;
	}
	*ret_len = (size_t)n;
	return 1;
}

/* One message; false when there is no other to be had now. */
static bool channel_read_one(struct imsg_channel *ch)
{
	struct imsg with_fds = {.n_fds = 0};
	size_t len_bytes = 0;
	int err = 0;
	int got = receive_packet(ch, &with_fds, &len_bytes, &err);
	if (got == 0)
		return false;
	if (got > 0) {
		struct imsg msg;
		err = imsg_decode(ch->packet, len_bytes, &msg);
		if (err == 0 && (ch->generation == 0 || msg.generation == ch->generation)) {
			memcpy(msg.fds, with_fds.fds, with_fds.n_fds * sizeof(int));
			msg.n_fds = with_fds.n_fds;
			with_fds.n_fds = 0;
			err = ch->ops->on_message(&msg, ch->arg);
			close_fds(msg.fds, msg.n_fds);
		}
		got = err < 0 ? -1 : 1;
	}
	close_fds(with_fds.fds, with_fds.n_fds);
	if (got < 0 && !ch->closed)
		channel_end(ch, err);
	return !ch->ended;
}

static void on_io(int fd, short what, void *arg)
{
	struct imsg_channel *ch;
	OBJ_CAST(ch, arg, IMSG_CHANNEL_MAGIC);
	(void)fd; /* the same as ch->fd */
	if ((what & EV_WRITE) != 0)
		channel_write(ch);
	if ((what & EV_READ) == 0)
		return;
	for (int i = 0; i < IMSG_READ_BUDGET && !ch->ended; i++) {
		if (!channel_read_one(ch))
			break;
	}
}

struct imsg_channel *imsg_open(
	struct ev_loop *loop, int fd, uint32_t generation, const struct imsg_ops *ops, void *arg)
{
	struct imsg_channel *ch = mem_new(&mem_imsg_channel, sizeof(*ch));
	ch->magic = IMSG_CHANNEL_MAGIC;
	ch->loop = loop;
	ch->fd = fd;
	ch->generation = generation;
	ch->ops = ops;
	ch->arg = arg;
	list_init(&ch->out);
	ev_io_init(&ch->io, loop, "imsg", on_io, ch);
	int err = proc_set_nonblock(fd);
	if (err != 0)
		channel_end(ch, err);
	else
		ev_io_set(&ch->io, fd, EV_READ);
	return ch;
}

static void on_free(void *arg)
{
	struct imsg_channel *ch;
	OBJ_CAST(ch, arg, IMSG_CHANNEL_MAGIC);
	ch->magic = 0;
	mem_free(&mem_imsg_channel, ch);
}

void imsg_close(struct imsg_channel **chp)
{
	struct imsg_channel *ch = *chp;
	if (ch == NULL)
		return;
	OBJ_CHECK(ch, IMSG_CHANNEL_MAGIC);
	*chp = NULL;
	ASSERT(!ch->closed);
	ch->closed = true;
	ch->ended = true;
	ev_io_stop(&ch->io);
	out_drop_all(ch);
	(void)close(ch->fd); /* a socket: nothing is lost by an error here */
	ch->fd = -1;
	ev_defer_cancel(ch->loop, &ch->deferred);
	ev_defer(ch->loop, &ch->deferred, on_free, ch);
}

static struct imsg_out *out_new(
	const struct imsg_channel *ch, uint32_t type, uint32_t id, const struct buf *body)
{
	size_t body_bytes = body != NULL ? body->len_bytes : 0;
	struct imsg_out *out =
		mem_new(&mem_imsg_out, sizeof(*out) + IMSG_HEADER_BYTES + body_bytes);
	const uint32_t head[] = {type, (uint32_t)body_bytes, id, ch->generation};
	for (size_t i = 0; i < ARRAY_LEN(head); i++) {
		out->packet[4 * i] = (uint8_t)(head[i] >> 24);
		out->packet[4 * i + 1] = (uint8_t)(head[i] >> 16);
		out->packet[4 * i + 2] = (uint8_t)(head[i] >> 8);
		out->packet[4 * i + 3] = (uint8_t)head[i];
	}
	if (body_bytes > 0)
		memcpy(out->packet + IMSG_HEADER_BYTES, body->data, body_bytes);
	out->len_bytes = IMSG_HEADER_BYTES + body_bytes;
	list_init(&out->link);
	return out;
}

int imsg_send(struct imsg_channel *ch, uint32_t type, uint32_t id, const struct buf *body,
	const int *fds, size_t n_fds)
{
	OBJ_CHECK(ch, IMSG_CHANNEL_MAGIC);
	ASSERT(n_fds <= IMSG_FDS_MAX);
	if (body != NULL && (body->failed || body->len_bytes > IMSG_BODY_MAX))
		return -EMSGSIZE;
	if (ch->ended)
		return 0; /* lost like anything sent to a peer that dies; on_closed says so */
	if (ch->n_out >= IMSG_QUEUE_MAX) {
		channel_end(ch, -ERR_LIMIT);
		return -ERR_LIMIT;
	}
	struct imsg_out *out = out_new(ch, type, id, body);
	for (size_t i = 0; i < n_fds; i++) {
		int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (copy < 0) {
			int err = -errno;
			close_fds(out->fds, out->n_fds);
			mem_free(&mem_imsg_out, out);
			return err;
		}
		out->fds[out->n_fds++] = copy;
	}
	list_push_back(&ch->out, &out->link);
	ch->n_out++;
	if (ch->n_out == 1)
		channel_write(ch);
	return 0;
}

void imsg_set_generation(struct imsg_channel *ch, uint32_t generation)
{
	OBJ_CHECK(ch, IMSG_CHANNEL_MAGIC);
	ch->generation = generation;
}

void imsg_flush(struct imsg_channel *ch, int timeout_ms)
{
	OBJ_CHECK(ch, IMSG_CHANNEL_MAGIC);
	uint64_t until_ms = ev_now_ms() + (uint64_t)timeout_ms;
	while (!ch->ended && !list_empty(&ch->out)) {
		uint64_t now_ms = ev_now_ms();
		if (now_ms >= until_ms)
			break;
		struct pollfd p = {.fd = ch->fd, .events = POLLOUT};
		if (poll(&p, 1, (int)(until_ms - now_ms)) < 0 && errno != EINTR)
			break;
		channel_write(ch);
	}
}

int imsg_take_fd(struct imsg *msg, size_t i)
{
	if (i >= msg->n_fds)
		return -1;
	int fd = msg->fds[i];
	msg->fds[i] = -1;
	return fd;
}
