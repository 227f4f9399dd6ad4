/* SPDX-License-Identifier: PostgreSQL */
/*
 * Latency: see bench_latency.h. When a row was committed the server says itself
 * (track_commit_timestamp), by the same clock.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/ring/ring_reader.h"
#include "pgctl/bench_latency.h"

#define INSERTS                                                                                    \
	RING_READER_DELAYS /* so that brokerd's figures are of all of them, and of no other */
#define PAUSE_US 15000     /* between inserts: everything has gone to sleep again */
#define ARRIVAL_MS 20000
#define SPIN_US 100
#define PACKETS_MAX 4096

/* ---- A subscriber: MQTT 3.1.1, QoS 0 ----------------------------------------------------------
 */

#define MQTT_CONNACK 0x20
#define MQTT_SUBACK 0x90
#define MQTT_PUBLISH 0x30

struct subscriber {
	int fd;
	size_t len_bytes;
	uint8_t in[PACKETS_MAX];
};

static int subscriber_failed(struct bench *b, const char *what)
{
	return pgctl_fail(b->p, PGCTL_FAILED, "look whether this machine is overloaded",
		"the broker of the suite to be measured: %s", what);
}

/* The first packet of what was read; 0: it is not there yet. All lengths here are below 128. */
static size_t packet_bytes(const struct subscriber *s)
{
	if (s->len_bytes < 2 || s->len_bytes < 2u + s->in[1])
		return 0;
	return 2u + s->in[1];
}

static void drop_packet(struct subscriber *s)
{
	size_t n = packet_bytes(s);
	memmove(s->in, s->in + n, s->len_bytes - n);
	s->len_bytes -= n;
}

/* Waits for bytes; 0, or -1: nothing came in time, or the end. */
static int read_more(struct subscriber *s, int timeout_ms)
{
	struct pollfd fd = {.fd = s->fd, .events = POLLIN};
	if (poll(&fd, 1, timeout_ms) <= 0)
		return -1;
	ssize_t n = read(s->fd, s->in + s->len_bytes, sizeof(s->in) - s->len_bytes);
	if (n <= 0)
		return -1;
	s->len_bytes += (size_t)n;
	return 0;
}

/* The next packet has to be of this type, and to say yes in its last byte. */
static bool take_answer(struct subscriber *s, uint8_t type)
{
	while (packet_bytes(s) == 0) {
		if (read_more(s, ARRIVAL_MS) != 0)
			return false;
	}
	bool ok = s->in[0] == type && s->in[packet_bytes(s) - 1] == 0;
	drop_packet(s);
	return ok;
}

static int subscribe(struct bench *b, int port, struct subscriber *s)
{
	static const char client[] = "bench", topic[] = BENCH_LATENCY_TOPIC;
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)port)};
	struct buf out;
	*s = (struct subscriber){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	if (s->fd < 0 || connect(s->fd, (struct sockaddr *)&a, sizeof(a)) != 0)
		return subscriber_failed(b, strerror(errno));
	buf_init(&out, 0);
	buf_put(&out, "\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05", 14);
	buf_put_text(&out, client);
	buf_put_u8(&out, 0x82);
	buf_put_u8(&out, 2 + 2 + sizeof(topic) - 1 + 1);
	buf_put_be16(&out, 1); /* packet identifier */
	buf_put_be16(&out, sizeof(topic) - 1);
	buf_put_text(&out, topic);
	buf_put_u8(&out, 0); /* QoS */
	int err = io_write_all(s->fd, out.data, out.len_bytes);
	buf_free(&out);
	if (err != 0 || !take_answer(s, MQTT_CONNACK) || !take_answer(s, MQTT_SUBACK))
		return subscriber_failed(b, "it does not take our subscription");
	return PGCTL_OK;
}

/* The number in the payload of the first PUBLISH, if it has come; dropped then. */
static bool take_publish(struct subscriber *s, uint64_t *ret_id)
{
	char text[24] = "";
	size_t n = packet_bytes(s), topic = 2 + sizeof(BENCH_LATENCY_TOPIC) - 1;
	if (n == 0 || s->in[0] != MQTT_PUBLISH || n < 2 + topic || n - 2 - topic >= sizeof(text))
		return false;
	memcpy(text, s->in + 2 + topic, n - 2 - topic);
	*ret_id = strtoull(text, NULL, 10);
	drop_packet(s);
	return true;
}

/* ---- One row --------------------------------------------------------------------------------- */

/* The insert is on its way: waits for the message and for the server's answer, whichever is first.
 */
static int wait_message(struct bench_reader *r, struct subscriber *s, uint64_t id, uint64_t *ret_us)
{
	struct pollfd fds[] = {
		{.fd = s->fd, .events = POLLIN}, {.fd = PQsocket(r->sql), .events = POLLIN}};
	uint64_t deadline = bench_now_us() + ARRIVAL_MS * 1000;
	uint64_t got = 0;
	while (got != id && bench_now_us() < deadline) {
		if (poll(fds, 2, ARRIVAL_MS) <= 0)
			break;
		uint64_t now = bench_realtime_us();
		if (fds[0].revents != 0 && read_more(s, 0) != 0)
			break;
		if (take_publish(s, &got))
			*ret_us = now;
		if (fds[1].revents != 0 && PQconsumeInput(r->sql) != 1)
			return bench_sql_failed(r->b, r->sql, "INSERT");
		if (!PQisBusy(r->sql))
			fds[1].fd = -1; /* the answer is there, and is taken below */
	}
	PGresult *res = PQgetResult(r->sql);
	bool ok = PQresultStatus(res) == PGRES_COMMAND_OK;
	PQclear(res);
	if (!ok || (res = PQgetResult(r->sql)) != NULL)
		return bench_sql_failed(r->b, r->sql, "INSERT");
	return got == id ? PGCTL_OK : subscriber_failed(r->b, "a row's message did not come");
}

/* The loop has noted when. */
static int wait_loop(struct bench_reader *r, uint64_t events, uint64_t *ret_us)
{
	uint64_t deadline = bench_now_us() + ARRIVAL_MS * 1000;
	while (atomic_load(&r->b->shared->events) < events) {
		if (bench_now_us() > deadline)
			return pgctl_fail(r->b->p, PGCTL_FAILED,
				"look whether this machine is overloaded",
				"a row did not come to the libpq loop");
		bench_pause_us(SPIN_US);
	}
	*ret_us = atomic_load(&r->b->shared->last_event_us);
	return PGCTL_OK;
}

static int one_row(struct bench_reader *r, struct subscriber *s, uint64_t id, uint64_t *ret_us)
{
	uint64_t before = atomic_load(&r->b->shared->events);
	char sql[80];
	snprintf(sql, sizeof(sql), "INSERT INTO latency_events VALUES (%" PRIu64 ")", id);
	bench_pause_us(PAUSE_US);
	if (r->kind == BENCH_LIBPQ) {
		int status = bench_sql(r->b, r->sql, "%s", sql);
		return status == PGCTL_OK ? wait_loop(r, before + 1, ret_us) : status;
	}
	if (PQsendQuery(r->sql, sql) != 1)
		return bench_sql_failed(r->b, r->sql, sql);
	return wait_message(r, s, id, ret_us);
}

/* ---- All of it ------------------------------------------------------------------------------- */

/* Commit times of the rows: subtracted from arrivals, as latencies. */
static int subtract_commits(struct bench_reader *r, double *latencies, const uint64_t *arrivals)
{
	static const char sql[] =
		"SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint"
		" FROM latency_events ORDER BY id";
	PGresult *res = PQexec(r->sql, sql);
	int status = PGCTL_OK;
	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != INSERTS)
		status = bench_sql_failed(r->b, r->sql, sql);
	for (int i = 0; i < INSERTS && status == PGCTL_OK; i++)
		latencies[i] =
			(double)arrivals[i] - (double)strtoull(PQgetvalue(res, i, 0), NULL, 10);
	PQclear(res);
	return status;
}

int bench_latency_create_table(struct bench *b, PGconn *pg)
{
	return bench_sql(b, pg, "CREATE TABLE latency_events (id bigint PRIMARY KEY)");
}

/* When each row came to who waits for it. ret_lsn: some position behind all rows but the last. */
static int insert_rows(struct bench_reader *r, uint64_t *arrivals, uint64_t *ret_lsn)
{
	struct subscriber s = {.fd = -1};
	int status = PGCTL_OK;
	if (r->kind == BENCH_WALSTREAMD)
		status = subscribe(r->b, r->suite->mqtt_port, &s);
	if (status == PGCTL_OK)
		status = bench_reader_settle(r);
	for (size_t i = 0; i < INSERTS && status == PGCTL_OK; i++) {
		if (i + 1 == INSERTS)
			status = bench_sql_lsn(r->b, r->sql, "insert", ret_lsn);
		if (status == PGCTL_OK)
			status = one_row(r, &s, i + 1, &arrivals[i]);
	}
	if (s.fd >= 0)
		close(s.fd);
	return status;
}

int bench_latency_measure(struct bench_reader *r, struct bench_latency *ret_latency)
{
	uint64_t arrivals[INSERTS], lsn = 0;
	double latencies[INSERTS];
	int status = bench_sql(r->b, r->sql, "TRUNCATE latency_events");
	if (status == PGCTL_OK)
		status = insert_rows(r, arrivals, &lsn);
	if (status == PGCTL_OK)
		status = subtract_commits(r, latencies, arrivals);
	if (status != PGCTL_OK)
		return status;
	(void)bench_median(latencies, INSERTS); /* sorts; taken as ring_reader takes it: */
	double p50_us = latencies[INSERTS / 2], p99_us = latencies[INSERTS - 1 - INSERTS / 100];
	if (r->kind != BENCH_WALSTREAMD) {
		*ret_latency = (struct bench_latency){p50_us, p99_us, -1, -1};
		return PGCTL_OK;
	}
	ret_latency->subscriber_p50_us = p50_us;
	ret_latency->subscriber_p99_us = p99_us;
	return bench_suite_delay(r->suite, lsn, &ret_latency->p50_us, &ret_latency->p99_us);
}
