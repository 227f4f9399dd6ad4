/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler on messages made by hand: ordinary and streamed transactions, interleaved; aborts
 * of sub-transactions and of whole ones; what Relation messages teach and when; what does not
 * belong. That the server really sends so is what test_assemble_server shows.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/assemble_testing.h"

static struct asm_out out;

static struct pgws_assembler *new_assembler(void)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	struct pgws_assembler *a = NULL;
	assert_int_equal(pgws_assembler_new(&o, &a), 0);
	return a;
}

static int setup(void **state)
{
	*state = new_assembler();
	return 0;
}

static int teardown(void **state)
{
	struct pgws_assembler *a = *state;
	/* Nothing that was fed may stay behind once it has ended. */
	pgws_assembler_reset(a);
	struct pgws_assembler_counts counts;
	pgws_assembler_get_counts(a, &counts);
	assert_int_equal(counts.open, 0);
	assert_int_equal(counts.memory_bytes, 0);
	assert_int_equal(counts.file_bytes, 0);
	pgws_assembler_free(&a);
	assert_null(a);
	pgws_assembler_free(&a);
	asm_out_clear(&out);
	return 0;
}

/* Feeds a message at an LSN, which has to be taken. */
#define feed(lsn, message) assert_int_equal(asm_feed(a, &out, message, lsn), 0)
#define feed_error(err, lsn, message) assert_int_equal(asm_feed(a, &out, message, lsn), err)

/* "B R I:a C": what was given out, rows with their value. */
static const char *summary(void)
{
	static char text[4096];
	size_t at = 0;
	text[0] = 0;
	for (size_t i = 0; i < out.n; i++) {
		const struct asm_given *g = &out.list[i];
		at += (size_t)snprintf(
			text + at, sizeof(text) - at, "%s%c", i > 0 ? " " : "", g->bytes[0]);
		if (g->bytes[0] == 'I')
			at += (size_t)snprintf(text + at, sizeof(text) - at, ":%.*s",
				(int)(g->len - 13), (const char *)g->bytes + 13);
	}
	return text;
}

static void expect_bytes(size_t i, struct asm_msg m)
{
	assert_true(i < out.n);
	assert_int_equal(out.list[i].len, m.len);
	assert_memory_equal(out.list[i].bytes, m.bytes, m.len);
}

static void test_ordinary(void **state)
{
	struct pgws_assembler *a = *state;
	assert_false(pgws_assembler_in_transaction(a));
	feed(100, asm_begin(7, 500));
	assert_true(pgws_assembler_in_transaction(a));
	feed(0, asm_type(0, 900));
	feed(0, asm_relation(0, 1, "c"));
	feed(101, asm_insert(0, 1, "x"));
	feed(102, asm_message(0, true, "hello"));
	feed(103, asm_truncate(0, 1, 0));
	assert_true(pgws_assembler_in_transaction(a));
	feed(548, asm_commit(500));
	assert_false(pgws_assembler_in_transaction(a));
	assert_string_equal(summary(), "B Y R I:x M T C");
	expect_bytes(0, asm_begin(7, 500));
	expect_bytes(3, asm_insert(0, 1, "x"));
	const uint32_t ordinals[] = {0, 0, 0, 1, 2, 3, 0};
	const uint64_t lsns[] = {100, 0, 0, 101, 102, 103, 548};
	for (size_t i = 0; i < 7; i++) {
		const struct pgws_change *c = &out.list[i].change;
		assert_int_equal(c->ordinal, ordinals[i]);
		assert_int_equal(c->lsn, lsns[i]);
		assert_int_equal(c->commit_lsn, 500);
		assert_int_equal(c->commit_time, 1000500);
		assert_int_equal(c->xid, 7);
		assert_int_equal(c->subxid, 7);
		assert_int_equal(c->end_lsn, i == 6 ? 548 : 0);
		assert_true((c->relation != NULL) == (i == 2 || i == 3 || i == 5));
		assert_null(c->gid);
	}
	assert_non_null(pgws_catalog_find(pgws_assembler_catalog(a), 1));
}

static void test_in_place(void **state)
{
	struct pgws_assembler *a = *state;
	struct asm_msg m = asm_begin(7, 500);
	struct pgws_event ev = {.kind = PGWS_EVENT_DATA, .data = m.bytes, .len = m.len};
	struct pgws_change c;
	assert_int_equal(pgws_assembler_next(a, &c), PGWS_EAGAIN);
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	assert_int_equal(pgws_assembler_put(a, &ev), PGWS_ESTATE);
	assert_true(pgws_assembler_error(a)[0] != 0);
	assert_int_equal(pgws_assembler_next(a, &c), 0);
	assert_ptr_equal(c.data, m.bytes);
	assert_int_equal(pgws_assembler_next(a, &c), PGWS_EAGAIN);
}

static void test_streamed(void **state)
{
	struct pgws_assembler *a = *state;
	struct pgws_assembler_counts counts;
	feed(100, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(101, asm_insert(7, 1, "a"));
	feed(102, asm_insert(8, 1, "b"));
	feed(103, asm_message(8, true, "m"));
	feed(103, asm_start('E', 0));
	/* Between the blocks: an ordinary transaction, which says its Relation by itself. */
	feed(200, asm_begin(9, 250));
	feed_error(0, 0, asm_relation(0, 1, "c"));
	feed(201, asm_insert(0, 1, "o"));
	feed(298, asm_commit(250));
	assert_string_equal(summary(), "B R I:o C");
	pgws_assembler_get_counts(a, &counts);
	assert_int_equal(counts.open, 1);
	assert_true(counts.memory_bytes > 0);
	feed(300, asm_stream_start(7, false));
	feed(301, asm_insert(7, 1, "c"));
	feed(301, asm_start('E', 0));
	asm_out_clear(&out);
	feed(448, asm_stream_commit(7, 400));
	assert_string_equal(summary(), "B R I:a I:b M I:c C");
	expect_bytes(0, asm_begin(7, 400));
	expect_bytes(1, asm_relation(0, 1, "c"));
	expect_bytes(2, asm_insert(0, 1, "a"));
	expect_bytes(4, asm_message(0, true, "m"));
	expect_bytes(6, asm_commit(400));
	const uint32_t ordinals[] = {0, 0, 1, 2, 3, 4, 0};
	const uint32_t subxids[] = {7, 7, 7, 8, 8, 7, 7};
	const uint64_t lsns[] = {100, 0, 101, 102, 103, 301, 448};
	for (size_t i = 0; i < 7; i++) {
		const struct pgws_change *c = &out.list[i].change;
		assert_int_equal(c->msg.xid, 0);
		assert_int_equal(c->ordinal, ordinals[i]);
		assert_int_equal(c->subxid, subxids[i]);
		assert_int_equal(c->lsn, lsns[i]);
		assert_int_equal(c->xid, 7);
		assert_int_equal(c->commit_lsn, 400);
		assert_int_equal(c->end_lsn, 448);
		assert_int_equal(c->commit_time, 1000400);
	}
	pgws_assembler_get_counts(a, &counts);
	assert_int_equal(counts.open, 0);
	assert_int_equal(counts.memory_bytes, 0);
	assert_int_equal(counts.streamed, 1);
}

/* One call of next at a time; put is refused meanwhile; in_transaction follows. */
static void test_giving_out_is_resumed(void **state)
{
	struct pgws_assembler *a = *state;
	feed(100, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(101, asm_insert(7, 1, "a"));
	feed(101, asm_start('E', 0));
	struct asm_msg m = asm_stream_commit(7, 400), other = asm_begin(8, 500);
	struct pgws_event ev = {.kind = PGWS_EVENT_DATA, .data = m.bytes, .len = m.len};
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	ev.data = other.bytes;
	ev.len = other.len;
	for (int i = 0; i < 4; i++) {
		struct pgws_change c;
		assert_int_equal(pgws_assembler_put(a, &ev), PGWS_ESTATE);
		assert_int_equal(pgws_assembler_next(a, &c), 0);
		assert_int_equal(c.data[0], "BRIC"[i]);
		assert_int_equal(pgws_assembler_in_transaction(a), i < 3);
		assert_int_equal(c.data[0], "BRIC"[i]);
	}
	struct pgws_change c;
	assert_int_equal(pgws_assembler_next(a, &c), PGWS_EAGAIN);
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	assert_int_equal(pgws_assembler_next(a, &c), 0);
}

static void test_aborts(void **state)
{
	struct pgws_assembler *a = *state;
	struct pgws_assembler_counts counts;
	feed(100, asm_stream_start(10, true));
	feed(0, asm_relation(10, 1, "c"));
	feed(1, asm_insert(10, 1, "t1"));
	feed(2, asm_insert(11, 1, "a1"));
	feed(3, asm_insert(12, 1, "b1"));
	feed(4, asm_insert(11, 1, "a2"));
	feed(5, asm_insert(13, 1, "c1"));
	feed(5, asm_start('E', 0));
	feed(0, asm_stream_abort(10, 99, false)); /* nothing of it was streamed */
	feed(0, asm_stream_abort(10, 13, true));
	feed(100, asm_stream_start(10, false));
	feed(6, asm_insert(10, 1, "t2"));
	feed(6, asm_start('E', 0));
	feed(0, asm_stream_abort(10, 12, false)); /* cuts b1 and what stands behind */
	feed(0, asm_stream_abort(10, 12, false)); /* gone already */
	feed(100, asm_stream_start(10, false));
	feed(7, asm_insert(12, 1, "b2"));
	feed(8, asm_insert(14, 1, "d1"));
	feed(8, asm_start('E', 0));
	feed(0, asm_stream_abort(10, 14, false));
	pgws_assembler_get_counts(a, &counts);
	assert_int_equal(counts.aborted, 3);
	feed(448, asm_stream_commit(10, 400));
	assert_string_equal(summary(), "B R I:t1 I:a1 I:b2 C");
	asm_out_clear(&out);

	/* The whole of it; and aborts of what is not known, of either length, anywhere. */
	feed(100, asm_stream_start(20, true));
	feed(1, asm_insert(20, 1, "x"));
	feed(0, asm_stream_abort(77, 78, true));
	feed(1, asm_start('E', 0));
	feed(0, asm_stream_abort(20, 20, true));
	feed(0, asm_stream_abort(20, 20, false));
	feed(100, asm_begin(21, 500));
	feed(0, asm_stream_abort(30, 31, false));
	feed(548, asm_commit(500));
	assert_string_equal(summary(), "B C");
	pgws_assembler_get_counts(a, &counts);
	assert_int_equal(counts.open, 0);
	assert_int_equal(counts.memory_bytes, 0);
	assert_int_equal(counts.aborted, 4);
	assert_int_equal(counts.ignored, 3);
	/* The xid is free again. */
	feed(100, asm_stream_start(20, true));
	feed(1, asm_start('E', 0));
	feed(0, asm_stream_abort(20, 20, false));
}

/* Many sub-transactions: each is found, in any order, and the list shrinks from its end. */
static void test_many_subs(void **state)
{
	struct pgws_assembler *a = *state;
	feed(0, asm_stream_start(1, true));
	feed(0, asm_relation(1, 1, "c"));
	for (uint32_t i = 0; i < 5000; i++) {
		char value[16];
		snprintf(value, sizeof(value), "%u", i);
		feed(i, asm_insert(2 + i * 3, 1, value));
		if (i % 7 == 0)
			feed(i, asm_insert(2, 1, "again"));
	}
	feed(0, asm_start('E', 0));
	for (uint32_t i = 4999; i >= 2500; i--)
		feed(0, asm_stream_abort(1, 2 + i * 3, false));
	feed(0, asm_stream_abort(1, 2 + 17 * 3, false));
	feed(0, asm_stream_commit(1, 400));
	/* B R, rows 0 to 16 with "again" behind 0, 7 and 14, C */
	assert_int_equal(out.n, 2 + 17 + 3 + 1);
	expect_bytes(out.n - 2, asm_insert(0, 1, "16"));
}

static void test_interleaved(void **state)
{
	struct pgws_assembler *a = *state;
	for (uint32_t xid = 1; xid <= 600; xid++) {
		feed(0, asm_stream_start(xid, true));
		feed(0, asm_relation(xid, 1, "c"));
		feed(0, asm_start('E', 0));
	}
	for (uint32_t xid = 600; xid >= 1; xid--) {
		char value[16];
		snprintf(value, sizeof(value), "%u", xid);
		feed(0, asm_stream_start(xid, false));
		feed(0, asm_insert(xid, 1, value));
		feed(0, asm_start('E', 0));
	}
	for (uint32_t xid = 1; xid <= 600; xid += 2)
		feed(0, asm_stream_abort(xid, xid, false));
	for (uint32_t xid = 2; xid <= 600; xid += 2) {
		char text[64];
		asm_out_clear(&out);
		feed(0, asm_stream_commit(xid, 400 + xid));
		snprintf(text, sizeof(text), "B R I:%u C", xid);
		assert_string_equal(summary(), text);
		assert_int_equal(out.list[2].change.xid, xid);
	}
}

/* What an aborted stream taught is forgotten; what is given out is learnt in its place. */
static void test_relations(void **state)
{
	struct pgws_assembler *a = *state;
	struct pgws_catalog *c = pgws_assembler_catalog(a);
	feed(0, asm_stream_start(1, true));
	feed(0, asm_relation(1, 1, "old"));
	feed(0, asm_insert(1, 1, "a"));
	feed(0, asm_relation(2, 1, "new"));
	feed(0, asm_insert(2, 1, "b"));
	feed(0, asm_start('E', 0));
	assert_null(pgws_catalog_find(c, 1));
	feed(0, asm_stream_start(5, true));
	feed(0, asm_relation(5, 2, "x"));
	feed(0, asm_start('E', 0));
	feed(0, asm_stream_abort(5, 5, false));
	feed(0, asm_stream_commit(1, 400));
	assert_string_equal(summary(), "B R I:a R I:b C");
	assert_string_equal(out.list[2].column, "old");
	assert_string_equal(out.list[4].column, "new");
	assert_string_equal(pgws_catalog_find(c, 1)->columns[0].name, "new");
	assert_null(pgws_catalog_find(c, 2));

	/* Only an aborted sub-transaction taught it: unknown when it is given out. */
	feed(0, asm_stream_start(6, true));
	feed(0, asm_relation(7, 3, "x"));
	feed(0, asm_start('E', 0));
	feed(0, asm_stream_abort(6, 7, false));
	feed(0, asm_stream_start(6, false));
	feed(9, asm_insert(6, 3, "lost"));
	feed(0, asm_start('E', 0));
	asm_out_clear(&out);
	feed_error(PGWS_EUNKNOWN, 0, asm_stream_commit(6, 500));
	assert_string_equal(summary(), "B");
	assert_non_null(strstr(pgws_assembler_error(a), "relation 3"));
	feed_error(PGWS_EUNKNOWN, 0, asm_begin(8, 600)); /* until reset */
	pgws_assembler_reset(a);
	assert_false(pgws_assembler_in_transaction(a));
	assert_string_equal(pgws_assembler_error(a), "");
	assert_null(pgws_catalog_find(c, 1));
	feed(0, asm_begin(8, 600));
}

/* While a transaction is open the server says a relation anew to others (a schema renamed, say),
 * and not again after its commit: what it said then must hold after it. */
static void test_later_relation_holds(void **state)
{
	struct pgws_assembler *a = *state;
	struct pgws_catalog *c = pgws_assembler_catalog(a);
	feed(0, asm_stream_start(1, true));
	feed(0, asm_relation(1, 1, "old"));
	feed(0, asm_insert(1, 1, "a"));
	feed(0, asm_relation(1, 2, "same"));
	feed(0, asm_relation(1, 3, "x"));
	feed(0, asm_start('E', 0));
	feed(0, asm_begin(5, 100));
	feed(0, asm_relation(0, 1, "new"));
	feed(0, asm_relation(0, 2, "same"));
	feed(0, asm_relation(0, 3, "y"));
	feed(0, asm_commit(100));
	feed(0, asm_stream_start(1, false));
	feed(0, asm_relation(2, 3, "z"));
	feed(0, asm_start('E', 0));
	asm_out_clear(&out);
	feed(0, asm_stream_commit(1, 400));
	assert_string_equal(summary(), "B R I:a R R R R C");
	assert_string_equal(out.list[2].column, "old");
	expect_bytes(6, asm_relation(0, 1, "new"));
	assert_string_equal(out.list[6].column, "new");
	assert_int_equal(out.list[6].change.commit_lsn, 400);
	assert_int_equal(out.list[6].change.ordinal, 0);
	assert_string_equal(pgws_catalog_find(c, 1)->columns[0].name, "new");
	assert_string_equal(pgws_catalog_find(c, 2)->columns[0].name, "same");
	assert_string_equal(pgws_catalog_find(c, 3)->columns[0].name, "z");

	/* Between two streamed ones that end in the other order; several old ones in a row. */
	feed(0, asm_stream_start(6, true));
	feed(0, asm_relation(6, 1, "older"));
	feed(0, asm_relation(6, 1, "old"));
	feed(0, asm_start('E', 0));
	feed(0, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "newest"));
	feed(0, asm_start('E', 0));
	asm_out_clear(&out);
	feed(0, asm_stream_commit(7, 500));
	feed(0, asm_stream_commit(6, 600));
	assert_string_equal(summary(), "B R C B R R R C");
	assert_string_equal(pgws_catalog_find(c, 1)->columns[0].name, "newest");

	/* Left in the middle. */
	feed(0, asm_stream_start(8, true));
	feed(0, asm_relation(8, 1, "old"));
	feed(0, asm_start('E', 0));
	feed(0, asm_begin(9, 700));
	feed(0, asm_relation(0, 1, "new"));
	feed(0, asm_commit(700));
	struct asm_msg m = asm_stream_commit(8, 800);
	struct pgws_event ev = {.kind = PGWS_EVENT_DATA, .data = m.bytes, .len = m.len};
	struct pgws_change change;
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	assert_int_equal(pgws_assembler_next(a, &change), 0);
	assert_int_equal(pgws_assembler_next(a, &change), 0);
	pgws_assembler_reset(a);
}

static void test_unknown_in_ordinary(void **state)
{
	struct pgws_assembler *a = *state;
	feed(0, asm_begin(8, 600));
	feed_error(PGWS_EUNKNOWN, 9, asm_insert(0, 3, "lost"));
	pgws_assembler_reset(a);
	feed(0, asm_begin(8, 600));
	feed(0, asm_relation(0, 3, "c"));
	feed_error(PGWS_EUNKNOWN, 9, asm_truncate(0, 3, 4));
	pgws_assembler_reset(a);
	feed(0, asm_begin(8, 600));
	feed(0, asm_relation(0, 3, "c"));
	feed(0, asm_relation(0, 4, "d"));
	feed(9, asm_truncate(0, 3, 4));
	assert_string_equal(out.list[out.n - 1].column, "c");
}

static void test_messages_outside(void **state)
{
	struct pgws_assembler *a = *state;
	feed(50, asm_message(0, false, "1"));
	feed(100, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(101, asm_insert(7, 1, "a"));
	feed(102, asm_message(8, false, "2"));
	feed(101, asm_start('E', 0));
	feed(103, asm_message(0, false, "3"));
	feed(104, asm_begin(9, 600));
	feed(105, asm_message(0, true, "4"));
	feed(106, asm_message(0, false, "5"));
	feed(107, asm_message(0, true, "6"));
	feed(108, asm_commit(600));
	feed(448, asm_stream_commit(7, 700));
	assert_string_equal(summary(), "M M M B M M M C B R I:a C");
	const uint64_t commits[] = {0, 0, 0, 600, 600, 0, 600, 600};
	const uint32_t ordinals[] = {0, 0, 0, 0, 1, 0, 2, 0};
	const uint64_t lsns[] = {50, 102, 103, 104, 105, 106, 107, 108};
	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(out.list[i].change.commit_lsn, commits[i]);
		assert_int_equal(out.list[i].change.ordinal, ordinals[i]);
		assert_int_equal(out.list[i].change.lsn, lsns[i]);
		assert_int_equal(out.list[i].change.xid, commits[i] != 0 ? 9 : 0);
	}
	expect_bytes(1, asm_message(0, false, "2"));
	assert_int_equal(out.list[1].change.msg.xid, 0);
	assert_false(pgws_assembler_in_transaction(a));
	feed(748, asm_message(0, false, "7"));
	assert_false(pgws_assembler_in_transaction(a));
	feed_error(PGWS_EPROTO, 1, asm_message(0, true, "outside"));
}

/* The origin belongs to the whole transaction, whichever sub-transaction wrote first. */
static void test_origin(void **state)
{
	struct pgws_assembler *a = *state;
	feed(0, asm_stream_start(7, true));
	feed(100, asm_origin(0, "upstream"));
	feed(0, asm_relation(8, 1, "c"));
	feed(101, asm_insert(8, 1, "a"));
	feed(101, asm_start('E', 0));
	feed(0, asm_stream_abort(7, 8, false));
	feed(0, asm_stream_start(7, false));
	feed(0, asm_relation(7, 1, "c"));
	feed(102, asm_insert(7, 1, "b"));
	feed(102, asm_start('E', 0));
	feed(448, asm_stream_commit(7, 400));
	assert_string_equal(summary(), "B O R I:b C");
	expect_bytes(1, asm_origin(0, "upstream"));
	assert_int_equal(out.list[0].change.lsn, 0);
	assert_int_equal(out.list[1].change.lsn, 100);
}

/* Every message in every state: taken, or refused with a text, and then nothing but reset helps. */
static void test_states(void **state)
{
	struct pgws_assembler *a = *state;
	static const char types[] = "BCORYIUDTMSEcA";
	static const char *const allowed[] = {
		"BSMA",       /* outside; c needs a transaction */
		"CORYIUDTMA", /* ordinary */
		"ORYIUDTMEA", /* streamed */
	};
	for (size_t where = 0; where < 3; where++) {
		for (const char *type = types; *type != 0; type++) {
			uint32_t xid = where == 2 ? 7 : 0;
			pgws_assembler_reset(a);
			if (where == 1) {
				feed(0, asm_begin(5, 10));
				feed(0, asm_relation(0, 1, "c"));
			} else if (where == 2) {
				feed(0, asm_stream_start(7, true));
			}
			struct asm_msg m;
			switch (*type) {
			case 'B':
				m = asm_begin(9, 11);
				break;
			case 'C':
				m = asm_commit(11);
				break;
			case 'O':
				m = asm_origin(1, "o");
				break;
			case 'R':
				m = asm_relation(xid, 1, "c");
				break;
			case 'Y':
				m = asm_type(xid, 1);
				break;
			case 'T':
				m = asm_truncate(xid, 1, 0);
				break;
			case 'M':
				m = asm_message(xid, where != 0, "m");
				break;
			case 'S':
				m = asm_stream_start(9, true);
				break;
			case 'E':
				m = asm_start('E', 0);
				break;
			case 'c':
				m = asm_stream_commit(9, 11);
				break;
			case 'A':
				m = asm_stream_abort(9, 9, false);
				break;
			default:
				m = asm_insert(xid, 1, "x");
				if (*type == 'U' || *type == 'D')
					m.bytes[0] = (uint8_t)*type;
				if (*type == 'D')
					m.bytes[xid != 0 ? 9 : 5] = 'K';
			}
			bool ok = strchr(allowed[where], *type) != NULL;
			int err = asm_feed(a, &out, m, 1);
			if (err != (ok ? 0 : PGWS_EPROTO))
				fail_msg("'%c' in state %zu: %d %s", *type, where, err,
					pgws_assembler_error(a));
			assert_int_equal(pgws_assembler_error(a)[0] == 0, ok);
			if (!ok)
				feed_error(PGWS_EPROTO, 0, asm_begin(9, 11));
		}
	}
	pgws_assembler_reset(a);
	feed(0, asm_stream_start(7, true));
	feed(0, asm_start('E', 0));
	feed_error(PGWS_EPROTO, 0, asm_stream_start(7, true)); /* first twice */
	pgws_assembler_reset(a);
	feed_error(PGWS_EPROTO, 0, asm_stream_start(7, false)); /* not first, but nothing before */
	pgws_assembler_reset(a);
	feed(0, asm_stream_start(7, true));
	feed_error(PGWS_EPROTO, 0, asm_stream_abort(7, 8, false)); /* inside its own block */
	pgws_assembler_reset(a);
	feed_error(PGWS_EPROTO, 0, asm_start('?', 0));
	pgws_assembler_reset(a);
	assert_int_equal(asm_feed_bytes(a, &out, "", 0, 0), PGWS_EPROTO);
	pgws_assembler_reset(a);
	assert_int_equal(asm_feed_bytes(a, &out, "\xff", 1, 0), PGWS_EPROTO);
}

static void test_keepalive_is_nothing(void **state)
{
	struct pgws_assembler *a = *state;
	struct pgws_event ev = {.kind = PGWS_EVENT_KEEPALIVE};
	struct pgws_change c;
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	assert_int_equal(pgws_assembler_next(a, &c), PGWS_EAGAIN);
}

/* A new session in the middle of everything. */
static void test_reset(void **state)
{
	struct pgws_assembler *a = *state;
	feed(0, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(1, asm_insert(7, 1, "a"));
	pgws_assembler_reset(a);
	feed(0, asm_begin(8, 600));
	pgws_assembler_reset(a);
	assert_false(pgws_assembler_in_transaction(a));
	feed(0, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(1, asm_insert(7, 1, "b"));
	feed(1, asm_start('E', 0));
	struct asm_msg m = asm_stream_commit(7, 400);
	struct pgws_event ev = {.kind = PGWS_EVENT_DATA, .data = m.bytes, .len = m.len};
	struct pgws_change c;
	assert_int_equal(pgws_assembler_put(a, &ev), 0);
	assert_int_equal(pgws_assembler_next(a, &c), 0);
	assert_int_equal(pgws_assembler_next(a, &c), 0);
	pgws_assembler_reset(a);
	assert_false(pgws_assembler_in_transaction(a));
	assert_int_equal(pgws_assembler_next(a, &c), PGWS_EAGAIN);
	asm_out_clear(&out);
	feed(0, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(1, asm_insert(7, 1, "b"));
	feed(1, asm_start('E', 0));
	feed(1, asm_stream_commit(7, 400));
	assert_string_equal(summary(), "B R I:b C");
}

static void test_options(void **state)
{
	(void)state;
	struct pgws_assembler *a = NULL;
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	o.size = 0;
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EINVAL);
	o.size = sizeof(o) + 8;
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EINVAL);
	o.size = sizeof(o);
	o.memory_limit = 0;
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EINVAL);
	o.memory_limit = 1000;
	o.file_limit = 1000; /* without a folder */
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EINVAL);
	o.dir = "/nowhere/at/all";
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EIO);
	assert_non_null(strstr(pgws_assembler_error(NULL), "/nowhere/at/all"));
	o.file_limit = 0;
	o.keep_prepared = true;
	assert_int_equal(pgws_assembler_new(&o, &a), PGWS_EINVAL);
	assert_non_null(strstr(pgws_assembler_error(NULL), "keep_prepared"));
	assert_null(a);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(test_ordinary),
		test(test_in_place),
		test(test_streamed),
		test(test_giving_out_is_resumed),
		test(test_aborts),
		test(test_many_subs),
		test(test_interleaved),
		test(test_relations),
		test(test_later_relation_holds),
		test(test_unknown_in_ordinary),
		test(test_messages_outside),
		test(test_origin),
		test(test_states),
		test(test_keepalive_is_nothing),
		test(test_reset),
		cmocka_unit_test(test_options),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
