/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler against a model of the server: random transactions, several at once, with nested
 * savepoints released and rolled back, DDL, PREPARE and its ends, given up, streamed in blocks by
 * the server's rules or sent whole; sessions that break off and begin anew, lives that end. What
 * comes out at every commit must be what the model's transaction holds: rows, their
 * sub-transaction, LSN, ordinal, and the columns that the relation had when they were written.
 *
 * PGWS_TEST_SEED repeats a run, PGWS_TEST_ROUNDS makes it longer.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <dirent.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/assemble_testing.h"

#define TXNS 5
#define RELS 4
#define ENTRIES 400
#define DEPTH 8
#define STEPS 300

enum kind { ROW, MSG, DDL };

struct entry {
	enum kind kind;
	uint32_t subxid, relid;
	unsigned version; /* of the relation when it was written, or from then on (DDL) */
	unsigned id;
	uint64_t lsn;
};

struct txn {
	bool open, prepared, streamed; /* streamed: something of it was, in this session */
	uint32_t xid;
	unsigned gid;
	uint64_t prepare_lsn;
	struct entry entries[ENTRIES]; /* alive ones, in order */
	size_t n, n_sent;              /* the first n_sent were streamed */
	uint32_t stack[DEPTH];         /* open sub-transactions */
	size_t depth;
	uint32_t all_subs[ENTRIES]; /* all that are alive, with the depth at which they stand */
	size_t sub_depth[ENTRIES], n_subs;
	bool touched[RELS], owns[RELS];
	bool sent_in_stream[RELS];
	unsigned stream_version[RELS];
};

static struct txn txns[TXNS];
static unsigned versions[RELS]; /* committed */
static unsigned said[RELS];     /* to this session, outside streams; 0: not */
static uint32_t next_xid;
static unsigned next_id, next_gid, seed, round_seed;
static uint64_t lsn;
static struct pgws_assembler *a;
static struct asm_out out;
static char dir[64];
static size_t memory_limit;
static uint64_t n_rows, n_commits, n_aborts, n_prepared, n_sessions;

static unsigned rnd(unsigned n)
{
	return (unsigned)rand_r(&seed) % n;
}

static void feed(struct asm_msg m, uint64_t at)
{
	int err = asm_feed(a, &out, m, at);
	if (err != 0)
		fail_msg("'%c': %d %s", m.bytes[0], err, pgws_assembler_error(a));
}

static const char *column_of(uint32_t rel, unsigned version)
{
	static char text[32];
	snprintf(text, sizeof(text), "r%u_v%u", rel, version);
	return text;
}

static struct asm_msg message_of(const struct entry *e, uint32_t xid)
{
	char text[700];
	int n = snprintf(text, sizeof(text), "%u:", e->id);
	size_t pad = e->id * 37 % 600;
	memset(text + n, 'x', pad);
	text[(size_t)n + pad] = 0;
	return e->kind == MSG ? asm_message(xid, true, text) : asm_insert(xid, e->relid + 1, text);
}

/* ---- what the server does ---- */

static void start_life(void)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	o.memory_limit = memory_limit;
	o.file_limit = UINT64_C(1) << 30;
	o.dir = dir;
	o.keep_prepared = true;
	int err = pgws_assembler_new(&o, &a);
	if (err != 0)
		fail_msg("%d %s", err, pgws_assembler_error(NULL));
}

/* Nothing that is open was sent in the new session. */
static void new_session(void)
{
	if (rnd(2) == 0) {
		pgws_assembler_free(&a);
		start_life();
	} else {
		pgws_assembler_reset(a);
	}
	for (struct txn *t = txns; t < txns + TXNS; t++) {
		t->n_sent = 0;
		t->streamed = false;
		memset(t->sent_in_stream, 0, sizeof(t->sent_in_stream));
	}
	memset(said, 0, sizeof(said));
	n_sessions++;
}

static void stream_block(struct txn *t)
{
	feed(asm_stream_start(t->xid, !t->streamed),
		t->n_sent < t->n ? t->entries[t->n_sent].lsn : 0);
	t->streamed = true;
	for (; t->n_sent < t->n; t->n_sent++) {
		const struct entry *e = &t->entries[t->n_sent];
		if (e->kind == DDL) {
			t->sent_in_stream[e->relid] = false;
			continue;
		}
		if (e->kind == ROW && !t->sent_in_stream[e->relid]) {
			feed(asm_relation(e->subxid, e->relid + 1, column_of(e->relid, e->version)),
				0);
			t->sent_in_stream[e->relid] = true;
			t->stream_version[e->relid] = e->version;
		}
		/* As pgoutput does: a Message's sub-transaction is not told. */
		feed(message_of(e, e->kind == MSG ? t->xid : e->subxid), e->lsn);
	}
	feed(asm_start('E', 0), lsn);
}

/* Not streamed: Relation where this session has not said it, or another. */
static void send_whole(struct txn *t)
{
	for (size_t i = 0; i < t->n; i++) {
		const struct entry *e = &t->entries[i];
		if (e->kind == DDL)
			continue;
		if (e->kind == ROW && said[e->relid] != e->version) {
			feed(asm_relation(0, e->relid + 1, column_of(e->relid, e->version)), 0);
			said[e->relid] = e->version;
		}
		feed(message_of(e, 0), e->lsn);
	}
}

/* ---- what must come out ---- */

static size_t skip_taught(size_t i)
{
	while (i < out.n && (out.list[i].bytes[0] == 'R' || out.list[i].bytes[0] == 'Y'))
		i++;
	return i;
}

static void expect(const struct txn *t, uint64_t commit_lsn, bool subs_known)
{
	struct asm_msg b = asm_begin(t->xid, commit_lsn), c = asm_commit(commit_lsn);
	size_t i = skip_taught(0);
	assert_true(i < out.n && out.list[i].len == b.len);
	assert_memory_equal(out.list[i].bytes, b.bytes, b.len);
	uint32_t ordinal = 0;
	for (size_t n = 0; n < t->n; n++) {
		const struct entry *e = &t->entries[n];
		if (e->kind == DDL)
			continue;
		i = skip_taught(i + 1);
		struct asm_msg m = message_of(e, 0);
		assert_true(i < out.n);
		const struct asm_given *g = &out.list[i];
		assert_int_equal(g->len, m.len);
		assert_memory_equal(g->bytes, m.bytes, m.len);
		assert_int_equal(g->change.ordinal, ++ordinal);
		assert_int_equal(g->change.lsn, e->lsn);
		assert_int_equal(g->change.xid, t->xid);
		assert_int_equal(
			g->change.subxid, subs_known && e->kind == ROW ? e->subxid : t->xid);
		assert_int_equal(g->change.commit_lsn, commit_lsn);
		if (e->kind == ROW)
			assert_string_equal(g->column, column_of(e->relid, e->version));
		n_rows++;
	}
	i = skip_taught(i + 1);
	assert_true(i + 1 == out.n && out.list[i].len == c.len);
	assert_memory_equal(out.list[i].bytes, c.bytes, c.len);
	asm_out_clear(&out);
	n_commits++;
}

/* ---- what sessions do ---- */

/* They wrap, past the three that stand for something else. */
static uint32_t new_xid(void)
{
	if (next_xid < 3)
		next_xid = 3;
	return next_xid++;
}

static void begin(struct txn *t)
{
	memset(t, 0, sizeof(*t));
	t->open = true;
	t->xid = new_xid();
}

static uint32_t current_sub(const struct txn *t)
{
	return t->depth > 0 ? t->stack[t->depth - 1] : t->xid;
}

static unsigned version_for(const struct txn *t, uint32_t rel)
{
	for (size_t i = t->n; i-- > 0;) {
		if (t->entries[i].kind == DDL && t->entries[i].relid == rel)
			return t->entries[i].version;
	}
	return versions[rel];
}

static bool may_use(const struct txn *t, uint32_t rel, bool alone)
{
	for (const struct txn *o = txns; o < txns + TXNS; o++) {
		if (o != t && o->open && (o->owns[rel] || (alone && o->touched[rel])))
			return false;
	}
	return true;
}

static void write_entry(struct txn *t, enum kind kind)
{
	uint32_t rel = rnd(RELS);
	if (t->n == ENTRIES || !may_use(t, rel, kind == DDL))
		return;
	static unsigned version;
	struct entry *e = &t->entries[t->n];
	*e = (struct entry){.kind = kind,
		.subxid = current_sub(t),
		.relid = rel,
		.version = kind == DDL ? 1000 + ++version : version_for(t, rel),
		.id = next_id++,
		.lsn = lsn++};
	t->n++;
	t->touched[rel] = true;
	t->owns[rel] |= kind == DDL;
}

static void savepoint(struct txn *t)
{
	if (t->depth == DEPTH || t->n_subs == ENTRIES)
		return;
	t->all_subs[t->n_subs] = t->stack[t->depth] = new_xid();
	t->sub_depth[t->n_subs++] = t->depth;
	t->depth++;
}

static bool has_entries(const struct txn *t, uint32_t subxid, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		if (t->entries[i].subxid == subxid && t->entries[i].kind != DDL)
			return true;
	}
	return false;
}

/* The abort record names the released ones below it first, then itself. */
static void rollback_to(struct txn *t)
{
	if (t->depth == 0)
		return;
	size_t depth = rnd((unsigned)t->depth);
	bool aborted = false;
	size_t first = t->n_subs;
	while (first > 0 && t->all_subs[first - 1] != t->stack[depth])
		first--;
	first--;
	for (size_t i = t->n_subs; i-- > first;) {
		if (t->streamed && has_entries(t, t->all_subs[i], 0, t->n_sent)) {
			feed(asm_stream_abort(t->xid, t->all_subs[i], rnd(2)), lsn);
			aborted = true;
			n_aborts++;
		} else if (t->streamed && rnd(4) == 0) {
			feed(asm_stream_abort(t->xid, t->all_subs[i], rnd(2)), lsn);
			aborted = true;
		}
	}
	if (aborted)
		memset(t->sent_in_stream, 0, sizeof(t->sent_in_stream));
	size_t n = 0, n_sent = 0;
	bool cut = false; /* behind a row that was streamed */
	for (size_t i = 0; i < t->n; i++) {
		bool sent = i < t->n_sent, gone = false;
		for (size_t s = first; s < t->n_subs; s++)
			gone |= t->entries[i].subxid == t->all_subs[s];
		/* A Message that was streamed goes only if it stands behind such a row. */
		cut |= gone && sent && t->entries[i].kind == ROW;
		if (sent && t->entries[i].kind == MSG)
			gone = cut;
		/* DDL that is undone makes the server say the relation again. */
		if (gone && t->entries[i].kind == DDL)
			t->sent_in_stream[t->entries[i].relid] = false;
		if (!gone) {
			n_sent += i < t->n_sent;
			t->entries[n++] = t->entries[i];
		}
	}
	t->n = n;
	t->n_sent = n_sent;
	t->n_subs = first;
	t->depth = depth;
}

static void commit_versions(struct txn *t)
{
	for (uint32_t rel = 0; rel < RELS; rel++) {
		versions[rel] = version_for(t, rel);
		if (t->streamed && t->sent_in_stream[rel])
			said[rel] = t->stream_version[rel];
	}
}

static void commit(struct txn *t)
{
	uint64_t at = lsn;
	lsn += 100;
	if (t->streamed) {
		if (t->n_sent < t->n || rnd(2) == 0)
			stream_block(t);
		assert_int_equal(out.n, 0);
		feed(asm_stream_commit(t->xid, at), at + 48);
	} else {
		feed(asm_begin(t->xid, at), at);
		send_whole(t);
		feed(asm_commit(at), at + 48);
	}
	expect(t, at, t->streamed);
	commit_versions(t);
	t->open = false;
}

static void give_up(struct txn *t)
{
	if (t->streamed)
		feed(asm_stream_abort(t->xid, t->xid, rnd(2)), lsn);
	assert_int_equal(out.n, 0);
	t->open = false;
	n_aborts++;
}

static void gid_of(const struct txn *t, char gid[16])
{
	snprintf(gid, 16, "gid %u", t->gid);
}

static void prepare(struct txn *t)
{
	char gid[16];
	t->gid = next_gid++ % 3; /* used again and again */
	for (const struct txn *o = txns; o < txns + TXNS; o++) {
		if (o != t && o->open && o->prepared && o->gid == t->gid)
			return;
	}
	gid_of(t, gid);
	t->prepare_lsn = lsn;
	lsn += 100;
	bool streamed = t->streamed;
	if (streamed) {
		if (t->n_sent < t->n)
			stream_block(t);
		feed(asm_prepare('p', t->xid, t->prepare_lsn, gid), t->prepare_lsn + 48);
		assert_int_equal(out.n, 0);
	} else {
		feed(asm_prepare('b', t->xid, t->prepare_lsn, gid), t->prepare_lsn);
		send_whole(t);
		feed(asm_prepare('P', t->xid, t->prepare_lsn, gid), t->prepare_lsn + 48);
		for (size_t i = 0; i < out.n; i++) {
			assert_int_equal(out.list[i].bytes[0], 'R');
			assert_int_equal(out.list[i].change.commit_lsn, 0);
		}
		asm_out_clear(&out);
		for (size_t i = 0; i < t->n; i++)
			t->entries[i].subxid = t->xid;
	}
	t->prepared = true;
	n_prepared++;
}

static void end_prepared(struct txn *t)
{
	char gid[16];
	gid_of(t, gid);
	uint64_t at = lsn;
	lsn += 100;
	if (rnd(3) == 0) {
		feed(asm_rollback_prepared(t->xid, t->prepare_lsn, at, gid), at + 48);
		assert_int_equal(out.n, 0);
		/* What it said stands no more: the server says those relations again. */
		for (uint32_t rel = 0; rel < RELS; rel++) {
			if (t->owns[rel])
				said[rel] = 0;
		}
	} else {
		int times = 1 + (rnd(3) == 0);
		while (times-- > 0) {
			feed(asm_prepare('K', t->xid, at, gid), at + 48);
			expect(t, at, true);
			if (times > 0)
				new_session();
		}
		for (uint32_t rel = 0; rel < RELS; rel++)
			versions[rel] = version_for(t, rel);
	}
	t->open = false;
	if (rnd(2) == 0)
		assert_int_equal(pgws_assembler_confirmed(a, lsn), 0);
}

static void step(void)
{
	struct txn *t = &txns[rnd(TXNS)];
	unsigned what = rnd(100);
	if (!t->open)
		begin(t);
	else if (t->prepared) {
		if (what < 20)
			end_prepared(t);
	} else if (what < 45)
		write_entry(t, ROW);
	else if (what < 50)
		write_entry(t, what < 48 ? MSG : DDL);
	else if (what < 65)
		savepoint(t);
	else if (what < 70)
		t->depth -= t->depth > 0; /* released: what it wrote stays, under its own xid */
	else if (what < 78)
		rollback_to(t);
	else if (what < 90)
		stream_block(t);
	else if (what < 94)
		commit(t);
	else if (what < 96)
		give_up(t);
	else if (what < 98)
		prepare(t);
	else if (what < 99)
		feed(asm_stream_abort(next_xid + 100000, next_xid + 100001, rnd(2)), lsn);
	else if (rnd(3) == 0)
		new_session();
}

static void check_memory(void)
{
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(a, &c);
	if (c.memory_bytes > memory_limit + TXNS * 4096 + c.prepared * 1024)
		fail_msg("%zu bytes, limit %zu", (size_t)c.memory_bytes, memory_limit);
	uint64_t open = 0, prepared = 0;
	for (const struct txn *t = txns; t < txns + TXNS; t++) {
		open += t->open && !t->prepared && t->streamed;
		prepared += t->open && t->prepared;
	}
	assert_int_equal(c.open, open);
	assert_int_equal(c.prepared, prepared);
}

static void end_all(void)
{
	for (struct txn *t = txns; t < txns + TXNS; t++) {
		if (t->open && t->prepared)
			end_prepared(t);
		else if (t->open)
			commit(t);
	}
	assert_int_equal(pgws_assembler_confirmed(a, lsn), 0);
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(a, &c);
	assert_int_equal(c.open, 0);
	assert_int_equal(c.prepared, 0);
	assert_int_equal(c.memory_bytes, 0);
	assert_int_equal(c.file_bytes, 0);
}

static void test_model(void **state)
{
	(void)state;
	static const size_t limits[] = {0, 1, 500, 5000, 40000, 64 << 20};
	const char *given = getenv("PGWS_TEST_SEED"), *longer = getenv("PGWS_TEST_ROUNDS");
	unsigned start = given != NULL ? (unsigned)strtoul(given, NULL, 10)
				       : (unsigned)time(NULL) ^ (unsigned)getpid() << 16;
	unsigned rounds = given != NULL ? 1 : longer != NULL ? (unsigned)atoi(longer) : 3000;
	for (unsigned round = 0; round < rounds; round++) {
		seed = round_seed = start + round;
		memset(txns, 0, sizeof(txns));
		memset(said, 0, sizeof(said));
		for (uint32_t rel = 0; rel < RELS; rel++)
			versions[rel] = 1;
		next_xid = rnd(2) == 0 ? 700 : UINT32_MAX - 20;
		lsn = 1000;
		memory_limit = limits[rnd(6)];
		start_life();
		for (int i = 0; i < STEPS; i++) {
			step();
			check_memory();
		}
		end_all();
		pgws_assembler_free(&a);
	}
	print_message("from PGWS_TEST_SEED=%u on: ", start);
	print_message("%llu rows in %llu transactions, %llu aborts, %llu prepared, %llu sessions\n",
		(unsigned long long)n_rows, (unsigned long long)n_commits,
		(unsigned long long)n_aborts, (unsigned long long)n_prepared,
		(unsigned long long)n_sessions);
}

static int setup(void **state)
{
	(void)state;
	/* In memory where the system has that: every PREPARE is synced. */
	const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	snprintf(dir, sizeof(dir), "%s/test-assemble.XXXXXX", root);
	return mkdtemp(dir) == NULL;
}

static int teardown(void **state)
{
	(void)state;
	if (a != NULL)
		print_message("PGWS_TEST_SEED=%u repeats it\n", round_seed);
	pgws_assembler_free(&a);
	asm_out_clear(&out);
	DIR *d = opendir(dir);
	for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
		if (e->d_name[0] != '.')
			(void)unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d != NULL)
		closedir(d);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_model, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
