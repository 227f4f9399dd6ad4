/* SPDX-License-Identifier: PostgreSQL */
/*
 * changes, with everything that it stands on: a real server and its walsender, libpgwalstream, the
 * ring and its reader, the batching writer. The test plays walstreamd (stream -> ring) and the
 * broker's side (broker.h: it keeps what is published, and acknowledges when told to). Runs
 * inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <libpq-fe.h>
#include <pgwalstream.h>

#include "brokerd/changes.h"
#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_conf.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"

#define CAPACITY (1 << 20)
#define PATIENCE_MS 20000
#define RECORDED_MAX 4096

/* ---- The broker's side of broker.h, and what changes uses of daemon.h ---- */

static struct {
	struct message *kept[RECORDED_MAX];
	size_t n;       /* published */
	size_t n_acked; /* of them, given back */
	bool congested;
	void (*room)(void *arg);
	void *room_arg;
} sub;

size_t broker_publish(struct broker *b, struct message *m)
{
	(void)b;
	assert_true(sub.n < RECORDED_MAX);
	sub.kept[sub.n++] = message_ref(m);
	return 1;
}

bool broker_wants(struct broker *b, const char *topic, size_t topic_len)
{
	(void)b;
	return topic_len < 8 || memcmp(topic, "unwanted", 8) != 0;
}

bool broker_congested(const struct broker *b)
{
	(void)b;
	return sub.congested;
}

void broker_on_room(struct broker *b, void (*cb)(void *arg), void *arg)
{
	(void)b;
	sub.room = cb;
	sub.room_arg = arg;
}

static void puback_to(size_t n)
{
	for (; sub.n_acked < n; sub.n_acked++)
		message_unref(&sub.kept[sub.n_acked]);
}

static int attach_fds[2] = {-1, -1};
static bool attach_wanted;
static int exits;

int daemon_relay(struct daemon *d, uint32_t to_role, uint32_t kind, const struct buf *body,
	const int *fds, size_t n_fds)
{
	(void)d;
	(void)body;
	assert_int_equal(to_role, ROLE_WALSTREAMD);
	assert_int_equal(kind, RELAY_RING_ATTACH);
	assert_int_equal(n_fds, 2);
	attach_fds[0] = dup(fds[0]);
	attach_fds[1] = dup(fds[1]);
	attach_wanted = true;
	return 0;
}

void daemon_exit(struct daemon *d, int status)
{
	(void)d;
	(void)status;
	exits++;
}

/* ---- walstreamd's side ---- */

struct fixture {
	PGconn *sql;
	struct daemon d;
	struct batch *writer;
	struct changes *c;
	struct pgws_stream *stream;
	uint64_t slot_lsn;
	/* the ring */
	uint64_t epoch;
	uint32_t timeline;
	int data_fd, space_event, data_event;
	void *data, *cursor;
	struct ring_producer *p;
	/* the transaction that comes from the stream */
	uint64_t commit_lsn;
	int64_t commit_time;
	uint32_t ordinal;
	uint64_t received;
};

static void sql(struct fixture *f, const char *text)
{
	PGresult *res = PQexec(f->sql, text);

	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s: %s", text, PQerrorMessage(f->sql));
	PQclear(res);
}

/* First value of the first row; owned by the caller. */
static char *value(struct fixture *f, const char *text)
{
	PGresult *res = PQexec(f->sql, text);

	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s: %s", text, PQerrorMessage(f->sql));
	char *v = xstrdup(PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : "");
	PQclear(res);
	return v;
}

static uint64_t wal_position(struct fixture *f)
{
	char *text = value(f, "SELECT pg_current_wal_insert_lsn()");
	uint64_t lsn;

	assert_int_equal(pgws_lsn_parse(text, &lsn), 0);
	free(text);
	return lsn;
}

static void stream_work(struct pgws_stream *s)
{
	int err;

	while ((err = pgws_stream_work(s)) == PGWS_EAGAIN) {
		struct pollfd p = {.fd = pgws_stream_fd(s),
			.events = (short)((pgws_stream_wants_read(s) ? POLLIN : 0) |
					  (pgws_stream_wants_write(s) ? POLLOUT : 0))};
		assert_true(poll(&p, 1, PATIENCE_MS) > 0);
	}
	if (err != 0)
		fail_msg("stream: %s", pgws_stream_error(s));
}

static void put(struct fixture *f, const struct ring_record *rec, const void *payload)
{
	size_t offset = 0;
	int err;

	while ((err = ring_write_part(f->p, rec, payload, &offset)) != 0) {
		unsigned bad;

		(void)ring_publish(f->p);
		ring_event_signal(f->data_event);
		ev_loop_once(f->d.loop, false);
		assert_int_equal(ring_producer_refresh(f->p, &bad), 0);
	}
	(void)ring_publish(f->p);
	ring_event_signal(f->data_event);
}

static void put_message(struct fixture *f, const struct pgws_event *ev)
{
	struct pgws_msg m;
	struct ring_record rec = {.type = RING_MESSAGE,
		.audience = RING_TO_BROKERD,
		.timeline = f->timeline,
		.payload_len = (uint32_t)ev->len,
		.lsn = ev->start_lsn};

	assert_int_equal(pgws_decode(ev->data, ev->len, false, &m), 0);
	if (m.type == PGWS_BEGIN) {
		f->commit_lsn = m.u.begin.final_lsn;
		f->commit_time = m.u.begin.commit_time;
		f->ordinal = 0;
	}
	if (strchr("IUDT", m.type) != NULL)
		rec.ordinal = ++f->ordinal;
	rec.commit_lsn = f->commit_lsn;
	rec.commit_time = f->commit_time;
	if (m.type == PGWS_COMMIT)
		f->received = rec.end_lsn = m.u.commit.end_lsn;
	put(f, &rec, ev->data);
}

static void grant(struct fixture *f, uint64_t from_lsn)
{
	struct ring_link_grant g = {
		.epoch = f->epoch, .from_lsn = from_lsn, .timeline = f->timeline};
	struct imsg msg = {.n_fds = 2, .fds = {dup(f->data_fd), dup(f->space_event)}};
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = f->timeline,
		.commit_lsn = from_lsn};
	struct buf body;

	attach_wanted = false;
	assert_int_equal(ring_cursor_map(attach_fds[0], &f->cursor), 0);
	close(attach_fds[0]);
	f->data_event = attach_fds[1];
	assert_int_equal(ring_producer_add(f->p, 1, f->cursor, 0), 0);
	buf_init(&body, 0);
	ring_link_put_grant(&body, &g);
	msg.body = rd_make(body.data, body.len_bytes);
	assert_int_equal(changes_relay(f->c, RELAY_RING_GRANT, &msg), 0);
	buf_free(&body);
	put(f, &rec, NULL);
}

/* One turn of everything. */
static void turn(struct fixture *f)
{
	struct pgws_event ev;
	unsigned bad;

	ev_loop_once(f->d.loop, false);
	assert_int_equal(ring_producer_refresh(f->p, &bad), 0);
	for (int i = 0; i < 100 && f->stream != NULL; i++) {
		int err = pgws_stream_next(f->stream, &ev);
		if (err == PGWS_EAGAIN)
			break;
		assert_int_equal(err, 0);
		if (ev.kind == PGWS_EVENT_DATA)
			put_message(f, &ev);
	}
	usleep(500);
}

#define TURN_UNTIL(f, what)                                                                        \
	do {                                                                                       \
		uint64_t turn_end = ev_now_ms() + PATIENCE_MS;                                     \
		while (!(what)) {                                                                  \
			if (ev_now_ms() > turn_end)                                                \
				fail_msg("never: %s; %s", #what, changes_trouble((f)->c));         \
			turn(f);                                                                   \
		}                                                                                  \
	} while (0)

static uint64_t stat_of(struct fixture *f, size_t index)
{
	changes_update_stats(f->c);
	return stats_get(f->d.stats, index);
}

/* Everything that is committed so far has come through changes. */
static void settle(struct fixture *f)
{
	uint64_t before = wal_position(f);

	sql(f, "INSERT INTO mark DEFAULT VALUES");
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_RECEIVED_LSN) > before);
}

static const struct stats_row stat_rows[] = {CHANGES_STATS_ROWS};

/* Connects the stream; the first time makes the slot. Returns where it begins. */
static uint64_t stream_from(struct fixture *f, uint64_t from_lsn)
{
	struct pgws_stream_options so = {.size = sizeof(struct pgws_stream_options),
		.conninfo = "",
		.slot = "howdah_n",
		.publications = "howdah",
		.messages = true};

	f->stream = pgws_stream_new(&so);
	assert_int_equal(pgws_stream_connect(f->stream), 0);
	stream_work(f->stream);
	if (f->slot_lsn == 0) {
		assert_int_equal(pgws_stream_create_slot(f->stream,
					 &(struct pgws_slot_options){
						 .size = sizeof(struct pgws_slot_options),
						 .snapshot = PGWS_SNAPSHOT_NOTHING}),
			0);
		stream_work(f->stream);
		from_lsn = f->slot_lsn = pgws_stream_consistent_point(f->stream);
	}
	assert_int_equal(pgws_stream_start(f->stream, from_lsn), 0);
	stream_work(f->stream);
	return from_lsn;
}

/* walstreamd and changes begin to live; the stream begins at from_lsn. */
static void begin(struct fixture *f, uint64_t from_lsn)
{
	static struct batch_kind kinds[1];
	struct batch_options options = {.conninfo = "",
		.application_name = "writer",
		.node = "n",
		.role = "brokerd",
		.kinds = kinds,
		.n_kinds = 1};
	static const struct batch_ops ops;

	kinds[0] = changes_state_kind;
	f->writer = batch_new(f->d.loop, &options, &ops, f);
	f->c = changes_new(&f->d, NULL, f->writer, 0, "");
	from_lsn = stream_from(f, from_lsn);
	f->epoch++;
	assert_int_equal(ring_data_create(CAPACITY, &f->data_fd, &f->data), 0);
	assert_int_equal(ring_event_create(&f->space_event), 0);
	f->p = ring_producer_new(f->data, CAPACITY, f->epoch, 0);
	changes_peer(f->c, true, (uint32_t)f->epoch);
	uint64_t end = ev_now_ms() + PATIENCE_MS;
	while (!attach_wanted && ev_now_ms() < end)
		ev_loop_once(f->d.loop, true);
	assert_true(attach_wanted);
	grant(f, from_lsn);
}
static void end(struct fixture *f)
{
	changes_free(&f->c);
	batch_free(&f->writer);
	puback_to(sub.n);
	pgws_stream_free(&f->stream);
	ring_producer_free(&f->p);
	ring_data_unmap(f->data, RING_HEADER_BYTES + CAPACITY);
	ring_cursor_unmap(f->cursor);
	close(f->data_fd);
	close(f->space_event);
	close(f->data_event);
}

static int setup(void **state)
{
	static const struct conf_row *const schemas[] = {ring_conf_rows, NULL};
	struct fixture *f = xcalloc(1, sizeof(*f));

	memset(&sub, 0, sizeof(sub));
	exits = 0;
	f->timeline = 1;
	f->sql = PQconnectdb("options='-c client_min_messages=error'");
	f->d.loop = ev_loop_new();
	f->d.stats = stats_new(NULL, stat_rows, ARRAY_LEN(stat_rows));
	f->d.node = (char *)"n";
	f->d.state_dir = xstrdup("/tmp/howdah-changes.XXXXXX");
	assert_non_null(mkdtemp(f->d.state_dir));
	assert_int_equal(conf_parse("", "test", schemas, NULL, &f->d.conf, NULL), 0);
	sql(f, "DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA s; SET search_path = s;"
	       "CREATE TABLE mark (id serial PRIMARY KEY)");
	sql(f, "SELECT howdah_mqtt.publish_table('mark', 'mark', 0)");
	begin(f, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char *command = xasprintf("rm -rf '%s'", f->d.state_dir);

	end(f);
	conf_free(&f->d.conf);
	stats_free(&f->d.stats);
	ev_loop_free(&f->d.loop);
	usleep(100000);
	sql(f, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
	sql(f, "DROP SCHEMA s CASCADE; DELETE FROM howdah_mqtt.publish_mapping;"
	       "DELETE FROM howdah_mqtt.node_state");
	PQfinish(f->sql);
	assert_int_equal(system(command), 0);
	free(command);
	free(f->d.state_dir);
	free(f);
	return 0;
}

static void slot_created(struct fixture *f)
{
	char lsn[18];
	char *text = xasprintf(
		"SELECT howdah_mqtt.slot_created('n', '%s')", pgws_lsn_str(f->slot_lsn, lsn));

	sql(f, text);
	free(text);
}

/* Topics of everything published, one blank behind each; marks left out. */
static const char *topics(void)
{
	static char text[4096];
	size_t len = 0;

	text[0] = '\0';
	for (size_t i = sub.n_acked; i < sub.n; i++) {
		if (strcmp(sub.kept[i]->topic, "mark") != 0)
			len += (size_t)snprintf(
				text + len, sizeof(text) - len, "%s ", sub.kept[i]->topic);
	}
	return text;
}

/* Nothing is stored for the slot: the remedy is shown, and works. */
static void test_no_state(void **state)
{
	struct fixture *f = *state;

	TURN_UNTIL(f, changes_trouble(f->c)[0] != '\0');
	assert_non_null(strstr(changes_trouble(f->c), "SELECT howdah_mqtt.slot_created('n', '"));
	sql(f, strstr(changes_trouble(f->c), "SELECT"));
	TURN_UNTIL(f, changes_trouble(f->c)[0] == '\0');
	settle(f);
	assert_true(sub.n > 0);
}

static void test_mapping_at_its_place(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY, a text)");
	sql(f, "INSERT INTO t VALUES (1)");
	sql(f, "BEGIN; SELECT howdah_mqtt.publish_table('t', 'a/{op}/{id}');"
	       "INSERT INTO t VALUES (2); COMMIT");
	sql(f, "INSERT INTO t VALUES (3)");
	sql(f, "BEGIN; INSERT INTO t VALUES (4); SELECT howdah_mqtt.publish_table('t', 'b/{id}');"
	       "INSERT INTO t VALUES (5); SELECT howdah_mqtt.unpublish_table('t'); COMMIT");
	sql(f, "INSERT INTO t VALUES (6)");
	sql(f, "SELECT howdah_mqtt.publish_table('t', 'c/{op}/{id}')");
	sql(f, "UPDATE t SET id = 60 WHERE id = 6; DELETE FROM t WHERE id = 1; TRUNCATE t");
	settle(f);
	assert_string_equal(topics(), "a/insert/2 a/insert/3 a/insert/4 b/5 c/update/60 c/delete/1 "
				      "c/truncate/ ");
	const struct message *m = sub.kept[sub.n - 1];
	for (size_t i = 0; i < sub.n; i++) {
		if (strcmp(sub.kept[i]->topic, "c/update/60") == 0)
			m = sub.kept[i];
	}
	assert_int_equal(m->qos, 1);
	assert_non_null(memmem(m->payload, m->payload_len, "\"old\":{\"id\":6}", 14));
	assert_non_null(memmem(m->payload, m->payload_len, "\"schema\":\"s\",\"table\":\"t\"", 24));
	assert_non_null(memmem(m->props, m->props_len, "\x26\x00\x02op\x00\x06update", 13));
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_STATES_STORED) == 3);
	assert_int_equal(exits, 0);
}

/* And is acknowledged. Twice: storing what it said of mappings was a transaction, too, which
 * PostgreSQL 14 sends, empty. */
static void settle_acked(struct fixture *f)
{
	for (int i = 0; i < 2; i++) {
		settle(f);
		puback_to(sub.n);
		TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) == f->received);
	}
}

/* Acknowledged is not past the first message that lacks its PUBACK, nor an unstored set. */
static void test_acknowledgement(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY); SELECT howdah_mqtt.publish_table('t', "
	       "'t/{id}')");
	settle_acked(f);
	uint64_t before = f->received;
	size_t n = sub.n;
	sql(f, "INSERT INTO t VALUES (1)");
	settle(f);
	uint64_t second = wal_position(f);
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	assert_int_equal(stat_of(f, CHANGES_STAT_ACKED_LSN), before);
	/* Messages: 1, mark, 2, mark. */
	assert_int_equal(sub.n, n + 4);
	puback_to(n + 2);
	assert_true(stat_of(f, CHANGES_STAT_ACKED_LSN) > before);
	assert_true(stat_of(f, CHANGES_STAT_ACKED_LSN) <= second);
	puback_to(sub.n);
	assert_int_equal(stat_of(f, CHANGES_STAT_ACKED_LSN), f->received);
	assert_int_equal(stat_of(f, CHANGES_STAT_PENDING_TX), 0);
}

/* A second life reads the set of its place: after a crash in the midst of what was not
 * acknowledged. */
static void test_second_life(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY); SELECT howdah_mqtt.publish_table('t', "
	       "'a/{id}')");
	settle_acked(f);
	uint64_t acked = f->received;
	sql(f, "INSERT INTO t VALUES (1); SELECT howdah_mqtt.publish_table('t', 'b/{id}');");
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	assert_string_equal(topics(), "a/1 b/2 ");
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_STATES_STORED) == 2);
	assert_int_equal(stat_of(f, CHANGES_STAT_ACKED_LSN), acked);
	end(f);
	usleep(100000);
	begin(f, acked);
	settle(f);
	assert_string_equal(topics(), "a/1 b/2 ");
	/* And a third, from behind the change of the mapping. */
	puback_to(sub.n);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) == f->received);
	acked = f->received;
	end(f);
	usleep(100000);
	begin(f, acked);
	sql(f, "INSERT INTO t VALUES (3)");
	settle(f);
	assert_string_equal(topics(), "b/3 ");
}

/* A failover: what the new timeline has from the slot's position on comes again, with its mappings.
 */
static void test_other_timeline(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY); SELECT howdah_mqtt.publish_table('t', "
	       "'a/{id}')");
	settle_acked(f);
	uint64_t acked = f->received;
	sql(f, "INSERT INTO t VALUES (1); SELECT howdah_mqtt.publish_table('t', 'b/{id}')");
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	assert_string_equal(topics(), "a/1 b/2 ");
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_STATES_STORED) == 2);

	f->timeline = 2;
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = f->timeline,
		.commit_lsn = acked};
	put(f, &rec, NULL);
	pgws_stream_free(&f->stream);
	TURN_UNTIL(f, attach_wanted);
	ring_producer_drop(f->p, 1);
	ring_cursor_unmap(f->cursor);
	close(f->data_event);
	usleep(100000);
	(void)stream_from(f, acked);
	grant(f, acked);
	settle(f);
	assert_string_equal(topics(), "a/1 b/2 a/1 b/2 ");
	/* What the old timeline's subscribers say now is of no account. */
	puback_to(sub.n);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) == f->received);
	assert_int_equal(stat_of(f, CHANGES_STAT_PENDING_TX), 0);
}

static void put_timeline(struct fixture *f, uint64_t from_lsn, uint64_t left_lsn)
{
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = f->timeline + 1,
		.commit_lsn = from_lsn,
		.relid = f->timeline,
		.lsn = left_lsn};

	f->timeline++;
	put(f, &rec, NULL);
}

/* What both timelines have is not published again, and is acknowledged by the PUBACKs that it had
 * waited for. */
static void test_timeline_kept(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY); SELECT howdah_mqtt.publish_table('t', "
	       "'a/{id}')");
	settle_acked(f);
	uint64_t acked = f->received;
	sql(f, "INSERT INTO t VALUES (1); SELECT howdah_mqtt.publish_table('t', 'b/{id}')");
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	uint64_t left = f->received;
	size_t n = sub.n;
	pgws_stream_free(&f->stream);
	usleep(100000);
	put_timeline(f, acked, left);
	(void)stream_from(f, acked);
	sql(f, "INSERT INTO t VALUES (3)");
	settle(f);
	assert_string_equal(topics(), "a/1 b/2 b/3 ");
	assert_false(attach_wanted);
	/* The old ones' count, up to there. */
	assert_int_equal(stat_of(f, CHANGES_STAT_ACKED_LSN), acked);
	puback_to(n);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) >= left);
	assert_true(stat_of(f, CHANGES_STAT_ACKED_LSN) < f->received);
	puback_to(sub.n);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) == f->received);
	assert_int_equal(stat_of(f, CHANGES_STAT_PENDING_TX), 0);
}

static bool sql_is_zero(struct fixture *f, const char *text)
{
	PGresult *res = PQexec(f->sql, text);
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	bool zero = strcmp(PQgetvalue(res, 0, 0), "0") == 0;
	PQclear(res);
	return zero;
}

/* A set of mappings that did not last is still being stored when the timeline changes: it is waited
 * for and removed, before the set of the beginning is read. */
static void test_timeline_set_in_doubt(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY); SELECT howdah_mqtt.publish_table('t', "
	       "'a/{id}')");
	settle_acked(f);
	uint64_t acked = f->received;
	char *later = xasprintf("SELECT count(*) FROM howdah_mqtt.node_state WHERE lsn - '0/0' > "
				"%llu",
		(unsigned long long)acked);
	/* Whoever stores waits for this; whoever removes does not. */
	sql(f, "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
	       "'BEGIN PERFORM pg_advisory_xact_lock(4242); RETURN NEW; END';"
	       "CREATE TRIGGER hold BEFORE INSERT ON howdah_mqtt.node_state FOR EACH ROW "
	       "EXECUTE FUNCTION hold()");
	PGconn *lock = PQconnectdb("");
	PQclear(PQexec(lock, "SELECT pg_advisory_lock(4242)"));
	sql(f, "SELECT howdah_mqtt.publish_table('t', 'b/{id}')");
	sql(f, "INSERT INTO t VALUES (1)");
	settle(f);
	assert_string_equal(topics(), "b/1 ");

	pgws_stream_free(&f->stream);
	put_timeline(f, acked, acked);
	TURN_UNTIL(f, attach_wanted);
	ring_producer_drop(f->p, 1);
	ring_cursor_unmap(f->cursor);
	close(f->data_event);
	usleep(100000);
	grant(f, acked);
	uint64_t stored = stat_of(f, CHANGES_STAT_STATES_STORED);
	for (int i = 0; i < 200; i++)
		turn(f);
	assert_int_equal(stat_of(f, CHANGES_STAT_STATES_STORED), stored);
	PQfinish(lock);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_STATES_STORED) == stored + 1);
	TURN_UNTIL(f, sql_is_zero(f, later));
	free(later);
	sql(f, "DROP TRIGGER hold ON howdah_mqtt.node_state");
	/* Another history: without the mapping. */
	sql(f, "SELECT howdah_mqtt.publish_table('t', 'a/{id}')");
	(void)stream_from(f, f->received);
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	assert_non_null(strstr(topics(), "a/2 "));
}

/* walstreamd's next life, which has the same ring. */
static void attach_again(struct fixture *f)
{
	changes_peer(f->c, false, (uint32_t)f->epoch);
	ring_producer_drop(f->p, 1);
	ring_cursor_unmap(f->cursor);
	close(f->data_event);
	changes_peer(f->c, true, (uint32_t)f->epoch + 1);
	TURN_UNTIL(f, attach_wanted);
}

/* The old slot is gone; the stream comes from a new one. */
static void new_slot(struct fixture *f)
{
	sql(f, "SELECT pg_drop_replication_slot('howdah_n')");
	f->slot_lsn = 0;
	(void)stream_from(f, 0);
	slot_created(f);
}

/* walstreamd goes away in the middle of a transaction, and its slot with it: the rest never comes,
 * and the mappings are those of the new slot's beginning. */
static void test_slot_made_anew(void **state)
{
	struct fixture *f = *state;
	struct buf begun;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY)");
	settle(f);
	pgws_stream_free(&f->stream);
	buf_init(&begun, 0);
	buf_put_u8(&begun, 'B');
	buf_put_be64(&begun, f->received + 8);
	buf_put_be64(&begun, 0);
	buf_put_be32(&begun, 7);
	struct pgws_event ev = {
		.kind = PGWS_EVENT_DATA, .data = begun.data, .len = begun.len_bytes};
	put_message(f, &ev);
	buf_free(&begun);
	uint64_t records = stat_of(f, CHANGES_STAT_RECORDS);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_RECORDS) > records);
	usleep(100000);
	sql(f, "SELECT howdah_mqtt.publish_table('t', 'a/{id}')");
	new_slot(f);
	attach_again(f);
	grant(f, f->slot_lsn);
	sql(f, "INSERT INTO t VALUES (1)");
	settle(f);
	assert_string_equal(topics(), "a/1 ");
	puback_to(sub.n);
	TURN_UNTIL(f, stat_of(f, CHANGES_STAT_ACKED_LSN) == f->received);
	assert_int_equal(stat_of(f, CHANGES_STAT_PENDING_TX), 0);

	/* Once more, between two transactions and two streams of one walstreamd. */
	pgws_stream_free(&f->stream);
	usleep(100000);
	sql(f, "SELECT howdah_mqtt.publish_table('t', 'b/{id}')");
	new_slot(f);
	struct ring_record rec = {.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = f->timeline,
		.commit_lsn = f->slot_lsn};
	put(f, &rec, NULL);
	sql(f, "INSERT INTO t VALUES (2)");
	settle(f);
	assert_string_equal(topics(), "b/2 ");
}

/* The gap is said, and what is stored for before the new slot is not waited for in vain. */
static void test_gap(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	settle(f);
	pgws_stream_free(&f->stream);
	usleep(100000);
	uint64_t from = f->received;
	new_slot(f);
	struct ring_record rec = {.type = RING_GAP,
		.audience = RING_TO_ALL,
		.timeline = f->timeline,
		.lsn = from,
		.end_lsn = f->slot_lsn,
		.commit_time = 1000000,
		.payload_len = 12};
	size_t n = sub.n;
	put(f, &rec, "it \"was\" lost");
	rec = (struct ring_record){.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = f->timeline,
		.commit_lsn = f->slot_lsn};
	put(f, &rec, NULL);
	settle(f);
	assert_int_equal(stat_of(f, CHANGES_STAT_GAPS), 1);
	assert_non_null(strstr(changes_gap(f->c), "are missing: it "));
	assert_string_equal(sub.kept[n]->topic, "$SYS/howdah/gap");
	char from_text[18], to_text[18];
	char *expect = xasprintf("{\"node\":\"n\",\"from_lsn\":\"%s\",\"to_lsn\":\"%s\","
				 "\"reason\":\"it \\\"was\\\" los\",\"at\":946684801.0}",
		pgws_lsn_str(from, from_text), pgws_lsn_str(f->slot_lsn, to_text));
	assert_int_equal(sub.kept[n]->payload_len, strlen(expect));
	assert_memory_equal(sub.kept[n]->payload, expect, strlen(expect));
	free(expect);
}

static void test_congestion(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	settle(f);
	size_t n = sub.n;
	sub.congested = true;
	sql(f, "INSERT INTO mark SELECT FROM generate_series(1, 500)");
	for (int i = 0; i < 100; i++)
		turn(f);
	assert_int_equal(sub.n, n);
	assert_true(stat_of(f, CHANGES_STAT_PAUSES) > 0);
	sub.congested = false;
	sub.room(sub.room_arg);
	settle(f);
	assert_int_equal(sub.n, n + 501);
}

/* Types from the catalogue, and one that is altered while its rows are on their way. */
static void test_types(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN num AS numeric;"
	       "CREATE TABLE t (id int PRIMARY KEY, p pair, l pair[], n num);"
	       "SELECT howdah_mqtt.publish_table('t', 't/{id}', 1, '{new}')");
	sql(f, "INSERT INTO t VALUES (1, (1, 'x'), ARRAY[(2, 'y z')::pair], 1.50)");
	settle(f);
	assert_string_equal(topics(), "t/1 ");
	struct message *m = sub.kept[0];
	for (size_t i = 0; i < sub.n; i++) {
		if (strcmp(sub.kept[i]->topic, "t/1") == 0)
			m = sub.kept[i];
	}
	static const char first[] =
		"{\"id\":1,\"p\":{\"a\":1,\"b\":\"x\"},\"l\":[{\"a\":2,\"b\":\"y z\"}],\"n\":1.50}";
	assert_int_equal(m->payload_len, sizeof(first) - 1);
	assert_memory_equal(m->payload, first, sizeof(first) - 1);
	puback_to(sub.n);
	sql(f, "ALTER TYPE pair ADD ATTRIBUTE c bool");
	sql(f, "INSERT INTO t VALUES (2, (1, 'x', true), NULL, NULL)");
	settle(f);
	assert_string_equal(topics(), "t/2 ");
	static const char second[] =
		"{\"id\":2,\"p\":{\"a\":1,\"b\":\"x\",\"c\":true},\"l\":null,\"n\":null}";
	m = sub.kept[sub.n_acked];
	assert_int_equal(m->payload_len, sizeof(second) - 1);
	assert_memory_equal(m->payload, second, sizeof(second) - 1);
	assert_int_equal(stat_of(f, CHANGES_STAT_BAD_VALUE), 0);
}

static void test_bad_topic_is_counted(void **state)
{
	struct fixture *f = *state;

	slot_created(f);
	sql(f, "CREATE TABLE t (id int PRIMARY KEY, a text);"
	       "SELECT howdah_mqtt.publish_table('t', '{a}')");
	sql(f, "INSERT INTO t VALUES (1, NULL), (2, repeat('x', 65536)), (3, 'good'), (4, "
	       "'unwanted')");
	settle(f);
	assert_string_equal(topics(), "good ");
	assert_int_equal(stat_of(f, CHANGES_STAT_UNMATCHED), 1);
	assert_int_equal(stat_of(f, CHANGES_STAT_BAD_TOPIC), 2);
}

static char *read_sql_file(const char *name)
{
	const char *src = getenv("HOWDAH_SRCDIR");
	char *path = xasprintf("%s/sql/howdah_mqtt/%s", src != NULL ? src : ".", name);
	FILE *file = fopen(path, "r");
	char *text = xcalloc(1, 1 << 20);

	if (file == NULL || fread(text, 1, (1 << 20) - 1, file) == 0)
		perror(path);
	if (file != NULL)
		fclose(file);
	free(path);
	return text;
}

int main(void)
{
	PGconn *conn = PQconnectdb("");
	char *text = read_sql_file("0001-mqtt.sql");
	PGresult *res = PQexec(conn, text);
	if (PQresultStatus(res) == PGRES_FATAL_ERROR) {
		fprintf(stderr, "%s\n", PQerrorMessage(conn));
		return 1;
	}
	PQclear(res);
	PQfinish(conn);
	free(text);
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_no_state),
		TEST(test_mapping_at_its_place),
		TEST(test_acknowledgement),
		TEST(test_second_life),
		TEST(test_other_timeline),
		TEST(test_timeline_kept),
		TEST(test_timeline_set_in_doubt),
		TEST(test_gap),
		TEST(test_slot_made_anew),
		TEST(test_congestion),
		TEST(test_types),
		TEST(test_bad_topic_is_counted),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
