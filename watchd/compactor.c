/* SPDX-License-Identifier: PostgreSQL */
/*
 * See compactor.h.
 *
 *   IDLE --periodic, due--> ASKING (which revision is that old?) --answer--> COMPACTING --> IDLE
 *     '--more revisions than are to be kept, by a tenth--------------------------^
 */
#include "config.h"

#include <stdio.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/compactor.h"
#include "watchd/svc.h"
#include "watchd/watchd_stats.h"

#define COMPACTOR_MAGIC 0x636d7061u
/* Periodic: a tenth of what is kept, within these. */
#define PERIOD_MIN_MS 1000
#define PERIOD_MAX_MS 600000
#define RETRY_MS 10000

MEM_TYPE(mem_compactor, "compactor");

enum compactor_state { COMPACTOR_IDLE, COMPACTOR_ASKING, COMPACTOR_COMPACTING };

struct compactor {
	uint32_t magic;
	struct services *svc;
	enum compactor_state state;
	struct engine_op op;
	int64_t rev;
	uint64_t next_ms; /* periodic: not before */
};

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	struct compactor *c = list_entry(op, struct compactor, op);

	OBJ_CHECK(c, COMPACTOR_MAGIC);
	return svc_do_compact(s, c->rev);
}

static void on_done(struct engine_op *op, enum etcd_error err)
{
	struct compactor *c = list_entry(op, struct compactor, op);

	OBJ_CHECK(c, COMPACTOR_MAGIC);
	c->state = COMPACTOR_IDLE;
	if (err == ETCD_OK) {
		stats_add(c->svc->stats, STAT_AUTO_COMPACTIONS, 1);
		log_info("watch.compact", "history before revision %lld is compacted",
			(long long)c->rev);
	} else if (err != ETCD_COMPACTED) { /* another node was faster */
		c->next_ms = ev_now_ms() + RETRY_MS;
		log_limited(LOG_LEVEL_WARNING, "watch.compact",
			"cannot compact history before revision %lld: %s, retrying",
			(long long)c->rev, etcd_error_row(err)->text);
	}
}

static void compact(struct compactor *c, int64_t rev)
{
	c->state = COMPACTOR_COMPACTING;
	c->rev = rev;
	c->op = (struct engine_op){
		.eval = eval, .done = on_done, .deadline_ms = services_deadline(c->svc)};
	engine_submit(c->svc->engine, &c->op);
}

static void on_rev(int64_t rev, enum etcd_error err, const char *why, void *arg)
{
	struct compactor *c;

	OBJ_CAST(c, arg, COMPACTOR_MAGIC);
	c->state = COMPACTOR_IDLE;
	if (err != ETCD_OK || why != NULL) {
		c->next_ms = ev_now_ms() + RETRY_MS;
		log_limited(LOG_LEVEL_WARNING, "watch.compact",
			"cannot tell which history is old: %s, retrying",
			why != NULL ? why : etcd_error_row(err)->text);
	} else if (rev > store_compact_rev(c->svc->store)) {
		compact(c, rev);
	}
}

static void tick_periodic(struct compactor *c, uint64_t retention_ms)
{
	uint64_t now = ev_now_ms(), period = retention_ms / 10;
	char interval[40];

	if (now < c->next_ms)
		return;
	period = period < PERIOD_MIN_MS ? PERIOD_MIN_MS : period;
	c->next_ms = now + (period > PERIOD_MAX_MS ? PERIOD_MAX_MS : period);
	c->state = COMPACTOR_ASKING;
	snprintf(interval, sizeof(interval), "%llu milliseconds", (unsigned long long)retention_ms);
	engine_rev_before(c->svc->engine, interval, on_rev, c);
}

static void tick_revision(struct compactor *c, int64_t retention)
{
	int64_t rev = store_visible_rev(c->svc->store) - retention;

	if (ev_now_ms() >= c->next_ms && rev > 1 &&
		rev > store_compact_rev(c->svc->store) + retention / 10)
		compact(c, rev);
}

void compactor_tick(struct compactor *c)
{
	OBJ_CHECK(c, COMPACTOR_MAGIC);
	if (c->state != COMPACTOR_IDLE || c->svc->stopping || !engine_is_up(c->svc->engine))
		return;
	if (c->svc->conf->compaction == COMPACTION_PERIODIC)
		tick_periodic(c, c->svc->conf->retention);
	else if (c->svc->conf->compaction == COMPACTION_REVISION)
		tick_revision(c, (int64_t)c->svc->conf->retention);
}

struct compactor *compactor_new(struct services *svc)
{
	struct compactor *c = mem_new(&mem_compactor, sizeof(*c));

	c->magic = COMPACTOR_MAGIC;
	c->svc = svc;
	return c;
}

void compactor_free(struct compactor **cp)
{
	struct compactor *c = *cp;

	if (c == NULL)
		return;
	OBJ_CHECK(c, COMPACTOR_MAGIC);
	if (c->state == COMPACTOR_COMPACTING)
		engine_cancel(c->svc->engine, &c->op);
	c->magic = 0;
	mem_free(&mem_compactor, c);
	*cp = NULL;
}
