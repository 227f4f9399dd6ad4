/* SPDX-License-Identifier: PostgreSQL */
/*
 * The outside control protocol: one JSON object per line over run_dir/control.sock.
 *
 *     > {"cmd": "mqtt.sessions", "args": {"limit": 10}, "id": 1, "v": 1}
 *     < {"id": 1, "row": {…}}
 *     < {"id": 1, "ok": true}
 *     or {"id": 1, "error": {"code": "…", "message": "…", "hint": "…"}}
 *
 * The supervisor reads the first line, looks the command up in the table, checks the permission
 * class, and answers it or hands the client's socket with the line to the worker that owns the
 * command. From then on the socket is that worker's: rows stream with the client's own
 * back-pressure, and a slow client costs the supervisor nothing. A request line carries the
 * version of the protocol; a daemon of another version refuses it by the code "version".
 *
 * One request at a time per connection: lines behind it wait. A client that ends its sending side
 * still gets its answers.
 *
 * Context: event thread (server), anywhere (client: it blocks).
 *
 * Limits: CTL_LINE_MAX per request line ("invalid", then closed); CTL_CLIENTS_MAX clients, of one
 * uid CTL_CLIENTS_PER_UID_MAX, the last CTL_CLIENTS_RESERVE only for root and the server's own
 * user ("busy", then closed); CTL_STALL_MS without progress while it is the client's turn (closed);
 * CTL_OUT_MAX bytes waiting for one client, if a handler ignores CTL_OUT_MARK (closed).
 */
#ifndef COMMON_IPC_CTL_H
#define COMMON_IPC_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/ipc/worker_proto.h"

#define CTL_VERSION 1
#define CTL_LINE_MAX 16000 /* fits a worker's CONTROL message, see IMSG_BODY_MAX */
#define CTL_CLIENTS_MAX 64
#define CTL_CLIENTS_PER_UID_MAX 32
#define CTL_CLIENTS_RESERVE 8
#define CTL_STALL_MS 30000
#define CTL_OUT_MARK (256 * 1024)
#define CTL_OUT_MAX (8 * 1024 * 1024)
#define CTL_REPLY_MAX (16 * 1024 * 1024) /* of one line, to the client side */

enum ctl_perm { CTL_PERM_READ, CTL_PERM_ADMIN };

/* One admin command. words = what the user types, name = the same joined by dots. */
struct ctl_command {
	const char *name; /* "mqtt.map.add" */
	/* "RELATION TOPIC [--qos N] …" for help; also what pgctl parses: WORD a positional
	 * argument, [WORD] one that may be left out, [--name WORD] an option, [--name WORD]... one
	 * that may come again. Key of the request's args: the word or the option's name in lower
	 * case. pgctl/args.h has the whole grammar. */
	const char *args;
	uint32_t target; /* enum role */
	enum ctl_perm perm;
	const char *help; /* one line */
};

/* The command table: one for the whole suite (ctl_table.c), ends with name == NULL. */
extern const struct ctl_command ctl_table[];
const struct ctl_command *ctl_table_find(const char *name);

/* A request, parsed. */
struct ctl_request {
	const char *cmd; /* borrowed from root */
	json_t *args;    /* borrowed from root; always an object */
	int64_t id;
	json_t *root; /* owned */
};

/* Pure parser of one line without its newline (fuzz target). On failure a static text says why. */
int ctl_request_parse(const char *line, size_t len_bytes, struct ctl_request *ret_req,
	const char **ret_why) __attribute__((warn_unused_result));
void ctl_request_free(struct ctl_request *req);
/* One line: compact JSON and a newline. */
void ctl_put_json(struct buf *out, const json_t *object);

struct ctl_client;

/*
 * Handles one request. Answer with ctl_row / ctl_ok / ctl_fail, now or later; exactly one of ok or
 * fail ends a request. Who answers later calls ctl_hold before returning (ASSERTed) and keeps the
 * client only until the end of the request; `on_gone` tells that it left meanwhile (drop your
 * pointer; do not answer). req is borrowed and lives until the end of the request. arg is that of
 * ctl_server_new.
 */
struct ctl_handler {
	const char *name; /* of the command in the table */
	void (*fn)(struct ctl_client *c, const struct ctl_request *req, void *arg);
};

/* Steals row. 0; -EAGAIN: buffer is over its mark: still taken, but pause and wait for on_drained
 * (never called from inside ctl_row). */
int ctl_row(struct ctl_client *c, json_t *row);
void ctl_ok(struct ctl_client *c);
/* code: "not-found", "invalid", "unavailable", "permission", "failed"…; hint may be NULL. */
void ctl_fail(struct ctl_client *c, const char *code, const char *hint, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* on_drained may be NULL for answers that are small. */
void ctl_hold(struct ctl_client *c, void (*on_drained)(struct ctl_client *c, void *arg),
	void (*on_gone)(struct ctl_client *c, void *arg), void *arg);

/* Server side: a set of clients with the handlers of this process. */
struct ctl_server;

struct ctl_server_ops {
	/* For commands whose target is another process: takes fd over (the supervisor passes it on
	 * with line, which is all that the client sent from this request on, newlines included).
	 * Returns 0, or a negative code with *ret_why set and fd untouched. NULL in workers: there
	 * such a command is answered with an error. */
	int (*route)(uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why,
		void *arg);
};

/* handlers: ends with name == NULL; may be NULL. allowed_uid: who may besides root and ourselves.
 * ops may be NULL. handlers and ops are borrowed for the server's life. */
struct ctl_server *ctl_server_new(struct ev_loop *loop, uint32_t self_role,
	const struct ctl_handler *handlers, uid_t allowed_uid, const struct ctl_server_ops *ops,
	void *arg);
/* Closes every client (on_gone for those held). Nulls *s. */
void ctl_server_free(struct ctl_server **s);
/* Supervisor: accepts on this listening socket (owned from here on). */
int ctl_server_listen(struct ctl_server *s, int listen_fd) __attribute__((warn_unused_result));
/* Worker: a client handed over together with what it sent so far. Takes over fd. */
void ctl_server_adopt(struct ctl_server *s, int fd, uid_t uid, const char *line);
size_t ctl_server_count(const struct ctl_server *s);
/* Tests: another stall time than CTL_STALL_MS. */
void ctl_server_set_stall_ms(struct ctl_server *s, uint32_t stall_ms);
/* Says why not on a client's socket, without ever blocking, and closes it. */
void ctl_refuse(int fd, const char *code, const char *message, const char *hint);

/*
 * Client side (pgctl), blocking. A connection serves any number of calls; where the supervisor gave
 * it to a worker or closed it between two calls, the next call connects again.
 */
struct ctl_conn;
int ctl_connect(const char *socket_path, struct ctl_conn **ret_conn)
	__attribute__((warn_unused_result));
/* Sends a command (steals args, may be NULL) and calls on_row (borrowed row; may be NULL) for each.
 * 0; -ERR_STATE: the daemon refused, *ret_error (owned by the caller) is the error object; other
 * negative codes: no answer (-ERR_CLOSED, -ETIMEDOUT, -ERR_MALFORMED, …) and *ret_error is NULL. */
int ctl_call(struct ctl_conn *conn, const char *cmd, json_t *args,
	void (*on_row)(json_t *row, void *arg), void *arg, json_t **ret_error)
	__attribute__((warn_unused_result));
void ctl_disconnect(struct ctl_conn **conn);

#endif
