/* SPDX-License-Identifier: PostgreSQL */
/*
 * The buffer between the socket and the frames, output, and the rest between two wake-ups; see
 * receive.h.
 *
 * Context: one thread per stream.
 *
 *   buf          pos             end          buf + size
 *    | given out  | whole frames, | free        |
 *                 | one partial   |
 *
 * Invariants:
 *   1. buf <= pos <= end <= buf + size, and a read is only made when no whole frame is there: bytes
 *      before pos may then be overwritten.
 *   2. Memory follows what has come, not what a length promises: the buffer doubles when it is
 * full, so a frame that claims a gigabyte costs nothing until the bytes are there.
 *   3. After PGWS_EAGAIN nothing is left in any layer but the socket's own buffer, so that waiting
 *      for the descriptor is right: TLS included, since we feed it (receive_tls.c).
 */
#include "config.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/receive.h"
#include "libpgwalstream/wire.h"

#define OUT_BYTES 256
/* The buffer that a large frame made goes back to its size at once when it is larger than this,
 * else after this many reads that did not need it: a row of a megabyte seldom comes alone. */
#define KEEP_BYTES ((size_t)4 * 1024 * 1024)
#define KEEP_READS 1000

/* The rest: only while more events than REST_RATE come per second, and the longer the more come: to
 * sleep and to wake up costs as much as a hundred messages, while what a rest adds to the latency
 * is noticed least where the reader has much to catch up with. The server takes longer to make the
 * messages than we to read them: most of the time is waiting, and rests do not slow it down. */
#define REST_RATE 20000
#define REST_LONGEST_RATE 222000 /* from here on it is the path's longest */
#define REST_SHORT_US 200
#define REST_MIN_US 50
/* One round reads so much at most if it goes on only because much came: the caller has other work,
 * too, and the descriptor stays ready. */
#define ROUND_BYTES ((size_t)1024 * 1024)
/* The smallest quota (see next_quota): what comes slower is read away. A segment of the loopback
 * device: so much opens the window. */
#define QUOTA_MIN_BYTES ((size_t)64 * 1024)
#define WINDOW_NS INT64_C(1000000)
#define WINDOW_EVENTS 64

const char *pgwsi_rx_refusal(bool gss, bool tls, const void *openssl, bool in_kernel)
{
	if (gss)
		return "the connection has GSS encryption";
	if (tls && openssl == NULL)
		return "the TLS library is not OpenSSL";
	if (tls && in_kernel)
		return "the kernel decrypts TLS";
	return NULL;
}

const char *pgwsi_rx_refusal_of(PGconn *conn)
{
	const void *openssl = PQsslStruct(conn, "OpenSSL");
	return pgwsi_rx_refusal(PQgssEncInUse(conn) != 0, PQsslInUse(conn) != 0, openssl,
		openssl != NULL && pgwsi_tls_in_kernel(openssl));
}

/* ---- Paths ----------------------------------------------------------------------------------- */

/* Its buffer is small (net.core.wmem_default, 208 kB) and charged by what a message's skb takes:
 * some 770 bytes of a small one, 4.3 kB of one of 2 kB. A rest is to fill no more than a quarter of
 * it, since a sender that had to wait looks slow, which would make the rests longer still.
 */
static const struct pgwsi_path path_unix = {
	.rest_max_us = 2000,
	.rest_events = 64,
	.rest_bytes = 16384,
};

/* What the window does not take waits at the sender. */
static const struct pgwsi_path path_tcp = {
	.rest_max_us = 2000,
	.rest_events = 4096,
	.rest_bytes = 262144,
};

/* A message is dear on both sides, so that fewer come per second: longer rests. */
static const struct pgwsi_path path_tls = {
	.more_bytes = PGWSI_BUFFER_BYTES, /* all that it is fed at once */
	.rest_max_us = 3000,
	.rest_events = 4096,
	.rest_bytes = 262144,
};

/*
 * TCP inside this machine: as long as the window has room, each of the walsender's messages is a
 * segment with a way through both sockets, an skb, an acknowledgement's share, mostly on the
 * walsender's time. While the window is closed, the sender's kernel appends what is written to one
 * large segment, which our reading fetches: the acknowledgement that a recv sends has brought the
 * next window before the recv returns. So the receive buffer is small, and mostly not read empty
 * (see next_quota). Over a network the same buffer would make each window cost a round trip.
 *
 * The kernel takes twice receive_buffer; the window is nearly all of that, up to Linux 6.5 half of
 * it. It acknowledges at the latest when half of the window is used, so that half of it has to hold
 * a segment (64 kB here): or else a large message behind small ones waits 40 ms for a delayed
 * acknowledgement, or 200 ms for a probe. TCP's size is the most that kernels before 6.18 give by
 * default (net.core.rmem_max). Under TLS, where fewer messages come in a rest, that would mostly
 * stay open.
 *
 * A read of less than LOCAL_MORE_BYTES is taken for the end of what there is.
 */
#define LOCAL_MORE_BYTES 16384

static const struct pgwsi_path path_local_tcp = {
	.receive_buffer = 212992,
	.more_bytes = LOCAL_MORE_BYTES,
	.has_quota = true,
	.rest_max_us = 2000,
	.rest_events = 4096,
	.rest_bytes = 262144,
};

static const struct pgwsi_path path_local_tls = {
	.receive_buffer = 131072,
	.more_bytes = LOCAL_MORE_BYTES,
	.has_quota = true,
	.rest_max_us = 3000,
	.rest_events = 4096,
	.rest_bytes = 262144,
};

bool pgwsi_same_machine(const struct sockaddr_storage *ours, const struct sockaddr_storage *theirs)
{
	if (ours->ss_family != theirs->ss_family)
		return false;
	if (ours->ss_family == AF_INET) {
		const struct sockaddr_in *a = (const void *)ours, *b = (const void *)theirs;
		return a->sin_addr.s_addr == b->sin_addr.s_addr ||
		       ntohl(b->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	}
	if (ours->ss_family == AF_INET6) {
		const struct sockaddr_in6 *a = (const void *)ours, *b = (const void *)theirs;
		return memcmp(&a->sin6_addr, &b->sin6_addr, sizeof(a->sin6_addr)) == 0;
	}
	return false;
}

static const struct pgwsi_path *path_of(int fd, bool tls)
{
	struct sockaddr_storage ours = {.ss_family = AF_UNSPEC}, theirs = ours;
	socklen_t len = sizeof(ours), their_len = sizeof(theirs);
	if (getsockname(fd, (struct sockaddr *)&ours, &len) == 0 && ours.ss_family == AF_UNIX)
		return &path_unix;
	if (getpeername(fd, (struct sockaddr *)&theirs, &their_len) == 0 &&
		pgwsi_same_machine(&ours, &theirs))
		return tls ? &path_local_tls : &path_local_tcp;
	return tls ? &path_tls : &path_tcp;
}

struct pgwsi_rx *pgwsi_rx_new(PGconn *conn)
{
	struct pgwsi_rx *rx = calloc(1, sizeof(*rx));
	if (rx == NULL)
		return NULL;
	rx->fd = PQsocket(conn);
	rx->path = path_of(rx->fd, PQsslInUse(conn) != 0);
	if (rx->path->receive_buffer != 0) /* it only saves work: what the kernel gives will do */
		(void)setsockopt(rx->fd, SOL_SOCKET, SO_RCVBUF, &rx->path->receive_buffer,
			sizeof(rx->path->receive_buffer));
	rx->quota = ROUND_BYTES;
	rx->size = PGWSI_BUFFER_BYTES;
	rx->out_size = OUT_BYTES;
	rx->buf = rx->pos = rx->end = malloc(rx->size);
	rx->out = malloc(rx->out_size);
	bool ok = rx->buf != NULL && rx->out != NULL;
	if (ok && PQsslInUse(conn)) {
		rx->tls = pgwsi_tls_new(PQsslStruct(conn, "OpenSSL"), rx->fd);
		ok = rx->tls != NULL;
	}
	if (!ok)
		pgwsi_rx_free(&rx);
	return rx;
}

void pgwsi_rx_free(struct pgwsi_rx **rxp)
{
	struct pgwsi_rx *rx = *rxp;
	*rxp = NULL;
	if (rx == NULL)
		return;
	pgwsi_tls_free(&rx->tls);
	free(rx->buf);
	free(rx->out);
	free(rx);
}

/* ---- Output ---------------------------------------------------------------------------------- */

int pgwsi_rx_put(struct pgwsi_rx *rx, char type, const void *body, size_t len)
{
	size_t need = rx->out_len + PGWSI_FRAME_HEADER_BYTES + len;
	if (need > rx->out_size) {
		uint8_t *bigger = realloc(rx->out, need);
		if (bigger == NULL)
			return PGWS_ENOMEM;
		rx->out = bigger;
		rx->out_size = need;
	}
	uint8_t *p = rx->out + rx->out_len;
	p[0] = (uint8_t)type;
	pgwsi_put32(p + 1, (uint32_t)(len + 4));
	if (len > 0)
		memcpy(p + PGWSI_FRAME_HEADER_BYTES, body, len);
	rx->out_len = need;
	return 0;
}

/* Like write(2), 0 for "not now". */
static ssize_t plain_write(struct pgwsi_rx *rx, const void *bytes, size_t len)
{
	ssize_t n;
	do {
		n = send(rx->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	return n;
}

int pgwsi_rx_flush(struct pgwsi_rx *rx)
{
	while (rx->out_off < rx->out_len && !rx->write_failed) {
		/* OpenSSL wants the very same write again. */
		size_t len = rx->out_tried != 0 ? rx->out_tried : rx->out_len - rx->out_off;
		const uint8_t *from = rx->out + rx->out_off;
		rx->write_wants_read = false;
		ssize_t n = rx->tls != NULL ? pgwsi_tls_write(rx, from, len)
					    : plain_write(rx, from, len);
		if (n == 0) {
			rx->out_tried = rx->tls != NULL ? len : 0;
			return PGWS_EAGAIN;
		}
		rx->out_tried = 0;
		if (n < 0)
			rx->write_failed = true;
		else
			rx->out_off += (size_t)n;
	}
	rx->out_off = rx->out_len = 0;
	return 0;
}

/* ---- Input ----------------------------------------------------------------------------------- */

/* Bytes of the frame at pos as far as they are known, 0 if its length is not there yet. */
static size_t frame_bytes(const struct pgwsi_rx *rx)
{
	if (rx->end - rx->pos < PGWSI_FRAME_HEADER_BYTES)
		return 0;
	return (size_t)1 + pgwsi_get32(rx->pos + 1);
}

static int resize(struct pgwsi_rx *rx, size_t size)
{
	size_t pos = (size_t)(rx->pos - rx->buf), end = (size_t)(rx->end - rx->buf);
	uint8_t *buf = realloc(rx->buf, size);
	if (buf == NULL)
		return PGWS_ENOMEM;
	rx->buf = buf;
	rx->pos = buf + pos;
	rx->end = buf + end;
	rx->size = size;
	return 0;
}

/* Room behind end for more of the frame at pos. */
static int make_room(struct pgwsi_rx *rx)
{
	size_t held = (size_t)(rx->end - rx->pos), frame = frame_bytes(rx);
	/* A small rest goes to the front, where the cache is warm; a large one only if it must. */
	size_t front = (size_t)(rx->pos - rx->buf);
	if (front > 0 && (held <= rx->size / 8 || frame > rx->size - front ||
				 rx->end == rx->buf + rx->size)) {
		memmove(rx->buf, rx->pos, held);
		rx->pos = rx->buf;
		rx->end = rx->buf + held;
	}
	if (rx->size > PGWSI_BUFFER_BYTES && rx->pos == rx->buf && held <= PGWSI_BUFFER_BYTES / 2 &&
		frame <= PGWSI_BUFFER_BYTES) {
		if (rx->size > KEEP_BYTES || ++rx->reads_small > KEEP_READS)
			return resize(rx, PGWSI_BUFFER_BYTES);
	} else if (frame > PGWSI_BUFFER_BYTES) {
		rx->reads_small = 0;
	}
	if (rx->end < rx->buf + rx->size)
		return 0;
	/* Full, and pos is at the front: the frame is larger than the buffer. */
	size_t size = rx->size * 2;
	if (size > frame && frame > rx->size)
		size = frame;
	return resize(rx, size);
}

bool pgwsi_rx_is_more(const struct pgwsi_rx *rx, size_t n)
{
	return rx->path->more_bytes != 0 && n >= rx->path->more_bytes && rx->bytes < rx->quota;
}

size_t pgwsi_rx_want(const struct pgwsi_rx *rx, size_t room)
{
	if (!rx->path->has_quota)
		return room;
	size_t left = rx->bytes < rx->quota ? rx->quota - rx->bytes : 0;
	if (left < rx->path->more_bytes) /* less would look like the end */
		left = rx->path->more_bytes;
	return left < room ? left : room;
}

static void plain_read(struct pgwsi_rx *rx)
{
	size_t room = rx->size - (size_t)(rx->end - rx->buf);
	ssize_t n;
	do {
		n = recv(rx->fd, rx->end, pgwsi_rx_want(rx, room), MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n > 0) {
		rx->end += n;
		rx->bytes += (size_t)n;
		rx->more = (size_t)n == room || pgwsi_rx_is_more(rx, (size_t)n);
	} else if (n == 0) {
		rx->eof = true;
	} else if (errno != EAGAIN && errno != EWOULDBLOCK) {
		rx->eof = true;
		snprintf(rx->error, sizeof(rx->error), "could not receive data from the server: %s",
			strerror(errno));
	}
}

int pgwsi_rx_read(struct pgwsi_rx *rx)
{
	if (frame_bytes(rx) > PGWSI_FRAME_MAX) {
		snprintf(rx->error, sizeof(rx->error), "the server sent a message of %zu bytes",
			frame_bytes(rx));
		return PGWS_EPROTO;
	}
	int err = make_room(rx);
	if (err != 0)
		return err;
	rx->read_done = true;
	rx->more = false;
	if (rx->tls != NULL)
		pgwsi_tls_read(rx);
	else
		plain_read(rx);
	return 0;
}

/* ---- The rest -------------------------------------------------------------------------------- */

int64_t pgwsi_rx_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* As long as what comes in a rest has room, in the socket's buffers or in front of them. */
static unsigned rest_for(const struct pgwsi_rx *rx, double events_per_s, double bytes_per_s)
{
	if (events_per_s <= REST_RATE)
		return 0;
	double us = rx->path->rest_max_us * events_per_s / REST_LONGEST_RATE;
	if (us < REST_SHORT_US)
		us = REST_SHORT_US;
	if (us > rx->path->rest_max_us)
		us = rx->path->rest_max_us;
	if (us * events_per_s > rx->path->rest_events * 1e6)
		us = rx->path->rest_events * 1e6 / events_per_s;
	if (us * bytes_per_s > rx->path->rest_bytes * 1e6)
		us = rx->path->rest_bytes * 1e6 / bytes_per_s;
	return us >= REST_MIN_US ? (unsigned)us : 0;
}

/*
 * What the next round may read. While something waits in the sender's queue the window stays closed
 * (see path_local_tcp), so a round reads a little less than came in one rest. If the last one
 * reached its quota, most likely something was left, and the next may read a quarter more, so that
 * the queue stays far from where the walsender has to wait; if it came to the end first, it was
 * allowed too much. Without a rest in front of it only ROUND_BYTES ends a round.
 */
static size_t next_quota(const struct pgwsi_rx *rx)
{
	if (!rx->path->has_quota || rx->rest_us == 0)
		return ROUND_BYTES;
	size_t quota =
		rx->bytes < rx->quota ? rx->bytes - rx->bytes / 16 : rx->quota + rx->quota / 4;
	if (quota < QUOTA_MIN_BYTES)
		return QUOTA_MIN_BYTES;
	return quota < ROUND_BYTES ? quota : ROUND_BYTES;
}

/*
 * A round is what one wake-up gave. Rounds are taken together until they cover a millisecond or 64
 * events; one that took longer by itself, the wait in front of it included, is judged alone: so the
 * first messages after a quiet time never make anybody rest. A round that gave nothing ends resting
 * at once.
 */
void pgwsi_rx_round(struct pgwsi_rx *rx, int64_t now_ns)
{
	bool alone = now_ns - rx->round_ns >= WINDOW_NS || rx->events == 0;
	if (alone) {
		rx->window_events = rx->window_bytes = 0;
		rx->window_ns = rx->round_ns;
	}
	rx->window_events += rx->events;
	rx->window_bytes += rx->bytes;
	int64_t ns = now_ns - rx->window_ns;
	if (alone || ns >= WINDOW_NS || rx->window_events >= WINDOW_EVENTS) {
		double per_s = 1e9 / (double)(ns > 0 ? ns : 1);
		rx->rest_us = rest_for(
			rx, (double)rx->window_events * per_s, (double)rx->window_bytes * per_s);
		rx->window_events = rx->window_bytes = 0;
		rx->window_ns = now_ns;
	}
	rx->quota = next_quota(rx);
	rx->round_ns = now_ns;
	rx->events = rx->bytes = 0;
}
