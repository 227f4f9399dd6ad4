/* SPDX-License-Identifier: PostgreSQL */
/*
 * Typed messages between the supervisor and one worker, over a SOCK_SEQPACKET pair, with
 * descriptors. One message is one packet:
 *
 *     be32 type | be32 len of body | be32 id | be32 generation | body (at most IMSG_BODY_MAX)
 *
 * The send queue is bounded (IMSG_QUEUE_MAX messages): a peer that does not read is a dead peer.
 *
 * Context: event thread of its process. Descriptors given to imsg_send are duplicated; those
 * received belong to the callback, which must take (set to -1) or leave them to be closed.
 */
#ifndef COMMON_IPC_IMSG_H
#define COMMON_IPC_IMSG_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/ev.h"

#define IMSG_BODY_MAX 16368 /* with the header: 16 KiB */
#define IMSG_FDS_MAX 8
#define IMSG_QUEUE_MAX 1024

struct imsg {
	uint32_t type;
	uint32_t id;         /* pairs a reply with its request; 0: none */
	uint32_t generation; /* of the worker's life that it belongs to */
	struct rd body;      /* borrowed for the call; finish with rd_end */
	int fds[IMSG_FDS_MAX];
	size_t n_fds;
};

struct imsg_channel;

struct imsg_ops {
	/* A whole message. A negative return means "garbled": the channel calls on_closed with it.
	 */
	int (*on_message)(struct imsg *msg, void *arg);
	/* Once: EOF (0), a socket error, a garbled message, or a full queue (-ERR_LIMIT). Comes at
	 * the end of the pass, never from inside imsg_send. Free the channel here or later; it does
	 * nothing more. */
	void (*on_closed)(int err, void *arg);
};

/* Takes over fd. generation goes into every message sent, and received messages of another
 * generation are dropped silently (a late report of a dead process) if generation is not 0. */
struct imsg_channel *imsg_open(
	struct ev_loop *loop, int fd, uint32_t generation, const struct imsg_ops *ops, void *arg);
/* Safe from inside its own callbacks (memory goes by ev_defer). Nulls *ch. */
void imsg_close(struct imsg_channel **ch);
/* Copies body (may be NULL: empty); fds are duplicated. 0 (also when the peer is gone already:
 * on_closed says so), -ERR_LIMIT (queue full; on_closed follows), -EMSGSIZE (body over
 * IMSG_BODY_MAX or failed), -EMFILE. */
int imsg_send(struct imsg_channel *ch, uint32_t type, uint32_t id, const struct buf *body,
	const int *fds, size_t n_fds) __attribute__((warn_unused_result));
void imsg_set_generation(struct imsg_channel *ch, uint32_t generation);
/* Sends what is queued, blocking at most timeout_ms: for the last words before exit. */
void imsg_flush(struct imsg_channel *ch, int timeout_ms);

/* Takes descriptor i out of a message: the caller owns it. -1 if there is none. */
int imsg_take_fd(struct imsg *msg, size_t i);

/* Pure codec, for tests and fuzzing: parses one packet; fds are not touched. */
int imsg_decode(const void *packet, size_t len_bytes, struct imsg *ret_msg)
	__attribute__((warn_unused_result));

#endif
