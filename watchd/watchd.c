/* SPDX-License-Identifier: PostgreSQL */
/*
 * watchd, put together: engine with its store, leases, watches, transport, the ring's bell.
 *
 * Order of birth: engine, watches, lessor, transport, feed; of death: transport (calls take what
 * they wait for back), feed, compactor, lessor, watches, engine.
 *
 * Clients are listened to as soon as the log is loaded: before, there is nothing to answer, and
 * they wait in the sockets' backlog. READY is said then, or as soon as it is known that the
 * database has to be waited for.
 *
 * On crash: clients connect again; what they were told is in the log.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/pg/pgconf.h"
#include "watchd/grpc.h"
#include "watchd/svc.h"
#include "watchd/watchd.h"
#include "watchd/watchd_stats.h"

#define TICK_MS 1000
/* gRPC's framing and what a client may say beside its request: etcd's number. */
#define MESSAGE_EXTRA_BYTES (512u << 10)
/* A client that asked for a leader is told that there is none after three of etcd's elections. */
#define LEADERLESS_MS 3000
#define DRAIN_MS 5000

MEM_TYPE(mem_watchd, "watchd");

/* ---- The engine ---- */

static void set_header(struct watchd *self)
{
	self->svc.header.cluster_id = store_cluster_id(self->svc.store);
	watch_set_header(self->svc.watches, &self->svc.header);
}

static void listen_all(struct watchd *self)
{
	struct daemon *d = self->d;

	for (size_t i = 0; i < d->n_listeners; i++) {
		h2_server_listen(self->server, d->listeners[i].fd, d->listeners[i].url);
		d->listeners[i].fd = -1;
		log_info("watch.listen", "listening on %s", d->listeners[i].url);
	}
}

static void say_ready(struct watchd *self)
{
	if (!self->ready)
		daemon_ready(self->d);
	self->ready = true;
}

static void on_loaded(void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	self->loaded = true;
	set_header(self);
	lessor_loaded(self->svc.lessor);
	log_info("watch.loaded", "the log is loaded: revision %lld",
		(long long)store_visible_rev(self->svc.store));
	if (!self->svc.stopping)
		listen_all(self);
	say_ready(self);
}

static void on_visible(void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	watch_feed(self->svc.watches);
	watchd_ctl_feed(self);
}

static void on_row(const struct store_row *row, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	if (row->kind == STORE_ERA)
		set_header(self);
	else if (row->kind == STORE_GRANT || row->kind == STORE_REVOKE || row->kind == STORE_MOVE)
		lessor_row(self->svc.lessor, row);
}

static void on_unloaded(void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	watch_pause(self->svc.watches);
}

static void on_reloaded(bool went_back, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	if (went_back)
		log_error("watch.went_back",
			"the database went back behind what clients were told: their watches are "
			"cancelled, the cluster id is another");
	set_header(self);
	lessor_loaded(self->svc.lessor);
	watch_reloaded(self->svc.watches, went_back);
	watchd_ctl_feed(self);
}

static const char *remedy(const char *why)
{
	bool no_schema =
		strstr(why, "(SQLSTATE 42P01)") != NULL || strstr(why, "(SQLSTATE 3F000)") != NULL;

	return no_schema ? "; install the schema: pgctl db init" : "";
}

static void on_database(bool up, const char *why, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	bool had = self->database_trouble != NULL;
	free(self->database_trouble);
	self->database_trouble = up ? NULL : xasprintf("%s%s", why, remedy(why));
	lessor_database(self->svc.lessor, up);
	if (up && had)
		log_info("watch.database", "the database is there again");
	if (!up) {
		log_limited(LOG_LEVEL_WARNING, "watch.database", "%s; changes wait, retrying",
			self->database_trouble);
		say_ready(self); /* it may take long */
	}
}

static void on_bell(int64_t seq, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	engine_bell(self->svc.engine, seq);
}

/* ---- The transport ---- */

static struct h2_limits limits_of(const struct watchd_conf *wc)
{
	struct h2_limits limits = H2_LIMITS_DEFAULT;

	limits.max_connections = wc->max_connections;
	limits.max_streams = wc->max_streams;
	limits.max_message_bytes = wc->max_request_bytes + MESSAGE_EXTRA_BYTES;
	if (limits.max_unfinished_bytes < limits.max_message_bytes)
		limits.max_unfinished_bytes = limits.max_message_bytes;
	return limits;
}

static void on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	grpc_on_call(s, rq, &self->svc);
}

static void on_http(struct h2_http *h, const struct http1_request *rq, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	http_on_request(self->http, h, rq);
}

static void on_http_gone(struct h2_http *h, void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	http_on_gone(self->http, h);
}

/* ---- Once per second ---- */

static void stats_of_store(struct watchd *self)
{
	struct stats *s = self->d->stats;
	struct store_counts n;

	store_get_counts(self->svc.store, &n);
	stats_set(s, STAT_REVISION, (uint64_t)store_visible_rev(self->svc.store));
	int64_t compacted = store_compact_rev(self->svc.store);
	stats_set(s, STAT_COMPACT_REVISION, compacted > 0 ? (uint64_t)compacted : 0);
	stats_set(s, STAT_SEQ, (uint64_t)store_visible_seq(self->svc.store));
	stats_set(s, STAT_KEYS, n.keys);
	stats_set(s, STAT_VERSIONS, n.versions);
	stats_set(s, STAT_LOG_BYTES, n.log_bytes);
	stats_set(s, STAT_MEMORY_BYTES, n.memory_bytes);
	stats_set(s, STAT_LEASES, n.leases);
}

static void stats_of_engine(struct watchd *self)
{
	struct stats *s = self->d->stats;
	struct engine_counts n;

	engine_get_counts(self->svc.engine, &n);
	stats_set(s, STAT_DB_BYTES, n.db_bytes);
	stats_set(s, STAT_ENTRIES, n.entries);
	stats_set(s, STAT_ROWS, n.rows);
	stats_set(s, STAT_BATCHES, n.batches);
	stats_set(s, STAT_LOST_BATCHES, n.lost_batches);
	stats_set(s, STAT_TURNS, n.turns);
	stats_set(s, STAT_TIP_READS, n.tip_reads);
	stats_set(s, STAT_TIP_ROWS, n.tip_rows);
	stats_set(s, STAT_LOADS, n.loads);
	stats_set(s, STAT_DOUBT_FOUND, n.in_doubt_found);
	stats_set(s, STAT_DOUBT_AGAIN, n.in_doubt_again);
	stats_set(s, STAT_REMOVED, n.removed_rows);
	stats_set(s, STAT_TIMEOUTS, n.timeouts);
	stats_set(s, STAT_REFUSED, n.refused);
	stats_set(s, STAT_READS_ENDED, n.reads_ended);
	stats_set(s, STAT_OPS_WAITING, n.ops_waiting);
	stats_set(s, STAT_READS_WAITING, n.reads_waiting);
}

static void stats_of_clients(struct watchd *self)
{
	struct stats *s = self->d->stats;
	struct watch_counts w;
	struct lessor_counts l;

	watch_get_counts(self->svc.watches, &w);
	lessor_get_counts(self->svc.lessor, &l);
	h2_server_update_stats(self->server);
	stats_set(s, STAT_WATCH_STREAMS, w.streams);
	stats_set(s, STAT_WATCHES, w.watchers);
	stats_set(s, STAT_WATCHES_BEHIND, w.behind);
	stats_set(s, STAT_EVENTS_SENT, w.events_sent);
	stats_set(s, STAT_EVENTS_ENCODED, w.events_encoded);
	stats_set(s, STAT_WATCHES_SLOW, w.slow_turns);
	stats_set(s, STAT_WATCHES_COMPACTED, w.compacted_cancels);
	stats_set(s, STAT_LEASES_OURS, l.ours);
	stats_set(s, STAT_KEEPALIVES, l.keepalives);
	stats_set(s, STAT_LEASES_EXPIRED, l.expired);
	stats_set(s, STAT_LEASES_ADOPTED, l.adopted);
	stats_set(s, STAT_LEASES_MOVED, l.moved);
}

static void stats_of_loop(struct watchd *self)
{
	struct stats *s = self->d->stats;
	struct ev_poll_counts n;

	ev_loop_get_poll_counts(self->d->loop, &n);
	stats_set(s, STAT_BUSY_POLLS, n.polls);
	stats_set(s, STAT_BUSY_POLLS_CAUGHT, n.caught);
	stats_set(s, STAT_BUSY_POLLS_YIELDED, n.yielded);
}

static void stats_of_feed(struct watchd *self, const struct feed_counts *n)
{
	struct stats *s = self->d->stats;

	stats_set(s, STAT_FEED_RECORDS, n->records);
	stats_set(s, STAT_FEED_BELLS, n->bells);
	stats_set(s, STAT_FEED_LSN, n->received_lsn);
	stats_set(s, STAT_FEED_LAG, n->lag_bytes);
	stats_set(s, STAT_FEED_DELAY_P50, n->delay_p50_us);
	stats_set(s, STAT_FEED_DELAY_P99, n->delay_p99_us);
}

static void say_status(struct watchd *self, const struct feed_counts *feed)
{
	struct engine_counts engine;

	engine_get_counts(self->svc.engine, &engine);
	if (self->database_trouble != NULL)
		daemon_status(self->d, "changes wait: %s", self->database_trouble);
	else if (engine.trouble[0] != '\0')
		daemon_status(self->d, "%s", engine.trouble);
	else if (!self->loaded)
		daemon_status(self->d, "loads the log");
	else if (store_has_alarm(self->svc.store, ETCDSERVERPB__ALARM_TYPE__NOSPACE))
		daemon_status(self->d,
			"alarm NOSPACE: compact, then disarm it (etcdctl alarm disarm), or raise "
			"watchd.quota");
	else if (store_has_alarm(self->svc.store, ETCDSERVERPB__ALARM_TYPE__CORRUPT))
		daemon_status(self->d, "alarm CORRUPT: nothing is changed until it is disarmed");
	else
		daemon_status(self->d, "revision %lld%s%s",
			(long long)store_visible_rev(self->svc.store),
			feed->trouble[0] != '\0' ? "; ring: " : "", feed->trouble);
}

static void look_at_leader(struct watchd *self)
{
	if (engine_is_up(self->svc.engine)) {
		self->down_since_ms = 0;
		return;
	}
	if (self->down_since_ms == 0)
		self->down_since_ms = ev_now_ms();
	if (ev_now_ms() - self->down_since_ms >= LEADERLESS_MS)
		grpc_streams_end(&self->svc, ETCD_NO_LEADER, false);
}

static void on_tick(void *arg)
{
	struct watchd *self;
	struct feed_counts feed;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	feed_get_counts(self->feed, &feed);
	stats_of_store(self);
	stats_of_engine(self);
	stats_of_clients(self);
	stats_of_loop(self);
	stats_of_feed(self, &feed);
	say_status(self, &feed);
	look_at_leader(self);
	compactor_tick(self->compactor);
	watchd_ctl_tick(self);
	ev_timer_start(&self->tick, TICK_MS);
}

/* ---- Life ---- */

static void make_engine(struct watchd *self)
{
	static const struct engine_ops ops = {.on_loaded = on_loaded,
		.on_visible = on_visible,
		.on_row = on_row,
		.on_unloaded = on_unloaded,
		.on_reloaded = on_reloaded,
		.on_database = on_database};
	char *conninfo = pgconf_conninfo(self->d->conf, self->d->run_dir);
	const struct engine_options options = {.conninfo = conninfo,
		.node = self->d->node,
		.advertise_url = self->conf.advertise_url,
		.quota_bytes = self->conf.quota_bytes,
		.max_waiting_bytes = self->conf.max_waiting_bytes};

	self->svc.engine = engine_new(self->d->loop, &options, &ops, self);
	self->svc.store = engine_store(self->svc.engine);
	free(conninfo);
}

static void make_services(struct watchd *self)
{
	struct services *svc = &self->svc;
	const struct watch_options watch_options = {
		.progress_interval_ms = self->conf.progress_interval_ms,
		.max_watchers_per_stream = self->conf.max_watches};

	svc->loop = self->d->loop;
	svc->stats = self->d->stats;
	svc->node = self->d->node;
	svc->conf = &self->conf;
	svc->header.member_id = engine_member_id(self->d->node);
	svc->header.raft_term = ETCD_RAFT_TERM;
	list_init(&svc->streams);
	list_init(&svc->tickets);
	make_engine(self);
	svc->watches = watch_set_new(svc->loop, svc->store, &watch_options, &svc_watch_ops);
	svc->lessor = lessor_new(svc->loop, svc->engine, svc->node);
	set_header(self);
}

static void make_server(struct watchd *self)
{
	static const struct h2_server_ops ops = {
		.on_call = on_call, .on_http = on_http, .on_http_gone = on_http_gone};
	const struct h2_server_options options = {
		.limits = limits_of(&self->conf), .stats = self->d->stats, .first_stat = STAT_H2};

	self->http = http_new(&self->svc);
	self->server = h2_server_new(self->d->loop, &options, &ops, self);
}

static int watchd_init(struct daemon *d)
{
	struct watchd *self = mem_new(&mem_watchd, sizeof(*self));
	self->magic = WATCHD_MAGIC;
	self->d = d;
	d->self = self;
	(void)proc_raise_nofile(); /* what it comes to shows when descriptors run out */
	watchd_conf_get(d->conf, &self->conf);
	list_init(&self->ctl_requests);
	ev_loop_set_busy_poll(d->loop, self->conf.busy_poll_us);
	make_services(self);
	make_server(self);
	self->compactor = compactor_new(&self->svc);
	self->feed = feed_new(d, on_bell, self);
	ev_timer_init(&self->tick, d->loop, "watchd tick", on_tick, self);
	ev_timer_start(&self->tick, 0);
	return 0;
}

static int watchd_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	struct watchd *self = d->self;
	(void)ret_why; /* every value that passes validation can be taken over while running */
	watchd_conf_free(&self->conf);
	watchd_conf_get(next, &self->conf);
	struct h2_limits limits = limits_of(&self->conf);
	h2_server_set_limits(self->server, &limits);
	ev_loop_set_busy_poll(d->loop, self->conf.busy_poll_us);
	return 0;
}

static void on_engine_drained(void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	daemon_drained(self->d);
}

static void on_server_drained(void *arg)
{
	struct watchd *self;
	OBJ_CAST(self, arg, WATCHD_MAGIC);
	engine_drain(self->svc.engine, on_engine_drained, self);
}

/* Changes under way come to their end and are answered; then the node gives up its place. */
static void watchd_drain(struct daemon *d)
{
	struct watchd *self = d->self;
	self->svc.stopping = true;
	grpc_streams_end(&self->svc, ETCD_STOPPED, true);
	h2_server_drain(self->server, DRAIN_MS, on_server_drained, self);
}

static void watchd_fini(struct daemon *d)
{
	struct watchd *self = d->self;
	if (self == NULL)
		return;
	ev_timer_stop(&self->tick);
	h2_server_free(&self->server);
	http_free(&self->http);
	feed_free(&self->feed);
	compactor_free(&self->compactor);
	lessor_free(&self->svc.lessor);
	watch_set_free(&self->svc.watches);
	engine_free(&self->svc.engine);
	grpc_tickets_free(&self->svc);
	watchd_ctl_free(self);
	watchd_conf_free(&self->conf);
	free(self->database_trouble);
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
	.commands = watchd_commands,
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
