/* SPDX-License-Identifier: PostgreSQL */
/*
 * One client's connection and session: here they live and die together.
 *
 *            CONNECT accepted            DISCONNECT, refusal, timeout
 *     NEW ------------------------> UP ------------------------------> LINGER --sent, EOF or 2 s-->
 * GONE
 *      |---- refused, timeout ------------------------------------------^  (connection lost: at
 * once)
 *
 * LINGER: the last words (CONNACK, DISCONNECT) are on their way; input is read and thrown away, so
 * that the kernel does not answer it with a reset that would destroy them. The session itself
 * (subscriptions, queue, will, name) is gone by then.
 *
 * Out, QoS 1: q is a ring of deliveries; the first q_sent are on the wire under consecutive packet
 * identifiers from q_pid on, the others wait for the window.
 * In, QoS 1: a publish is a struct inbound until its row is committed; messages and PUBACKs go out
 * in the order of the publishes.
 *
 * Invariants: (1) q_sent <= q_len <= q_cap, q_sent <= send_window; (2) a delivery whose message is
 * NULL is acknowledged or given up and lies behind an unacknowledged one; (3) n_inbound <=
 * receive_maximum; (4) reading is off exactly while paused or stalled_out.
 *
 * Context: event thread.
 */
#ifndef BROKERD_SESSION_H
#define BROKERD_SESSION_H

#include <uthash.h>

#include "brokerd/broker_int.h"
#include "brokerd/mqtt_proto.h"

#define SESSION_MAGIC 0x6d737365u
#define SESSION_LINGER_MS 2000
#define SESSION_OUT_CHUNK 65536     /* QoS 1 is encoded up to so many bytes ahead of the socket */
#define SESSION_OUT_SLACK 65536     /* answers beyond max_queued_bytes before reading stops */
#define SESSION_SELF_QUEUE_FACTOR 4 /* see session_may_publish */
#define SESSION_LONG_PAUSE_MS 1000  /* a shorter pause does not stop the clock of ack_timeout */
#define SESSION_CLIENT_ID_MAX 1024
#define SESSION_FIRST_PACKET_ID 65520 /* so that every busy session passes the wrap early */

enum session_state { SESSION_NEW, SESSION_UP, SESSION_LINGER, SESSION_GONE, SESSION_STATE_COUNT };
const char *session_state_str(enum session_state state);

struct delivery {
	struct message *m; /* one reference; NULL: acknowledged or given up */
	union {
		uint32_t one;
		uint32_t *many; /* owned, if n_ids > 1 */
	} ids;                  /* subscription identifiers */
	uint32_t n_ids;
};

/* A publish on its way into the database; outlives its session. */
struct inbound {
	uint32_t magic;
	struct list in_session; /* or in broker->waiting_wills, or nowhere */
	struct list in_broker;  /* all of them */
	struct broker *b;
	struct session *s; /* NULL: gone, or a will */
	struct message *m; /* one reference */
	char *client_id;   /* owned; only of a will that waits */
	uint8_t *props;    /* owned; only of a will that waits */
	uint32_t props_len;
	uint16_t packet_id;
	bool done;
	bool committed; /* and so to be published, in its turn */
	uint8_t reason; /* for the PUBACK, once done */
};

struct will {
	struct message *m;
	uint32_t expiry_s;
	bool has_expiry;
};

struct alias {
	char *topic; /* owned; NULL: not set */
	uint32_t len;
};

struct session {
	uint32_t magic;
	uint8_t state; /* enum session_state; changed in session_set_state only */
	uint8_t version;
	bool paused;       /* in broker->paused: a publish waits for room */
	bool stalled_out;  /* too much waits to be sent to go on reading */
	bool congested;    /* the queue is over its mark */
	bool asked_expiry; /* CONNECT asked for a session that outlives its connection */
	bool shut;         /* LINGER: everything was sent */
	uint8_t end;       /* enum end_reason, once it is not NEW or UP */
	struct broker *b;
	int fd;
	uint16_t keep_alive_s;
	uint16_t send_window;     /* min(client's receive maximum, ours) */
	uint16_t receive_maximum; /* as we announced it */
	uint16_t alias_maximum;   /* as we announced it */
	uint32_t max_in_bytes;    /* as we announced it; a reload does not change it */
	uint32_t max_out_bytes;   /* the client's maximum packet size; 0: none */
	uint32_t n_subs;
	struct ev_io io;
	struct ev_timer timer;
	uint64_t timer_at_ms;
	struct ev_deferred release;
	struct list in_all, in_dirty, in_paused;
	UT_hash_handle hh;
	char *client_id; /* owned; zero-terminated */
	uint64_t serial; /* of the connection */
	uint64_t origin; /* of the client identifier, for no-local */
	uint64_t created_ms, heard_ms, sent_ms, acked_ms;
	uint64_t unread_ms;   /* since when it is paused or stalled_out */
	int64_t connected_at; /* seconds since the epoch, for people */
	uint64_t bytes_in, bytes_out, n_publish_in, n_publish_out, n_dropped;
	struct buf in;
	struct buf out;
	size_t out_at; /* bytes of out that are already sent */
	struct will *will;
	struct alias *aliases; /* alias_maximum of them, or NULL */
	struct list subs;      /* struct topic_sub by in_owner */
	struct list inbound;   /* struct inbound, oldest first */
	uint32_t n_inbound;
	struct delivery *q;
	uint32_t q_cap, q_head, q_len, q_sent;
	uint16_t q_pid;
	uint64_t q_bytes;
	/* Scratch of broker_publish. */
	uint64_t match_generation;
	struct session *match_next;
	struct topic_sub *match_subs;
	uint8_t match_qos;
};

/* Takes over a connected, nonblocking fd. */
struct session *session_new(struct broker *b, int fd);
/* Ends it: by the table of ends; why goes to the log and, where the protocol has a place, to the
 * client. Safe in every callback; the memory goes later. */
void session_end(struct session *s, enum end_reason reason, const char *why);
/* The same with another reason code than the table's. */
void session_end_code(struct session *s, enum end_reason reason, uint8_t code, const char *why);
/* NEW: answers CONNECT with this code and ends. version: in which to answer, 0: not at all. */
void session_refuse(
	struct session *s, enum end_reason reason, uint8_t version, uint8_t code, const char *why);
/* NEW -> UP, under client_id (copied). */
void session_up(struct session *s, const char *client_id);
/* Goes on reading after a pause. */
void session_resume(struct session *s);
/* The timer fires at this time at the latest. */
void session_wake_at(struct session *s, uint64_t at_ms);
/* LINGER -> GONE without waiting for anybody. */
void session_abandon(struct session *s);
/* Sends what there is; the broker's flush. */
void session_flush(struct session *s);
/* "client "x" from 127.0.0.1:5" for log lines; out of at least 256 bytes. */
const char *session_name(const struct session *s, char *out, size_t size);
const char *session_address(const struct session *s, char *out, size_t size);
static inline size_t session_out_bytes(const struct session *s)
{
	return s->out.len_bytes - s->out_at;
}

/* --- session_in.c --- */

enum handled { HANDLED, HANDLED_LATER }; /* LATER: nothing was done, the session is paused */
/* Takes one whole packet. */
enum handled session_handle(struct session *s, const uint8_t *data, size_t len_bytes);
/* Encodes p for the client and sends it at the end of the pass. */
void session_send(struct session *s, const struct mqtt_packet *p);
/* Publishes the will, if there is one, and forgets it. */
void session_publish_will(struct session *s);
void session_drop_will(struct session *s);
/* Tries to log a publish that waits for room (a will). */
int inbound_log(struct inbound *in, const char *client_id, const void *props, size_t props_len)
	__attribute__((warn_unused_result));
/* The writer's answer; arg is the struct inbound. */
void inbound_logged(int err, const char *why, void *arg);
void inbound_free(struct inbound **in);
/* The session goes: its publishes finish without it. */
void session_forget_inbound(struct session *s);

/* --- session_out.c --- */

/* One message for this session: match_subs and match_qos say by which subscriptions. */
void session_deliver(struct session *s, struct message *m);
/* Puts waiting deliveries on the wire as far as window and buffer go. */
void session_pump(struct session *s);
/* PUBACK. False: there is no such delivery. */
bool session_acked(struct session *s, uint16_t packet_id);
/* Gives up the queue: every message is released. */
void session_drop_queue(struct session *s);

#endif
