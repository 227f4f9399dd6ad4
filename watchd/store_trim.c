/* SPDX-License-Identifier: PostgreSQL */
/*
 * Trimming, and the rows of the log that it makes needless.
 *
 * A compaction at C walks the event log from its beginning up to the events at C. For each version
 * it comes to, what the key had before is needless; the version itself leaves the event log if it
 * is below C, and if it is a tombstone too, it vanishes. So each version is looked at once on its
 * way out of the event log, and those at C once more by the next compaction. A tombstone at C
 * stays: a watch that begins at C must see it.
 *
 * Order of garbage: a key's older versions go before its newer ones. If a tombstone went first, a
 * crash before the rest is removed would bring the key back. The older ones may be what another
 * node's compaction made needless, and that node may be dead: so before a node removes versions of
 * its own, it takes over what it left to others so far. Mostly there is nothing left of it, and
 * removing it again costs little. It also takes over when that has become much.
 *
 * A pin at P holds compactions above P back at P.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

#define FOREIGN_MAX 65536

/* ---- pins ---- */

void store_pin(struct store *s, struct store_pin *pin, int64_t rev)
{
	ASSERT(rev >= s->compact_rev);
	*pin = (struct store_pin){.prev = s->pins.prev, .next = &s->pins, .rev = rev};
	s->pins.prev->next = pin;
	s->pins.prev = pin;
}

void store_unpin(struct store_pin *pin)
{
	if (pin->next == NULL)
		return;
	pin->prev->next = pin->next;
	pin->next->prev = pin->prev;
	pin->prev = pin->next = NULL;
}

size_t store_age_pins(struct store *s, unsigned most)
{
	size_t n = 0;
	for (struct store_pin *p = s->pins.next, *next; p != &s->pins; p = next) {
		next = p->next;
		if (p->rev >= s->compact_rev || ++p->age < most)
			continue;
		p->lost = true;
		store_unpin(p);
		n++;
	}
	return n;
}

static int64_t lowest_pin(const struct store *s)
{
	int64_t rev = INT64_MAX;
	for (const struct store_pin *p = s->pins.next; p != &s->pins; p = p->next)
		rev = p->rev < rev ? p->rev : rev;
	return rev;
}

/* ---- garbage ---- */

static void garbage_resize(struct store *s, struct garbage *g, size_t cap)
{
	struct place *row = cap > 0 ? xmalloc(cap * sizeof(*row)) : NULL;
	for (size_t i = 0; i < g->n; i++)
		row[i] = g->row[(g->first + i) & (g->cap - 1)];
	free(g->row);
	s->memory_bytes += cap * sizeof(*row);
	s->memory_bytes -= g->cap * sizeof(*row);
	*g = (struct garbage){.row = row, .cap = cap, .n = g->n};
}

void garbage_free(struct store *s, struct garbage *g)
{
	g->n = 0;
	garbage_resize(s, g, 0);
}

void garbage_add(struct store *s, struct garbage *g, struct place row)
{
	if (g->n == g->cap)
		garbage_resize(s, g, g->cap == 0 ? 64 : g->cap * 2);
	g->row[(g->first + g->n++) & (g->cap - 1)] = row;
}

static struct place garbage_take(struct garbage *g)
{
	ASSERT(g->n > 0);
	g->n--;
	return g->row[g->first++ & (g->cap - 1)];
}

static void take_over(struct store *s)
{
	while (s->foreign.n > 0)
		garbage_add(s, &s->garbage, garbage_take(&s->foreign));
	garbage_free(s, &s->foreign);
}

static void add_version(struct store *s, const struct version *v, bool mine)
{
	struct place row = {.seq = v->seq, .sub = v->sub};
	if (mine && s->foreign.n > 0)
		take_over(s);
	garbage_add(s, mine ? &s->garbage : &s->foreign, row);
	if (s->foreign.n >= FOREIGN_MAX)
		take_over(s);
}

size_t store_take_garbage(struct store *s, int64_t *ret_seqs, int32_t *ret_subs, size_t max)
{
	struct garbage *g = &s->garbage;
	size_t n = g->n < max ? g->n : max;
	for (size_t i = 0; i < n; i++) {
		struct place row = garbage_take(g);
		ret_seqs[i] = row.seq;
		ret_subs[i] = row.sub;
	}
	if (g->n == 0)
		garbage_free(s, g);
	return n;
}

void store_return_garbage(struct store *s, const int64_t *seqs, const int32_t *subs, size_t n)
{
	struct garbage *g = &s->garbage;
	while (g->n + n > g->cap)
		garbage_resize(s, g, g->cap == 0 ? 64 : g->cap * 2);
	g->first -= n;
	g->n += n;
	for (size_t i = 0; i < n; i++)
		g->row[(g->first + i) & (g->cap - 1)] =
			(struct place){.seq = seqs[i], .sub = subs[i]};
}

/* ---- compactions ---- */

void compactions_add(struct store *s, int64_t rev, bool mine)
{
	struct compaction *c = s->compactions, *last = NULL;
	if (s->n_compactions > 0)
		last = &c[s->n_compactions - 1];
	/* Not begun and of the same kind: one does for both. Too many: what another node may
	 * remove too does no harm. The first may have begun. */
	if (s->n_compactions > 1 && (last->mine == mine || s->n_compactions == COMPACTIONS_MAX)) {
		last->rev = rev;
		last->mine |= mine;
		return;
	}
	c[s->n_compactions++] = (struct compaction){.rev = rev, .mine = mine};
}

static void compaction_done(struct store *s)
{
	s->n_compactions--;
	memmove(&s->compactions[0], &s->compactions[1],
		s->n_compactions * sizeof(s->compactions[0]));
}

/* Frees the oldest version of a key; it has left the event log. */
static void drop_oldest(struct store *s, struct keyindex_key *k, bool mine)
{
	struct version *v = key_version(k, 0);
	s->log_bytes -= version_row_bytes(v);
	add_version(s, v, mine);
	key_drop_oldest(s, k);
	version_free(s, v);
}

/* One version on its way out, with the compaction at `rev`. */
static void pass(struct store *s, struct version *v, int64_t rev, bool mine)
{
	struct keyindex_key *k = v->key;
	while (key_version(k, 0) != v && key_version(k, 0)->mod_rev < rev)
		drop_oldest(s, k, mine);
	if (v->mod_rev >= rev)
		return;
	evlog_drop_oldest(s);
	if (is_tombstone(v)) {
		drop_oldest(s, k, mine);
		if (key_n_versions(k) == 0)
			keyindex_remove(s->keys, k);
	}
}

bool store_trim(struct store *s, size_t budget)
{
	int64_t pinned = s->n_compactions > 0 ? lowest_pin(s) : 0;
	while (s->n_compactions > 0) {
		const struct compaction *c = &s->compactions[0];
		int64_t rev = c->rev < pinned ? c->rev : pinned;
		if (rev > s->trimming_rev) {
			s->trimming_rev = rev;
			s->trim_pos = s->log.begin;
		}
		struct version *v = s->trim_pos < s->log.visible ? evlog_at(s, s->trim_pos) : NULL;
		if (v == NULL || v->mod_rev > s->trimming_rev) {
			if (c->rev > s->trimming_rev)
				return false; /* pinned */
			compaction_done(s);
			continue;
		}
		if (budget-- == 0)
			return true;
		s->trim_pos++;
		pass(s, v, s->trimming_rev, c->mine);
	}
	return false;
}
