/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the commands of `pgctl bench` share: a throw-away server, the programs that are measured,
 * and the promise that nothing of it is left behind.
 *
 * Two processes. The keeper is pgctl itself: it makes the folder, starts the bench process and
 * waits. The bench process does the work as an unprivileged user; every program is its child. When
 * it has ended, in whatever way, its children belong to the keeper (PR_SET_CHILD_SUBREAPER), which
 * ends them and removes the folder.
 *
 * Context: pgctl; everything blocks. Functions that can fail return an exit status of pgctl.h and
 * have said why.
 */
#ifndef PGCTL_BENCH_H
#define PGCTL_BENCH_H

#include <libpq-fe.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "pgctl/pgctl.h"

/* Seen by both processes. */
struct bench_shared {
	_Atomic int32_t server_pid; /* postmaster; 0: none */
	_Atomic int32_t suite_pid;  /* howdahd */
	/* Of the plain libpq loop (or the proxy): written by it alone. */
	_Atomic uint64_t events;
	_Atomic uint64_t last_event_us; /* CLOCK_REALTIME */
};

struct bench {
	struct pgctl *p;     /* borrowed */
	const char *command; /* "bench wal", for messages */
	char *dir;           /* owned; only we may enter it */
	char *bindir;        /* owned; of the server */
	uid_t uid;           /* whom the bench process runs as */
	gid_t gid;
	struct bench_shared *shared;
	int port;       /* of the server, on 127.0.0.1 */
	int server_num; /* its version: 150004 */
};

/* ---- The keeper (bench_keeper.c) ------------------------------------------------------------- */

struct bench_job {
	const char *command;
	const char *bindir;  /* NULL: look for the newest server */
	uint64_t disk_bytes; /* needed below the temporary folder */
	int (*fn)(struct bench *b, void *arg);
	void *arg;
};

/* Runs fn in the bench process; all that it started and made is gone afterwards. */
int bench_run(struct pgctl *p, const struct bench_job *job);
/* One line about what is being done, to standard error. */
void bench_progress(const struct bench *b, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Option key of args: 1 .. most into *value, which stays if it is not given. */
int bench_take_number(
	struct pgctl *p, json_t *args, const char *key, json_int_t most, json_int_t *value);
/* Option key of args, words of names with commas between them: chosen[i] for each name that is
 * among them; for all, if it is not given. */
int bench_take_words(struct pgctl *p, json_t *args, const char *key, const char *const *names,
	size_t n_names, bool *chosen);

/* ---- Processes (bench_proc.c) ---------------------------------------------------------------- */

/* argv[0] is the path. log: for its stdout and stderr, appended to; NULL: /dev/null. death_signo:
 * what it gets when we die. pid_at, if not NULL, holds its pid before it runs. -1: cannot fork. */
pid_t bench_spawn(
	const char *const *argv, const char *log, int death_signo, _Atomic int32_t *pid_at);
/* Runs to its end. 0: it exited with 0. */
int bench_exec(const char *const *argv, const char *log);
/* Sends signo, then SIGKILL after timeout_ms. ret_used may be NULL. Only of our own children. */
void bench_end(pid_t pid, int signo, int timeout_ms, struct rusage *ret_used);
/* It has ended by itself (and is reaped now). */
bool bench_has_ended(pid_t pid);
/* ns on CPU, all threads; 0 if there is no such process. */
uint64_t bench_cpu_ns(pid_t pid);
/* Sleeps in a system call: neither runs nor waits for a CPU. */
bool bench_is_asleep(pid_t pid);
/* From here on bench_peak_bytes counts anew, where we may; where not, since it began. */
void bench_reset_peak(pid_t pid);
uint64_t bench_peak_bytes(pid_t pid);
/* How often it has gone to sleep so far: each time is a wake-up, which is what reading costs most.
 */
uint64_t bench_sleeps(pid_t pid);
uint64_t bench_now_us(void);      /* CLOCK_MONOTONIC */
uint64_t bench_realtime_us(void); /* CLOCK_REALTIME */
void bench_pause_us(uint64_t us);
/* A port on 127.0.0.1 that was free just now; 0: none. */
int bench_free_port(void);
/* The last lines of a file in one line of at most size bytes: for messages. Returns out. */
const char *bench_tail(const char *file, char *out, size_t size);
/* The middle one; sorts values. */
double bench_median(double *values, size_t n);
/* A JSON number rounded to so many digits behind the point, null if it is negative. */
json_t *bench_number(double value, int digits);

/* ---- The server (bench_server.c) ------------------------------------------------------------- */

enum bench_transport { BENCH_TCP, BENCH_TLS, BENCH_UNIX, BENCH_TRANSPORTS };
extern const char *const bench_transport_names[BENCH_TRANSPORTS];

/* settings: more lines for postgresql.conf. */
int bench_server_start(struct bench *b, const char *settings);
/* A libpq connection string. The caller frees it. */
char *bench_conninfo(const struct bench *b, enum bench_transport transport, const char *dbname);
/* Over the Unix socket. */
int bench_connect(struct bench *b, const char *dbname, PGconn **ret_pg);
int bench_connect_to(struct bench *b, const char *conninfo, PGconn **ret_pg);
/* Any statements; what they return is dropped. */
int bench_sql(struct bench *b, PGconn *pg, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Where this server's WAL ends: which is "insert" (what was written) or "flush" (what is durable,
 * and may be sent). */
int bench_sql_lsn(struct bench *b, PGconn *pg, const char *which, uint64_t *ret_lsn);
/* The first value of the first row, "" if there is none. The caller frees it. */
int bench_sql_value(struct bench *b, PGconn *pg, char **ret_value, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Says what the server answered. Returns PGCTL_FAILED. */
int bench_sql_failed(struct bench *b, PGconn *pg, const char *what);
/* A self-signed certificate of localhost and its key (bench_cert.c). 0 or -1. */
int bench_make_certificate(const char *cert_file, const char *key_file);

#endif
