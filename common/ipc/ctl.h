/* SPDX-License-Identifier: PostgreSQL */
/*
 * The outside control protocol: one JSON object per line over run_dir/control.sock.
 *
 *     > {"cmd": "mqtt.sessions", "args": {"limit": 10}, "id": 1, "v": 1}
 *     < {"id": 1, "row": {…}}
 *     < {"id": 1, "ok": true}        or {"id": 1, "error": {"code": "…", "message": "…", "hint": "…"}}
 *
 * The supervisor reads the first line, looks the command up in the table, checks the permission
 * class, and answers it or hands the client's socket with the line to the worker that owns the
 * command. From then on the socket is that worker's: rows stream with the client's own
 * back-pressure, and a slow client costs the supervisor nothing.
 *
 * Context: event thread. Limits: CTL_LINE_MAX per request line, CTL_CLIENTS_MAX clients,
 * CTL_CLIENTS_PER_UID_MAX of one uid.
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
#define CTL_LINE_MAX 65536
#define CTL_CLIENTS_MAX 64
#define CTL_CLIENTS_PER_UID_MAX 32

enum ctl_perm { CTL_PERM_READ, CTL_PERM_ADMIN };

/* One admin command. words = what the user types, name = the same joined by dots. */
struct ctl_command {
	const char *name; /* "mqtt.map.add" */
	const char *args; /* "RELATION TOPIC [--qos N] …" for help; also what pgctl parses */
	uint32_t target;  /* enum role */
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

struct ctl_client;

/*
 * Handles one request. Answer with ctl_row / ctl_ok / ctl_fail, now or later; exactly one of ok or
 * fail ends a request. Keep the client only between ctl_hold and the end of the request; `on_gone`
 * tells that it left meanwhile (drop your pointer; do not answer).
 */
struct ctl_handler {
	const char *name; /* of the command in the table */
	void (*fn)(struct ctl_client *c, const struct ctl_request *req, void *arg);
};

/* Steals row. 0; -EAGAIN: buffer is over its mark: still taken, but pause and wait for on_drained. */
int ctl_row(struct ctl_client *c, json_t *row);
void ctl_ok(struct ctl_client *c);
/* code: "not-found", "invalid", "unavailable", "permission", "failed"…; hint may be NULL. */
void ctl_fail(struct ctl_client *c, const char *code, const char *hint, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void ctl_hold(struct ctl_client *c, void (*on_drained)(struct ctl_client *c, void *arg),
	void (*on_gone)(struct ctl_client *c, void *arg), void *arg);

/* Server side: a set of clients with the handlers of this process. */
struct ctl_server;

struct ctl_server_ops {
	/* For commands whose target is another process: takes fd over (the supervisor passes it on).
	 * Returns 0, or a negative code with *ret_why set and fd untouched. NULL in workers: there such
	 * a command is answered with an error. */
	int (*route)(uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why,
		void *arg);
};

struct ctl_server *ctl_server_new(struct ev_loop *loop, uint32_t self_role,
	const struct ctl_handler *handlers, uid_t allowed_uid, const struct ctl_server_ops *ops,
	void *arg);
/* Closes every client. Nulls *s. */
void ctl_server_free(struct ctl_server **s);
/* Supervisor: accepts on this listening socket (owned from here on). */
int ctl_server_listen(struct ctl_server *s, int listen_fd) __attribute__((warn_unused_result));
/* Worker: a client handed over together with its first line. Takes over fd. */
void ctl_server_adopt(struct ctl_server *s, int fd, uid_t uid, const char *line);

/* Client side (pgctl), blocking. */
struct ctl_conn;
int ctl_connect(const char *socket_path, struct ctl_conn **ret_conn) __attribute__((warn_unused_result));
/* Sends a command (steals args, may be NULL) and calls on_row (borrowed row) for each; 0, or a
 * negative code with *ret_error (owned by the caller, may stay NULL) = the error object. */
int ctl_call(struct ctl_conn *conn, const char *cmd, json_t *args,
	void (*on_row)(json_t *row, void *arg), void *arg, json_t **ret_error)
	__attribute__((warn_unused_result));
void ctl_disconnect(struct ctl_conn **conn);

#endif
