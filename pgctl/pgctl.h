/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl: the admin command. One process per command, blocking, no state of its own.
 *
 * Commands of the table (common/ipc/ctl.h) whose target is a process of the suite go over the
 * control socket; those of ROLE_LOCAL are done here, most of them over a database connection of our
 * own.
 *
 * Context: a short-lived process of an administrator.
 */
#ifndef PGCTL_PGCTL_H
#define PGCTL_PGCTL_H

#include <jansson.h>
#include <stdbool.h>

#include "common/ipc/ctl.h"
#include "pgctl/output.h"

/* Exit status; pgctl(1) lists them. */
enum pgctl_exit {
	PGCTL_OK = 0,
	PGCTL_FAILED = 1,
	PGCTL_USAGE = 2,
	PGCTL_UNREACHABLE = 3, /* the suite, or the worker that owns the command */
	PGCTL_DENIED = 4,
	PGCTL_CONFIG = 78
};

struct pgctl {
	const char *socket_given; /* -s, or NULL */
	const char *conf_given;   /* -c, or NULL */
	char *socket;             /* owned; where the suite should listen, see pgctl_socket */
	struct output out;
	bool json;
	FILE *err;
};

/* The whole command; out and err are where it prints. */
int pgctl_run(int argc, char **argv, FILE *out, FILE *err);

/* "pgctl: MESSAGE; HINT" (hint may be NULL), or as JSON with -j. Returns status. */
int pgctl_fail(struct pgctl *p, int status, const char *hint, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* "pgctl: warning: MESSAGE; HINT", or as JSON with -j. */
void pgctl_warn(struct pgctl *p, const char *hint, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Path of the control socket: -s, else run_dir of -c FILE, else the default. Borrowed; NULL: failed
 * and said so, *ret_status is set. */
const char *pgctl_socket(struct pgctl *p, int *ret_status);
/* Calls the suite; rows go to on_row, or are printed if it is NULL. Returns an exit status. */
int pgctl_call(struct pgctl *p, const char *cmd, json_t *args,
	void (*on_row)(json_t *row, void *arg), void *arg);

/* What the commands of ROLE_LOCAL do. args: borrowed, as in a request. */
struct pgctl_local {
	const char *name;
	int (*fn)(struct pgctl *p, json_t *args);
};
int cmd_bench_pipeline(struct pgctl *p, json_t *args);
int cmd_bench_wal(struct pgctl *p, json_t *args);
int cmd_bench_watch(struct pgctl *p, json_t *args);
int cmd_config_check(struct pgctl *p, json_t *args);
int cmd_db_init(struct pgctl *p, json_t *args);
int cmd_db_status(struct pgctl *p, json_t *args);
int cmd_db_upgrade(struct pgctl *p, json_t *args);
int cmd_doctor(struct pgctl *p, json_t *args);
int cmd_help(struct pgctl *p, json_t *args);
int cmd_map_add(struct pgctl *p, json_t *args);
int cmd_map_list(struct pgctl *p, json_t *args);
int cmd_map_remove(struct pgctl *p, json_t *args);
int cmd_node_list(struct pgctl *p, json_t *args);
int cmd_node_remove(struct pgctl *p, json_t *args);
int cmd_wal_slots(struct pgctl *p, json_t *args);
int cmd_wal_slots_alter(struct pgctl *p, json_t *args);
int cmd_wal_slots_create(struct pgctl *p, json_t *args);
int cmd_wal_slots_drop(struct pgctl *p, json_t *args);
int cmd_wal_tail(struct pgctl *p, json_t *args);
/* How to call it, to f. */
void help_usage(FILE *f);

#endif
