/* SPDX-License-Identifier: PostgreSQL */
/*
 * The program walstreamd, as it is installed, between a real server and a real reader of the ring:
 * the test plays the supervisor (messages, descriptors) and holds a ring_reader in brokerd's place.
 * For tests inside tests/helpers/with-postgres.
 */
#ifndef TESTS_UNIT_HELPER_WALSTREAMD_H
#define TESTS_UNIT_HELPER_WALSTREAMD_H

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

static inline void run_file(const char *path)
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

static inline void run_schema(void)
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
	bool empty; /* the open transaction, so far: its Begin is not in log yet */
	uint64_t payload_bytes;
	uint64_t digest; /* of all transactions but their relation messages; empty ones left out */
	uint64_t txn_digest;
	struct pgws_catalog *catalog;
} con;

static inline void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static inline void note(const char *fmt, ...)
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

static inline void forget(void)
{
	con.len = 0;
	if (con.log != NULL)
		con.log[0] = '\0';
	con.n_inserts = con.n_commits = con.n_streams = con.n_empty = con.n_gaps = 0;
	con.payload_bytes = con.digest = 0;
}

static inline void note_change(const struct ring_record *rec, const struct pgws_msg *m)
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

static inline uint64_t fold(uint64_t digest, const void *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		digest = (digest ^ ((const uint8_t *)data)[i]) * UINT64_C(1099511628211);
	return digest;
}

/* Relations are announced anew in a streamed transaction, and Begin has no LSN of its own. */
static inline void take_digest(
	const struct ring_record *rec, const void *payload, enum pgws_type type)
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

static inline int on_record(const struct ring_record *rec, const void *payload, void *arg)
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
	if (was_empty && m.type != PGWS_BEGIN && m.type != PGWS_COMMIT)
		note(" B");
	switch (m.type) {
	case PGWS_BEGIN:
		con.last_ordinal = 0;
		assert_int_equal(rec->commit_lsn, m.u.begin.final_lsn);
		break;
	case PGWS_COMMIT:
		assert_int_equal(rec->end_lsn, m.u.commit.end_lsn);
		con.last_end_lsn = rec->end_lsn;
		if (was_empty) {
			con.n_empty++;
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

static inline int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
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

static inline int on_gap(const struct ring_gap *gap, void *arg)
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

static inline int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
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

static inline void send_empty(uint32_t type)
{
	assert_int_equal(imsg_send(sup.channel, type, 0, NULL, NULL, 0), 0);
}

static inline void send_peer(bool up, uint32_t generation)
{
	struct buf body;
	const struct worker_peer m = {.role = ROLE_BROKERD, .up = up, .generation = generation};
	buf_init(&body, 0);
	worker_put_peer(&body, &m);
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_PEER, 0, &body, NULL, 0), 0);
	buf_free(&body);
}

static inline void reader_up(void)
{
	static uint32_t generation;
	send_peer(true, ++generation);
	ring_reader_peer(con.reader, true, sup.generation);
	sup.reader_up = true;
}

static inline int on_relay(struct imsg *msg)
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

static inline int on_message(struct imsg *msg, void *arg)
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

static inline void on_closed(int err, void *arg)
{
	(void)err;
	(void)arg;
	sup.closed = true;
	imsg_close(&sup.channel);
}

static inline void on_wake(void *arg)
{
	(void)arg;
}

/* Passes of the loop until it is so. */
static inline bool wait_for(bool (*condition)(void), uint32_t ms)
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

static inline bool never(void)
{
	return false;
}

static inline int config_fd(void)
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

static inline void send_reload(void)
{
	int fd = config_fd();
	struct buf body;
	buf_init(&body, 0);
	worker_put_text(&body, "error");
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_RELOAD, 1, &body, &fd, 1), 0);
	buf_free(&body);
	close(fd);
}

static inline void send_config(const char *instance)
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

static inline void child(int sock, int page)
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

static inline void spawn(const char *instance)
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

static inline bool is_ready(void)
{
	return sup.ready || sup.closed;
}

static inline bool is_streaming(void)
{
	return strncmp(sup.status, "streaming", 9) == 0;
}

static inline bool is_closed(void)
{
	return sup.closed;
}

static inline bool has_stream(void)
{
	return con.n_streams > 0 && is_streaming();
}

static inline void start(void)
{
	spawn("instance-1");
	WAIT(is_ready);
	assert_true(sup.ready);
	reader_up();
}

static inline void start_streaming(void)
{
	start();
	WAIT(has_stream);
}

static inline int ended(void)
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
static inline void stop(void)
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

static inline void kill_it(void)
{
	kill(sup.pid, SIGKILL);
	(void)ended();
}

static inline void new_reader(void)
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

static inline int setup(void **state)
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

static inline int teardown(void **state)
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

static inline bool waits_for_reader(void)
{
	return strncmp(sup.status, "waiting for a reader", 20) == 0;
}

static inline bool one_commit(void)
{
	return con.n_commits >= 1;
}

static inline bool confirmed_past_end(void)
{
	char text[200], lsn[18];
	snprintf(text, sizeof(text), "SELECT confirmed_flush_lsn >= '%s' FROM pg_replication_slots",
		pgws_lsn_str(con.last_end_lsn, lsn));
	return sql_is(text, "t");
}

static inline bool says_lost(void)
{
	return strstr(sup.status, "pgctl node remove alpha") != NULL;
}

/* What main does before and after the tests. */
static inline bool begin_tests(const char *name)
{
	static char path[4096];
	const char *build = getenv("HOWDAH_BUILDDIR");
	snprintf(path, sizeof(path), "%s/walstreamd/walstreamd", build != NULL ? build : ".");
	program = getenv("HOWDAH_WALSTREAMD") != NULL ? getenv("HOWDAH_WALSTREAMD") : path;
	signal(SIGPIPE, SIG_IGN);
	log_init(name, LOG_LEVEL_ERROR);
	snprintf(spool_dir, sizeof(spool_dir), "/tmp/howdah-spool.XXXXXX");
	assert_non_null(mkdtemp(spool_dir));
	snprintf(state_dir, sizeof(state_dir), "/tmp/howdah-state.XXXXXX");
	assert_non_null(mkdtemp(state_dir));
	loop = ev_loop_new();
	sql_conn = PQconnectdb("options='-c client_min_messages=error -c search_path=public'");
	if (PQstatus(sql_conn) != CONNECTION_OK) {
		fprintf(stderr, "%s\n", PQerrorMessage(sql_conn));
		return false;
	}
	return true;
}

static inline int end_tests(int failed)
{
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

#endif
