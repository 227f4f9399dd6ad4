/* SPDX-License-Identifier: PostgreSQL */
/*
 * The event log: versions in the order of the log, by position. Chunks of fixed size, so that
 * neither growing nor trimming ever moves much.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

MEM_TYPE(mem_chunk, "store_evlog_chunk");

#define CHUNK_BYTES (EVLOG_CHUNK * sizeof(struct version *))

static void add_chunk(struct store *s)
{
	struct evlog *l = &s->log;
	if (l->n_chunks == l->cap) {
		size_t cap = l->cap == 0 ? 16 : l->cap * 2;
		l->chunk = xrealloc(l->chunk, cap * sizeof(l->chunk[0]));
		s->memory_bytes += (cap - l->cap) * sizeof(l->chunk[0]);
		l->cap = cap;
	}
	l->chunk[l->n_chunks++] = mem_new(&mem_chunk, CHUNK_BYTES);
	s->memory_bytes += CHUNK_BYTES;
}

static void free_chunk(struct store *s, struct version **chunk)
{
	mem_free(&mem_chunk, chunk);
	s->memory_bytes -= CHUNK_BYTES;
}

static struct version **slot(const struct evlog *l, uint64_t pos)
{
	return &l->chunk[pos / EVLOG_CHUNK - l->base][pos % EVLOG_CHUNK];
}

void evlog_push(struct store *s, struct version *v)
{
	struct evlog *l = &s->log;
	if (l->head / EVLOG_CHUNK - l->base >= l->n_chunks)
		add_chunk(s);
	*slot(l, l->head++) = v;
}

void evlog_pop(struct store *s)
{
	struct evlog *l = &s->log;
	ASSERT(l->head > l->visible);
	l->head--;
	/* One chunk more than is needed stays, so that a border does not make it come and go. */
	while (l->n_chunks > l->head / EVLOG_CHUNK - l->base + 2)
		free_chunk(s, l->chunk[--l->n_chunks]);
}

void evlog_drop_oldest(struct store *s)
{
	struct evlog *l = &s->log;
	ASSERT(l->begin < l->visible);
	l->begin++;
	if (l->begin % EVLOG_CHUNK != 0)
		return;
	free_chunk(s, l->chunk[0]);
	l->n_chunks--;
	l->base++;
	memmove(&l->chunk[0], &l->chunk[1], l->n_chunks * sizeof(l->chunk[0]));
}

struct version *evlog_at(const struct store *s, uint64_t pos)
{
	ASSERT(pos >= s->log.begin && pos < s->log.head);
	return *slot(&s->log, pos);
}

void evlog_free(struct store *s)
{
	struct evlog *l = &s->log;
	while (l->n_chunks > 0)
		free_chunk(s, l->chunk[--l->n_chunks]);
	s->memory_bytes -= l->cap * sizeof(l->chunk[0]);
	free(l->chunk);
	*l = (struct evlog){.chunk = NULL};
}

/* ---- reading ---- */

uint64_t store_log_begin(const struct store *s)
{
	return s->log.begin;
}

uint64_t store_log_end(const struct store *s)
{
	return s->log.visible;
}

uint64_t store_log_find(const struct store *s, int64_t rev)
{
	uint64_t lo = s->log.begin, hi = s->log.visible;
	while (lo < hi) {
		uint64_t mid = lo + (hi - lo) / 2;
		if (evlog_at(s, mid)->mod_rev < rev)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

void store_log_get(const struct store *s, uint64_t pos, struct store_event *ret_event)
{
	ASSERT(pos < s->log.visible);
	const struct version *v = evlog_at(s, pos);
	*ret_event = (struct store_event){.is_delete = is_tombstone(v)};
	version_kv(v, &ret_event->kv);
	/* What creates a key has none, even if the same transaction deleted the key before. */
	bool creates = !ret_event->is_delete && v->create_rev == v->mod_rev;
	if (v->mod_rev <= s->compact_rev || creates)
		return;
	const struct version *prev = key_at(v->key, v->mod_rev - 1);
	if (prev == NULL || is_tombstone(prev))
		return;
	ret_event->has_prev = true;
	version_kv(prev, &ret_event->prev);
}
