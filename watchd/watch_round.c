/* SPDX-License-Identifier: PostgreSQL */
/*
 * A round: some whole revisions, matched against an index, encoded, and sent to whom they concern.
 *
 * Watchers of the same interval that want the same of it (kind_of) share an accumulator, so that an
 * event costs as much for one of them as for a thousand; what is left for each is its own head when
 * the round is sent. Every event that anybody wants is encoded once without, and once with the
 * previous version, one behind the other into chunks; an accumulator is a list of runs in them:
 * whoever wants all events of a prefix has a single run, however many they are. At the end a run
 * that is a good part of its chunk is sent by reference, and so is one piece of memory for a
 * thousand watchers; a small run is copied, so that a slow stream does not keep large chunks alive
 * for a few bytes each.
 *
 * See: watch_int.h, invariants 1 to 3.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/watch_int.h"

/* Chunks are closed here: a piece's offset and length have 32 bits. */
#define CHUNK_BYTES (64u << 20)
/* A run is sent by reference if it has at least this many bytes and this share of its chunk. */
#define SHARE_BYTES 256
#define SHARE_PART 4
/* gRPC's clients count a message's bytes with 31 bits. */
#define MESSAGE_MAX ((size_t)INT32_MAX - WATCH_HEAD_MAX)
/* A round ends behind the revision that makes it this many times `budget` matches. */
#define MATCHES_PER_EVENT 16
/* A fragment is made of at least this many runs, or of single events. */
#define FRAGMENT_RUNS 16
/* Buffers above this size are given back after the round. */
#define CHUNK_KEEP_BYTES (1u << 20)

static void *grown(void *array, size_t *cap, size_t need, size_t size)
{
	if (need <= *cap)
		return array;
	*cap = *cap == 0 ? 64 : *cap * 2;
	if (*cap < need)
		*cap = need;
	return xrealloc(array, *cap * size);
}

/* ---- collecting ---- */

static uint32_t open_chunk(struct watch_round *r, bool with_prev)
{
	uint32_t i = r->open_chunk[with_prev];
	if (i != 0 && r->chunks[i - 1].b.len_bytes < CHUNK_BYTES)
		return i - 1;
	size_t cap = r->cap_chunks;
	r->chunks = grown(r->chunks, &r->cap_chunks, r->n_chunks + 1, sizeof(r->chunks[0]));
	for (; cap < r->cap_chunks; cap++) {
		r->chunks[cap].shared = NULL;
		buf_init(&r->chunks[cap].b, 0);
	}
	i = (uint32_t)r->n_chunks++;
	r->open_chunk[with_prev] = i + 1;
	return i;
}

/* Where the present event stands, encoded at the first call. */
static const struct watch_piece *encoded(struct watch_set *ws, bool with_prev)
{
	struct watch_round *r = &ws->round;
	with_prev = with_prev && r->event.has_prev;
	if (r->is_encoded[with_prev])
		return &r->at[with_prev];
	uint32_t i = open_chunk(r, with_prev);
	struct buf *b = &r->chunks[i].b;
	size_t off = b->len_bytes;
	watch_encode_event(b, &r->event, with_prev);
	r->at[with_prev] = (struct watch_piece){
		.chunk = i, .off = (uint32_t)off, .len = (uint32_t)(b->len_bytes - off)};
	r->is_encoded[with_prev] = true;
	r->bytes += b->len_bytes - off;
	ws->counts.events_encoded++;
	return &r->at[with_prev];
}

static void add_piece(
	struct watch_round *r, struct watch_acc *a, const struct watch_piece *at, size_t run_max)
{
	a->bytes += at->len;
	if (a->n_events++ == 0)
		a->first_rev = r->event.kv.mod_rev;
	if (a->n_pieces > 0) {
		struct watch_piece *last = &r->pieces[a->last];
		if (last->chunk == at->chunk && last->off + last->len == at->off &&
			last->len + at->len <= run_max) {
			last->len += at->len;
			return;
		}
	}
	r->pieces = grown(r->pieces, &r->cap_pieces, r->n_pieces + 1, sizeof(r->pieces[0]));
	uint32_t i = (uint32_t)r->n_pieces++;
	r->pieces[i] = *at;
	if (a->n_pieces == 0)
		a->first = i;
	else
		r->pieces[a->last].next = i;
	a->last = i;
	a->n_pieces++;
}

/* ---- kinds and groups ---- */

/* What makes a difference between watchers of the same interval: filters (bits 0, 1), previous
 * versions (2), fragments (3). */
static unsigned kind_of(const struct watcher *w)
{
	return w->filters | (unsigned)w->prev_kv << 2 | (unsigned)w->fragment << 3;
}

static void add_event(struct watch_set *ws, struct watch_acc *a, unsigned kind)
{
	struct watch_round *r = &ws->round;
	/* A filter has the number of the event type that it holds back. */
	if ((kind & (r->event.is_delete ? 2u : 1u)) != 0)
		return;
	/* Fragments are cut between runs. */
	size_t run_max = (kind & 8) != 0 ? ws->options.fragment_bytes / FRAGMENT_RUNS : CHUNK_BYTES;
	add_piece(r, a, encoded(ws, (kind & 4) != 0), run_max);
}

static struct watch_acc *acc_of(
	const struct watch_round *r, const struct watch_group *g, unsigned kind)
{
	return &r->accs[g->accs + (unsigned)__builtin_popcount(g->kinds & ((1u << kind) - 1))];
}

static struct watch_group *new_group(struct watch_round *r, struct interval_node *n)
{
	r->groups = grown(r->groups, &r->cap_groups, r->n_groups + 1, sizeof(r->groups[0]));
	struct watch_group *g = &r->groups[r->n_groups++];
	*interval_node_mark(n) = (uint32_t)r->n_groups;
	*g = (struct watch_group){
		.node = n, .accs = (uint32_t)r->n_accs, .late = (uint32_t)r->n_late};
	list_for_each (it, interval_node_members(n)) {
		struct watcher *w = list_entry(it, struct watcher, member.link);
		r->matches++;
		if (w->next_rev <= r->first_rev) {
			g->kinds |= 1u << kind_of(w);
			continue;
		}
		r->late = grown(r->late, &r->cap_late, r->n_late + 1, sizeof(r->late[0]));
		r->late[r->n_late++] = (struct watch_late){.w = w};
		g->n_late++;
	}
	size_t n_kinds = (unsigned)__builtin_popcount(g->kinds);
	r->accs = grown(r->accs, &r->cap_accs, r->n_accs + n_kinds, sizeof(r->accs[0]));
	for (size_t i = 0; i < n_kinds; i++)
		r->accs[r->n_accs++] = (struct watch_acc){.n_events = 0};
	return g;
}

static void on_match(struct interval_node *n, void *arg)
{
	struct watch_set *ws = arg;
	struct watch_round *r = &ws->round;
	uint32_t mark = *interval_node_mark(n);
	struct watch_group *g = mark != 0 ? &r->groups[mark - 1] : new_group(r, n);
	for (uint32_t kinds = g->kinds; kinds != 0; kinds &= kinds - 1) {
		unsigned kind = (unsigned)__builtin_ctz(kinds);
		add_event(ws, acc_of(r, g, kind), kind);
		r->matches++;
	}
	for (uint32_t i = g->late; i < g->late + g->n_late; i++) {
		struct watch_late *late = &r->late[i];
		r->matches++;
		if (r->event.kv.mod_rev >= late->w->next_rev)
			add_event(ws, &late->acc, kind_of(late->w));
	}
}

uint64_t watch_round_collect(struct watch_set *ws, const struct interval_set *index, uint64_t pos,
	uint64_t end, size_t budget, int64_t *ret_rev)
{
	struct watch_round *r = &ws->round;
	ASSERT(r->n_groups == 0 && pos < end);
	int64_t rev = 0;
	uint64_t begin = pos;
	r->bytes = r->matches = 0;
	for (; pos < end; pos++) {
		store_log_get(ws->store, pos, &r->event);
		bool enough = pos - begin >= budget || r->matches >= budget * MATCHES_PER_EVENT ||
			      r->bytes >= WATCH_ROUND_BYTES;
		if (r->event.kv.mod_rev != rev && rev != 0 && enough)
			break;
		if (rev == 0)
			r->first_rev = r->event.kv.mod_rev;
		rev = r->event.kv.mod_rev;
		r->is_encoded[0] = r->is_encoded[1] = false;
		interval_match_nodes(index, r->event.kv.key, on_match, ws);
	}
	*ret_rev = rev;
	return pos;
}

/* ---- sending ---- */

static struct h2_slice slice_of(struct watch_round *r, const struct watch_piece *p)
{
	struct watch_chunk *c = &r->chunks[p->chunk];
	struct h2_slice s = {.bytes = c->b.data + p->off, .len = p->len};
	if (p->len < SHARE_BYTES || p->len < c->b.len_bytes / SHARE_PART)
		return s;
	if (c->shared == NULL) {
		c->shared = h2_shared_new((uint32_t)c->b.len_bytes);
		memcpy(c->shared->bytes, c->b.data, c->b.len_bytes);
	}
	s.shared = c->shared;
	s.bytes = c->shared->bytes + p->off;
	return s;
}

/* One response of n pieces from `piece` on; returns the piece behind them. */
static uint32_t send_pieces(struct watch_set *ws, struct watcher *w, int64_t revision,
	uint32_t piece, uint32_t n, bool fragment)
{
	struct watch_round *r = &ws->round;
	uint8_t bytes[WATCH_HEAD_MAX];
	const struct watch_head head = {
		.revision = revision, .watch_id = w->id, .fragment = fragment};
	r->slices = grown(r->slices, &r->cap_slices, n + 1, sizeof(r->slices[0]));
	r->slices[0] = (struct h2_slice){
		.bytes = bytes, .len = (uint32_t)watch_encode_head(bytes, &ws->header, &head)};
	for (uint32_t i = 1; i <= n; i++) {
		r->slices[i] = slice_of(r, &r->pieces[piece]);
		piece = r->pieces[piece].next;
	}
	ws->ops->send(w->stream->arg, r->slices, n + 1);
	ws->counts.responses_sent++;
	return piece;
}

/* As etcd: events are added to a fragment while it stays smaller than the limit (here: small runs
 * of them, so that a fragment may end a little earlier than etcd's). */
static void send_fragments(struct watch_set *ws, struct watcher *w, const struct watch_acc *a,
	int64_t revision, size_t limit)
{
	uint8_t bytes[WATCH_HEAD_MAX];
	const struct watch_head head = {.revision = revision, .watch_id = w->id, .fragment = true};
	size_t head_bytes = watch_encode_head(bytes, &ws->header, &head);
	uint32_t piece = a->first, left = a->n_pieces;
	while (left > 0) {
		uint32_t n = 0, p = piece;
		size_t size = head_bytes;
		for (; n < left; n++, p = ws->round.pieces[p].next) {
			size += ws->round.pieces[p].len;
			if (n > 0 && size >= limit)
				break;
		}
		left -= n;
		piece = send_pieces(ws, w, revision, piece, n, left > 0);
	}
}

static void send_acc(
	struct watch_set *ws, struct watcher *w, const struct watch_acc *a, int64_t revision)
{
	size_t limit = ws->options.fragment_bytes;
	if (w->fragment && a->n_pieces > 1 && a->bytes + WATCH_HEAD_MAX >= limit)
		send_fragments(ws, w, a, revision, limit);
	else
		send_pieces(ws, w, revision, a->first, a->n_pieces, false);
	w->progress_due = false;
	ws->counts.events_sent += a->n_events;
}

static void flush_watcher(struct watch_set *ws, struct watcher *w, const struct watch_acc *a,
	const struct watch_flush *f)
{
	if (a->n_events == 0 || w->stream->dead)
		return;
	if (watch_stream_is_full(w->stream)) {
		f->missed(w, a->first_rev, f->arg);
	} else if (a->bytes > MESSAGE_MAX && !w->fragment) {
		watch_cancel_because(w, "etcdserver: revision too large for one message");
	} else {
		send_acc(ws, w, a, f->revision);
		f->sent(w, f->arg);
	}
}

/* Those that take the round from its beginning; the others' next_rev is above it and stays so. */
static void flush_group(
	struct watch_set *ws, const struct watch_group *g, const struct watch_flush *f)
{
	int64_t first_rev = ws->round.first_rev;
	struct list *members = interval_node_members(g->node), *next;
	for (struct list *it = members->next; it != members; it = next) {
		struct watcher *w = list_entry(it, struct watcher, member.link);
		next = it->next; /* the node may go with this one */
		if (w->next_rev <= first_rev)
			flush_watcher(ws, w, acc_of(&ws->round, g, kind_of(w)), f);
	}
}

static void round_reset(struct watch_round *r)
{
	for (size_t i = 0; i < r->n_chunks; i++) {
		struct watch_chunk *c = &r->chunks[i];
		if (c->shared != NULL)
			h2_shared_unref(&c->shared);
		if (c->b.cap_bytes > CHUNK_KEEP_BYTES)
			buf_free(&c->b);
		else
			buf_reset(&c->b);
	}
	r->n_groups = r->n_accs = r->n_late = r->n_pieces = r->n_chunks = 0;
	r->open_chunk[0] = r->open_chunk[1] = 0;
}

/* A node goes with its last member, so those that begin within the round come behind all groups:
 * they are named one by one. */
void watch_round_flush(struct watch_set *ws, const struct watch_flush *f)
{
	struct watch_round *r = &ws->round;
	for (size_t i = 0; i < r->n_groups; i++)
		*interval_node_mark(r->groups[i].node) = 0;
	for (size_t i = 0; i < r->n_groups; i++)
		flush_group(ws, &r->groups[i], f);
	for (size_t i = 0; i < r->n_late; i++)
		flush_watcher(ws, r->late[i].w, &r->late[i].acc, f);
	round_reset(r);
}

void watch_round_free(struct watch_round *r)
{
	ASSERT(r->n_groups == 0);
	for (size_t i = 0; i < r->cap_chunks; i++)
		buf_free(&r->chunks[i].b);
	free(r->chunks);
	free(r->groups);
	free(r->accs);
	free(r->late);
	free(r->pieces);
	free(r->slices);
}
