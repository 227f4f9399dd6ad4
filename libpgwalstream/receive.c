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
#define REST_SHORT_US 200
#define REST_MIN_US 50
#define REST_PER_100K_US 900 /* at 100,000 events per second */
#define REST_MAX_US 2000
/* What may come in during it. A Unix socket's buffer is small and charged per message (a kilobyte
 * and more for a small one, of some 200); what a TCP socket's window does not take waits at the
 * sender, in larger pieces. */
#define REST_BYTES_UNIX 65536
#define REST_EVENTS_UNIX 64
#define REST_BYTES_TCP 262144
#define REST_EVENTS_TCP 4096
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

static bool is_unix(int fd)
{
	struct sockaddr_storage sa = {.ss_family = AF_UNSPEC};
	socklen_t len = sizeof(sa);
	return getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && sa.ss_family == AF_UNIX;
}

struct pgwsi_rx *pgwsi_rx_new(PGconn *conn)
{
	struct pgwsi_rx *rx = calloc(1, sizeof(*rx));
	if (rx == NULL)
		return NULL;
	rx->fd = PQsocket(conn);
	bool local = is_unix(rx->fd);
	rx->rest_events = local ? REST_EVENTS_UNIX : REST_EVENTS_TCP;
	rx->rest_bytes = local ? REST_BYTES_UNIX : REST_BYTES_TCP;
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

static void plain_read(struct pgwsi_rx *rx)
{
	size_t room = rx->size - (size_t)(rx->end - rx->buf);
	ssize_t n;
	do {
		n = recv(rx->fd, rx->end, room, MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	rx->filled = n > 0 && (size_t)n == room;
	if (n > 0) {
		rx->end += n;
		rx->bytes += (uint64_t)n;
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
	rx->filled = false;
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

/* As long as the messages of a rest fit the socket's buffer many times over. */
static unsigned rest_for(const struct pgwsi_rx *rx, double events_per_s, double bytes_per_s)
{
	if (events_per_s <= REST_RATE)
		return 0;
	double us = REST_PER_100K_US * events_per_s / 100000;
	if (us < REST_SHORT_US)
		us = REST_SHORT_US;
	if (us > REST_MAX_US)
		us = REST_MAX_US;
	if (us * events_per_s > rx->rest_events * 1e6)
		us = rx->rest_events * 1e6 / events_per_s;
	if (us * bytes_per_s > rx->rest_bytes * 1e6)
		us = rx->rest_bytes * 1e6 / bytes_per_s;
	return us >= REST_MIN_US ? (unsigned)us : 0;
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
	rx->round_ns = now_ns;
	rx->events = rx->bytes = 0;
}
