/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ladder of positions: see lag.h.
 *
 * Context: event thread; pure memory.
 */
#include "config.h"

#include <string.h>

#include "common/base/mem.h"
#include "libpgwalstream/pgwalstream.h"

#include "walstreamd/lag.h"

/* ---- Time ------------------------------------------------------------------------------------ */

static void drop_front(struct lag_history *h, size_t n)
{
	h->n -= n;
	memmove(h->samples, h->samples + n, h->n * sizeof(h->samples[0]));
}

/* A sample goes if its neighbours are no further apart than an eighth of its age: the error stays
 * in proportion, and a day needs about 150 of them. */
static void thin_out(struct lag_history *h, uint64_t now_ms)
{
	size_t to = 1;
	for (size_t i = 1; i < h->n; i++) {
		bool last = i + 1 == h->n;
		if (last || h->samples[i + 1].at_ms - h->samples[to - 1].at_ms >
				    (now_ms - h->samples[i].at_ms) / 8)
			h->samples[to++] = h->samples[i];
	}
	if (to == LAG_SAMPLES) { /* not within a lifetime: one has to go */
		drop_front(h, 1);
		to--;
	}
	h->n = to;
}

void lag_history_note(struct lag_history *h, uint64_t head, uint64_t done, uint64_t now_ms)
{
	size_t n_done = 0;
	if (h->n > 0 && head < h->samples[h->n - 1].lsn)
		h->n = 0; /* another server, or one that went back */
	while (n_done < h->n && h->samples[n_done].lsn <= done)
		n_done++;
	drop_front(h, n_done);
	if (head <= done || (h->n > 0 && h->samples[h->n - 1].lsn == head))
		return;
	if (h->n == LAG_SAMPLES)
		thin_out(h, now_ms);
	h->samples[h->n++] = (struct lag_sample){.lsn = head, .at_ms = now_ms};
}

uint64_t lag_history_behind_ms(const struct lag_history *h, uint64_t lsn, uint64_t now_ms)
{
	for (size_t i = 0; i < h->n; i++) {
		if (h->samples[i].lsn > lsn)
			return now_ms - h->samples[i].at_ms;
	}
	return 0;
}

/* ---- Positions ------------------------------------------------------------------------------- */

static void at_least(uint64_t *position, uint64_t lsn)
{
	if (*position < lsn)
		*position = lsn;
}

void lag_settle(struct lag_positions *p)
{
	at_least(&p->slot, p->retained);
	at_least(&p->acknowledged, p->slot);
	for (size_t i = 0; i < p->n_consumers; i++) {
		at_least(&p->consumers[i].acked, p->acknowledged);
		at_least(&p->published, p->consumers[i].acked);
	}
	at_least(&p->published, p->acknowledged);
	at_least(&p->received, p->published);
	at_least(&p->sent, p->received);
	if (p->server != 0)
		at_least(&p->server, p->sent);
}

struct context {
	uint64_t head, now_ms;
	const struct lag_history *h;
	void (*fn)(json_t *row, void *arg);
	void *arg;
};

/* attached < 0: not a consumer. */
static void put_row(const struct context *c, const char *point, uint64_t lsn, int attached)
{
	char text[18];
	if (lsn == 0)
		return;
	json_t *row = json_pack("{s:s, s:s}", "point", point, "lsn", pgws_lsn_str(lsn, text));
	ASSERT(row != NULL);
	if (c->head != 0) {
		uint64_t ms = c->head > lsn ? lag_history_behind_ms(c->h, lsn, c->now_ms) : 0;
		json_object_set_new(row, "behind_bytes", json_integer((json_int_t)(c->head - lsn)));
		json_object_set_new(row, "behind_s", json_integer((json_int_t)(ms / 1000)));
	}
	if (attached >= 0)
		json_object_set_new(row, "attached", json_boolean(attached));
	c->fn(row, c->arg);
}

void lag_rows(const struct lag_positions *p, const struct lag_history *h, uint64_t now_ms,
	void (*fn)(json_t *row, void *arg), void *arg)
{
	const struct context c = {
		.head = p->server, .now_ms = now_ms, .h = h, .fn = fn, .arg = arg};
	put_row(&c, "server", p->server, -1);
	put_row(&c, "sent", p->sent, -1);
	put_row(&c, "received", p->received, -1);
	put_row(&c, "published", p->published, -1);
	for (size_t i = 0; i < p->n_consumers; i++)
		put_row(&c, p->consumers[i].name, p->consumers[i].acked, p->consumers[i].attached);
	put_row(&c, "acknowledged", p->acknowledged, -1);
	put_row(&c, "slot", p->slot, -1);
	put_row(&c, "retained from", p->retained, -1);
}
