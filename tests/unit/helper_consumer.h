/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the tests of the consumer share. Include after cmocka.h and pgwalstream.h.
 */
#ifndef TESTS_UNIT_HELPER_CONSUMER_H
#define TESTS_UNIT_HELPER_CONSUMER_H

#include <time.h>

#define TEST_PATIENCE_MS 30000

static inline int64_t test_now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static inline struct pgws_consumer_options consumer_options(void)
{
	struct pgws_consumer_options o = PGWS_CONSUMER_OPTIONS_INIT;
	o.stream.conninfo = "";
	o.stream.slot = "c_slot";
	o.stream.publications = "p";
	o.retry_base_ms = 20;
	o.retry_cap_ms = 1000;
	return o;
}

static inline struct pgws_consumer *consumer_with(const struct pgws_consumer_options *o)
{
	struct pgws_consumer *c = NULL;
	assert_int_equal(pgws_consumer_new(o, &c), 0);
	assert_non_null(c);
	return c;
}

static inline struct pgws_consumer *consumer(void)
{
	struct pgws_consumer_options o = consumer_options();
	return consumer_with(&o);
}

/* The next change of this type; those between are passed over. */
static inline void expect_change(
	struct pgws_consumer *c, enum pgws_type type, struct pgws_change *ret_change)
{
	int64_t end = test_now_ms() + TEST_PATIENCE_MS;
	while (test_now_ms() < end) {
		int rc = pgws_consumer_next(c, 1000, ret_change);
		if (rc == 0 && ret_change->msg.type == type)
			return;
		if (rc != 0 && rc != PGWS_EAGAIN)
			fail_msg("no %c: %d: %s", type, rc, pgws_consumer_error(c));
	}
	fail_msg("no %c in time", type);
}

/* Nothing is expected: time passes. */
static inline void expect_nothing(struct pgws_consumer *c, int timeout_ms)
{
	struct pgws_change ch;
	int rc = pgws_consumer_next(c, timeout_ms, &ch);
	if (rc != PGWS_EAGAIN)
		fail_msg("%d: %s", rc, pgws_consumer_error(c));
}

/* Of an Insert's new row; not terminated. */
static inline const char *first_column(const struct pgws_change *ch)
{
	struct pgws_column col;
	size_t at = 0;
	if (!pgws_tuple_next(&ch->msg.u.change.new_row, &at, &col))
		fail_msg("a row without columns");
	return col.data;
}

#endif
