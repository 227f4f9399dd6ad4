/* SPDX-License-Identifier: PostgreSQL */
/*
 * See statestore.h.
 *
 *   put -> QUEUED --batch_add--> WRITING --committed--> gone
 *             ^-- no room, refused: after RETRY_MS --'
 *
 * On crash: a set that was not committed was not acknowledged either; its transaction comes again.
 */
#include "config.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <pgwalstream.h>

#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include "brokerd/changes.h"
#include "brokerd/statestore.h"

#define STATESTORE_MAGIC 0x7c0de008
#define STATE_MAGIC 0x7c0de009
#define RETRY_MS 1000
#define OID_TEXT 25

MEM_TYPE(mem_statestore, "state store");
MEM_TYPE(mem_state, "set of mappings to store");

const struct batch_kind changes_state_kind = {
	.name = "node_state",
	.sql = "INSERT INTO howdah_mqtt.node_state (node, lsn, mappings, batch, sub)"
	       " SELECT DISTINCT ON (u.lsn) $2, u.lsn::pg_lsn, u.mappings::jsonb, $1, u.sub"
	       " FROM unnest($3::int[], $4::text[], $5::text[]) AS u(sub, lsn, mappings)"
	       " ORDER BY u.lsn, u.sub DESC"
	       " ON CONFLICT (node, lsn) DO UPDATE SET mappings = excluded.mappings,"
	       " batch = excluded.batch, sub = excluded.sub",
	.n_columns = 2,
	.types = {OID_TEXT, OID_TEXT},
	.probe_sql = "SELECT 1 FROM howdah_mqtt.node_state WHERE batch = $1 AND node = $2 LIMIT 1",
};

struct state {
	uint32_t magic;
	struct statestore *store;
	struct list node; /* in store->states */
	bool writing;
	char lsn[18];
	struct buf mappings;
	struct track *track; /* one reference */
};

struct statestore {
	uint32_t magic;
	struct batch *writer;
	size_t kind;
	struct list states; /* owned */
	struct ev_timer retry;
	bool troubled;
	uint64_t stored;
	struct statestore_ops ops;
	void *arg;
};

static void state_free(struct state *st)
{
	list_remove(&st->node);
	buf_free(&st->mappings);
	st->magic = 0;
	mem_free(&mem_state, st);
}

static void trouble(struct statestore *s, const char *why)
{
	if (why == NULL && !s->troubled)
		return;
	s->troubled = why != NULL;
	s->ops.on_trouble(why, s->arg);
}

static void on_done(int err, const char *why, void *arg)
{
	struct state *st;

	OBJ_CAST(st, arg, STATE_MAGIC);
	struct statestore *s = st->store;
	st->writing = false;
	if (err != 0) {
		char text[512];

		snprintf(text, sizeof(text), "cannot store the set of mappings of %s: %s", st->lsn,
			why != NULL ? why : "refused");
		trouble(s, text);
		ev_timer_start(&s->retry, RETRY_MS);
		return;
	}
	struct track *track = st->track;
	s->stored++;
	trouble(s, NULL);
	state_free(st);
	track_unref(track);
	if (list_empty(&s->states))
		s->ops.on_empty(s->arg);
}

static void write_queued(struct statestore *s)
{
	list_for_each (it, &s->states) {
		struct state *st = list_entry(it, struct state, node);
		const struct batch_value values[] = {
			{st->lsn, (int32_t)strlen(st->lsn)},
			{st->mappings.data, (int32_t)st->mappings.len_bytes},
		};

		if (st->writing)
			continue;
		if (batch_add(s->writer, s->kind, values, on_done, st) != 0) {
			ev_timer_start(&s->retry, RETRY_MS);
			return;
		}
		st->writing = true;
	}
}

static void on_retry(void *arg)
{
	struct statestore *s;

	OBJ_CAST(s, arg, STATESTORE_MAGIC);
	write_queued(s);
}

struct statestore *statestore_new(struct ev_loop *loop, struct batch *writer, size_t kind,
	const struct statestore_ops *ops, void *arg)
{
	struct statestore *s = mem_new(&mem_statestore, sizeof(*s));

	s->magic = STATESTORE_MAGIC;
	s->writer = writer;
	s->kind = kind;
	list_init(&s->states);
	ev_timer_init(&s->retry, loop, "changes state retry", on_retry, s);
	s->ops = *ops;
	s->arg = arg;
	return s;
}

void statestore_free(struct statestore **sp)
{
	struct statestore *s = *sp;

	if (s == NULL)
		return;
	OBJ_CHECK(s, STATESTORE_MAGIC);
	ev_timer_stop(&s->retry);
	list_for_each_safe (it, &s->states) {
		struct state *st = list_entry(it, struct state, node);
		struct track *track = st->track;

		state_free(st);
		track_unref(track);
	}
	s->magic = 0;
	mem_free(&mem_statestore, s);
	*sp = NULL;
}

void statestore_put(struct statestore *s, uint64_t lsn, struct buf *mappings, struct track *track)
{
	struct state *st = mem_new(&mem_state, sizeof(*st));

	OBJ_CHECK(s, STATESTORE_MAGIC);
	st->magic = STATE_MAGIC;
	st->store = s;
	pgws_lsn_str(lsn, st->lsn);
	st->mappings = *mappings;
	buf_init(mappings, 0);
	st->track = track;
	track_ref(track);
	list_push_back(&s->states, &st->node);
	write_queued(s);
}

bool statestore_is_empty(const struct statestore *s)
{
	return list_empty(&s->states);
}

uint64_t statestore_stored(const struct statestore *s)
{
	return s->stored;
}
