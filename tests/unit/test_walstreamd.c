/* SPDX-License-Identifier: PostgreSQL */
/*
 * The program walstreamd, as it is installed, between a real server and a real reader of the ring:
 * this program plays the supervisor (messages, descriptors) and holds a ring_reader in brokerd's
 * place. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/base/stats.h"
#include "common/ipc/imsg.h"
#include "common/ipc/worker_proto.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"
#include "common/ring/ring_reader.h"
#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_sql.h"

#define PATIENCE_MS 30000
#define LONG_WAIT_MS 300
#define NODE "alpha"
#define SLOT "howdah_alpha"

static struct ev_loop *loop;
static const char *program;
static char spool_dir[64], state_dir[64];
/* Keys of the walstreamd section beside the ring's size. */
static const char *more_keys = "";

/* ---- SQL ------------------------------------------------------------------------------------ */

static void run_file(const char *path)
{
	char full[4096];
	const char *src = getenv("HOWDAH_SRCDIR");
	snprintf(full, sizeof(full), "%s/%s", src != NULL ? src : ".", path);
	FILE *f = fopen(full, "r");
	assert_non_null(f);
	char *text = calloc(1, 1 << 20);
	size_t n = fread(text, 1, (1 << 20) - 1, f);
	assert_true(n > 0);
	fclose(f);
	run(text);
	free(text);
}

static void run_schema(void)
{
	run_file("sql/howdah/0001-node.sql");
	run_file("sql/howdah/0002-gap.sql");
	run_file("sql/howdah/0003-node-logs.sql");
}

/* ---- The supervisor's part ------------------------------------------------------------------- */

static struct {
	pid_t pid;
	uint32_t generation;
	struct imsg_channel *channel;
	void *page;
	bool hello, ready, closed;
	size_t n_grants;
	bool reader_up;
	char status[600];
	char relay_refused[200];
} sup;

/* What the reader saw, one word per record: "B", "R:t", "I:1", "C", "S" (a stream begins). Empty
 * transactions (PostgreSQL 14 sends them all) are only counted. */
static struct {
	struct ring_reader *reader;
	char *log;
	size_t len, cap;
	bool auto_ack;
	bool pause; /* take nothing */
	bool slow;  /* take each one's time */
	uint64_t taken_ms;
	size_t n_waits; /* for the next record, of more than LONG_WAIT_MS */
	uint64_t last_end_lsn;
	uint64_t from_lsn;
	uint32_t timeline;
	uint32_t last_ordinal;
	size_t n_inserts, n_commits, n_streams, n_empty, n_gaps;
	uint64_t gap_from_lsn, gap_to_lsn; /* of the last one */
	size_t begin_at;                   /* in log */
	bool empty;
	uint64_t payload_bytes;
	uint64_t digest; /* of all transactions but their relation messages; empty ones left out */
	uint64_t txn_digest;
	struct pgws_catalog *catalog;
} con;

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void note(const char *fmt, ...)
{
	if (con.cap - con.len < 256) {
		con.cap = con.cap == 0 ? 65536 : con.cap * 2;
		con.log = realloc(con.log, con.cap);
		assert_non_null(con.log);
	}
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(con.log + con.len, con.cap - con.len, fmt, ap);
	va_end(ap);
	con.len += (size_t)n < con.cap - con.len ? (size_t)n : con.cap - con.len - 1;
}

static void forget(void)
{
	con.len = 0;
	if (con.log != NULL)
		con.log[0] = '\0';
	con.n_inserts = con.n_commits = con.n_streams = con.n_empty = con.n_gaps = 0;
	con.payload_bytes = con.digest = 0;
}

static void note_change(const struct ring_record *rec, const struct pgws_msg *m)
{
	assert_int_equal(rec->ordinal, con.last_ordinal + 1);
	con.last_ordinal = rec->ordinal;
	assert_int_equal(rec->relid, m->u.change.relid);
	assert_non_null(pgws_catalog_find(con.catalog, rec->relid));
	struct pgws_column col = {.len = 0};
	size_t offset = 0;
	const struct pgws_tuple *t =
		m->type == PGWS_DELETE ? &m->u.change.old_row : &m->u.change.new_row;
	(void)pgws_tuple_next(t, &offset, &col);
	con.n_inserts += m->type == PGWS_INSERT;
	if (con.n_inserts < 100)
		note(" %c:%.*s", (char)m->type, (int)col.len, col.data != NULL ? col.data : "");
}

static uint64_t fold(uint64_t digest, const void *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		digest = (digest ^ ((const uint8_t *)data)[i]) * UINT64_C(1099511628211);
	return digest;
}

/* Relations are announced anew in a streamed transaction, and Begin has no LSN of its own. */
static void take_digest(const struct ring_record *rec, const void *payload, enum pgws_type type)
{
	uint64_t words[] = {rec->audience, rec->relid, rec->timeline, rec->ordinal, rec->commit_lsn,
		rec->end_lsn, (uint64_t)rec->commit_time, 0};
	if (type == PGWS_RELATION || type == PGWS_TYPE)
		return;
	if (type == PGWS_BEGIN)
		con.txn_digest = 0;
	else if (type != PGWS_COMMIT)
		words[7] = rec->lsn;
	con.txn_digest = fold(con.txn_digest, words, sizeof(words));
	con.txn_digest = fold(con.txn_digest, payload, rec->payload_len);
}

static int on_record(const struct ring_record *rec, const void *payload, void *arg)
{
	(void)arg;
	if (con.pause)
		return RING_READER_PAUSE;
	if (con.slow) {
		con.n_waits += con.taken_ms != 0 && ev_now_ms() - con.taken_ms > LONG_WAIT_MS;
		usleep(100);
		con.taken_ms = ev_now_ms();
	}
	struct pgws_msg m;
	assert_int_equal(rec->type, RING_MESSAGE);
	assert_int_equal(pgws_decode(payload, rec->payload_len, false, &m), 0);
	assert_true(rec->commit_lsn != 0 && rec->commit_time != 0);
	assert_int_equal(rec->timeline, con.timeline);
	con.payload_bytes += rec->payload_len;
	take_digest(rec, payload, m.type);
	bool was_empty = con.empty;
	con.empty = m.type == PGWS_BEGIN;
	switch (m.type) {
	case PGWS_BEGIN:
		con.last_ordinal = 0;
		assert_int_equal(rec->commit_lsn, m.u.begin.final_lsn);
		con.begin_at = con.len;
		note(" B");
		break;
	case PGWS_COMMIT:
		assert_int_equal(rec->end_lsn, m.u.commit.end_lsn);
		con.last_end_lsn = rec->end_lsn;
		if (was_empty && con.begin_at <= con.len) {
			con.n_empty++;
			con.len = con.begin_at;
			con.log[con.len] = '\0';
		} else {
			con.n_commits++;
			con.digest = fold(con.digest, &con.txn_digest, sizeof(con.txn_digest));
			note(" C");
		}
		if (con.auto_ack)
			ring_reader_ack(con.reader, rec->end_lsn);
		break;
	case PGWS_RELATION:
		assert_int_equal(pgws_catalog_learn(con.catalog, &m), 0);
		note(" R:%s", m.u.relation.relname);
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		note_change(rec, &m);
		break;
	case PGWS_TRUNCATE:
		con.last_ordinal = rec->ordinal;
		note(" T");
		break;
	default:
		note(" %c", (char)m.type);
		break;
	}
	return 0;
}

static int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	(void)arg;
	if (con.pause)
		return RING_READER_PAUSE;
	con.from_lsn = from_lsn;
	con.timeline = timeline;
	con.n_streams++;
	note(" S");
	return 0;
}

static int on_gap(const struct ring_gap *gap, void *arg)
{
	(void)arg;
	con.n_gaps++;
	con.gap_from_lsn = gap->from_lsn;
	con.gap_to_lsn = gap->to_lsn;
	note(" G:%.*s", (int)gap->reason_len, gap->reason);
	if (con.auto_ack)
		ring_reader_ack(con.reader, gap->to_lsn);
	return 0;
}

static int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
{
	(void)arg;
	struct buf whole;
	const struct worker_relay head = {.role = ROLE_BROKERD, .kind = RELAY_RING_ATTACH};
	buf_init(&whole, IMSG_BODY_MAX);
	worker_put_relay(&whole, &head);
	buf_put(&whole, body->data, body->len_bytes);
	int err = imsg_send(sup.channel, WORKER_MSG_RELAY, 0, &whole, fds, n_fds);
	buf_free(&whole);
	return err;
}

static void send_empty(uint32_t type)
{
	assert_int_equal(imsg_send(sup.channel, type, 0, NULL, NULL, 0), 0);
}

static void send_peer(bool up, uint32_t generation)
{
	struct buf body;
	const struct worker_peer m = {.role = ROLE_BROKERD, .up = up, .generation = generation};
	buf_init(&body, 0);
	worker_put_peer(&body, &m);
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_PEER, 0, &body, NULL, 0), 0);
	buf_free(&body);
}

static void reader_up(void)
{
	static uint32_t generation;
	send_peer(true, ++generation);
	ring_reader_peer(con.reader, true, sup.generation);
	sup.reader_up = true;
}

static int on_relay(struct imsg *msg)
{
	struct worker_relay head;
	assert_int_equal(worker_get_relay(&msg->body, &head), 0);
	assert_int_equal(head.role, ROLE_BROKERD);
	sup.n_grants += head.kind == RELAY_RING_GRANT;
	if (head.kind == RELAY_RING_REFUSE) {
		struct rd copy = msg->body;
		char *why = rd_string(&copy);
		assert_non_null(why);
		snprintf(sup.relay_refused, sizeof(sup.relay_refused), "%s", why);
		free(why);
	}
	return ring_reader_relay(con.reader, head.kind, msg);
}

static int on_message(struct imsg *msg, void *arg)
{
	(void)arg;
	char *text = NULL;
	switch (msg->type) {
	case WORKER_MSG_HELLO:
		sup.hello = true;
		return 0;
	case WORKER_MSG_READY:
		sup.ready = true;
		return 0;
	case WORKER_MSG_STATUS:
		assert_int_equal(worker_get_text(&msg->body, &text), 0);
		snprintf(sup.status, sizeof(sup.status), "%s", text);
		free(text);
		return 0;
	case WORKER_MSG_RELAY:
		return on_relay(msg);
	default:
		return 0;
	}
}

static void on_closed(int err, void *arg)
{
	(void)err;
	(void)arg;
	sup.closed = true;
	imsg_close(&sup.channel);
}

static void on_wake(void *arg)
{
	(void)arg;
}

/* Passes of the loop until it is so. */
static bool wait_for(bool (*condition)(void), uint32_t ms)
{
	struct ev_timer wake;
	ev_timer_init(&wake, loop, "test", on_wake, NULL);
	uint64_t deadline = ev_now_ms() + ms;
	bool is;
	while (!(is = condition()) && ev_now_ms() < deadline) {
		ev_timer_start(&wake, 20);
		ev_loop_once(loop, true);
	}
	ev_timer_stop(&wake);
	return is;
}

#define WAIT(condition)                                                                            \
	do {                                                                                       \
		if (!wait_for(condition, PATIENCE_MS))                                             \
			fail_msg("still not %s; status \"%s\", seen:%s", #condition, sup.status,   \
				con.log != NULL ? con.log : "");                                   \
	} while (0)

static bool never(void)
{
	return false;
}

static int config_fd(void)
{
	char text[1024];
	snprintf(text, sizeof(text),
		"postgres = { mode = \"external\"; conninfo = \"host=%s port=%s dbname=%s "
		"user=%s\"; "
		"};\nwalstreamd = { ring_size = \"1MB\"; %s };\n",
		getenv("PGHOST"), getenv("PGPORT"), getenv("PGDATABASE"), getenv("PGUSER"),
		more_keys);
	int fd;
	assert_int_equal(proc_memfd_sealed("conf", text, strlen(text), &fd), 0);
	return fd;
}

static void send_reload(void)
{
	int fd = config_fd();
	struct buf body;
	buf_init(&body, 0);
	worker_put_text(&body, "error");
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_RELOAD, 1, &body, &fd, 1), 0);
	buf_free(&body);
	close(fd);
}

static void send_config(const char *instance)
{
	int fd = config_fd();
	const struct worker_config m = {.node = (char *)NODE,
		.instance = (char *)instance,
		.state_dir = state_dir,
		.run_dir = (char *)"/nonexistent",
		.user = (char *)"",
		.log_level = (char *)(getenv("HOWDAH_TEST_DEBUG") != NULL ? "debug" : "error"),
		.enabled_roles = 1 << ROLE_WALSTREAMD | 1 << ROLE_BROKERD};
	struct buf body;
	buf_init(&body, 0);
	worker_put_config(&body, &m);
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_CONFIG, 0, &body, &fd, 1), 0);
	buf_free(&body);
	close(fd);
	send_empty(WORKER_MSG_START);
}

static void child(int sock, int page)
{
	char generation[16];
	snprintf(generation, sizeof(generation), "%u", sup.generation);
	setenv(WORKER_ENV_GENERATION, generation, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int s = fcntl(sock, F_DUPFD, 20), p = fcntl(page, F_DUPFD, 20);
	dup2(s, WORKER_FD_IMSG);
	dup2(p, WORKER_FD_PAGE);
	close(s);
	close(p);
	execl(program, "walstreamd", (char *)NULL);
	perror(program);
	_exit(127);
}

static void spawn(const char *instance)
{
	static const struct imsg_ops ops = {.on_message = on_message, .on_closed = on_closed};
	int pair[2], page;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(proc_memfd("page", STATS_PAGE_BYTES, &page), 0);
	sup.generation++;
	sup.hello = sup.ready = sup.closed = sup.reader_up = false;
	sup.status[0] = '\0';
	sup.pid = fork();
	assert_true(sup.pid >= 0);
	if (sup.pid == 0)
		child(pair[1], page);
	close(pair[1]);
	close(page);
	sup.channel = imsg_open(loop, pair[0], sup.generation, &ops, NULL);
	send_config(instance);
}

static bool is_ready(void)
{
	return sup.ready || sup.closed;
}

static bool is_streaming(void)
{
	return strncmp(sup.status, "streaming", 9) == 0;
}

static bool is_closed(void)
{
	return sup.closed;
}

static bool has_stream(void)
{
	return con.n_streams > 0 && is_streaming();
}

static void start(void)
{
	spawn("instance-1");
	WAIT(is_ready);
	assert_true(sup.ready);
	reader_up();
}

static void start_streaming(void)
{
	start();
	WAIT(has_stream);
}

static int ended(void)
{
	int status;
	WAIT(is_closed);
	assert_int_equal(waitpid(sup.pid, &status, 0), sup.pid);
	sup.pid = 0;
	if (sup.reader_up)
		ring_reader_peer(con.reader, false, sup.generation);
	sup.reader_up = false;
	return status;
}

/* As the supervisor does: the readers first, then walstreamd. */
static void stop(void)
{
	(void)wait_for(never, 100);
	ring_reader_peer(con.reader, false, sup.generation);
	sup.reader_up = false;
	send_peer(false, 0);
	send_empty(WORKER_MSG_STOP);
	int status = ended();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void kill_it(void)
{
	kill(sup.pid, SIGKILL);
	(void)ended();
}

static void new_reader(void)
{
	static const struct ring_reader_ops ops = {.on_record = on_record,
		.on_stream = on_stream,
		.on_gap = on_gap,
		.send_attach = send_attach};
	const struct ring_reader_options options = {
		.audience = RING_TO_BROKERD, .spool_dir = spool_dir, .spool_limit = 1 << 20};
	if (con.reader != NULL)
		ring_reader_free(&con.reader);
	con.reader = ring_reader_new(loop, &options, &ops, NULL);
}

/* ---- Fixture ----------------------------------------------------------------------------------
 */

static int setup(void **state)
{
	(void)state;
	run("CREATE SCHEMA howdah; CREATE SCHEMA howdah_mqtt");
	run_schema();
	run("CREATE TABLE howdah_mqtt.begun (node text, lsn pg_lsn, rows bigint);"
	    "CREATE TABLE t (id int PRIMARY KEY, v text);"
	    "CREATE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS void LANGUAGE "
	    "sql "
	    "AS 'INSERT INTO howdah_mqtt.begun SELECT node, lsn, count(*) FROM public.t'");
	run("CREATE PUBLICATION howdah FOR TABLE t WITH (publish_via_partition_root = true)");
	con.catalog = pgws_catalog_new(NULL, NULL);
	con.auto_ack = true;
	con.pause = con.slow = false;
	con.taken_ms = con.n_waits = 0;
	more_keys = "";
	new_reader();
	forget();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (sup.pid > 0) {
		kill(sup.pid, SIGKILL);
		waitpid(sup.pid, NULL, 0);
		sup.pid = 0;
	}
	imsg_close(&sup.channel);
	ring_reader_free(&con.reader);
	pgws_catalog_free(&con.catalog);
	for (int i = 0; i < 300; i++) {
		if (sql_is("SELECT count(*) FROM pg_replication_slots WHERE active", "0"))
			break;
		usleep(20000);
	}
	run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
	run("DROP SCHEMA IF EXISTS howdah CASCADE; DROP SCHEMA IF EXISTS howdah_mqtt CASCADE;"
	    "DROP TABLE IF EXISTS t; DROP PUBLICATION IF EXISTS howdah;"
	    "DROP PUBLICATION IF EXISTS howdah_alpha");
	return 0;
}

static bool waits_for_reader(void)
{
	return strncmp(sup.status, "waiting for a reader", 20) == 0;
}

static bool one_commit(void)
{
	return con.n_commits >= 1;
}

static bool confirmed_past_end(void)
{
	char text[200], lsn[18];
	snprintf(text, sizeof(text), "SELECT confirmed_flush_lsn >= '%s' FROM pg_replication_slots",
		pgws_lsn_str(con.last_end_lsn, lsn));
	return sql_is(text, "t");
}

/* ---- Tests ------------------------------------------------------------------------------------
 */

static void test_first_start(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (0, 'before the slot')");
	start_streaming();
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun WHERE rows = 1", "1"));
	assert_true(sql_is("SELECT b.lsn = n.slot_lsn AND b.node = n.name AND n.timeline = 1 FROM "
			   "howdah_mqtt.begun b, howdah.node n",
		"t"));
	assert_true(sql_is("SELECT pubinsert AND NOT pubupdate FROM pg_publication WHERE pubname = "
			   "'howdah_alpha'",
		"t"));
	assert_true(
		sql_is("SELECT slot_name || two_phase FROM pg_replication_slots", SLOT "false"));
	assert_true(sql_is("SELECT application_name FROM pg_stat_replication", SLOT));
	forget();
	run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
	WAIT(one_commit);
	assert_string_equal(con.log, " B R:t I:1 I:2 C");
	WAIT(confirmed_past_end);
	forget();
	run("BEGIN; UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT");
	WAIT(one_commit);
	assert_string_equal(con.log, " B U:1 D:2 C");
	stop();

	/* Nothing comes again after an orderly stop, and nothing is missing. */
	run("INSERT INTO t VALUES (3, 'while it was down')");
	forget();
	start_streaming();
	WAIT(one_commit);
	assert_string_equal(con.log, " S B R:t I:3 C");
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	stop();
}

static uint64_t not_past;

static uint64_t confirmed(void)
{
	char *text = sql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
	uint64_t lsn = 0;
	assert_int_equal(pgws_lsn_parse(text, &lsn), 0);
	free(text);
	return lsn;
}

static void test_acknowledged_only(void **state)
{
	(void)state;
	start_streaming();
	con.auto_ack = false;
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	not_past = con.last_end_lsn;
	run("INSERT INTO t VALUES (2, 'b')");
	(void)wait_for(never, 500);
	assert_int_equal(con.n_commits, 2);
	assert_true(confirmed() < not_past);

	/* SIGKILL: what was not acknowledged comes again (the reader drops what it has seen, a new
	 * one sees it). */
	kill_it();
	new_reader();
	forget();
	start_streaming();
	while (con.n_commits < 2)
		ev_loop_once(loop, true);
	assert_string_equal(con.log, " S B R:t I:1 C B I:2 C");
	/* The first one only. */
	ring_reader_ack(con.reader, not_past);
	(void)wait_for(never, 500);
	assert_true(confirmed() == not_past);
	ring_reader_ack(con.reader, con.last_end_lsn);
	WAIT(confirmed_past_end);
	stop();
}

static bool idle_lsn_follows(void)
{
	return sql_is("SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 0::numeric FROM "
		      "pg_replication_slots",
		"t");
}

/* WAL that concerns nobody must not be pinned. */
static void test_idle_slot_moves(void **state)
{
	(void)state;
	start_streaming();
	run("CREATE TABLE other (v text); INSERT INTO other SELECT repeat('x', 1000) FROM "
	    "generate_series(1, 1000); DROP TABLE other");
	WAIT(idle_lsn_follows);
	stop();
}

static void test_reattach(void **state)
{
	(void)state;
	start_streaming();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	run("ALTER TABLE t ADD COLUMN w int");
	con.auto_ack = false;
	run("INSERT INTO t VALUES (2, 'a', 7)");
	while (con.n_inserts < 2)
		ev_loop_once(loop, true);
	(void)wait_for(never, 200);
	/* brokerd dies and comes back: relations are announced to it again, the open one comes. */
	new_reader();
	send_peer(false, 0);
	forget();
	con.auto_ack = true;
	reader_up();
	WAIT(one_commit);
	assert_string_equal(con.log, " S B R:t I:2 C");
	WAIT(confirmed_past_end);
	stop();
}

static bool all_inserts(void)
{
	return con.n_inserts >= 20000;
}

static bool ring_is_full(void)
{
	return strstr(sup.status, "the ring is full") != NULL;
}

/* A reader that takes nothing: spool, then back-pressure, then on; with a row beyond the window. */
static void test_back_pressure(void **state)
{
	(void)state;
	start_streaming();
	con.pause = true;
	run("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 19999) i");
	run("INSERT INTO t VALUES (0, repeat('y', 3000000))");
	WAIT(ring_is_full);
	assert_true(strstr(sup.status, "brokerd") != NULL);
	con.pause = false;
	ring_reader_resume(con.reader);
	WAIT(all_inserts);
	assert_true(con.payload_bytes > 3000000 + 19999 * 300);
	assert_int_equal(con.n_inserts, 20000);
	WAIT(confirmed_past_end);
	assert_false(ring_is_full() && !wait_for(is_streaming, 3000));
	stop();
}

static bool all_30000(void)
{
	return con.n_inserts >= 30000;
}

/* A ring that is full, and a message for which the first room that a reader makes is not enough:
 * the producer is woken again as soon as there is more, not by its timer when the ring is empty. */
static void test_room_bit_by_bit(void **state)
{
	(void)state;
	start_streaming();
	con.slow = true;
	run("INSERT INTO t SELECT i, repeat('x', CASE WHEN hashint4(i) % 1500 = 0 THEN 125000 ELSE "
	    "300 END) "
	    "FROM generate_series(1, 30000) i");
	WAIT(all_30000);
	if (con.n_waits > 3)
		fail_msg("the reader had nothing to do %zu times", con.n_waits);
	stop();
}

static bool says_cannot_follow(void)
{
	return strstr(sup.status, "cannot be followed") != NULL;
}

static bool all_small_inserts(void)
{
	return con.n_inserts >= 40000;
}

/* A full ring has no room for the beginning of the next stream either: that waits too. */
static void test_full_ring_at_begin(void **state)
{
	(void)state;
	start_streaming();
	con.pause = true;
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 40000) i");
	WAIT(ring_is_full);
	for (int i = 0; i < 4; i++) {
		/* With the lock's connection the stream goes, and begins anew. */
		run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
		    "WHERE application_name = 'howdah walstreamd'");
		(void)wait_for(never, 300);
		WAIT(is_streaming);
		assert_false(wait_for(says_cannot_follow, 200));
	}
	con.pause = false;
	ring_reader_resume(con.reader);
	WAIT(all_small_inserts);
	assert_int_equal(con.n_inserts, 40000);
	WAIT(confirmed_past_end);
	stop();
}

static bool two_commits(void)
{
	return con.n_commits >= 2;
}

static void test_walsender_killed(void **state)
{
	(void)state;
	start_streaming();
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
	run("INSERT INTO t VALUES (2, 'b')");
	WAIT(two_commits);
	/* All of our connections, as a failover would. */
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE "
	    "'howdah%' AND pid <> pg_backend_pid()");
	run("INSERT INTO t VALUES (3, 'c')");
	while (con.n_inserts < 3)
		ev_loop_once(loop, true);
	assert_non_null(strstr(con.log, "I:1"));
	assert_non_null(strstr(con.log, "I:2"));
	assert_non_null(strstr(con.log, "I:3"));
	stop();
}

static bool says_lost(void)
{
	return strstr(sup.status, "pgctl node remove alpha") != NULL;
}

static void test_lost_slot(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("SELECT pg_drop_replication_slot('" SLOT "')");
	start();
	WAIT(says_lost);
	(void)wait_for(never, 300);
	assert_true(sql_is("SELECT count(*) FROM pg_replication_slots", "0"));
	/* The way out, as pgctl takes it. */
	run("DELETE FROM howdah.node");
	forget();
	WAIT(has_stream);
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "2"));
	stop();

	run("UPDATE howdah.node SET system_identifier = '1'");
	start();
	WAIT(says_lost);
	assert_non_null(strstr(sup.status, "moved"));
	stop();
	/* Always a person's decision. */
	more_keys = "lost_slot = \"recreate\";";
	start();
	WAIT(says_lost);
	(void)wait_for(never, 300);
	assert_non_null(strstr(sup.status, "moved"));
	assert_true(sql_is("SELECT count(*) FROM howdah.gap", "0"));
	assert_true(sql_is("SELECT slot_lsn IS NOT NULL FROM howdah.node", "t"));
	stop();
}

/* Gaps that nobody was told of, right before where the slot stands. */
static void make_gaps(int n)
{
	char text[400];
	snprintf(text, sizeof(text),
		"INSERT INTO howdah.gap (node, from_lsn, to_lsn, timeline, reason) SELECT 'alpha', "
		"confirmed_flush_lsn - (10 + %d - i) * 4, confirmed_flush_lsn - (10 + %d - i) * 4 "
		"+ 2, 1, 'no ' || i FROM pg_replication_slots, generate_series(1, %d) i",
		n, n, n);
	run(text);
}

static bool all_told(void)
{
	return sql_is("SELECT bool_and(told_at IS NOT NULL) FROM howdah.gap", "t");
}

/* More than one stream has room for: all are told, the newest in one, and only then said to be. */
static void test_many_gaps(void **state)
{
	(void)state;
	char expect[400] = "", text[200], from[18], to[18];
	start_streaming();
	stop();
	make_gaps(20);
	for (int i = 1; i <= 15; i++)
		snprintf(expect + strlen(expect), 20, " G:no %d", i);
	strcat(expect, " G:5 gaps in one, the last: no 20 S");
	new_reader();
	forget();
	con.auto_ack = false;
	start_streaming();
	assert_string_equal(con.log, expect);
	snprintf(text, sizeof(text),
		"SELECT min(from_lsn) = '%s' AND max(to_lsn) = '%s' FROM howdah.gap "
		"WHERE reason >= 'no 16' AND reason <= 'no 20' AND length(reason) = 5",
		pgws_lsn_str(con.gap_from_lsn, from), pgws_lsn_str(con.gap_to_lsn, to));
	assert_true(sql_is(text, "t"));
	/* Up to the one before the last: nobody says yet that it knows. */
	ring_reader_ack(con.reader, con.gap_to_lsn - 3);
	(void)wait_for(never, 300);
	assert_true(sql_is("SELECT count(told_at) FROM howdah.gap", "0"));
	ring_reader_ack(con.reader, con.gap_to_lsn);
	WAIT(all_told);
	con.auto_ack = true;
	stop();
	forget();
	new_reader();
	start_streaming();
	assert_int_equal(con.n_gaps, 0);
	stop();
}

static bool telling_waits(void)
{
	return sql_is("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND "
		      "query LIKE 'UPDATE howdah.gap SET told_at%'",
		"1");
}

static bool registrar_is_gone(void)
{
	return sql_is("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'howdah "
		      "walstreamd'",
		"0");
}

/* Dies when the readers have acknowledged a gap and before that is stored: the next life tells it
 * again, to a new reader and to one that knows of it. */
static void dies_before_told_at(PGconn *other, bool same_reader)
{
	run("UPDATE howdah.gap SET told_at = NULL");
	PQclear(PQexec(other, "BEGIN; SELECT FROM howdah.gap FOR UPDATE"));
	new_reader();
	forget();
	start_streaming();
	assert_string_equal(con.log, " G:no 1 S");
	WAIT(telling_waits);
	kill_it();
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
	    "'howdah walstreamd'");
	WAIT(registrar_is_gone);
	PQclear(PQexec(other, "ROLLBACK"));
	assert_true(sql_is("SELECT count(told_at) FROM howdah.gap", "0"));
	if (!same_reader)
		new_reader();
	forget();
	start_streaming();
	assert_string_equal(con.log, same_reader ? " S" : " G:no 1 S");
	WAIT(all_told);
	stop();
}

static void test_killed_before_told_at(void **state)
{
	(void)state;
	PGconn *other = PQconnectdb("");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	start_streaming();
	stop();
	make_gaps(1);
	dies_before_told_at(other, false);
	dies_before_told_at(other, true);
	PQfinish(other);
}

static void test_half_made_slot(void **state)
{
	(void)state;
	/* As left by a start that died between the slot and its row. */
	run("SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	run("INSERT INTO t VALUES (1, 'before')");
	start_streaming();
	assert_true(sql_is("SELECT rows FROM howdah_mqtt.begun", "1"));
	assert_true(sql_is("SELECT n.slot_lsn <= s.confirmed_flush_lsn FROM howdah.node n, "
			   "pg_replication_slots s",
		"t"));
	stop();
}

static bool says_foreign(void)
{
	return strstr(sup.status, "belongs to another database") != NULL;
}

/* Slots are the server's: the suite of another database may use the same node name. */
static void test_slot_of_another_database(void **state)
{
	(void)state;
	PGconn *other = PQconnectdb("dbname=template1");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	PGresult *res =
		PQexec(other, "SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	PQclear(res);
	start();
	WAIT(says_foreign);
	assert_non_null(strstr(sup.status, "set another \"node\""));
	assert_true(sql_is("SELECT database FROM pg_replication_slots", "template1"));
	/* The same where our own was lost. */
	run("UPDATE howdah.node SET slot_lsn = '0/1'");
	sup.status[0] = '\0';
	kill_it();
	spawn("instance-1");
	WAIT(says_lost);
	assert_non_null(strstr(sup.status, "another database"));
	assert_true(sql_is("SELECT database FROM pg_replication_slots", "template1"));
	kill_it();
	res = PQexec(other, "SELECT pg_drop_replication_slot('" SLOT "')");
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	PQclear(res);
	PQfinish(other);
}

static bool says_not_stored(void)
{
	return strstr(sup.status, "cannot store where the slot begins: not yet") != NULL;
}

/* A part that cannot store its beginning: nothing is half done, and it goes on when it can. */
static void test_beginning_refused(void **state)
{
	(void)state;
	run("CREATE OR REPLACE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS "
	    "void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $x$not yet$x$; END'");
	start();
	WAIT(says_not_stored);
	assert_true(sql_is("SELECT count(slot_lsn) FROM howdah.node", "0"));
	run("CREATE OR REPLACE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS "
	    "void LANGUAGE sql AS 'INSERT INTO howdah_mqtt.begun VALUES (node, lsn, 0)'");
	WAIT(has_stream);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun b, howdah.node n WHERE b.lsn = "
			   "n.slot_lsn",
		"1"));
	stop();
}

static void test_second_instance(void **state)
{
	(void)state;
	run("INSERT INTO howdah.node (name, instance, system_identifier, slot) VALUES ('alpha', "
	    "'somebody else', '1', '" SLOT "')");
	spawn("instance-1");
	int status = ended();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 78);
	assert_non_null(strstr(sup.status, "pgctl node remove alpha"));
	assert_true(sql_is("SELECT count(*) FROM pg_replication_slots", "0"));
}

static bool says_init(void)
{
	return strstr(sup.status, "pgctl db init") != NULL;
}

static void test_no_schema_yet(void **state)
{
	(void)state;
	run("DROP TABLE howdah.gap, howdah.node; "
	    "DROP FUNCTION howdah.node_register, howdah.slot_created, howdah.slot_lost, "
	    "howdah.node_publish_logs");
	start();
	WAIT(says_init);
	run_schema();
	WAIT(has_stream);
	stop();
}

static bool says_slots(void)
{
	return strstr(sup.status, "max_replication_slots") != NULL;
}

static void test_no_slot_left(void **state)
{
	(void)state;
	run("SELECT pg_create_physical_replication_slot('taken_' || i) FROM generate_series(1, "
	    "current_setting('max_replication_slots')::int) i");
	start();
	WAIT(says_slots);
	run("SELECT pg_drop_replication_slot('taken_1')");
	WAIT(has_stream);
	stop();
}

/* A reader that is away gates the LSN: nothing it has not acknowledged is passed. */
static void test_reader_away(void **state)
{
	(void)state;
	start_streaming();
	con.auto_ack = false;
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	uint64_t end = con.last_end_lsn;
	new_reader();
	send_peer(false, 0);
	WAIT(waits_for_reader);
	run("INSERT INTO t VALUES (2, 'b')");
	(void)wait_for(never, 500);
	assert_true(confirmed() < end);
	forget();
	con.auto_ack = true;
	reader_up();
	WAIT(two_commits);
	assert_string_equal(con.log, " S B R:t I:1 C B I:2 C");
	WAIT(confirmed_past_end);
	stop();
}

static pid_t pid_of(const char *backend_type)
{
	char text[200];
	snprintf(text, sizeof(text), "SELECT pid FROM pg_stat_activity WHERE backend_type = '%s'",
		backend_type);
	char *value = sql(text);
	pid_t pid = (pid_t)strtol(value, NULL, 10);
	free(value);
	assert_true(pid > 1);
	return pid;
}

static bool sql_is_back(void)
{
	PQreset(sql_conn);
	return PQstatus(sql_conn) == CONNECTION_OK;
}

static bool on_timeline_2(void)
{
	return con.timeline == 2 && one_commit();
}

/* A server that comes back on another timeline, with a slot that stands where it was before: what
 * was acknowledged on the old one, before they part, still is; what comes after is not. */
static void test_other_timeline(void **state)
{
	(void)state;
	start_streaming();
	/* It would have the slot's position saved. */
	pid_t writer = pid_of("background writer");
	kill(writer, SIGSTOP);
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	uint64_t end = con.last_end_lsn;
	con.auto_ack = false;
	forget();
	char signal_file[4096];
	snprintf(signal_file, sizeof(signal_file), "%s/standby.signal",
		getenv("HOWDAH_TEST_PGDATA"));
	FILE *f = fopen(signal_file, "w");
	assert_non_null(f);
	fclose(f);
	kill(PQbackendPID(sql_conn), SIGKILL);
	kill(writer, SIGCONT);
	(void)wait_for(never, 300);
	WAIT(sql_is_back);
	run("SELECT pg_promote()");
	/* Both timelines have the first row, which was acknowledged: it does not come again, nor is
	 * its acknowledgement forgotten. */
	run("INSERT INTO t VALUES (2, 'b')");
	WAIT(on_timeline_2);
	assert_null(strstr(con.log, "I:1"));
	assert_non_null(strstr(con.log, " B R:t I:2 C"));
	(void)wait_for(never, 500);
	assert_true(confirmed() >= end && confirmed() < con.last_end_lsn);
	ring_reader_ack(con.reader, con.last_end_lsn);
	WAIT(confirmed_past_end);
	stop();
}

/* The history of the server's timeline is lost: nobody can say any more where it left the one
 * before, but what is there can be followed. After test_other_timeline. */
static void test_no_history(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("UPDATE howdah.node SET confirmed_timeline = 1");
	char file[4096];
	snprintf(file, sizeof(file), "%s/pg_wal/00000002.history", getenv("HOWDAH_TEST_PGDATA"));
	assert_int_equal(unlink(file), 0);
	new_reader();
	forget();
	start_streaming();
	run("INSERT INTO t VALUES (3, 'c')");
	WAIT(one_commit);
	stop();
}

/* Other workers' logs are not brokerd's business; the frame of a transaction is everybody's. */
static void test_audience(void **state)
{
	(void)state;
	run("CREATE SCHEMA howdah_watch; CREATE TABLE howdah_watch.log (id int PRIMARY KEY);"
	    "ALTER PUBLICATION howdah ADD TABLE howdah_watch.log");
	start_streaming();
	forget();
	run("BEGIN; INSERT INTO howdah_watch.log VALUES (1); COMMIT");
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	assert_true(con.n_empty >= 1);
	assert_string_equal(con.log, " B R:t I:1 C");
	stop();
	run("DROP SCHEMA howdah_watch CASCADE");
}

/* Whenever a first start is cut off, the next one makes it whole: one slot, and what the parts
 * stored belongs to it. */
static void test_killed_in_first_start(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (0, 'x')");
	for (unsigned ms = 0; ms < 150; ms += 7) {
		spawn("instance-1");
		(void)wait_for(is_closed, ms);
		kill_it();
	}
	start_streaming();
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun b, howdah.node n WHERE b.lsn = "
			   "n.slot_lsn AND b.rows = 1",
		"1"));
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	assert_true(sql_is("SELECT n.slot_lsn <= s.confirmed_flush_lsn FROM howdah.node n, "
			   "pg_replication_slots s",
		"t"));
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	stop();
}

static char answer[8192];
static int client = -1;

static bool has_answer(void)
{
	size_t len = strlen(answer);
	ssize_t n = recv(client, answer + len, sizeof(answer) - 1 - len, MSG_DONTWAIT);
	if (n > 0)
		answer[len + (size_t)n] = '\0';
	return strstr(answer, "\"ok\"") != NULL || strstr(answer, "\"error\"") != NULL;
}

static void command(const char *name)
{
	int pair[2];
	char line[100];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	snprintf(
		line, sizeof(line), "{\"cmd\": \"%s\", \"args\": {}, \"id\": 1, \"v\": 1}\n", name);
	const struct worker_control m = {.line = line, .uid = getuid()};
	struct buf body;
	buf_init(&body, 0);
	worker_put_control(&body, &m);
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_CONTROL, 0, &body, &pair[1], 1), 0);
	buf_free(&body);
	close(pair[1]);
	answer[0] = '\0';
	client = pair[0];
	WAIT(has_answer);
	close(client);
}

static void test_commands(void **state)
{
	(void)state;
	start_streaming();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	command("wal.lag");
	static const char *const points[] = {"server", "sent", "received", "published", "brokerd",
		"acknowledged", "slot", "retained from"};
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		assert_non_null(strstr(answer, points[i]));
	assert_null(strstr(answer, "\"0/0\""));
	command("ring.status");
	assert_non_null(strstr(answer, "\"size_bytes\":1048576"));
	assert_non_null(strstr(answer, "\"name\":\"brokerd\""));
	assert_non_null(strstr(answer, "\"attached\":true"));
	stop();
}

static bool is_granted(void)
{
	return sup.n_grants > 0;
}

static bool is_refused(void)
{
	return sup.relay_refused[0] != '\0';
}

/* A reader that writes nonsense into its cursor loses the ring, and gets it again when it asks. */
static void test_hostile_cursor(void **state)
{
	(void)state;
	start_streaming();
	int fds[2];
	void *cursor;
	struct buf body;
	const struct ring_link_attach m = {.version = RING_LINK_VERSION, .acked_lsn = UINT64_MAX};
	assert_int_equal(ring_cursor_create(&fds[0], &cursor), 0);
	assert_int_equal(ring_event_create(&fds[1]), 0);
	buf_init(&body, 0);
	ring_link_put_attach(&body, &m);
	sup.n_grants = 0;
	sup.relay_refused[0] = '\0';
	assert_int_equal(send_attach(&body, fds, 2, NULL), 0);
	buf_free(&body);
	WAIT(is_granted);
	memset(cursor, 0x5a, RING_CURSOR_BYTES);
	command("ring.status");
	WAIT(is_refused);
	assert_non_null(strstr(sup.relay_refused, "cursor"));
	forget();
	WAIT(has_stream); /* the true reader was told too and attached again */
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	assert_true(sql_is("SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM "
			   "pg_replication_slots",
		"t"));
	stop();
	ring_cursor_unmap(cursor);
	close(fds[0]);
	close(fds[1]);
}

/* The server removed WAL that the slot needed. */
static void test_invalidated_slot(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
	run("SELECT pg_reload_conf()");
	for (int i = 0; i < 6; i++) {
		run("CREATE TABLE filler (i int); DROP TABLE filler");
		run("SELECT pg_switch_wal()");
		run("CHECKPOINT");
	}
	assert_true(sql_is("SELECT wal_status FROM pg_replication_slots", "lost"));
	start();
	WAIT(says_lost);
	assert_true(strstr(sup.status, "max_slot_wal_keep_size") != NULL ||
		    strstr(sup.status, "wal_removed") != NULL);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	run("ALTER SYSTEM RESET max_slot_wal_keep_size");
	run("SELECT pg_reload_conf()");
	/* pgctl node remove */
	run("SELECT pg_drop_replication_slot('" SLOT "'); DELETE FROM howdah.node");
	forget();
	WAIT(has_stream);
	stop();
}

/* ---- Large transactions --------------------------------------------------------------------- */

/* Most of them are streamed then; on 16 and later all of them. */
static void stream_small_ones(bool on)
{
	run(on ? "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'"
	       : "ALTER SYSTEM RESET logical_decoding_work_mem");
	if (PQserverVersion(sql_conn) >= 160000)
		run(on ? "ALTER SYSTEM SET debug_logical_replication_streaming = 'immediate'"
		       : "ALTER SYSTEM RESET debug_logical_replication_streaming");
	run("SELECT pg_reload_conf()");
}

static uint64_t ring_value(const char *key)
{
	char quoted[64];
	snprintf(quoted, sizeof(quoted), "\"%s\":", key);
	command("ring.status");
	const char *at = strstr(answer, quoted);
	assert_non_null(at);
	return strtoull(at + strlen(quoted), NULL, 10);
}

static void exec_other(PGconn *other, const char *text)
{
	PGresult *res = PQexec(other, text);
	assert_int_equal(PQresultStatus(res), PGRES_COMMAND_OK);
	PQclear(res);
}

/* Two large transactions at a time, with savepoints; one is rolled back. 4,103 rows remain. */
static void two_interleaved(void)
{
	PGconn *other = PQconnectdb("");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	run("BEGIN; INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 4000) i;"
	    "SAVEPOINT a; INSERT INTO t SELECT i, 'a' FROM generate_series(4001, 9000) i");
	exec_other(other,
		"BEGIN; INSERT INTO t SELECT i, 'gone' FROM generate_series(100001, 105000) i");
	run("SAVEPOINT b; INSERT INTO t SELECT i, 'b' FROM generate_series(9001, 14000) i;"
	    "ROLLBACK TO a; INSERT INTO t SELECT i, 'c' FROM generate_series(4001, 4102) i");
	exec_other(other, "ROLLBACK");
	exec_other(other, "INSERT INTO t VALUES (200000, 'between')");
	run("COMMIT");
	PQfinish(other);
}

static bool all_4103(void)
{
	return con.n_inserts >= 4103 && con.n_commits >= 2;
}

/* The same WAL in every mode: what is in the ring is the same, to the byte. */
static void test_streaming_modes(void **state)
{
	(void)state;
	static const char *const modes[] = {"streaming = \"on\"; transaction_memory = \"64kB\";",
		"streaming = \"off\";", "streaming = \"parallel\";",
		"streaming = \"on\"; transaction_memory = \"64MB\";"};
	uint64_t digest = 0;
	stream_small_ones(true);
	con.auto_ack = false;
	start_streaming();
	stop();
	two_interleaved();
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		more_keys = modes[i];
		new_reader();
		forget();
		start_streaming();
		WAIT(all_4103);
		assert_int_equal(con.n_inserts, 4103);
		assert_int_equal(con.n_commits, 2);
		if (i == 0)
			digest = con.digest;
		assert_true(con.digest == digest);
		bool streams = strstr(modes[i], "off") == NULL;
		assert_true(streams ? ring_value("streamed") >= 1 : ring_value("streamed") == 0);
		assert_true(i == 0 ? ring_value("spilled") >= 1 : ring_value("spilled") == 0);
		assert_int_equal(ring_value("open"), 0);
		assert_int_equal(ring_value("memory_bytes"), 0);
		assert_int_equal(ring_value("file_bytes"), 0);
		stop();
	}
	stream_small_ones(false);
}

static bool is_in_files(void)
{
	return ring_value("open") == 1 && ring_value("file_bytes") > 1 << 20;
}

#ifndef HOWDAH_SANITIZER
static uint64_t peak_kb(void)
{
	char line[200];
	unsigned long long kb = 0;
	snprintf(line, sizeof(line), "/proc/%d/status", (int)sup.pid);
	FILE *f = fopen(line, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f) != NULL && sscanf(line, "VmHWM: %llu", &kb) != 1)
		continue;
	fclose(f);
	assert_true(kb > 0);
	return kb;
}
#endif

static bool all_large(void)
{
	return con.n_inserts >= 60000 && con.n_commits >= 1;
}

/* A transaction far larger than the ring and than transaction_memory, and a SIGKILL while it runs
 * and while it is given out. */
static void test_streamed_large(void **state)
{
	(void)state;
	stream_small_ones(true);
	more_keys = "transaction_memory = \"64kB\";";
	start_streaming();
	run("BEGIN; INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 30000) i");
	while (!is_in_files())
		assert_false(sup.closed);
	/* What runs holds nothing: its commit comes later. */
	run("CREATE TABLE other (v text)");
	kill_it();
	new_reader();
	forget();
	start_streaming();
	run("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(30001, 60000) i");
	con.pause = true;
	run("COMMIT");
	WAIT(ring_is_full);
	uint64_t before = confirmed();
	kill_it();
	new_reader();
	con.pause = false;
	forget();
	start_streaming();
	WAIT(all_large);
	assert_int_equal(con.n_inserts, 60000);
	assert_int_equal(con.n_commits, 1);
	assert_true(confirmed() >= before);
	WAIT(confirmed_past_end);
	assert_int_equal(ring_value("file_bytes"), 0);
#ifndef HOWDAH_SANITIZER
	/* The ring, transaction_memory, 10 MB. */
	if (peak_kb() > 1024 + 64 + 10240)
		fail_msg("%llu kB at its peak", (unsigned long long)peak_kb());
#endif
	run("DROP TABLE other");
	stop();
	stream_small_ones(false);
}

static bool says_spool_limit(void)
{
	return is_streaming() && strstr(sup.status, "raise walstreamd.transaction_spool_limit");
}

static bool says_no_limit(void)
{
	return is_streaming() && strstr(sup.status, "transaction_spool_limit") == NULL;
}

static bool all_5000(void)
{
	return con.n_inserts >= 5000 && con.n_commits >= 1;
}

/* A transaction that does not fit is left to the server, said, and tried again after a reload. */
static void test_streaming_limit(void **state)
{
	(void)state;
	stream_small_ones(true);
	more_keys = "transaction_memory = \"64kB\"; transaction_spool_limit = \"0\";";
	start_streaming();
	for (int i = 0; i < 2; i++) {
		forget();
		run(i == 0 ? "INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, "
			     "5000) i"
			   : "INSERT INTO t SELECT -i, repeat('x', 300) FROM generate_series(1, "
			     "5000) "
			     "i");
		WAIT(all_5000);
		assert_int_equal(con.n_inserts, 5000);
		assert_int_equal(con.n_commits, 1);
		WAIT(says_spool_limit);
		WAIT(confirmed_past_end);
		send_reload();
		WAIT(says_no_limit);
	}
	stop();
	stream_small_ones(false);
}

int main(void)
{
	static char path[4096];
	const char *build = getenv("HOWDAH_BUILDDIR");
	snprintf(path, sizeof(path), "%s/walstreamd/walstreamd", build != NULL ? build : ".");
	program = getenv("HOWDAH_WALSTREAMD") != NULL ? getenv("HOWDAH_WALSTREAMD") : path;
	signal(SIGPIPE, SIG_IGN);
	log_init("test_walstreamd", LOG_LEVEL_ERROR);
	snprintf(spool_dir, sizeof(spool_dir), "/tmp/howdah-spool.XXXXXX");
	assert_non_null(mkdtemp(spool_dir));
	snprintf(state_dir, sizeof(state_dir), "/tmp/howdah-state.XXXXXX");
	assert_non_null(mkdtemp(state_dir));
	loop = ev_loop_new();
	sql_conn = PQconnectdb("options='-c client_min_messages=error -c search_path=public'");
	if (PQstatus(sql_conn) != CONNECTION_OK) {
		fprintf(stderr, "%s\n", PQerrorMessage(sql_conn));
		return 1;
	}
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_first_start),
		TEST(test_acknowledged_only),
		TEST(test_idle_slot_moves),
		TEST(test_reattach),
		TEST(test_back_pressure),
		TEST(test_room_bit_by_bit),
		TEST(test_full_ring_at_begin),
		TEST(test_walsender_killed),
		TEST(test_lost_slot),
		TEST(test_many_gaps),
		TEST(test_killed_before_told_at),
		TEST(test_half_made_slot),
		TEST(test_slot_of_another_database),
		TEST(test_beginning_refused),
		TEST(test_second_instance),
		TEST(test_no_schema_yet),
		TEST(test_no_slot_left),
		TEST(test_reader_away),
		TEST(test_audience),
		TEST(test_killed_in_first_start),
		TEST(test_commands),
		TEST(test_hostile_cursor),
		TEST(test_invalidated_slot),
		TEST(test_streaming_modes),
		TEST(test_streamed_large),
		TEST(test_streaming_limit),
		TEST(test_other_timeline),
		TEST(test_no_history),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	ev_loop_free(&loop);
	free(con.log);
	rmdir(spool_dir);
	char own_spool[80];
	snprintf(own_spool, sizeof(own_spool), "%s/spool", state_dir);
	/* Nothing was left there. */
	failed += rmdir(own_spool) != 0;
	rmdir(state_dir);
	return failed;
}
