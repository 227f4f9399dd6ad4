/* SPDX-License-Identifier: PostgreSQL */
/*
 * The throw-away server: made by initdb in our folder, without fsync, on a free port of 127.0.0.1
 * (with a password, TLS possible) and a Unix socket in our folder, which only we may enter.
 *
 * Context: the bench process. The keeper ends the server.
 */
#include "config.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "pgctl/bench.h"

#define START_TRIES 5
#define START_US 60000000
#define POLL_US 20000
#define SUPERUSER "bench"

const char *const bench_transport_names[BENCH_TRANSPORTS] = {"tcp", "tls", "unix"};

static const char fixed_settings[] = "wal_level = logical\n"
				     "fsync = off\n"
				     "full_page_writes = off\n"
				     "max_connections = 60\n"
				     "max_wal_senders = 10\n"
				     "max_replication_slots = 10\n"
				     "max_wal_size = '1GB'\n"
				     "min_wal_size = '256MB'\n"
				     "checkpoint_timeout = '1d'\n"
				     "autovacuum = off\n"
				     "jit = off\n"
				     "track_commit_timestamp = on\n"
				     "listen_addresses = '127.0.0.1'\n"
				     "ssl = on\n"
				     "ssl_cert_file = '../server.crt'\n"
				     "ssl_key_file = '../server.key'\n";

static int write_file(struct bench *b, const char *name, int flags, const char *text)
{
	char *path = xasprintf("%s/%s", b->dir, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
	int err = fd >= 0 ? io_write_all(fd, text, strlen(text)) : -1;
	if (fd >= 0)
		close(fd);
	int status = err == 0 ? PGCTL_OK
			      : pgctl_fail(b->p, PGCTL_FAILED, "look for room on its disk",
					"cannot write %s", path);
	free(path);
	return status;
}

/* The superuser's, for TCP: who else is on this machine shall not come in. */
static int write_password(struct bench *b)
{
	unsigned char bytes[16];
	char text[2 * sizeof(bytes) + 1], entry[sizeof(text) + 64];
	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		return pgctl_fail(b->p, PGCTL_FAILED, NULL, "the kernel gives no random numbers");
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	snprintf(entry, sizeof(entry), "*:*:*:*:%s\n", text);
	int status = write_file(b, "password", O_TRUNC, text);
	return status == PGCTL_OK ? write_file(b, "pgpass", O_TRUNC, entry) : status;
}

static int run_initdb(struct bench *b)
{
	char *program = xasprintf("%s/initdb", b->bindir), *data = xasprintf("%s/data", b->dir);
	char *password = xasprintf("%s/password", b->dir),
	     *log = xasprintf("%s/initdb.log", b->dir);
	const char *const argv[] = {program, "-D", data, "-U", SUPERUSER, "--auth-local=trust",
		"--auth-host=scram-sha-256", "--pwfile", password, "-E", "UTF8", "--locale=C",
		"--no-sync", NULL};
	int status = PGCTL_OK;
	if (bench_exec(argv, log) != 0) {
		char why[400];
		status = pgctl_fail(b->p, PGCTL_FAILED,
			"mend what it says, or name another server with --bindir", "%s failed: %s",
			program, bench_tail(log, why, sizeof(why)));
	}
	free(program);
	free(data);
	free(password);
	free(log);
	return status;
}

static int write_settings(struct bench *b, const char *settings)
{
	char *text =
		xasprintf("%sunix_socket_directories = '%s'\n%s", fixed_settings, b->dir, settings);
	int status = write_file(b, "data/postgresql.conf", O_APPEND, text);
	free(text);
	return status;
}

/* 1: it answers; 0: not yet; -1: it has ended. */
static int look(struct bench *b, pid_t pid)
{
	char *conninfo = bench_conninfo(b, BENCH_UNIX, "postgres");
	PGconn *pg = PQconnectdb(conninfo);
	int answer = PQstatus(pg) == CONNECTION_OK ? 1 : 0;
	if (answer == 1)
		b->server_num = PQserverVersion(pg);
	PQfinish(pg);
	free(conninfo);
	return answer == 0 && bench_has_ended(pid) ? -1 : answer;
}

/* 1: it is there; 0: it has ended; -1: time is up. */
static int try_start(struct bench *b, const char *log)
{
	char *program = xasprintf("%s/postgres", b->bindir), *data = xasprintf("%s/data", b->dir);
	char port[12];
	b->port = bench_free_port();
	snprintf(port, sizeof(port), "%d", b->port);
	const char *const argv[] = {program, "-D", data, "-p", port, NULL};
	uint64_t deadline = bench_now_us() + START_US;
	pid_t pid = bench_spawn(argv, log, SIGQUIT, &b->shared->server_pid);
	free(program);
	free(data);
	while (pid > 0 && bench_now_us() < deadline) {
		int there = look(b, pid);
		if (there > 0)
			return 1;
		if (there < 0) {
			atomic_store(&b->shared->server_pid, 0);
			return 0;
		}
		bench_pause_us(POLL_US);
	}
	return -1;
}

int bench_server_start(struct bench *b, const char *settings)
{
	char *cert = xasprintf("%s/server.crt", b->dir), *key = xasprintf("%s/server.key", b->dir);
	char *log = xasprintf("%s/server.log", b->dir);
	int started = 0;
	int status = write_password(b);
	if (status == PGCTL_OK)
		status = run_initdb(b);
	if (status == PGCTL_OK)
		status = write_settings(b, settings);
	if (status == PGCTL_OK && bench_make_certificate(cert, key) != 0)
		status = pgctl_fail(b->p, PGCTL_FAILED, "look for room on its disk",
			"cannot make a certificate in %s", b->dir);
	/* Another process may take the port before the server has it. */
	for (int i = 0; status == PGCTL_OK && started == 0 && i < START_TRIES; i++)
		started = try_start(b, log);
	if (status == PGCTL_OK && started <= 0) {
		char why[400];
		status = pgctl_fail(b->p, PGCTL_FAILED,
			"mend what it says, or name another server with --bindir",
			"the throw-away server did not start: %s",
			bench_tail(log, why, sizeof(why)));
	}
	free(cert);
	free(key);
	free(log);
	return status;
}

char *bench_conninfo(const struct bench *b, enum bench_transport transport, const char *dbname)
{
	if (transport == BENCH_UNIX)
		return xasprintf(
			"host=%s port=%d user=" SUPERUSER " dbname=%s", b->dir, b->port, dbname);
	return xasprintf("host=127.0.0.1 port=%d user=" SUPERUSER " dbname=%s passfile=%s/pgpass "
			 "gssencmode=disable sslmode=%s sslrootcert=%s/server.crt",
		b->port, dbname, b->dir, transport == BENCH_TLS ? "verify-ca" : "disable", b->dir);
}

/* ---- SQL ------------------------------------------------------------------------------------- */

int bench_sql_failed(struct bench *b, PGconn *pg, const char *what)
{
	char *why = xstrndup(PQerrorMessage(pg), strcspn(PQerrorMessage(pg), "\n"));
	int status = pgctl_fail(b->p, PGCTL_FAILED,
		"look at the room on the disk and at the memory of this machine",
		"the throw-away server failed: %s (%.60s)", why, what);
	free(why);
	return status;
}

static void drop_notice(void *arg, const PGresult *res)
{
	(void)arg;
	(void)res;
}

int bench_connect_to(struct bench *b, const char *conninfo, PGconn **ret_pg)
{
	PGconn *pg = PQconnectdb(conninfo);
	if (PQstatus(pg) != CONNECTION_OK) {
		int status = bench_sql_failed(b, pg, "connect");
		PQfinish(pg);
		return status;
	}
	PQsetNoticeReceiver(pg, drop_notice, NULL);
	*ret_pg = pg;
	return PGCTL_OK;
}

int bench_connect(struct bench *b, const char *dbname, PGconn **ret_pg)
{
	char *conninfo = bench_conninfo(b, BENCH_UNIX, dbname);
	int status = bench_connect_to(b, conninfo, ret_pg);
	free(conninfo);
	return status;
}

static PGresult *run(struct bench *b, PGconn *pg, const char *sql, int *ret_status)
{
	PGresult *res = PQexec(pg, sql);
	if (PQresultStatus(res) == PGRES_COMMAND_OK || PQresultStatus(res) == PGRES_TUPLES_OK)
		return res;
	*ret_status = bench_sql_failed(b, pg, sql);
	PQclear(res);
	return NULL;
}

static char *format(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));
static char *format(const char *fmt, va_list ap)
{
	char *text = NULL;
	ASSERT(vasprintf(&text, fmt, ap) >= 0);
	return text;
}

int bench_sql(struct bench *b, PGconn *pg, const char *fmt, ...)
{
	int status = PGCTL_OK;
	va_list ap;
	va_start(ap, fmt);
	char *sql = format(fmt, ap);
	va_end(ap);
	PQclear(run(b, pg, sql, &status));
	free(sql);
	return status;
}

int bench_sql_value(struct bench *b, PGconn *pg, char **ret_value, const char *fmt, ...)
{
	int status = PGCTL_OK;
	va_list ap;
	va_start(ap, fmt);
	char *sql = format(fmt, ap);
	va_end(ap);
	PGresult *res = run(b, pg, sql, &status);
	if (res != NULL)
		*ret_value = xstrdup(PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : "");
	PQclear(res);
	free(sql);
	return status;
}

int bench_sql_lsn(struct bench *b, PGconn *pg, const char *which, uint64_t *ret_lsn)
{
	char *text = NULL;
	int status = bench_sql_value(
		b, pg, &text, "SELECT (pg_current_wal_%s_lsn() - '0/0')::text", which);
	if (status == PGCTL_OK)
		*ret_lsn = strtoull(text, NULL, 10);
	free(text);
	return status;
}
