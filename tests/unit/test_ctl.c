/* SPDX-License-Identifier: PostgreSQL */
/*
 * The control protocol: the parser, the table, a server on a real socket with clients that behave
 * and clients that do not, and the blocking client side against a server in another process.
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ipc/ctl.h"

#define ASK(cmd) "{\"cmd\":\"" cmd "\",\"id\":7,\"v\":1}\n"
#define LIST_ROWS 50000

struct world {
	struct ev_loop *loop;
	struct ctl_server *server;
	char folder[64];
	char path[96];
	struct ctl_client *held;
	int n_asked, n_gone, n_drained, rows_left;
	uint32_t routed_to;
	char routed_line[CTL_LINE_MAX];
	int routed_fd;
	int route_err;
};

static void on_status(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct world *w = arg;
	w->n_asked++;
	assert_true(json_is_object(req->args));
	assert_int_equal(ctl_row(c, json_pack("{s:s}", "worker", "brokerd")), 0);
	ctl_ok(c);
}

static void on_gone(struct ctl_client *c, void *arg)
{
	struct world *w = arg;
	assert_ptr_equal(c, w->held);
	w->held = NULL;
	w->n_gone++;
}

static void on_reload(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct world *w = arg;
	(void)req;
	w->n_asked++;
	w->held = c;
	ctl_hold(c, NULL, on_gone, w);
}

static void send_rows(struct ctl_client *c, struct world *w)
{
	while (w->rows_left > 0) {
		w->rows_left--;
		json_t *row = json_pack("{s:i, s:s}", "n", w->rows_left, "text",
			"a row of a list that is longer than any buffer");
		if (ctl_row(c, row) != 0)
			return;
	}
	w->held = NULL;
	ctl_ok(c);
}

static void on_drained(struct ctl_client *c, void *arg)
{
	struct world *w = arg;
	w->n_drained++;
	send_rows(c, w);
}

static void on_stats(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct world *w = arg;
	(void)req;
	w->held = c;
	ctl_hold(c, on_drained, on_gone, w);
	send_rows(c, w);
}

static const struct ctl_handler handlers[] = {
	{"status", on_status}, {"reload", on_reload}, {"stats", on_stats}, {NULL, NULL}};

static int on_route(
	uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why, void *arg)
{
	struct world *w = arg;
	(void)uid;
	if (w->route_err != 0) {
		*ret_why = "it is being restarted";
		return w->route_err;
	}
	w->routed_to = target;
	snprintf(w->routed_line, sizeof(w->routed_line), "%s", line);
	w->routed_fd = fd;
	return 0;
}

static const struct ctl_server_ops ops = {.route = on_route};

static int listen_at(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 128), 0);
	return fd;
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	snprintf(w->folder, sizeof(w->folder), "/tmp/howdah-ctl-XXXXXX");
	assert_non_null(mkdtemp(w->folder));
	snprintf(w->path, sizeof(w->path), "%s/s", w->folder);
	w->loop = ev_loop_new();
	w->routed_fd = -1;
	w->server = ctl_server_new(w->loop, ROLE_SUPERVISOR, handlers, 12345, &ops, w);
	assert_int_equal(ctl_server_listen(w->server, listen_at(w->path)), 0);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;
	ctl_server_free(&w->server);
	ev_loop_free(&w->loop);
	unlink(w->path);
	rmdir(w->folder);
	free(w);
	assert_int_equal(mem_report(NULL, NULL), 0);
	return 0;
}

static void turn(struct world *w, int n)
{
	for (int i = 0; i < n; i++)
		ev_loop_once(w->loop, false);
}

static int dial(struct world *w)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", w->path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	turn(w, 3);
	return fd;
}

static void say(struct world *w, int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
	turn(w, 5);
}

/* What has come, up to now; "" for nothing, "EOF" for the end. */
static const char *hear(int fd)
{
	static char text[4096];
	ssize_t n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN ? "" : "ERROR";
	if (n == 0)
		return "EOF";
	text[n] = '\0';
	return text;
}

/* ---- parser and table ---- */

static int parse(const char *line)
{
	struct ctl_request req;
	const char *why = NULL;
	int err = ctl_request_parse(line, strlen(line), &req, &why);
	if (err == 0)
		ctl_request_free(&req);
	else
		assert_non_null(why);
	return err;
}

static void test_parse(void **state)
{
	static char huge[CTL_LINE_MAX + 1];
	static const char *const bad[] = {"", "{", "[]", "7", "{\"cmd\":7,\"v\":1}",
		"{\"cmd\":\"\",\"v\":1}", "{\"cmd\":\"a\",\"args\":[],\"v\":1}", "{\"v\":1}",
		"{\"cmd\":\"a\",\"id\":\"x\",\"v\":1}", "{\"cmd\":\"a\",\"v\":1,\"more\":1}",
		"{\"cmd\":\"a\",\"cmd\":\"b\",\"v\":1}", "{\"cmd\":\"a\",\"v\":1} x",
		"{\"cmd\":\"\xff\",\"v\":1}"};
	struct ctl_request req;
	const char *why = NULL;
	const char *good = "{\"cmd\":\"status\",\"args\":{\"limit\":3},\"id\":12,\"v\":1}";
	(void)state;
	assert_int_equal(ctl_request_parse(good, strlen(good), &req, &why), 0);
	assert_string_equal(req.cmd, "status");
	assert_int_equal(req.id, 12);
	assert_int_equal(json_integer_value(json_object_get(req.args, "limit")), 3);
	ctl_request_free(&req);
	assert_int_equal(parse("{\"cmd\":\"status\",\"v\":1}"), 0);
	assert_int_equal(parse("{\"cmd\":\"status\"}"), -ERR_VERSION);
	assert_int_equal(parse("{\"cmd\":\"status\",\"v\":2}"), -ERR_VERSION);
	assert_int_equal(parse("{\"verb\":\"other\",\"v\":2}"), -ERR_VERSION);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_true(parse(bad[i]) < 0);
	memset(huge, ' ', sizeof(huge));
	assert_int_equal(ctl_request_parse(huge, sizeof(huge), &req, &why), -ERR_LIMIT);
}

static void test_table(void **state)
{
	size_t n = 0;
	(void)state;
	for (const struct ctl_command *c = ctl_table; c->name != NULL; c++, n++) {
		assert_non_null(c->args);
		assert_true(strlen(c->help) > 10);
		assert_ptr_equal(ctl_table_find(c->name), c); /* no name twice */
		assert_string_not_equal(role_str(c->target), "?");
	}
	assert_true(n >= 20);
	assert_int_equal(ctl_table_find("mqtt.sessions")->target, ROLE_BROKERD);
	assert_int_equal(ctl_table_find("ring.status")->target, ROLE_WALSTREAMD);
	assert_int_equal(ctl_table_find("worker.restart")->perm, CTL_PERM_ADMIN);
	assert_null(ctl_table_find("no.such"));
}

/* ---- server ---- */

static void test_answers(void **state)
{
	struct world *w = *state;
	int fd = dial(w);
	say(w, fd, ASK("status"));
	assert_string_equal(hear(fd), "{\"id\":7,\"row\":{\"worker\":\"brokerd\"}}\n"
				      "{\"id\":7,\"ok\":true}\n");
	say(w, fd, ASK("stat"));
	assert_non_null(strstr(hear(fd), "unknown-command"));
	say(w, fd, ASK("doctor"));
	assert_non_null(strstr(hear(fd), "pgctl itself"));
	say(w, fd, ASK("suite.info"));
	assert_non_null(strstr(hear(fd), "not served"));
	say(w, fd, "what?\n");
	assert_non_null(strstr(hear(fd), "\"invalid\""));
	say(w, fd, "{\"cmd\":\"status\",\"id\":7,\"v\":2}\n");
	assert_non_null(strstr(hear(fd), "\"version\""));
	say(w, fd, ASK("status")); /* none of that cost the connection */
	assert_non_null(strstr(hear(fd), "\"ok\":true"));
	close(fd);
	turn(w, 4);
	assert_int_equal(ctl_server_count(w->server), 0);
}

static void test_line_in_pieces_and_too_long(void **state)
{
	struct world *w = *state;
	static char huge[CTL_LINE_MAX + 10];
	int fd = dial(w);
	for (const char *p = ASK("status"); *p != '\0'; p++) {
		char one[2] = {*p, '\0'};
		assert_string_equal(hear(fd), "");
		say(w, fd, one);
	}
	assert_non_null(strstr(hear(fd), "\"ok\":true"));
	memset(huge, 'x', sizeof(huge) - 1);
	say(w, fd, huge);
	turn(w, 10);
	assert_non_null(strstr(hear(fd), "at most"));
	assert_string_not_equal(hear(fd), "");
	assert_int_equal(ctl_server_count(w->server), 0);
	close(fd);
}

static void test_one_at_a_time(void **state)
{
	struct world *w = *state;
	int fd = dial(w);
	say(w, fd, ASK("reload") ASK("status") ASK("status"));
	assert_int_equal(w->n_asked, 1);
	assert_string_equal(hear(fd), "");
	struct ctl_client *c = w->held;
	w->held = NULL;
	ctl_fail(c, "failed", "look there", "brokerd: %s", "no");
	turn(w, 4);
	assert_int_equal(w->n_asked, 3);
	const char *text = hear(fd);
	assert_ptr_equal(strstr(text, "{\"id\":7,\"error\":{\"code\":\"failed\",\"message\":"
				      "\"brokerd: no\",\"hint\":\"look there\"}}\n"),
		text);
	close(fd);
	turn(w, 4);
	assert_int_equal(w->n_gone, 0); /* nothing was held any more */
}

static void test_gone_while_held(void **state)
{
	struct world *w = *state;
	ctl_server_set_stall_ms(w->server, 30);
	int fd = dial(w);
	say(w, fd, ASK("reload"));
	assert_non_null(w->held);
	close(fd);
	turn(w, 4);
	assert_int_equal(w->n_gone, 1);
	assert_null(w->held);
	/* One that only ends its sending side is still there for its answer. */
	fd = dial(w);
	say(w, fd, ASK("reload"));
	shutdown(fd, SHUT_WR);
	turn(w, 4);
	assert_int_equal(w->n_gone, 1);
	ctl_ok(w->held);
	turn(w, 4);
	assert_string_equal(hear(fd), "{\"id\":7,\"ok\":true}\n");
	assert_string_equal(hear(fd), "EOF");
	close(fd);
	/* And one that then leaves altogether is noticed by the stall timer. */
	fd = dial(w);
	say(w, fd, ASK("reload"));
	shutdown(fd, SHUT_WR);
	turn(w, 4);
	close(fd);
	uint64_t until = ev_now_ms() + 5000;
	while (w->n_gone < 2 && ev_now_ms() < until)
		ev_loop_once(w->loop, true);
	assert_int_equal(w->n_gone, 2);
}

static void test_long_list(void **state)
{
	struct world *w = *state;
	static char chunk[65536];
	w->rows_left = LIST_ROWS;
	int fd = dial(w);
	say(w, fd, ASK("stats"));
	assert_true(w->rows_left > 0); /* paused by the mark, not by the end */
	int n_lines = 0;
	uint64_t until = ev_now_ms() + 20000;
	while (n_lines < LIST_ROWS + 1 && ev_now_ms() < until) {
		ev_loop_once(w->loop, false);
		ssize_t n = recv(fd, chunk, sizeof(chunk), MSG_DONTWAIT);
		for (ssize_t i = 0; i < n; i++)
			n_lines += chunk[i] == '\n';
	}
	assert_int_equal(n_lines, LIST_ROWS + 1);
	assert_true(w->n_drained > 2);
	close(fd);
}

static void test_stalled_clients_are_dropped(void **state)
{
	struct world *w = *state;
	ctl_server_set_stall_ms(w->server, 50);
	w->rows_left = LIST_ROWS;
	int idle = dial(w), reader = dial(w);
	say(w, reader, ASK("stats"));
	uint64_t until = ev_now_ms() + 5000;
	while (ctl_server_count(w->server) > 0 && ev_now_ms() < until)
		ev_loop_once(w->loop, true);
	assert_int_equal(ctl_server_count(w->server), 0);
	assert_int_equal(w->n_gone, 1);
	assert_string_equal(hear(idle), "EOF");
	close(idle);
	close(reader);
}

static void test_handed_on(void **state)
{
	static const struct ctl_handler own[] = {{"mqtt.sessions", on_status}, {NULL, NULL}};
	struct world *w = *state;
	int fd = dial(w);
	say(w, fd, ASK("status") ASK("mqtt.sessions") ASK("status"));
	turn(w, 4);
	assert_non_null(strstr(hear(fd), "\"ok\":true")); /* the one before was answered here */
	assert_int_equal(w->routed_to, ROLE_BROKERD);
	assert_string_equal(w->routed_line, ASK("mqtt.sessions") ASK("status"));
	assert_int_equal(ctl_server_count(w->server), 0);

	/* The worker's side takes it up where it was. */
	struct ctl_server *worker = ctl_server_new(w->loop, ROLE_BROKERD, own, 0, NULL, w);
	ctl_server_adopt(worker, w->routed_fd, geteuid(), w->routed_line);
	turn(w, 5);
	const char *text = hear(fd);
	assert_non_null(strstr(text, "\"row\""));
	assert_non_null(strstr(text, "belongs to brokerd now"));
	ctl_server_free(&worker);
	assert_string_equal(hear(fd), "EOF");
	close(fd);

	w->route_err = -ERR_STATE;
	fd = dial(w);
	say(w, fd, ASK("wal.lag") ASK("status"));
	text = hear(fd);
	assert_non_null(strstr(text, "cannot ask walstreamd: it is being restarted"));
	assert_non_null(strstr(text, "\"ok\":true"));
	close(fd);
}

static void test_caps(void **state)
{
	struct world *w = *state;
	int fds[CTL_CLIENTS_PER_UID_MAX + 1];
	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		fds[i] = dial(w);
	assert_int_equal(ctl_server_count(w->server), CTL_CLIENTS_PER_UID_MAX);
	assert_non_null(strstr(hear(fds[CTL_CLIENTS_PER_UID_MAX]), "\"busy\""));
	assert_string_equal(hear(fds[CTL_CLIENTS_PER_UID_MAX]), "EOF");
	/* The last places are for root and ourselves: strangers find the house full before that. */
	int sv[2], n_strangers = 0;
	for (uid_t uid = 50000; uid < 50100; uid++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		size_t before = ctl_server_count(w->server);
		ctl_server_adopt(w->server, sv[0], uid, "");
		n_strangers += ctl_server_count(w->server) > before;
		close(sv[1]);
	}
	assert_int_equal(
		n_strangers, CTL_CLIENTS_MAX - CTL_CLIENTS_RESERVE - CTL_CLIENTS_PER_UID_MAX);
	for (size_t i = 0; i < ARRAY_LEN(fds); i++)
		close(fds[i]);
	turn(w, 8);
	assert_int_equal(ctl_server_count(w->server), 0);
}

static void test_permission(void **state)
{
	static const struct {
		uid_t uid;
		const char *answer;
	} cases[] = {{0, "\"ok\":true"}, {12345, "\"ok\":true"}, {54321, "\"permission\""}};
	struct world *w = *state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		int sv[2];
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		ctl_server_adopt(w->server, sv[0], cases[i].uid, ASK("status"));
		turn(w, 4);
		assert_non_null(strstr(hear(sv[1]), cases[i].answer));
		close(sv[1]);
	}
	assert_int_equal(w->n_asked, 2);
}

/* ---- the blocking client, against a supervisor and a worker in another process ---- */

static void on_row(json_t *row, void *arg)
{
	assert_string_equal(json_string_value(json_object_get(row, "worker")), "brokerd");
	++*(int *)arg;
}

static int on_route_here(
	uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why, void *arg)
{
	(void)target, (void)ret_why;
	struct ctl_server **worker = arg;
	ctl_server_adopt(*worker, fd, uid, line);
	return 0;
}

static void on_status_here(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req, (void)arg;
	if (ctl_row(c, json_pack("{s:s}", "worker", "brokerd")) == 0)
		ctl_ok(c);
}

_Noreturn static void serve_here(int listen_fd)
{
	static const struct ctl_handler own[] = {{"status", on_status_here}, {NULL, NULL}};
	static const struct ctl_handler others[] = {
		{"mqtt.sessions", on_status_here}, {NULL, NULL}};
	static const struct ctl_server_ops here = {.route = on_route_here};
	struct ev_loop *loop = ev_loop_new();
	struct ctl_server *worker = ctl_server_new(loop, ROLE_BROKERD, others, 0, NULL, NULL);
	struct ctl_server *s = ctl_server_new(loop, ROLE_SUPERVISOR, own, 0, &here, &worker);
	ctl_server_set_stall_ms(s, 300);
	if (ctl_server_listen(s, listen_fd) == 0)
		ev_loop_run(loop);
	_exit(1);
}

static void test_client(void **state)
{
	char folder[] = "/tmp/howdah-ctl-XXXXXX";
	char path[64];
	struct ctl_conn *conn = NULL;
	json_t *error = NULL;
	int rows = 0;
	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/s", folder);
	assert_int_equal(ctl_connect(path, &conn), -ENOENT);
	int listen_fd = listen_at(path);
	pid_t pid = fork();
	if (pid == 0)
		serve_here(listen_fd);
	close(listen_fd);

	assert_int_equal(ctl_connect(path, &conn), 0);
	assert_int_equal(ctl_call(conn, "status", NULL, on_row, &rows, &error), 0);
	assert_int_equal(ctl_call(conn, "mqtt.sessions", json_object(), on_row, &rows, &error), 0);
	assert_int_equal(ctl_call(conn, "mqtt.sessions", NULL, on_row, &rows, &error), 0);
	assert_int_equal(
		ctl_call(conn, "status", NULL, on_row, &rows, &error), 0); /* dials again */
	assert_int_equal(rows, 4);
	assert_int_equal(ctl_call(conn, "no.such", NULL, on_row, &rows, &error), -ERR_STATE);
	assert_string_equal(json_string_value(json_object_get(error, "code")), "unknown-command");
	json_decref(error);
	usleep(600000); /* the server drops an idle client: the next call must not notice */
	assert_int_equal(ctl_call(conn, "status", NULL, on_row, &rows, &error), 0);
	assert_int_equal(rows, 5);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_true(ctl_call(conn, "status", NULL, on_row, &rows, &error) < 0);
	assert_null(error);
	ctl_disconnect(&conn);
	assert_null(conn);
	unlink(path);
	rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_table),
		cmocka_unit_test_setup_teardown(test_answers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_line_in_pieces_and_too_long, setup, teardown),
		cmocka_unit_test_setup_teardown(test_one_at_a_time, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gone_while_held, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_list, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stalled_clients_are_dropped, setup, teardown),
		cmocka_unit_test_setup_teardown(test_handed_on, setup, teardown),
		cmocka_unit_test_setup_teardown(test_caps, setup, teardown),
		cmocka_unit_test_setup_teardown(test_permission, setup, teardown),
		cmocka_unit_test(test_client),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
