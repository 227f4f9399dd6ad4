/* SPDX-License-Identifier: PostgreSQL */
/*
 * The embedded PostgreSQL: the worker `postgres`. cluster.c is its state machine on the event loop;
 * cluster_prepare.c and cluster_schema.c are what may block and therefore runs in helper
 * processes of its own.
 *
 * Context: the worker process; never as root.
 */
#ifndef SUPERVISOR_CLUSTER_H
#define SUPERVISOR_CLUSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/ipc/daemon.h"

/* The callbacks of struct daemon_info. */
int cluster_init(struct daemon *d);
int cluster_reload(struct daemon *d, const struct conf *next, const char **ret_why);
void cluster_drain(struct daemon *d);
void cluster_fini(struct daemon *d);

/* Where everything is. Strings are owned. */
struct cluster_paths {
	char *state_dir;
	char *data;    /* state_dir/postgres */
	char *sockets; /* run_dir/postgres */
	char *bindir;  /* as configured; "": choose */
	char *sql_dir; /* of the schema's files */
	char *user;    /* whom the workers run as, by the configuration */
};

/*
 * Helpers, blocking, each in a process of its own; their return value becomes its exit status: 0,
 * EXIT_CONFIG or 1. They log what went wrong.
 *
 * Prepare: checks the version, creates the data directory if there is none (atomically), writes
 * our settings.
 */
int cluster_prepare(const struct cluster_paths *p);
/* Waits for connections, creates the database, installs or upgrades the schema. */
int cluster_schema(const struct cluster_paths *p);

/* The server program for this data directory, or for a new one: configured, else of the data
 * directory's major version, else the newest. Caller frees *ret_bindir. -ERR_CONFIG: *why (static)
 * says what to do. */
int cluster_choose_bindir(const struct cluster_paths *p, const char *lib_root, char **ret_bindir,
	const char **why) __attribute__((warn_unused_result));
#define CLUSTER_LIB_ROOT "/usr/lib/postgresql"

/* First number in data/PG_VERSION; -ENOENT: there is none. */
int cluster_data_version(const char *data, int *ret_major) __attribute__((warn_unused_result));

/* What postmaster.pid says. */
struct postmaster_file {
	pid_t pid;
	bool ready;
};
/* -ENOENT: there is none; -ERR_MALFORMED: it is being written, or it is of another directory. */
int cluster_read_pidfile(const char *data, struct postmaster_file *ret)
	__attribute__((warn_unused_result));
/* The process is alive, of our uid, and works in the data directory. */
bool cluster_process_is_ours(pid_t pid, const char *data);
/* It has ended, but nobody has collected it: for kill(pid, 0) it is still there. */
bool cluster_process_is_zombie(pid_t pid);
/* Calls fn for every process that works in the data directory; returns their number. */
size_t cluster_each_process(const char *data, void (*fn)(pid_t pid, void *arg), void *arg);
/* pg_control says that the server is in crash recovery. */
bool cluster_in_recovery(const char *data);

#endif
