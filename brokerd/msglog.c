/* SPDX-License-Identifier: PostgreSQL */
/*
 * The message log, see msglog.h.
 *
 * Removing old rows: once per MSGLOG_PURGE_EVERY_MS a connection is made, which deletes
 * MSGLOG_PURGE_ROWS at a time, oldest batches first, until there are fewer; then it is closed. A
 * batch's token is its time in microseconds, so the primary key finds the old rows. A failure ends
 * the round; the next one comes with the timer.
 *
 *     RESTING --timer--> CONNECTING --up--> DELETING --few left, or lost--> RESTING
 */
#include "config.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokerd/msglog.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"

#define PURGE_MAGIC 0x6d707267u
#define OID_INT2 21
#define OID_TEXT 25
#define OID_BYTEA 17
#define TEXT_OF(x) TEXT_OF_(x)
#define TEXT_OF_(x) #x

const struct batch_kind msglog_kind = {
	.name = "mqtt_message",
	.sql = "INSERT INTO howdah_mqtt.message"
	       " (batch, node, sub, client_id, topic, qos, payload, properties)"
	       " SELECT $1, $2, u.* FROM unnest($3::int[], $4::text[], $5::text[], $6::int2[],"
	       " $7::bytea[], $8::bytea[]) u",
	.n_columns = 5,
	.types = {OID_TEXT, OID_TEXT, OID_INT2, OID_BYTEA, OID_BYTEA},
	.probe_sql = "SELECT 1 FROM howdah_mqtt.message WHERE batch = $1 AND node = $2 LIMIT 1",
};

int msglog_add(struct batch *writer, size_t kind, const char *client_id, const struct message *m,
	const void *props, size_t props_len, batch_done_fn done, void *arg)
{
	uint16_t qos = htons(m->qos);
	const struct batch_value values[] = {
		{.data = client_id, .len_bytes = (int32_t)strlen(client_id)},
		{.data = m->topic, .len_bytes = (int32_t)m->topic_len},
		{.data = &qos, .len_bytes = sizeof(qos)},
		{.data = m->payload, .len_bytes = (int32_t)m->payload_len},
		{.data = props, .len_bytes = props_len > 0 ? (int32_t)props_len : -1},
	};
	return batch_add(writer, kind, values, done, arg);
}

/* --- removal of old rows --- */

struct msglog_purge {
	uint32_t magic;
	struct ev_timer timer;
	struct pgconn *conn;
	struct stats *stats; /* borrowed */
	size_t stat;
	bool working; /* between on_up and the end of the round */
};

MEM_TYPE(mem_purge, "message log purge");

/* By ctid: whatever the planner thinks of the table's size, this is an index range and a TID scan.
 */
static const char purge_sql[] =
	"DELETE FROM howdah_mqtt.message WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM howdah_mqtt.message"
	" WHERE batch < (extract(epoch FROM statement_timestamp()) * 1000000)::bigint"
	" - " TEXT_OF(MSGLOG_KEEP_MS) "::bigint * 1000"
				      " ORDER BY batch LIMIT " TEXT_OF(MSGLOG_PURGE_ROWS) "))";

static void purge_rest(struct msglog_purge *p)
{
	p->working = false;
	pgconn_stop(p->conn);
	ev_timer_start(&p->timer, MSGLOG_PURGE_EVERY_MS + (uint64_t)rand() % 5000);
}

static void on_purged(PGresult *res, void *arg)
{
	struct msglog_purge *p;
	OBJ_CAST(p, arg, PURGE_MAGIC);
	if (res == NULL || !p->working)
		return; /* on_down has ended the round, or we have */
	if (PQresultStatus(res) == PGRES_COMMAND_OK) {
		long rows = strtol(PQcmdTuples(res), NULL, 10);
		stats_add(p->stats, p->stat, (uint64_t)rows);
		if (rows >= MSGLOG_PURGE_ROWS) {
			ev_timer_start(&p->timer, MSGLOG_PURGE_PAUSE_MS);
			return;
		}
	} else {
		char text[512];
		log_limited(LOG_LEVEL_WARNING, "mqtt.purge",
			"cannot remove old rows from howdah_mqtt.message: %s; retrying in a minute",
			pg_result_error(res, text, sizeof(text)));
	}
	purge_rest(p);
}

static void purge_step(struct msglog_purge *p)
{
	if (pgconn_simple(p->conn, purge_sql, 0, NULL, on_purged, p) != 0)
		purge_rest(p);
}

static void on_purge_up(struct pgconn *c, void *arg)
{
	struct msglog_purge *p;
	OBJ_CAST(p, arg, PURGE_MAGIC);
	(void)c;
	p->working = true;
	purge_step(p);
}

static void on_purge_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct msglog_purge *p;
	OBJ_CAST(p, arg, PURGE_MAGIC);
	(void)c;
	(void)class; /* the writer reports what is wrong with the database */
	log_debug("mqtt.purge", "cannot remove old rows now: %s", why);
	purge_rest(p);
}

static void on_purge_timer(void *arg)
{
	struct msglog_purge *p;
	OBJ_CAST(p, arg, PURGE_MAGIC);
	if (p->working)
		purge_step(p);
	else
		pgconn_start(p->conn);
}

struct msglog_purge *msglog_purge_new(
	struct ev_loop *loop, const char *conninfo, struct stats *stats, size_t stat)
{
	static const struct pgconn_ops ops = {.on_up = on_purge_up, .on_down = on_purge_down};
	static const char *const setup[] = {"SET lock_timeout = '5s'", NULL};
	const struct pgconn_options options = {.conninfo = conninfo,
		.application_name = "howdah brokerd purge",
		.setup = setup,
		.timeout_ms = 60000};
	struct msglog_purge *p = mem_new(&mem_purge, sizeof(*p));
	p->magic = PURGE_MAGIC;
	p->stats = stats;
	p->stat = stat;
	p->conn = pgconn_new(loop, &options, &ops, p);
	ev_timer_init(&p->timer, loop, "mqtt purge", on_purge_timer, p);
	ev_timer_start(&p->timer, 5000 + (uint64_t)rand() % 5000);
	return p;
}

void msglog_purge_free(struct msglog_purge **p)
{
	if (*p == NULL)
		return;
	OBJ_CHECK(*p, PURGE_MAGIC);
	ev_timer_stop(&(*p)->timer);
	pgconn_free(&(*p)->conn);
	mem_free(&mem_purge, *p);
	*p = NULL;
}
