/* SPDX-License-Identifier: PostgreSQL */
/*
 * CPU per event from a received message to the published record: feeds pgoutput messages through
 * the publisher into a ring of its own that a second thread reads, as brokerd would.
 *
 *     tests/bench/bench_publish [EVENTS [ROWS_PER_TRANSACTION [BYTES_PER_ROW]]]
 *
 * Prints nanoseconds of this thread's CPU per event; the reader's and the bytes' way from the
 * socket are not in it.
 */
#include "config.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"
#include "walstreamd/publisher.h"
#include "walstreamd/walstreamd.h"

#define RING_BYTES (UINT32_C(64) << 20)
#define BATCH_EVENTS 2000
#define RELID 16385

/* The publisher's way to the supervisor: the grant, and with it the ring. */
static int ring_fd = -1;

int daemon_relay(struct daemon *d, uint32_t to_role, uint32_t kind, const struct buf *body,
	const int *fds, size_t n_fds)
{
	(void)d;
	(void)to_role;
	(void)body;
	if (kind == RELAY_RING_GRANT && n_fds == 2)
		ring_fd = dup(fds[0]);
	return 0;
}

static void on_nothing(void *arg)
{
	(void)arg;
}

struct message {
	uint8_t bytes[4096];
	size_t len;
};

static void put(struct message *m, uint64_t v, int n)
{
	for (int i = n - 1; i >= 0; i--)
		m->bytes[m->len++] = (uint8_t)(v >> (8 * i));
}

static void put_text(struct message *m, const char *s, size_t len)
{
	memcpy(m->bytes + m->len, s, len);
	m->len += len;
}

static void put_value(struct message *m, const char *s, size_t len)
{
	put(m, 't', 1);
	put(m, len, 4);
	put_text(m, s, len);
}

static void make_relation(struct message *m)
{
	static const char *const names[] = {"id", "payload", "created_at"};
	static const uint32_t types[] = {23, 25, 1184};
	put(m, 'R', 1);
	put(m, RELID, 4);
	put_text(m, "public\0narrow_events", 21);
	put(m, 'd', 1);
	put(m, 3, 2);
	for (int i = 0; i < 3; i++) {
		put(m, i == 0, 1);
		put_text(m, names[i], strlen(names[i]) + 1);
		put(m, types[i], 4);
		put(m, UINT32_MAX, 4);
	}
}

static void make_insert(struct message *m, size_t row_bytes)
{
	char payload[4000];
	memset(payload, 'x', sizeof(payload));
	put(m, 'I', 1);
	put(m, RELID, 4);
	put(m, 'N', 1);
	put(m, 3, 2);
	put_value(m, "1234567", 7);
	put_value(m, payload, row_bytes);
	put_value(m, "2025-01-01 12:34:56.123456+00", 29);
}

struct reader {
	struct ring_consumer *ring;
	atomic_bool over;
	uint64_t n_records, n_bytes;
	uint64_t cpu_ns;
};

static uint64_t thread_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void *read_ring(void *arg)
{
	struct reader *r = arg;
	struct ring_record rec;
	const void *payload;
	int more = 0;
	while (more >= 0) {
		bool last = atomic_load(&r->over);
		while ((more = ring_peek(r->ring, &rec, &payload)) == 1) {
			r->n_records++;
			r->n_bytes += rec.payload_len;
			if (r->n_records % 256 == 0)
				(void)ring_release(r->ring);
			if (rec.end_lsn != 0)
				(void)ring_ack(r->ring, rec.end_lsn);
		}
		(void)ring_release(r->ring);
		if (last)
			break;
		usleep(100);
	}
	r->cpu_ns = thread_ns();
	return NULL;
}

struct bench {
	struct daemon d;
	struct publisher *p;
	struct message relation, insert;
	uint64_t lsn;
	uint64_t n_events, n_in_batch, n_full;
};

static void attach(struct bench *b, struct reader *r)
{
	struct buf body;
	struct imsg msg = {.n_fds = 2};
	const struct ring_link_attach m = {.version = RING_LINK_VERSION};
	void *cursor;
	const void *data;
	int cursor_fd, event;
	if (ring_cursor_create(&cursor_fd, &cursor) != 0 || ring_event_create(&event) != 0)
		abort();
	buf_init(&body, 0);
	ring_link_put_attach(&body, &m);
	msg.body = rd_make(body.data, body.len_bytes);
	msg.fds[0] = cursor_fd;
	msg.fds[1] = event;
	if (publisher_attach(b->p, ROLE_BROKERD, &msg) != 0 || ring_fd < 0)
		abort();
	buf_free(&body);
	size_t len;
	if (ring_data_map(ring_fd, &data, &len) != 0 ||
		ring_consumer_new(data, len, cursor, &r->ring) != 0)
		abort();
}

static void feed(struct bench *b, const struct message *m)
{
	const struct pgws_event ev = {.kind = PGWS_EVENT_DATA,
		.start_lsn = b->lsn,
		.end_lsn = b->lsn,
		.data = m->bytes,
		.len = m->len};
	int err = publisher_write(b->p, &ev);
	while (err == -EAGAIN) {
		b->n_full++;
		sched_yield();
		err = publisher_continue(b->p);
	}
	if (err != 0)
		abort();
	b->n_events++;
	if (++b->n_in_batch == BATCH_EVENTS) {
		publisher_publish(b->p);
		b->n_in_batch = 0;
	}
}

static void feed_transaction(struct bench *b, uint64_t rows)
{
	struct message begin = {.len = 0}, commit = {.len = 0};
	b->lsn += 8;
	uint64_t commit_lsn = b->lsn + rows * 200;
	put(&begin, 'B', 1);
	put(&begin, commit_lsn, 8);
	put(&begin, 1, 8);
	put(&begin, 700, 4);
	feed(b, &begin);
	if (b->n_events == 1)
		feed(b, &b->relation);
	for (uint64_t i = 0; i < rows; i++) {
		b->lsn += 200;
		feed(b, &b->insert);
	}
	put(&commit, 'C', 1);
	put(&commit, 0, 1);
	put(&commit, commit_lsn, 8);
	put(&commit, commit_lsn + 48, 8);
	put(&commit, 1, 8);
	b->lsn = commit_lsn + 48;
	feed(b, &commit);
}

static uint64_t argument(int argc, char **argv, int i, uint64_t otherwise)
{
	return argc > i ? strtoull(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	static const struct publisher_ops ops = {.on_attached = on_nothing,
		.on_detached = on_nothing,
		.on_room = on_nothing,
		.on_acked = on_nothing};
	uint64_t n = argument(argc, argv, 1, 3000000), rows = argument(argc, argv, 2, 1000);
	struct stats_row stat_rows[WAL_STAT_COUNT];
	for (size_t i = 0; i < WAL_STAT_COUNT; i++)
		stat_rows[i] = (struct stats_row){.name = "any", .unit = "", .help = ""};
	size_t row_bytes = (size_t)argument(argc, argv, 3, 100);
	struct bench b = {.lsn = 1000};
	struct reader r = {.n_records = 0};
	pthread_t thread;
	b.d.loop = ev_loop_new();
	b.d.stats = stats_new(NULL, stat_rows, WAL_STAT_COUNT);
	b.d.enabled_roles = 1 << ROLE_WALSTREAMD | 1 << ROLE_BROKERD;
	const struct publisher_options options = {
		.ring_size = RING_BYTES, .transaction_memory = RING_BYTES};
	if (rows == 0 || row_bytes > 3900 || publisher_new(&b.d, &options, &ops, &b, &b.p) != 0)
		return 1;
	make_relation(&b.relation);
	make_insert(&b.insert, row_bytes);
	attach(&b, &r);
	publisher_begin(b.p, &(struct publisher_begin){.confirmed_lsn = b.lsn, .timeline = 1});
	if (pthread_create(&thread, NULL, read_ring, &r) != 0)
		return 1;
	while (b.n_events < n / 10)
		feed_transaction(&b, rows); /* the window is touched once */
	uint64_t before = b.n_events, start_ns = thread_ns();
	while (b.n_events < before + n)
		feed_transaction(&b, rows);
	publisher_publish(b.p);
	uint64_t took_ns = thread_ns() - start_ns;
	atomic_store(&r.over, true);
	pthread_join(thread, NULL);
	printf("%.1f ns per event (insert of %zu bytes, %llu rows per transaction); full %llu "
	       "times; reader %.1f ns, %llu records\n",
		(double)took_ns / (double)(b.n_events - before), b.insert.len,
		(unsigned long long)rows, (unsigned long long)b.n_full,
		(double)r.cpu_ns / (double)r.n_records, (unsigned long long)r.n_records);
	publisher_free(&b.p);
	return r.n_records == b.n_events + 1 ? 0 : 1;
}
