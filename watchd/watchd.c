/* SPDX-License-Identifier: PostgreSQL */
/*
 * watchd, put together: configuration, the ring's bell.
 *
 * On crash: clients connect again; what they were told is in the log.
 */
#include "config.h"

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "watchd/watchd.h"
#include "watchd/watchd_stats.h"

#define TICK_MS 1000

MEM_TYPE(mem_watchd, "watchd");

static void on_bell(int64_t seq, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	(void)seq; /* for the engine */
}

static void on_tick(void *arg)
{
	struct watchd *self;
	struct feed_counts feed;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	feed_get_counts(self->feed, &feed);
	stats_set(self->d->stats, STAT_FEED_RECORDS, feed.records);
	stats_set(self->d->stats, STAT_FEED_BELLS, feed.bells);
	stats_set(self->d->stats, STAT_FEED_LSN, feed.received_lsn);
	stats_set(self->d->stats, STAT_FEED_LAG, feed.lag_bytes);
	daemon_status(self->d, "%s", feed.trouble);
	ev_timer_start(&self->tick, TICK_MS);
}

static int watchd_init(struct daemon *d)
{
	struct watchd *self = mem_new(&mem_watchd, sizeof(*self));
	self->magic = WATCHD_MAGIC;
	self->d = d;
	d->self = self;
	(void)proc_raise_nofile(); /* what it comes to shows when descriptors run out */
	watchd_conf_get(d->conf, &self->conf);
	self->feed = feed_new(d, on_bell, self);
	ev_timer_init(&self->tick, d->loop, "watchd tick", on_tick, self);
	ev_timer_start(&self->tick, 0);
	daemon_ready(d);
	return 0;
}

static int watchd_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	struct watchd *self = d->self;
	(void)ret_why; /* every value that passes validation can be taken over while running */
	watchd_conf_free(&self->conf);
	watchd_conf_get(next, &self->conf);
	return 0;
}

static void watchd_drain(struct daemon *d)
{
	daemon_drained(d);
}

static void watchd_fini(struct daemon *d)
{
	struct watchd *self = d->self;
	if (self == NULL)
		return;
	ev_timer_stop(&self->tick);
	feed_free(&self->feed);
	watchd_conf_free(&self->conf);
	self->magic = 0;
	mem_free(&mem_watchd, self);
	d->self = NULL;
}

static void watchd_on_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	struct watchd *self = d->self;
	if (role == ROLE_WALSTREAMD)
		feed_peer(self->feed, up, generation);
}

static int watchd_on_relay(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	struct watchd *self = d->self;
	if (from_role != ROLE_WALSTREAMD)
		return -ERR_MALFORMED;
	return feed_relay(self->feed, kind, msg);
}

const struct daemon_info watchd_info = {
	.name = "watchd",
	.role = ROLE_WATCHD,
	.schemas = watchd_conf_schemas,
	.stats_rows = watchd_stats_rows,
	.n_stats_rows = STAT_COUNT,
	.check = watchd_conf_check,
	.init = watchd_init,
	.reload = watchd_reload,
	.drain = watchd_drain,
	.fini = watchd_fini,
	.on_peer = watchd_on_peer,
	.on_relay = watchd_on_relay,
};
