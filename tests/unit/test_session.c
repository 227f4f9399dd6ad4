/* SPDX-License-Identifier: PostgreSQL */
/*
 * The session: every state against every packet, and the queue with its window, over real sockets.
 * The writer is the real one with a database that is not there: QoS 1 publishes then wait, as they
 * should.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "brokerd/msglog.h"
#include "brokerd/session.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"

struct fixture {
	struct ev_loop *loop;
	struct stats *stats;
	struct batch *writer;
	struct broker *b;
};

static const struct broker_conf base_conf = {
	.allow_anonymous = true,
	.ack_timeout_ms = 60000,
	.connect_timeout_ms = 60000,
	.max_packet_bytes = 4096,
	.receive_maximum = 4,
	.topic_alias_maximum = 2,
	.max_connections = 100,
	.max_queued_messages = 10,
	.max_queued_bytes = 65536,
	.max_subscriptions = 4,
	.topic = {.max_bytes = 64, .max_levels = 8},
};

static int set_up(void **state)
{
	static const struct batch_ops ops = {NULL, NULL};
	struct fixture *f = xcalloc(1, sizeof(*f));
	f->loop = ev_loop_new();
	f->stats = stats_new(NULL, brokerd_stats_rows, STAT_COUNT);
	f->b = broker_new(f->loop, f->stats, &base_conf, "unit");
	const struct batch_options o = {.conninfo = "host=/nonexistent dbname=none",
		.application_name = "test_session",
		.node = "unit",
		.role = "brokerd",
		.kinds = &msglog_kind,
		.n_kinds = 1};
	f->writer = batch_new(f->loop, &o, &ops, NULL);
	broker_set_writer(f->b, f->writer, 0);
	*state = f;
	return 0;
}

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	fprintf(stderr, "left: %s %lld\n", name, (long long)count);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	batch_free(&f->writer);
	broker_set_writer(f->b, NULL, 0);
	broker_free(&f->b);
	ev_loop_free(&f->loop);
	stats_free(&f->stats);
	free(f);
	return mem_report(on_leak, NULL) == 0 ? 0 : -1;
}

/* --- a client's end --- */

struct client {
	int fd;
	struct session *s; /* valid while the session has its memory */
};

static void turn(struct fixture *f)
{
	for (int i = 0; i < 6; i++)
		ev_loop_once(f->loop, false);
}

static struct client client_new(struct fixture *f)
{
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(proc_set_nonblock(fds[0]), 0);
	assert_int_equal(proc_set_nonblock(fds[1]), 0);
	struct client c = {.fd = fds[1], .s = session_new(f->b, fds[0])};
	return c;
}

static void say(struct fixture *f, const struct client *c, const void *data, size_t len)
{
	assert_int_equal(write(c->fd, data, len), (ssize_t)len);
	turn(f);
}
#define SAY(f, c, text) say(f, c, text, sizeof(text) - 1)

/* Everything that has come; 0: nothing, -1: closed. */
static ssize_t hear(const struct client *c, uint8_t *out, size_t size)
{
	ssize_t n = read(c->fd, out, size);
	if (n < 0 && errno == EAGAIN)
		return 0;
	return n == 0 ? -1 : n;
}

static void expect(const struct client *c, const void *data, size_t len)
{
	uint8_t got[4096];
	ssize_t n = hear(c, got, sizeof(got));
	if (n != (ssize_t)len || memcmp(got, data, len) != 0) {
		for (ssize_t i = 0; i < n; i++)
			fprintf(stderr, "%02x ", got[i]);
		fail_msg("heard %zd bytes, not %zu", n, len);
	}
}
#define EXPECT(c, text) expect(c, text, sizeof(text) - 1)

static void drop(struct fixture *f, struct client *c)
{
	close(c->fd);
	turn(f);
}

#define CONNECT4 "\x10\x0d\0\4MQTT\4\2\0\0\0\1c"
#define CONNECT5 "\x10\x0e\0\4MQTT\5\2\0\0\0\0\1c"
#define CONNACK5 "\x20\x14\0\0\x11\x21\0\4\x24\1\x25\0\x27\0\0\x10\0\x22\0\2\x2a\0"

static struct client up(struct fixture *f, int version)
{
	struct client c = client_new(f);
	if (version == 4) {
		SAY(f, &c, CONNECT4);
		EXPECT(&c, "\x20\2\0\0");
	} else {
		SAY(f, &c, CONNECT5);
		EXPECT(&c, CONNACK5);
	}
	assert_int_equal(c.s->state, SESSION_UP);
	return c;
}

/* --- state x packet --- */

enum at { AT_NEW, AT_UP4, AT_UP5, AT_LINGER, AT_COUNT };
static const char *const at_names[] = {"new", "up 3.1.1", "up 5.0", "linger"};

/* What comes of it. */
enum outcome {
	STAY,    /* up, nothing is said */
	ANSWER,  /* up, and an answer of the type in the cell */
	ACCEPT,  /* new -> up with CONNACK */
	BYE,     /* linger, nothing is said */
	TELL,    /* linger, DISCONNECT with the code in the cell */
	IGNORED, /* linger, as before */
};

struct cell {
	enum outcome outcome;
	uint8_t what; /* type of the answer, or reason code */
};

#define P4(text) text, sizeof(text) - 1
static const struct row {
	enum mqtt_type type;
	const char *v4;
	size_t len4;
	const char *v5;
	size_t len5;
	struct cell cells[AT_COUNT];
} rows[] = {
	{MQTT_CONNECT, P4(CONNECT4), P4(CONNECT5),
		{{ACCEPT, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_CONNACK, P4("\x20\2\0\0"), P4("\x20\3\0\0\0"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_PUBLISH, P4("\x30\4\0\1ax"), P4("\x30\5\0\1a\0x"),
		{{BYE, 0}, {STAY, 0}, {STAY, 0}, {IGNORED, 0}}},
	{MQTT_PUBACK, P4("\x40\2\0\1"), P4("\x40\2\0\1"),
		{{BYE, 0}, {STAY, 0}, {STAY, 0}, {IGNORED, 0}}},
	{MQTT_PUBREC, P4("\x50\2\0\1"), P4("\x50\2\0\1"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_PUBREL, P4("\x62\2\0\1"), P4("\x62\2\0\1"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_PUBCOMP, P4("\x70\2\0\1"), P4("\x70\2\0\1"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_SUBSCRIBE, P4("\x82\6\0\1\0\1a\1"), P4("\x82\7\0\1\0\0\1a\1"),
		{{BYE, 0}, {ANSWER, MQTT_SUBACK}, {ANSWER, MQTT_SUBACK}, {IGNORED, 0}}},
	{MQTT_SUBACK, P4("\x90\3\0\1\0"), P4("\x90\4\0\1\0\0"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_UNSUBSCRIBE, P4("\xa2\5\0\1\0\1a"), P4("\xa2\6\0\1\0\0\1a"),
		{{BYE, 0}, {ANSWER, MQTT_UNSUBACK}, {ANSWER, MQTT_UNSUBACK}, {IGNORED, 0}}},
	{MQTT_UNSUBACK, P4("\xb0\2\0\1"), P4("\xb0\4\0\1\0\0"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_PINGREQ, P4("\xc0\0"), P4("\xc0\0"),
		{{BYE, 0}, {ANSWER, MQTT_PINGRESP}, {ANSWER, MQTT_PINGRESP}, {IGNORED, 0}}},
	{MQTT_PINGRESP, P4("\xd0\0"), P4("\xd0\0"),
		{{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
	{MQTT_DISCONNECT, P4("\xe0\0"), P4("\xe0\0"), {{BYE, 0}, {BYE, 0}, {BYE, 0}, {IGNORED, 0}}},
	{MQTT_AUTH, P4("\xf0\0"), P4("\xf0\0"), {{BYE, 0}, {BYE, 0}, {TELL, 0x82}, {IGNORED, 0}}},
};

static struct client client_at(struct fixture *f, enum at at)
{
	if (at == AT_NEW)
		return client_new(f);
	struct client c = up(f, at == AT_UP4 ? 4 : 5);
	if (at == AT_LINGER) {
		/* The peer does not close, so that it stays. */
		session_end(c.s, END_SHUTDOWN, "test");
		turn(f);
		uint8_t gone[64];
		assert_true(hear(&c, gone, sizeof(gone)) > 2);
		assert_int_equal(gone[0], 0xe0);
		assert_int_equal(gone[2], 0x8b);
	}
	return c;
}

static void check_cell(const struct client *c, const struct cell *cell, const char *where)
{
	uint8_t got[256];
	ssize_t n = hear(c, got, sizeof(got));
	static const struct {
		enum session_state state;
		bool speaks;
	} want[] = {[STAY] = {SESSION_UP, false},
		[ANSWER] = {SESSION_UP, true},
		[ACCEPT] = {SESSION_UP, true},
		[BYE] = {SESSION_LINGER, false},
		[TELL] = {SESSION_LINGER, true},
		[IGNORED] = {SESSION_LINGER, false}};
	uint8_t type = cell->outcome == ACCEPT ? MQTT_CONNACK
		       : cell->outcome == TELL ? MQTT_DISCONNECT
					       : cell->what;
	if (c->s->state != want[cell->outcome].state)
		fail_msg("%s: state %s", where, session_state_str(c->s->state));
	if ((n > 0) != want[cell->outcome].speaks)
		fail_msg("%s: heard %zd bytes", where, n);
	if (n > 0 && got[0] >> 4 != type)
		fail_msg("%s: heard 0x%02x", where, got[0]);
	if (cell->outcome == TELL && got[2] != cell->what)
		fail_msg("%s: reason 0x%02x", where, got[2]);
}

static void test_every_state_and_packet(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(ARRAY_LEN(rows), MQTT_AUTH);
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		for (enum at at = 0; at < AT_COUNT; at++) {
			char where[64];
			snprintf(where, sizeof(where), "%s in %s", mqtt_type_str(rows[i].type),
				at_names[at]);
			struct client c = client_at(f, at);
			bool v5 = at == AT_UP5 || at == AT_LINGER;
			say(f, &c, v5 ? rows[i].v5 : rows[i].v4, v5 ? rows[i].len5 : rows[i].len4);
			check_cell(&c, &rows[i].cells[at], where);
			drop(f, &c);
			assert_int_equal(f->b->n_connections, 0);
			assert_int_equal(f->b->n_sessions, 0);
		}
	}
	assert_int_equal(topic_tree_subs(f->b->tree), 0);
}

/* One byte at a time is the same as all at once. */
static void test_bytes_one_by_one(void **state)
{
	struct fixture *f = *state;
	static const char in[] = CONNECT5 "\x82\7\0\1\0\0\1a\1\xc0\0\x30\5\0\1a\0x";
	struct client c = client_new(f);
	for (size_t i = 0; i < sizeof(in) - 1; i++)
		say(f, &c, in + i, 1);
	EXPECT(&c, CONNACK5 "\x90\4\0\1\0\1\xd0\0\x30\5\0\1a\0x");
	assert_int_equal(c.s->in.cap_bytes, 0);
	drop(f, &c);
}

/* --- deliveries --- */

struct source {
	struct track track; /* first */
	int done;
};

static void on_done(struct track *t)
{
	((struct source *)(void *)t)->done++;
}

static size_t publish(struct fixture *f, const char *topic, size_t payload_len, struct source *src,
	uint64_t expires_ms)
{
	uint8_t payload[4096] = {0};
	struct message *m = message_new(topic, strlen(topic), payload, payload_len, 1, NULL, 0,
		src != NULL ? &src->track : NULL);
	m->expires_ms = expires_ms;
	size_t n = broker_publish(f->b, m);
	message_unref(&m);
	turn(f);
	return n;
}

static void subscribe(struct fixture *f, struct client *c, char options)
{
	char text[] = "\x82\7\0\1\0\0\1a\1";
	text[9 - 1] = options;
	say(f, c, text, 9);
	expect(c, (char[]){'\x90', 4, 0, 1, 0, options}, 6);
}

#define CONNECT5_WINDOW2 "\x10\x11\0\4MQTT\5\2\0\0\3\x21\0\2\0\1c"

/* Window of two, packet identifiers through the wrap, acknowledgements out of order. */
static void test_window_and_packet_ids(void **state)
{
	struct fixture *f = *state;
	struct client c = client_new(f);
	struct source src = {.track = {.refs = 1, .on_done = on_done}};
	SAY(f, &c, CONNECT5_WINDOW2);
	EXPECT(&c, CONNACK5);
	subscribe(f, &c, 1);
	uint16_t pid = SESSION_FIRST_PACKET_ID;
	for (int i = 0; i < 40; i++) {
		for (int k = 0; k < 3; k++)
			assert_int_equal(publish(f, "a", 0, &src, 0), 1);
		uint16_t second = pid == UINT16_MAX ? 1 : (uint16_t)(pid + 1);
		uint16_t third = second == UINT16_MAX ? 1 : (uint16_t)(second + 1);
		uint8_t want[] = {0x32, 6, 0, 1, 'a', (uint8_t)(pid >> 8), (uint8_t)pid, 0, 0x32, 6,
			0, 1, 'a', (uint8_t)(second >> 8), (uint8_t)second, 0};
		expect(&c, want, sizeof(want));
		/* The second first: nothing new may go, the window begins at the oldest. */
		say(f, &c, (uint8_t[]){0x40, 2, (uint8_t)(second >> 8), (uint8_t)second}, 4);
		assert_int_equal(src.track.refs, 3);
		EXPECT(&c, "");
		say(f, &c, (uint8_t[]){0x40, 2, (uint8_t)(pid >> 8), (uint8_t)pid}, 4);
		want[5] = (uint8_t)(third >> 8);
		want[6] = (uint8_t)third;
		expect(&c, want, 8);
		say(f, &c, (uint8_t[]){0x40, 2, (uint8_t)(third >> 8), (uint8_t)third}, 4);
		assert_int_equal(src.track.refs, 1);
		pid = third == UINT16_MAX ? 1 : (uint16_t)(third + 1);
	}
	assert_in_range(pid, 1, 200);
	assert_int_equal(stats_get(f->stats, STAT_OUT_ACKED), 120);
	SAY(f, &c, "\x40\2\xf0\0");
	assert_int_equal(stats_get(f->stats, STAT_OUT_ACK_UNKNOWN), 1);
	drop(f, &c);
}

static void test_end_releases_messages(void **state)
{
	struct fixture *f = *state;
	struct client c = up(f, 5);
	struct source src = {.track = {.refs = 1, .on_done = on_done}};
	subscribe(f, &c, 1);
	for (int i = 0; i < 3; i++)
		publish(f, "a", 0, &src, 0);
	track_unref(&src.track);
	assert_int_equal(src.done, 0);
	drop(f, &c);
	assert_int_equal(src.done, 1);
	assert_int_equal(f->b->n_queued, 0);
}

static void test_dropped_as_if_acknowledged(void **state)
{
	struct fixture *f = *state;
	struct client c = client_new(f);
	struct source src = {.track = {.refs = 1, .on_done = on_done}};
	/* Maximum packet size 100. */
	SAY(f, &c, "\x10\x13\0\4MQTT\5\2\0\0\5\x27\0\0\0\x64\0\1c");
	EXPECT(&c, CONNACK5);
	subscribe(f, &c, 1);
	publish(f, "a", 92, &src, 0);
	uint8_t got[256];
	assert_int_equal(hear(&c, got, sizeof(got)), 100);
	assert_int_equal(publish(f, "a", 93, &src, 0), 1);
	assert_int_equal(publish(f, "a", 1, &src, 1), 1); /* expired long ago */
	assert_int_equal(hear(&c, got, sizeof(got)), 0);
	assert_int_equal(src.track.refs, 2);
	assert_int_equal(stats_get(f->stats, STAT_DROPPED_LARGE), 1);
	assert_int_equal(stats_get(f->stats, STAT_DROPPED_EXPIRED), 1);
	/* An expiry that is still to come goes along, rounded up. */
	publish(f, "a", 0, NULL, ev_now_ms() + 4500);
	assert_int_equal(hear(&c, got, sizeof(got)), 13);
	assert_memory_equal(got + 7, "\5\2\0\0\0\5", 6);
	drop(f, &c);
}

static void on_room(void *arg)
{
	++*(int *)arg;
}

/* Over max_queued_messages (10) sources pause, but not the client that is the cause; under half
 * they go on. A client that floods itself is sent away. */
static void test_congestion(void **state)
{
	struct fixture *f = *state;
	struct client c = client_new(f), other = client_new(f);
	int rooms = 0;
	broker_on_room(f->b, on_room, &rooms);
	SAY(f, &c, CONNECT5);
	SAY(f, &other, "\x10\x0d\0\4MQTT\4\2\0\0\0\1d");
	EXPECT(&other, "\x20\2\0\0");
	EXPECT(&c, CONNACK5);
	subscribe(f, &c, 1);
	for (int i = 0; i < 11; i++)
		publish(f, "a", 0, NULL, 0);
	assert_true(broker_congested(f->b));
	SAY(f, &other, "\x30\4\0\1ax\xc0\0");
	EXPECT(&other, ""); /* not read any more: no PINGRESP */
	assert_true(other.s->paused);
	SAY(f, &c, "\x30\4\0\1b\0\xc0\0");
	uint8_t got[256];
	ssize_t n = hear(&c, got, sizeof(got));
	assert_int_equal(n, 4 * 8 + 2);
	assert_int_equal(got[n - 2], 0xd0);
	uint16_t pid = SESSION_FIRST_PACKET_ID;
	for (int i = 0; i < 6; i++, pid++) {
		assert_int_equal(rooms, 0);
		say(f, &c, (uint8_t[]){0x40, 2, (uint8_t)(pid >> 8), (uint8_t)pid}, 4);
	}
	assert_false(broker_congested(f->b));
	assert_int_equal(rooms, 1);
	EXPECT(&other, "\xd0\0");
	assert_false(other.s->paused);
	for (int i = 0; i < 50; i++)
		publish(f, "a", 0, NULL, 0);
	(void)hear(&c, got, sizeof(got));
	SAY(f, &c, "\x30\4\0\1b\0");
	assert_int_equal(c.s->state, SESSION_LINGER);
	assert_int_equal(stats_get(f->stats, STAT_ENDS + END_QUOTA), 1);
	assert_false(broker_congested(f->b));
	drop(f, &c);
	drop(f, &other);
}

/* More publishers than one pass resumes wait for the database. One behind them, which waited for a
 * slow subscriber only, goes on all the same. */
static void test_everybody_gets_a_turn(void **state)
{
	struct fixture *f = *state;
	enum { N = BROKER_RESUME_BUDGET };
	struct client held[N], slow = up(f, 5), last = client_new(f);
	for (int i = 0; i < N; i++) {
		char hello[] = "\x10\x0d\0\4MQTT\4\2\0\0\0\1?";
		hello[sizeof(hello) - 2] = (char)('!' + i);
		held[i] = client_new(f);
		say(f, &held[i], hello, sizeof(hello) - 1);
		for (int k = 0; k < 5; k++)
			SAY(f, &held[i], "\x32\5\0\1x\0\1");
		assert_true(held[i].s->paused);
	}
	subscribe(f, &slow, 1);
	for (int i = 0; i < 11; i++)
		publish(f, "a", 0, NULL, 0);
	SAY(f, &last, "\x10\x0d\0\4MQTT\4\2\0\0\0\1d\x30\4\0\1x.");
	assert_true(last.s->paused);
	uint16_t pid = SESSION_FIRST_PACKET_ID;
	for (int i = 0; i < 6; i++, pid++)
		say(f, &slow, (uint8_t[]){0x40, 2, (uint8_t)(pid >> 8), (uint8_t)pid}, 4);
	assert_false(broker_congested(f->b));
	assert_false(last.s->paused);
	assert_int_equal(f->b->n_paused, N);
	assert_int_equal(f->b->n_to_resume, 0);
	for (int i = 0; i < N; i++)
		drop(f, &held[i]);
	drop(f, &last);
	drop(f, &slow);
}

/* The database is not there: publishes wait, the fifth breaks the receive maximum of four; in 3.1.1
 * the client is not read any more. */
static void test_receive_maximum(void **state)
{
	struct fixture *f = *state;
	struct client c = up(f, 5);
	for (int i = 0; i < 4; i++)
		SAY(f, &c, "\x32\6\0\1a\0\1\0");
	EXPECT(&c, "");
	assert_int_equal(f->b->n_waiting, 4);
	SAY(f, &c, "\x32\6\0\1a\0\1\0");
	uint8_t got[256];
	assert_true(hear(&c, got, sizeof(got)) > 3);
	assert_int_equal(got[2], 0x93);
	drop(f, &c);
	assert_int_equal(f->b->n_waiting, 4); /* they go on without it */
	c = up(f, 4);
	for (int i = 0; i < 5; i++)
		SAY(f, &c, "\x32\5\0\1a\0\1");
	EXPECT(&c, "");
	assert_true(c.s->paused);
	assert_int_equal(c.s->state, SESSION_UP);
	assert_int_equal(f->b->n_waiting, 8);
	drop(f, &c);
}

static struct inbound *inbound_at(const struct client *c, int i)
{
	list_for_each (it, &c->s->inbound) {
		if (i-- == 0)
			return list_entry(it, struct inbound, in_session);
	}
	fail();
	return NULL;
}

/* The second publish is committed before the first: subscribers and publisher see the first first.
 * Refused ones are not published; what was committed is, even if its client is gone. */
static void test_order_of_publishes(void **state)
{
	struct fixture *f = *state;
	struct client c = up(f, 4), sub = client_new(f);
	SAY(f, &sub, "\x10\x0d\0\4MQTT\4\2\0\0\0\1s\x82\6\0\1\0\1a\0");
	EXPECT(&sub, "\x20\2\0\0\x90\3\0\1\0");
	SAY(f, &c, "\x32\6\0\1a\0\1x\x32\6\0\1a\0\2y\x32\6\0\1a\0\3z");
	struct inbound *first = inbound_at(&c, 0);
	inbound_logged(0, NULL, inbound_at(&c, 1));
	turn(f);
	EXPECT(&sub, "");
	EXPECT(&c, "");
	inbound_logged(0, NULL, first);
	turn(f);
	EXPECT(&sub, "\x30\4\0\1ax\x30\4\0\1ay");
	EXPECT(&c, "\x40\2\0\1\x40\2\0\2");
	SAY(f, &c, "\x32\6\0\1a\0\1v\x32\6\0\1a\0\2w");
	struct inbound *v = inbound_at(&c, 1);
	inbound_logged(0, NULL, inbound_at(&c, 2));
	inbound_logged(-ERR_MALFORMED, "no", inbound_at(&c, 0)); /* closes: 3.1.1 */
	turn(f);
	EXPECT(&sub, "\x30\4\0\1aw");
	inbound_logged(0, NULL, v);
	turn(f);
	EXPECT(&sub, "\x30\4\0\1av");
	assert_int_equal(stats_get(f->stats, STAT_IN_REFUSED), 1);
	assert_int_equal(f->b->n_waiting, 0);
	drop(f, &c);
	drop(f, &sub);
	/* The writer still holds the rows of these inbounds: it goes without another turn. */
}

/* Overlapping subscriptions: one message, all identifiers, the highest QoS. */
static void test_overlapping(void **state)
{
	struct fixture *f = *state;
	struct client c = up(f, 5);
	SAY(f, &c, "\x82\x09\0\1\2\x0b\1\0\1a\0\x82\x09\0\2\2\x0b\2\0\1+\1\x82\7\0\3\0\0\1#\0");
	EXPECT(&c, "\x90\4\0\1\0\0\x90\4\0\2\0\1\x90\4\0\3\0\0");
	assert_int_equal(publish(f, "a", 0, NULL, 0), 1);
	uint8_t got[64];
	assert_int_equal(hear(&c, got, sizeof(got)), 12);
	assert_int_equal(got[0], 0x32);
	assert_int_equal(got[7], 4);
	assert_int_equal(got[9] + got[11], 3);
	/* Unsubscribing from one leaves the others; a second time says so. */
	SAY(f, &c, "\xa2\6\0\4\0\0\1+\xa2\6\0\5\0\0\1+");
	EXPECT(&c, "\xb0\4\0\4\0\0\xb0\4\0\5\0\x11");
	publish(f, "a", 0, NULL, 0);
	EXPECT(&c, "\x30\6\0\1a\2\x0b\1");
	drop(f, &c);
}

static void test_takeover_will_and_no_local(void **state)
{
	struct fixture *f = *state;
	struct client watcher = client_new(f);
	SAY(f, &watcher, "\x10\x0d\0\4MQTT\4\2\0\0\0\1w\x82\6\0\1\0\1t\0");
	EXPECT(&watcher, "\x20\2\0\0\x90\3\0\1\0");
	struct client old = client_new(f);
	SAY(f, &old, "\x10\x15\0\4MQTT\5\6\0\0\0\0\1c\0\0\1t\0\1!");
	EXPECT(&old, CONNACK5);
	struct client c = up(f, 5); /* the same name */
	uint8_t got[256];
	assert_true(hear(&old, got, sizeof(got)) > 3);
	assert_int_equal(got[0], 0xe0);
	assert_int_equal(got[2], 0x8e);
	assert_int_equal(hear(&old, got, sizeof(got)), -1);
	EXPECT(&watcher, "\x30\4\0\1t!");
	drop(f, &old);
	/* No local: not what it publishes itself. */
	SAY(f, &c, "\x82\7\0\1\0\0\1t\4");
	EXPECT(&c, "\x90\4\0\1\0\0");
	SAY(f, &c, "\x30\5\0\1t\0x");
	EXPECT(&c, "");
	EXPECT(&watcher, "\x30\4\0\1tx");
	SAY(f, &watcher, "\x30\4\0\1ty");
	EXPECT(&c, "\x30\5\0\1t\0y");
	drop(f, &c);
	drop(f, &watcher);
}

static void wait_for(struct fixture *f, size_t stat, uint64_t ms)
{
	uint64_t end = ev_now_ms() + ms;
	while (stats_get(f->stats, stat) == 0 && ev_now_ms() < end) {
		usleep(2000);
		ev_loop_once(f->loop, false);
	}
	assert_int_equal(stats_get(f->stats, stat), 1);
}

static void test_timeouts(void **state)
{
	struct fixture *f = *state;
	f->b->conf.ack_timeout_ms = 100;
	f->b->conf.connect_timeout_ms = 50;
	struct client silent = client_new(f);
	wait_for(f, STAT_ENDS + END_CONNECT_TIMEOUT, 5000);
	drop(f, &silent);
	f->b->conf.connect_timeout_ms = 5000;
	struct client c = up(f, 5);
	subscribe(f, &c, 1);
	publish(f, "a", 0, NULL, 0);
	wait_for(f, STAT_ENDS + END_ACK_TIMEOUT, 5000);
	drop(f, &c);
	struct client sleepy = client_new(f);
	SAY(f, &sleepy, "\x10\x0d\0\4MQTT\4\2\0\1\0\1s"); /* keep-alive 1 s */
	uint64_t begin = ev_now_ms();
	wait_for(f, STAT_ENDS + END_KEEP_ALIVE, 5000);
	assert_in_range(ev_now_ms() - begin, 1400, 4000);
	drop(f, &sleepy);
}

/* A client that reads nothing: what waits behind a full socket is not on the wire, and yet has its
 * deadline. */
static void test_unread(void **state)
{
	struct fixture *f = *state;
	struct source src = {.track = {.refs = 1, .on_done = on_done}};
	f->b->conf.ack_timeout_ms = 100;
	struct client c = up(f, 5);
	subscribe(f, &c, 0);
	for (int i = 0; i < 1000 && stats_get(f->stats, STAT_DROPPED_SLOW) == 0; i++)
		publish(f, "a", 4000, NULL, 0);
	assert_int_equal(stats_get(f->stats, STAT_DROPPED_SLOW), 1);
	SAY(f, &c, "\x82\7\0\1\0\0\1b\1");
	publish(f, "b", 0, &src, 0);
	assert_int_equal(c.s->q_sent, 0);
	assert_int_equal(src.track.refs, 2);
	wait_for(f, STAT_ENDS + END_STALLED, 5000);
	assert_int_equal(src.track.refs, 1);
	drop(f, &c);
}

/* A client that is paused again and again by its own publishes, and acknowledges nothing. */
static void test_short_pauses(void **state)
{
	struct fixture *f = *state;
	f->b->conf.ack_timeout_ms = 200;
	struct client c = up(f, 4);
	SAY(f, &c, "\x82\6\0\1\0\1a\1");
	publish(f, "a", 0, NULL, 0);
	for (int i = 0; i < 5; i++)
		SAY(f, &c, "\x32\5\0\1x\0\1");
	assert_true(c.s->paused);
	uint64_t begin = ev_now_ms();
	while (c.s->state == SESSION_UP && ev_now_ms() - begin < 5000) {
		assert_true(c.s->paused);
		session_resume(c.s);
		usleep(2000);
		ev_loop_once(f->loop, false);
	}
	assert_int_equal(stats_get(f->stats, STAT_ENDS + END_ACK_TIMEOUT), 1);
	assert_in_range(ev_now_ms() - begin, 100, 4000);
	drop(f, &c);
	/* A long pause is not held against anybody. */
	c = up(f, 4);
	SAY(f, &c, "\x82\6\0\1\0\1a\1");
	publish(f, "a", 0, NULL, 0);
	for (int i = 0; i < 5; i++)
		SAY(f, &c, "\x32\5\0\1x\0\1");
	assert_true(c.s->paused);
	c.s->unread_ms -= SESSION_LONG_PAUSE_MS;
	c.s->acked_ms -= SESSION_LONG_PAUSE_MS;
	session_resume(c.s);
	assert_int_equal(c.s->state, SESSION_UP);
	drop(f, &c);
}

int main(void)
{
	log_init("test_session", LOG_LEVEL_ERROR);
#define T(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_every_state_and_packet),
		T(test_bytes_one_by_one),
		T(test_window_and_packet_ids),
		T(test_end_releases_messages),
		T(test_dropped_as_if_acknowledged),
		T(test_congestion),
		T(test_everybody_gets_a_turn),
		T(test_receive_maximum),
		T(test_order_of_publishes),
		T(test_overlapping),
		T(test_takeover_will_and_no_local),
		T(test_timeouts),
		T(test_unread),
		T(test_short_pauses),
	};
	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
