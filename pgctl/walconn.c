/* SPDX-License-Identifier: PostgreSQL */
/*
 * A replication connection: see walconn.h.
 *
 * Context: pgctl; everything blocks, a signal may end the waiting.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "pgctl/walconn.h"

#define CONNECT_TIMEOUT_MS 10000
#define SLOW_MS 3000

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static const struct {
	const char *state;
	int status;
	const char *hint;
} remedies[] = {
	{"42501", PGCTL_DENIED, "connect as a role with REPLICATION, see postgres.conninfo"},
	{"42704", PGCTL_FAILED, "pgctl wal slots shows the slots"},
	{"42710", PGCTL_FAILED, "pgctl wal slots shows the slots"},
	{"53400", PGCTL_FAILED,
		"drop a slot that nobody needs (pgctl wal slots), or raise max_replication_slots"},
	{"53300", PGCTL_FAILED, "raise max_wal_senders or max_connections"},
	{"55000", PGCTL_FAILED, "pgctl wal slots shows the slots and their state"},
	{"55006", PGCTL_FAILED, "pgctl wal slots shows who uses it"},
};

int walconn_failed(struct walconn *w, int rc, const char *what)
{
	const char *state = pgws_stream_sqlstate(w->s), *text = pgws_stream_error(w->s);
	int status = PGCTL_FAILED;
	const char *hint = NULL;
	for (size_t i = 0; i < ARRAY_LEN(remedies); i++) {
		if (strcmp(remedies[i].state, state) == 0) {
			status = remedies[i].status;
			hint = remedies[i].hint;
		}
	}
	if (*text == '\0')
		text = pgws_strerror(rc);
	return pgctl_fail(w->p, status, hint, "cannot %s: %s", what, text);
}

/* Waits for the stream's descriptor, or until a signal or timeout_ms. */
static void wait_fd(struct walconn *w, int timeout_ms)
{
	struct pollfd fd = {.fd = pgws_stream_fd(w->s),
		.events = (short)((pgws_stream_wants_read(w->s) ? POLLIN : 0) |
				  (pgws_stream_wants_write(w->s) ? POLLOUT : 0))};
	const struct timespec t = {
		.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
	(void)ppoll(&fd, 1, &t, w->during); /* the caller looks at everything anyway */
}

int walconn_finish(struct walconn *w, int rc, const char *what, const char *slow)
{
	int64_t began = now_ms();
	while (rc == 0 || rc == PGWS_EAGAIN) {
		bool connecting = pgws_stream_phase(w->s) == PGWS_PHASE_CONNECTING;
		rc = pgws_stream_work(w->s);
		if (rc == 0)
			return PGCTL_OK;
		if (rc != PGWS_EAGAIN)
			break;
		if (w->stop != NULL && *w->stop)
			return WALCONN_STOPPED;
		int64_t waited = now_ms() - began;
		if (connecting && waited > CONNECT_TIMEOUT_MS)
			return pgctl_fail(w->p, PGCTL_FAILED, NULL, "cannot %s: no answer for %d s",
				what, CONNECT_TIMEOUT_MS / 1000);
		if (slow != NULL && waited > SLOW_MS) {
			pgctl_warn(w->p, NULL, "%s", slow);
			slow = NULL;
		}
		wait_fd(w, 500);
	}
	return walconn_failed(w, rc, what);
}

int walconn_open(struct walconn *w, const struct db *db, struct pgws_stream_options options)
{
	(void)setenv("PGAPPNAME", "howdah pgctl", 0); /* a name for pg_stat_replication, no more */
	options.conninfo = db->place.conninfo;
	w->p = db->p;
	w->conf_file = db->place.conf_file;
	w->s = pgws_stream_new(&options);
	ASSERT(w->s != NULL);
	return walconn_finish(w, pgws_stream_connect(w->s), "open a replication connection", NULL);
}

void walconn_close(struct walconn *w)
{
	pgws_stream_free(&w->s);
}
