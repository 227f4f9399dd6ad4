/* SPDX-License-Identifier: PostgreSQL */
/*
 * The readers and how they are watched: see bench_reader.h.
 *
 * When a reader is done is seen from outside and the same for all: the CPU times of the reader, of
 * its walsender and (walstreamd) of the ring's consumer are sampled, and the last sample in which
 * one of them was busy is the end; then it is asked whether all has arrived. Asking costs the
 * reader CPU, so it is done only when everything has been quiet, and after the figures were taken.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "pgctl/bench_reader.h"

#define SLOT "bench_peer"
#define START_US 30000000
#define POLL_US 20000
#define END_MS 10000
#define DROP_TRIES 250
/* Watching: a sample every 2 ms costs 1 % of a CPU. Less work than WORK_NS in one is a timer. Less
 * than BUSY_NS in one, and than TRICKLE_NS since somebody was busy, is an acknowledgement:
 * walstreamd sends one up to 50 ms after the load, the others hardly ever within one. */
#define SAMPLE_US 2000
#define WORK_NS 20000
#define BUSY_NS 200000
#define TRICKLE_NS 1000000
#define QUIET_US 80000
#define STUCK_US 60000000
#define WATCHED_MAX 3

const char *const bench_reader_names[BENCH_READERS] = {"walstreamd", "pg_recvlogical", "libpq"};

/* ---- The plain loop -------------------------------------------------------------------------- */

/* One CopyData message: w, 3 x Int64, then what the output plugin says. */
#define W_HEADER_BYTES 25

static void count_event(const char *data, int len, uint64_t *events)
{
	if (len > W_HEADER_BYTES && data[0] == 'w')
		*events += data[W_HEADER_BYTES] == 'I' || data[W_HEADER_BYTES] == 'U' ||
			   data[W_HEADER_BYTES] == 'D';
}

/* What a client does that has nothing but libpq's manual. */
static _Noreturn void plain_loop(const char *conninfo, struct bench_shared *shared)
{
	char *replication = xasprintf("%s replication=database", conninfo), *data;
	PGconn *pg = PQconnectdb(replication);
	uint64_t events = 0;
	int len;
	if (PQstatus(pg) != CONNECTION_OK)
		_exit(1);
	PGresult *res = PQexec(pg, "START_REPLICATION SLOT " SLOT " LOGICAL 0/0 (proto_version '1',"
				   " publication_names '" BENCH_PUBLICATION "')");
	if (PQresultStatus(res) != PGRES_COPY_BOTH)
		_exit(1);
	for (;;) {
		struct pollfd fd = {.fd = PQsocket(pg), .events = POLLIN};
		if (poll(&fd, 1, -1) < 0 || PQconsumeInput(pg) != 1)
			_exit(1);
		while ((len = PQgetCopyData(pg, &data, 1)) > 0) {
			count_event(data, len, &events);
			PQfreemem(data);
		}
		if (len < 0)
			_exit(0);
		if (events == atomic_load_explicit(&shared->events, memory_order_relaxed))
			continue;
		atomic_store_explicit(
			&shared->last_event_us, bench_realtime_us(), memory_order_relaxed);
		atomic_store_explicit(&shared->events, events, memory_order_release);
	}
}

static pid_t start_plain_loop(struct bench *b, const char *conninfo)
{
	atomic_store(&b->shared->events, 0);
	fflush(b->p->err);
	pid_t pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		plain_loop(conninfo, b->shared);
	}
	return pid;
}

static pid_t start_recvlogical(struct bench *b, const char *conninfo)
{
	char *program = xasprintf("%s/pg_recvlogical", b->bindir);
	char *log = xasprintf("%s/pg_recvlogical.log", b->dir);
	char *out = xasprintf("%s/pg_recvlogical.out", b->dir);
	const char *const argv[] = {program, "-d", conninfo, "-S", SLOT, "--start", "--no-loop",
		"-o", "proto_version=1", "-o", "publication_names=" BENCH_PUBLICATION, "-f", out,
		NULL};
	/* A new file each time: what was received has to be where a consumer finds it, as with the
	 * ring. */
	(void)unlink(out);
	pid_t pid = bench_spawn(argv, log, SIGKILL, NULL);
	free(out);
	free(program);
	free(log);
	return pid;
}

/* ---- Life ------------------------------------------------------------------------------------ */

/* The walsender of the slot, once its stream is open. */
static int find_walsender(struct bench_reader *r)
{
	const char *slot = r->kind == BENCH_WALSTREAMD ? "howdah_" BENCH_NODE : SLOT;
	uint64_t deadline = bench_now_us() + START_US;
	int status = PGCTL_OK;
	r->walsender = 0;
	while (bench_now_us() < deadline) {
		char *text = NULL;
		status = bench_sql_value(r->b, r->sql, &text,
			"SELECT s.active_pid FROM pg_replication_slots s JOIN pg_stat_replication w"
			" ON w.pid = s.active_pid WHERE s.slot_name = '%s' AND w.state = "
			"'streaming'",
			slot);
		r->walsender = text != NULL ? (pid_t)strtol(text, NULL, 10) : 0;
		free(text);
		if (status != PGCTL_OK || r->walsender != 0)
			return status;
		if (r->kind != BENCH_WALSTREAMD && bench_has_ended(r->pid))
			break;
		bench_pause_us(POLL_US);
	}
	char why[300], *log = xasprintf("%s/pg_recvlogical.log", r->b->dir);
	status = pgctl_fail(r->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
		"%s did not begin to read%s%s", bench_reader_names[r->kind],
		r->kind == BENCH_RECVLOGICAL ? ": " : "",
		r->kind == BENCH_RECVLOGICAL ? bench_tail(log, why, sizeof(why)) : "");
	free(log);
	return status;
}

int bench_reader_start(struct bench *b, enum bench_reader_kind kind, enum bench_transport transport,
	struct bench_suite *suite, struct bench_reader *r)
{
	bool ours = kind != BENCH_WALSTREAMD;
	*r = (struct bench_reader){.b = b, .kind = kind, .suite = suite};
	int status = bench_connect(b, ours ? BENCH_PEER_DB : BENCH_SUITE_DB, &r->sql);
	if (status == PGCTL_OK && ours) {
		status = bench_sql(b, r->sql,
			"SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
		r->has_slot = status == PGCTL_OK;
	}
	char *conninfo = bench_conninfo(b, transport, BENCH_PEER_DB);
	if (status == PGCTL_OK)
		r->pid = kind == BENCH_WALSTREAMD    ? suite->walstreamd
			 : kind == BENCH_RECVLOGICAL ? start_recvlogical(b, conninfo)
						     : start_plain_loop(b, conninfo);
	free(conninfo);
	return status == PGCTL_OK ? find_walsender(r) : status;
}

/* The walsender notices only by and by that its client is gone. */
static int drop_slot(struct bench_reader *r)
{
	int status = bench_sql(r->b, r->sql,
		"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
		" WHERE slot_name = '" SLOT "' AND active_pid IS NOT NULL");
	for (int i = 0; i < DROP_TRIES && status == PGCTL_OK; i++) {
		char *text = NULL;
		status = bench_sql_value(r->b, r->sql, &text,
			"SELECT pg_drop_replication_slot(slot_name) IS NULL FROM"
			" pg_replication_slots WHERE slot_name = '" SLOT
			"' AND active_pid IS NULL");
		bool dropped = text != NULL && text[0] != '\0';
		free(text);
		if (dropped)
			return PGCTL_OK;
		bench_pause_us(POLL_US);
	}
	return status != PGCTL_OK
		       ? status
		       : pgctl_fail(r->b->p, PGCTL_FAILED,
				 "look whether this machine is overloaded",
				 "the slot of %s did not become free", bench_reader_names[r->kind]);
}

int bench_reader_stop(struct bench_reader *r)
{
	int status = PGCTL_OK;
	if (r->kind != BENCH_WALSTREAMD && r->pid > 0)
		bench_end(r->pid, SIGTERM, END_MS, NULL);
	if (r->has_slot)
		status = drop_slot(r);
	PQfinish(r->sql);
	*r = (struct bench_reader){0};
	return status;
}

/* ---- Watching -------------------------------------------------------------------------------- */

/* Processes that are sampled, cheaply: by the main thread alone. */
struct samples {
	pid_t pids[WATCHED_MAX];
	int fds[WATCHED_MAX];
	uint64_t ns[WATCHED_MAX];
	uint64_t busy_ns[WATCHED_MAX]; /* as at busy_us */
	size_t n;
	uint64_t busy_us; /* when one of them last was */
};

static uint64_t sample(int fd)
{
	char text[128];
	ssize_t n = fd >= 0 ? pread(fd, text, sizeof(text) - 1, 0) : 0;
	text[n > 0 ? n : 0] = '\0';
	return strtoull(text, NULL, 10);
}

static void samples_open(struct samples *s, const struct bench_reader *r)
{
	*s = (struct samples){.n = 2, .pids = {r->pid, r->walsender}, .busy_us = bench_now_us()};
	if (r->kind == BENCH_WALSTREAMD)
		s->pids[s->n++] = r->suite->brokerd;
	for (size_t i = 0; i < s->n; i++) {
		char path[64];
		snprintf(path, sizeof(path), "/proc/%d/schedstat", (int)s->pids[i]);
		s->fds[i] = open(path, O_RDONLY | O_CLOEXEC);
		s->ns[i] = s->busy_ns[i] = sample(s->fds[i]);
	}
}

static void samples_close(struct samples *s)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->fds[i] >= 0)
			close(s->fds[i]);
	}
}

/* Somebody has worked since the last time, or is about to. */
static bool samples_worked(struct samples *s)
{
	bool worked = false, busy = false;
	for (size_t i = 0; i < s->n; i++) {
		uint64_t ns = sample(s->fds[i]);
		worked = worked || ns > s->ns[i] + WORK_NS;
		busy = busy || ns > s->ns[i] + BUSY_NS || ns > s->busy_ns[i] + TRICKLE_NS;
		s->ns[i] = ns;
	}
	if (busy) {
		s->busy_us = bench_now_us();
		memcpy(s->busy_ns, s->ns, sizeof(s->busy_ns));
	}
	for (size_t i = 0; i < s->n && !worked; i++)
		worked = !bench_is_asleep(s->pids[i]);
	return worked;
}

/* Until nobody has worked for QUIET_US. What was before this call does not count as work. */
static void wait_quiet(struct samples *s)
{
	uint64_t now = bench_now_us(), last = now;
	for (size_t i = 0; i < s->n; i++)
		s->ns[i] = sample(s->fds[i]);
	do {
		bench_pause_us(SAMPLE_US);
		now = bench_now_us();
		if (samples_worked(s))
			last = now;
	} while (now - last < QUIET_US);
}

static int stuck(struct bench_reader *r)
{
	return pgctl_fail(r->b->p, PGCTL_FAILED,
		"look whether this machine is overloaded; the benchmark keeps nothing to look at",
		"%s did not get everything in %d s", bench_reader_names[r->kind],
		STUCK_US / 1000000);
}

/* Without the reader's own words: nothing of what was written needs to be visible to it yet. */
static int is_sent(struct bench_reader *r, uint64_t lsn, bool *ret_sent)
{
	char *text = NULL;
	int status = bench_sql_value(r->b, r->sql, &text,
		"SELECT sent_lsn - '0/0' >= %" PRIu64 " FROM pg_stat_replication WHERE pid = %d",
		lsn, (int)r->walsender);
	if (status != PGCTL_OK)
		return status;
	if (text[0] == '\0')
		status =
			pgctl_fail(r->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
				"%s has lost its connection", bench_reader_names[r->kind]);
	*ret_sent = text[0] == 't';
	free(text);
	return status;
}

/* Everything up to lsn has arrived; events: how many that are, for who counts. */
static int is_at(struct bench_reader *r, uint64_t lsn, uint64_t events, bool *ret_there)
{
	int status = is_sent(r, lsn, ret_there);
	if (r->kind == BENCH_LIBPQ)
		*ret_there = *ret_there && atomic_load(&r->b->shared->events) >= events;
	if (r->kind == BENCH_WALSTREAMD)
		*ret_there = *ret_there && bench_suite_is_at(r->suite, lsn);
	return status;
}

int bench_reader_settle(struct bench_reader *r)
{
	struct samples s;
	uint64_t lsn;
	bool sent = false;
	int status = bench_sql_lsn(r->b, r->sql, "flush", &lsn);
	if (status != PGCTL_OK)
		return status;
	samples_open(&s, r);
	while (status == PGCTL_OK && !sent) {
		wait_quiet(&s);
		status = is_sent(r, lsn, &sent);
		if (status == PGCTL_OK && !sent && bench_now_us() > s.busy_us + STUCK_US)
			status = stuck(r);
	}
	samples_close(&s);
	return status;
}

void bench_watch_open(struct bench_watch *w, struct bench_reader *r)
{
	*w = (struct bench_watch){.r = r, .walsender_ns = bench_cpu_ns(r->walsender)};
}

void bench_watch_begin(struct bench_watch *w)
{
	bench_reset_peak(w->r->pid);
	w->events_before = atomic_load(&w->r->b->shared->events);
	w->sleeps = bench_sleeps(w->r->pid);
	w->reader_ns = bench_cpu_ns(w->r->pid);
	w->began_us = bench_now_us();
}

int bench_watch_end(
	struct bench_watch *w, uint64_t lsn, uint64_t events, struct bench_cost *ret_cost)
{
	struct bench_reader *r = w->r;
	struct samples s;
	uint64_t reader_ns = 0, walsender_ns = 0, sleeps = 0;
	bool there = false;
	int status = PGCTL_OK;
	samples_open(&s, r);
	while (status == PGCTL_OK && !there) {
		wait_quiet(&s);
		reader_ns = bench_cpu_ns(r->pid) - w->reader_ns;
		walsender_ns = bench_cpu_ns(r->walsender) - w->walsender_ns;
		sleeps = bench_sleeps(r->pid) - w->sleeps;
		status = is_at(r, lsn, w->events_before + events, &there);
		if (status == PGCTL_OK && !there && bench_now_us() > s.busy_us + STUCK_US)
			status = stuck(r);
	}
	samples_close(&s);
	double n = (double)events;
	*ret_cost = (struct bench_cost){
		.events_per_s = n * 1e6 / (double)(s.busy_us - w->began_us),
		.cpu_us_per_event = (double)reader_ns / 1e3 / n,
		.walsender_cpu_us_per_event = (double)walsender_ns / 1e3 / n,
		.rss_mb = (double)bench_peak_bytes(r->pid) / (1 << 20),
		.sleeps_per_1000 = (double)sleeps * 1e3 / n,
	};
	return status;
}
