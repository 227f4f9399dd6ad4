/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl without a suite: arguments by the command table, tables and JSON lines, exit statuses; the
 * control socket is served by a real control server in a process of its own.
 */
#include "config.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/ev.h"
#include "common/base/mem.h"
#include "common/ipc/ctl.h"
#include "pgctl/args.h"
#include "pgctl/output.h"
#include "pgctl/pgctl.h"

#define ARGV_MAX 16

struct run {
	char *out, *err;
	size_t out_len, err_len;
	int status;
};

static char dir[64], socket_path[128];
static pid_t server;

/* Runs "pgctl" with the words of line, separated by spaces. */
static struct run run(const char *line)
{
	struct run r = {.status = -1};
	char *copy = xasprintf("pgctl %s", line), *save = NULL, *argv[ARGV_MAX + 1];
	int argc = 0;
	for (char *w = strtok_r(copy, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) {
		assert_true(argc < ARGV_MAX);
		argv[argc++] = strcmp(w, "SOCKET") == 0 ? socket_path : w;
	}
	argv[argc] = NULL;
	FILE *out = open_memstream(&r.out, &r.out_len), *err = open_memstream(&r.err, &r.err_len);
	r.status = pgctl_run(argc, argv, out, err);
	fclose(out);
	fclose(err);
	free(copy);
	return r;
}

static void run_free(struct run *r)
{
	free(r->out);
	free(r->err);
}

static void expect(const char *line, int status, const char *out, const char *err)
{
	struct run r = run(line);
	if (r.status != status || (out != NULL && strcmp(r.out, out) != 0) ||
		(err != NULL && strstr(r.err, err) == NULL))
		fail_msg("pgctl %s: status %d\n--- out\n%s--- err\n%s", line, r.status, r.out,
			r.err);
	run_free(&r);
}

/* ---- Arguments ----------------------------------------------------------------------------- */

static void test_args(void **state)
{
	(void)state;
	static const struct {
		const char *line, *cmd, *args, *why;
	} rows[] = {
		{"status", "status", "{}", NULL},
		{"worker restart brokerd", "worker.restart", "{\"name\":\"brokerd\"}", NULL},
		{"stats", "stats", "{}", NULL},
		{"stats brokerd", "stats", "{\"worker\":\"brokerd\"}", NULL},
		{"mqtt map add public.t a/{id}", "mqtt.map.add",
			"{\"relation\":\"public.t\",\"topic\":\"a/{id}\"}", NULL},
		{"mqtt map add --qos 0 t --name=n a --payload {x}", "mqtt.map.add",
			"{\"name\":\"n\",\"payload\":\"{x}\",\"qos\":0,\"relation\":\"t\","
			"\"topic\":\"a\"}",
			NULL},
		{"mqtt map add --qos=1 -- --t --a", "mqtt.map.add",
			"{\"qos\":1,\"relation\":\"--t\",\"topic\":\"--a\"}", NULL},
		{"mqtt sessions --limit 5", "mqtt.sessions", "{\"limit\":5}", NULL},
		{"node remove a --yes", "node.remove", "{\"name\":\"a\",\"yes\":true}", NULL},
		{"wal tail --table a --op=insert --table b.c --limit 3 --from-slot", "wal.tail",
			"{\"from-slot\":true,\"limit\":3,\"op\":[\"insert\"],\"table\":[\"a\","
			"\"b.c\"]}",
			NULL},
		{"wal slots", "wal.slots", "{}", NULL},
		{"wal slots create s --failover --two-phase", "wal.slots.create",
			"{\"failover\":true,\"name\":\"s\",\"two-phase\":true}", NULL},
		{"wal slots alter s --failover off --two-phase=on", "wal.slots.alter",
			"{\"failover\":\"off\",\"name\":\"s\",\"two-phase\":\"on\"}", NULL},
		{"help mqtt map", "help", "{\"command\":\"mqtt.map\"}", NULL},
		{"help", "help", "{}", NULL},
		{"", NULL, NULL, "a command is missing"},
		{"nix", NULL, NULL, "no command \"nix\"; pgctl help"},
		{"mqtt", NULL, NULL, "there are: mqtt map add, mqtt map list"},
		{"mqtt.sessions", NULL, NULL, "no command"},
		{"status now", NULL, NULL, "\"now\" is one argument too many; usage: pgctl status"},
		{"log", NULL, NULL, "the argument level is missing; usage: pgctl log LEVEL"},
		{"mqtt map add t", NULL, NULL, "the argument topic is missing"},
		{"mqtt map add t a --qos", NULL, NULL, "--qos needs a value"},
		{"mqtt map add t a --qos x", NULL, NULL, "--qos is a number, not \"x\""},
		{"mqtt map add t a --qos 99999999999999999999", NULL, NULL, "is a number"},
		{"mqtt map add t a --qos 1 --qos 1", NULL, NULL, "stands there twice"},
		{"mqtt map add t a --nix 1", NULL, NULL, "there is no option --nix"},
		{"wal tail --limit 1 --limit 2", NULL, NULL, "--limit stands there twice"},
		{"wal tail --table", NULL, NULL, "--table needs a value"},
		{"wal slots alter s --failover o", NULL, NULL, "--failover is on|off, not \"o\""},
		{"wal slots alter s --failover on|off", NULL, NULL, "is on|off, not"},
		{"wal slots alter s --failover=", NULL, NULL, "is on|off, not"},
		{"wal slots create", NULL, NULL, "usage: pgctl wal slots create NAME [--physical]"},
		{"wal slots s", NULL, NULL, "one argument too many"},
		{"node remove a --yes=1", NULL, NULL, "--yes takes no value"},
	};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char *copy = xstrdup(rows[i].line), *save = NULL;
		const char *words[ARGV_MAX];
		size_t n = 0;
		for (char *w = strtok_r(copy, " ", &save); w != NULL;
			w = strtok_r(NULL, " ", &save))
			words[n++] = w;
		const struct ctl_command *cmd = NULL;
		json_t *args = NULL;
		struct buf why;
		buf_init(&why, 0);
		int err = args_parse(words, n, &cmd, &args, &why);
		if (rows[i].cmd != NULL) {
			assert_int_equal(err, 0);
			assert_string_equal(cmd->name, rows[i].cmd);
			char *text = json_dumps(args, JSON_COMPACT | JSON_SORT_KEYS);
			assert_string_equal(text, rows[i].args);
			free(text);
			json_decref(args);
		} else {
			assert_true(err < 0);
			if (strstr(buf_cstr(&why), rows[i].why) == NULL)
				fail_msg("%s: %s", rows[i].line, buf_cstr(&why));
		}
		buf_free(&why);
		free(copy);
	}
}

/* Every row's arguments can be parsed, and help knows every command. */
static void test_whole_table(void **state)
{
	(void)state;
	for (const struct ctl_command *c = ctl_table; c->name != NULL; c++) {
		struct buf line;
		buf_init(&line, 0);
		buf_put_text(&line, "help ");
		args_put_words(&line, c->name);
		struct run r = run(buf_cstr(&line));
		assert_int_equal(r.status, PGCTL_OK);
		assert_non_null(strstr(r.out, c->help));
		run_free(&r);
		buf_reset(&line);
		args_put_words(&line, c->name);
		buf_put_text(&line, " --no-such-option");
		r = run(buf_cstr(&line));
		assert_int_equal(r.status, PGCTL_USAGE);
		run_free(&r);
		buf_free(&line);
	}
}

/* ---- Output -------------------------------------------------------------------------------- */

static char *printed(const char *rows_text, bool json, const char *columns)
{
	struct output o;
	char *text;
	size_t len, i;
	json_t *rows = json_loads(rows_text, 0, NULL), *row;
	FILE *f = open_memstream(&text, &len);
	assert_non_null(rows);
	output_init(&o, f, json);
	o.columns = columns;
	json_array_foreach(rows, i, row) output_row(&o, row);
	assert_int_equal(output_end(&o), 0);
	fclose(f);
	json_decref(rows);
	return text;
}

static void test_output(void **state)
{
	(void)state;
	static const char rows[] =
		"[{\"name\":\"a\",\"n\":5,\"up\":true,\"why\":null},"
		"{\"name\":\"größer\",\"n\":12345,\"up\":false,\"why\":\"x\\n\\u001b[31m\"},"
		"{\"name\":\"c\",\"n\":null,\"up\":true,\"why\":\"\",\"more\":[1,{\"k\":2}]}]";
	static const struct {
		bool json;
		const char *columns, *text;
	} want[] = {
		{false, NULL,
			"name        n  up   why            more\n"
			"a           5  yes  -              -\n"
			"größer  12345  no   x\\x0a\\x1b[31m  -\n"
			"c           -  yes                 [1,{\"k\":2}]\n"},
		{false, "n,name",
			"    n  name\n"
			"    5  a\n"
			"12345  größer\n"
			"    -  c\n"},
		{true, "n",
			"{\"name\":\"a\",\"n\":5,\"up\":true,\"why\":null}\n"
			"{\"name\":\"größer\",\"n\":12345,\"up\":false,\"why\":\"x\\n\\u001B[31m\"}"
			"\n"
			"{\"name\":\"c\",\"n\":null,\"up\":true,\"why\":\"\",\"more\":[1,{\"k\":2}]"
			"}\n"},
	};
	for (size_t i = 0; i < ARRAY_LEN(want); i++) {
		char *text = printed(rows, want[i].json, want[i].columns);
		assert_string_equal(text, want[i].text);
		free(text);
	}
	char *none = printed("[]", false, NULL);
	assert_string_equal(none, "");
	free(none);
}

/* A list longer than a block is printed in full, in bounded memory. */
static void test_output_blocks(void **state)
{
	(void)state;
	struct output o;
	char *text;
	size_t len, lines = 0;
	FILE *f = open_memstream(&text, &len);
	output_init(&o, f, false);
	for (int i = 0; i < 2 * OUTPUT_BLOCK_ROWS + 5; i++) {
		json_t *row = json_pack("{s:i}", "i", i);
		output_row(&o, row);
		json_decref(row);
		assert_true(json_array_size(o.rows) < OUTPUT_BLOCK_ROWS);
	}
	assert_int_equal(output_end(&o), 0);
	fclose(f);
	for (size_t i = 0; i < len; i++)
		lines += text[i] == '\n';
	assert_int_equal(lines, 2 * OUTPUT_BLOCK_ROWS + 5 + 3);
	free(text);
	f = fopen("/dev/full", "w");
	output_init(&o, f, true);
	json_t *row = json_pack("{s:i}", "i", 1);
	output_row(&o, row);
	json_decref(row);
	assert_int_not_equal(output_end(&o), 0);
	fclose(f);
}

/* ---- The control socket -------------------------------------------------------------------- */

static void on_status(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req;
	(void)arg;
	(void)ctl_row(
		c, json_pack("{s:s,s:s,s:i,s:i,s:s,s:i,s:s,s:i,s:s}", "worker", "brokerd", "state",
			   "UP", "pid", 42, "restarts", 3, "last_exit", "signal 9", "uptime_s", 7,
			   "text", "2 clients", "mqtt_connections", 2, "core", ""));
	ctl_ok(c);
}

/* Says back what it was asked. */
static void on_stats(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)arg;
	const json_t *worker = json_object_get(req->args, "worker");
	(void)ctl_row(c, json_pack("{s:s,s:s,s:i,s:s,s:s,s:s}", "worker",
				 worker != NULL ? json_string_value(worker) : "all", "name", "n",
				 "value", 1, "unit", "", "help", "h", "kind", "counter"));
	ctl_ok(c);
}

static void on_reload(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req;
	(void)arg;
	ctl_fail(c, "invalid", "mend line 3", "the old configuration stays in force");
}

static void on_restart(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req;
	(void)arg;
	ctl_fail(c, "permission", "ask root", "you may not");
}

static void on_log(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req;
	(void)arg;
	ctl_fail(c, "invalid", NULL, "there is no such level");
}

static int route(
	uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why, void *arg)
{
	(void)target;
	(void)line;
	(void)fd;
	(void)uid;
	(void)arg;
	*ret_why = "it is not up";
	return -1;
}

static void serve(int fd)
{
	static const struct ctl_handler handlers[] = {{"status", on_status}, {"stats", on_stats},
		{"reload", on_reload}, {"worker.restart", on_restart}, {"log", on_log},
		{NULL, NULL}};
	static const struct ctl_server_ops ops = {.route = route};
	struct ev_loop *loop = ev_loop_new();
	struct ctl_server *s =
		ctl_server_new(loop, ROLE_SUPERVISOR, handlers, geteuid(), &ops, NULL);
	if (ctl_server_listen(s, fd) != 0)
		_exit(1);
	ev_loop_run(loop);
	_exit(0);
}

static int start_server(void **state)
{
	(void)state;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	strcpy(dir, "/tmp/howdah-pgctl-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(socket_path, sizeof(socket_path), "%s/s", dir);
	strcpy(addr.sun_path, socket_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 10), 0);
	server = fork();
	if (server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(fd);
	}
	close(fd);
	return server < 0;
}

static int stop_server(void **state)
{
	(void)state;
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	unlink(socket_path);
	return rmdir(dir);
}

static void test_calls(void **state)
{
	(void)state;
	expect("-s SOCKET status", PGCTL_OK,
		"worker   state  pid  restarts  last_exit  uptime_s  text\n"
		"brokerd  UP      42         3  signal 9          7  2 clients\n"
		"\n"
		"worker   figure            value\n"
		"brokerd  mqtt_connections      2\n",
		NULL);
	expect("-s SOCKET -j status", PGCTL_OK,
		"{\"worker\":\"brokerd\",\"state\":\"UP\",\"pid\":42,\"restarts\":3,\"last_exit\":"
		"\"signal 9\","
		"\"uptime_s\":7,\"text\":\"2 clients\",\"mqtt_connections\":2,\"core\":\"\"}\n",
		NULL);
	expect("-s SOCKET stats brokerd", PGCTL_OK,
		"worker   name  value  unit  help\n"
		"brokerd  n         1        h\n",
		NULL);
}

static void test_statuses(void **state)
{
	(void)state;
	expect("-s SOCKET reload", PGCTL_CONFIG, "", "stays in force; mend line 3");
	expect("-s SOCKET log debug", PGCTL_FAILED, "", "there is no such level");
	expect("-s SOCKET worker restart brokerd", PGCTL_DENIED, "", "you may not; ask root");
	expect("-s SOCKET mqtt sessions", PGCTL_UNREACHABLE, "", "it is not up");
	expect("-s SOCKET -j reload", PGCTL_CONFIG, "", "\"hint\":\"mend line 3\"");
	expect("-s /nowhere/s status", PGCTL_UNREACHABLE, "", "start it");
	expect("-c /nowhere/howdah.conf status", PGCTL_CONFIG, "",
		"name the configuration with -c");
	expect("-c /nowhere/howdah.conf db status", PGCTL_CONFIG, "", "cannot read");
	expect("-c /dev/null -s SOCKET status", PGCTL_OK, NULL, NULL);
	expect("", PGCTL_USAGE, "", "usage: pgctl");
	expect("-x status", PGCTL_USAGE, "", "there is no option -x");
	expect("-s", PGCTL_USAGE, "", "-s needs a value");
	expect("-h", PGCTL_OK, NULL, NULL);
	expect("node remove A", PGCTL_USAGE, "", "cannot be the name of a node");
}

/* The file says where the suite listens. */
static void test_socket_of_file(void **state)
{
	(void)state;
	char *file = xasprintf("%s/howdah.conf", dir), *line = xasprintf("-c %s status", file);
	FILE *f = fopen(file, "w");
	fprintf(f, "run_dir = \"%s\"; brokerd = { any = 1; };\n", dir);
	fclose(f);
	expect(line, PGCTL_UNREACHABLE, "", "/control.sock");
	f = fopen(file, "w");
	fprintf(f, "run_dir = 5;\n");
	fclose(f);
	expect(line, PGCTL_CONFIG, "", "run_dir");
	assert_int_equal(unlink(file), 0);
	free(file);
	free(line);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_args),
		cmocka_unit_test(test_whole_table),
		cmocka_unit_test(test_output),
		cmocka_unit_test(test_output_blocks),
		cmocka_unit_test(test_calls),
		cmocka_unit_test(test_statuses),
		cmocka_unit_test(test_socket_of_file),
	};
	return cmocka_run_group_tests(tests, start_server, stop_server);
}
