/* SPDX-License-Identifier: PostgreSQL */
/*
 * Lines on their way to a descriptor that may be slow: a buffer, and writes that do not block, so
 * that there is always time to answer the server.
 *
 * A pipe or a terminal is opened anew through /proc, to be nonblocking without changing the
 * descriptor that the shell shares with us; where that cannot be, poll goes first and the pieces
 * are so small that a pipe that is said to be writable takes them whole.
 */
#ifndef PGCTL_TAIL_OUT_H
#define PGCTL_TAIL_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

struct tail_out {
	struct buf lines; /* append here */
	size_t done;      /* bytes of it that were written */
	int fd;
	bool own_fd;  /* opened anew */
	size_t piece; /* most bytes of one write */
	bool is_socket;
	uint64_t base; /* bytes written before lines */
	/* The newest position that was put with everything before it written. */
	uint64_t mark_at, mark_lsn, last_lsn, printed_lsn;
	bool marked;
	bool mid_line; /* what was written last was not the end of a line */
};

void tail_out_init(struct tail_out *o, int fd);
void tail_out_free(struct tail_out *o);
size_t tail_out_pending(const struct tail_out *o);
/* Everything put so far belongs to what ends at lsn. */
void tail_out_mark(struct tail_out *o, uint64_t lsn);
/* Up to here everything is written. */
uint64_t tail_out_printed(const struct tail_out *o);
/* Forgets what waits, but for the rest of a line that is half written. */
void tail_out_cut(struct tail_out *o);
/* Writes what goes without waiting: 0 (some may be left), or -EPIPE and the like. */
int tail_out_write(struct tail_out *o) __attribute__((warn_unused_result));

#endif
