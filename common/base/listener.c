/* SPDX-License-Identifier: PostgreSQL */
/* Accepting connections, see listener.h. */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/listener.h"
#include "common/base/mem.h"

#define LISTENER_MAGIC 0x6d6c7374u

struct listener {
	uint32_t magic;
	const struct listener_ops *ops; /* borrowed */
	void *arg;                      /* borrowed */
	char *url;                      /* owned */
	int fd;                         /* owned */
	int spare_fd;                   /* owned; -1: given up at present */
	bool short_of;                  /* until a connection was accepted after a rest */
	struct ev_io io;
	struct ev_timer rest;
};

MEM_TYPE(mem_listener, "listener");

static int spare_open(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void rest(struct listener *l)
{
	ev_io_stop(&l->io);
	ev_timer_start(&l->rest, LISTENER_REST_MS);
}

/* EMFILE, ENFILE, ENOBUFS, ENOMEM: the environment is short of something. */
static void on_short(struct listener *l, int err)
{
	bool first = !l->short_of, closed = false;
	l->short_of = true;
	if (l->spare_fd >= 0) {
		(void)close(l->spare_fd); /* that is what it is for */
		int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		closed = fd >= 0;
		if (closed)
			(void)close(fd);
	}
	l->spare_fd = spare_open();
	rest(l);
	l->ops->on_short(l->url, err, first, closed, l->arg);
}

static void set_options(int fd)
{
	int on = 1;
	/* Neither is needed for being right: a failure costs latency, or a dead peer's memory. */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* False: nothing more to accept now. */
static bool accept_one(struct listener *l)
{
	int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		int err = errno;
		if (err == EMFILE || err == ENFILE || err == ENOBUFS || err == ENOMEM)
			on_short(l, -err);
		/* ECONNABORTED and the like are about one connection that is gone again. */
		return err == EINTR || err == ECONNABORTED;
	}
	if (!l->ops->may_accept(l->arg)) {
		(void)close(fd); /* refused, there is nothing to lose */
		l->ops->on_maximum(l->url, l->arg);
		return true;
	}
	set_options(fd);
	l->short_of = false;
	l->ops->on_accepted(fd, l->arg);
	return true;
}

static void on_connection(int fd, short what, void *arg)
{
	struct listener *l;
	OBJ_CAST(l, arg, LISTENER_MAGIC);
	(void)fd;
	(void)what;
	for (int i = 0; i < LISTENER_ACCEPT_BUDGET; i++) {
		if (!accept_one(l))
			break;
	}
}

static void on_rested(void *arg)
{
	struct listener *l;
	OBJ_CAST(l, arg, LISTENER_MAGIC);
	if (l->spare_fd < 0)
		l->spare_fd = spare_open();
	ev_io_set(&l->io, l->fd, EV_READ);
}

struct listener *listener_new(
	struct ev_loop *loop, int fd, const char *url, const struct listener_ops *ops, void *arg)
{
	struct listener *l = mem_new(&mem_listener, sizeof(*l));
	l->magic = LISTENER_MAGIC;
	l->ops = ops;
	l->arg = arg;
	l->url = xstrdup(url);
	l->fd = fd;
	l->spare_fd = spare_open();
	ev_io_init(&l->io, loop, ops->name, on_connection, l);
	ev_timer_init(&l->rest, loop, ops->name, on_rested, l);
	ev_io_set(&l->io, fd, EV_READ);
	return l;
}

void listener_free(struct listener **l)
{
	struct listener *gone = *l;
	*l = NULL;
	if (gone == NULL)
		return;
	OBJ_CHECK(gone, LISTENER_MAGIC);
	ev_io_stop(&gone->io);
	ev_timer_stop(&gone->rest);
	(void)close(gone->fd); /* the supervisor keeps its own: clients wait in the backlog */
	if (gone->spare_fd >= 0)
		(void)close(gone->spare_fd);
	free(gone->url);
	mem_free(&mem_listener, gone);
}

const char *listener_peer(int fd, char *out, size_t size)
{
	struct sockaddr_storage a = {0};
	socklen_t len = sizeof(a);
	char ip[INET6_ADDRSTRLEN] = "";
	if (fd < 0 || getpeername(fd, (struct sockaddr *)&a, &len) != 0) {
		snprintf(out, size, "?");
	} else if (a.ss_family == AF_INET) {
		const struct sockaddr_in *v4 = (const struct sockaddr_in *)&a;
		inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof(ip));
		snprintf(out, size, "%s:%u", ip, ntohs(v4->sin_port));
	} else if (a.ss_family == AF_INET6) {
		const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a;
		inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof(ip));
		snprintf(out, size, "[%s]:%u", ip, ntohs(v6->sin6_port));
	} else {
		snprintf(out, size, "local");
	}
	return out;
}
