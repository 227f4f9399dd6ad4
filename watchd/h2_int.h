/* SPDX-License-Identifier: PostgreSQL */
/*
 * The transport as its own files know it.
 *
 *     h2_server.c   limits, listeners, the sweep, drain         h2_session.c  nghttp2's callbacks
 *     h2_conn.c     a socket: reading, flushing, its end        h2_in.c       messages from clients
 *     h2_http1.c    HTTP/1.1 on it                              h2_out.c      messages to clients
 *
 * A connection:
 *
 *     NEW --first bytes--> H2    --GOAWAY sent, no stream left--> LINGER --EOF, 2 s--> GONE
 *         \--------------> HTTP1 --answer without keep-alive----/
 *     any --socket broken, stalled, nghttp2 gives up--> GONE
 *
 * LINGER: everything is sent, our direction is shut; what still comes is read and dropped, so that
 * the kernel does not throw away, by a reset, what the client has not read yet.
 *
 * Invariants: (1) a stream is in its connection's list exactly while nghttp2 knows it; (2) sums:
 * conn->queued_bytes is that of its streams, srv->queued_bytes that of its connections, the same
 * for unfinished_bytes; (3) nghttp2_session_mem_recv and _mem_send are never nested: mem_send is
 * called by h2_conn_flush only, which runs deferred; (4) a connection ends (h2_conn_gone,
 * h2_conn_linger) only outside of nghttp2; (5) while s->over is false, c->session is there.
 *
 * Context: event thread.
 */
#ifndef WATCHD_H2_INT_H
#define WATCHD_H2_INT_H

#include <nghttp2/nghttp2.h>

#include "common/base/buf.h"
#include "common/base/list.h"
#include "common/base/listener.h"
#include "watchd/h2.h"

#define H2_SERVER_MAGIC 0x68325372u
#define H2_CONN_MAGIC 0x6832436eu
#define H2_STREAM_MAGIC 0x68325374u
#define H2_HTTP_MAGIC 0x68324874u

#define H2_READ_BYTES 65536        /* one read, and what one connection may say in a pass */
#define H2_FILL_BYTES 262144       /* one write, and what one connection gets in a pass */
#define H2_FRAME_ROOM (16384 + 64) /* what nghttp2 may add at once */
#define H2_STREAM_WINDOW (1 << 20) /* what a client may send ahead: a call, … */
#define H2_CONN_WINDOW (8 << 20)   /* … a connection */
#define H2_TOTAL_FACTOR 8        /* all connections together: so many times the limit of one, … */
#define H2_FAIR_BYTES 65536      /* … above which those are refused that hold more than this */
#define H2_TOTAL_STREAMS 1000000 /* calls open on all connections; … */
#define H2_FAIR_STREAMS 100      /* … then no connection may have more than this */
#define H2_SWEEP_MS 1000
#define H2_FIRST_MS 20000 /* a head or preface has to be there by then */
#define H2_LINGER_MS 2000
#define H2_CONTROL_MAX 10000      /* frames without use that a client may send in one sweep */
#define H2_LARGE_HEADERS_COST 500 /* headers over the limit, counted in such frames */
#define H2_RESET_BURST 5000       /* RST_STREAM frames at once, … */
#define H2_RESET_RATE 500         /* … and per second */
#define H2_HEAD_MAX 16384         /* of an HTTP/1.1 request */
#define H2_STATUS_MESSAGE_MAX 4096

enum conn_state { CONN_NEW, CONN_H2, CONN_HTTP1, CONN_LINGER, CONN_GONE };

struct h2_server {
	uint32_t magic;
	struct ev_loop *loop; /* borrowed */
	struct h2_limits limits;
	struct stats *stats; /* borrowed */
	size_t first_stat;
	const struct h2_server_ops *ops; /* borrowed */
	void *arg;
	nghttp2_session_callbacks *callbacks; /* owned */
	nghttp2_option *option;               /* owned */
	struct list listenings;               /* struct listening */
	struct list conns;
	struct list dirty; /* connections with something to send */
	struct ev_deferred flush;
	struct ev_timer sweep;
	size_t n_conns;
	size_t n_streams;
	size_t queued_bytes;
	size_t unfinished_bytes;
	struct {
		bool on, over;
		struct ev_timer late;
		struct ev_deferred end;
		void (*done)(void *arg);
		void *arg;
	} drain;
	uint64_t now_ms; /* when the present flush began */
	size_t fill_len; /* of fill_buf; 0 between flushes */
	bool fill_full;  /* there was more than fits */
	uint8_t fill_buf[H2_FILL_BYTES];
	uint8_t read_buf[H2_READ_BYTES];
};

/* The plain request that a connection is busy with. */
struct h2_http {
	uint32_t magic;
	bool busy; /* on_http was called, no answer yet */
	bool head_only;
	bool keep_alive; /* after the present answer; false: the last one was given */
};

/* Headers of the call that is arriving; offsets into conn->head, 0: there is none. */
struct h2_head {
	size_t path, token, authorization, api_version, encoding;
	size_t bytes; /* as HTTP/2 counts them */
	uint64_t timeout_us;
	unsigned pseudo; /* those that have come */
	bool regular;    /* others have begun */
	bool has_timeout, has_leader, is_post, is_grpc, malformed, too_large, wrong;
};

struct h2_conn {
	uint32_t magic;
	uint8_t state; /* enum conn_state; changes in conn_set_state only */
	bool ending;   /* by an error of the client's: nothing more is read, counted once */
	bool eof;      /* HTTP1: the client has said everything */
	bool greeted;  /* H2: a frame came, so the preface was right */
	struct h2_server *srv;
	int fd; /* owned */
	struct ev_io io;
	struct list in_all;
	struct list in_dirty;
	nghttp2_session *session; /* owned; in H2 */
	struct list streams;
	struct list closing; /* streams whose client has to take something: ended, or generated */
	struct list drained; /* streams whose on_drained is due */
	size_t n_streams;
	size_t queued_bytes;
	size_t unfinished_bytes;
	size_t n_paused;
	uint32_t n_control; /* frames without use since the last sweep */
	uint64_t heard_ms;  /* a byte came */
	uint64_t sent_ms;   /* a byte was taken */
	uint64_t quiet_ms;  /* since then there is no call */
	struct buf in;      /* first bytes, HTTP/1.1 */
	struct buf out;     /* what a write left over */
	size_t out_at;
	struct buf head; /* zero-terminated texts of cur */
	struct h2_head cur;
	struct h2_http http;
	struct ev_deferred again; /* the next pipelined request */
	struct ev_deferred release;
};

/* One message on its way out. */
struct out_msg {
	struct out_msg *next;
	const struct h2_source *source; /* generated: else NULL */
	void *arg;                      /* of source */
	uint32_t len;                   /* of the message */
	uint32_t at;                    /* sent of it, without prefix */
	uint32_t n_pieces;
	uint32_t piece, piece_at; /* the next byte */
	uint8_t prefix[5];
	uint8_t prefix_at;
	struct h2_slice pieces[]; /* copied bytes follow */
};

struct h2_stream {
	uint32_t magic;
	int32_t id;
	struct h2_conn *c;
	const struct h2_call_ops *ops; /* NULL: not accepted */
	void *user;
	struct list in_conn;
	struct list in_closing;
	struct list in_drained;
	/* In. */
	struct buf in;     /* bytes that are not handed over yet */
	size_t unconsumed; /* of the stream's window, while paused */
	bool paused;
	bool half_closed; /* the client's END_STREAM came */
	bool half_closed_told;
	bool got_message;
	/* Out. */
	bool begun;    /* response headers were submitted */
	bool over;     /* ended by anybody: nothing is taken any more */
	bool trailers; /* end after the queue: status and message below */
	bool deferred; /* nghttp2 waits for nghttp2_session_resume_data */
	bool was_high; /* low_bytes was reached */
	uint8_t status;
	char *message; /* owned */
	struct out_msg *first, **last;
	uint64_t left; /* bytes to send, prefixes and generated ones too */
	size_t queued_bytes;
	uint64_t moved_ms; /* a byte of it left */
	struct ev_timer deadline;
	struct ev_deferred again; /* messages after a pause */
};

/* --- h2_server.c --- */

static inline void h2_count(struct h2_server *srv, enum h2_stat stat, uint64_t n)
{
	stats_add(srv->stats, srv->first_stat + stat, n);
}
/* The connection has something to send: at the end of this pass. */
void h2_flush_soon(struct h2_conn *c);
/* A connection is closed and not in any list of the server's. */
void h2_server_conn_gone(struct h2_server *srv);

/* --- h2_conn.c --- */

/* "127.0.0.1:4711"; returns out. */
const char *h2_conn_peer(const struct h2_conn *c, char *out, size_t size);
/* Sends what there is; may end the connection. */
void h2_conn_flush(struct h2_conn *c);
/* Ends it now, without a word. Not from inside nghttp2. */
void h2_conn_gone(struct h2_conn *c);
/* As h2_conn_gone, counted and logged. */
void h2_conn_fail(struct h2_conn *c, enum h2_stat stat, const char *why);
/* The server stops: ends it as soon as what is open on it has ended. */
void h2_conn_shut(struct h2_conn *c);
/* Nothing more to say: shut, then LINGER. Everything was sent. */
void h2_conn_linger(struct h2_conn *c);
/* Once a sweep: what lasts too long. now: ev_now_ms. */
void h2_conn_sweep(struct h2_conn *c, uint64_t now);
/* For h2_http1.c: appended to what is to be sent. */
void h2_conn_put(struct h2_conn *c, const void *data, size_t len);

/* --- h2_session.c --- */

nghttp2_session_callbacks *h2_callbacks_new(void);
nghttp2_option *h2_option_new(void);
/* Settings and windows; the connection's session is there afterwards. */
void h2_session_start(struct h2_conn *c);
/* 0, or a code of nghttp2: the connection cannot go on. */
int h2_session_read(struct h2_conn *c, const uint8_t *data, size_t len);
/* Idle for too long: GOAWAY, counted. */
void h2_session_idle(struct h2_conn *c);
/* GOAWAY: no new calls; the connection ends with the last one that is open. */
void h2_session_shut(struct h2_conn *c);
/* Ends the stream's part of the books and the user's: on_gone. Frees it. */
void h2_stream_gone(struct h2_stream *s);

/* --- h2_in.c --- */

/* len bytes of DATA. */
void h2_stream_data(struct h2_stream *s, const uint8_t *data, size_t len);
/* END_STREAM came. */
void h2_stream_half_closed(struct h2_stream *s);
/* Drops what is not handed over. */
void h2_in_drop(struct h2_stream *s);

/* --- h2_out.c --- */

/* Headers and trailers in one: the whole answer of a call to which nothing was sent. */
void h2_out_status(
	struct h2_stream *s, const char *http_status, enum grpc_status status, const char *message);
/* The client's own deadline is over. */
void h2_out_deadline(void *stream);

/* nghttp2 asks for up to length bytes, then for the bytes themselves. */
ssize_t h2_out_read(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
	uint32_t *data_flags, nghttp2_data_source *source, void *user_data);
int h2_out_write(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd,
	size_t length, nghttp2_data_source *source, void *user_data);
/* Drops everything that is queued. */
void h2_out_drop(struct h2_stream *s);

/* --- h2_http1.c --- */

/* Bytes for HTTP/1.1 are in c->in. */
void h2_http1_read(struct h2_conn *c);
/* Everything was sent: the next request, or the end. */
void h2_http1_flushed(struct h2_conn *c);
/* The connection is going: tells who still owes an answer. */
void h2_http1_gone(struct h2_conn *c);

#endif
