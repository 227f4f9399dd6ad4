/* SPDX-License-Identifier: PostgreSQL */
/*
 * Load on a running broker, and what came of it: one JSON object per line on stdout.
 *
 *   bench_mqtt rows CONNINFO PORT SECONDS QOS       rows per second, INSERT to subscriber
 *   bench_mqtt latency CONNINFO PORT SECONDS RATE   commit to subscriber; RATE rows/s, 0: one row
 * at a time bench_mqtt publish PORT SECONDS N WINDOW        QoS 1 publishes per second of N
 * publishers bench_mqtt idle PORT PID N                      bytes of process PID per idle
 * connection
 *
 * rows and latency expect the table bench(id bigint, payload text) mapped to the topic bench/rows.
 * publish and idle work on any broker.
 *
 * Context: one thread; blocking writes, nonblocking reads, poll.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libpq-fe.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "brokerd/mqtt_proto.h"
#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/base/mem.h"

struct client {
	int fd;
	struct buf in, out;
	uint16_t next_id;
	unsigned inflight;
	uint64_t received; /* PUBLISH packets, or PUBACKs of a publisher */
};

_Noreturn static void die(const char *what, const char *why)
{
	fprintf(stderr, "bench_mqtt: %s: %s\n", what, why);
	exit(1);
}

static struct mqtt_bytes text_bytes(const char *s)
{
	return (struct mqtt_bytes){.p = (const uint8_t *)s, .len = (uint32_t)strlen(s)};
}

static void client_flush(struct client *c)
{
	size_t sent = 0;
	while (sent < c->out.len_bytes) {
		ssize_t n = send(c->fd, c->out.data + sent, c->out.len_bytes - sent, MSG_NOSIGNAL);
		if (n <= 0)
			die("send", strerror(errno));
		sent += (size_t)n;
	}
	buf_reset(&c->out);
}

typedef void (*packet_fn)(struct client *c, const struct mqtt_packet *packet, void *arg);

/* Reads what is there and gives every whole packet to fn. */
static void client_read(struct client *c, packet_fn fn, void *arg)
{
	uint8_t *room = buf_reserve(&c->in, 262144);
	ssize_t n = recv(c->fd, room, 262144, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		die("receive", n == 0 ? "the broker has closed the connection" : strerror(errno));
	buf_commit(&c->in, (size_t)n);
	size_t used = 0;
	struct mqtt_frame frame;
	while (mqtt_frame_peek(c->in.data + used, c->in.len_bytes - used, &frame) == 0 &&
		frame.header_bytes + frame.body_bytes <= c->in.len_bytes - used) {
		size_t len = frame.header_bytes + frame.body_bytes;
		struct mqtt_packet packet;
		struct mqtt_error error;
		if (mqtt_decode(c->in.data + used, len, MQTT_VERSION_311, &packet, &error) != 0)
			die("decode", error.why);
		fn(c, &packet, arg);
		used += len;
	}
	buf_consume(&c->in, used);
}

static void note_type(struct client *c, const struct mqtt_packet *packet, void *arg)
{
	(void)c;
	*(unsigned *)arg = packet->type;
}

static void client_expect(struct client *c, enum mqtt_type type)
{
	unsigned got = 0;
	while (got != type) {
		struct pollfd p = {.fd = c->fd, .events = POLLIN};
		if (poll(&p, 1, 10000) <= 0)
			die("no answer", mqtt_type_str(type));
		client_read(c, note_type, &got);
	}
}

static void client_open(struct client *c, int port, const char *name, unsigned serial)
{
	memset(c, 0, sizeof(*c));
	buf_init(&c->in, 0);
	buf_init(&c->out, 0);
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in to = {.sin_family = AF_INET,
		.sin_port = htons((uint16_t)port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof(to)) != 0)
		die("connect", strerror(errno));
	int one = 1;
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	char id[64];
	snprintf(id, sizeof(id), "%s-%u-%d", name, serial, (int)getpid());
	struct mqtt_packet packet = {.type = MQTT_CONNECT,
		.version = MQTT_VERSION_311,
		.connect = {.clean_start = true, .client_id = text_bytes(id)}};
	mqtt_encode(&c->out, &packet);
	client_flush(c);
	client_expect(c, MQTT_CONNACK);
}

static void client_close(struct client *c)
{
	close(c->fd);
	buf_free(&c->in);
	buf_free(&c->out);
}

static void client_subscribe(struct client *c, const char *topic, uint8_t qos)
{
	struct buf filters;
	buf_init(&filters, 0);
	buf_put_be16(&filters, (uint16_t)strlen(topic));
	buf_put_text(&filters, topic);
	buf_put_u8(&filters, qos);
	struct mqtt_packet packet = {.type = MQTT_SUBSCRIBE,
		.version = MQTT_VERSION_311,
		.subscribe = {.packet_id = 1,
			.n_filters = 1,
			.filters = {filters.data, (uint32_t)filters.len_bytes}}};
	mqtt_encode(&c->out, &packet);
	client_flush(c);
	buf_free(&filters);
	client_expect(c, MQTT_SUBACK);
}

static void acknowledge(struct client *c, const struct mqtt_packet *packet)
{
	c->received++;
	if (packet->publish.qos == 0)
		return;
	struct mqtt_packet ack = {.type = MQTT_PUBACK,
		.version = MQTT_VERSION_311,
		.ack = {.packet_id = packet->publish.packet_id}};
	mqtt_encode(&c->out, &ack);
}

static PGconn *database(const char *conninfo)
{
	PGconn *pg = PQconnectdb(conninfo);
	if (PQstatus(pg) != CONNECTION_OK)
		die("database", PQerrorMessage(pg));
	return pg;
}

static void sql_begin(PGconn *pg, const char *sql)
{
	if (!PQsendQuery(pg, sql))
		die("insert", PQerrorMessage(pg));
}

/* True when the statement under way has ended. */
static bool sql_done(PGconn *pg)
{
	if (!PQconsumeInput(pg))
		die("database", PQerrorMessage(pg));
	if (PQisBusy(pg))
		return false;
	for (PGresult *res; (res = PQgetResult(pg)) != NULL; PQclear(res)) {
		if (PQresultStatus(res) != PGRES_COMMAND_OK)
			die("insert", PQresultErrorMessage(res));
	}
	return true;
}

/* --- rows ------------------------------------------------------------------------------------- */

static void on_row(struct client *c, const struct mqtt_packet *packet, void *arg)
{
	(void)arg;
	if (packet->type == MQTT_PUBLISH)
		acknowledge(c, packet);
}

static int bench_rows(char **argv)
{
	PGconn *pg = database(argv[0]);
	struct client c;
	client_open(&c, atoi(argv[1]), "bench-rows", 0);
	uint64_t seconds = strtoull(argv[2], NULL, 10);
	client_subscribe(&c, "bench/#", (uint8_t)atoi(argv[3]));
	const char *insert =
		"INSERT INTO bench SELECT g, 'a payload of some sixty bytes, as a sensor or "
		"an order would have' FROM generate_series(1, 1000) g";
	uint64_t sent = 0, began = ev_now_us(), writing_until = began + seconds * 1000000;
	bool busy = false, writing = true;
	while (writing || busy || c.received < sent) {
		if (!busy && writing) {
			sql_begin(pg, insert);
			busy = true;
			sent += 1000;
		}
		struct pollfd p[2] = {{.fd = c.fd, .events = POLLIN},
			{.fd = busy ? PQsocket(pg) : -1, .events = POLLIN}};
		if (poll(p, 2, 30000) == 0)
			die("rows", "nothing came for 30 s");
		if (p[0].revents != 0) {
			client_read(&c, on_row, NULL);
			client_flush(&c);
		}
		if (p[1].revents != 0 && sql_done(pg))
			busy = false;
		writing = ev_now_us() < writing_until;
	}
	double elapsed = (double)(ev_now_us() - began) / 1e6;
	printf("{\"bench\": \"rows\", \"qos\": %s, \"rows\": %llu, \"seconds\": %.2f, "
	       "\"rows_per_s\": %.0f}\n",
		argv[3], (unsigned long long)c.received, elapsed, (double)c.received / elapsed);
	client_close(&c);
	PQfinish(pg);
	return 0;
}

/* --- latency ---------------------------------------------------------------------------------- */

#define SAMPLES_MAX 1000000

struct latency {
	uint64_t rows;        /* of a transaction */
	uint64_t every_us;    /* between transactions */
	uint64_t total;       /* transactions */
	uint64_t *begun_us;   /* by number of the transaction */
	uint64_t *commit_us;  /* when the client had the answer */
	uint64_t *arrived_us; /* its last row */
};

static void on_timed_row(struct client *c, const struct mqtt_packet *packet, void *arg)
{
	struct latency *l = arg;
	if (packet->type != MQTT_PUBLISH)
		return;
	acknowledge(c, packet);
	if (c->received % l->rows == 0 && c->received / l->rows <= l->total)
		l->arrived_us[c->received / l->rows - 1] = ev_now_us();
}

static void latency_run(struct latency *l, PGconn *pg, struct client *c)
{
	char insert[200];
	snprintf(insert, sizeof(insert),
		"INSERT INTO bench SELECT g, 'a payload' FROM generate_series(1, %llu) g",
		(unsigned long long)l->rows);
	uint64_t began = ev_now_us(), sent = 0, committed = 0;
	while (committed < l->total || c->received < l->total * l->rows) {
		uint64_t now = ev_now_us(), due = began + sent * l->every_us;
		if (sent == committed && sent < l->total && now >= due) {
			l->begun_us[sent++] = now;
			sql_begin(pg, insert);
		}
		bool waiting = sent > committed || sent == l->total;
		int timeout = waiting ? 10000 : (int)((due > now ? due - now : 0) / 1000);
		struct pollfd p[2] = {
			{.fd = c->fd, .events = POLLIN}, {.fd = PQsocket(pg), .events = POLLIN}};
		if (poll(p, 2, timeout) == 0 && waiting)
			die("latency", "nothing came for 10 s");
		if (p[1].revents != 0 && sent > committed && sql_done(pg))
			l->commit_us[committed++] = ev_now_us();
		if (p[0].revents != 0) {
			client_read(c, on_timed_row, l);
			client_flush(c);
		}
	}
}

static int compare_i64(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

/* Sorted differences arrived - from, for percentiles. Caller frees. */
static int64_t *differences(const struct latency *l, const uint64_t *from)
{
	int64_t *d = xcalloc(l->total, sizeof(*d));
	for (uint64_t i = 0; i < l->total; i++)
		d[i] = (int64_t)(l->arrived_us[i] - from[i]);
	qsort(d, l->total, sizeof(*d), compare_i64);
	return d;
}

static int bench_latency(char **argv)
{
	PGconn *pg = database(argv[0]);
	struct client c;
	client_open(&c, atoi(argv[1]), "bench-latency", 0);
	uint64_t seconds = strtoull(argv[2], NULL, 10), rate = strtoull(argv[3], NULL, 10);
	client_subscribe(&c, "bench/#", 1);
	/* Under load: a transaction of rate/100 rows every 10 ms. Idle: one row every 20 ms. */
	struct latency l = {
		.rows = rate == 0 ? 1 : rate / 100, .every_us = rate == 0 ? 20000 : 10000};
	l.total = seconds * 1000000 / l.every_us;
	if (l.rows == 0 || l.total == 0 || l.total > SAMPLES_MAX)
		die("latency", "RATE is 0 or at least 100, SECONDS 1 to 10000");
	l.begun_us = xcalloc(l.total, sizeof(uint64_t));
	l.commit_us = xcalloc(l.total, sizeof(uint64_t));
	l.arrived_us = xcalloc(l.total, sizeof(uint64_t));
	latency_run(&l, pg, &c);
	int64_t *commit = differences(&l, l.commit_us), *insert = differences(&l, l.begun_us);
	uint64_t p50 = l.total / 2, p99 = l.total * 99 / 100;
	double elapsed = (double)(l.arrived_us[l.total - 1] - l.begun_us[0]) / 1e6;
	printf("{\"bench\": \"latency\", \"rate\": %llu, \"transactions\": %llu, "
	       "\"achieved_rows_per_s\": %.0f, "
	       "\"commit_to_subscriber_p50_ms\": %.3f, \"commit_to_subscriber_p99_ms\": %.3f, "
	       "\"insert_to_subscriber_p50_ms\": %.3f, \"insert_to_subscriber_p99_ms\": %.3f}\n",
		(unsigned long long)rate, (unsigned long long)l.total,
		(double)(l.total * l.rows) / elapsed, (double)commit[p50] / 1e3,
		(double)commit[p99] / 1e3, (double)insert[p50] / 1e3, (double)insert[p99] / 1e3);
	free(commit);
	free(insert);
	free(l.begun_us);
	free(l.commit_us);
	free(l.arrived_us);
	client_close(&c);
	PQfinish(pg);
	return 0;
}

/* --- publish ---------------------------------------------------------------------------------- */

static void on_puback(struct client *c, const struct mqtt_packet *packet, void *arg)
{
	(void)arg;
	if (packet->type == MQTT_PUBACK) {
		c->inflight--;
		c->received++;
	}
}

static void fill_window(struct client *c, unsigned window)
{
	static const char payload[] =
		"a payload of some sixty bytes, as a sensor or an order would have";
	for (; c->inflight < window; c->inflight++) {
		c->next_id = c->next_id == UINT16_MAX ? 1 : (uint16_t)(c->next_id + 1);
		struct mqtt_packet packet = {.type = MQTT_PUBLISH,
			.version = MQTT_VERSION_311,
			.publish = {.qos = 1,
				.packet_id = c->next_id,
				.topic = text_bytes("bench/publish"),
				.payload = text_bytes(payload)}};
		mqtt_encode(&c->out, &packet);
	}
	client_flush(c);
}

static int bench_publish(char **argv)
{
	int port = atoi(argv[0]);
	uint64_t seconds = strtoull(argv[1], NULL, 10);
	unsigned n = (unsigned)atoi(argv[2]), window = (unsigned)atoi(argv[3]);
	struct client *clients = xcalloc(n, sizeof(*clients));
	struct pollfd *polls = xcalloc(n, sizeof(*polls));
	for (unsigned i = 0; i < n; i++) {
		client_open(&clients[i], port, "bench-publish", i);
		polls[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
	}
	uint64_t began = ev_now_us(), until = began + seconds * 1000000;
	while (ev_now_us() < until) {
		for (unsigned i = 0; i < n; i++)
			fill_window(&clients[i], window);
		if (poll(polls, n, 10000) == 0)
			die("publish", "no PUBACK for 10 s");
		for (unsigned i = 0; i < n; i++) {
			if (polls[i].revents != 0)
				client_read(&clients[i], on_puback, NULL);
		}
	}
	double elapsed = (double)(ev_now_us() - began) / 1e6;
	uint64_t acked = 0;
	for (unsigned i = 0; i < n; i++) {
		acked += clients[i].received;
		client_close(&clients[i]);
	}
	printf("{\"bench\": \"publish\", \"publishers\": %u, \"window\": %u, \"acked\": %llu, "
	       "\"publishes_per_s\": %.0f}\n",
		n, window, (unsigned long long)acked, (double)acked / elapsed);
	free(clients);
	free(polls);
	return 0;
}

/* --- idle ------------------------------------------------------------------------------------- */

/* Private memory: what the process alone would give back. */
static long private_kb(const char *pid)
{
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%s/smaps_rollup", pid);
	FILE *f = fopen(path, "r");
	if (f == NULL)
		die(path, strerror(errno));
	long kb = 0, part;
	while (fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "Private_Dirty: %ld", &part) == 1)
			kb += part;
	}
	fclose(f);
	return kb;
}

static int bench_idle(char **argv)
{
	int port = atoi(argv[0]);
	unsigned n = (unsigned)atoi(argv[2]);
	struct rlimit limit = {.rlim_cur = n + 100, .rlim_max = n + 100};
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		die("descriptors", strerror(errno));
	struct client warm;
	client_open(&warm, port, "bench-warm", 0);
	client_close(&warm);
	long before = private_kb(argv[1]);
	struct client *clients = xcalloc(n, sizeof(*clients));
	for (unsigned i = 0; i < n; i++) {
		client_open(&clients[i], port, "bench-idle", i);
		buf_free(&clients[i].in);
		buf_free(&clients[i].out);
	}
	long after = private_kb(argv[1]);
	printf("{\"bench\": \"idle\", \"connections\": %u, \"bytes_per_connection\": %.0f}\n", n,
		(double)(after - before) * 1024 / n);
	for (unsigned i = 0; i < n; i++)
		close(clients[i].fd);
	free(clients);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int n_args;
		int (*fn)(char **argv);
	} benches[] = {
		{"rows", 4, bench_rows},
		{"latency", 4, bench_latency},
		{"publish", 4, bench_publish},
		{"idle", 3, bench_idle},
	};
	for (size_t i = 0; i < ARRAY_LEN(benches); i++) {
		if (argc == 2 + benches[i].n_args && strcmp(argv[1], benches[i].name) == 0)
			return benches[i].fn(argv + 2);
	}
	fprintf(stderr, "usage: bench_mqtt rows CONNINFO PORT SECONDS QOS\n"
			"       bench_mqtt latency CONNINFO PORT SECONDS RATE\n"
			"       bench_mqtt publish PORT SECONDS N WINDOW\n"
			"       bench_mqtt idle PORT PID N\n");
	return 2;
}
