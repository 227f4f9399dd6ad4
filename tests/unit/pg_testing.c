/* SPDX-License-Identifier: PostgreSQL */
/* See pg_testing.h. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/list.h"
#include "common/base/mem.h"
#include "tests/unit/pg_testing.h"

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
	(void)fd, (void)what, (void)arg;
}

void pg_testing_turn(struct ev_loop *loop)
{
	struct timeval tv = {.tv_usec = 20000};

	event_base_once(ev_loop_base(loop), -1, EV_TIMEOUT, on_tick, NULL, &tv);
	ev_loop_once(loop, true);
}

void pg_testing_run(struct ev_loop *loop, uint64_t ms)
{
	uint64_t end = ev_now_ms() + ms;

	while (ev_now_ms() < end)
		pg_testing_turn(loop);
}

const char *pg_testing_on(PGconn *pg, const char *sql)
{
	static char value[4096];
	PGresult *res = PQexec(pg, sql);
	ExecStatusType status = PQresultStatus(res);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		fail_msg("%s: %s", sql, PQerrorMessage(pg));
	value[0] = '\0';
	if (PQntuples(res) > 0 && PQnfields(res) > 0)
		snprintf(value, sizeof value, "%s", PQgetvalue(res, 0, 0));
	PQclear(res);
	return value;
}

const char *pg_testing_sql(const char *sql)
{
	PGconn *pg = PQconnectdb("");
	const char *value;

	if (PQstatus(pg) != CONNECTION_OK)
		fail_msg("cannot connect: %s", PQerrorMessage(pg));
	value = pg_testing_on(pg, sql);
	PQfinish(pg);
	return value;
}

static void print_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_error("%lld of %s left\n", (long long)count, name);
}

int pg_testing_no_leaks(void **state)
{
	(void)state;
	return mem_report(print_leak, NULL) == 0 ? 0 : -1;
}

struct proxy {
	struct ev_loop *loop;
	char dir[40], path[100], conninfo[128];
	int listener;
	struct ev_io io;
	struct list pipes;
	bool frozen;
	bool armed;
	size_t after_bytes;
	uint32_t quiet_ms;
	size_t n_cuts;
};

/* One connection: client and server descriptors. */
struct conn {
	struct list link;
	struct proxy *proxy;
	int client, server;
	struct ev_io from_client, from_server;
	struct ev_timer quiet;
	bool swallowing;
	struct ev_deferred destroy;
};

static void conn_destroy(void *arg)
{
	free(arg);
}

static void conn_close(struct conn *c)
{
	if (c->client < 0)
		return;
	ev_io_stop(&c->from_client);
	ev_io_stop(&c->from_server);
	ev_timer_stop(&c->quiet);
	close(c->client);
	close(c->server);
	c->client = -1;
	list_remove(&c->link);
	ev_defer(c->proxy->loop, &c->destroy, conn_destroy, c);
}

static void on_quiet(void *arg)
{
	struct conn *c = arg;

	c->proxy->n_cuts++;
	conn_close(c);
}

/* Blocking writes: both ends are read by this machine and the other side always drains. */
static bool pass(int to, const char *data, size_t n)
{
	while (n > 0) {
		ssize_t w = send(to, data, n, MSG_NOSIGNAL);

		if (w < 0)
			return false;
		data += w;
		n -= (size_t)w;
	}
	return true;
}

static void on_client(int fd, short what, void *arg)
{
	struct conn *c = arg;
	struct proxy *p = c->proxy;
	char bytes[16384];
	ssize_t n;

	(void)what;
	n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0 || !pass(c->server, bytes, (size_t)n)) {
		conn_close(c);
		return;
	}
	if (!p->armed)
		return;
	if (p->after_bytes > (size_t)n) {
		p->after_bytes -= (size_t)n;
		return;
	}
	p->armed = false;
	c->swallowing = true;
	ev_timer_start(&c->quiet, p->quiet_ms);
}

static void on_server(int fd, short what, void *arg)
{
	struct conn *c = arg;
	char bytes[16384];
	ssize_t n;

	(void)what;
	n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		conn_close(c);
		return;
	}
	if (c->swallowing)
		ev_timer_start(&c->quiet, c->proxy->quiet_ms);
	else if (!pass(c->client, bytes, (size_t)n))
		conn_close(c);
}

static void watch(struct conn *c)
{
	short what = c->proxy->frozen ? 0 : EV_READ;

	ev_io_set(&c->from_client, c->client, what);
	ev_io_set(&c->from_server, c->server, what);
}

static void on_accept(int fd, short what, void *arg)
{
	struct proxy *p = arg;
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct conn *c;

	(void)what;
	c = xcalloc(1, sizeof *c);
	c->proxy = p;
	c->client = accept(fd, NULL, NULL);
	c->server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(un.sun_path, sizeof un.sun_path, "%s/.s.PGSQL.%s", getenv("PGHOST"),
		getenv("PGPORT"));
	list_push_back(&p->pipes, &c->link);
	ev_io_init(&c->from_client, p->loop, "proxy client", on_client, c);
	ev_io_init(&c->from_server, p->loop, "proxy server", on_server, c);
	ev_timer_init(&c->quiet, p->loop, "proxy quiet", on_quiet, c);
	if (connect(c->server, (struct sockaddr *)&un, sizeof un) != 0)
		conn_close(c);
	else
		watch(c);
}

struct proxy *proxy_new(struct ev_loop *loop)
{
	struct proxy *p = xcalloc(1, sizeof *p);
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	p->loop = loop;
	list_init(&p->pipes);
	strcpy(p->dir, "/tmp/howdah-proxy.XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	snprintf(p->path, sizeof p->path, "%s/.s.PGSQL.5432", p->dir);
	snprintf(p->conninfo, sizeof p->conninfo, "host=%s port=5432", p->dir);
	snprintf(un.sun_path, sizeof un.sun_path, "%s", p->path);
	p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(p->listener, (struct sockaddr *)&un, sizeof un), 0);
	assert_int_equal(listen(p->listener, 16), 0);
	ev_io_init(&p->io, loop, "proxy", on_accept, p);
	ev_io_set(&p->io, p->listener, EV_READ);
	return p;
}

void proxy_cut(struct proxy *p)
{
	list_for_each_safe (it, &p->pipes)
		conn_close(list_entry(it, struct conn, link));
	p->n_cuts++;
}

void proxy_free(struct proxy **pp)
{
	struct proxy *p = *pp;

	proxy_cut(p);
	ev_io_stop(&p->io);
	close(p->listener);
	unlink(p->path);
	rmdir(p->dir);
	/* The connections' deferred end still names the loop, not us. */
	free(p);
	*pp = NULL;
}

const char *proxy_conninfo(const struct proxy *p)
{
	return p->conninfo;
}

void proxy_freeze(struct proxy *p, bool frozen)
{
	p->frozen = frozen;
	list_for_each (it, &p->pipes)
		watch(list_entry(it, struct conn, link));
}

void proxy_cut_answer(struct proxy *p, size_t after_bytes, uint32_t quiet_ms)
{
	p->armed = true;
	p->after_bytes = after_bytes;
	p->quiet_ms = quiet_ms;
}

size_t proxy_cuts(const struct proxy *p)
{
	return p->n_cuts;
}
