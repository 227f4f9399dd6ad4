/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl wal tail: the changes of the published tables as they commit.
 *
 * Two connections: one for SQL (publications, types), one for replication with a temporary slot of
 * our own, which the server drops when that connection ends, however it ends. From now on, the slot
 * is new; with --from-slot it is a copy of the daemon's, made by the server: the original is
 * neither used nor moved.
 *
 * Open transactions are streamed. One that the server cannot decode before its end
 * (pgws_stream_streaming_failed) breaks the stream, and an error takes the session's temporary
 * slots with it; so the SQL session keeps a second slot, the anchor, a copy of ours that is made
 * anew every ANCHOR_MS while we move. From a copy of that the stream goes on without streaming,
 * behind what was taken in.
 *
 * The loop: pull changes until there is enough to write or nothing more; write what the output
 * takes without waiting; tell the server, at least every FEEDBACK_MS, how far everything is
 * printed; wait. A slow output so stops the pulling, never the feedback.
 *
 * Invariants:
 *   1. What is confirmed to the server was written to the output before.
 *   2. Waiting to be written: at most OUT_BYTES and one change. Open transactions: MEMORY_BYTES,
 * then files without a name.
 *
 * On crash, SIGKILL: the slot is gone with the connection.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/typecache.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"
#include "pgctl/tail_out.h"
#include "pgctl/tail_show.h"
#include "pgctl/walconn.h"

#define OUT_BYTES ((size_t)256 << 10)
#define MEMORY_BYTES ((size_t)16 << 20)
#define FILE_BYTES (UINT64_C(1) << 40)
#define FEEDBACK_MS 1000
#define LAST_LINE_MS 1000 /* for the rest of a line after Ctrl-C */
#define GOODBYE_MS 2000
#define ANCHOR_MS 10000
#define PULL_MAX 20000 /* changes in a row, that may all be hidden by the filter */

struct tail {
	struct pgctl *p;
	struct db db;
	struct walconn w;
	struct pgws_assembler *assembler;
	struct tail_show show;
	struct tail_out out;
	struct buf publications;   /* "a,b" */
	const char **tables;       /* borrowed words, the array is owned */
	char slot[64], anchor[64]; /* anchor "": there is none */
	unsigned n_anchors;        /* so far, for the name */
	bool from_slot, follow;
	int64_t limit, shown; /* limit < 0: none */
	uint64_t stop_lsn;    /* 0: none */
	uint64_t taken_lsn;   /* everything before it was taken in */
	uint64_t anchor_lsn;  /* confirmed when the anchor was made */
	uint64_t idle_lsn;    /* keepalive: nothing before it is still to come */
	int64_t next_feedback_ms, next_anchor_ms;
	int64_t sql_lost_ms; /* 0: the SQL session is there */
	bool reply_requested;
	bool done;
};

static volatile sig_atomic_t stop_signal;

static void on_stop_signal(int sig)
{
	stop_signal = sig;
}

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- Options --------------------------------------------------------------------------------- */

static int take_ops(struct tail *t, const json_t *list)
{
	const json_t *item;
	size_t i;
	if (json_array_size(list) > 0)
		t->show.filter.ops = 0;
	json_array_foreach(list, i, item)
	{
		unsigned ops;
		if (tail_ops_parse(json_string_value(item), &ops) != 0)
			return pgctl_fail(t->p, PGCTL_USAGE,
				"a list of insert, update, delete, truncate and message",
				"--op does not know \"%s\"", json_string_value(item));
		t->show.filter.ops |= ops;
	}
	return PGCTL_OK;
}

static int take_publications(struct tail *t, const json_t *list)
{
	const json_t *item;
	size_t i;
	buf_put_text(&t->publications, "howdah");
	json_array_foreach(list, i, item)
	{
		const char *name = json_string_value(item);
		if (*name == '\0' || strchr(name, ',') != NULL)
			return pgctl_fail(t->p, PGCTL_USAGE, "repeat --publication for several",
				"\"%s\" cannot be the name of a publication here", name);
		if (strcmp(name, "howdah") != 0)
			buf_printf(&t->publications, ",%s", name);
	}
	return PGCTL_OK;
}

static int take_options(struct tail *t, json_t *args)
{
	const json_t *tables = json_object_get(args, "table"), *item;
	const json_t *limit = json_object_get(args, "limit");
	size_t i;
	t->from_slot = json_is_true(json_object_get(args, "from-slot"));
	t->follow = json_is_true(json_object_get(args, "follow"));
	t->limit = limit != NULL ? json_integer_value(limit) : -1;
	t->show.filter.ops = TAIL_OPS_DEFAULT;
	t->tables = xcalloc(json_array_size(tables) + 1, sizeof(*t->tables));
	json_array_foreach(tables, i, item) t->tables[i] = json_string_value(item);
	t->show.filter.tables = t->tables;
	t->show.filter.n_tables = json_array_size(tables);
	if (limit != NULL && t->limit < 1)
		return pgctl_fail(t->p, PGCTL_USAGE, NULL, "--limit is at least 1");
	if (t->follow && !t->from_slot)
		return pgctl_fail(t->p, PGCTL_USAGE, "leave --follow out",
			"--follow goes with --from-slot: without that, tail follows anyway");
	int status = take_ops(t, json_object_get(args, "op"));
	return status != PGCTL_OK ? status
				  : take_publications(t, json_object_get(args, "publication"));
}

/* ---- Before the stream ----------------------------------------------------------------------- */

/* Every publication has to be there: the server would say so only at the first change. */
static int check_publications(struct tail *t)
{
	const char *const values[] = {buf_cstr(&t->publications)};
	int status = PGCTL_OK;
	PGresult *res = db_query(&t->db,
		"SELECT n FROM unnest(string_to_array($1, ',')) n"
		" WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = n) LIMIT 1",
		1, values, &status);
	if (res == NULL)
		return status;
	if (PQntuples(res) > 0) {
		const char *name = PQgetvalue(res, 0, 0);
		status = pgctl_fail(t->p, PGCTL_FAILED,
			strcmp(name, "howdah") == 0
				? "install the schema: pgctl db init"
				: "SELECT pubname FROM pg_publication lists them",
			"there is no publication %s", name);
	}
	PQclear(res);
	return status;
}

/* The session lives as long as we do, and no question of ours holds us up for long. */
static int set_session(struct tail *t)
{
	int status = PGCTL_OK;
	PQclear(db_query(&t->db, "SET idle_session_timeout = 0", 0, NULL, &status));
	if (status == PGCTL_OK)
		PQclear(db_query(&t->db, "SET statement_timeout = '10s'", 0, NULL, &status));
	return status;
}

/* A word that names no published table is most likely a mistake; but the table may come later. */
static int check_tables(struct tail *t)
{
	int status = PGCTL_OK;
	for (size_t i = 0; i < t->show.filter.n_tables && status == PGCTL_OK; i++) {
		const char *const values[] = {buf_cstr(&t->publications), t->tables[i]};
		PGresult *res = db_query(&t->db,
			"SELECT FROM pg_publication_tables WHERE pubname = ANY "
			"(string_to_array($1, ',')) AND $2::text IN (tablename, schemaname || '.' "
			"|| "
			"tablename) LIMIT 1",
			2, values, &status);
		if (res != NULL && PQntuples(res) == 0)
			pgctl_warn(t->p, "pgctl mqtt map list shows what is published",
				"no table %s is published now", t->tables[i]);
		PQclear(res);
	}
	return status;
}

static void name_slot(struct tail *t)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	snprintf(t->slot, sizeof(t->slot), "pgctl_tail_%ld_%08lx", (long)getpid(),
		(unsigned long)(ts.tv_sec << 20 ^ ts.tv_nsec) & 0xffffffffUL);
}

/* All names are [a-z0-9_]: nothing in them needs quoting. */
static char *copy_query(const char *from, const char *to)
{
	return xasprintf("SELECT pg_copy_logical_replication_slot('%s', '%s', true)", from, to);
}

static int copy_slot(struct tail *t, const char *from, const char *what)
{
	char *sql = copy_query(from, t->slot);
	int status = walconn_finish(&t->w, pgws_stream_query(t->w.s, sql), what, NULL);
	free(sql);
	return status;
}

static int make_slot(struct tail *t)
{
	struct pgws_slot_options options = PGWS_SLOT_OPTIONS_INIT;
	if (t->from_slot) {
		char *from = xasprintf("howdah_%s", t->db.place.node);
		int status = copy_slot(t, from, "copy the daemon's slot for a while");
		free(from);
		return status;
	}
	options.temporary = true;
	return walconn_finish(&t->w, pgws_stream_create_slot(t->w.s, &options),
		"make a temporary slot",
		"waiting for the transactions that are open now to end: what commits after "
		"them is shown");
}

/* In the SQL session; one that fails leaves no anchor. */
static bool run_sql(struct tail *t, const char *sql)
{
	PGresult *res = PQexec(t->db.pg, sql);
	bool ok = PQresultStatus(res) == PGRES_TUPLES_OK;
	PQclear(res);
	return ok;
}

static void drop_anchor(struct tail *t)
{
	char *sql = xasprintf("SELECT pg_drop_replication_slot('%s')", t->anchor);
	if (t->anchor[0] != '\0')
		(void)run_sql(t, sql); /* else the server drops it when we end */
	t->anchor[0] = '\0';
	free(sql);
}

/* A new one stands before the old one goes. */
static void move_anchor(struct tail *t, uint64_t confirmed_lsn)
{
	char name[sizeof(t->anchor)];
	snprintf(name, sizeof(name), "%.48s_%u", t->slot, t->n_anchors++);
	char *sql = copy_query(t->slot, name);
	bool made = run_sql(t, sql);
	drop_anchor(t);
	if (made)
		memcpy(t->anchor, name, sizeof(name));
	t->anchor_lsn = confirmed_lsn;
	t->next_anchor_ms = now_ms() + ANCHOR_MS;
	free(sql);
}

static int connect_stream(struct tail *t, enum pgws_streaming streaming)
{
	struct pgws_stream_options options = PGWS_STREAM_OPTIONS_INIT;
	name_slot(t);
	options.slot = t->slot;
	options.publications = buf_cstr(&t->publications);
	options.streaming = streaming;
	options.messages = (t->show.filter.ops & TAIL_MESSAGE) != 0;
	return walconn_open(&t->w, &t->db, options);
}

static int start_stream(struct tail *t)
{
	return walconn_finish(
		&t->w, pgws_stream_start(t->w.s, t->taken_lsn), "start the stream", NULL);
}

static int open_stream(struct tail *t)
{
	int status = connect_stream(t, PGWS_STREAMING_ON);
	if (status == PGCTL_OK && t->from_slot && !t->follow) {
		status = walconn_finish(
			&t->w, pgws_stream_identify(t->w.s), "ask where the server is", NULL);
		if (status == PGCTL_OK)
			t->stop_lsn = pgws_stream_system(t->w.s)->xlogpos;
	}
	if (status == PGCTL_OK)
		status = make_slot(t);
	if (status != PGCTL_OK)
		return status;
	move_anchor(t, 0);
	return start_stream(t);
}

/* The stream goes on without streaming. A transaction that came in part would be shown twice; but
 * what broke in there is not mended by this anyway. An exit status. */
static int fall_back(struct tail *t)
{
	if (t->anchor[0] == '\0' || pgws_assembler_in_transaction(t->assembler))
		return walconn_failed(&t->w, PGWS_ESERVER, "follow the server");
	pgctl_warn(t->p, NULL,
		"%s; the server can decode it at its end only, large transactions are left to it "
		"from now on",
		pgws_stream_error(t->w.s));
	walconn_close(&t->w);
	pgws_assembler_reset(t->assembler);
	int status = connect_stream(t, PGWS_STREAMING_OFF);
	if (status == PGCTL_OK)
		status = copy_slot(t, t->anchor, "go back to where the stream was");
	if (status == PGCTL_OK)
		status = start_stream(t);
	drop_anchor(t);
	return status;
}

static int open_assembler(struct tail *t)
{
	struct pgws_assembler_options options = PGWS_ASSEMBLER_OPTIONS_INIT;
	const char *dir = getenv("TMPDIR");
	options.memory_limit = MEMORY_BYTES;
	options.file_limit = FILE_BYTES;
	options.dir = dir != NULL && *dir != '\0' ? dir : "/var/tmp";
	int rc = pgws_assembler_new(&options, &t->assembler);
	if (rc != 0)
		return pgctl_fail(t->p, PGCTL_FAILED, "set TMPDIR to a folder that can be written",
			"cannot prepare for large transactions in %s: %s", options.dir,
			pgws_strerror(rc));
	t->show.catalog = pgws_assembler_catalog(t->assembler);
	return PGCTL_OK;
}

/* ---- Changes --------------------------------------------------------------------------------- */

/* Types that are not built in, from the catalogue; one that cannot be read shows as text. */
static void learn_types(struct tail *t, const struct pgws_relation *rel)
{
	uint32_t *oids = xcalloc((size_t)rel->n_columns + 1, sizeof(*oids));
	size_t n = tail_missing_types(rel, t->show.types, oids);
	struct buf list;
	buf_init(&list, 0);
	for (size_t i = 0; i < n; i++)
		buf_printf(&list, "%s%u", i > 0 ? "," : "{", oids[i]);
	buf_put_u8(&list, '}');
	if (n > 0) {
		const char *const values[] = {buf_cstr(&list)};
		PGresult *res =
			PQexecParams(t->db.pg, typecache_sql, 1, NULL, values, NULL, NULL, 0);
		if (PQresultStatus(res) == PGRES_TUPLES_OK) {
			typecache_learn_result(t->show.types, res, oids, n);
		} else {
			pgctl_warn(t->p, NULL, "cannot read the types of %s.%s, they show as text",
				rel->nspname, rel->relname);
			typecache_learn(t->show.types, NULL, 0, oids, n);
		}
		PQclear(res);
	}
	buf_free(&list);
	free(oids);
}

static bool is_past_stop(const struct tail *t, const struct pgws_change *c)
{
	if (t->stop_lsn == 0)
		return false;
	return (c->msg.type == PGWS_BEGIN && c->commit_lsn >= t->stop_lsn) ||
	       (c->commit_lsn == 0 && c->msg.type == PGWS_MESSAGE && c->lsn >= t->stop_lsn);
}

static void take_change(struct tail *t, const struct pgws_change *c)
{
	if (is_past_stop(t, c)) {
		t->done = true;
		return;
	}
	if (c->msg.type == PGWS_RELATION && c->relation != NULL &&
		tail_wants_relation(&t->show.filter, c->relation))
		learn_types(t, c->relation);
	t->shown += tail_show_change(&t->show, c, &t->out.lines);
	if (t->limit >= 0 && t->shown >= t->limit)
		t->done = true;
	if (c->commit_lsn == 0 && c->msg.type == PGWS_MESSAGE && c->lsn >= t->taken_lsn)
		t->taken_lsn = c->lsn + 1;
	if (c->msg.type == PGWS_COMMIT) {
		t->taken_lsn = c->end_lsn;
		tail_out_mark(&t->out, c->end_lsn);
		if (t->stop_lsn != 0 && c->end_lsn >= t->stop_lsn)
			t->done = true;
	}
}

static void take_keepalive(struct tail *t, const struct pgws_event *ev)
{
	t->reply_requested = t->reply_requested || ev->reply_requested;
	if (pgws_assembler_in_transaction(t->assembler))
		return;
	t->idle_lsn = ev->end_lsn;
	if (t->stop_lsn != 0 && ev->end_lsn >= t->stop_lsn)
		t->done = true;
}

static int assembler_failed(struct tail *t, int rc)
{
	const char *why = pgws_assembler_error(t->assembler);
	return pgctl_fail(t->p, PGCTL_FAILED,
		rc == PGWS_EIO ? "TMPDIR names a folder with more room" : NULL,
		"cannot put the transactions together: %s", *why != '\0' ? why : pgws_strerror(rc));
}

/* One step: 0; PGWS_EAGAIN: nothing there; else an exit status in *ret_status and PGWS_EEND. */
static int pull_one(struct tail *t, int *ret_status)
{
	struct pgws_change change;
	struct pgws_event ev;
	int rc = pgws_assembler_next(t->assembler, &change);
	if (rc == 0) {
		take_change(t, &change);
		return 0;
	}
	if (rc != PGWS_EAGAIN) {
		*ret_status = assembler_failed(t, rc);
		return PGWS_EEND;
	}
	rc = pgws_stream_next(t->w.s, &ev);
	if (rc == PGWS_EAGAIN)
		return rc;
	if (rc != 0) {
		*ret_status = pgws_stream_streaming_failed(t->w.s)
				      ? fall_back(t)
				      : walconn_failed(&t->w, rc, "follow the server");
		return *ret_status == PGCTL_OK ? 0 : PGWS_EEND;
	}
	if (ev.kind == PGWS_EVENT_KEEPALIVE) {
		take_keepalive(t, &ev);
		return 0;
	}
	rc = pgws_assembler_put(t->assembler, &ev);
	if (rc == 0)
		return 0;
	*ret_status = assembler_failed(t, rc);
	return PGWS_EEND;
}

/* Until there is enough to write, or nothing more comes (*ret_empty). An exit status. */
static int pull(struct tail *t, bool *ret_empty)
{
	int status = PGCTL_OK, rc = 0;
	for (int i = 0; i < PULL_MAX && rc == 0 && !t->done; i++) {
		if (tail_out_pending(&t->out) >= OUT_BYTES)
			break;
		rc = pull_one(t, &status);
	}
	*ret_empty = rc == PGWS_EAGAIN;
	return status;
}

/* ---- The loop -------------------------------------------------------------------------------- */

static void feed_back(struct tail *t)
{
	int64_t now = now_ms();
	if (!t->reply_requested && now < t->next_feedback_ms)
		return;
	uint64_t lsn = tail_out_printed(&t->out);
	bool idle = tail_out_pending(&t->out) == 0 && !pgws_assembler_in_transaction(t->assembler);
	if (idle && t->idle_lsn > lsn)
		lsn = t->idle_lsn;
	/* What cannot be sent now waits in the stream; a lost connection shows in next. A bounded
	 * run asks for the server's position, which may be all that is missing. */
	(void)pgws_stream_feedback(t->w.s, lsn, lsn, lsn, t->stop_lsn != 0);
	t->reply_requested = false;
	t->next_feedback_ms = now + FEEDBACK_MS;
	if (t->anchor[0] != '\0' && lsn > t->anchor_lsn && now >= t->next_anchor_ms)
		move_anchor(t, lsn);
}

/* The SQL session has something to say: only that it ends, most likely. */
static void look_at_session(struct tail *t)
{
	if (PQconsumeInput(t->db.pg) == 0 || PQstatus(t->db.pg) == CONNECTION_BAD)
		t->sql_lost_ms = now_ms();
}

/* Waits for whatever can go on. The output's descriptor is always looked at: a reader that leaves
 * ends us, also when there is nothing to write. -EPIPE: it has left. */
static int wait_both(struct tail *t, bool want_input, int64_t timeout_ms)
{
	short in = (short)((want_input && pgws_stream_wants_read(t->w.s) ? POLLIN : 0) |
			   (pgws_stream_wants_write(t->w.s) ? POLLOUT : 0));
	/* poll passes over what is negative. */
	struct pollfd fds[] = {
		{.fd = t->out.fd, .events = tail_out_pending(&t->out) > 0 ? POLLOUT : 0},
		{.fd = in != 0 ? pgws_stream_fd(t->w.s) : -1, .events = in},
		{.fd = t->sql_lost_ms == 0 ? PQsocket(t->db.pg) : -1, .events = POLLIN},
	};
	if (timeout_ms < 0)
		timeout_ms = 0;
	const struct timespec ts = {
		.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};
	if (ppoll(fds, ARRAY_LEN(fds), &ts, t->w.during) < 0)
		return 0; /* a signal: the caller looks */
	if (fds[2].revents != 0)
		look_at_session(t);
	return (fds[0].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0 ? -EPIPE : 0;
}

/* The reader of our output is gone, or its disk is full. */
static int output_failed(struct tail *t, int err)
{
	if (err == -EPIPE || err == -EIO)
		return PGCTL_FAILED; /* it has seen enough: nobody to complain to */
	return pgctl_fail(t->p, PGCTL_FAILED, "look for room on its disk",
		"cannot write the answer: %s", err_str(err));
}

static int loop(struct tail *t)
{
	int status = PGCTL_OK;
	while (status == PGCTL_OK && !t->done && !stop_signal) {
		bool empty;
		status = pull(t, &empty);
		int err = tail_out_write(&t->out);
		if (err == 0 && status == PGCTL_OK && !t->done) {
			feed_back(t);
			bool room = tail_out_pending(&t->out) < OUT_BYTES;
			err = wait_both(
				t, room, room && !empty ? 0 : t->next_feedback_ms - now_ms());
		}
		if (err != 0)
			return output_failed(t, err);
		if (status == PGCTL_OK && t->sql_lost_ms != 0 &&
			now_ms() - t->sql_lost_ms > GOODBYE_MS)
			status = pgctl_fail(t->p, PGCTL_FAILED, NULL,
				"the server ended our session; it shuts down, most likely");
	}
	return status;
}

/* What is left: all of it at our own end, as much as goes at once after a failure, the rest of a
 * line when we were told to stop. */
static int finish_output(struct tail *t, int status)
{
	int64_t until = status != PGCTL_OK ? now_ms() + LAST_LINE_MS : INT64_MAX;
	bool cut = false;
	pgws_stream_close(t->w.s);
	while (tail_out_pending(&t->out) > 0 && now_ms() < until) {
		if (stop_signal && !cut) {
			tail_out_cut(&t->out);
			cut = true;
			until = now_ms() + LAST_LINE_MS;
		}
		int err = tail_out_write(&t->out);
		if (err == 0 && tail_out_pending(&t->out) > 0)
			err = wait_both(t, false, 100);
		if (err != 0)
			return status != PGCTL_OK ? status : output_failed(t, err);
	}
	return status;
}

static int run(struct tail *t)
{
	int status = db_open(t->p, &t->db);
	if (status == PGCTL_OK)
		status = set_session(t);
	if (status == PGCTL_OK)
		status = check_publications(t);
	if (status == PGCTL_OK)
		status = check_tables(t);
	if (status == PGCTL_OK)
		status = open_assembler(t);
	if (status == PGCTL_OK)
		status = open_stream(t);
	if (status == PGCTL_OK)
		status = finish_output(t, loop(t));
	return status == WALCONN_STOPPED ? PGCTL_OK : status;
}

/* SIGINT and the like end us in good order; they come only while we wait. */
static void catch_signals(sigset_t *ret_before)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction act = {.sa_handler = on_stop_signal};
	sigset_t mask;
	sigemptyset(&mask);
	stop_signal = 0;
	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		sigaddset(&mask, signals[i]);
		sigaction(signals[i], &act, NULL);
	}
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_BLOCK, &mask, ret_before);
}

int cmd_wal_tail(struct pgctl *p, json_t *args)
{
	struct tail t = {.p = p};
	sigset_t before;
	buf_init(&t.publications, 0);
	int status = take_options(&t, args);
	int fd = fileno(p->out.f);
	if (status == PGCTL_OK && (fd < 0 || fflush(p->out.f) != 0))
		status = pgctl_fail(p, PGCTL_FAILED, NULL, "there is nowhere to write to");
	if (status == PGCTL_OK) {
		catch_signals(&before);
		t.w.during = &before;
		t.w.stop = &stop_signal;
		t.show.json = p->json;
		t.show.types = typecache_new();
		tail_out_init(&t.out, fd);
		status = run(&t);
		tail_out_free(&t.out);
		walconn_close(&t.w);
		pgws_assembler_free(&t.assembler);
		typecache_free(&t.show.types);
		db_close(&t.db);
	}
	buf_free(&t.publications);
	free(t.tables);
	return status;
}
