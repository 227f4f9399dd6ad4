/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the supervisor and its workers say to each other. S->W or W->S; body fields in order, strings
 * as buf_put_string. Every reader ends with rd_end.
 *
 *   worker                         supervisor
 *     HELLO(version, build, role)  ->
 *                                  <- CONFIG(…) [config memfd]
 *                                  <- LISTENER(url) [socket], one per listener
 *                                  <- START
 *     READY                        ->
 *                                  <- PEER(role, up) for every worker that is UP, and on each change
 *                                  <- PING / PONG ->
 *                                  <- RELOAD [config memfd]    RELOADED(ok, text) ->
 *                                  <- CONTROL(line) [client socket]: the worker answers it itself
 *     RELAY(role, body) [fds]      ->  passed on unread as RELAY(from role, body) [fds]
 *     STATUS(text)                 ->  one line for `pgctl status`
 *                                  <- STOP    worker drains and exits 0
 */
#ifndef COMMON_IPC_WORKER_PROTO_H
#define COMMON_IPC_WORKER_PROTO_H

#include <stdint.h>

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
	WORKER_MSG_RELOADED,  /* u8 ok, string text; id of the RELOAD */
	WORKER_MSG_STATUS,    /* string, one line */
	/* both */
	WORKER_MSG_RELAY, /* be32 role (to, then from), be32 kind, rest: see the kind; fds */
	/* supervisor -> worker */
	WORKER_MSG_CONFIG, /* string node, string instance id, string state_dir, string run_dir,
			      string user, string log level, be32 mask of enabled roles; [config memfd] */
	WORKER_MSG_LISTENER, /* string url; [listening socket] */
	WORKER_MSG_START,    /* - */
	WORKER_MSG_PING,     /* - */
	WORKER_MSG_RELOAD,   /* string log level; [config memfd] */
	WORKER_MSG_STOP,     /* - */
	WORKER_MSG_PEER,     /* be32 role, u8 up, be32 generation */
	WORKER_MSG_CONTROL,  /* string request line, be32 uid; [client socket] */
	WORKER_MSG_LOG_LEVEL /* string level */
};

/* Kinds of RELAY. Bodies are described where they are used: common/ring/ring_link.h. */
enum relay_kind { RELAY_RING_ATTACH = 1, RELAY_RING_GRANT, RELAY_RING_REFUSE };

#endif
