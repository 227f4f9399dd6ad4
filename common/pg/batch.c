/* SPDX-License-Identifier: PostgreSQL */
/*
 * The batching writer.
 *
 * Context: event thread. A row's way, each arrow one list move:
 *
 *   waiting --> group in flight --commit--> finished --> done(0)
 *                 |  |  |
 *                 |  |  `--PG_DATA------> again (split) --alone guilty--> finished --> done(err)
 *                 |  `--other error-----> again --backoff--> in flight
 *                 `--connection lost----> doubt --probe: there--> finished
 *                                               --probe: not there--> again
 *
 * A session (writer_session.h), whenever it is held:
 *
 *   DOWN -> PROBING (every token in doubt) -> PREPARING -> WRITING
 *
 * Splitting: the rows of a batch that broke on a row are tried by halves inside one transaction
 * with savepoints, under the batch's own token, and what is good is committed at once. So a token
 * is committed by at most one transaction, ever, and the answer to a probe is final whichever
 * attempt was the one in doubt. While a batch is being split, the connection serves nothing else;
 * the batch behind it had been sent already and is done first.
 *
 * Why a probe is final: see writer_session.h.
 *
 * Invariants:
 *   1. Tokens rise strictly; flight, again and doubt are in the order of tokens.
 *   2. flight holds at most FLIGHT_MAX groups; none while one is being split.
 *   3. n_rows and n_bytes count all rows that are taken and not done.
 *   4. A group is in exactly one of flight, again, doubt, or is the one in split.
 *
 * On crash: rows not done were not acknowledged to anybody; those done are committed.
 * See: tests/unit/test_batch.c.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/batch.h"
#include "common/pg/pg_array.h"
#include "common/pg/writer_session.h"

#define MAGIC 0x62617463 /* batc */
#define FLIGHT_MAX 2
#define MAX_WAITING_ROWS 100000
#define MAX_WAITING_BYTES (64 * 1024 * 1024)
#define MAX_BATCH_ROWS 10000
#define MAX_BATCH_BYTES (8 * 1024 * 1024)
#define STATEMENT_TIMEOUT_MS 30000
#define FINISH_PER_PASS 2000 /* completions, then others get their turn */
#define SPLIT_DEPTH_MAX 64   /* halves waiting: two per level of a row count's logarithm */

MEM_TYPE(mem_batch, "batch");
MEM_TYPE(mem_group, "batch group");
MEM_TYPE(mem_row, "batch row");
MEM_TYPE(mem_barrier, "batch barrier");

struct row {
	struct list link;
	uint64_t seq;
	uint32_t kind;
	int32_t sub;      /* position in the batch that it was first sent with */
	size_t len_bytes; /* of data, and what it counts for */
	int err;
	char *why; /* owned; NULL unless err */
	batch_done_fn done;
	void *arg;
	uint8_t data[]; /* per column: 32-bit length or -1, bytes: as in a binary array */
};

struct group {
	struct list link;
	struct batch *owner;
	int64_t token;
	struct list rows;
	size_t n_rows;
	enum pg_class class; /* of the first error of this attempt */
	char why[256];
	bool split; /* its next attempt is by halves */
};

struct barrier {
	struct list link;
	uint64_t seq;
	size_t n_left; /* rows up to seq that are not done */
	void (*cb)(void *arg);
	void *arg;
};

enum session { SESSION_DOWN, SESSION_PROBING, SESSION_PREPARING, SESSION_WRITING };

struct range {
	size_t from, to;
};

/* A batch being split. Ranges of rows still to be tried, the next on top. */
struct split {
	struct group *group; /* NULL: none */
	struct row **rows;
	struct range todo[SPLIT_DEPTH_MAX], now;
	size_t n_todo;
	size_t n_kept;
	bool rollback_first; /* the last range failed: the savepoint is to be restored */
	bool committing;
};

struct batch {
	uint32_t magic;
	struct ev_loop *loop;
	struct batch_ops ops;
	void *arg;
	char *node, *role;
	const struct batch_kind *kinds;
	size_t n_kinds;
	size_t max_waiting_rows, max_waiting_bytes, max_batch_rows, max_batch_bytes;
	struct writer_session *writer;
	struct pgconn *conn; /* the writer's */
	enum session session;
	struct list waiting, flight, again, doubt, finished, barriers;
	size_t n_flight;
	struct split split;
	size_t n_rows, n_bytes;
	uint64_t last_seq;
	int64_t last_token;
	bool starved; /* somebody was told -ERR_LIMIT */
	bool freed;
	struct ev_backoff backoff;
	struct ev_timer timer; /* resend */
	struct ev_deferred pump, finish, destroy;
	struct batch_counts counts;
	bool in_trouble;
	char trouble[512];
};

static void on_pump(void *arg);
static void on_finish(void *arg);

static void pump_later(struct batch *b)
{
	if (!b->freed)
		ev_defer(b->loop, &b->pump, on_pump, b);
}

static void finish_later(struct batch *b)
{
	if (!b->freed)
		ev_defer(b->loop, &b->finish, on_finish, b);
}

/* Tells the operator, once per text. */
static void trouble(struct batch *b, int err, const char *why)
{
	char line[sizeof b->trouble];

	if (b->freed || (b->in_trouble && strcmp(b->trouble, why) == 0))
		return;
	snprintf(line, sizeof line, "%s", why);
	memcpy(b->trouble, line, sizeof line);
	b->in_trouble = true;
	if (b->ops.on_trouble != NULL)
		b->ops.on_trouble(err, line, b->arg);
}

static void trouble_over(struct batch *b)
{
	if (!b->in_trouble || b->freed)
		return;
	b->in_trouble = false;
	if (b->ops.on_trouble != NULL)
		b->ops.on_trouble(0, "writing again", b->arg);
}

static int class_err(enum pg_class class)
{
	return class == PG_CONFIG ? -ERR_CONFIG : -EAGAIN;
}

/* ---- rows ---- */

static void free_row(struct row *r)
{
	free(r->why);
	mem_free(&mem_row, r);
}

static void finish_row(struct batch *b, struct row *r, int err, const char *why)
{
	list_remove(&r->link);
	r->err = err;
	r->why = why != NULL ? xstrdup(why) : NULL;
	list_push_back(&b->finished, &r->link);
	if (err == 0)
		b->counts.rows_committed++;
	else
		b->counts.rows_refused++;
	finish_later(b);
}

static void free_barrier(struct barrier *w)
{
	list_remove(&w->link);
	mem_free(&mem_barrier, w);
}

/* Barriers whose rows are all done, in order. */
static void run_barriers(struct batch *b)
{
	while (!b->freed && !list_empty(&b->barriers)) {
		struct barrier *w = list_first(&b->barriers, struct barrier, link);
		void (*cb)(void *) = w->cb;
		void *arg = w->arg;

		if (w->n_left > 0)
			return;
		free_barrier(w);
		cb(arg);
	}
}

static void complete(struct batch *b, struct row *r)
{
	list_remove(&r->link);
	b->n_rows--;
	b->n_bytes -= r->len_bytes;
	list_for_each (it, &b->barriers) {
		struct barrier *w = list_entry(it, struct barrier, link);

		if (r->seq <= w->seq)
			w->n_left--;
	}
	if (r->done != NULL)
		r->done(r->err, r->why, r->arg);
	free_row(r);
}

static void on_finish(void *arg)
{
	struct batch *b;
	size_t n = 0;

	OBJ_CAST(b, arg, MAGIC);
	while (!b->freed && !list_empty(&b->finished) && n++ < FINISH_PER_PASS)
		complete(b, list_first(&b->finished, struct row, link));
	run_barriers(b);
	if (b->freed)
		return;
	if (!list_empty(&b->finished))
		finish_later(b);
	if (b->starved && b->n_rows <= b->max_waiting_rows / 2 &&
		b->n_bytes <= b->max_waiting_bytes / 2) {
		b->starved = false;
		if (b->ops.on_room != NULL)
			b->ops.on_room(b->arg);
	}
}

static size_t value_bytes(const struct batch_value *v)
{
	return v->len_bytes > 0 ? (size_t)v->len_bytes : 0;
}

int batch_add(struct batch *b, size_t kind, const struct batch_value *values, batch_done_fn done,
	void *arg)
{
	size_t n_columns, len_bytes = 0;
	struct row *r;
	uint8_t *p;

	OBJ_CHECK(b, MAGIC);
	ASSERT(kind < b->n_kinds && !b->freed);
	n_columns = b->kinds[kind].n_columns;
	for (size_t i = 0; i < n_columns; i++)
		len_bytes += sizeof(int32_t) + value_bytes(&values[i]);
	/* A single row larger than the limit passes alone: its size is its sender's to limit. */
	if (b->n_rows > 0 && (b->n_rows >= b->max_waiting_rows ||
				     b->n_bytes + len_bytes > b->max_waiting_bytes)) {
		b->starved = true;
		return -ERR_LIMIT;
	}
	r = mem_new(&mem_row, sizeof *r + len_bytes);
	r->seq = ++b->last_seq;
	r->kind = (uint32_t)kind;
	r->len_bytes = len_bytes;
	r->done = done;
	r->arg = arg;
	p = r->data;
	for (size_t i = 0; i < n_columns; i++) {
		uint32_t be = htonl((uint32_t)values[i].len_bytes);

		memcpy(p, &be, sizeof be);
		p += sizeof be;
		if (value_bytes(&values[i]) > 0)
			memcpy(p, values[i].data, value_bytes(&values[i]));
		p += value_bytes(&values[i]);
	}
	list_push_back(&b->waiting, &r->link);
	b->n_rows++;
	b->n_bytes += len_bytes;
	pump_later(b);
	return 0;
}

void batch_barrier(struct batch *b, void (*cb)(void *arg), void *arg)
{
	struct barrier *w = mem_new(&mem_barrier, sizeof *w);

	OBJ_CHECK(b, MAGIC);
	w->seq = b->last_seq;
	w->n_left = b->n_rows;
	w->cb = cb;
	w->arg = arg;
	list_push_back(&b->barriers, &w->link);
	finish_later(b);
}

/* ---- groups ---- */

static void insert_by_token(struct list *head, struct group *g)
{
	struct list *at = head;

	while (at->prev != head && list_entry(at->prev, struct group, link)->token > g->token)
		at = at->prev;
	list_insert_between(&g->link, at->prev, at);
}

static void free_group(struct group *g)
{
	ASSERT(list_empty(&g->rows));
	list_remove(&g->link);
	mem_free(&mem_group, g);
}

static void leave_flight(struct group *g)
{
	list_remove(&g->link);
	g->owner->n_flight--;
}

static int64_t next_token(struct batch *b)
{
	struct timespec ts;
	int64_t now;

	clock_gettime(CLOCK_REALTIME, &ts);
	now = (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
	b->last_token = now > b->last_token ? now : b->last_token + 1;
	return b->last_token;
}

/* The next batch from what is waiting, up to its limits. */
static struct group *form_group(struct batch *b)
{
	struct group *g = mem_new(&mem_group, sizeof *g);
	size_t n_bytes = 0;

	list_init(&g->link);
	list_init(&g->rows);
	g->owner = b;
	g->token = next_token(b);
	while (!list_empty(&b->waiting) && g->n_rows < b->max_batch_rows) {
		struct row *r = list_first(&b->waiting, struct row, link);

		if (g->n_rows > 0 && n_bytes + r->len_bytes > b->max_batch_bytes)
			break;
		n_bytes += r->len_bytes;
		r->sub = (int32_t)g->n_rows++;
		list_remove(&r->link);
		list_push_back(&g->rows, &r->link);
	}
	return g;
}

static void committed(struct batch *b, struct group *g)
{
	b->counts.batches_committed++;
	while (!list_empty(&g->rows))
		finish_row(b, list_first(&g->rows, struct row, link), 0, NULL);
	free_group(g);
	ev_backoff_reset(&b->backoff);
	writer_session_works(b->writer);
	if (b->session == SESSION_WRITING)
		trouble_over(b);
}

/* An attempt was rolled back by the server: by halves if a row is to blame, else again later. */
static void rolled_back(struct batch *b, struct group *g)
{
	if (g->class == PG_DATA && g->n_rows == 1) {
		finish_row(b, list_first(&g->rows, struct row, link), -EINVAL, g->why);
		free_group(g);
		return;
	}
	b->counts.batches_retried++;
	g->split = g->class == PG_DATA;
	insert_by_token(&b->again, g);
	if (g->split)
		return;
	ev_timer_start(&b->timer, ev_backoff_next_ms(&b->backoff));
	trouble(b, class_err(g->class), g->why);
}

/* ---- building and sending ---- */

static const struct {
	Oid element, array;
} array_types[] = {
	{16, 1000},   /* bool */
	{17, 1001},   /* bytea */
	{20, 1016},   /* int8 */
	{21, 1005},   /* int2 */
	{23, 1007},   /* int4 */
	{25, 1009},   /* text */
	{26, 1028},   /* oid */
	{701, 1022},  /* float8 */
	{1184, 1185}, /* timestamptz */
	{2950, 2951}, /* uuid */
	{3802, 3807}, /* jsonb */
};

#define TYPE_INT8 20
#define TYPE_INT4 23
#define TYPE_TEXT 25
#define TYPE_JSONB 3802
#define FIRST_COLUMN 3 /* after token, node, sub */
#define FIRST_ARRAY 2  /* sub is an array too */
#define PARAMS_MAX (FIRST_COLUMN + BATCH_COLUMNS_MAX)

static Oid array_type(Oid element)
{
	for (size_t i = 0; i < ARRAY_LEN(array_types); i++)
		if (array_types[i].element == element)
			return array_types[i].array;
	ASSERT(!"a column type that batch.c does not know");
	return 0;
}

/* jsonb's binary form is a version byte and the text; a caller may give the text alone. */
static void put_element(struct buf *a, Oid type, const uint8_t *data, int32_t len)
{
	bool bare_json = type == TYPE_JSONB && len > 0 && data[0] != 1;

	buf_put_be32(a, (uint32_t)(len + bare_json));
	if (bare_json)
		buf_put_u8(a, 1);
	if (len > 0)
		buf_put(a, data, (size_t)len);
}

/* The rows of one kind as arrays: arrays[0] is sub. Returns how many rows. */
static size_t build_arrays(const struct batch *b, uint32_t k, struct row **rows, size_t n_rows,
	struct buf arrays[1 + BATCH_COLUMNS_MAX])
{
	const struct batch_kind *kind = &b->kinds[k];
	bool has_null[BATCH_COLUMNS_MAX] = {false};
	size_t n = 0;

	buf_init(&arrays[0], 0);
	pg_array_begin(&arrays[0], TYPE_INT4);
	for (size_t c = 0; c < kind->n_columns; c++) {
		buf_init(&arrays[1 + c], 0);
		pg_array_begin(&arrays[1 + c], kind->types[c]);
	}
	for (size_t i = 0; i < n_rows; i++) {
		const uint8_t *p = rows[i]->data;

		if (rows[i]->kind != k)
			continue;
		n++;
		buf_put_be32(&arrays[0], 4);
		buf_put_be32(&arrays[0], (uint32_t)rows[i]->sub);
		for (size_t c = 0; c < kind->n_columns; c++) {
			uint32_t be;
			int32_t len;

			memcpy(&be, p, sizeof be);
			p += sizeof be;
			len = (int32_t)ntohl(be);
			has_null[c] |= len < 0;
			put_element(&arrays[1 + c], kind->types[c], p, len);
			p += len > 0 ? len : 0;
		}
	}
	pg_array_end(&arrays[0], n, false);
	for (size_t c = 0; c < kind->n_columns; c++)
		pg_array_end(&arrays[1 + c], n, has_null[c]);
	return n;
}

static void on_rows_result(PGresult *res, void *arg);

/* One kind's statement over the rows of that kind; nothing if there are none. */
static int send_kind(struct batch *b, uint32_t k, struct group *g, struct row **rows, size_t n_rows)
{
	const struct batch_kind *kind = &b->kinds[k];
	struct buf arrays[1 + BATCH_COLUMNS_MAX];
	const char *values[PARAMS_MAX];
	int lengths[PARAMS_MAX], formats[PARAMS_MAX];
	uint32_t token_be[2] = {
		htonl((uint32_t)((uint64_t)g->token >> 32)), htonl((uint32_t)g->token)};
	size_t n_params = FIRST_COLUMN + kind->n_columns;
	int err = 0;

	values[0] = (const char *)token_be;
	lengths[0] = sizeof token_be;
	values[1] = b->node;
	lengths[1] = (int)strlen(b->node);
	if (build_arrays(b, k, rows, n_rows, arrays) > 0) {
		struct pgconn_query q = {
			.sql = kind->name,
			.prepared = true,
			.n_params = (int)n_params,
			.values = values,
			.lengths = lengths,
			.formats = formats,
			.result_format = 1,
		};

		for (size_t i = 0; i < n_params; i++)
			formats[i] = 1;
		for (size_t i = FIRST_ARRAY; i < n_params; i++) {
			values[i] = (const char *)arrays[i - FIRST_ARRAY].data;
			lengths[i] = (int)arrays[i - FIRST_ARRAY].len_bytes;
		}
		err = pgconn_query(b->conn, &q, on_rows_result, g);
	}
	for (size_t i = FIRST_ARRAY; i < n_params; i++)
		buf_free(&arrays[i - FIRST_ARRAY]);
	return err;
}

static int send_rows(struct batch *b, struct group *g, struct row **rows, size_t n_rows)
{
	int err = 0;

	for (uint32_t k = 0; k < b->n_kinds && err == 0; k++)
		err = send_kind(b, k, g, rows, n_rows);
	return err;
}

static struct row **row_array(const struct group *g)
{
	struct row **rows = xcalloc(g->n_rows, sizeof(struct row *));
	size_t n = 0;

	list_for_each (it, &g->rows)
		rows[n++] = list_entry(it, struct row, link);
	ASSERT(n == g->n_rows);
	return rows;
}

/* Remembers the first real error of an attempt. */
static void note_error(struct group *g, const PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);

	if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
		status == PGRES_PIPELINE_SYNC || status == PGRES_PIPELINE_ABORTED ||
		g->class != PG_OK)
		return;
	g->class = pg_classify(PQresultErrorField(res, PG_DIAG_SQLSTATE));
	if (g->class == PG_OK)
		g->class = PG_RETRY;
	pg_result_error(res, g->why, sizeof g->why);
}

static void on_rows_result(PGresult *res, void *arg)
{
	if (res != NULL)
		note_error(arg, res);
}

static void on_group_sync(PGresult *res, void *arg)
{
	struct group *g = arg;
	struct batch *b = g->owner;

	if (b->freed)
		return;
	leave_flight(g);
	if (pg_sync_leaves_doubt(res)) {
		insert_by_token(&b->doubt, g);
		return;
	}
	note_error(g, res);
	if (g->class == PG_OK)
		committed(b, g);
	else
		rolled_back(b, g);
	pump_later(b);
}

static void send_group(struct batch *b, struct group *g)
{
	struct row **rows = row_array(g);
	int err;

	g->class = PG_OK;
	g->why[0] = '\0';
	list_push_back(&b->flight, &g->link);
	b->n_flight++;
	err = send_rows(b, g, rows, g->n_rows);
	if (err == 0)
		err = pgconn_sync(b->conn, on_group_sync, g);
	free(rows);
	if (err != 0) { /* the connection breaks; how far this got is unknown */
		leave_flight(g);
		insert_by_token(&b->doubt, g);
	}
}

/* ---- splitting ---- */

static void split_end(struct batch *b)
{
	free(b->split.rows);
	memset(&b->split, 0, sizeof b->split);
}

static void split_lost(struct batch *b)
{
	struct group *g = b->split.group;

	split_end(b);
	g->split = false; /* what is left of it may be a single row; a bad one shows again */
	insert_by_token(&b->doubt, g);
}

static int split_send(struct batch *b, const char *sql)
{
	struct pgconn_query q = {.sql = sql};

	return pgconn_query(b->conn, &q, on_rows_result, b->split.group);
}

static int split_send_range(struct batch *b)
{
	struct split *s = &b->split;
	int err = split_send(b,
		s->rollback_first ? "ROLLBACK TO SAVEPOINT howdah_half" : "SAVEPOINT howdah_half");

	if (err == 0)
		err = send_rows(b, s->group, s->rows + s->now.from, s->now.to - s->now.from);
	if (err == 0)
		err = split_send(b, "RELEASE SAVEPOINT howdah_half");
	return err;
}

static int split_send_end(struct batch *b)
{
	struct split *s = &b->split;
	int err = 0;

	s->committing = true;
	if (s->n_kept == 0)
		return split_send(b, "ROLLBACK");
	if (s->rollback_first)
		err = split_send(b, "ROLLBACK TO SAVEPOINT howdah_half");
	return err == 0 ? split_send(b, "COMMIT") : err;
}

static void on_split_sync(PGresult *res, void *arg);

/* Sends the next range, or the end. */
static void split_next(struct batch *b, bool first)
{
	struct split *s = &b->split;
	int err = 0;

	s->group->class = PG_OK;
	s->group->why[0] = '\0';
	if (first) {
		err = split_send(b, "BEGIN");
		/* What is only found at the commit could not be blamed on a row. */
		if (err == 0)
			err = split_send(b, "SET CONSTRAINTS ALL IMMEDIATE");
	}
	if (err == 0 && s->n_todo > 0) {
		s->now = s->todo[--s->n_todo];
		err = split_send_range(b);
	} else if (err == 0) {
		err = split_send_end(b);
	}
	if (err == 0)
		err = pgconn_sync(b->conn, on_split_sync, b);
	if (err != 0)
		split_lost(b);
}

static void split_halves(struct split *s, size_t from, size_t to)
{
	size_t middle = from + (to - from) / 2;

	ASSERT(s->n_todo + 2 <= SPLIT_DEPTH_MAX);
	s->todo[s->n_todo++] = (struct range){middle, to};
	s->todo[s->n_todo++] = (struct range){from, middle};
}

static void split_start(struct batch *b, struct group *g)
{
	ASSERT(b->split.group == NULL && b->n_flight == 0 && g->n_rows > 1);
	list_remove(&g->link);
	b->split.group = g;
	b->split.rows = row_array(g);
	split_halves(&b->split, 0, g->n_rows);
	split_next(b, true);
}

/* A reason that is no row's: all that is left of it again, later. */
static void split_abandon(struct batch *b)
{
	struct group *g = b->split.group;

	split_end(b);
	/* If this is lost, so is the session; either way nothing is committed. */
	if (pgconn_simple(b->conn, "ROLLBACK", 0, NULL, NULL, NULL) != 0)
		log_debug("batch.split", "writer %s: connection lost while splitting", b->role);
	if (g->n_rows == 0) {
		free_group(g);
		return;
	}
	if (g->class == PG_DATA) /* found only at the commit: no row to blame */
		g->class = PG_RETRY;
	rolled_back(b, g);
}

static void split_range_failed(struct batch *b)
{
	struct split *s = &b->split;
	struct group *g = s->group;

	s->rollback_first = true;
	if (s->now.to - s->now.from > 1) {
		split_halves(s, s->now.from, s->now.to);
		return;
	}
	finish_row(b, s->rows[s->now.from], -EINVAL, g->why);
	s->rows[s->now.from] = NULL;
	g->n_rows--;
}

static void split_committed(struct batch *b)
{
	struct group *g = b->split.group;

	split_end(b);
	if (g->n_rows > 0)
		committed(b, g);
	else
		free_group(g);
}

static void on_split_sync(PGresult *res, void *arg)
{
	struct batch *b;
	struct split *s;

	OBJ_CAST(b, arg, MAGIC);
	s = &b->split;
	if (b->freed)
		return;
	if (pg_sync_leaves_doubt(res)) {
		split_lost(b);
		return;
	}
	note_error(s->group, res);
	if (s->group->class != PG_OK && (s->committing || s->group->class != PG_DATA)) {
		split_abandon(b);
		pump_later(b);
		return;
	}
	if (s->committing) {
		split_committed(b);
		pump_later(b);
		return;
	}
	if (s->group->class == PG_OK) {
		s->n_kept += s->now.to - s->now.from;
		s->rollback_first = false;
	} else {
		split_range_failed(b);
	}
	split_next(b, false);
}

/* ---- the pump: what to send next ---- */

/* The group to send now; NULL: nothing, or one is being split. */
static struct group *next_group(struct batch *b)
{
	struct group *g;

	if (list_empty(&b->again))
		return list_empty(&b->waiting) ? NULL : form_group(b);
	g = list_first(&b->again, struct group, link);
	if (g->split) {
		if (b->n_flight == 0)
			split_start(b, g);
		return NULL;
	}
	list_remove(&g->link);
	return g;
}

static void on_pump(void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	while (!b->freed && b->session == SESSION_WRITING && !b->timer.active &&
		b->split.group == NULL && b->n_flight < FLIGHT_MAX && list_empty(&b->doubt) &&
		pgconn_get_state(b->conn) == PGCONN_UP) {
		struct group *g = next_group(b);

		if (g == NULL)
			return;
		send_group(b, g);
	}
}

/* ---- the session ---- */

static void set_session(struct batch *b, enum session s)
{
	static const char *const names[] = {"DOWN", "PROBING", "PREPARING", "WRITING"};

	if (b->session != s)
		log_debug("batch.session", "writer %s: %s -> %s", b->role, names[b->session],
			names[s]);
	b->session = s;
}

static bool step_ok(struct batch *b, const PGresult *res)
{
	return !b->freed && writer_session_step_ok(b->writer, res);
}

static void on_step(PGresult *res, void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	(void)step_ok(b, res); /* what follows in the pipeline is aborted if not */
}

static void on_prepared(PGresult *res, void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	if (!step_ok(b, res) || b->session != SESSION_PREPARING)
		return;
	set_session(b, SESSION_WRITING);
	/* After a refusal (a batch to be sent again) only its commit says that all is well. */
	if (list_empty(&b->again))
		trouble_over(b);
	pump_later(b);
}

static void prepare_all(struct batch *b)
{
	int err = 0;

	set_session(b, SESSION_PREPARING);
	for (size_t k = 0; k < b->n_kinds && err == 0; k++) {
		const struct batch_kind *kind = &b->kinds[k];
		Oid types[PARAMS_MAX] = {TYPE_INT8, TYPE_TEXT, array_type(TYPE_INT4)};

		for (size_t c = 0; c < kind->n_columns; c++)
			types[FIRST_COLUMN + c] = array_type(kind->types[c]);
		err = pgconn_prepare(b->conn, kind->name, kind->sql,
			(int)(FIRST_COLUMN + kind->n_columns), types, on_step, b);
	}
	if (err == 0)
		err = pgconn_sync(b->conn, on_prepared, b);
	(void)err; /* the connection breaks: on_down starts over */
}

static void on_probe(PGresult *res, void *arg)
{
	struct group *g = arg;
	struct batch *b = g->owner;

	if (!step_ok(b, res))
		return;
	b->counts.in_doubt_resolved++;
	list_remove(&g->link);
	if (PQntuples(res) > 0) {
		committed(b, g);
		return;
	}
	b->counts.batches_retried++;
	insert_by_token(&b->again, g);
}

static void on_probed(PGresult *res, void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	if (!step_ok(b, res) || b->session != SESSION_PROBING)
		return;
	ASSERT(list_empty(&b->doubt));
	prepare_all(b);
}

static int send_probe(struct batch *b, struct group *g)
{
	const struct row *first = NULL;
	char token[32];
	const char *values[] = {token, b->node};
	static const Oid types[] = {TYPE_INT8, TYPE_TEXT};
	struct pgconn_query q = {.n_params = 2, .types = types, .values = values};

	list_for_each (it, &g->rows) {
		const struct row *r = list_entry(it, struct row, link);

		if (first == NULL || r->kind < first->kind)
			first = r;
	}
	ASSERT(first != NULL);
	snprintf(token, sizeof token, "%" PRId64, g->token);
	q.sql = b->kinds[first->kind].probe_sql;
	return pgconn_query(b->conn, &q, on_probe, g);
}

static void drop_empty_doubts(struct batch *b)
{
	list_for_each_safe (it, &b->doubt) {
		struct group *g = list_entry(it, struct group, link);

		if (g->n_rows == 0) /* every row was refused before the connection was lost */
			free_group(g);
	}
}

static bool in_doubt(void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	drop_empty_doubts(b);
	return !list_empty(&b->doubt);
}

static void on_held(void *arg)
{
	struct batch *b;
	int err = 0;

	OBJ_CAST(b, arg, MAGIC);
	if (list_empty(&b->doubt)) {
		prepare_all(b);
		return;
	}
	set_session(b, SESSION_PROBING);
	list_for_each (it, &b->doubt)
		if (err == 0)
			err = send_probe(b, list_entry(it, struct group, link));
	if (err == 0)
		err = pgconn_sync(b->conn, on_probed, b);
	(void)err; /* the connection breaks: on_down starts over */
}

static void on_timer(void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	pump_later(b);
}

/* By now every result callback has run: flight and split are empty. */
static void on_down(enum pg_class class, const char *why, void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	ASSERT(b->n_flight == 0 && b->split.group == NULL);
	ev_timer_stop(&b->timer);
	set_session(b, SESSION_DOWN);
	trouble(b, class == PG_CONFIG ? -ERR_CONFIG : -ERR_CLOSED, why);
}

static void on_locked_out(const char *why, void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	trouble(b, -EAGAIN, why);
}

/* ---- life ---- */

static size_t or_default(size_t value, size_t def)
{
	return value != 0 ? value : def;
}

struct batch *batch_new(struct ev_loop *loop, const struct batch_options *options,
	const struct batch_ops *ops, void *arg)
{
	static const struct writer_session_ops writer_ops = {.in_doubt = in_doubt,
		.on_held = on_held,
		.on_down = on_down,
		.on_locked_out = on_locked_out};
	struct batch *b = mem_new(&mem_batch, sizeof *b);
	struct writer_session_options writer_options = {
		.conninfo = options->conninfo,
		.application_name = options->application_name,
		.node = options->node,
		.role = options->role,
		.timeout_ms = STATEMENT_TIMEOUT_MS,
	};

	ASSERT(options->n_kinds > 0 && options->n_kinds <= BATCH_KINDS_MAX);
	b->magic = MAGIC;
	b->loop = loop;
	b->ops = *ops;
	b->arg = arg;
	b->node = xstrdup(options->node);
	b->role = xstrdup(options->role);
	b->kinds = options->kinds;
	b->n_kinds = options->n_kinds;
	b->max_waiting_rows = or_default(options->max_waiting_rows, MAX_WAITING_ROWS);
	b->max_waiting_bytes = or_default(options->max_waiting_bytes, MAX_WAITING_BYTES);
	b->max_batch_rows = or_default(options->max_batch_rows, MAX_BATCH_ROWS);
	b->max_batch_bytes = or_default(options->max_batch_bytes, MAX_BATCH_BYTES);
	list_init(&b->waiting);
	list_init(&b->flight);
	list_init(&b->again);
	list_init(&b->doubt);
	list_init(&b->finished);
	list_init(&b->barriers);
	b->backoff = (struct ev_backoff){.base_ms = 100, .cap_ms = 5000};
	ev_timer_init(&b->timer, loop, "batch", on_timer, b);
	b->writer = writer_session_new(loop, &writer_options, &writer_ops, b);
	b->conn = writer_session_conn(b->writer);
	writer_session_start(b->writer);
	return b;
}

static void free_rows(struct list *rows)
{
	list_for_each_safe (it, rows) {
		struct row *r = list_entry(it, struct row, link);

		list_remove(&r->link);
		free_row(r);
	}
}

static void free_groups(struct list *groups)
{
	list_for_each_safe (it, groups) {
		struct group *g = list_entry(it, struct group, link);

		free_rows(&g->rows);
		free_group(g);
	}
}

static void destroy(void *arg)
{
	struct batch *b;

	OBJ_CAST(b, arg, MAGIC);
	if (b->split.group != NULL)
		split_lost(b);
	free_rows(&b->waiting);
	free_rows(&b->finished);
	free_groups(&b->flight);
	free_groups(&b->again);
	free_groups(&b->doubt);
	list_for_each_safe (it, &b->barriers)
		free_barrier(list_entry(it, struct barrier, link));
	free(b->node);
	free(b->role);
	b->magic = 0;
	mem_free(&mem_batch, b);
}

void batch_free(struct batch **bp)
{
	struct batch *b = *bp;

	if (b == NULL)
		return;
	OBJ_CHECK(b, MAGIC);
	*bp = NULL;
	ASSERT(!b->freed);
	b->freed = true;
	writer_session_free(&b->writer);
	ev_timer_stop(&b->timer);
	ev_defer_cancel(b->loop, &b->pump);
	ev_defer_cancel(b->loop, &b->finish);
	/* A result callback of ours may be on the stack. */
	ev_defer(b->loop, &b->destroy, destroy, b);
}

bool batch_is_up(const struct batch *b)
{
	return b->session == SESSION_WRITING;
}

void batch_get_counts(const struct batch *b, struct batch_counts *ret_counts)
{
	*ret_counts = b->counts;
	ret_counts->rows_waiting = b->n_rows;
	ret_counts->bytes_waiting = b->n_bytes;
	ret_counts->batches_in_flight = b->n_flight + (b->split.group != NULL);
}
