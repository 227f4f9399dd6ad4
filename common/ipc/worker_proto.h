/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the supervisor and its workers say to each other. S->W or W->S; body fields in order,
 * strings as buf_put_string. Every reader ends with rd_end.
 *
 *   worker                         supervisor
 *     HELLO(version, build, role)  ->
 *                                  <- CONFIG(…) [config memfd]
 *                                  <- LISTENER(url) [socket], one per listener
 *                                  <- START
 *     READY                        ->
 *                                  <- PEER(role, up) of every worker that is UP, then changes
 *                                  <- PING / PONG ->
 *                                  <- RELOAD [config memfd]    RELOADED(ok, text) ->
 *                                  <- CONTROL(line) [client socket]: the worker answers it itself
 *     RELAY(role, body) [fds]      ->  passed on unread as RELAY(from role, body) [fds]
 *     STATUS(text)                 ->  one line for `pgctl status`
 *                                  <- STOP    worker drains and exits 0
 *
 * Bodies are written by worker_put_* and read by worker_get_*, the same code on both sides. A
 * worker_get_* fills *ret only if it returns 0; its strings are then the caller's, to be given
 * back by worker_free_* (or free). Nothing here keeps state: any thread may call it.
 */
#ifndef COMMON_IPC_WORKER_PROTO_H
#define COMMON_IPC_WORKER_PROTO_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"

#define WORKER_PROTO_VERSION 1

/* Descriptors that a worker is born with. */
#define WORKER_FD_IMSG 3
#define WORKER_FD_PAGE 4 /* memfd of STATS_PAGE_BYTES: statistics and panic slot */

/* Environment of a worker. */
#define WORKER_ENV_GENERATION "HOWDAH_GENERATION"

enum role {
	ROLE_POSTGRES,
	ROLE_WALSTREAMD,
	ROLE_BROKERD,
	ROLE_WATCHD,
	ROLE_COUNT,
	ROLE_SUPERVISOR = 254,
	ROLE_LOCAL = 255 /* in the command table: pgctl itself */
};

/* "walstreamd"; "?" for what is none. */
const char *role_str(uint32_t role);
/* -EINVAL if there is no such worker. */
int role_parse(const char *name, enum role *ret_role) __attribute__((warn_unused_result));

enum worker_msg {
	/* worker -> supervisor */
	WORKER_MSG_HELLO = 1, /* be32 protocol version, string build id, be32 role */
	WORKER_MSG_READY,     /* - */
	WORKER_MSG_PONG,      /* - ; id of the PING */
	/* u8 ok, string text; id of the RELOAD. Not ok: why. Ok: "" or the keys that need more than
	 * this to take effect, as words "worker:KEY" (its restart) and "suite:KEY". */
	WORKER_MSG_RELOADED,
	WORKER_MSG_STATUS, /* string, one line */
	/* both */
	WORKER_MSG_RELAY, /* be32 role (to, then from), be32 kind, rest: see the kind; fds */
	/* supervisor -> worker */
	WORKER_MSG_CONFIG,   /* string node, string instance id, string state_dir, string run_dir,
				string user, string log level, be32 mask of enabled roles; [config
				memfd] */
	WORKER_MSG_LISTENER, /* string url; [listening socket] */
	WORKER_MSG_START,    /* - */
	WORKER_MSG_PING,     /* - */
	WORKER_MSG_RELOAD,   /* string log level; [config memfd] */
	WORKER_MSG_STOP,     /* - */
	WORKER_MSG_PEER,     /* be32 role, u8 up, be32 generation */
	WORKER_MSG_CONTROL,  /* string request line, be32 uid; [client socket] */
	WORKER_MSG_LOG_LEVEL /* string level */
};

/* "HELLO"; "?" for what is none. */
const char *worker_msg_str(uint32_t type);

/* Kinds of RELAY. Bodies are described where they are used: common/ring/ring_link.h. */
enum relay_kind { RELAY_RING_ATTACH = 1, RELAY_RING_GRANT, RELAY_RING_REFUSE };

struct worker_hello {
	uint32_t version; /* WORKER_PROTO_VERSION of the sender */
	char *build;      /* HOWDAH_VERSION of the sender */
	uint32_t role;
};

struct worker_config {
	char *node;
	char *instance;
	char *state_dir;
	char *run_dir;
	char *user;
	char *log_level;
	uint32_t enabled_roles; /* 1 << enum role */
};

struct worker_reloaded {
	bool ok;
	char *text; /* why not */
};

struct worker_peer {
	uint32_t role;
	bool up;
	uint32_t generation;
};

struct worker_control {
	char *line; /* what the client sent, from its first unanswered line on */
	uint32_t uid;
};

/* The head of a RELAY; what follows it belongs to the kind. */
struct worker_relay {
	uint32_t role; /* to, on the way to the supervisor; from, on the way from it */
	uint32_t kind;
};

void worker_put_hello(struct buf *b, const struct worker_hello *m);
int worker_get_hello(struct rd *r, struct worker_hello *ret) __attribute__((warn_unused_result));
void worker_free_hello(struct worker_hello *m);

void worker_put_config(struct buf *b, const struct worker_config *m);
int worker_get_config(struct rd *r, struct worker_config *ret) __attribute__((warn_unused_result));
void worker_free_config(struct worker_config *m);

void worker_put_reloaded(struct buf *b, const struct worker_reloaded *m);
int worker_get_reloaded(struct rd *r, struct worker_reloaded *ret)
	__attribute__((warn_unused_result));
void worker_free_reloaded(struct worker_reloaded *m);

void worker_put_peer(struct buf *b, const struct worker_peer *m);
int worker_get_peer(struct rd *r, struct worker_peer *ret) __attribute__((warn_unused_result));

void worker_put_control(struct buf *b, const struct worker_control *m);
int worker_get_control(struct rd *r, struct worker_control *ret)
	__attribute__((warn_unused_result));
void worker_free_control(struct worker_control *m);

void worker_put_relay(struct buf *b, const struct worker_relay *m);
/* Leaves r at the first byte of the kind's own body. */
int worker_get_relay(struct rd *r, struct worker_relay *ret) __attribute__((warn_unused_result));

/* STATUS (text), LISTENER (url), RELOAD and LOG_LEVEL (level): one string each. */
void worker_put_text(struct buf *b, const char *text);
int worker_get_text(struct rd *r, char **ret_text) __attribute__((warn_unused_result));
/* READY, PONG, START, PING, STOP: nothing. */
int worker_get_nothing(struct rd *r) __attribute__((warn_unused_result));

#endif
