/* SPDX-License-Identifier: PostgreSQL */
/* pgresolve: what is looked up, what goes through untouched, how the lists stay paired. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <libpq-fe.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/pgresolve.h"

struct answer {
	bool done;
	int err;
	char *conninfo, *why;
	struct pgresolve *r;
};

static void on_answer(int err, const char *conninfo, const char *why, void *arg)
{
	struct answer *a = arg;

	assert_false(a->done);
	a->done = true;
	a->err = err;
	a->conninfo = conninfo != NULL ? xstrdup(conninfo) : NULL;
	a->why = why != NULL ? xstrdup(why) : NULL;
	pgresolve_free(&a->r);
	assert_null(a->r);
}

static void ask(const char *conninfo, const char *const *extra, struct answer *a)
{
	struct ev_loop *loop = ev_loop_new();

	memset(a, 0, sizeof *a);
	a->r = pgresolve_start(loop, conninfo, extra, on_answer, a);
	assert_false(a->done); /* never from inside */
	while (!a->done)
		ev_loop_once(loop, true);
	ev_loop_free(&loop);
}

static void forget(struct answer *a)
{
	free(a->conninfo);
	free(a->why);
}

/* The value of a keyword in what came back, as libpq reads it; "" if it is not there. */
static void assert_option(const struct answer *a, const char *keyword, const char *expected)
{
	PQconninfoOption *options = PQconninfoParse(a->conninfo, NULL);
	const char *value = "";

	assert_non_null(options);
	for (PQconninfoOption *o = options; o->keyword != NULL; o++)
		if (strcmp(o->keyword, keyword) == 0 && o->val != NULL)
			value = o->val;
	assert_string_equal(value, expected);
	PQconninfoFree(options);
}

static void test_untouched(void **state)
{
	static const struct {
		const char *conninfo, *host, *hostaddr, *port;
	} rows[] = {
		{"", "", "", ""},
		{"dbname=x", "", "", ""},
		{"host=/run/pg", "/run/pg", "", ""},
		{"host=@abstract port=1", "@abstract", "", "1"},
		{"host=127.0.0.1", "127.0.0.1", "", ""},
		{"host=::1 port=5", "::1", "", "5"},
		{"host=fe80::1%lo", "fe80::1%lo", "", ""},
		{"hostaddr=10.0.0.1,10.0.0.2", "", "10.0.0.1,10.0.0.2", ""},
		{"host=a.invalid hostaddr=10.0.0.1", "a.invalid", "10.0.0.1", ""},
		{"postgresql://u@127.0.0.1:7,127.0.0.2:8/d", "127.0.0.1,127.0.0.2", "", "7,8"},
		{"host=/a,127.0.0.1 port=1,2", "/a,127.0.0.1", "", "1,2"},
		{"service=nowhere", "", "", ""},
	};
	struct answer a;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		ask(rows[i].conninfo, NULL, &a);
		assert_int_equal(a.err, 0);
		assert_option(&a, "host", rows[i].host);
		assert_option(&a, "hostaddr", rows[i].hostaddr);
		assert_option(&a, "port", rows[i].port);
		forget(&a);
	}
}

/* localhost is in every hosts file: one or two addresses. */
static void test_names(void **state)
{
	struct answer a;
	PGconn *pg;

	(void)state;
	ask("host=localhost port=4", NULL, &a);
	assert_int_equal(a.err, 0);
	assert_non_null(strstr(a.conninfo, "127.0.0.1"));
	if (strstr(a.conninfo, "::1") != NULL) {
		assert_option(&a, "host", "localhost,localhost");
		assert_option(&a, "port", "4,4");
	} else {
		assert_option(&a, "host", "localhost");
		assert_option(&a, "hostaddr", "127.0.0.1");
	}
	forget(&a);

	/* Sockets, literals, names and empty ports in one list stay paired; libpq takes the result.
	 */
	ask("host=/nowhere,localhost,127.0.0.9 port=1,,3 connect_timeout=1", NULL, &a);
	assert_int_equal(a.err, 0);
	assert_non_null(strstr(a.conninfo, "host='/nowhere,localhost"));
	assert_non_null(strstr(a.conninfo, "port='1,,"));
	assert_non_null(strstr(a.conninfo, "hostaddr=',"));
	pg = PQconnectStart(a.conninfo);
	assert_null(strstr(PQerrorMessage(pg), "could not match"));
	PQfinish(pg);
	forget(&a);
}

static void test_unknown_names(void **state)
{
	struct answer a;

	(void)state;
	/* A label that is too long cannot be asked for: no name server is needed to know. */
	ask("host=127.0.0.1,"
	    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa."
	    "invalid "
	    "port=1,2",
		NULL, &a);
	assert_int_equal(a.err, 0);
	assert_option(&a, "host", "127.0.0.1");
	assert_option(&a, "port", "1");
	forget(&a);

	ask("host="
	    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa."
	    "invalid",
		NULL, &a);
	assert_int_equal(a.err, -EHOSTUNREACH);
	assert_null(a.conninfo);
	assert_non_null(strstr(a.why, "aaaa.invalid"));
	forget(&a);
}

static void test_extra(void **state)
{
	static const char *const extra[] = {
		"application_name", "it's a \\ test", "dbname", "other", NULL};
	struct answer a;

	(void)state;
	ask("host=/x dbname=d application_name=a user='o''b'", NULL, &a);
	assert_int_equal(a.err, -ERR_CONFIG); /* '' is no escape for libpq */
	forget(&a);
	ask("host=/x dbname=d application_name=a user='o\\'b'", extra, &a);
	assert_int_equal(a.err, 0);
	assert_option(&a, "application_name", "it's a \\ test");
	assert_option(&a, "dbname", "other");
	assert_option(&a, "user", "o'b");
	forget(&a);
}

static void test_refused(void **state)
{
	static const char *const rows[] = {
		"nonsense",
		"host=a,b hostaddr=10.0.0.1",
		"host=a,b port=1,2,3",
		"host=,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,",
		"postgresql://[",
	};
	struct answer a;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		ask(rows[i], NULL, &a);
		assert_int_equal(a.err, -ERR_CONFIG);
		assert_non_null(a.why);
		assert_null(strchr(a.why, '\n'));
		forget(&a);
	}
}

static void test_environment(void **state)
{
	struct answer a;

	(void)state;
	setenv("PGHOST", "localhost", 1);
	setenv("PGPORT", "77", 1);
	ask("dbname=x", NULL, &a);
	assert_int_equal(a.err, 0);
	assert_non_null(strstr(a.conninfo, "hostaddr='"));
	assert_non_null(strstr(a.conninfo, "port='77"));
	forget(&a);
	setenv("PGHOST", "/somewhere", 1);
	ask("dbname=x", NULL, &a);
	assert_option(&a, "host", "");
	forget(&a);
	unsetenv("PGHOST");
	unsetenv("PGPORT");
}

static void on_never(int err, const char *conninfo, const char *why, void *arg)
{
	(void)err, (void)conninfo, (void)why, (void)arg;
	fail_msg("called back after it was freed");
}

static void test_cancel(void **state)
{
	struct ev_loop *loop = ev_loop_new();
	struct pgresolve *r = pgresolve_start(loop, "host=localhost", NULL, on_never, NULL);

	(void)state;
	pgresolve_free(&r);
	assert_null(r);
	pgresolve_free(&r);
	/* A name that has to be asked for: the lookup is under way when it is given up. */
	r = pgresolve_start(loop, "host=no-such-host.invalid", NULL, on_never, NULL);
	pgresolve_free(&r);
	for (int i = 0; i < 5; i++)
		ev_loop_once(loop, false);
	ev_loop_free(&loop);
}

static void print_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_error("%lld of %s left\n", (long long)count, name);
}

static int count_leaks(void **state)
{
	(void)state;
	return mem_report(print_leak, NULL) == 0 ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_untouched, count_leaks),
		cmocka_unit_test_teardown(test_names, count_leaks),
		cmocka_unit_test_teardown(test_unknown_names, count_leaks),
		cmocka_unit_test_teardown(test_extra, count_leaks),
		cmocka_unit_test_teardown(test_refused, count_leaks),
		cmocka_unit_test_teardown(test_environment, count_leaks),
		cmocka_unit_test_teardown(test_cancel, count_leaks),
	};

	unsetenv("PGHOST");
	unsetenv("PGPORT");
	unsetenv("PGHOSTADDR");
	unsetenv("PGSERVICE");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
