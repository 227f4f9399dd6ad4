/* SPDX-License-Identifier: PostgreSQL */
/*
 * The server: limits, listeners, who has something to send, the sweep, drain. See h2_int.h.
 *
 * Timeouts are looked at once a second for all connections: none of them needs to be exact, and a
 * timer for each would cost more than it is worth. (A call's own deadline has a timer.)
 *
 * On crash: clients see closed connections and connect again; nothing here outlives them.
 */
#include "config.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/h2_int.h"

struct listening {
	struct list in_server;
	struct listener *listener;
};

MEM_TYPE(mem_server, "h2 server");
MEM_TYPE(mem_listening, "h2 listener");

/* --- accepting --- */

static bool may_accept(void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	return srv->n_conns < srv->limits.max_connections;
}

static void on_accepted(int fd, void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	/* Finds dead peers within two minutes. A failure costs their memory, nothing else. */
	static const struct {
		int option, value;
	} options[] = {{TCP_KEEPIDLE, 60}, {TCP_KEEPINTVL, 15}, {TCP_KEEPCNT, 4}};
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		(void)setsockopt(fd, IPPROTO_TCP, options[i].option, &options[i].value,
			sizeof(options[i].value));
	h2_server_add(srv, fd);
}

static void on_maximum(const char *url, void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	log_limited(LOG_LEVEL_WARNING, "watch.accept",
		"listener %s: connection closed: %zu are open; raise watchd.max_connections", url,
		srv->n_conns);
	h2_count(srv, H2_STAT_OVER_MAXIMUM, 1);
}

static void on_short(const char *url, int err, bool first, bool closed, void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	if (first)
		log_limited(LOG_LEVEL_WARNING, "watch.accept",
			"listener %s: cannot accept: %s; raise the limit on open files "
			"(LimitNOFILE=), resting for %d ms",
			url, err_str(err), LISTENER_REST_MS);
	if (closed)
		h2_count(srv, H2_STAT_NO_DESCRIPTOR, 1);
}

void h2_server_listen(struct h2_server *srv, int fd, const char *url)
{
	static const struct listener_ops ops = {
		.name = "watch listener",
		.may_accept = may_accept,
		.on_accepted = on_accepted,
		.on_maximum = on_maximum,
		.on_short = on_short,
	};
	OBJ_CHECK(srv, H2_SERVER_MAGIC);
	struct listening *l = mem_new(&mem_listening, sizeof(*l));
	l->listener = listener_new(srv->loop, fd, url, &ops, srv);
	list_push_back(&srv->listenings, &l->in_server);
}

static void close_listeners(struct h2_server *srv)
{
	while (!list_empty(&srv->listenings)) {
		struct listening *l = list_first(&srv->listenings, struct listening, in_server);
		list_remove(&l->in_server);
		listener_free(&l->listener);
		mem_free(&mem_listening, l);
	}
}

/* --- sending --- */

static void run_flush(void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	struct list now = LIST_INIT(now);
	list_splice_back(&now, &srv->dirty);
	srv->now_ms = ev_now_ms();
	while (!list_empty(&now)) {
		struct h2_conn *c = list_first(&now, struct h2_conn, in_dirty);
		list_remove(&c->in_dirty);
		h2_conn_flush(c);
	}
}

void h2_flush_soon(struct h2_conn *c)
{
	if (c->state != CONN_GONE && list_empty(&c->in_dirty)) {
		list_push_back(&c->srv->dirty, &c->in_dirty);
		ev_defer(c->srv->loop, &c->srv->flush, run_flush, c->srv);
	}
}

/* --- time --- */

static void on_sweep(void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	uint64_t now = ev_now_ms();
	list_for_each_safe (it, &srv->conns)
		h2_conn_sweep(list_entry(it, struct h2_conn, in_all), now);
	ev_timer_start(&srv->sweep, H2_SWEEP_MS);
}

/* --- life --- */

struct h2_server *h2_server_new(struct ev_loop *loop, const struct h2_server_options *options,
	const struct h2_server_ops *ops, void *arg)
{
	struct h2_server *srv = mem_new(&mem_server, sizeof(*srv));
	srv->magic = H2_SERVER_MAGIC;
	srv->loop = loop;
	srv->stats = options->stats;
	srv->first_stat = options->first_stat;
	srv->ops = ops;
	srv->arg = arg;
	srv->callbacks = h2_callbacks_new();
	srv->option = h2_option_new();
	list_init(&srv->listenings);
	list_init(&srv->conns);
	list_init(&srv->dirty);
	h2_server_set_limits(srv, &options->limits);
	ev_timer_init(&srv->sweep, loop, "watch connections' sweep", on_sweep, srv);
	ev_timer_start(&srv->sweep, H2_SWEEP_MS);
	return srv;
}

void h2_server_set_limits(struct h2_server *srv, const struct h2_limits *limits)
{
	OBJ_CHECK(srv, H2_SERVER_MAGIC);
	srv->limits = *limits;
	if (srv->limits.max_unfinished_bytes < limits->max_message_bytes)
		srv->limits.max_unfinished_bytes = limits->max_message_bytes;
}

void h2_server_update_stats(struct h2_server *srv)
{
	OBJ_CHECK(srv, H2_SERVER_MAGIC);
	stats_set(srv->stats, srv->first_stat + H2_STAT_CONNECTIONS, srv->n_conns);
	stats_set(srv->stats, srv->first_stat + H2_STAT_STREAMS, srv->n_streams);
}

static void end_all(struct h2_server *srv)
{
	while (!list_empty(&srv->conns))
		h2_conn_gone(list_first(&srv->conns, struct h2_conn, in_all));
}

void h2_server_free(struct h2_server **srv)
{
	struct h2_server *gone = *srv;
	*srv = NULL;
	if (gone == NULL)
		return;
	OBJ_CHECK(gone, H2_SERVER_MAGIC);
	gone->drain.on = gone->drain.over = true; /* nobody is told any more */
	close_listeners(gone);
	end_all(gone);
	ASSERT(gone->n_streams == 0 && gone->queued_bytes == 0 && gone->unfinished_bytes == 0);
	ev_timer_stop(&gone->sweep);
	ev_timer_stop(&gone->drain.late);
	ev_defer_cancel(gone->loop, &gone->flush);
	ev_defer_cancel(gone->loop, &gone->drain.end);
	nghttp2_session_callbacks_del(gone->callbacks);
	nghttp2_option_del(gone->option);
	gone->magic = 0;
	mem_free(&mem_server, gone);
}

/* --- stop --- */

static void drain_end(void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	srv->drain.done(srv->drain.arg);
}

static void drain_look(struct h2_server *srv)
{
	if (!srv->drain.on || srv->drain.over || srv->n_conns > 0)
		return;
	srv->drain.over = true;
	ev_timer_stop(&srv->drain.late);
	ev_defer(srv->loop, &srv->drain.end, drain_end, srv);
}

void h2_server_conn_gone(struct h2_server *srv)
{
	ASSERT(srv->n_conns > 0);
	srv->n_conns--;
	drain_look(srv);
}

static void on_drain_late(void *arg)
{
	struct h2_server *srv;
	OBJ_CAST(srv, arg, H2_SERVER_MAGIC);
	end_all(srv);
}

void h2_server_drain(struct h2_server *srv, uint32_t within_ms, void (*done)(void *arg), void *arg)
{
	OBJ_CHECK(srv, H2_SERVER_MAGIC);
	ASSERT(!srv->drain.on);
	srv->drain.on = true;
	srv->drain.done = done;
	srv->drain.arg = arg;
	close_listeners(srv);
	list_for_each_safe (it, &srv->conns)
		h2_conn_shut(list_entry(it, struct h2_conn, in_all));
	ev_timer_init(&srv->drain.late, srv->loop, "watch drain", on_drain_late, srv);
	ev_timer_start(&srv->drain.late, within_ms);
	drain_look(srv);
}
