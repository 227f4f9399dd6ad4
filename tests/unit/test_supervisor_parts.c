/* SPDX-License-Identifier: PostgreSQL */
/* The supervisor's pure parts and its small files: urls, node names, cores, deaths, environment. */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/listen_url.h"
#include "common/base/mem.h"
#include "common/base/node_name.h"
#include "supervisor/deaths.h"
#include "supervisor/listeners.h"
#include "supervisor/place.h"
#include "supervisor/roles.h"
#include "supervisor/settings.h"
#include "supervisor/spawn.h"

static char *dir;

static int make_folder(void **state)
{
	char name[] = "/tmp/howdah-test.XXXXXX";

	(void)state;
	dir = xstrdup(mkdtemp(name));
	return 0;
}

static int remove_folder(void **state)
{
	char *command = xasprintf("rm -rf %s", dir);
	int status = system(command);

	(void)state;
	free(command);
	free(dir);
	return status;
}

static void touch(const char *name)
{
	assert_int_equal(place_write_file(dir, name, "x", 1, false), 0);
}

static void test_urls(void **state)
{
	static const struct {
		const char *url, *host, *port; /* host NULL: refused */
	} cases[] = {
		{"mqtt://127.0.0.1:1883", "127.0.0.1", "1883"},
		{"mqtt://localhost", "localhost", "1883"},
		{"mqtts://[::1]", "::1", "8883"},
		{"mqtt://[fe80::1]:65535", "fe80::1", "65535"},
		{"http://h:2379", "h", "2379"},
		{"http://h", "h", "2379"},
		{"ftp://h", NULL, NULL}, /* no port is known for it */
		{"mqtt://h:0", NULL, NULL},
		{"mqtt://h:65536", NULL, NULL},
		{"mqtt://h:123456", NULL, NULL},
		{"mqtt://h:18x", NULL, NULL},
		{"mqtt://h:", NULL, NULL},
		{"mqtt://h/path", NULL, NULL},
		{"mqtt://h:1883/path", NULL, NULL},
		{"mqtt://:1883", NULL, NULL},
		{"mqtt://[::1", NULL, NULL},
		{"mqtt://[::1]x", NULL, NULL},
		{"://h:1", NULL, NULL},
		{"127.0.0.1:1883", NULL, NULL},
		{"", NULL, NULL},
	};
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX], *longest;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		const char *why = listen_url_parse(cases[i].url, host, port);

		if ((why == NULL) != (cases[i].host != NULL))
			fail_msg("%s: %s", cases[i].url, why != NULL ? why : "was taken");
		if (why == NULL) {
			assert_string_equal(host, cases[i].host);
			assert_string_equal(port, cases[i].port);
		}
	}
	longest = xasprintf("mqtt://%0*d:1", LISTEN_URL_HOST_MAX, 0);
	assert_non_null(listen_url_parse(longest, host, port));
	free(longest);
}

static void test_node_names(void **state)
{
	char out[33];

	(void)state;
	node_name_fold("Alpha-1.example.org", out);
	assert_string_equal(out, "alpha_1");
	node_name_fold("", out);
	assert_string_equal(out, "node");
	node_name_fold(".x", out);
	assert_string_equal(out, "node");
	node_name_fold("\xc3\xa4lpha", out);
	assert_string_equal(out, "__lpha");
	node_name_fold("0123456789012345678901234567890123456789", out);
	assert_string_equal(out, "01234567890123456789012345678901");
}

static struct settings *parse(const char *text, const char *expected_error)
{
	struct settings *s = NULL;
	struct buf errors;
	int err;

	buf_init(&errors, 0);
	err = settings_parse(text, "t.conf", &s, &errors);
	if (expected_error == NULL && err != 0)
		fail_msg("%s", buf_cstr(&errors));
	if (expected_error != NULL) {
		assert_int_equal(err, -ERR_CONFIG);
		if (strstr(buf_cstr(&errors), expected_error) == NULL)
			fail_msg("%s", buf_cstr(&errors));
	}
	buf_free(&errors);
	return s;
}

static void test_settings(void **state)
{
	struct settings *a, *b;
	struct buf keys;

	(void)state;
	a = parse("", NULL);
	assert_int_equal(a->roles, 1U << ROLE_POSTGRES | 1U << ROLE_WALSTREAMD |
					   1U << ROLE_BROKERD | 1U << ROLE_WATCHD);
	assert_string_equal(
		conf_str(a->conf, "brokerd.listeners.[0].url"), "mqtt://127.0.0.1:1883");
	b = parse("node = \"b\"; postgres = { mode = \"external\"; conninfo = \"x\"; };\n"
		  "brokerd = { enabled = false; some_key = 3; tls = { deep = ( 1, 2 ); }; };\n"
		  "watchd = { enabled = false; quota = \"1GB\"; };\n"
		  "run_dir = \"/r\"; log_level = \"debug\";",
		NULL);
	assert_int_equal(b->roles, 1U << ROLE_WALSTREAMD);
	assert_string_equal(b->node, "b");
	assert_true(b->serial != a->serial);
	buf_init(&keys, 0);
	settings_restart_keys(a, b, &keys);
	assert_string_equal(buf_cstr(&keys), "node, run_dir, postgres.mode");
	buf_free(&keys);
	settings_free(&a);
	settings_free(&b);
	settings_free(&b);
	assert_null(parse("nodes = 1;", "nodes"));
	assert_null(parse("node = \"A\";", "a-z"));
	assert_null(parse("state_dir = \"rel\";", "absolute"));
	assert_null(parse("state_dir = \"/a/../b\";", "must be without"));
	assert_null(parse("run_dir = \"/a/.\";", "must be without"));
	assert_null(parse("brokerd = { listeners = ( { url = \"nonsense\"; } ); };", "mqtt://"));
	assert_null(parse("brokerd = { enabled = 1; };", "enabled"));
	assert_null(parse("log_level = \"loud\";", "log_level"));
	assert_null(parse("node = ", "t.conf"));
}

static void test_cores(void **state)
{
	char *core, *want;

	(void)state;
	touch("core");
	touch("core.77");
	touch("core-prog-78-1700000000");
	core = death_find_core_by("core", false, dir, 77);
	want = xasprintf("%s/core", dir);
	assert_string_equal(core, want);
	free(core);
	free(want);
	core = death_find_core_by("core", true, dir, 77);
	want = xasprintf("%s/core.77", dir);
	assert_string_equal(core, want);
	free(core);
	free(want);
	assert_null(death_find_core_by("core", true, dir, 1));
	core = death_find_core_by("core-%e-%p-%t", true, dir, 78);
	assert_non_null(strstr(core, "/core-prog-78-"));
	free(core);
	core = death_find_core_by("|/usr/lib/collect %P", false, dir, 78);
	assert_non_null(strstr(core, "coredumpctl info 78"));
	free(core);
	assert_null(death_find_core_by("", false, dir, 78));
	assert_null(death_find_core_by("100%", false, dir, 78));
}

static void test_deaths_last(void **state)
{
	struct deaths d;
	char *text;

	(void)state;
	assert_int_equal(deaths_load(&d, dir), 0);
	assert_int_equal(d.of[ROLE_BROKERD].count, 0);
	d.of[ROLE_BROKERD].count = 7;
	d.of[ROLE_BROKERD].at = 1700000000;
	death_set(&d.of[ROLE_BROKERD].last_exit, xstrdup("signal 9 \"q\""));
	death_set(&d.of[ROLE_BROKERD].core, xstrdup("/c"));
	assert_int_equal(deaths_save(&d, dir), 0);
	deaths_free(&d);
	assert_int_equal(deaths_load(&d, dir), 0);
	assert_int_equal(d.of[ROLE_BROKERD].count, 7);
	assert_int_equal(d.of[ROLE_BROKERD].at, 1700000000);
	assert_string_equal(d.of[ROLE_BROKERD].last_exit, "signal 9 \"q\"");
	assert_null(d.of[ROLE_BROKERD].last_assert);
	assert_null(d.of[ROLE_POSTGRES].last_exit);
	deaths_free(&d);
	/* A damaged one is as good as none. */
	assert_int_equal(place_write_file(dir, "deaths.json", "{\"br", 4, false), 0);
	assert_int_equal(deaths_load(&d, dir), -ERR_MALFORMED);
	assert_int_equal(d.of[ROLE_BROKERD].count, 0);
	deaths_free(&d);
	assert_int_equal(deaths_save(&d, "/proc/nowhere"), -ENOENT);
	text = death_describe(78 << 8);
	assert_string_equal(text, "exit status 78 (wrong configuration)");
	free(text);
	text = death_describe(6 | 0x80);
	assert_string_equal(text, "signal 6 (Aborted), core dumped");
	free(text);
}

static void test_files_follow_no_links(void **state)
{
	char *link_path = xasprintf("%s/link", dir), *text = NULL;

	(void)state;
	touch("target");
	assert_int_equal(symlink("target", link_path), 0);
	assert_int_equal(place_read_file(dir, "link", 10, &text), -ELOOP);
	assert_int_equal(place_read_file(dir, "target", 10, &text), 0);
	assert_string_equal(text, "x");
	free(text);
	/* Written, the link is replaced and its target is left alone. */
	assert_int_equal(place_write_file(dir, "link", "longer", 6, true), 0);
	assert_int_equal(place_read_file(dir, "link", 3, &text), -EFBIG);
	assert_int_equal(place_read_file(dir, "target", 10, &text), 0);
	assert_string_equal(text, "x");
	free(text);
	free(link_path);
}

static void test_environment(void **state)
{
	char **env;
	bool generation = false;

	(void)state;
	setenv("PGHOST", "x", 1);
	setenv("PGPASSFILE", "/p", 1);
	setenv("HOWDAH_GENERATION", "9999", 1);
	setenv("HOWDAH_X", "1", 1);
	setenv("TZX", "no", 1);
	env = spawn_environment(5);
	for (char **e = env; *e != NULL; e++) {
		assert_null(strstr(*e, "PGHOST"));
		assert_null(strstr(*e, "9999"));
		assert_null(strstr(*e, "TZX"));
		generation |= strcmp(*e, "HOWDAH_GENERATION=5") == 0;
	}
	assert_true(generation);
	spawn_environment_free(env);
}

static uint16_t port_of(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	assert_int_equal(getsockname(fd, (struct sockaddr *)&ss, &len), 0);
	return (uint16_t)(((uint8_t *)&ss)[2] << 8 | ((uint8_t *)&ss)[3]);
}

static struct settings *with_listeners(const char *urls)
{
	char *text = xasprintf("brokerd = { listeners = ( %s ); };", urls);
	struct settings *s = parse(text, NULL);

	free(text);
	return s;
}

static void test_listener_sets(void **state)
{
	const uint32_t roles = 1U << ROLE_BROKERD;
	struct listener_set *a = NULL, *b = NULL, *c = NULL;
	struct settings *s = with_listeners("{ url = \"mqtt://127.0.0.1:29911\"; }");
	struct buf errors;

	(void)state;
	buf_init(&errors, 0);
	if (listeners_open(s->conf, roles, NULL, &a, &errors) != 0) {
		settings_free(&s);
		buf_free(&errors);
		skip(); /* somebody has that port */
	}
	assert_int_equal(a->n, 1);
	assert_int_equal(port_of(a->items[0].fd), 29911);
	settings_free(&s);

	/* The same and another: the old socket is shared, so that it can be opened beside itself.
	 */
	s = with_listeners(
		"{ url = \"mqtt://127.0.0.1:29911\"; }, { url = \"mqtt://127.0.0.1:29912\"; }");
	assert_int_equal(listeners_open(s->conf, roles, a, &b, &errors), 0);
	assert_int_equal(b->n, 2);
	assert_false(listeners_same(a, b, ROLE_BROKERD));
	assert_true(listeners_same(a, a, ROLE_BROKERD));
	/* Without the old set the port is taken: named, with a remedy; nothing is given out. */
	assert_int_equal(listeners_open(s->conf, roles, NULL, &c, &errors), -ERR_CONFIG);
	assert_null(c);
	assert_non_null(strstr(buf_cstr(&errors), "port 29911"));
	assert_non_null(strstr(buf_cstr(&errors), "choose another port"));
	/* Not wanted: nothing is bound. */
	assert_int_equal(listeners_open(s->conf, 0, NULL, &c, &errors), 0);
	assert_int_equal(c->n, 0);
	settings_free(&s);
	buf_reset(&errors);
	listeners_free(&c);
	listeners_free(&a);
	s = with_listeners(
		"{ url = \"mqtt://127.0.0.1:29911\"; }, { url = \"mqtt://127.0.0.1:29911\"; }");
	assert_int_equal(listeners_open(s->conf, roles, b, &c, &errors), -ERR_CONFIG);
	assert_non_null(strstr(buf_cstr(&errors), "twice"));
	settings_free(&s);
	listeners_free(&b);
	buf_free(&errors);
}

static void test_roles_are_whole(void **state)
{
	uint32_t stopped = 0;

	(void)state;
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		const struct role_times *t = role_times(role);

		assert_int_equal(role_info(role)->role, role);
		assert_string_equal(role_info(role)->name, role_str(role));
		assert_true(t->ping_ms >= 4 && t->ping_misses >= 2 && t->backoff_base_ms > 0);
		assert_true(t->hurry_ms < t->stop_ms && t->backoff_base_ms <= t->backoff_cap_ms);
		stopped |= 1U << roles_stop_order[role];
		/* What it comes after stops after it. */
		for (uint32_t i = 0; i < ROLE_COUNT && roles_stop_order[i] != role; i++)
			assert_false(role_info(role)->after & 1U << roles_stop_order[i]);
	}
	assert_int_equal(stopped, (1U << ROLE_COUNT) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_urls),
		cmocka_unit_test(test_node_names),
		cmocka_unit_test(test_settings),
		cmocka_unit_test(test_cores),
		cmocka_unit_test(test_deaths_last),
		cmocka_unit_test(test_files_follow_no_links),
		cmocka_unit_test(test_environment),
		cmocka_unit_test(test_listener_sets),
		cmocka_unit_test(test_roles_are_whole),
	};

	return cmocka_run_group_tests_name("supervisor", tests, make_folder, remove_folder);
}
