/* SPDX-License-Identifier: PostgreSQL */
/*
 * Lines to a slow descriptor: see tail_out.h.
 *
 * Context: pgctl wal tail.
 *
 * Invariant: printed_lsn <= every lsn that was marked and whose bytes are not all written.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pgctl/tail_out.h"

#define PIECE_BYTES 65536
/* Written bytes are kept at the front of the buffer up to here. */
#define FRONT_BYTES 65536

void tail_out_init(struct tail_out *o, int fd)
{
	struct stat st;
	char path[40];
	*o = (struct tail_out){.fd = fd, .piece = PIECE_BYTES};
	buf_init(&o->lines, 0);
	if (fstat(fd, &st) != 0 || S_ISREG(st.st_mode))
		return;
	o->is_socket = S_ISSOCK(st.st_mode);
	if (o->is_socket)
		return;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	int again = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (again >= 0) {
		o->fd = again;
		o->own_fd = true;
	} else {
		o->piece = S_ISFIFO(st.st_mode) ? PIPE_BUF : 256;
	}
}

void tail_out_free(struct tail_out *o)
{
	buf_free(&o->lines);
	if (o->own_fd)
		close(o->fd);
	o->fd = -1;
	o->own_fd = false;
}

size_t tail_out_pending(const struct tail_out *o)
{
	return o->lines.len_bytes - o->done;
}

static void settle(struct tail_out *o)
{
	if (o->marked && o->base + o->done >= o->mark_at) {
		o->printed_lsn = o->mark_lsn;
		o->marked = false;
	}
	if (tail_out_pending(o) == 0)
		o->printed_lsn = o->last_lsn;
}

void tail_out_mark(struct tail_out *o, uint64_t lsn)
{
	o->last_lsn = lsn;
	if (!o->marked) {
		o->marked = true;
		o->mark_at = o->base + o->lines.len_bytes;
		o->mark_lsn = lsn;
	}
	settle(o);
}

uint64_t tail_out_printed(const struct tail_out *o)
{
	return o->printed_lsn;
}

void tail_out_cut(struct tail_out *o)
{
	const uint8_t *from = o->lines.data + o->done;
	const uint8_t *end = o->mid_line && tail_out_pending(o) > 0
				     ? memchr(from, '\n', tail_out_pending(o))
				     : NULL;
	o->lines.len_bytes = o->done + (end != NULL ? (size_t)(end - from) + 1 : 0);
}

static ssize_t write_piece(const struct tail_out *o, const void *data, size_t len)
{
	struct pollfd p = {.fd = o->fd, .events = POLLOUT};
	if (len > o->piece)
		len = o->piece;
	if (o->is_socket)
		return send(o->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (!o->own_fd && o->piece < PIECE_BYTES && poll(&p, 1, 0) == 0) {
		errno = EAGAIN;
		return -1;
	}
	return write(o->fd, data, len);
}

int tail_out_write(struct tail_out *o)
{
	int err = 0;
	while (tail_out_pending(o) > 0 && err == 0) {
		ssize_t n = write_piece(o, o->lines.data + o->done, tail_out_pending(o));
		if (n > 0) {
			o->done += (size_t)n;
			o->mid_line = o->lines.data[o->done - 1] != '\n';
		} else if (n == 0 || errno != EINTR) {
			err = n == 0 ? -EAGAIN : -errno;
		}
	}
	settle(o);
	if (tail_out_pending(o) == 0 || (o->done > FRONT_BYTES && o->done > tail_out_pending(o))) {
		o->base += o->done;
		buf_consume(&o->lines, o->done);
		o->done = 0;
	}
	return err == -EAGAIN ? 0 : err;
}
