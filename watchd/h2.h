/* SPDX-License-Identifier: PostgreSQL */
/*
 * The transport: listening sockets, connections, gRPC over HTTP/2 without TLS, and HTTP/1.1 on the
 * same port (the first bytes decide).
 *
 *     socket -> h2_conn -> nghttp2 -> struct h2_stream, one per call -> struct h2_call_ops
 *                       -> http1   -> struct h2_http, one per request -> on_http
 *
 * A call: on_call -> h2_stream_accept -> on_message … on_half_closed -> on_gone
 * or:     on_call -> h2_stream_end
 *
 * Rules for callbacks and calls:
 *  1. Nothing here calls back from inside a call of the user's, but for the generator's `done`,
 *     which h2_stream_end, _reset or _send_generated may run. Everything that is sent leaves at the
 *     end of the loop's pass: one write for each connection.
 *  2. on_gone comes exactly once for every accepted stream, however it ends, after h2_stream_end
 *     too. It is the last use of the handle, and the place to free what belongs to the call.
 *  3. Between the end of a stream (h2_stream_end, h2_stream_reset, the client's reset, its
 * deadline) and on_gone sending is allowed and does nothing; h2_stream_is_over tells.
 *  4. Data passed to a callback is borrowed for the call.
 *
 * Everything that a client can make us hold is limited (struct h2_limits); what is refused is
 * counted by its reason (H2_COUNTERS).
 *
 * Context: event thread.
 */
#ifndef WATCHD_H2_H
#define WATCHD_H2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/base/stats.h"
#include "watchd/grpc_status.h"
#include "watchd/http1_proto.h"

struct h2_server;
struct h2_stream;
struct h2_http;

/* --- the server --- */

struct h2_limits {
	size_t max_connections;
	uint32_t max_streams;       /* calls open at a time on one connection */
	uint32_t max_message_bytes; /* one message from a client; more: ResourceExhausted */
	uint32_t max_header_bytes;  /* one call's headers, as HTTP/2 counts them; more: 431 */
	/* What one connection may have sent that is not a whole message yet, or waits in a paused
	 * stream. At least max_message_bytes. More: the call ends with ResourceExhausted. */
	size_t max_unfinished_bytes;
	/* What waits to be sent on one connection; above it new calls are refused
	 * (REFUSED_STREAM: clients know that nothing was done). */
	size_t max_queued_bytes;
	uint32_t idle_ms; /* a connection without a call, and one that says nothing at first */
	/* For a client that takes nothing while an answer is complete or being generated. */
	uint32_t stall_ms;
};

/* etcd's limits where it has such, else what a client in good faith does not meet. */
#define H2_LIMITS_DEFAULT                                                                          \
	{                                                                                          \
		.max_connections = 20000, .max_streams = 10000, .max_message_bytes = 2u << 20,     \
		.max_header_bytes = 32768, .max_unfinished_bytes = 64u << 20,                      \
		.max_queued_bytes = 64u << 20, .idle_ms = 600000, .stall_ms = 60000                \
	}

/* id, name, kind, unit, level, help */
#define H2_COUNTERS(X)                                                                             \
	X(H2_STAT_CONNECTIONS, "connections", STATS_GAUGE, "", STATS_STATUS, "open connections")   \
	X(H2_STAT_STREAMS, "streams", STATS_GAUGE, "", STATS_STATUS, "open calls")                 \
	X(H2_STAT_ACCEPTED, "accepted", STATS_COUNTER, "", STATS_INFO, "connections accepted")     \
	X(H2_STAT_OVER_MAXIMUM, "over_max_connections", STATS_COUNTER, "", STATS_INFO,             \
		"connections closed because of watchd.max_connections")                            \
	X(H2_STAT_NO_DESCRIPTOR, "no_descriptor", STATS_COUNTER, "", STATS_INFO,                   \
		"connections closed for want of a file descriptor")                                \
	X(H2_STAT_CALLS, "calls", STATS_COUNTER, "", STATS_STATUS, "gRPC calls begun")             \
	X(H2_STAT_HTTP, "http_requests", STATS_COUNTER, "", STATS_INFO, "HTTP/1.1 requests")       \
	X(H2_STAT_BYTES_IN, "bytes_received", STATS_COUNTER, "bytes", STATS_INFO,                  \
		"bytes received from clients")                                                     \
	X(H2_STAT_BYTES_OUT, "bytes_sent", STATS_COUNTER, "bytes", STATS_INFO,                     \
		"bytes sent to clients")                                                           \
	X(H2_STAT_DEADLINE, "deadline_exceeded", STATS_COUNTER, "", STATS_INFO,                    \
		"calls ended by the client's own deadline")                                        \
	X(H2_STAT_REFUSED_STREAM, "refused_calls", STATS_COUNTER, "", STATS_INFO,                  \
		"calls refused: too many at a time, or too much waits to be sent")                 \
	X(H2_STAT_MESSAGE_LARGE, "refused_large", STATS_COUNTER, "", STATS_INFO,                   \
		"calls refused: a message over the limit")                                         \
	X(H2_STAT_UNFINISHED, "refused_unfinished", STATS_COUNTER, "", STATS_INFO,                 \
		"calls refused: too much unfinished on the connection")                            \
	X(H2_STAT_HEADERS_LARGE, "refused_headers", STATS_COUNTER, "", STATS_INFO,                 \
		"requests refused: headers over the limit")                                        \
	X(H2_STAT_BAD_REQUEST, "refused_malformed", STATS_COUNTER, "", STATS_INFO,                 \
		"requests refused: not gRPC, compressed, or broken framing")                       \
	X(H2_STAT_ENDED_PROTOCOL, "ended_protocol", STATS_COUNTER, "", STATS_INFO,                 \
		"connections ended: the client broke the protocol")                                \
	X(H2_STAT_ENDED_FLOOD, "ended_flood", STATS_COUNTER, "", STATS_INFO,                       \
		"connections ended: a flood of resets, pings, settings or empty frames")           \
	X(H2_STAT_ENDED_IDLE, "ended_idle", STATS_COUNTER, "", STATS_INFO,                         \
		"connections ended: idle, or silent from the start")                               \
	X(H2_STAT_ENDED_STALLED, "ended_stalled", STATS_COUNTER, "", STATS_INFO,                   \
		"connections and calls ended: the client took nothing for too long")

enum h2_stat {
#define X(id, name, kind, unit, level, help) id,
	H2_COUNTERS(X)
#undef X
		H2_STAT_COUNT
};

/* What the transport uses of a request's headers. Borrowed for on_call. */
struct h2_request {
	const char *path;               /* ":path", "/etcdserverpb.KV/Range" */
	const char *token;              /* "token", else "authorization", else NULL */
	const char *client_api_version; /* or NULL */
	bool has_leader; /* "hasleader: true": no answer rather than one without quorum */
};

struct h2_server_ops {
	/* A call begins: h2_stream_accept it, or h2_stream_end it with an error. A call left alone
	 * is answered with Unimplemented. */
	void (*on_call)(struct h2_stream *s, const struct h2_request *rq, void *arg);
	/* An HTTP/1.1 request: h2_http_answer, now or later. rq is borrowed for the call. */
	void (*on_http)(struct h2_http *h, const struct http1_request *rq, void *arg);
	/* The client of a request that has not been answered yet is gone: the handle's last use.
	 * May be NULL if every request is answered in on_http. */
	void (*on_http_gone)(struct h2_http *h, void *arg);
};

struct h2_server_options {
	struct h2_limits limits;
	struct stats *stats; /* borrowed */
	size_t first_stat;   /* where the rows of H2_COUNTERS begin in it */
};

struct h2_server *h2_server_new(struct ev_loop *loop, const struct h2_server_options *options,
	const struct h2_server_ops *ops, void *arg);
/* Ends every connection without a word (on_gone and on_http_gone come from inside); nulls *srv. */
void h2_server_free(struct h2_server **srv);
/* Takes over fd, a listening socket; url is copied. */
void h2_server_listen(struct h2_server *srv, int fd, const char *url);
/* Takes over fd, a connected, non-blocking socket. What a listener does with what it accepts. */
void h2_server_add(struct h2_server *srv, int fd);
/* Other limits from now on. max_streams and max_header_bytes are for new connections. */
void h2_server_set_limits(struct h2_server *srv, const struct h2_limits *limits);
/* Gauges onto the statistics page. */
void h2_server_update_stats(struct h2_server *srv);
/*
 * Stop: listeners are closed, clients get GOAWAY, calls that are open go on to their end, new ones
 * are not taken; then, or after within_ms, connections are closed and done runs, deferred. Streams
 * without an end of their own (watches) are the user's to end. Once.
 */
void h2_server_drain(struct h2_server *srv, uint32_t within_ms, void (*done)(void *arg), void *arg);

/* --- a call --- */

struct h2_call_ops {
	/* A whole message, without its gRPC prefix. */
	void (*on_message)(struct h2_stream *s, const uint8_t *data, size_t len, void *user);
	/* The client will send no more. Not after h2_stream_end. May be NULL. */
	void (*on_half_closed)(struct h2_stream *s, void *user);
	/* Rule 2. May be NULL. */
	void (*on_gone)(struct h2_stream *s, void *user);
	/* What is queued was at or above low_bytes and is below now. May be NULL. */
	void (*on_drained)(struct h2_stream *s, void *user);
	size_t low_bytes;
	/* on_message comes once: a second message is grpc-go's error, and so is none. */
	bool unary;
};

/* In on_call. ops is borrowed for the life of the process; user may be NULL. */
void h2_stream_accept(struct h2_stream *s, const struct h2_call_ops *ops, void *user);
void h2_stream_set_user(struct h2_stream *s, void *user);
void *h2_stream_user(const struct h2_stream *s);
/* Nothing that is sent from now on will arrive. */
bool h2_stream_is_over(const struct h2_stream *s);
/* Stops and resumes on_message; meanwhile the client's flow-control window closes. Messages that
 * are already here come after the pass in which it was resumed. */
void h2_stream_pause(struct h2_stream *s, bool pause);
/* "127.0.0.1:4711" for log lines; returns out. */
const char *h2_stream_peer(const struct h2_stream *s, char *out, size_t size);

/* Bytes that may be part of many messages, to many streams, and are kept once. */
struct h2_shared {
	uint32_t refs;
	uint32_t len;
	uint8_t bytes[];
};
/* One reference; bytes are for the caller to fill before it is sent. */
struct h2_shared *h2_shared_new(uint32_t len);
struct h2_shared *h2_shared_ref(struct h2_shared *sh);
/* Nulls *sh. */
void h2_shared_unref(struct h2_shared **sh);

/* A piece of a message: a part of shared bytes, of which a reference is taken, or, with shared
 * NULL, bytes that are copied. */
struct h2_slice {
	struct h2_shared *shared;
	const uint8_t *bytes; /* inside shared->bytes, if shared */
	uint32_t len;
};

/* One message, copied. */
void h2_stream_send(struct h2_stream *s, const void *data, size_t len);
/* One message out of n pieces. */
void h2_stream_send_slices(struct h2_stream *s, const struct h2_slice *slices, size_t n);

struct h2_source {
	/* Writes 1 … max bytes and returns how many; all calls together give exactly the length
	 * that was announced. Negative: the call is reset. */
	int (*fill)(uint8_t *out, size_t max, void *arg);
	/* Once: everything was produced, or nobody wants it any more. */
	void (*done)(void *arg);
};
/* One message of len bytes that are produced as the client takes them; src is borrowed for the
 * life of the process. */
void h2_stream_send_generated(
	struct h2_stream *s, uint32_t len, const struct h2_source *src, void *arg);
/* What was sent and is not in the connection's output buffer yet; a generated message counts
 * nothing. */
size_t h2_stream_queued_bytes(const struct h2_stream *s);
/* So much waits on its connection, or on all, that new calls of it are refused: who has a queue of
 * his own on the stream lets it become no longer. */
bool h2_stream_is_crowded(const struct h2_stream *s);
/* After what is queued: trailers with status and, if it is not OK, message (UTF-8, encoded here;
 * may be NULL). */
void h2_stream_end(struct h2_stream *s, enum grpc_status status, const char *message);
/* h2_stream_send and h2_stream_end with OK. */
void h2_stream_reply(struct h2_stream *s, const void *data, size_t len);
/* RST_STREAM with an HTTP/2 error code; what is queued is dropped. */
void h2_stream_reset(struct h2_stream *s, uint32_t h2_error);

/* --- a plain HTTP/1.1 request --- */

/* body is copied; content_type is borrowed for the call, NULL for an empty body. The handle's last
 * use. */
void h2_http_answer(
	struct h2_http *h, int status, const char *content_type, const void *body, size_t len);

#endif
