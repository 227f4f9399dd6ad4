/* SPDX-License-Identifier: PostgreSQL */
/*
 * A lean gRPC client for benchmarks: connections over plaintext HTTP/2 on 127.0.0.1, calls driven
 * by one event loop, answers counted and not decoded. The same code and the same cost whoever
 * serves.
 *
 * Context: the bench process; event thread of its loop.
 */
#ifndef PGCTL_BENCH_GRPC_H
#define PGCTL_BENCH_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"

struct bench_grpc; /* connections to one server */

/* One call. Embed it; it stays where it is until on_end. */
struct bench_call {
	/* A whole message came, borrowed. May be NULL. May send on the same connection. */
	void (*on_message)(struct bench_call *c, const uint8_t *data, size_t len);
	/* It is over: grpc-status (0: it went well), or -1: the stream broke. */
	void (*on_end)(struct bench_call *c, int grpc_status);
	void *arg;
	/* private */
	struct bench_grpc_conn *conn;
	int32_t stream_id;
	const uint8_t *out; /* the framed request, what is left of it */
	size_t out_len;
	bool keep_open;
	int status;
	uint8_t *in; /* a message that is not whole yet */
	size_t in_len, in_size;
};

/* Connects n connections (blocking). NULL: cannot, errno says why. */
struct bench_grpc *bench_grpc_open(struct ev_loop *loop, int port, size_t n);
/* Calls still open are forgotten without on_end. Nulls *g. */
void bench_grpc_close(struct bench_grpc **g);
/* A connection was lost: the loop was stopped, nothing more will come. */
bool bench_grpc_is_broken(const struct bench_grpc *g);
/* Starts a call on connection i. framed (5 bytes of gRPC framing, then the message) is borrowed
 * until on_end. keep_open: our side stays open (a watch). */
void bench_grpc_call(struct bench_grpc *g, size_t i, const char *path, const void *framed,
	size_t len, bool keep_open, struct bench_call *c);

/* ---- Protobuf, as much as requests need ------------------------------------------------------ */

struct buf;
/* Field of type varint; bytes. */
void bench_pb_varint(struct buf *b, unsigned field, uint64_t value);
void bench_pb_bytes(struct buf *b, unsigned field, const void *data, size_t len);
/* gRPC's frame around a message. */
void bench_pb_frame(struct buf *framed, const struct buf *message);

#endif
