/* SPDX-License-Identifier: PostgreSQL */
/* See readdb.h. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pgwalstream.h>

#include "common/base/buf.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"

#include "brokerd/readdb.h"

#define READDB_MAGIC 0x7c0de007
#define RETRY_MS 2000
#define STATEMENT_TIMEOUT_MS 30000

MEM_TYPE(mem_readdb, "reading connection");

struct readdb {
	uint32_t magic;
	struct pgconn *pg;
	const char *node;
	struct typecache *types;
	struct readdb_ops ops;
	void *arg;
	struct ev_timer retry;
	bool troubled;

	bool want_state, state_asked;
	uint64_t state_lsn;

	bool want_types, types_asked;
	uint32_t *oids; /* owned */
	size_t n_oids;
};

/* Both parts see the same snapshot, and touch different rows. */
static const char state_sql[] =
	"WITH later AS (DELETE FROM howdah_mqtt.node_state WHERE node = $1 AND lsn > $2::pg_lsn)"
	" SELECT mappings::text FROM howdah_mqtt.node_state"
	" WHERE node = $1 AND lsn <= $2::pg_lsn ORDER BY lsn DESC LIMIT 1";

/* restart_lsn is never ahead of the confirmed position that survives a crash of the server, from
 * which the stream begins again. */
static const char prune_sql[] =
	"DELETE FROM howdah_mqtt.node_state WHERE node = $1 AND lsn < ("
	" SELECT max(s.lsn) FROM howdah_mqtt.node_state s, pg_catalog.pg_replication_slots r"
	" WHERE s.node = $1 AND r.slot_name = 'howdah_' || $1"
	" AND s.lsn <= r.restart_lsn AND s.lsn <= $2::pg_lsn)";

static void send_wanted(struct readdb *r);

static void trouble(struct readdb *r, const char *why)
{
	if (why == NULL && !r->troubled)
		return;
	r->troubled = why != NULL;
	r->ops.on_trouble(why, r->arg);
}

/* A request was not answered: says why, asks again later. */
static void failed(struct readdb *r, const char *what, const PGresult *res)
{
	char error[512], why[640];

	if (res == NULL)
		return; /* the connection is lost: on_up asks again */
	snprintf(why, sizeof(why), "cannot read %s: %s", what,
		pg_result_error(res, error, sizeof(error)));
	trouble(r, why);
	ev_timer_start(&r->retry, RETRY_MS);
}

static void on_state_result(PGresult *res, void *arg)
{
	struct readdb *r;

	OBJ_CAST(r, arg, READDB_MAGIC);
	r->state_asked = false;
	if (PQresultStatus(res) != PGRES_TUPLES_OK) {
		failed(r, "howdah_mqtt.node_state", res);
		return;
	}
	if (!r->want_state)
		return;
	trouble(r, NULL);
	r->want_state = !r->ops.on_state(PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : NULL, r->arg);
	if (r->want_state)
		ev_timer_start(&r->retry, RETRY_MS);
}

static void on_types_result(PGresult *res, void *arg)
{
	struct readdb *r;

	OBJ_CAST(r, arg, READDB_MAGIC);
	r->types_asked = false;
	if (PQresultStatus(res) != PGRES_TUPLES_OK) {
		failed(r, "types from the catalogue", res);
		return;
	}
	if (!r->want_types)
		return;
	trouble(r, NULL);
	r->want_types = false;
	typecache_learn_result(r->types, res, r->oids, r->n_oids);
	r->ops.on_types(r->arg);
}

static void on_prune_result(PGresult *res, void *arg)
{
	struct readdb *r;
	char error[512];

	OBJ_CAST(r, arg, READDB_MAGIC);
	if (res != NULL && PQresultStatus(res) != PGRES_COMMAND_OK)
		log_limited(LOG_LEVEL_WARNING, "changes.prune",
			"cannot remove old sets of mappings: %s, retrying in a minute",
			pg_result_error(res, error, sizeof(error)));
}

static void send_state(struct readdb *r)
{
	char lsn[18];

	if (!r->want_state || r->state_asked)
		return;
	const char *values[] = {r->node, pgws_lsn_str(r->state_lsn, lsn)};
	r->state_asked = pgconn_simple(r->pg, state_sql, 2, values, on_state_result, r) == 0;
}

static void send_types(struct readdb *r)
{
	struct buf list;

	if (!r->want_types || r->types_asked)
		return;
	buf_init(&list, 0);
	for (size_t i = 0; i < r->n_oids; i++)
		buf_printf(&list, "%c%u", i == 0 ? '{' : ',', r->oids[i]);
	buf_put_u8(&list, '}');
	const char *values[] = {buf_cstr(&list)};
	r->types_asked = pgconn_simple(r->pg, typecache_sql, 1, values, on_types_result, r) == 0;
	buf_free(&list);
}

static void send_wanted(struct readdb *r)
{
	if (pgconn_get_state(r->pg) != PGCONN_UP)
		return;
	send_state(r);
	send_types(r);
}

static void on_retry(void *arg)
{
	struct readdb *r;

	OBJ_CAST(r, arg, READDB_MAGIC);
	send_wanted(r);
}

static void on_up(struct pgconn *pg, void *arg)
{
	struct readdb *r;

	(void)pg;
	OBJ_CAST(r, arg, READDB_MAGIC);
	trouble(r, NULL);
	send_wanted(r);
}

static void on_down(struct pgconn *pg, enum pg_class class, const char *why, void *arg)
{
	struct readdb *r;
	char text[640];

	(void)pg;
	(void)class;
	OBJ_CAST(r, arg, READDB_MAGIC);
	if (!r->want_state && !r->want_types)
		return;
	snprintf(text, sizeof(text), "waiting for the database: %s", why);
	trouble(r, text);
}

struct readdb *readdb_new(struct ev_loop *loop, const char *conninfo, const char *node,
	struct typecache *types, const struct readdb_ops *ops, void *arg)
{
	static const struct pgconn_ops pg_ops = {.on_up = on_up, .on_down = on_down};
	struct readdb *r = mem_new(&mem_readdb, sizeof(*r));
	struct pgconn_options options = {
		.conninfo = conninfo,
		.application_name = "howdah brokerd reader",
		.timeout_ms = STATEMENT_TIMEOUT_MS,
	};

	r->magic = READDB_MAGIC;
	r->node = node;
	r->types = types;
	r->ops = *ops;
	r->arg = arg;
	ev_timer_init(&r->retry, loop, "changes retry", on_retry, r);
	r->pg = pgconn_new(loop, &options, &pg_ops, r);
	pgconn_start(r->pg);
	return r;
}

void readdb_free(struct readdb **rp)
{
	struct readdb *r = *rp;

	if (r == NULL)
		return;
	OBJ_CHECK(r, READDB_MAGIC);
	r->want_state = r->want_types = false;
	pgconn_free(&r->pg);
	ev_timer_stop(&r->retry);
	free(r->oids);
	r->magic = 0;
	mem_free(&mem_readdb, r);
	*rp = NULL;
}

void readdb_want_state(struct readdb *r, uint64_t lsn)
{
	OBJ_CHECK(r, READDB_MAGIC);
	r->want_state = true;
	r->state_lsn = lsn;
	send_wanted(r);
}

void readdb_want_types(struct readdb *r, const uint32_t *oids, size_t n)
{
	OBJ_CHECK(r, READDB_MAGIC);
	/* The same question while it is under way: its answer is the one. */
	if (r->want_types && r->n_oids == n && memcmp(r->oids, oids, n * sizeof(*oids)) == 0)
		return;
	free(r->oids);
	r->oids = xmemdup(oids, n * sizeof(*oids));
	r->n_oids = n;
	r->want_types = true;
	send_wanted(r);
}

void readdb_prune(struct readdb *r, uint64_t acked_lsn)
{
	char lsn[18];

	OBJ_CHECK(r, READDB_MAGIC);
	if (pgconn_get_state(r->pg) != PGCONN_UP)
		return;
	const char *values[] = {r->node, pgws_lsn_str(acked_lsn, lsn)};
	/* A failure to queue is one to ask again, which the next call does anyway. */
	(void)!pgconn_simple(r->pg, prune_sql, 2, values, on_prune_result, r);
}
