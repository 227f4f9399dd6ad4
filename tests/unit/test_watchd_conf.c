/* SPDX-License-Identifier: PostgreSQL */
/* The section watchd: defaults, what is refused, what follows from it. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/watchd_conf.h"

static const char *const foreign[] = {"brokerd", NULL};

static void expect(const char *text, const char *error)
{
	struct conf *conf = NULL;
	struct buf errors;

	buf_init(&errors, 0);
	int err = conf_parse(text, "t.conf", watchd_conf_schemas, foreign, &conf, &errors);
	if (err == 0) {
		err = watchd_conf_check(conf, &errors);
		conf_free(&conf);
	}
	if (error == NULL && err != 0)
		fail_msg("%s: %s", text, buf_cstr(&errors));
	if (error != NULL && (err != -ERR_CONFIG || strstr(buf_cstr(&errors), error) == NULL))
		fail_msg("%s: %d %s", text, err, buf_cstr(&errors));
	buf_free(&errors);
}

static struct watchd_conf get(const char *text)
{
	struct conf *conf = NULL;
	struct watchd_conf wc;

	assert_int_equal(conf_parse(text, "t", watchd_conf_schemas, foreign, &conf, NULL), 0);
	watchd_conf_get(conf, &wc);
	conf_free(&conf);
	return wc;
}

static void test_defaults(void **state)
{
	(void)state;
	struct watchd_conf wc = get("");
	assert_string_equal(wc.advertise_url, "http://127.0.0.1:2379");
	assert_int_equal(wc.quota_bytes, INT64_C(2) << 30);
	assert_int_equal(wc.compaction, COMPACTION_OFF);
	assert_int_equal(wc.max_request_bytes, 1536 * 1024);
	assert_int_equal(wc.max_txn_ops, 128);
	assert_int_equal(wc.request_timeout_ms, 7000);
	assert_int_equal(wc.progress_interval_ms, 600000);
	assert_int_equal(wc.busy_poll_us, 500);
	watchd_conf_free(&wc);
}

static void test_values(void **state)
{
	(void)state;
	struct watchd_conf wc =
		get("watchd = { listeners = ( { url = \"http://[::1]:7\"; } );"
		    " auto_compaction = { mode = \"periodic\"; retention = \"2h\"; }; };");
	assert_string_equal(wc.advertise_url, "http://[::1]:7");
	assert_int_equal(wc.compaction, COMPACTION_PERIODIC);
	assert_int_equal(wc.retention, 7200000);
	watchd_conf_free(&wc);
	wc = get("watchd = { listeners = (); advertise_url = \"https://a:1\";"
		 " auto_compaction = { mode = \"revision\"; retention = \"1000\"; }; };");
	assert_string_equal(wc.advertise_url, "https://a:1");
	assert_int_equal(wc.compaction, COMPACTION_REVISION);
	assert_int_equal(wc.retention, 1000);
	watchd_conf_free(&wc);
	wc = get("watchd = { listeners = (); };");
	assert_string_equal(wc.advertise_url, "");
	watchd_conf_free(&wc);
}

static void test_refused(void **state)
{
	(void)state;
	expect("watchd = { listeners = ( { url = \"http://0.0.0.0:2379\"; } ); };", NULL);
	expect("watchd = { listeners = ( { url = \"https://a:1\"; } ); };", "not for TLS");
	expect("watchd = { listeners = ( { url = \"mqtt://a:1\"; } ); };", "must look like");
	expect("watchd = { advertise_url = \"a:1\"; };", "must look like");
	expect("watchd = { advertise_url = \"\"; };", NULL);
	expect("watchd = { quota = \"1kB\"; };", "watchd.quota");
	expect("watchd = { quoat = \"1GB\"; };", "quoat");
	expect("watchd = { auto_compaction = { mode = \"often\"; }; };", "mode");
	expect("watchd = { auto_compaction = { retention = \"soon\"; }; };", "duration");
	expect("watchd = { auto_compaction = { retention = \"0s\"; }; };", "duration");
	expect("watchd = { auto_compaction = { mode = \"revision\"; }; };", "number of revisions");
	expect("watchd = { auto_compaction = { mode = \"periodic\"; retention = \"1000\"; }; };",
		"needs a duration");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
