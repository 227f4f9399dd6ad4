/* SPDX-License-Identifier: PostgreSQL */
#include "config.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/store_model.h"
#include "watchd/store.h"

#define N_KEYS 14
#define N_LEASES 5
#define N_PINS 4

struct value {
	int64_t create, mod, version, lease;
	uint32_t text; /* what the value is made of */
};

struct state {
	int64_t seq, rev, compact;
	uint64_t cluster;
	struct value key[N_KEYS]; /* version 0: not there */
	int64_t ttl[N_LEASES];    /* 0: not there */
	char owner[N_LEASES];     /* of the lease: 'a', 'b' */
	bool alarm[2][2];         /* node, type */
	size_t n_events;          /* of the whole history */
	size_t n_rows;
};

struct event {
	int64_t rev;
	int key;
	struct value v;
};

struct row {
	struct store_row row;
	bool gone; /* removed from the log */
};

struct model {
	const uint8_t *bytes;
	size_t left;
	struct store *s[2];
	struct state *state; /* state[i]: after the i-th entry; 0: empty */
	size_t n, states_cap, committed;
	struct event *events;
	size_t n_events, events_cap;
	struct row *rows;
	size_t n_rows, rows_cap;
	struct state now; /* the open entry */
	struct store_pin pin[2][N_PINS];
	size_t pin_state[N_PINS]; /* index into state; 0: no pin */
};

static const char *const node[2] = {"a", "b"};

static uint8_t take(struct model *m)
{
	if (m->left == 0)
		return 0;
	m->left--;
	return *m->bytes++;
}

static size_t take_below(struct model *m, size_t n)
{
	return take(m) % n;
}

/* ---- names ---- */

/* Prefixes of each other, zeros, high bytes; in byte order. */
static struct store_bytes key_name(int i)
{
	static const struct store_bytes names[N_KEYS] = {{"\0", 1}, {"\0\0", 2}, {"a", 1},
		{"a\0", 2}, {"a\0b", 3}, {"ab", 2}, {"abcdefgh", 8}, {"abcdefgh\0", 9},
		{"abcdefghi", 9}, {"b", 1}, {"b\xff", 2}, {"c", 1}, {"\xff", 1}, {"\xff\xff", 2}};
	return names[i];
}

static int key_number(struct store_bytes key)
{
	for (int i = 0; i < N_KEYS; i++)
		if (key.len == key_name(i).len && memcmp(key.data, key_name(i).data, key.len) == 0)
			return i;
	ASSERT(!"a key that nobody put");
	return -1;
}

static struct store_bytes value_bytes(uint32_t text, char *to)
{
	size_t len = text % 23;
	for (size_t i = 0; i < len; i++)
		to[i] = (char)(text * 31 + i);
	return (struct store_bytes){to, len};
}

static int64_t lease_id(size_t i)
{
	return INT64_C(0x100000001) * (int64_t)(i + 1);
}

/* ---- comparing ---- */

static void check_kv(int key, const struct value *v, const struct store_kv *kv)
{
	char text[32];
	struct store_bytes value = value_bytes(v->text, text);
	ASSERT(key_number(kv->key) == key);
	ASSERT(kv->create_rev == v->create && kv->mod_rev == v->mod && kv->version == v->version);
	ASSERT(kv->lease == v->lease && kv->value.len == value.len);
	ASSERT(value.len == 0 || memcmp(kv->value.data, value.data, value.len) == 0);
}

static void check_reads(const struct store *s, const struct state *st, int64_t rev)
{
	struct store_iter it;
	struct store_kv kv;
	store_iter_init(&it, s, (struct store_bytes){"", 0}, (struct store_bytes){NULL, 0}, rev);
	for (int i = 0; i < N_KEYS; i++) {
		bool lives = st->key[i].version != 0;
		ASSERT(store_get(s, key_name(i), rev, &kv) == lives);
		if (!lives)
			continue;
		check_kv(i, &st->key[i], &kv);
		ASSERT(store_iter_next(&it, &kv));
		check_kv(i, &st->key[i], &kv);
	}
	ASSERT(!store_iter_next(&it, &kv));
}

/* A part of the keys, looked at a few at a time. */
static void check_part(const struct store *s, const struct state *st, int from, int to, size_t few)
{
	struct store_iter it;
	struct store_kv kv;
	struct store_bytes begin = key_name(from), end = key_name(to);
	char at[16];
	int i = from;
	do {
		store_iter_init(&it, s, begin, end, STORE_HEAD);
		it.budget = few;
		while (store_iter_next(&it, &kv)) {
			while (i < to && st->key[i].version == 0)
				i++;
			ASSERT(i < to);
			check_kv(i, &st->key[i], &kv);
			i++;
		}
		if (it.stopped_at.data != NULL) {
			ASSERT(it.stopped_at.len + 1 <= sizeof(at));
			memmove(at, it.stopped_at.data, it.stopped_at.len);
			at[it.stopped_at.len] = 0;
			begin = (struct store_bytes){at, it.stopped_at.len + 1};
		}
	} while (it.stopped_at.data != NULL);
	while (i < to && st->key[i].version == 0)
		i++;
	ASSERT(i >= to);
}

struct lease_walk {
	const struct state *st;
	int64_t id;
	int i;
};

static bool check_lease_key(struct store_bytes key, void *arg)
{
	struct lease_walk *w = arg;
	while (w->i < N_KEYS && w->st->key[w->i].lease != w->id)
		w->i++;
	ASSERT(w->i < N_KEYS && key_number(key) == w->i);
	w->i++;
	return true;
}

static void check_leases(struct store *s, const struct state *head, const struct state *visible)
{
	for (size_t i = 0; i < N_LEASES; i++) {
		struct store_lease *l = store_lease_find(s, lease_id(i), true);
		ASSERT((l != NULL) == (head->ttl[i] != 0));
		if (l != NULL) {
			struct lease_walk w = {.st = head, .id = lease_id(i)};
			size_t n = 0;
			ASSERT(l->id == lease_id(i) && l->ttl_s == head->ttl[i]);
			ASSERT(l->head_owner[0] == head->owner[i]);
			for (int k = 0; k < N_KEYS; k++)
				n += head->key[k].lease == l->id;
			ASSERT(l->n_keys == n);
			store_lease_keys(s, l, check_lease_key, &w);
		}
		l = store_lease_find(s, lease_id(i), false);
		ASSERT((l != NULL) == (visible->ttl[i] != 0));
		if (l != NULL)
			ASSERT(l->ttl_s == visible->ttl[i] && l->owner[0] == visible->owner[i]);
	}
	for (int64_t type = 0; type < 2; type++)
		ASSERT(store_has_alarm(s, type) ==
			(visible->alarm[0][type] || visible->alarm[1][type]));
}

static void count_alarm(const char *who, int64_t type, void *arg)
{
	bool(*alarm)[2] = arg;
	ASSERT(!alarm[who[0] - 'a'][type]);
	alarm[who[0] - 'a'][type] = true;
}

static const struct state *state_at_rev(const struct model *m, int64_t rev)
{
	size_t lo = 0, hi = m->committed;
	while (lo < hi) {
		size_t mid = (lo + hi + 1) / 2;
		if (m->state[mid].rev > rev)
			hi = mid - 1;
		else
			lo = mid;
	}
	return &m->state[lo];
}

static void check_events(const struct model *m, const struct store *s)
{
	const struct state *visible = &m->state[m->committed];
	size_t i = 0;
	while (i < visible->n_events && m->events[i].rev < visible->compact)
		i++;
	uint64_t pos = store_log_find(s, visible->compact);
	ASSERT(store_log_end(s) - pos == visible->n_events - i);
	for (; i < visible->n_events; i++, pos++) {
		const struct event *e = &m->events[i];
		const struct value *prev = &state_at_rev(m, e->rev - 1)->key[e->key];
		struct store_event got;
		store_log_get(s, pos, &got);
		ASSERT(got.is_delete == (e->v.version == 0) && got.kv.mod_rev == e->rev);
		ASSERT(key_number(got.kv.key) == e->key);
		if (!got.is_delete)
			check_kv(e->key, &e->v, &got.kv);
		bool creates = e->v.version != 0 && e->v.create == e->rev;
		ASSERT(got.has_prev ==
			(prev->version != 0 && !creates && e->rev > visible->compact));
		if (got.has_prev)
			check_kv(e->key, prev, &got.prev);
	}
}

static void check_store(const struct model *m, struct store *s)
{
	const struct state *head = &m->state[m->n], *visible = &m->state[m->committed];
	bool alarm[2][2] = {{false}};
	struct store_counts c;
	size_t live = 0;
	store_get_counts(s, &c);
	for (int i = 0; i < N_KEYS; i++)
		live += head->key[i].version != 0;
	ASSERT(c.keys == live);
	ASSERT(store_head_seq(s) == head->seq && store_visible_seq(s) == visible->seq);
	ASSERT(store_head_rev(s) == head->rev && store_visible_rev(s) == visible->rev);
	ASSERT(store_head_compact_rev(s) == head->compact);
	ASSERT(store_compact_rev(s) == visible->compact);
	ASSERT(store_cluster_id(s) == visible->cluster);
	check_reads(s, head, STORE_HEAD);
	check_leases(s, head, visible);
	store_alarm_each(s, count_alarm, alarm);
	ASSERT(memcmp(alarm, visible->alarm, sizeof(alarm)) == 0);
	for (int64_t rev = visible->compact < 1 ? 1 : visible->compact; rev <= visible->rev;
		rev += 1 + (visible->rev - rev) / 8)
		check_reads(s, state_at_rev(m, rev), rev);
	check_events(m, s);
}

static void check_pins(const struct model *m)
{
	for (size_t i = 0; i < N_PINS; i++)
		for (size_t w = 0; w < 2 && m->pin_state[i] != 0; w++)
			check_reads(
				m->s[w], &m->state[m->pin_state[i]], m->state[m->pin_state[i]].rev);
}

static uint32_t hash_of(struct store *s, int64_t rev, size_t budget)
{
	struct store_hash h = {.rev = rev};
	while (store_hash_step(s, &h, budget)) {
	}
	store_hash_end(&h);
	ASSERT(h.compact_rev == store_compact_rev(s));
	return h.crc;
}

/* ---- the log ---- */

static void on_row(const struct store_row *row, void *arg)
{
	struct model *m = arg;
	if (m->n_rows == m->rows_cap) {
		m->rows_cap = m->rows_cap == 0 ? 256 : m->rows_cap * 2;
		m->rows = xrealloc(m->rows, m->rows_cap * sizeof(m->rows[0]));
	}
	struct row *r = &m->rows[m->n_rows++];
	*r = (struct row){.row = *row};
	r->row.key.data = xmemdup(row->key.len > 0 ? row->key.data : "", row->key.len);
	r->row.value.data = xmemdup(row->value.len > 0 ? row->value.data : "", row->value.len);
	r->row.node = row->node[0] == 'a' ? node[0] : node[1];
}

static void drop_rows(struct model *m, size_t n)
{
	while (m->n_rows > n) {
		struct row *r = &m->rows[--m->n_rows];
		ASSERT(!r->gone);
		free((void *)r->row.key.data);
		free((void *)r->row.value.data);
	}
}

static void apply_rows(struct model *m, struct store *s, size_t from)
{
	for (size_t i = from; i < m->n_rows; i++)
		ASSERT(store_apply(s, &m->rows[i].row, false) == 0);
}

/* ---- an entry ---- */

static void add_event(struct model *m, int key, const struct value *v)
{
	if (m->n_events == m->events_cap) {
		m->events_cap = m->events_cap == 0 ? 256 : m->events_cap * 2;
		m->events = xrealloc(m->events, m->events_cap * sizeof(m->events[0]));
	}
	m->events[m->n_events++] = (struct event){.rev = m->now.rev, .key = key, .v = *v};
	m->now.n_events = m->n_events;
}

static void need_rev(struct model *m)
{
	if (m->now.rev == m->state[m->n].rev)
		m->now.rev++;
}

static void do_put(struct model *m, struct store *s, int key)
{
	char text[32];
	uint32_t t = (uint32_t)take(m) * 256 + (uint32_t)m->n;
	size_t l = take_below(m, N_LEASES * 2);
	int64_t lease = l < N_LEASES && m->now.ttl[l] != 0 ? lease_id(l) : 0;
	struct value *v = &m->now.key[key], before = *v;
	struct store_kv prev;
	need_rev(m);
	*v = (struct value){.create = before.version != 0 ? before.create : m->now.rev,
		.mod = m->now.rev,
		.version = before.version + 1,
		.lease = lease,
		.text = t};
	ASSERT(store_put(s, key_name(key), value_bytes(t, text), lease, &prev) ==
		(before.version != 0));
	if (before.version != 0)
		check_kv(key, &before, &prev);
	add_event(m, key, v);
}

static void note_delete(struct model *m, int key)
{
	need_rev(m);
	m->now.key[key] = (struct value){.mod = 0};
	add_event(m, key, &m->now.key[key]);
}

static void do_delete(struct model *m, struct store *s, int key)
{
	if (m->now.key[key].version == 0)
		return;
	store_delete(s, key_name(key));
	note_delete(m, key);
}

static void do_changes(struct model *m, struct store *s)
{
	size_t n = 1 + take_below(m, 6);
	for (size_t i = 0; i < n; i++) {
		int key = (int)take_below(m, N_KEYS);
		if (take_below(m, 3) > 0)
			do_put(m, s, key);
		else
			do_delete(m, s, key);
		ASSERT(store_head_rev(s) == m->now.rev);
	}
}

static void do_lease(struct model *m, struct store *s, size_t who)
{
	size_t i = take_below(m, N_LEASES);
	size_t what = take_below(m, 3);
	if (m->now.ttl[i] == 0) {
		m->now.ttl[i] = 1 + take(m);
		m->now.owner[i] = node[who][0];
		store_grant(s, lease_id(i), m->now.ttl[i]);
	} else if (what == 0) {
		store_revoke(s, lease_id(i));
		m->now.ttl[i] = 0;
		for (int k = 0; k < N_KEYS; k++)
			if (m->now.key[k].lease == lease_id(i))
				note_delete(m, k);
	} else {
		store_move(s, lease_id(i));
		m->now.owner[i] = node[who][0];
	}
}

static void do_other(struct model *m, struct store *s, size_t who)
{
	size_t of = take_below(m, 2);
	int64_t type = (int64_t)take_below(m, 2), rev;
	switch (take_below(m, 8)) {
	case 0:
		m->now.cluster = 1 + take(m);
		store_era(s, m->now.cluster);
		break;
	case 1:
	case 2:
		store_alarm(s, type);
		m->now.alarm[who][type] = true;
		break;
	case 3:
		store_disarm(s, node[of], type);
		m->now.alarm[of][type] = false;
		break;
	default:
		rev = m->now.rev - (int64_t)take_below(m, 40);
		if (rev > m->now.compact) {
			store_compact(s, rev);
			m->now.compact = rev;
		}
	}
}

static void entry(struct model *m, uint8_t kind)
{
	size_t who = take_below(m, 2), rows_before = m->n_rows;
	struct store *s = m->s[who];
	struct store_counts before, after;
	if (m->n + 1 == m->states_cap) {
		m->states_cap *= 2;
		m->state = xrealloc(m->state, m->states_cap * sizeof(m->state[0]));
	}
	store_get_counts(s, &before);
	m->now = m->state[m->n];
	store_begin(s);
	if (kind < 6)
		do_changes(m, s);
	else if (kind < 9)
		do_lease(m, s, who);
	else
		do_other(m, s, who);
	check_reads(s, &m->now, STORE_HEAD);
	if (take_below(m, 8) == 0) {
		store_abort(s);
		store_get_counts(s, &after);
		ASSERT(after.keys == before.keys && after.versions == before.versions);
		ASSERT(after.log_bytes == before.log_bytes &&
			after.tombstones == before.tombstones);
		m->n_events = m->state[m->n].n_events;
		return;
	}
	if (store_end(s) == 0) {
		ASSERT(m->n_rows == rows_before);
		return;
	}
	apply_rows(m, m->s[1 - who], rows_before);
	m->now.seq++;
	m->now.n_rows = m->n_rows;
	m->state[++m->n] = m->now;
}

/* ---- what happens to entries ---- */

static void commit(struct model *m)
{
	size_t n = m->committed + take_below(m, m->n - m->committed + 1);
	if (take_below(m, 3) == 0)
		n = m->n;
	m->committed = n;
	for (size_t w = 0; w < 2; w++)
		store_commit(m->s[w], m->state[n].seq);
}

static void roll_back(struct model *m)
{
	size_t n = m->committed + take_below(m, m->n - m->committed + 1);
	m->n = n;
	m->n_events = m->state[n].n_events;
	drop_rows(m, m->state[n].n_rows);
	for (size_t w = 0; w < 2; w++)
		store_rollback(m->s[w], m->state[n].seq);
}

/* Some rows of the next entry come, but not its last; then it is undone. */
static void half_an_entry(struct model *m)
{
	struct store_row row = {.seq = m->state[m->n].seq + 1,
		.kind = STORE_PUT,
		.rev = m->state[m->n].rev + 1,
		.create_rev = m->state[m->n].rev + 1,
		.version = 1,
		.node = node[0],
		.key = {"half", 4}};
	ASSERT(store_apply(m->s[0], &row, false) == 0);
	row.version = 3;
	row.sub = 1;
	ASSERT(store_apply(m->s[0], &row, false) != 0);
	store_rollback(m->s[0], m->state[m->n].seq);
}

static void switch_pin(struct model *m)
{
	size_t i = take_below(m, N_PINS);
	if (m->pin_state[i] != 0) {
		for (size_t w = 0; w < 2; w++)
			store_unpin(&m->pin[w][i]);
		m->pin_state[i] = 0;
		return;
	}
	size_t at = m->committed - take_below(m, m->committed < 20 ? m->committed + 1 : 20);
	if (at == 0 || m->state[at].rev < m->state[m->committed].compact)
		return;
	m->pin_state[i] = at;
	for (size_t w = 0; w < 2; w++)
		store_pin(m->s[w], &m->pin[w][i], m->state[at].rev);
}

static void trim(struct model *m)
{
	size_t w = take_below(m, 2), budget = 1 + take(m);
	store_trim(m->s[w], budget);
	check_pins(m);
}

static struct row *find_row(struct model *m, int64_t seq, int32_t sub)
{
	for (size_t i = 0; i < m->n_rows; i++)
		if (m->rows[i].row.seq == seq && m->rows[i].row.sub == sub)
			return &m->rows[i];
	ASSERT(!"garbage that is no row");
	return NULL;
}

/* All but the tip; some is given back, and comes again. */
static void remove_garbage(struct model *m)
{
	int64_t seqs[16];
	int32_t subs[16];
	size_t w = take_below(m, 2), n, done;
	n = store_take_garbage(m->s[w], seqs, subs, 1 + take_below(m, 16));
	done = take_below(m, 4) == 0 ? take_below(m, n + 1) : n;
	for (size_t i = 0; i < done; i++) {
		struct row *r = find_row(m, seqs[i], subs[i]);
		if (r->row.seq == m->state[m->committed].seq && r->row.last) {
			done = i;
			break;
		}
		r->gone = true;
	}
	store_return_garbage(m->s[w], &seqs[done], &subs[done], n - done);
}

static void trim_all(struct store *s)
{
	while (store_trim(s, 3)) {
	}
}

/* The third store: what the log still has must make the same. */
static void load(struct model *m)
{
	struct store *s = store_new("c", NULL, NULL);
	struct model as_loaded = *m;
	size_t every = 1 + take_below(m, 9);
	for (size_t i = 0; i < m->state[m->committed].n_rows; i++) {
		if (m->rows[i].gone)
			continue;
		ASSERT(store_apply(s, &m->rows[i].row, true) == 0);
		if (i % every == 0)
			store_commit(s, store_head_seq(s));
	}
	store_commit(s, store_head_seq(s));
	as_loaded.n = as_loaded.committed;
	check_store(&as_loaded, s);
	uint32_t hash = hash_of(s, store_visible_rev(s), 2);
	ASSERT(hash == hash_of(m->s[0], store_visible_rev(s), 1000));
	ASSERT(hash == hash_of(m->s[1], store_visible_rev(s), 5));
	trim_all(s);
	check_store(&as_loaded, s);
	ASSERT(hash == hash_of(s, store_visible_rev(s), 7));
	store_free(&s);
}

/* With everything committed and trimmed the figures are those of a store that was just loaded. */
static void settle(struct model *m)
{
	struct store_counts c[2];
	m->committed = m->n;
	for (size_t i = 0; i < N_PINS; i++)
		m->pin_state[i] = 0;
	for (size_t w = 0; w < 2; w++) {
		for (size_t i = 0; i < N_PINS; i++)
			store_unpin(&m->pin[w][i]);
		store_commit(m->s[w], m->state[m->n].seq);
		trim_all(m->s[w]);
		check_store(m, m->s[w]);
		store_get_counts(m->s[w], &c[w]);
	}
	ASSERT(c[0].log_bytes == c[1].log_bytes && c[0].versions == c[1].versions);
	ASSERT(c[0].tombstones == c[1].tombstones && c[0].leases == c[1].leases);
	struct store *s = store_new("c", NULL, NULL);
	for (size_t i = 0; i < m->n_rows; i++)
		if (!m->rows[i].gone)
			ASSERT(store_apply(s, &m->rows[i].row, true) == 0);
	store_commit(s, store_head_seq(s));
	trim_all(s);
	store_get_counts(s, &c[1]);
	ASSERT(c[0].log_bytes == c[1].log_bytes && c[0].versions == c[1].versions);
	ASSERT(c[0].tombstones == c[1].tombstones && c[0].leases == c[1].leases);
	store_free(&s);
}

static void step(struct model *m)
{
	uint8_t what = take(m) % 24;
	if (what < 12)
		entry(m, what);
	else if (what < 15)
		commit(m);
	else if (what == 15)
		roll_back(m);
	else if (what == 16)
		half_an_entry(m);
	else if (what < 19)
		trim(m);
	else if (what < 21)
		remove_garbage(m);
	else if (what == 21)
		switch_pin(m);
	else if (take_below(m, 8) == 0)
		load(m);
	else if (take_below(m, 8) == 0)
		settle(m);
	check_reads(m->s[0], &m->state[m->n], STORE_HEAD);
	check_reads(m->s[1], &m->state[m->n], STORE_HEAD);
	if (take_below(m, 4) == 0) {
		int from = (int)take_below(m, N_KEYS), to = (int)take_below(m, N_KEYS);
		check_store(m, m->s[take_below(m, 2)]);
		check_part(m->s[take_below(m, 2)], &m->state[m->n], from < to ? from : to,
			from < to ? to : from, 1 + take_below(m, 5));
	}
}

size_t store_model_run(const uint8_t *bytes, size_t len)
{
	struct model m = {.bytes = bytes, .left = len};
	const struct store_ops ops = {.on_row = on_row};
	m.states_cap = 16;
	m.state = xcalloc(m.states_cap, sizeof(m.state[0]));
	m.state[0].rev = 1;
	m.state[0].compact = -1;
	for (size_t w = 0; w < 2; w++)
		m.s[w] = store_new(node[w], &ops, &m);
	while (m.left > 0)
		step(&m);
	settle(&m);
	for (size_t w = 0; w < 2; w++) {
		store_reset(m.s[w]);
		store_free(&m.s[w]);
	}
	for (size_t i = 0; i < m.n_rows; i++)
		m.rows[i].gone = false;
	drop_rows(&m, 0);
	free(m.rows);
	free(m.events);
	free(m.state);
	return m.n;
}
