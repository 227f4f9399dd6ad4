/* SPDX-License-Identifier: PostgreSQL */
/* The ladder of positions: always monotone, and how long ago the server was where we are. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "walstreamd/lag.h"

static void assert_ladder(const struct lag_positions *p)
{
	assert_true(p->server == 0 || p->server >= p->sent);
	assert_true(p->sent >= p->received && p->received >= p->published);
	for (size_t i = 0; i < p->n_consumers; i++) {
		assert_true(p->published >= p->consumers[i].acked);
		assert_true(p->consumers[i].acked >= p->acknowledged);
	}
	assert_true(p->published >= p->acknowledged);
	assert_true(p->acknowledged >= p->slot && p->slot >= p->retained);
}

static void test_settle(void **state)
{
	(void)state;
	static const struct {
		struct lag_positions in;
		uint64_t server, published, consumer, acknowledged;
	} rows[] = {
		/* as it is */
		{{.server = 90,
			 .sent = 80,
			 .received = 70,
			 .published = 60,
			 .acknowledged = 40,
			 .slot = 30,
			 .retained = 20,
			 .n_consumers = 1,
			 .consumers = {{"b", true, 50}}},
			90, 60, 50, 40},
		/* the stream went on while the server was asked */
		{{.server = 50,
			 .sent = 80,
			 .received = 70,
			 .published = 60,
			 .acknowledged = 60,
			 .slot = 45,
			 .retained = 20,
			 .n_consumers = 1,
			 .consumers = {{"b", true, 60}}},
			80, 60, 60, 60},
		/* idle: a keepalive's position is acknowledged, nothing was published for long */
		{{.server = 90,
			 .sent = 90,
			 .received = 90,
			 .published = 10,
			 .acknowledged = 90,
			 .slot = 90,
			 .retained = 10,
			 .n_consumers = 1,
			 .consumers = {{"b", true, 10}}},
			90, 90, 90, 90},
		/* before the first stream */
		{{.server = 90,
			 .slot = 30,
			 .retained = 20,
			 .n_consumers = 1,
			 .consumers = {{"b", false, 0}}},
			90, 30, 30, 30},
		/* no answer from the server */
		{{.sent = 80, .received = 70, .published = 60, .acknowledged = 40}, 0, 60, 0, 40},
	};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct lag_positions p = rows[i].in;
		lag_settle(&p);
		assert_ladder(&p);
		assert_int_equal(p.server, rows[i].server);
		assert_int_equal(p.published, rows[i].published);
		assert_int_equal(p.consumers[0].acked, rows[i].consumer);
		assert_int_equal(p.acknowledged, rows[i].acknowledged);
	}
}

static void test_settle_any(void **state)
{
	(void)state;
	srand(7);
	for (int i = 0; i < 20000; i++) {
		struct lag_positions p = {.server = (uint64_t)(rand() % 9),
			.sent = (uint64_t)(rand() % 9),
			.received = (uint64_t)(rand() % 9),
			.published = (uint64_t)(rand() % 9),
			.acknowledged = (uint64_t)(rand() % 9),
			.slot = (uint64_t)(rand() % 9),
			.retained = (uint64_t)(rand() % 9),
			.n_consumers = (size_t)(rand() % 3)};
		for (size_t c = 0; c < p.n_consumers; c++)
			p.consumers[c].acked = (uint64_t)(rand() % 9);
		lag_settle(&p);
		assert_ladder(&p);
	}
}

static void test_history(void **state)
{
	(void)state;
	struct lag_history h = {.n = 0};
	assert_int_equal(lag_history_behind_ms(&h, 5, 1000), 0);
	for (uint64_t s = 1; s <= 100; s++)
		lag_history_note(&h, s * 10, 0, s * 1000);
	lag_history_note(&h, 1000, 0, 200000); /* the head stands still */
	assert_int_equal(lag_history_behind_ms(&h, 1000, 300000), 0);
	assert_int_equal(lag_history_behind_ms(&h, 999, 300000), 200000);
	assert_int_equal(lag_history_behind_ms(&h, 500, 300000), 249000);
	/* What is done is let go. */
	lag_history_note(&h, 1000, 990, 300000);
	assert_int_equal(h.n, 1);
	lag_history_note(&h, 1000, 1000, 300000);
	assert_int_equal(h.n, 0);
	/* A server that went back. */
	lag_history_note(&h, 2000, 0, 1000);
	lag_history_note(&h, 10, 0, 2000);
	assert_int_equal(h.n, 1);
	assert_int_equal(lag_history_behind_ms(&h, 5, 2500), 500);
}

/* Three days of lag: known to a fifth, whatever its age. */
static void test_history_long(void **state)
{
	(void)state;
	struct lag_history h = {.n = 0};
	const uint64_t n = 3 * 86400;
	for (uint64_t s = 1; s <= n; s++)
		lag_history_note(&h, s, 0, s * 1000);
	assert_true(h.n <= LAG_SAMPLES);
	for (uint64_t lsn = 0; lsn < n; lsn += 100) {
		uint64_t want = (n - (lsn + 1)) * 1000;
		uint64_t have = lag_history_behind_ms(&h, lsn, n * 1000);
		assert_true(have <= want && want - have <= want / 5 + 1000);
	}
}

static void keep(json_t *row, void *arg)
{
	json_array_append_new(arg, row);
}

static void test_rows(void **state)
{
	(void)state;
	struct lag_history h = {.n = 0};
	const struct lag_positions p = {.server = 90,
		.sent = 90,
		.received = 90,
		.published = 80,
		.acknowledged = 40,
		.slot = 40,
		.n_consumers = 1,
		.consumers = {{"b", false, 40}}};
	json_t *rows = json_array();
	lag_history_note(&h, 60, 0, 1000);
	lag_history_note(&h, 90, 0, 5000);
	lag_rows(&p, &h, 9000, keep, rows);
	char *text = json_dumps(rows, JSON_COMPACT);
	assert_string_equal(text,
		"[{\"point\":\"server\",\"lsn\":\"0/5A\",\"behind_bytes\":0,\"behind_s\":0},"
		"{\"point\":\"sent\",\"lsn\":\"0/5A\",\"behind_bytes\":0,\"behind_s\":0},"
		"{\"point\":\"received\",\"lsn\":\"0/5A\",\"behind_bytes\":0,\"behind_s\":0},"
		"{\"point\":\"published\",\"lsn\":\"0/50\",\"behind_bytes\":10,\"behind_s\":4},"
		"{\"point\":\"b\",\"lsn\":\"0/28\",\"behind_bytes\":50,\"behind_s\":8,"
		"\"attached\":false},"
		"{\"point\":\"acknowledged\",\"lsn\":\"0/28\",\"behind_bytes\":50,\"behind_s\":8},"
		"{\"point\":\"slot\",\"lsn\":\"0/28\",\"behind_bytes\":50,\"behind_s\":8}]");
	free(text);
	json_decref(rows);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_settle),
		cmocka_unit_test(test_settle_any),
		cmocka_unit_test(test_history),
		cmocka_unit_test(test_history_long),
		cmocka_unit_test(test_rows),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
