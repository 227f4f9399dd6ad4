/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the transport itself costs: unary calls to a server that echoes, over TCP on loopback; one
 * JSON object on stdout.
 *
 *   bench_h2 CONNECTIONS OUTSTANDING SECONDS BYTES     OUTSTANDING calls at a time in all
 *   bench_h2 idle CONNECTIONS CALLS                    memory of idle connections with CALLS open
 *
 * The server is a child of its own, on the first processor; the client, on the second, writes
 * frames that were made beforehand, so that it costs as little as possible. per_core is calls per
 * second of processor time of the server.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "watchd/h2_int.h"

_Noreturn static void die(const char *what)
{
	fprintf(stderr, "bench_h2: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void run_on(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)sched_setaffinity(0, sizeof(set), &set); /* with one processor they share it */
}

/* --- the server --- */

static void echo(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	h2_stream_reply(s, data, len);
}

static void ignore(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)s;
	(void)data;
	(void)len;
	(void)user;
}

static void on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
{
	static const struct h2_call_ops unary = {.on_message = echo, .unary = true};
	static const struct h2_call_ops open = {.on_message = ignore};
	(void)arg;
	h2_stream_accept(s, strcmp(rq->path, "/etcdserverpb.KV/Put") == 0 ? &unary : &open, NULL);
}

_Noreturn static void serve(int fd)
{
	static const struct stats_row rows[H2_STAT_COUNT] = {
#define X(id, name, kind, unit, level, help) [id] = {"watch_" name, kind, unit, level, help},
		H2_COUNTERS(X)
#undef X
	};
	static const struct h2_server_ops ops = {.on_call = on_call};
	run_on(0);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* when the client gives up */
	log_init("bench", LOG_LEVEL_WARNING);
	struct ev_loop *loop = ev_loop_new();
	struct h2_server_options o = {
		.limits = H2_LIMITS_DEFAULT, .stats = stats_new(NULL, rows, H2_STAT_COUNT)};
	struct h2_server *srv = h2_server_new(loop, &o, &ops, NULL);
	h2_server_listen(srv, fd, "bench");
	ev_loop_run(loop);
	exit(0);
}

/* --- the client --- */

struct client {
	int fd;
	uint32_t next_id;
	struct buf out;
	uint8_t head[9];
	size_t head_len, body_left; /* of the frame that is being read */
	uint32_t unacked;           /* received since the last WINDOW_UPDATE */
};

static struct {
	size_t bytes;
	uint64_t done, in_flight;
	uint64_t *started; /* by stream id, modulo its size */
	uint64_t us[1000000];
	size_t n_us;
} all;

#define STARTED 65536

static void put_frame_head(struct buf *b, size_t len, uint8_t type, uint8_t flags, uint32_t id)
{
	buf_put_u8(b, (uint8_t)(len >> 16));
	buf_put_be16(b, (uint16_t)len);
	buf_put_u8(b, type);
	buf_put_u8(b, flags);
	buf_put_be32(b, id);
}

/* A literal with incremental indexing: name is an index of the static table. */
static void put_literal(struct buf *b, uint8_t index, const char *value)
{
	buf_put_u8(b, 0x40 | index);
	buf_put_u8(b, (uint8_t)strlen(value));
	buf_put_text(b, value);
}

static void put_headers(struct client *c, const char *path)
{
	/* From the second call on everything is in the table: te, content-type, authority, path. */
	static const uint8_t known[] = {0x83, 0x86, 0xc1, 0xc0, 0xbf, 0xbe};
	struct buf block;
	buf_init(&block, 0);
	if (c->next_id == 1) {
		buf_put(&block, known, 2);
		put_literal(&block, 4, path);
		put_literal(&block, 1, "127.0.0.1");
		put_literal(&block, 31, "application/grpc");
		put_literal(&block, 0, "te");
		buf_put_u8(&block, 8);
		buf_put_text(&block, "trailers");
	} else {
		buf_put(&block, known, sizeof(known));
	}
	put_frame_head(
		&c->out, block.len_bytes, NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, c->next_id);
	buf_put(&c->out, block.data, block.len_bytes);
	buf_free(&block);
}

static void put_call(struct client *c)
{
	static uint8_t payload[65536];
	put_headers(c, "/etcdserverpb.KV/Put");
	put_frame_head(&c->out, all.bytes + 5, NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, c->next_id);
	buf_put_u8(&c->out, 0);
	buf_put_be32(&c->out, (uint32_t)all.bytes);
	buf_put(&c->out, payload, all.bytes);
	all.started[c->next_id % STARTED] = ev_now_us();
	c->next_id += 2;
	all.in_flight++;
}

static void put_window(struct client *c, uint32_t n)
{
	put_frame_head(&c->out, 4, NGHTTP2_WINDOW_UPDATE, 0, 0);
	buf_put_be32(&c->out, n);
}

static void send_out(struct client *c)
{
	while (c->out.len_bytes > 0) {
		ssize_t n = send(c->fd, c->out.data, c->out.len_bytes, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			die("send");
		if (n > 0)
			buf_consume(&c->out, (size_t)n);
	}
}

static void connect_to(struct client *c, const struct sockaddr_in *at)
{
	int on = 1;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)at, sizeof(*at)) != 0)
		die("connect");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	buf_init(&c->out, 0);
	c->next_id = 1;
	buf_put_text(&c->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
	put_frame_head(&c->out, 0, NGHTTP2_SETTINGS, 0, 0);
	put_frame_head(&c->out, 0, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0);
	put_window(c, 1u << 30);
}

/* A call is over. */
static void on_done(uint32_t id)
{
	uint64_t us = ev_now_us() - all.started[id % STARTED];
	all.us[all.n_us++ % (sizeof(all.us) / sizeof(all.us[0]))] = us;
	all.done++;
	all.in_flight--;
}

static unsigned take(struct client *c, const uint8_t *p, size_t n)
{
	unsigned ended = 0;
	while (n > 0) {
		if (c->body_left > 0) {
			size_t part = n < c->body_left ? n : c->body_left;
			c->body_left -= part;
			p += part;
			n -= part;
			continue;
		}
		c->head[c->head_len++] = *p++;
		n--;
		if (c->head_len < 9)
			continue;
		c->head_len = 0;
		c->body_left = (size_t)c->head[0] << 16 | (size_t)c->head[1] << 8 | c->head[2];
		if (c->head[3] == NGHTTP2_DATA)
			c->unacked += (uint32_t)c->body_left;
		if (c->head[3] == NGHTTP2_GOAWAY || c->head[3] == NGHTTP2_RST_STREAM)
			die("the server refuses");
		if (c->head[3] <= NGHTTP2_HEADERS && (c->head[4] & NGHTTP2_FLAG_END_STREAM) != 0) {
			on_done((uint32_t)c->head[5] << 24 | (uint32_t)c->head[6] << 16 |
				(uint32_t)c->head[7] << 8 | c->head[8]);
			ended++;
		}
	}
	return ended;
}

static void on_readable(struct client *c)
{
	static uint8_t in[262144];
	ssize_t n = recv(c->fd, in, sizeof(in), MSG_DONTWAIT);
	if (n == 0 || (n < 0 && errno != EAGAIN))
		die("recv");
	for (unsigned ended = n > 0 ? take(c, in, (size_t)n) : 0; ended > 0; ended--)
		put_call(c);
	if (c->unacked > 1u << 29) {
		put_window(c, c->unacked);
		c->unacked = 0;
	}
	send_out(c);
}

static int by_us(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static double cpu_s(pid_t pid)
{
	char path[64], text[1024];
	unsigned long long user = 0, sys = 0;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "r");
	if (f == NULL || fgets(text, sizeof(text), f) == NULL)
		die(path);
	fclose(f);
	char *p = strrchr(text, ')');
	if (p == NULL || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu",
				 &user, &sys) != 2)
		die(path);
	return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

static void run_calls(
	struct client *clients, size_t n, size_t outstanding, unsigned seconds, pid_t server)
{
	struct pollfd *fds = xcalloc(n, sizeof(*fds));
	for (size_t i = 0; i < outstanding; i++)
		put_call(&clients[i % n]);
	for (size_t i = 0; i < n; i++) {
		fds[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
		send_out(&clients[i]);
	}
	uint64_t begin = ev_now_us(), end = begin + seconds * 1000000ull;
	double cpu = cpu_s(server);
	while (ev_now_us() < end) {
		if (poll(fds, n, 1000) < 0)
			die("poll");
		for (size_t i = 0; i < n; i++) {
			if (fds[i].revents != 0)
				on_readable(&clients[i]);
		}
	}
	double s = (double)(ev_now_us() - begin) / 1e6;
	cpu = cpu_s(server) - cpu;
	size_t n_us = all.n_us < 1000000 ? all.n_us : 1000000;
	qsort(all.us, n_us, sizeof(all.us[0]), by_us);
	printf("{\"connections\": %zu, \"outstanding\": %zu, \"bytes\": %zu, \"per_s\": %.0f, "
	       "\"per_core\": %.0f, \"server_cpu\": %.2f, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n",
		n, outstanding, all.bytes, (double)all.done / s, (double)all.done / cpu, cpu / s,
		(double)all.us[n_us / 2] / 1e3, (double)all.us[n_us * 99 / 100] / 1e3);
	free(fds);
}

static long rss_kb(pid_t pid)
{
	char path[64], line[256];
	long kb = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	FILE *f = fopen(path, "r");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		(void)sscanf(line, "VmRSS: %ld", &kb);
	if (f != NULL)
		fclose(f);
	return kb;
}

/* Waits until the memory of the server stands still. */
static long settled_kb(pid_t pid)
{
	long before = 0, now = rss_kb(pid);
	for (int i = 0; i < 50 && now != before; i++) {
		before = now;
		usleep(200000);
		now = rss_kb(pid);
	}
	return now;
}

static void run_idle(const struct sockaddr_in *at, size_t n, size_t calls, pid_t server)
{
	struct client *clients = xcalloc(n, sizeof(*clients));
	long before = settled_kb(server);
	for (size_t i = 0; i < n; i++) {
		connect_to(&clients[i], at);
		for (size_t k = 0; k < calls; k++) {
			put_headers(&clients[i], "/etcdserverpb.Watch/Watch");
			clients[i].next_id += 2;
		}
		send_out(&clients[i]);
	}
	printf("{\"connections\": %zu, \"calls\": %zu, \"bytes_per_connection\": %ld}\n", n, calls,
		(settled_kb(server) - before) * 1024 / (long)n);
	free(clients);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t len = sizeof(at);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bool idle = argc == 4 && strcmp(argv[1], "idle") == 0;
	if (!idle && argc != 5) {
		fprintf(stderr, "see the head of bench_h2.c\n");
		return 2;
	}
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, len) != 0 || listen(fd, 1024) != 0 ||
		getsockname(fd, (struct sockaddr *)&at, &len) != 0)
		die("listen");
	(void)proc_raise_nofile();
	pid_t server = fork();
	if (server == 0)
		serve(fd);
	close(fd);
	run_on(1);
	all.started = xcalloc(STARTED, sizeof(*all.started));
	if (idle) {
		run_idle(&at, (size_t)atoi(argv[2]), (size_t)atoi(argv[3]), server);
	} else {
		size_t n = (size_t)atoi(argv[1]);
		struct client *clients = xcalloc(n, sizeof(*clients));
		all.bytes = (size_t)atoi(argv[4]);
		for (size_t i = 0; i < n; i++)
			connect_to(&clients[i], &at);
		run_calls(clients, n, (size_t)atoi(argv[2]), (unsigned)atoi(argv[3]), server);
	}
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	return 0;
}
