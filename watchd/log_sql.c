/* SPDX-License-Identifier: PostgreSQL */
/*
 * The log's statements and the coding of its rows.
 *
 * Why the INSERT is exact: it inserts only if (tip.seq, tip.batch) is the newest row, and its first
 * row has the next seq. An entry above the tip that the statement does not see yet is found by the
 * primary key, which refuses ours (23505), or, if that one is not committed yet, makes it wait
 * until it is. ON CONFLICT would break that. That the tip is there would not do: for a node that is
 * late, compaction may have removed what stood above it.
 *
 * The turn: each INSERT takes the turn's lock in shared mode for its transaction, without waiting.
 * PostgreSQL's lock queue is first come, first served, and a waiter for the exclusive lock makes
 * the others' tries fail: so a node that lost twice waits for the exclusive lock, and then nobody
 * overtakes it. All in one transaction with a limit for how long it may idle, so that a node that
 * is stopped in its turn stops the others no longer than that.
 *
 * Sub-selects without outer columns are executed once, and only when they are needed.
 */
#include "config.h"

#include <arpa/inet.h>
#include <endian.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/pg_array.h"
#include "watchd/log_sql.h"

#define KEEP_BYTES (1 << 20) /* of each array, from one batch to the next: 11 MB at most */

#define TYPE_BOOL 16
#define TYPE_BYTEA 17
#define TYPE_INT8 20
#define TYPE_INT2 21
#define TYPE_INT4 23
#define TYPE_TEXT 25

#define TURN "hashtextextended('howdah_watch turn', 0)"

const char *const log_session_setup[] = {
	"SET plan_cache_mode = force_generic_plan",
	/* The plans are made while the table may be empty, and must be right when it is not. */
	"SET enable_seqscan = off",
	"SET enable_bitmapscan = off",
	"SET max_parallel_workers_per_gather = 0",
	"SET jit = off",
	"SET search_path = pg_catalog, pg_temp",
	/* A backend that was stopped between its snapshot and its first row must not go on when
	 * what its snapshot does not show may have been removed again: that takes a minute. */
	"SET statement_timeout = '20s'",
	/* From 17 on: a backend that never hears of the end of its transaction gives it up. */
	"SELECT set_config(name, '30s', false) FROM pg_settings WHERE name = 'transaction_timeout'",
	NULL,
};

static const struct {
	uint32_t element, array;
} columns[LOG_ARRAY_COUNT] = {
	[LOG_SEQ] = {TYPE_INT8, 1016},
	[LOG_SUB] = {TYPE_INT4, 1007},
	[LOG_LAST] = {TYPE_BOOL, 1000},
	[LOG_KIND] = {TYPE_INT2, 1005},
	[LOG_REV] = {TYPE_INT8, 1016},
	[LOG_CREATE_REV] = {TYPE_INT8, 1016},
	[LOG_VERSION] = {TYPE_INT8, 1016},
	[LOG_LEASE] = {TYPE_INT8, 1016},
	[LOG_ARG] = {TYPE_INT8, 1016},
	[LOG_KEY] = {TYPE_BYTEA, 1001},
	[LOG_VALUE] = {TYPE_BYTEA, 1001},
};

#define FIRST_ARRAY 5
#define N_PARAMS (FIRST_ARRAY + LOG_ARRAY_COUNT)

#define INSERT                                                                                     \
	"INSERT INTO howdah_watch.log (seq, rev, batch, at, create_rev, version, lease, arg, "     \
	"sub, "                                                                                    \
	"kind, last, node, key, value) "
#define CONDITION                                                                                  \
	"WHERE (SELECT $3 OR pg_try_advisory_xact_lock_shared(" TURN ")) "                         \
	"AND coalesce((SELECT t.seq = $1 AND t.batch = $2 FROM howdah_watch.log t "                \
	"ORDER BY t.seq DESC, t.sub DESC LIMIT 1), $1 = 0)"

static const char insert_name[] = "log_insert";
static const char insert_sql[] = INSERT
	"SELECT u.seq, u.rev, $4, now(), u.create_rev, u.version, u.lease, u.arg, u.sub, u.kind, "
	"u.last, $5, u.key, u.value "
	"FROM unnest($6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) AS u (seq, sub, last, "
	"kind, "
	"rev, create_rev, version, lease, arg, key, value) " CONDITION;

/* One row is common, and cheaper for the server without arrays. */
static const char insert_one_name[] = "log_insert_one";
static const char insert_one_sql[] =
	INSERT "SELECT $6, $10, $4, now(), $11, $12, $13, $14, $7, $9, $8, $5, $15, $16 " CONDITION;

const char log_turn_begin[] = "BEGIN";
const char log_turn_limit[] = "SET LOCAL idle_in_transaction_session_timeout = '2s'";
const char log_turn_take[] = "SELECT pg_advisory_xact_lock(" TURN ")";

static const char tip_name[] = "log_tip";
/* The parts of an Append come in their order. */
static const char tip_sql[] =
	"(SELECT l.seq, l.sub, l.last, l.kind, l.rev, l.create_rev, l.version, l.lease, l.arg, "
	"l.node, NULL::bytea, NULL::bytea, l.batch "
	"FROM howdah_watch.log l WHERE l.seq = $1 ORDER BY l.sub LIMIT 1) "
	"UNION ALL "
	"(SELECT l.seq, l.sub, l.last, l.kind, l.rev, l.create_rev, l.version, l.lease, l.arg, "
	"l.node, l.key, l.value, l.batch "
	"FROM howdah_watch.log l WHERE l.seq > $1 ORDER BY l.seq, l.sub LIMIT $2)";

const char log_load_begin[] = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const char log_load_cursor[] =
	"DECLARE log_load BINARY NO SCROLL CURSOR FOR SELECT l.seq, l.sub, l.last, l.kind, l.rev, "
	"l.create_rev, l.version, l.lease, l.arg, l.node, l.key, l.value, l.batch "
	"FROM howdah_watch.log l ORDER BY l.seq, l.sub";
const char log_load_end[] = "COMMIT";

/* ---- writing ---- */

static void put_int8(struct log_rows *r, enum log_array a, int64_t v)
{
	struct {
		uint32_t len_be;
		uint8_t v_be[8];
	} e = {.len_be = htonl(sizeof e.v_be)};
	uint64_t be = htobe64((uint64_t)v);

	memcpy(e.v_be, &be, sizeof be);
	buf_put(&r->arrays[a], &e, sizeof e);
}

static void put_null(struct log_rows *r, enum log_array a)
{
	r->n_nulls[a]++;
	buf_put_be32(&r->arrays[a], UINT32_MAX);
}

/* 0 is NULL in the table. */
static void put_optional(struct log_rows *r, enum log_array a, int64_t v)
{
	if (v != 0)
		put_int8(r, a, v);
	else
		put_null(r, a);
}

static void put_bytes(struct log_rows *r, enum log_array a, struct store_bytes b)
{
	buf_put_be32(&r->arrays[a], (uint32_t)b.len);
	if (b.len > 0)
		buf_put(&r->arrays[a], b.data, b.len);
	r->n_bytes += b.len;
}

void log_rows_add(struct log_rows *r, const struct store_row *row)
{
	if (r->n++ == 0) {
		r->first_seq = row->seq;
		for (size_t a = 0; a < LOG_ARRAY_COUNT; a++)
			pg_array_begin(&r->arrays[a], columns[a].element);
	}
	r->last_seq = row->seq;
	r->n_bytes += STORE_ROW_BYTES;
	put_int8(r, LOG_SEQ, row->seq);
	buf_put_be32(&r->arrays[LOG_SUB], 4);
	buf_put_be32(&r->arrays[LOG_SUB], (uint32_t)row->sub);
	buf_put_be32(&r->arrays[LOG_LAST], 1);
	buf_put_u8(&r->arrays[LOG_LAST], row->last);
	buf_put_be32(&r->arrays[LOG_KIND], 2);
	buf_put_be16(&r->arrays[LOG_KIND], (uint16_t)row->kind);
	put_int8(r, LOG_REV, row->rev);
	put_optional(r, LOG_CREATE_REV, row->create_rev);
	put_optional(r, LOG_VERSION, row->version);
	put_optional(r, LOG_LEASE, row->lease);
	put_optional(r, LOG_ARG, row->arg);
	if (row->key.len > 0)
		put_bytes(r, LOG_KEY, row->key);
	else
		put_null(r, LOG_KEY);
	if (row->kind == STORE_PUT)
		put_bytes(r, LOG_VALUE, row->value);
	else
		put_null(r, LOG_VALUE);
}

void log_rows_reset(struct log_rows *r)
{
	for (size_t a = 0; a < LOG_ARRAY_COUNT; a++) {
		if (r->arrays[a].cap_bytes > KEEP_BYTES)
			buf_free(&r->arrays[a]);
		else
			buf_reset(&r->arrays[a]);
		r->n_nulls[a] = 0;
	}
	r->n = r->n_bytes = 0;
	r->first_seq = r->last_seq = 0;
}

void log_rows_free(struct log_rows *r)
{
	for (size_t a = 0; a < LOG_ARRAY_COUNT; a++)
		buf_free(&r->arrays[a]);
	memset(r, 0, sizeof *r);
}

int log_prepare_insert(struct pgconn *c, pgconn_result_fn cb, void *arg)
{
	Oid types[N_PARAMS] = {TYPE_INT8, TYPE_INT8, TYPE_BOOL, TYPE_INT8, TYPE_TEXT};
	int err;

	for (size_t a = 0; a < LOG_ARRAY_COUNT; a++)
		types[FIRST_ARRAY + a] = columns[a].array;
	err = pgconn_prepare(c, insert_name, insert_sql, N_PARAMS, types, cb, arg);
	for (size_t a = 0; a < LOG_ARRAY_COUNT; a++)
		types[FIRST_ARRAY + a] = columns[a].element;
	if (err == 0)
		err = pgconn_prepare(c, insert_one_name, insert_one_sql, N_PARAMS, types, cb, arg);
	return err;
}

int log_send_insert(struct pgconn *c, struct log_rows *r, struct log_tip tip, int64_t batch,
	const char *node, bool turn_held, pgconn_result_fn cb, void *arg)
{
	uint64_t numbers[] = {
		htobe64((uint64_t)tip.seq), htobe64((uint64_t)tip.batch), htobe64((uint64_t)batch)};
	char held = (char)turn_held;
	const char *values[N_PARAMS] = {
		(char *)&numbers[0], (char *)&numbers[1], &held, (char *)&numbers[2], node};
	int lengths[N_PARAMS] = {8, 8, 1, 8, (int)strlen(node)};
	int formats[N_PARAMS];
	size_t skip = r->n == 1 ? PG_ARRAY_HEADER_BYTES + 4 : 0; /* to the only element */
	struct pgconn_query q = {.sql = r->n == 1 ? insert_one_name : insert_name,
		.prepared = true,
		.n_params = N_PARAMS,
		.values = values,
		.lengths = lengths,
		.formats = formats};

	for (size_t i = 0; i < N_PARAMS; i++)
		formats[i] = 1;
	/* A column without any value: unnest fills the shorter arrays up with NULL. */
	for (size_t a = 0; a < LOG_ARRAY_COUNT; a++) {
		struct buf *array = &r->arrays[a];

		if (r->n_nulls[a] == r->n)
			continue;
		pg_array_end(array, r->n, r->n_nulls[a] > 0);
		values[FIRST_ARRAY + a] = (char *)array->data + skip;
		lengths[FIRST_ARRAY + a] = (int)(array->len_bytes - skip);
	}
	return pgconn_query(c, &q, cb, arg);
}

/* ---- reading ---- */

int log_prepare_tip(struct pgconn *c, pgconn_result_fn cb, void *arg)
{
	static const Oid types[] = {TYPE_INT8, TYPE_INT4};

	return pgconn_prepare(c, tip_name, tip_sql, ARRAY_LEN(types), types, cb, arg);
}

int log_send_tip(struct pgconn *c, int64_t from_seq, int limit, pgconn_result_fn cb, void *arg)
{
	uint64_t from_be = htobe64((uint64_t)from_seq);
	uint32_t limit_be = htonl((uint32_t)limit);
	const char *values[] = {(char *)&from_be, (char *)&limit_be};
	static const int lengths[] = {8, 4}, formats[] = {1, 1};
	struct pgconn_query q = {.sql = tip_name,
		.prepared = true,
		.n_params = ARRAY_LEN(values),
		.values = values,
		.lengths = lengths,
		.formats = formats,
		.result_format = 1};

	return pgconn_query(c, &q, cb, arg);
}

/* Columns of a result; values stand at the same numbers in every SELECT above. */
enum {
	R_SEQ,
	R_SUB,
	R_LAST,
	R_KIND,
	R_REV,
	R_CREATE_REV,
	R_VERSION,
	R_LEASE,
	R_ARG,
	R_NODE,
	R_KEY,
	R_VALUE,
	R_BATCH,
	R_COUNT
};

static int64_t get_int8(const PGresult *res, int i, int col, bool *good)
{
	uint64_t be;

	if (PQgetisnull(res, i, col))
		return 0;
	*good &= PQgetlength(res, i, col) == sizeof be;
	if (!*good)
		return 0;
	memcpy(&be, PQgetvalue(res, i, col), sizeof be);
	return (int64_t)be64toh(be);
}

static struct store_bytes get_bytes(const PGresult *res, int i, int col)
{
	if (PQgetisnull(res, i, col))
		return (struct store_bytes){.data = NULL};
	return (struct store_bytes){
		.data = PQgetvalue(res, i, col), .len = (size_t)PQgetlength(res, i, col)};
}

bool log_decode(const PGresult *res, int i, struct store_row *ret_row, int64_t *ret_batch)
{
	bool good = PQnfields(res) == R_COUNT && PQgetlength(res, i, R_SUB) == 4 &&
		    PQgetlength(res, i, R_KIND) == 2 && PQgetlength(res, i, R_LAST) == 1;
	uint32_t sub_be;
	uint16_t kind_be;

	if (!good)
		return false;
	memcpy(&sub_be, PQgetvalue(res, i, R_SUB), sizeof sub_be);
	memcpy(&kind_be, PQgetvalue(res, i, R_KIND), sizeof kind_be);
	*ret_row = (struct store_row){
		.seq = get_int8(res, i, R_SEQ, &good),
		.sub = (int32_t)ntohl(sub_be),
		.last = *PQgetvalue(res, i, R_LAST) != 0,
		.kind = (enum store_kind)ntohs(kind_be),
		.rev = get_int8(res, i, R_REV, &good),
		.create_rev = get_int8(res, i, R_CREATE_REV, &good),
		.version = get_int8(res, i, R_VERSION, &good),
		.lease = get_int8(res, i, R_LEASE, &good),
		.arg = get_int8(res, i, R_ARG, &good),
		.node = PQgetvalue(res, i, R_NODE),
		.key = get_bytes(res, i, R_KEY),
		.value = get_bytes(res, i, R_VALUE),
	};
	*ret_batch = get_int8(res, i, R_BATCH, &good);
	return good && ret_row->kind > 0 && ret_row->kind < STORE_KIND_COUNT;
}
