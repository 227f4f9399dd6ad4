/* SPDX-License-Identifier: PostgreSQL */
/* Configuration: values of every type, every class of finding with its line, suggestions, units. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/conf.h"
#include "common/base/conf_text.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "tests/unit/helper_assert.h"

static const char *must_be_lower(const char *text)
{
	return text[strspn(text, "abcdefghijklmnopqrstuvwxyz")] == '\0' ? NULL
									: "only a to z is taken";
}

static const struct conf_row peer_rows[] = {
	{.path = "name", .type = CONF_STRING, .min = 1, .max = 8},
	{.path = NULL},
};

static const struct conf_row listener_rows[] = {
	{.path = "url", .type = CONF_STRING, .min = 1, .max = 64, .help = "Where to listen"},
	{.path = "backlog", .type = CONF_INT, .min = 1, .max = 4096, .def = "128"},
	{.path = "tls.cert", .type = CONF_STRING, .def = ""},
	{.path = "peers", .type = CONF_GROUPS, .def = "", .child = peer_rows, .max = 2},
	{.path = NULL},
};

static const struct conf_row top_rows[] = {
	{.path = "node",
		.type = CONF_STRING,
		.min = 1,
		.max = 8,
		.def = "",
		.validate = must_be_lower,
		.reload = CONF_RESTART},
	{.path = "log_level",
		.type = CONF_ENUM,
		.choices = "error|warning|info|debug",
		.def = "info"},
	{.path = NULL},
};

static const struct conf_row broker_rows[] = {
	{.path = "brokerd.enabled", .type = CONF_BOOL, .def = "true"},
	{.path = "brokerd.max_packet",
		.type = CONF_SIZE,
		.min = 1024,
		.max = 256 << 20,
		.def = "1MB"},
	{.path = "brokerd.ack_timeout",
		.type = CONF_DURATION,
		.min = 1000,
		.max = 3600000,
		.def = "30s",
		.reload = CONF_LIVE,
		.help = "How long to wait"},
	{.path = "brokerd.receive_maximum",
		.type = CONF_INT,
		.min = 1,
		.max = 65535,
		.def = "1000",
		.reload = CONF_WORKER},
	{.path = "brokerd.offset", .type = CONF_INT, .def = "-5"},
	{.path = "brokerd.password", .type = CONF_STRING, .max = 10, .def = "", .secret = true},
	{.path = "brokerd.listeners",
		.type = CONF_GROUPS,
		.min = 1,
		.max = 3,
		.def = "( { url = \"mqtt://127.0.0.1:1883\"; } )",
		.child = listener_rows},
	{.path = NULL},
};

static const struct conf_row *const schemas[] = {top_rows, broker_rows, NULL};
static const char *const foreign[] = {"watchd", "state_dir", "tund", NULL};

static struct conf *parse_ok(const char *text)
{
	struct conf *conf = NULL;
	struct buf errors;
	buf_init(&errors, 0);
	int rc = conf_parse(text, "f", schemas, foreign, &conf, &errors);
	if (rc != 0)
		print_error("%s", buf_cstr(&errors));
	assert_int_equal(rc, 0);
	assert_int_equal(errors.len_bytes, 0);
	buf_free(&errors);
	return conf;
}

/* The findings of text are exactly want. */
static void check_findings(const char *text, const char *want)
{
	struct conf *conf = NULL;
	struct buf errors;
	buf_init(&errors, 0);
	assert_int_equal(conf_parse(text, "f", schemas, foreign, &conf, &errors), -ERR_CONFIG);
	assert_null(conf);
	assert_string_equal(buf_cstr(&errors), want);
	buf_free(&errors);
	assert_int_equal(conf_parse(text, "f", schemas, foreign, &conf, NULL), -ERR_CONFIG);
}

static void test_defaults(void **state)
{
	(void)state;
	struct conf *conf = parse_ok("");
	assert_string_equal(conf_str(conf, "node"), "");
	assert_string_equal(conf_str(conf, "log_level"), "info");
	assert_true(conf_bool(conf, "brokerd.enabled"));
	assert_int_equal(conf_int(conf, "brokerd.max_packet"), 1 << 20);
	assert_int_equal(conf_int(conf, "brokerd.ack_timeout"), 30000);
	assert_int_equal(conf_int(conf, "brokerd.receive_maximum"), 1000);
	assert_int_equal(conf_int(conf, "brokerd.offset"), -5);
	assert_int_equal(conf_count(conf, "brokerd.listeners"), 1);
	assert_string_equal(conf_str(conf, "brokerd.listeners.[0].url"), "mqtt://127.0.0.1:1883");
	assert_int_equal(conf_int(conf, "brokerd.listeners.[0].backlog"), 128);
	assert_int_equal(conf_count(conf, "brokerd.listeners.[0].peers"), 0);
	conf_free(&conf);
	assert_null(conf);
	conf_free(&conf);
}

static const char full_text[] =
	"# comment with @include \"x\" and 99999999999\n"
	"node = \"beta\";  // another 99999999999\n"
	"log_level = \"debug\";\n"
	"/* watchd = @include 1 */\n"
	"brokerd = {\n"
	"  enabled = false; max_packet = \"256 MB\"; ack_timeout = \"1h\";\n"
	"  receive_maximum = 65535; offset = 8589934592L;\n"
	"  password = \"s\" \"ecret\";\n"
	"  listeners = ( { url = \"a@include\"; tls = { cert = \"c\\\"99999999999\"; }; },\n"
	"    { url = \"b\"; backlog = 0x10; peers = ( { name = \"x\"; } ); } );\n"
	"};\n"
	"watchd = { anything = ( 1, [ 2 ], { x = 1.5; } ); };\n"
	"state_dir = 5;\n";

static void test_all_types(void **state)
{
	(void)state;
	struct conf *conf = parse_ok(full_text);
	assert_string_equal(conf_str(conf, "node"), "beta");
	assert_string_equal(conf_str(conf, "log_level"), "debug");
	assert_false(conf_bool(conf, "brokerd.enabled"));
	assert_int_equal(conf_int(conf, "brokerd.max_packet"), 256 << 20);
	assert_int_equal(conf_int(conf, "brokerd.ack_timeout"), 3600000);
	assert_int_equal(conf_int(conf, "brokerd.receive_maximum"), 65535);
	assert_true(conf_int(conf, "brokerd.offset") == INT64_C(8589934592));
	assert_string_equal(conf_str(conf, "brokerd.password"), "secret");
	assert_int_equal(conf_count(conf, "brokerd.listeners"), 2);
	assert_string_equal(conf_str(conf, "brokerd.listeners.[0].tls.cert"), "c\"99999999999");
	assert_string_equal(conf_str(conf, "brokerd.listeners.[1].url"), "b");
	assert_int_equal(conf_int(conf, "brokerd.listeners.[1].backlog"), 16);
	assert_int_equal(conf_count(conf, "brokerd.listeners.[1].peers"), 1);
	assert_string_equal(conf_str(conf, "brokerd.listeners.[1].peers.[0].name"), "x");
	conf_free(&conf);
}

static void on_each(const char *path, const char *value, const char *def, int line,
	enum conf_reload reload, const char *help, void *arg)
{
	buf_printf(arg, "%s|%s|%s|%d|%d|%s\n", path, value, def, line, (int)reload, help);
}

static void test_each(void **state)
{
	(void)state;
	struct conf *conf = parse_ok("brokerd = {\n password = \"hush\";\n ack_timeout=\"5s\";\n"
				     " listeners = (\n { url = \"u\"; } );\n};\n");
	struct buf out;
	buf_init(&out, 0);
	conf_each(conf, on_each, &out);
	assert_string_equal(buf_cstr(&out),
		"node|||0|2|\n"
		"log_level|info|info|0|0|\n"
		"brokerd.enabled|true|true|0|0|\n"
		"brokerd.max_packet|1MB|1MB|0|0|\n"
		"brokerd.ack_timeout|5s|30s|3|0|How long to wait\n"
		"brokerd.receive_maximum|1000|1000|0|1|\n"
		"brokerd.offset|-5|-5|0|0|\n"
		"brokerd.password|***||2|0|\n"
		"brokerd.listeners|1|( { url = \"mqtt://127.0.0.1:1883\"; } )|4|0|\n"
		"brokerd.listeners.[0].url|u||5|0|Where to listen\n"
		"brokerd.listeners.[0].backlog|128|128|0|0|\n"
		"brokerd.listeners.[0].tls.cert|||0|0|\n"
		"brokerd.listeners.[0].peers|0||0|0|\n");
	buf_free(&out);
	conf_free(&conf);
	/* Below a default nothing has a line. */
	conf = parse_ok("");
	buf_init(&out, 0);
	conf_each(conf, on_each, &out);
	assert_non_null(strstr(buf_cstr(&out), "[0].url|mqtt://127.0.0.1:1883||0|0|"));
	buf_free(&out);
	conf_free(&conf);
}

static void test_types(void **state)
{
	(void)state;
	check_findings("node = 5;\nlog_level = true;\nbrokerd = {\n enabled = \"yes\";\n"
		       " max_packet = 8589934592;\n ack_timeout = 30;\n receive_maximum = \"7\";\n"
		       " offset = 1.5;\n listeners = { };\n};\n",
		"f:1: node: this is a number; write it in quotes\n"
		"f:2: log_level: this is true or false; write one of error|warning|info|debug, in "
		"quotes\n"
		"f:4: brokerd.enabled: this is a string; write true or false, without quotes\n"
		"f:5: brokerd.max_packet: this is a number without a unit; write a size with its "
		"unit in "
		"quotes, such as \"1MB\" (B kB MB GB TB)\n"
		"f:6: brokerd.ack_timeout: this is a number without a unit; write a duration with "
		"its unit "
		"in quotes, such as \"30s\" (ms s min h d)\n"
		"f:7: brokerd.receive_maximum: this is a string; write a number from 1 to 65535, "
		"without "
		"quotes\n"
		"f:8: brokerd.offset: this is a number with a fraction; write a number, without "
		"quotes\n"
		"f:9: brokerd.listeners: this is a group { … }; write a list of groups: ( { … }, { "
		"… } )\n");
	check_findings("brokerd = 5;", "f:1: brokerd: this is a number; write a group { … }\n");
	check_findings("brokerd = { listeners = (\n1,\n\"x\"); };",
		"f:2: brokerd.listeners.[0]: this is a number; write a group { … }\n"
		"f:3: brokerd.listeners.[1]: this is a string; write a group { … }\n");
}

static void test_ranges(void **state)
{
	(void)state;
	check_findings("node = \"ninebytes\";\nbrokerd = {\n max_packet = \"1B\";\n"
		       " ack_timeout = \"61min\";\n receive_maximum = 65536;\n"
		       " password = \"much too long\";\n listeners = ();\n};",
		"f:1: node: \"ninebytes\" is out of range; 1 to 8 bytes are right\n"
		"f:3: brokerd.max_packet: \"1B\" is out of range; 1kB to 256MB is right\n"
		"f:4: brokerd.ack_timeout: \"61min\" is out of range; 1s to 1h is right\n"
		"f:5: brokerd.receive_maximum: 65536 is out of range; 1 to 65535 is right\n"
		"f:6: brokerd.password: the value is out of range; 0 to 10 bytes are right\n"
		"f:7: brokerd.listeners: 0 is out of range; 1 to 3 groups are right\n");
	/* The empty string is right as a default only where it is the default. */
	check_findings("node = \"\";", "f:1: node: \"\" is out of range; 1 to 8 bytes are right\n");
	check_findings("node = \"Beta\";", "f:1: node: \"Beta\": only a to z is taken\n");
}

/* libconfig 1.5 cuts them to 32 bits without a word. */
static void test_wide_numbers(void **state)
{
	(void)state;
	check_findings("brokerd = {\n offset = 8589934592;\n};",
		"f:2: brokerd.offset: the number is too large; write a number, without quotes\n");
	check_findings("brokerd = {\n receive_maximum = 4294967297;\n offset = 0xffffffff;\n};",
		"f:2: brokerd.receive_maximum: the number is too large; write a number from 1 to "
		"65535, "
		"without quotes\n"
		"f:3: brokerd.offset: the number is too large; write a number, without quotes\n");
	check_findings("brokerd = { offset = 99999999999999999999L; };",
		"f:1: brokerd.offset: the number is too large; write a number, without quotes\n");
	conf_free(&(struct conf *){parse_ok("brokerd = { offset = 2147483647; };")});
}

static void test_units_in_text(void **state)
{
	(void)state;
	check_findings(
		"brokerd = {\n max_packet = \"1mb\";\n ack_timeout = \"9999999999999999999d\";\n};",
		"f:2: brokerd.max_packet: \"1mb\" is not a size; write a size with its unit in "
		"quotes, such "
		"as \"1MB\" (B kB MB GB TB)\n"
		"f:3: brokerd.ack_timeout: \"9999999999999999999d\" is too large; write a duration "
		"with its "
		"unit in quotes, such as \"30s\" (ms s min h d)\n");
}

static void test_unknown_keys(void **state)
{
	(void)state;
	check_findings(
		"nod = \"a\";\nloglevel = \"info\";\nreceive_maximum = 1;\nzzz = 1;\n"
		"brokerd = {\n enabeld = true;\n zzz = { a = 1; };\n node = \"x\";\n"
		" listeners = ( { url = \"u\";\n ulr = 1;\n tls = {\n cret = 1; }; } );\n};\n",
		"f:1: nod: unknown key; did you mean \"node\"?\n"
		"f:2: loglevel: unknown key; did you mean \"log_level\"?\n"
		"f:3: receive_maximum: unknown key; did you mean \"brokerd.receive_maximum\"?\n"
		"f:4: zzz: unknown key; remove it or see howdah.conf(5)\n"
		"f:6: brokerd.enabeld: unknown key; did you mean \"brokerd.enabled\"?\n"
		"f:7: brokerd.zzz: unknown key; remove it or see howdah.conf(5)\n"
		"f:8: brokerd.node: unknown key; did you mean \"node\"?\n"
		"f:10: brokerd.listeners.[0].ulr: unknown key; did you mean "
		"\"brokerd.listeners.[0].url\"?\n"
		"f:12: brokerd.listeners.[0].tls.cret: unknown key; did you mean "
		"\"brokerd.listeners.[0].tls.cert\"?\n");
}

static void test_required_and_enum(void **state)
{
	(void)state;
	check_findings(
		"log_level = \"inof\";\nbrokerd = { listeners = (\n { }, { url = \"a\"; peers = (\n"
		"{ } ); } ); };",
		"f:1: log_level: \"inof\" is not known here; write one of error|warning|info|debug "
		"(did you "
		"mean \"info\"?)\n"
		"f:3: brokerd.listeners.[0].url: must be set; write it in quotes\n"
		"f:4: brokerd.listeners.[1].peers.[0].name: must be set; write it in quotes\n");
	check_findings("log_level = \"\";", "f:1: log_level: \"\" is not known here; write one of "
					    "error|warning|info|debug\n");
}

static void test_syntax(void **state)
{
	(void)state;
	check_findings("node = \"a\";\nbrokerd = {\n enabled = ;\n};",
		"f:3: syntax error; look for a quote, a brace or a \";\" missing here or just "
		"before\n");
	check_findings("node = \"a\";\n@include \"/etc/passwd\"\n",
		"f:2: \"@include\" is not taken; put all settings into this one file\n");
	check_findings(
		"node = \"a\\x00b\";", "f:1: a string holds a zero byte; remove the \"\\x00\"\n");
	check_findings("node = \"a\\nb\";",
		"f:1: node: holds control characters or is not UTF-8; write plain text\n");
	check_findings("node = \"\xff\";",
		"f:1: node: holds control characters or is not UTF-8; write plain text\n");
}

static void test_secret_stays(void **state)
{
	(void)state;
	struct conf *conf = NULL;
	struct buf errors;
	buf_init(&errors, 0);
	assert_int_equal(conf_parse("brokerd = { password = \"topsecret-topsecret\"; };", "f",
				 schemas, foreign, &conf, &errors),
		-ERR_CONFIG);
	assert_null(strstr(buf_cstr(&errors), "topsecret"));
	buf_free(&errors);
}

static void test_many_findings(void **state)
{
	(void)state;
	struct buf text, errors;
	buf_init(&text, 0);
	buf_init(&errors, 0);
	for (int i = 0; i < 150; i++)
		buf_printf(&text, "zz%d = 1;\n", i);
	struct conf *conf = NULL;
	assert_int_equal(
		conf_parse(buf_cstr(&text), "f", schemas, foreign, &conf, &errors), -ERR_CONFIG);
	assert_non_null(strstr(buf_cstr(&errors), "f:100: zz99: "));
	assert_null(strstr(buf_cstr(&errors), "f:101: "));
	assert_non_null(strstr(buf_cstr(&errors), "f: 50 more findings; mend the first ones\n"));
	buf_free(&errors);
	buf_reset(&text);
	memset(buf_reserve(&text, 1024 * 1024 + 1), ' ', 1024 * 1024 + 1);
	buf_commit(&text, 1024 * 1024 + 1);
	check_findings(buf_cstr(&text), "f: the file is larger than 1 MB; make it smaller\n");
	buf_free(&text);
}

static void test_fd(void **state)
{
	(void)state;
	int fd = -1, fds[2];
	struct conf *conf = NULL;
	struct buf errors;
	buf_init(&errors, 0);
	assert_int_equal(proc_memfd_sealed("c", full_text, strlen(full_text), &fd), 0);
	assert_int_equal(lseek(fd, 5, SEEK_SET), 5); /* read from its start all the same */
	assert_int_equal(conf_parse_fd(fd, "f", schemas, foreign, &conf, &errors), 0);
	assert_string_equal(conf_str(conf, "node"), "beta");
	conf_free(&conf);
	close(fd);
	assert_int_equal(proc_memfd_sealed("c", "node\0 = 1", 9, &fd), 0);
	assert_int_equal(conf_parse_fd(fd, "f", schemas, foreign, &conf, &errors), -ERR_CONFIG);
	assert_string_equal(
		buf_cstr(&errors), "f: the file holds a zero byte; it must be plain text\n");
	close(fd);
	buf_reset(&errors);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(conf_parse_fd(fds[0], "f", schemas, foreign, &conf, &errors), -ERR_CONFIG);
	assert_non_null(strstr(buf_cstr(&errors), "f: cannot read it: "));
	close(fds[0]);
	close(fds[1]);
	buf_free(&errors);
}

static void get_unknown(void *arg)
{
	(void)conf_str(arg, "brokerd.nothing");
}

static void get_wrong_type(void *arg)
{
	(void)conf_int(arg, "node");
}

static void get_beyond(void *arg)
{
	(void)conf_str(arg, "brokerd.listeners.[1].url");
}

static void bad_default(void *arg)
{
	(void)arg;
	static const struct conf_row rows[] = {
		{.path = "x", .type = CONF_INT, .min = 1, .max = 2, .def = "3"}, {.path = NULL}};
	const struct conf_row *const bad[] = {rows, NULL};
	struct conf *conf;
	(void)!conf_parse("", "f", bad, NULL, &conf, NULL);
}

static void test_bugs_abort(void **state)
{
	(void)state;
	struct conf *conf = parse_ok("");
	assert_aborts(get_unknown, conf, "found != NULL");
	assert_aborts(get_wrong_type, conf, "row->type == CONF_INT");
	assert_aborts(get_beyond, conf, "found != NULL");
	assert_aborts(bad_default, NULL, "default_fits_its_row");
	conf_free(&conf);
}

static void test_size_duration(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int rc;
		int64_t size;
	} sizes[] = {{"0", 0, 0}, {"1B", 0, 1}, {"64kB", 0, 65536}, {"64 MB", 0, 64 << 20},
		{"4GB", 0, INT64_C(4) << 30}, {"8388607TB", 0, INT64_C(8388607) << 40},
		{"8388608TB", -ERANGE, 0}, {"9223372036854775807B", 0, INT64_MAX},
		{"9223372036854775808B", -ERANGE, 0}, {"", -EINVAL, 0}, {"MB", -EINVAL, 0},
		{"5", -EINVAL, 0}, {"5 ", -EINVAL, 0}, {"-5MB", -EINVAL, 0}, {"5mb", -EINVAL, 0},
		{"5MB ", -EINVAL, 0}, {"1.5MB", -EINVAL, 0}, {" 5MB", -EINVAL, 0},
		{"5s", -EINVAL, 0}};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		int64_t n = -1;
		assert_int_equal(conf_parse_size(sizes[i].text, &n), sizes[i].rc);
		assert_true(n == (sizes[i].rc == 0 ? sizes[i].size : -1));
	}
	int64_t ms = 0;
	assert_int_equal(conf_parse_duration("250ms", &ms), 0);
	assert_int_equal(ms, 250);
	assert_int_equal(conf_parse_duration("3min", &ms), 0);
	assert_int_equal(ms, 180000);
	assert_int_equal(conf_parse_duration("7d", &ms), 0);
	assert_int_equal(ms, 7 * 86400000);
	assert_int_equal(conf_parse_duration("5m", &ms), -EINVAL);
	assert_int_equal(conf_parse_duration("5", &ms), -EINVAL);
}

static void test_distance(void **state)
{
	(void)state;
	assert_int_equal(conf_distance("node", "node", 2), 0);
	assert_int_equal(conf_distance("node", "ndoe", 2), 1); /* a swap is one edit */
	assert_int_equal(conf_distance("node", "nodes", 2), 1);
	assert_int_equal(conf_distance("node", "nde", 2), 1);
	assert_int_equal(conf_distance("node", "mode", 2), 1);
	assert_int_equal(conf_distance("node", "zzzz", 2), 3);
	assert_int_equal(conf_distance("", "ab", 2), 2);
	assert_int_equal(conf_distance("a", "abcd", 2), 3);
}

static void add_path(const char *path, enum conf_reload reload, void *arg)
{
	buf_printf(arg, "%s/%d ", path, (int)reload);
}

static void check_changes(const char *old_text, const char *next_text, const char *expected)
{
	struct conf *old = NULL, *next = NULL;
	struct buf got;
	buf_init(&got, 0);
	assert_int_equal(conf_parse(old_text, "old", schemas, foreign, &old, NULL), 0);
	assert_int_equal(conf_parse(next_text, "next", schemas, foreign, &next, NULL), 0);
	conf_changes(old, next, add_path, &got);
	assert_string_equal(buf_cstr(&got), expected);
	buf_free(&got);
	conf_free(&old);
	conf_free(&next);
}

static void test_changes(void **state)
{
	(void)state;
	check_changes("", "brokerd = { max_packet = \"1MB\"; };", "");
	check_changes("brokerd = { password = \"a\"; };", "brokerd = { password = \"b\"; };",
		"brokerd.password/0 ");
	check_changes("node = \"a\"; brokerd = { receive_maximum = 5; };", "node = \"b\";",
		"node/2 brokerd.receive_maximum/1 ");
	/* A list is told once, whatever differs in it: a value, two, the number of elements. */
	check_changes("", "brokerd = { listeners = ( { url = \"x\"; backlog = 3; } ); };",
		"brokerd.listeners/0 ");
	check_changes("",
		"brokerd = { listeners = ( { url = \"mqtt://127.0.0.1:1883\"; }, "
		"{ url = \"x\"; peers = ( { name = \"p\"; } ); } ); };",
		"brokerd.listeners/0 ");
	check_changes("brokerd = { listeners = ( { url = \"mqtt://127.0.0.1:1883\"; }, { url = "
		      "\"x\"; } ); };",
		"", "brokerd.listeners/0 ");
	check_changes(
		"brokerd = { listeners = ( { url = \"x\"; peers = ( { name = \"p\"; } ); } ); };",
		"brokerd = { listeners = ( { url = \"x\"; peers = ( { name = \"q\"; } ); } ); };",
		"brokerd.listeners/0 ");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_all_types),
		cmocka_unit_test(test_each),
		cmocka_unit_test(test_types),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_wide_numbers),
		cmocka_unit_test(test_units_in_text),
		cmocka_unit_test(test_unknown_keys),
		cmocka_unit_test(test_required_and_enum),
		cmocka_unit_test(test_syntax),
		cmocka_unit_test(test_secret_stays),
		cmocka_unit_test(test_many_findings),
		cmocka_unit_test(test_fd),
		cmocka_unit_test(test_bugs_abort),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_size_duration),
		cmocka_unit_test(test_distance),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
