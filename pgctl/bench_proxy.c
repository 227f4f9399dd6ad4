/* SPDX-License-Identifier: PostgreSQL */
/*
 * The delaying proxy: see bench_proxy.h. A link is two sockets; what is read from one becomes a
 * piece with the time at which it is written to the other.
 *
 * Context: a child of the bench process. Whatever goes wrong with a link closes that link.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/list.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "pgctl/bench_proxy.h"

#define LINKS_MAX 16
#define READ_BYTES 65536

struct piece {
	struct list link;
	uint64_t due_us;
	size_t at_bytes, len_bytes; /* written so far, of so many; 0: the end of the stream */
	char data[];
};

/* One direction of a connection. */
struct way {
	int from, to;
	bool ended;         /* from has nothing more */
	struct list pieces; /* in the order of their times */
};

struct link {
	bool used;
	struct way ways[2];
};

struct proxy {
	int listen_fd, server_port;
	uint64_t delay_us;
	struct link links[LINKS_MAX];
};

static void link_close(struct link *l)
{
	for (int i = 0; i < 2; i++) {
		while (!list_empty(&l->ways[i].pieces)) {
			struct piece *p = list_first(&l->ways[i].pieces, struct piece, link);
			list_remove(&p->link);
			free(p);
		}
	}
	close(l->ways[0].from);
	close(l->ways[1].from);
	l->used = false;
}

static int connect_to(int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool make_quick(int fd)
{
	int on = 1;
	return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0 &&
	       proc_set_nonblock(fd) == 0;
}

static void accept_one(struct proxy *x)
{
	int client = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	int server = client >= 0 ? connect_to(x->server_port) : -1;
	size_t i = 0;
	while (i < LINKS_MAX && x->links[i].used)
		i++;
	if (server < 0 || i == LINKS_MAX || !make_quick(client) || !make_quick(server)) {
		if (client >= 0)
			close(client);
		if (server >= 0)
			close(server);
		return;
	}
	struct link *l = &x->links[i];
	*l = (struct link){.used = true,
		.ways = {{.from = client, .to = server}, {.from = server, .to = client}}};
	list_init(&l->ways[0].pieces);
	list_init(&l->ways[1].pieces);
}

/* One read. false: the link is broken. */
static bool way_read(struct proxy *x, struct way *w)
{
	struct piece *p = xmalloc(sizeof(*p) + READ_BYTES);
	ssize_t n = read(w->from, p->data, READ_BYTES);
	if (n < 0) {
		free(p);
		return errno == EAGAIN || errno == EINTR;
	}
	w->ended = n == 0;
	p = xrealloc(p, sizeof(*p) + (size_t)n);
	p->due_us = bench_now_us() + x->delay_us;
	p->at_bytes = 0;
	p->len_bytes = (size_t)n;
	list_push_back(&w->pieces, &p->link);
	return true;
}

/* What is due. false: the link is broken, or at its end. */
static bool way_write(struct way *w, uint64_t now_us)
{
	while (!list_empty(&w->pieces)) {
		struct piece *p = list_first(&w->pieces, struct piece, link);
		if (p->due_us > now_us)
			return true;
		if (p->len_bytes == 0)
			return false;
		ssize_t n = send(
			w->to, p->data + p->at_bytes, p->len_bytes - p->at_bytes, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		p->at_bytes += (size_t)n;
		if (p->at_bytes < p->len_bytes)
			return true;
		list_remove(&p->link);
		free(p);
	}
	return true;
}

/* What to wait for on behalf of w; *next_us: no later than this. */
static void way_wants(const struct way *w, struct pollfd *from, struct pollfd *to, uint64_t now,
	uint64_t *next_us)
{
	if (!w->ended)
		from->events |= POLLIN;
	if (list_empty(&w->pieces))
		return;
	const struct piece *p = list_first(&w->pieces, struct piece, link);
	if (p->due_us <= now)
		to->events |= POLLOUT; /* it was due, and the socket was full */
	else if (p->due_us < *next_us)
		*next_us = p->due_us;
}

static void serve_link(struct proxy *x, struct link *l, const struct pollfd *fds)
{
	bool ok = true;
	for (int i = 0; i < 2 && ok; i++) {
		if ((fds[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0 && !l->ways[i].ended)
			ok = way_read(x, &l->ways[i]);
	}
	uint64_t now = bench_now_us();
	for (int i = 0; i < 2 && ok; i++)
		ok = way_write(&l->ways[i], now);
	if (!ok)
		link_close(l);
}

static _Noreturn void serve(struct proxy *x)
{
	for (;;) {
		struct pollfd fds[1 + 2 * LINKS_MAX];
		uint64_t now = bench_now_us(), next = now + 1000000;
		fds[0] = (struct pollfd){.fd = x->listen_fd, .events = POLLIN};
		for (size_t i = 0; i < LINKS_MAX; i++) {
			struct pollfd *f = &fds[1 + 2 * i];
			struct link *l = &x->links[i];
			f[0] = (struct pollfd){.fd = l->used ? l->ways[0].from : -1};
			f[1] = (struct pollfd){.fd = l->used ? l->ways[1].from : -1};
			if (!l->used)
				continue;
			way_wants(&l->ways[0], &f[0], &f[1], now, &next);
			way_wants(&l->ways[1], &f[1], &f[0], now, &next);
		}
		struct timespec wait = {.tv_sec = (time_t)((next - now) / 1000000),
			.tv_nsec = (long)((next - now) % 1000000) * 1000};
		if (ppoll(fds, 1 + 2 * LINKS_MAX, &wait, NULL) < 0 && errno != EINTR)
			_exit(1);
		for (size_t i = 0; i < LINKS_MAX; i++) {
			if (x->links[i].used)
				serve_link(x, &x->links[i], &fds[1 + 2 * i]);
		}
		if (fds[0].revents != 0)
			accept_one(x);
	}
}

static int listen_on_loopback(int *ret_port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || listen(fd, LINKS_MAX) != 0 ||
		getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
		close(fd);
		return -1;
	}
	*ret_port = ntohs(a.sin_port);
	return fd;
}

int bench_proxy_start(struct bench *b, unsigned delay_ms, int *ret_port, pid_t *ret_pid)
{
	struct proxy *x = xcalloc(1, sizeof(*x));
	x->delay_us = (uint64_t)delay_ms * 1000;
	x->server_port = b->port;
	x->listen_fd = listen_on_loopback(ret_port);
	fflush(b->p->err);
	pid_t pid = x->listen_fd >= 0 ? fork() : -1;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(x);
	}
	int status = pid > 0 ? PGCTL_OK
			     : pgctl_fail(b->p, PGCTL_FAILED, "end other processes",
				       "cannot start the proxy: %s", strerror(errno));
	if (x->listen_fd >= 0)
		close(x->listen_fd);
	free(x);
	*ret_pid = pid;
	return status;
}
