/* SPDX-License-Identifier: PostgreSQL */
/*
 * The reader against a real ring in real memfds, woken by real eventfds. The test plays walstreamd
 * (the producer) and the supervisor (who relays ATTACH and GRANT).
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/ev.h"
#include "common/base/mem.h"
#include "common/base/pg_time.h"
#include "common/ipc/worker_proto.h"
#include "common/ring/ring_layout.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"
#include "common/ring/ring_reader.h"

#define CAPACITY RING_CAPACITY_MIN
#define SPOOL_LIMIT (1024 * 1024)
#define TRACE_MAX 65536

/* walstreamd: one life of it. */
struct life {
	int data_fd, space_event;
	void *data;
	struct ring_producer *p;
	uint64_t epoch;
	/* of the consumer that attached */
	void *cursor;
	int data_event;
};

/* What the random test's handler saw, and walstreamd has written of the history. */
struct script {
	uint64_t txn; /* being handled, or handled last; commit LSN = 1000 * txn */
	uint32_t ordinal;
	bool open;
	uint64_t put_txn;     /* next to be written */
	uint32_t put_ordinal; /* 0: BEGIN is next */
	size_t put_offset;
	uint64_t acked;
};

struct fixture {
	struct ev_loop *loop;
	struct ring_reader *r;
	char dir[64];
	struct life life;
	/* ATTACH as it was relayed */
	int n_attach;
	int cursor_fd, event_fd;
	uint64_t attach_lsn;
	/* what the handlers saw, one letter and number each */
	char trace[TRACE_MAX];
	size_t trace_len;
	uint64_t n_records;
	bool pause_records, pause_changes, pause_stream, pause_timeline;
	int n_pauses;
	int pressure_on, pressure_off;
	struct script *script; /* of the random test */
	bool acks;             /* acknowledges each commit, and puts work off */
	struct ev_deferred work;
	int64_t age_us;    /* of the transactions that are written */
	uint64_t next_lsn; /* of put_aged */
	int64_t history;   /* of the streams */
	uint8_t *expect;   /* of the large record */
	size_t expect_len;
};

/* ---- Handlers ------------------------------------------------------------------------------ */

static void trace(struct fixture *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void trace(struct fixture *f, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	f->trace_len +=
		(size_t)vsnprintf(f->trace + f->trace_len, TRACE_MAX - f->trace_len, fmt, ap);
	va_end(ap);
	assert_true(f->trace_len < TRACE_MAX);
}

#define SCRIPT_CHANGES(txn) ((uint32_t)((txn)*7 % 13))

static uint32_t script_length(uint64_t txn, uint32_t ordinal)
{
	uint32_t h = (uint32_t)(txn * 2654435761u + ordinal * 40503u);
	return h % 23 == 0 ? 2 * CAPACITY + h % 9999 : 1 + h % 3000;
}

static uint8_t script_byte(uint64_t txn, uint32_t ordinal, size_t i)
{
	return i == 0 ? 'I' : (uint8_t)(txn * 3 + ordinal * 5 + i * 7);
}

/* Everything once and in order, whatever happened on the way. */
static void follow_script(struct script *s, const struct ring_record *rec, const uint8_t *payload)
{
	uint64_t txn = rec->commit_lsn / 1000;
	if (*payload == 'B') {
		assert_false(s->open);
		assert_int_equal(txn, s->txn + 1);
		s->txn = txn;
		s->ordinal = 0;
		s->open = true;
		return;
	}
	assert_true(s->open);
	assert_int_equal(txn, s->txn);
	if (*payload == 'C') {
		assert_int_equal(s->ordinal, SCRIPT_CHANGES(txn));
		s->open = false;
		return;
	}
	assert_int_equal(rec->ordinal, s->ordinal + 1);
	s->ordinal++;
	assert_int_equal(rec->payload_len, script_length(txn, rec->ordinal));
	for (uint32_t i = 0; i < rec->payload_len; i++) {
		if (payload[i] != script_byte(txn, rec->ordinal, i))
			fail_msg("transaction %u, change %u, byte %u", (unsigned)txn, rec->ordinal,
				i);
	}
}

static uint64_t told(struct fixture *f)
{
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	return ring_producer_acked(f->life.p, 1);
}

static void on_work(void *arg)
{
	struct fixture *f = arg;
	uint64_t n;
	trace(f, "told%u ", (unsigned)told(f));
	assert_int_equal(read(f->life.space_event, &n, sizeof(n)), -1);
}

static int on_record(const struct ring_record *rec, const void *payload, void *arg)
{
	struct fixture *f = arg;
	if (f->pause_records || (f->pause_changes && rec->ordinal > 0)) {
		f->n_pauses++;
		return RING_READER_PAUSE;
	}
	assert_int_equal(rec->payload_len, rec->total_len);
	f->n_records++;
	char tag = *(const char *)payload;
	if (f->script != NULL) {
		follow_script(f->script, rec, payload);
		return 0;
	}
	if (tag == 'L') {
		assert_int_equal(rec->payload_len, f->expect_len);
		assert_memory_equal(payload, f->expect, f->expect_len);
	}
	if (tag == 'I')
		trace(f, "%u ", rec->ordinal);
	else
		trace(f, "%c%u ", tag, (unsigned)rec->commit_lsn);
	if (f->acks && tag == 'I')
		ev_defer(f->loop, &f->work, on_work, f);
	if (f->acks && tag == 'C')
		ring_reader_ack(f->r, rec->end_lsn);
	return 0;
}

static int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	struct fixture *f = arg;
	if (f->pause_stream)
		return RING_READER_PAUSE;
	if (f->script != NULL)
		return 0;
	trace(f, "S%u/%u ", (unsigned)timeline, (unsigned)from_lsn);
	return 0;
}

static int on_timeline(uint32_t timeline, uint64_t kept_lsn, void *arg)
{
	struct fixture *f = arg;
	if (f->pause_timeline)
		return RING_READER_PAUSE;
	trace(f, "T%u/%u ", (unsigned)timeline, (unsigned)kept_lsn);
	return 0;
}

static int on_gap(const struct ring_gap *gap, void *arg)
{
	struct fixture *f = arg;
	if (f->pause_stream)
		return RING_READER_PAUSE;
	trace(f, "G%u/%u-%u:%.*s ", (unsigned)gap->timeline, (unsigned)gap->from_lsn,
		(unsigned)gap->to_lsn, (int)gap->reason_len, gap->reason);
	assert_int_equal(gap->at, 77);
	return 0;
}

static int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
{
	struct fixture *f = arg;
	struct ring_link_attach m;
	struct rd rd = rd_make(body->data, body->len_bytes);
	assert_int_equal(ring_link_get_attach(&rd, &m), 0);
	assert_int_equal(m.version, RING_LINK_VERSION);
	assert_int_equal(n_fds, 2);
	f->attach_lsn = m.acked_lsn;
	f->cursor_fd = dup(fds[0]);
	f->event_fd = dup(fds[1]);
	f->n_attach++;
	return 0;
}

static void on_backpressure(bool on, void *arg)
{
	struct fixture *f = arg;
	f->pressure_on += on;
	f->pressure_off += !on;
}

/* ---- walstreamd ---------------------------------------------------------------------------- */

static void life_begin(struct fixture *f, uint64_t epoch)
{
	struct life *l = &f->life;
	l->epoch = epoch;
	l->data_event = -1;
	assert_int_equal(ring_data_create(CAPACITY, &l->data_fd, &l->data), 0);
	assert_int_equal(ring_event_create(&l->space_event), 0);
	l->p = ring_producer_new(l->data, CAPACITY, epoch, 4096 * epoch);
	ring_reader_peer(f->r, true, (uint32_t)epoch);
}

static void life_end(struct fixture *f)
{
	struct life *l = &f->life;
	ring_producer_free(&l->p);
	ring_data_unmap(l->data, RING_HEADER_BYTES + CAPACITY);
	ring_cursor_unmap(l->cursor);
	l->cursor = NULL;
	close(l->data_fd);
	close(l->space_event);
	if (l->data_event >= 0)
		close(l->data_event);
	ring_reader_peer(f->r, false, (uint32_t)l->epoch);
}

static void publish(struct fixture *f)
{
	if (ring_publish(f->life.p) != 0)
		ring_event_signal(f->life.data_event);
}

static void put(struct fixture *f, const struct ring_record *rec, const void *payload)
{
	size_t offset = 0;
	assert_int_equal(ring_write_part(f->life.p, rec, payload, &offset), 0);
	publish(f);
}

/* On a timeline that left another one at an LSN. */
static void put_stream_from(
	struct fixture *f, uint32_t timeline, uint64_t from_lsn, uint32_t left, uint64_t left_lsn)
{
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = timeline,
		.commit_lsn = from_lsn,
		.commit_time = f->history,
		.relid = left,
		.lsn = left_lsn};
	put(f, &rec, NULL);
}

static void put_stream(struct fixture *f, uint32_t timeline, uint64_t from_lsn, uint64_t left_lsn)
{
	put_stream_from(f, timeline, from_lsn, timeline - 1, left_lsn);
}

static void put_gap(struct fixture *f, uint32_t timeline, uint64_t from_lsn, uint64_t to_lsn)
{
	struct ring_record rec = {.type = RING_GAP,
		.audience = RING_TO_ALL,
		.timeline = timeline,
		.lsn = from_lsn,
		.end_lsn = to_lsn,
		.commit_time = 77,
		.payload_len = 4};
	put(f, &rec, "lost");
}

static struct ring_record message(uint64_t commit_lsn, uint32_t ordinal, uint32_t len)
{
	return (struct ring_record){.type = RING_MESSAGE,
		.audience = RING_TO_BROKERD,
		.timeline = 1,
		.ordinal = ordinal,
		.commit_lsn = commit_lsn,
		.payload_len = len};
}

static void put_msg(struct fixture *f, char tag, uint64_t commit_lsn, uint32_t ordinal)
{
	struct ring_record rec = message(commit_lsn, ordinal, 9);
	rec.commit_time = pg_now_us() - f->age_us;
	char payload[9] = {tag};
	if (tag == 'C')
		rec.end_lsn = commit_lsn + 1;
	put(f, &rec, payload);
}

/* A transaction with changes first … last, framed as asked. */
static void put_changes(struct fixture *f, uint64_t commit_lsn, uint32_t first, uint32_t last)
{
	for (uint32_t i = first; i <= last; i++)
		put_msg(f, 'I', commit_lsn, i);
}

static void put_transaction(struct fixture *f, uint64_t commit_lsn, uint32_t n)
{
	put_msg(f, 'B', commit_lsn, 0);
	put_msg(f, 'R', commit_lsn, 0);
	put_changes(f, commit_lsn, 1, n);
	put_msg(f, 'C', commit_lsn, 0);
}

static struct imsg grant_msg(struct fixture *f, struct buf *body, const struct ring_link_grant *m)
{
	struct imsg msg = {.n_fds = 2, .fds = {dup(f->life.data_fd), dup(f->life.space_event)}};
	buf_init(body, 0);
	ring_link_put_grant(body, m);
	msg.body = rd_make(body->data, body->len_bytes);
	return msg;
}

static void grant(struct fixture *f)
{
	struct life *l = &f->life;
	if (l->cursor != NULL) {
		ring_producer_drop(l->p, 1);
		ring_cursor_unmap(l->cursor);
		close(l->data_event);
	}
	assert_int_equal(ring_cursor_map(f->cursor_fd, &l->cursor), 0);
	close(f->cursor_fd);
	l->data_event = f->event_fd;
	assert_int_equal(ring_producer_add(l->p, 1, l->cursor, f->attach_lsn), 0);
	struct ring_link_grant m = {.epoch = l->epoch, .from_lsn = f->attach_lsn, .timeline = 1};
	struct buf body;
	struct imsg msg = grant_msg(f, &body, &m);
	assert_int_equal(ring_reader_relay(f->r, RELAY_RING_GRANT, &msg), 0);
	assert_int_equal(msg.fds[0], -1);
	assert_int_equal(msg.fds[1], -1);
	buf_free(&body);
}

static void drain(struct fixture *f)
{
	for (int i = 0; i < 50; i++)
		ev_loop_once(f->loop, false);
}

/* Runs the loop until *what is at least n, at most 5 s. */
static void wait_for(struct fixture *f, const int *what, int n)
{
	for (int i = 0; i < 5000 && *what < n; i++) {
		ev_loop_once(f->loop, false);
		usleep(1000);
	}
	assert_int_equal(*what, n);
}

static void saw(struct fixture *f, const char *what)
{
	drain(f);
	assert_string_equal(f->trace, what);
	f->trace_len = 0;
	f->trace[0] = '\0';
}

static struct ring_reader_counts counts(struct fixture *f)
{
	struct ring_reader_counts c;
	ring_reader_get_counts(f->r, &c);
	return c;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	strcpy(f->dir, "/tmp/howdah-reader-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->loop = ev_loop_new();
	const uint64_t *delays_ms = *state; /* NULL: the default */
	const struct ring_reader_options options = {.audience = RING_TO_BROKERD,
		.spool_dir = f->dir,
		.spool_limit = SPOOL_LIMIT,
		.budget_records = 7,
		.delays_ms = delays_ms != NULL ? *delays_ms : 0};
	const struct ring_reader_ops ops = {
		on_record, on_stream, send_attach, on_backpressure, on_gap, on_timeline};
	f->r = ring_reader_new(f->loop, &options, &ops, f);
	*state = f;
	return 0;
}

static void ignore_type(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_error("%d objects left: %s\n", (int)count, name);
}

/* Nothing is left: no object, no file. */
static int teardown(void **state)
{
	struct fixture *f = *state;
	if (f->life.p != NULL)
		life_end(f);
	ring_reader_free(&f->r);
	ev_loop_free(&f->loop);
	assert_int_equal(rmdir(f->dir), 0);
	free(f->expect);
	free(f);
	assert_int_equal(mem_report(ignore_type, NULL), 0);
	return 0;
}

static void start_live(struct fixture *f)
{
	life_begin(f, 1);
	grant(f);
	put_stream(f, 1, 100, 0);
	saw(f, "S1/100 ");
}

/* ---- Tests --------------------------------------------------------------------------------- */

static void test_live(void **state)
{
	struct fixture *f = *state;
	assert_string_equal(counts(f).state, "detached");
	ring_reader_ack(f->r, 77);
	life_begin(f, 1);
	assert_string_equal(counts(f).state, "attaching");
	assert_int_equal(f->attach_lsn, 77);
	grant(f);
	assert_string_equal(counts(f).state, "live");
	/* What the ring holds before the stream begins for us is not ours. */
	put_msg(f, 'I', 90, 3);
	put_msg(f, 'C', 90, 0);
	put_stream(f, 1, 100, 0);
	put_transaction(f, 200, 3);
	saw(f, "S1/100 B200 R200 1 2 3 C200 ");
	/* Asleep now: woken by the eventfd, not by the safety timer. */
	put_transaction(f, 300, 20);
	saw(f, "B300 R300 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 C300 ");
	assert_int_equal(counts(f).rescued_wakeups, 0);
	assert_int_equal(counts(f).records, 1 + 6 + 23);
	assert_int_equal(counts(f).epoch, 1);

	ring_reader_ack(f->r, 301);
	drain(f);
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 301);
	assert_int_equal(ring_producer_lag_bytes(f->life.p, 1), 0);
	uint64_t n;
	assert_int_equal(read(f->life.space_event, &n, sizeof(n)), sizeof(n));
}

/* The producer is told, and woken, when what a change has set off is done. */
static void test_told_after_work(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	uint64_t n;
	ring_event_drain(f->life.space_event);
	f->acks = true;
	/* In one pass: the first is acknowledged before the second puts work off. */
	put_msg(f, 'B', 300, 0);
	put_msg(f, 'C', 300, 0);
	put_msg(f, 'B', 400, 0);
	put_changes(f, 400, 1, 1);
	put_msg(f, 'C', 400, 0);
	saw(f, "B300 C300 B400 1 C400 told0 ");
	assert_int_equal(told(f), 401);
	assert_int_equal(read(f->life.space_event, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 1);
}

static void test_audience(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	struct ring_record rec = message(200, 1, 1);
	rec.audience = RING_TO_WATCHD | RING_TO_TUND;
	put(f, &rec, "I");
	rec.audience = RING_TO_ALL;
	rec.ordinal = 2;
	put(f, &rec, "I");
	put_msg(f, 'C', 200, 0);
	saw(f, "B200 2 C200 ");
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_lag_bytes(f->life.p, 1), 0);
}

static void test_pause(void **state)
{
	struct fixture *f = *state;
	f->pause_stream = true;
	life_begin(f, 1);
	grant(f);
	put_stream(f, 1, 100, 0);
	put_transaction(f, 200, 2);
	saw(f, "");
	f->pause_stream = false;
	saw(f, "");
	ring_reader_resume(f->r);
	saw(f, "S1/100 B200 R200 1 2 C200 ");
	f->pause_records = true;
	put_transaction(f, 300, 2);
	saw(f, "");
	assert_int_equal(f->n_pauses, 1);
	ring_reader_resume(f->r);
	saw(f, "");
	assert_int_equal(f->n_pauses, 2);
	f->pause_records = false;
	ring_reader_resume(f->r);
	saw(f, "B300 R300 1 2 C300 ");
	/* Little was waiting: no need for a file. */
	assert_int_equal(counts(f).spooled_records, 0);
}

#define S_US 1000000
/* For what the machine takes. */
#define assert_about_s(us, s) assert_in_range(us, (uint64_t)(s)*S_US, (uint64_t)(s)*S_US + 900000)

/* Transactions of this age, each with a wake-up of its own. */
static void put_aged(struct fixture *f, int age_s, int n)
{
	f->age_us = (int64_t)age_s * S_US;
	for (int i = 0; i < n; i++) {
		f->next_lsn += 1000;
		put_transaction(f, f->next_lsn, 2);
		drain(f);
		(void)told(f); /* the ring has room again */
	}
}

/* The delay of the last wake-ups that had changes. */
static void test_delay(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	put_msg(f, 'C', 200, 0);
	drain(f);
	assert_int_equal(counts(f).delay_p50_us, 0); /* no change yet */
	put_aged(f, 20, 1);
	assert_about_s(counts(f).delay_p50_us, 20);
	put_aged(f, -3600, 3); /* a server whose clock is ahead */
	assert_int_equal(counts(f).delay_p50_us, 0);
	assert_about_s(counts(f).delay_p99_us, 20);
	put_aged(f, 3, RING_READER_DELAYS / 2 + 1);
	put_aged(f, 1, RING_READER_DELAYS / 2 - 1);
	assert_about_s(counts(f).delay_p50_us, 3);
	assert_about_s(counts(f).delay_p99_us, 3); /* what was before has left the window */
	put_aged(f, 1, 2);
	assert_about_s(counts(f).delay_p50_us, 1);
	put_aged(f, 40, 2);
	assert_about_s(counts(f).delay_p99_us, 40);
}

/* What the handler does not take counts when it takes it, what it had before does not count. */
static void test_delay_of_what_is_taken(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	f->pause_changes = true;
	put_aged(f, 2, 1);
	assert_int_equal(f->n_pauses, 1);
	ring_reader_resume(f->r);
	drain(f);
	assert_int_equal(f->n_pauses, 2);
	assert_int_equal(counts(f).delay_p99_us, 0);
	f->pause_changes = false;
	ring_reader_resume(f->r);
	drain(f);
	assert_about_s(counts(f).delay_p50_us, 2);
	f->age_us = 50 * (int64_t)S_US;
	put_transaction(f, 900, 2); /* before what was handled */
	drain(f);
	assert_int_equal(counts(f).duplicates_dropped, 4);
	assert_about_s(counts(f).delay_p99_us, 2);
}

static uint64_t short_ms = 1000;

/* What happened long ago is no delay of now. */
static void test_delay_grows_old(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_aged(f, 2, 1);
	assert_about_s(counts(f).delay_p50_us, 2);
	usleep((useconds_t)short_ms * 1000);
	assert_int_equal(counts(f).delay_p50_us, 0);
	put_aged(f, 1, 1);
	assert_about_s(counts(f).delay_p99_us, 1);
}

/* Larger than the window, by parts, through ring and spool. */
static void put_large(struct fixture *f, size_t len, uint64_t commit_lsn, uint32_t ordinal)
{
	free(f->expect);
	f->expect = malloc(len);
	f->expect_len = len;
	for (size_t i = 0; i < len; i++)
		f->expect[i] = (uint8_t)(i * 7 + (i >> 9));
	f->expect[0] = 'L';
	struct ring_record rec = message(commit_lsn, ordinal, (uint32_t)len);
	size_t offset = 0;
	unsigned bad;
	int err, rounds = 0;
	while ((err = ring_write_part(f->life.p, &rec, f->expect, &offset)) == -EAGAIN) {
		publish(f);
		drain(f);
		assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
		assert_true(++rounds < 1000);
	}
	assert_int_equal(err, 0);
	publish(f);
	drain(f);
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
}

static void test_large(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	put_large(f, 5 * CAPACITY + 3, 200, 1);
	put_msg(f, 'C', 200, 0);
	saw(f, "B200 L200 C200 ");
	f->pause_records = true;
	put_msg(f, 'B', 300, 0);
	put_large(f, 7 * CAPACITY + 3, 300, 1);
	put_msg(f, 'C', 300, 0);
	saw(f, "");
	assert_string_equal(counts(f).state, "spooling");
	f->pause_records = false;
	ring_reader_resume(f->r);
	drain(f);
	saw(f, "B300 L300 C300 ");
	assert_string_equal(counts(f).state, "live");
	/* Paused on the joined record itself. */
	put_msg(f, 'B', 400, 0);
	drain(f);
	f->pause_records = true;
	put_large(f, 3 * CAPACITY, 400, 1);
	put_msg(f, 'C', 400, 0);
	saw(f, "B400 ");
	f->pause_records = false;
	ring_reader_resume(f->r);
	saw(f, "L400 C400 ");
}

/* Publishes n changes; the reader must make room. */
static void put_many(struct fixture *f, uint64_t commit_lsn, uint32_t first, uint32_t n)
{
	uint8_t payload[500] = {'I'};
	for (uint32_t i = first; i < first + n; i++) {
		struct ring_record rec = message(commit_lsn, i, sizeof(payload));
		unsigned bad;
		int rounds = 0;
		while (ring_write(f->life.p, &rec, payload) == -EAGAIN) {
			publish(f);
			drain(f);
			assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
			assert_true(++rounds < 1000);
		}
		publish(f);
	}
}

static void expect_changes(struct fixture *f, uint32_t first, uint32_t last)
{
	char *want = malloc(TRACE_MAX);
	size_t len = 0;
	for (uint32_t i = first; i <= last; i++)
		len += (size_t)snprintf(want + len, TRACE_MAX - len, "%u ", i);
	for (int i = 0; i < 20; i++)
		drain(f);
	saw(f, want);
	free(want);
}

static void test_spool(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	saw(f, "B200 ");
	f->pause_records = true;
	put_many(f, 200, 1, 1000); /* nine windows */
	drain(f);
	struct ring_reader_counts c = counts(f);
	assert_string_equal(c.state, "spooling");
	assert_true(c.spooled_records > 800 && c.spool_bytes_now > 400000);
	assert_int_equal(f->pressure_on, 0);
	assert_int_equal(f->n_pauses, 1);
	f->pause_records = false;
	ring_reader_resume(f->r);
	/* More comes while the spool is being emptied: the order holds. */
	put_many(f, 200, 1001, 500);
	expect_changes(f, 1, 1500);
	c = counts(f);
	assert_string_equal(c.state, "live");
	assert_int_equal(c.spool_bytes_now, 0);
	assert_true(c.spool_bytes_total > 400000);
	assert_int_equal(c.duplicates_dropped, 0);
}

/* At the limit the ring fills up and the producer waits; nothing is lost. */
static void test_backpressure(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	f->pause_records = true;
	uint8_t payload[500] = {'I'};
	uint32_t n = 0;
	unsigned bad;
	for (int full = 0; full < 3;) {
		struct ring_record rec = message(200, n + 1, sizeof(payload));
		if (ring_write(f->life.p, &rec, payload) == 0) {
			n++;
			publish(f);
			continue;
		}
		drain(f);
		assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
		full = ring_producer_free_bytes(f->life.p) < 1000 ? full + 1 : 0;
	}
	assert_int_equal(f->pressure_on, 1);
	assert_int_equal(f->pressure_off, 0);
	assert_true(counts(f).backpressure);
	assert_true(counts(f).spool_bytes_now <= SPOOL_LIMIT);
	assert_true(counts(f).spool_bytes_now > SPOOL_LIMIT - 1000);
	assert_string_not_equal(counts(f).trouble, "");
	/* The producer sleeps for space and is woken. */
	ring_producer_arm_space(f->life.p);
	ring_event_drain(f->life.space_event);
	f->pause_records = false;
	ring_reader_resume(f->r);
	expect_changes(f, 1, n);
	assert_int_equal(f->pressure_off, 1);
	assert_false(counts(f).backpressure);
	assert_string_equal(counts(f).trouble, "");
	assert_int_equal(counts(f).backpressures, 1);
	uint64_t woken;
	assert_int_equal(read(f->life.space_event, &woken, sizeof(woken)), sizeof(woken));
}

/* A spool that cannot be written at all: back-pressure too, and over once it can. */
static void test_spool_unwritable(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	f->pause_records = true;
	assert_int_equal(rmdir(f->dir), 0);
	uint8_t payload[500] = {'I'};
	uint32_t n = 0;
	struct ring_record rec = message(200, 1, sizeof(payload));
	while (ring_write(f->life.p, &rec, payload) == 0)
		rec.ordinal = ++n + 1;
	publish(f);
	drain(f);
	assert_int_equal(f->pressure_on, 1);
	assert_int_equal(counts(f).spooled_records, 0);
	assert_int_equal(mkdir(f->dir, 0700), 0);
	wait_for(f, &f->pressure_off, 1); /* the safety timer tries again */
	assert_true(counts(f).spooled_records > 0);
	f->pause_records = false;
	ring_reader_resume(f->r);
	drain(f);
	expect_changes(f, 1, n);
}

/* A file system that fills up in the middle of a record: what was half written is written again. */
static void test_spool_full(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, small = {.rlim_cur = 20001};
	start_live(f);
	f->pause_records = true;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	small.rlim_max = before.rlim_max;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	uint8_t payload[500] = {'I'};
	uint32_t n = 0;
	struct ring_record rec = message(200, 1, sizeof(payload));
	while (ring_write(f->life.p, &rec, payload) == 0)
		rec.ordinal = ++n + 1;
	publish(f);
	drain(f);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	assert_int_equal(f->pressure_on, 1);
	assert_true(counts(f).spool_bytes_now <= 20001);
	assert_true(counts(f).spooled_records > 30);
	wait_for(f, &f->pressure_off, 1);
	f->pause_records = false;
	ring_reader_resume(f->r);
	expect_changes(f, 1, n);
}

static void test_duplicates(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 200, 2);
	put_msg(f, 'B', 300, 0);
	put_msg(f, 'R', 300, 0);
	put_changes(f, 300, 1, 2);
	saw(f, "B200 R200 1 2 C200 B300 R300 1 2 ");
	/* The stream restarts (another consumer came): all of it again, then the rest. */
	put_stream(f, 1, 100, 0);
	put_transaction(f, 200, 2);
	put_transaction(f, 300, 4);
	put_transaction(f, 400, 1);
	saw(f, "R200 R300 3 4 C300 B400 R400 1 C400 ");
	assert_int_equal(counts(f).duplicates_dropped, 4 + 3);
	/* Cut before the commit: only that is missing. */
	put_msg(f, 'B', 500, 0);
	put_changes(f, 500, 1, 2);
	put_stream(f, 1, 100, 0);
	put_transaction(f, 500, 2);
	saw(f, "B500 1 2 R500 C500 ");
}

/* A record cut in the middle by a restart of the stream is forgotten and comes again. */
static void test_half_record(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	struct ring_record rec = message(200, 1, CAPACITY / 2);
	uint8_t *half = calloc(1, 2 * CAPACITY);
	half[0] = 'X';
	put(f, &rec, half);
	rec.payload_len = 2 * CAPACITY;
	rec.ordinal = 2;
	size_t offset = 0;
	drain(f);
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_write_part(f->life.p, &rec, half, &offset), -EAGAIN);
	assert_true(offset > 0);
	publish(f);
	free(half);
	saw(f, "B200 X200 ");
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	put_stream(f, 1, 100, 0);
	put_msg(f, 'B', 200, 0);
	put_changes(f, 200, 1, 3);
	put_msg(f, 'C', 200, 0);
	saw(f, "2 3 C200 ");
}

static void test_timeline(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 200, 1);
	put_transaction(f, 300, 1);
	put_msg(f, 'B', 400, 0);
	put_changes(f, 400, 1, 1);
	saw(f, "B200 R200 1 C200 B300 R300 1 C300 B400 1 ");
	/* Timeline 2 began at 250: 200 is the same transaction, 300 and 400 are others. */
	put_stream(f, 2, 100, 250);
	put_transaction(f, 200, 1);
	put_transaction(f, 300, 1);
	put_transaction(f, 400, 1);
	saw(f, "T2/250 S2/100 R200 B300 R300 1 C300 B400 R400 1 C400 ");
	/* Where timeline 3 began is not known: everything comes again. */
	put_stream(f, 3, 100, 0);
	put_transaction(f, 300, 1);
	saw(f, "T3/0 S3/100 B300 R300 1 C300 ");
	/* Nor does it help to know where some other timeline was left. */
	put_stream_from(f, 5, 100, 4, 350);
	put_transaction(f, 300, 1);
	saw(f, "T5/0 S5/100 B300 R300 1 C300 ");
}

/* Another server, or one that was restored: the same timeline's number, other changes. */
static void test_history(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 500, 1);
	put_gap(f, 1, 500, 600);
	saw(f, "B500 R500 1 C500 G1/500-600:lost ");
	ring_reader_ack(f->r, 501);
	drain(f);
	assert_int_equal(told(f), 501);
	f->history = 7;
	put_stream(f, 1, 100, 400); /* 400 is another history's, too */
	put_transaction(f, 500, 1);
	saw(f, "T1/0 S1/100 B500 R500 1 C500 ");
	/* The next stream of it is no news; a gap before what was one is. */
	put_gap(f, 1, 510, 520);
	put_stream(f, 1, 100, 400);
	put_transaction(f, 500, 1);
	put_transaction(f, 530, 1);
	saw(f, "G1/510-520:lost R500 B530 R530 1 C530 ");
	/* On another timeline of it what both have stays. */
	put_stream(f, 2, 100, 525);
	put_transaction(f, 500, 1);
	put_transaction(f, 530, 1);
	saw(f, "T2/525 S2/100 R500 B530 R530 1 C530 ");
}

/* A transaction whose beginning both timelines have goes on where it stopped; one that begins where
 * they part does not. */
static void test_timeline_in_transaction(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 400, 0);
	put_changes(f, 400, 1, 2);
	saw(f, "B400 1 2 ");
	put_stream(f, 2, 100, 450);
	put_transaction(f, 400, 3);
	saw(f, "T2/450 S2/100 R400 3 C400 ");
	put_msg(f, 'B', 500, 0);
	put_changes(f, 500, 1, 1);
	saw(f, "B500 1 ");
	put_stream(f, 3, 400, 500);
	put_transaction(f, 510, 1);
	saw(f, "T3/500 S3/400 B510 R510 1 C510 ");
}

/* Each of the two is taken once, however often the other one is not. */
static void test_timeline_paused(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 200, 1);
	saw(f, "B200 R200 1 C200 ");
	ring_reader_ack(f->r, 201);
	f->pause_timeline = true;
	put_stream(f, 2, 100, 250);
	saw(f, "");
	f->pause_timeline = false;
	f->pause_stream = true;
	ring_reader_resume(f->r);
	saw(f, "T2/250 ");
	ring_reader_resume(f->r);
	saw(f, "");
	f->pause_stream = false;
	ring_reader_resume(f->r);
	saw(f, "S2/100 ");
	assert_int_equal(counts(f).acked_lsn, 201);
	/* Beyond the end of the old timeline nothing was acknowledged. */
	ring_reader_ack(f->r, 400);
	put_stream(f, 3, 100, 300);
	saw(f, "T3/300 S3/100 ");
	assert_int_equal(counts(f).acked_lsn, 300);
}

static void test_gap(void **state)
{
	struct fixture *f = *state;
	unsigned bad;
	start_live(f);
	put_transaction(f, 200, 1);
	put_msg(f, 'B', 300, 0);
	saw(f, "B200 R200 1 C200 B300 ");
	/* Before anything of the new slot, and again if it was not taken. */
	f->pause_stream = true;
	put_gap(f, 1, 201, 500);
	put_stream(f, 1, 500, 0);
	put_transaction(f, 600, 1);
	saw(f, "");
	f->pause_stream = false;
	ring_reader_resume(f->r);
	saw(f, "G1/201-500:lost S1/500 B600 R600 1 C600 ");
	/* With every stream until it is acknowledged: once is enough. */
	put_gap(f, 1, 201, 500);
	put_stream(f, 1, 500, 0);
	put_transaction(f, 600, 1);
	saw(f, "R600 ");
	/* The next one, and one of a new timeline, whose LSNs may be lower. */
	put_gap(f, 1, 201, 500);
	put_gap(f, 1, 610, 700);
	put_stream(f, 1, 700, 0);
	saw(f, "G1/610-700:lost S1/700 ");
	put_gap(f, 2, 610, 650);
	put_stream(f, 2, 650, 620);
	saw(f, "G2/610-650:lost T2/620 S2/650 ");
	assert_int_equal(counts(f).gaps, 3);
	/* Its end is an LSN that the ring has carried. */
	ring_reader_ack(f->r, 650);
	drain(f);
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 650);
}

/* A new attachment: what is left of an older stream is not for us, the gap is. */
static void test_gap_when_attaching(void **state)
{
	struct fixture *f = *state;
	life_begin(f, 1);
	grant(f);
	put_transaction(f, 200, 1);
	put_gap(f, 1, 0, 500);
	put_stream(f, 1, 500, 0);
	put_transaction(f, 600, 1);
	saw(f, "G1/0-500:lost S1/500 B600 R600 1 C600 ");
}

/* While the handler has not come to the new timeline, what it acknowledged on the old one is not
 * said of the new ring, even where that has carried the same LSN. */
static void test_ack_of_other_timeline(void **state)
{
	struct fixture *f = *state;
	unsigned bad;
	start_live(f);
	put_transaction(f, 200, 1);
	put_transaction(f, 300, 1);
	saw(f, "B200 R200 1 C200 B300 R300 1 C300 ");
	life_end(f);
	life_begin(f, 2);
	f->attach_lsn = 100; /* walstreamd believes the slot */
	grant(f);
	ring_reader_ack(f->r, 301);
	f->pause_stream = true;
	put_stream(f, 2, 100, 0);
	for (unsigned i = 0; i < 400; i++) {
		put_transaction(f, 200 + i, 1);
		if (i % 50 != 49)
			continue;
		drain(f);
		assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	}
	assert_true(counts(f).spooled_records > 1000);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 100);
	/* There it counts again, up to where the handler has come. */
	f->pause_stream = false;
	ring_reader_resume(f->r);
	drain(f);
	ring_reader_ack(f->r, 250);
	drain(f);
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 250);
}

static void test_new_epoch(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 200, 2);
	put_msg(f, 'B', 300, 0);
	put_changes(f, 300, 1, 2);
	saw(f, "B200 R200 1 2 C200 B300 1 2 ");
	ring_reader_ack(f->r, 201);
	drain(f);
	/* What was published before the death is still read. */
	put_changes(f, 300, 3, 3);
	life_end(f);
	saw(f, "3 ");
	assert_string_equal(counts(f).state, "detached");
	life_begin(f, 2);
	assert_int_equal(f->attach_lsn, 201);
	grant(f);
	/* Acknowledged now, but not yet seen by the new producer: it must not be told yet. */
	ring_reader_ack(f->r, 301);
	drain(f);
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 201);
	put_stream(f, 1, 201, 0);
	put_transaction(f, 300, 5);
	saw(f, "S1/201 R300 4 5 C300 ");
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	assert_int_equal(ring_producer_acked(f->life.p, 1), 301);
	assert_int_equal(counts(f).epoch, 2);
	assert_int_equal(counts(f).attachments, 2);
	/* The same news again changes nothing. */
	ring_reader_peer(f->r, true, 2);
	assert_int_equal(f->n_attach, 2);
}

/* The spool of the old epoch is handled before the new ring. */
static void test_new_epoch_spooling(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_msg(f, 'B', 200, 0);
	saw(f, "B200 ");
	f->pause_records = true;
	put_many(f, 200, 1, 300);
	drain(f);
	assert_string_equal(counts(f).state, "spooling");
	life_end(f);
	life_begin(f, 2);
	grant(f);
	put_stream(f, 1, 100, 0);
	put_msg(f, 'B', 200, 0);
	put_many(f, 200, 1, 310);
	f->pause_records = false;
	ring_reader_resume(f->r);
	put_msg(f, 'C', 200, 0);
	for (int i = 0; i < 20; i++)
		drain(f);
	/* 1 … up to where the old ring was left, the new stream, the rest. */
	unsigned next = 1, n_streams = 0;
	char *save = NULL;
	for (char *w = strtok_r(f->trace, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) {
		if (*w == 'S') {
			n_streams++;
		} else if (*w == 'C') {
			assert_int_equal(next, 311);
			next++;
		} else {
			assert_int_equal(atoi(w), next);
			next++;
		}
	}
	assert_int_equal(n_streams, 1);
	assert_int_equal(next, 312);
}

/* The next record of the history, or a part of it. */
static void script_put(struct fixture *f)
{
	static uint8_t payload[3 * CAPACITY];
	struct script *s = f->script;
	uint64_t lsn = 1000 * s->put_txn;
	uint32_t n = SCRIPT_CHANGES(s->put_txn);
	struct ring_record rec = message(lsn, 0, 1);
	payload[0] = s->put_ordinal == 0 ? 'B' : 'C';
	if (s->put_ordinal > n) {
		rec.end_lsn = lsn + 1;
	} else if (s->put_ordinal > 0) {
		rec.ordinal = s->put_ordinal;
		rec.payload_len = script_length(s->put_txn, s->put_ordinal);
		for (size_t i = 0; i < rec.payload_len; i++)
			payload[i] = script_byte(s->put_txn, s->put_ordinal, i);
	}
	unsigned bad;
	assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
	int err = ring_write_part(f->life.p, &rec, payload, &s->put_offset);
	publish(f);
	if (err == -EAGAIN)
		return;
	assert_int_equal(err, 0);
	s->put_offset = 0;
	s->put_ordinal++;
	if (s->put_ordinal > n + 1) {
		s->put_ordinal = 0;
		s->put_txn++;
	}
}

/* The stream begins anew after what is acknowledged. */
static bool script_restart(struct fixture *f)
{
	struct script *s = f->script;
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = 1,
		.commit_lsn = ring_producer_acked(f->life.p, 1)};
	size_t offset = 0;
	if (ring_write_part(f->life.p, &rec, NULL, &offset) != 0)
		return false;
	publish(f);
	s->put_txn = rec.commit_lsn / 1000 + 1;
	s->put_ordinal = 0;
	s->put_offset = 0;
	return true;
}

/* One step of anything that can happen; the frequent things more often. */
static void script_step(struct fixture *f, unsigned dice, uint64_t *epoch)
{
	struct script *s = f->script;
	switch (dice % 1000) {
	case 0:
		life_end(f);
		if (dice % 3 != 0)
			drain(f);
		life_begin(f, ++*epoch);
		/* A new life begins at what the slot was told. */
		f->attach_lsn = s->acked;
		grant(f);
		assert_true(script_restart(f));
		break;
	case 1:
	case 2:
		(void)script_restart(f); /* else the ring is full just now */
		break;
	case 3:
	case 4:
	case 5:
		f->pause_records = true;
		break;
	case 6:
	case 7:
	case 8:
	case 9:
		f->pause_records = false;
		ring_reader_resume(f->r);
		break;
	case 10:
	case 11: {
		/* Acknowledged is what was handled whole, or less; the slot hears of it. */
		uint64_t done = s->open ? s->txn - 1 : s->txn;
		unsigned bad;
		if (done > 0)
			ring_reader_ack(f->r, 1000 * (done - dice % 2) + 1);
		drain(f);
		assert_int_equal(ring_producer_refresh(f->life.p, &bad), 0);
		uint64_t acked = ring_producer_acked(f->life.p, 1);
		assert_true(acked <= 1000 * done + 1);
		s->acked = acked > s->acked ? acked : s->acked;
		break;
	}
	default:
		if (dice % 2 != 0)
			script_put(f);
		else
			ev_loop_once(f->loop, false);
		break;
	}
}

/* Lives of walstreamd, restarts of the stream, pauses, spool, back-pressure, in random order. */
static void test_random(void **state)
{
	struct fixture *f = *state;
	struct script script = {.put_txn = 1};
	uint64_t epoch = 1;
	unsigned seed = 20240607;
	f->script = &script;
	life_begin(f, epoch);
	grant(f);
	assert_true(script_restart(f));
	for (int i = 0; i < 100000; i++)
		script_step(f, (unsigned)rand_r(&seed), &epoch);
	f->pause_records = false;
	ring_reader_resume(f->r);
	drain(f);
	struct ring_reader_counts c = counts(f);
	print_message(
		"%u transactions, %u lives, %u duplicates, %u spooled, back-pressure %u times\n",
		(unsigned)script.txn, (unsigned)epoch, (unsigned)c.duplicates_dropped,
		(unsigned)c.spooled_records, (unsigned)c.backpressures);
	assert_true(script.txn > 500 && epoch > 50 && c.duplicates_dropped > 1000);
	assert_true(c.spooled_records > 1000);
	assert_int_equal(c.rescued_wakeups, 0);
	f->script = NULL;
}

static void test_refused(void **state)
{
	struct fixture *f = *state;
	life_begin(f, 1);
	struct buf body;
	buf_init(&body, 0);
	buf_put_string(&body, "ring layout 2 is not mine");
	struct imsg msg = {.body = rd_make(body.data, body.len_bytes)};
	close(f->cursor_fd);
	close(f->event_fd);
	assert_int_equal(ring_reader_relay(f->r, RELAY_RING_REFUSE, &msg), 0);
	assert_non_null(strstr(counts(f).trouble, "ring layout 2 is not mine"));
	assert_int_equal(counts(f).refusals, 1);
	assert_string_equal(counts(f).state, "detached");
	wait_for(f, &f->n_attach, 2);
	grant(f);
	put_stream(f, 1, 5, 0);
	saw(f, "S1/5 ");
	/* Dropped by walstreamd while live: the same message, attached anew. */
	msg.body = rd_make(body.data, body.len_bytes);
	assert_int_equal(ring_reader_relay(f->r, RELAY_RING_REFUSE, &msg), 0);
	wait_for(f, &f->n_attach, 3);
	grant(f);
	put_stream(f, 1, 6, 0);
	saw(f, "S1/6 ");
	buf_free(&body);
}

static void test_garbled(void **state)
{
	struct fixture *f = *state;
	life_begin(f, 1);
	struct imsg msg = {.body = rd_make("abc", 3)};
	assert_true(ring_reader_relay(f->r, RELAY_RING_GRANT, &msg) < 0);
	msg.body = rd_make("abc", 3);
	assert_true(ring_reader_relay(f->r, RELAY_RING_REFUSE, &msg) < 0);
	msg.body = rd_make("", 0);
	assert_true(ring_reader_relay(f->r, RELAY_RING_ATTACH, &msg) < 0);
	/* A grant without descriptors. */
	struct ring_link_grant m = {.epoch = 1, .from_lsn = 0, .timeline = 1};
	struct buf body;
	msg = grant_msg(f, &body, &m);
	close(msg.fds[0]);
	close(msg.fds[1]);
	msg.n_fds = 0;
	assert_true(ring_reader_relay(f->r, RELAY_RING_GRANT, &msg) < 0);
	buf_free(&body);
	/* A descriptor that is no ring: refused, asked again later. */
	msg = grant_msg(f, &body, &m);
	close(msg.fds[0]);
	msg.fds[0] = dup(f->life.space_event);
	assert_int_equal(ring_reader_relay(f->r, RELAY_RING_GRANT, &msg), 0);
	assert_string_equal(counts(f).state, "detached");
	assert_string_not_equal(counts(f).trouble, "");
	buf_free(&body);
	close(f->cursor_fd);
	close(f->event_fd);
	wait_for(f, &f->n_attach, 2);
	close(f->cursor_fd);
	close(f->event_fd);
}

/* Bytes that cannot be true: this ring is left, and another one asked for. */
static void test_malformed_ring(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	put_transaction(f, 200, 1);
	saw(f, "B200 R200 1 C200 ");
	atomic_fetch_add(&((struct ring_header *)f->life.data)->head, 8 * CAPACITY);
	ring_event_signal(f->life.data_event);
	drain(f);
	assert_string_equal(counts(f).state, "detached");
	assert_string_not_equal(counts(f).trouble, "");
	wait_for(f, &f->n_attach, 2);
	close(f->cursor_fd);
	close(f->event_fd);
}

/* A producer that dies between publishing and waking: found within seconds, and counted. */
static void test_rescue(void **state)
{
	struct fixture *f = *state;
	start_live(f);
	struct ring_record rec = message(200, 0, 1);
	assert_int_equal(ring_write(f->life.p, &rec, "B"), 0);
	assert_int_not_equal(ring_publish(f->life.p), 0); /* and no signal */
	saw(f, "");
	for (int i = 0; i < 5000 && f->n_records == 0; i++) {
		ev_loop_once(f->loop, false);
		usleep(1000);
	}
	saw(f, "B200 ");
	assert_int_equal(counts(f).rescued_wakeups, 1);
}

static void test_seals(void **state)
{
	(void)state;
	int fd;
	void *map, *cursor;
	const void *ro;
	size_t len;
	assert_int_equal(ring_data_create(CAPACITY + 8, &fd, &map), -EINVAL);
	assert_int_equal(ring_data_create(CAPACITY, &fd, &map), 0);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(st.st_blocks * 512, RING_HEADER_BYTES + CAPACITY); /* allocated now */
	assert_int_equal(ftruncate(fd, 4096), -1);
	assert_int_equal(ftruncate(fd, 1 << 20), -1);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ring_cursor_map(fd, &cursor), -ERR_MALFORMED);
	assert_int_equal(ring_data_map(fd, &ro, &len), 0);
	assert_int_equal(len, RING_HEADER_BYTES + CAPACITY);
	((char *)map)[RING_HEADER_BYTES] = 'y'; /* the producer's own mapping still writes */
	assert_int_equal(((const char *)ro)[RING_HEADER_BYTES], 'y');
	ring_data_unmap(ro, len);
	ring_data_unmap(map, len);
	close(fd);
	assert_int_equal(ring_cursor_create(&fd, &cursor), 0);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(ring_data_map(fd, &ro, &len), -ERR_MALFORMED);
	ring_cursor_unmap(cursor);
	assert_int_equal(ring_cursor_map(fd, &cursor), 0);
	ring_cursor_unmap(cursor);
	close(fd);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_live),
		TEST(test_told_after_work),
		TEST(test_audience),
		TEST(test_pause),
		TEST(test_delay),
		TEST(test_delay_of_what_is_taken),
		cmocka_unit_test_prestate_setup_teardown(
			test_delay_grows_old, setup, teardown, &short_ms),
		TEST(test_large),
		TEST(test_spool),
		TEST(test_backpressure),
		TEST(test_spool_unwritable),
		TEST(test_spool_full),
		TEST(test_duplicates),
		TEST(test_half_record),
		TEST(test_timeline),
		TEST(test_history),
		TEST(test_timeline_in_transaction),
		TEST(test_timeline_paused),
		TEST(test_gap),
		TEST(test_gap_when_attaching),
		TEST(test_ack_of_other_timeline),
		TEST(test_new_epoch),
		TEST(test_new_epoch_spooling),
		TEST(test_random),
		TEST(test_refused),
		TEST(test_garbled),
		TEST(test_malformed_ring),
		TEST(test_rescue),
		cmocka_unit_test(test_seals),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
