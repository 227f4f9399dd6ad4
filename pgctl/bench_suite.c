/* SPDX-License-Identifier: PostgreSQL */
/*
 * The suite under measurement: see bench_suite.h.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/ipc/ctl.h"
#include "common/ring/ring_conf.h"
#include "pgctl/bench_suite.h"
#include "pgctl/place.h"

#define UP_US 60000000
#define POLL_US 50000
#define STOP_MS 20000
#define STATS_US 20000000 /* they are brought up to date once per second */
#define WORDS_MAX 16

/* What each node's workers are, but for walstreamd. */
static void put_workers(const struct bench_suite *s, FILE *f)
{
	if (s->mqtt_port != 0)
		fprintf(f, "brokerd = { listeners = ( { url = \"mqtt://127.0.0.1:%d\"; } ); };\n",
			s->mqtt_port);
	else
		fprintf(f, "brokerd = { enabled = false; };\n");
	if (s->watch_port != 0)
		fprintf(f,
			"watchd = { quota = \"64GB\";"
			" listeners = ( { url = \"http://127.0.0.1:%d\"; } ); };\n",
			s->watch_port);
	else
		fprintf(f, "watchd = { enabled = false; };\n");
}

static int write_conf(struct bench_suite *s, enum bench_transport transport, const char *path)
{
	char *conninfo = bench_conninfo(s->b, transport, BENCH_SUITE_DB);
	FILE *f = mkdir(s->dir, 0700) == 0 || errno == EEXIST ? fopen(path, "we") : NULL;
	bool ok = f != NULL;
	if (ok) {
		fprintf(f,
			"node = \"%s\";\nstate_dir = \"%s/state\";\nrun_dir = \"%s/run\";\n"
			"postgres = { mode = \"external\"; conninfo = \"%s\"; };\n"
			"walstreamd = { enabled = true; };\n",
			s->node, s->dir, s->dir, conninfo);
		put_workers(s, f);
		ok = fclose(f) == 0;
	}
	free(conninfo);
	return ok ? PGCTL_OK
		  : pgctl_fail(s->b->p, PGCTL_FAILED, "look for room on its disk",
			    "cannot write %s", path);
}

/* The one that the keeper stops in order; it kills the others. */
static bool is_first(const struct bench_suite *s)
{
	pid_t known = atomic_load(&s->b->shared->suite_pid);
	return known == 0 || known == s->pid;
}

static int spawn(struct bench_suite *s, const char *conf, const char *log)
{
	char *howdahd = place_beside("sbin/howdahd", HOWDAH_SBINDIR "/howdahd");
	char *libexec = place_beside("libexec/howdah", HOWDAH_LIBEXECDIR);
	char *data = place_beside("share/howdah", HOWDAH_DATADIR);
	const char *const argv[] = {howdahd, "-f", "-c", conf, "-L", libexec, "-D", data, NULL};
	int status = PGCTL_OK;
	if (access(howdahd, X_OK) != 0)
		status = pgctl_fail(s->b->p, PGCTL_FAILED, "install the package howdah completely",
			"%s cannot be run: %s", howdahd, strerror(errno));
	else
		s->pid = bench_spawn(
			argv, log, SIGTERM, is_first(s) ? &s->b->shared->suite_pid : NULL);
	free(howdahd);
	free(libexec);
	free(data);
	return status;
}

/* ---- What it says ---------------------------------------------------------------------------- */

struct answer {
	struct bench_suite *s;
	bool wal, broker, watch, schema;
	char text[256]; /* of walstreamd */
	uint64_t published_lsn, acked_lsn;
	uint64_t received_lsn, delay_p50_us, delay_p99_us; /* of brokerd */
};

static void take_status(json_t *row, void *arg)
{
	struct answer *a = arg;
	const char *worker = json_string_value(json_object_get(row, "worker"));
	const char *state = json_string_value(json_object_get(row, "state"));
	const char *text = json_string_value(json_object_get(row, "text"));
	pid_t pid = (pid_t)json_integer_value(json_object_get(row, "pid"));
	bool up = state != NULL && strcmp(state, "UP") == 0;
	if (worker != NULL && strcmp(worker, "brokerd") == 0) {
		a->broker = up;
		a->s->brokerd = pid;
	} else if (worker != NULL && strcmp(worker, "watchd") == 0) {
		a->watch = up;
		a->s->watchd = pid;
	} else if (worker != NULL && strcmp(worker, "walstreamd") == 0) {
		snprintf(a->text, sizeof(a->text), "%s", text != NULL ? text : "");
		a->wal = up && strncmp(a->text, "streaming", 9) == 0;
		a->schema = strstr(a->text, "db init") == NULL;
		a->s->walstreamd = pid;
	}
}

static uint64_t parse_lsn(const char *text)
{
	unsigned high, low;
	return text != NULL && sscanf(text, "%X/%X", &high, &low) == 2 ? (uint64_t)high << 32 | low
								       : 0;
}

static void take_lag(json_t *row, void *arg)
{
	struct answer *a = arg;
	const char *point = json_string_value(json_object_get(row, "point"));
	uint64_t lsn = parse_lsn(json_string_value(json_object_get(row, "lsn")));
	if (point != NULL && strcmp(point, "published") == 0)
		a->published_lsn = lsn;
	else if (point != NULL && strncmp(point, "brokerd", 7) == 0)
		a->acked_lsn = lsn;
}

static void take_stats(json_t *row, void *arg)
{
	struct answer *a = arg;
	const char *worker = json_string_value(json_object_get(row, "worker"));
	const char *name = json_string_value(json_object_get(row, "name"));
	const json_t *value = json_object_get(row, "value");
	if (worker == NULL || name == NULL || strcmp(worker, "brokerd") != 0)
		return;
	if (strcmp(name, "changes_received_lsn") == 0)
		a->received_lsn = parse_lsn(json_string_value(value));
	else if (strcmp(name, "changes_delay_p50") == 0)
		a->delay_p50_us = (uint64_t)json_integer_value(value);
	else if (strcmp(name, "changes_delay_p99") == 0)
		a->delay_p99_us = (uint64_t)json_integer_value(value);
}

static bool call(struct bench_suite *s, const char *cmd, void (*on_row)(json_t *row, void *arg),
	struct answer *a)
{
	char *path = xasprintf("%s/run/control.sock", s->dir);
	struct ctl_conn *conn = NULL;
	json_t *error = NULL;
	bool ok =
		ctl_connect(path, &conn) == 0 && ctl_call(conn, cmd, NULL, on_row, a, &error) == 0;
	json_decref(error);
	ctl_disconnect(&conn);
	free(path);
	return ok;
}

int bench_suite_pgctl(struct bench_suite *s, const char *const *words)
{
	char *socket = xasprintf("%s/run/control.sock", s->dir);
	char *log = xasprintf("%s/pgctl.log", s->dir);
	const char *argv[WORDS_MAX] = {"/proc/self/exe", "-s", socket};
	size_t n = 3;
	while (*words != NULL && n + 1 < WORDS_MAX)
		argv[n++] = *words++;
	argv[n] = NULL;
	int status = PGCTL_OK;
	if (bench_exec(argv, log) != 0) {
		char why[400];
		status = pgctl_fail(s->b->p, PGCTL_FAILED, "install the package howdah completely",
			"the suite to be measured: %s", bench_tail(log, why, sizeof(why)));
	}
	free(socket);
	free(log);
	return status;
}

static int install_schema(struct bench_suite *s)
{
	static const char *const words[] = {"db", "init", NULL};
	return bench_suite_pgctl(s, words);
}

static void forget(struct bench_suite *s)
{
	if (is_first(s))
		atomic_store(&s->b->shared->suite_pid, 0);
	s->pid = 0;
}

static bool is_up(const struct answer *a)
{
	return a->wal && (a->broker || a->s->mqtt_port == 0) && (a->watch || a->s->watch_port == 0);
}

static int wait_up(struct bench_suite *s, const char *log)
{
	uint64_t deadline = bench_now_us() + UP_US;
	struct answer a = {.s = s};
	int status = PGCTL_OK;
	bool ended = false;
	do {
		bench_pause_us(POLL_US);
		a = (struct answer){.s = s, .schema = true};
		ended = bench_has_ended(s->pid);
		if (!ended && call(s, "status", take_status, &a) && !a.schema)
			status = install_schema(s);
	} while (status == PGCTL_OK && !ended && !is_up(&a) && bench_now_us() < deadline);
	if (ended)
		forget(s);
	if (status != PGCTL_OK || is_up(&a))
		return status;
	char why[300];
	return pgctl_fail(s->b->p, PGCTL_FAILED, "install the package howdah completely",
		"the suite to be measured %s: %s%s%s", ended ? "has ended" : "did not come up",
		a.text, a.text[0] != '\0' ? "; " : "", bench_tail(log, why, sizeof(why)));
}

bool bench_suite_is_at(struct bench_suite *s, uint64_t lsn)
{
	struct answer a = {.s = s};
	return call(s, "wal.lag", take_lag, &a) && a.published_lsn >= lsn && a.acked_lsn >= lsn;
}

int bench_suite_delay(struct bench_suite *s, uint64_t lsn, double *ret_p50_us, double *ret_p99_us)
{
	uint64_t deadline = bench_now_us() + STATS_US;
	struct answer a;
	bool ok;
	do {
		bench_pause_us(POLL_US);
		a = (struct answer){.s = s};
		ok = call(s, "stats", take_stats, &a) && a.received_lsn > lsn && a.delay_p50_us > 0;
	} while (!ok && bench_now_us() < deadline);
	if (!ok)
		return pgctl_fail(s->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
			"brokerd of the suite to be measured does not say what it received");
	*ret_p50_us = (double)a.delay_p50_us;
	*ret_p99_us = (double)a.delay_p99_us;
	return PGCTL_OK;
}

/* ---- Life ------------------------------------------------------------------------------------ */

/* The sizes that it works with, which are the defaults. */
static uint64_t bound_bytes(void)
{
	uint64_t sum = 0;
	for (const struct conf_row *row = ring_conf_rows; row->path != NULL; row++) {
		int64_t bytes;
		if ((strcmp(row->path, "walstreamd.ring_size") == 0 ||
			    strcmp(row->path, "walstreamd.transaction_memory") == 0) &&
			conf_parse_size(row->def, &bytes) == 0)
			sum += (uint64_t)bytes;
	}
	return sum;
}

static int start(struct bench_suite *s, enum bench_transport transport)
{
	s->dir = xasprintf("%s/%s", s->b->dir, s->node);
	char *conf = xasprintf("%s/howdah.conf", s->dir), *log = xasprintf("%s/suite.log", s->dir);
	int status = write_conf(s, transport, conf);
	if (status == PGCTL_OK)
		status = spawn(s, conf, log);
	if (status == PGCTL_OK)
		status = wait_up(s, log);
	free(conf);
	free(log);
	return status;
}

int bench_suite_start(struct bench *b, enum bench_transport transport, struct bench_suite *s)
{
	free(s->dir);
	*s = (struct bench_suite){.b = b,
		.node = BENCH_NODE,
		.mqtt_port = bench_free_port(),
		.bound_bytes = bound_bytes()};
	return start(s, transport);
}

int bench_suite_start_watch(struct bench *b, const char *node, struct bench_suite *s)
{
	free(s->dir);
	*s = (struct bench_suite){.b = b, .node = node, .watch_port = bench_free_port()};
	return start(s, BENCH_UNIX);
}

int bench_suite_restart_watch(struct bench_suite *s)
{
	static const char *const words[] = {"worker", "restart", "watchd", NULL};
	char *log = xasprintf("%s/suite.log", s->dir);
	int status = bench_suite_pgctl(s, words);
	if (status == PGCTL_OK)
		status = wait_up(s, log);
	free(log);
	return status;
}

void bench_suite_stop(struct bench_suite *s)
{
	if (s->pid != 0) {
		bench_end(s->pid, SIGTERM, STOP_MS, NULL);
		forget(s);
	}
	free(s->dir);
	s->dir = NULL;
}
