/* SPDX-License-Identifier: PostgreSQL */
/*
 * brokerd, put together: configuration, writer, broker core, table changes, listeners.
 *
 * Order of birth: core, writer, changes, listeners; of death: listeners, changes, writer, core. The
 * daemon is ready as soon as it listens: clients may come while PostgreSQL is not there yet, and
 * their QoS 1 publishes wait.
 *
 * On crash: clients connect again and send again what was not acknowledged; table changes come
 * again from the slot.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "brokerd/brokerd_int.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/pg/pgconf.h"
#include "common/ring/ring_conf.h"

#define TICK_MS 1000
#define WRITER_BYTES (64u << 20)
#define KIND_MESSAGE 0
#define KIND_STATE 1

MEM_TYPE(mem_brokerd, "brokerd");

static void on_writer_room(void *arg)
{
	struct brokerd *self;
	OBJ_CAST(self, arg, BROKERD_MAGIC);
	broker_writer_room(self->b);
}

static void on_writer_trouble(int err, const char *why, void *arg)
{
	struct brokerd *self;
	OBJ_CAST(self, arg, BROKERD_MAGIC);
	bool had = self->writer_trouble != NULL;
	free(self->writer_trouble);
	self->writer_trouble = NULL;
	if (err == 0) {
		if (had)
			log_info("mqtt.writer", "writing to howdah_mqtt.message again");
		return;
	}
	why = why != NULL ? why : err_str(err);
	self->writer_trouble = xasprintf("%s%s", why,
		strstr(why, "(SQLSTATE 42P01)") != NULL || strstr(why, "(SQLSTATE 3F000)") != NULL
			? "; install the schema: pgctl db init"
			: "");
	log_limited(LOG_LEVEL_WARNING, "mqtt.writer",
		"cannot write to howdah_mqtt.message: %s; QoS 1 publishes wait for their PUBACK, "
		"retrying",
		self->writer_trouble);
}

static struct batch *writer_new(struct brokerd *self, const char *conninfo)
{
	static const struct batch_ops ops = {
		.on_room = on_writer_room, .on_trouble = on_writer_trouble};
	static struct batch_kind kinds[2]; /* lives as long as the process */
	const struct daemon *d = self->d;
	kinds[KIND_MESSAGE] = msglog_kind;
	kinds[KIND_STATE] = changes_state_kind;
	const struct batch_options options = {
		.conninfo = conninfo,
		.application_name = "howdah brokerd writer",
		.node = d->node,
		.role = "brokerd",
		.kinds = kinds,
		.n_kinds = ARRAY_LEN(kinds),
		/* Room for the longest packet beside the others. */
		.max_waiting_bytes = WRITER_BYTES + 2 * (size_t)self->b->conf.max_packet_bytes,
	};
	return batch_new(d->loop, &options, &ops, self);
}

static void on_tick(void *arg)
{
	struct brokerd *self;
	OBJ_CAST(self, arg, BROKERD_MAGIC);
	broker_update_stats(self->b);
	changes_update_stats(self->changes);
	const char *changes = changes_trouble(self->changes);
	if (self->writer_trouble != NULL)
		daemon_status(self->d, "publishes wait: %s", self->writer_trouble);
	else if (changes[0] != '\0')
		daemon_status(self->d, "%s", changes);
	else if (broker_congested(self->b))
		daemon_status(self->d, "%zu clients; sources pause for %zu slow subscribers",
			self->b->n_sessions, self->b->n_congested);
	else
		daemon_status(self->d, "%zu client%s%s%s", self->b->n_sessions,
			self->b->n_sessions == 1 ? "" : "s",
			changes_gap(self->changes)[0] != '\0' ? "; " : "",
			changes_gap(self->changes));
	ev_timer_start(&self->tick, TICK_MS);
}

static void close_listeners(struct brokerd *self)
{
	for (size_t i = 0; i < ARRAY_LEN(self->listeners); i++)
		listener_free(&self->listeners[i]);
}

static int brokerd_init(struct daemon *d)
{
	struct broker_conf conf;
	struct brokerd *self = mem_new(&mem_brokerd, sizeof(*self));
	self->magic = BROKERD_MAGIC;
	self->d = d;
	d->self = self;
	(void)proc_raise_nofile(); /* what it comes to shows when descriptors run out */
	brokerd_conf_get(d->conf, &conf);
	char *conninfo = pgconf_conninfo(d->conf, d->run_dir);
	self->b = broker_new(d->loop, d->stats, &conf, d->node);
	self->writer = writer_new(self, conninfo);
	broker_set_writer(self->b, self->writer, KIND_MESSAGE);
	self->changes = changes_new(d, self->b, self->writer, KIND_STATE, conninfo);
	self->purge = msglog_purge_new(d->loop, conninfo, d->stats, STAT_LOG_REMOVED);
	free(conninfo);
	for (size_t i = 0; i < d->n_listeners; i++) {
		self->listeners[i] = listener_new(d->loop, d->listeners[i].fd, d->listeners[i].url,
			&broker_listener_ops, self->b);
		d->listeners[i].fd = -1;
		log_info("mqtt.listen", "listening on %s", d->listeners[i].url);
	}
	if (!conf.allow_anonymous)
		log_warning("mqtt.anonymous",
			"no client may connect: a listener is not on loopback; "
			"set brokerd.allow_anonymous = true to let everybody in");
	ev_timer_init(&self->tick, d->loop, "brokerd tick", on_tick, self);
	ev_timer_start(&self->tick, 0);
	daemon_ready(d);
	return 0;
}

static int brokerd_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	struct brokerd *self = d->self;
	(void)ret_why; /* every value that passes validation can be taken over while running */
	brokerd_conf_get(next, &self->b->conf);
	return 0;
}

static void on_broker_drained(void *arg)
{
	daemon_drained(arg);
}

static void brokerd_drain(struct daemon *d)
{
	struct brokerd *self = d->self;
	close_listeners(self);
	changes_quiesce(self->changes); /* before a session ends */
	broker_drain(self->b, on_broker_drained, d);
}

static void brokerd_fini(struct daemon *d)
{
	struct brokerd *self = d->self;
	if (self == NULL)
		return;
	ev_timer_stop(&self->tick);
	close_listeners(self);
	changes_free(&self->changes);
	msglog_purge_free(&self->purge);
	batch_free(&self->writer);
	broker_set_writer(self->b, NULL, 0);
	broker_free(&self->b);
	free(self->writer_trouble);
	self->magic = 0;
	mem_free(&mem_brokerd, self);
	d->self = NULL;
}

static void brokerd_on_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	struct brokerd *self = d->self;
	if (role == ROLE_WALSTREAMD)
		changes_peer(self->changes, up, generation);
}

static int brokerd_on_relay(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	struct brokerd *self = d->self;
	if (from_role != ROLE_WALSTREAMD)
		return -ERR_MALFORMED;
	return changes_relay(self->changes, kind, msg);
}

const struct conf_row *const brokerd_conf_schemas[] = {
	brokerd_conf_rows, pgconf_rows, ring_conf_rows, NULL};

const struct daemon_info brokerd_info = {
	.name = "brokerd",
	.role = ROLE_BROKERD,
	.schemas = brokerd_conf_schemas,
	.commands = brokerd_commands,
	.stats_rows = brokerd_stats_rows,
	.n_stats_rows = STAT_COUNT,
	.check = brokerd_conf_check,
	.init = brokerd_init,
	.reload = brokerd_reload,
	.drain = brokerd_drain,
	.fini = brokerd_fini,
	.on_peer = brokerd_on_peer,
	.on_relay = brokerd_on_relay,
};
