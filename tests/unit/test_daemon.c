/* SPDX-License-Identifier: PostgreSQL */
/*
 * daemon_main: the test plays the supervisor against a small daemon in a process of its own (this
 * program again, started with "--daemon"), through every phase and every way to end.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/daemon.h"

#define WAIT_MS 10000
#define GENERATION 41

/* ---- the daemon ---- */

MEM_TYPE(mem_tiny, "tiny daemon");

static const struct conf_row rows[] = {
	{.path = "tiny.behave",
		.type = CONF_ENUM,
		.def = "ready",
		.choices = "ready|late|config|fail|never|leak|exit",
		.help = "what the test wants"},
	{.path = "tiny.number", .type = CONF_INT, .min = 0, .max = 10, .def = "1", .help = "any"},
	{.path = NULL},
};
static const struct conf_row *const schemas[] = {rows, NULL};

static const struct stats_row stats_rows[] = {
	{"inits", STATS_COUNTER, "", STATS_STATUS, "how often init ran"}};

struct tiny {
	struct ev_timer late;
};

static bool behaves(struct daemon *d, const char *how)
{
	return strcmp(conf_str(d->conf, "tiny.behave"), how) == 0;
}

static void on_late(void *arg)
{
	struct daemon *d = arg;
	if (behaves(d, "exit"))
		daemon_exit(d, EXIT_CONFIG);
	else
		daemon_ready(d);
}

static int tiny_check(const struct conf *conf, struct buf *errors)
{
	if (conf_int(conf, "tiny.number") != 9)
		return 0;
	buf_put_text(errors, "howdah.conf: tiny.number: nine is taken; choose another\n");
	return -ERR_CONFIG;
}

static int tiny_init(struct daemon *d)
{
	if (behaves(d, "config"))
		return -ERR_CONFIG;
	if (behaves(d, "fail"))
		return -ENOSPC;
	struct tiny *t = mem_new(&mem_tiny, sizeof(*t));
	if (behaves(d, "leak"))
		(void)mem_new(&mem_tiny, 1);
	d->self = t;
	stats_add(d->stats, 0, 1);
	ev_timer_init(&t->late, d->loop, "late", on_late, d);
	daemon_status(d, "%s %s %s %s %s %s %x %zu %s", d->node, d->instance, d->state_dir,
		d->run_dir, d->user, d->datadir, (unsigned)d->enabled_roles, d->n_listeners,
		d->n_listeners > 0 ? d->listeners[0].url : "-");
	if (behaves(d, "late") || behaves(d, "exit"))
		ev_timer_start(&t->late, 20);
	else if (!behaves(d, "never"))
		daemon_ready(d);
	return 0;
}

static int tiny_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	if (conf_int(next, "tiny.number") == 8) {
		*ret_why = "eight is not to be had";
		return -EBUSY;
	}
	daemon_status(d, "number %d -> %d", (int)conf_int(d->conf, "tiny.number"),
		(int)conf_int(next, "tiny.number"));
	return 0;
}

static void tiny_drain(struct daemon *d)
{
	daemon_status(d, "draining");
	daemon_drained(d);
}

static void tiny_fini(struct daemon *d)
{
	struct tiny *t = d->self;
	ev_timer_stop(&t->late);
	mem_free(&mem_tiny, t);
	daemon_status(d, "finished");
}

static void tiny_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	daemon_status(d, "peer %s %d %u", role_str(role), up, (unsigned)generation);
}

/* Sends it back to where it came from, with its descriptor. */
static int tiny_relay(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	struct buf body;
	buf_init(&body, IMSG_BODY_MAX);
	buf_put_u8(&body, (uint8_t)(rd_u8(&msg->body) + 1));
	int fd = imsg_take_fd(msg, 0);
	int err = rd_end(&msg->body);
	if (err == 0)
		err = daemon_relay(d, from_role, kind, &body, &fd, 1);
	close(fd);
	buf_free(&body);
	return err;
}

static void tiny_sessions(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct daemon *d = arg;
	(void)req;
	if (ctl_row(c, json_pack("{s:s}", "node", d->node)) == 0)
		ctl_ok(c);
}

static const struct ctl_handler commands[] = {{"mqtt.sessions", tiny_sessions}, {NULL, NULL}};

static const struct daemon_info info = {
	.name = "tiny",
	.role = ROLE_BROKERD,
	.schemas = schemas,
	.commands = commands,
	.stats_rows = stats_rows,
	.n_stats_rows = ARRAY_LEN(stats_rows),
	.check = tiny_check,
	.init = tiny_init,
	.reload = tiny_reload,
	.drain = tiny_drain,
	.fini = tiny_fini,
	.on_peer = tiny_peer,
	.on_relay = tiny_relay,
};

/* ---- the supervisor ---- */

struct got {
	bool seen;
	uint32_t id;
	char text[512]; /* of HELLO, STATUS, RELOADED */
	uint32_t number;
	int n;
	int fd;
};

struct world {
	struct ev_loop *loop;
	struct imsg_channel *ch;
	pid_t pid;
	int log_fd; /* what it wrote to stderr and stdout */
	void *page;
	bool closed;
	struct got got[WORKER_MSG_LOG_LEVEL + 1];
	char log[65536];
};

static void take_body(struct imsg *msg, struct got *g)
{
	struct worker_hello hello;
	struct worker_reloaded verdict;
	struct worker_relay relay;
	char *text;
	switch (msg->type) {
	case WORKER_MSG_HELLO:
		assert_int_equal(worker_get_hello(&msg->body, &hello), 0);
		assert_int_equal(hello.version, WORKER_PROTO_VERSION);
		assert_int_equal(hello.role, ROLE_BROKERD);
		snprintf(g->text, sizeof(g->text), "%s", hello.build);
		worker_free_hello(&hello);
		break;
	case WORKER_MSG_STATUS:
		assert_int_equal(worker_get_text(&msg->body, &text), 0);
		snprintf(g->text, sizeof(g->text), "%s", text);
		free(text);
		break;
	case WORKER_MSG_RELOADED:
		assert_int_equal(worker_get_reloaded(&msg->body, &verdict), 0);
		g->number = verdict.ok;
		snprintf(g->text, sizeof(g->text), "%s", verdict.text);
		worker_free_reloaded(&verdict);
		break;
	case WORKER_MSG_RELAY:
		assert_int_equal(worker_get_relay(&msg->body, &relay), 0);
		assert_int_equal(relay.role, ROLE_WALSTREAMD);
		assert_int_equal(relay.kind, RELAY_RING_ATTACH);
		g->number = rd_u8(&msg->body);
		g->fd = imsg_take_fd(msg, 0);
		break;
	default:
		assert_int_equal(worker_get_nothing(&msg->body), 0);
	}
	assert_int_equal(rd_end(&msg->body), 0);
}

static int on_message(struct imsg *msg, void *arg)
{
	struct world *w = arg;
	assert_in_range(msg->type, WORKER_MSG_HELLO, WORKER_MSG_RELAY);
	assert_int_equal(msg->generation, GENERATION);
	struct got *g = &w->got[msg->type];
	take_body(msg, g);
	g->seen = true;
	g->n++;
	g->id = msg->id;
	return 0;
}

static void on_closed(int err, void *arg)
{
	struct world *w = arg;
	(void)err;
	w->closed = true;
	imsg_close(&w->ch);
}

static const struct imsg_ops ops = {.on_message = on_message, .on_closed = on_closed};

/* Runs this program as the daemon, with a world around it that a supervisor would give it. */
static void spawn(struct world *w)
{
	int sv[2], log_pipe[2], page_fd;
	memset(w, 0, sizeof(*w));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(pipe2(log_pipe, O_CLOEXEC), 0);
	assert_int_equal(proc_memfd("page", STATS_PAGE_BYTES, &page_fd), 0);
	w->page = mmap(NULL, STATS_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0);
	assert_ptr_not_equal(w->page, MAP_FAILED);
	w->pid = fork();
	if (w->pid == 0) {
		char generation[16];
		snprintf(generation, sizeof(generation), "%d", GENERATION);
		setenv(WORKER_ENV_GENERATION, generation, 1);
		/* High first: 3 and 4 may be among those that we still need. */
		int imsg = fcntl(sv[1], F_DUPFD, 100), page = fcntl(page_fd, F_DUPFD, 100);
		dup2(log_pipe[1], STDERR_FILENO);
		dup2(log_pipe[1], STDOUT_FILENO);
		dup2(imsg, WORKER_FD_IMSG);
		dup2(page, WORKER_FD_PAGE);
		execl("/proc/self/exe", "tiny", "--daemon", "-D", "/data", (char *)NULL);
		_exit(127);
	}
	close(sv[1]);
	close(log_pipe[1]);
	close(page_fd);
	w->log_fd = log_pipe[0];
	w->loop = ev_loop_new();
	w->ch = imsg_open(w->loop, sv[0], GENERATION, &ops, w);
}

/* Until a message of this type came n times, or the end. */
static void wait_for_n(struct world *w, uint32_t type, int n)
{
	uint64_t until = ev_now_ms() + WAIT_MS;
	while (w->got[type].n < n && !w->closed && ev_now_ms() < until) {
		ev_loop_once(w->loop, false);
		poll(NULL, 0, 1);
	}
	if (w->got[type].n < n)
		fail_msg("no %s", worker_msg_str(type));
}

static void wait_for(struct world *w, uint32_t type)
{
	wait_for_n(w, type, w->got[type].n + 1);
}

static void wait_for_status(struct world *w, const char *text)
{
	uint64_t until = ev_now_ms() + WAIT_MS;
	while (strcmp(w->got[WORKER_MSG_STATUS].text, text) != 0 && !w->closed &&
		ev_now_ms() < until) {
		ev_loop_once(w->loop, false);
		poll(NULL, 0, 1);
	}
	assert_string_equal(w->got[WORKER_MSG_STATUS].text, text);
}

/* Its exit status; -signal if it was killed. Everything is given back. */
static int finish(struct world *w)
{
	struct pollfd p = {.fd = w->log_fd, .events = POLLIN};
	size_t at = 0;
	/* The pipe ends with the process. */
	while (poll(&p, 1, WAIT_MS) > 0) {
		ssize_t n = read(w->log_fd, w->log + at, sizeof(w->log) - 1 - at);
		if (n <= 0)
			break;
		at += (size_t)n;
	}
	int status = 0;
	assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
	for (int i = 0; i < 10; i++)
		ev_loop_once(w->loop, false);
	imsg_close(&w->ch);
	ev_loop_free(&w->loop);
	munmap(w->page, STATS_PAGE_BYTES);
	close(w->log_fd);
	assert_int_equal(mem_report(NULL, NULL), 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void tell(struct world *w, uint32_t type, uint32_t id, const struct buf *body, int fd)
{
	assert_int_equal(imsg_send(w->ch, type, id, body, &fd, fd >= 0 ? 1 : 0), 0);
}

static void tell_text(struct world *w, uint32_t type, uint32_t id, const char *text, int fd)
{
	struct buf b;
	buf_init(&b, IMSG_BODY_MAX);
	worker_put_text(&b, text);
	tell(w, type, id, &b, fd);
	buf_free(&b);
}

static int memfd_of(const char *text)
{
	int fd;
	assert_int_equal(proc_memfd_sealed("config", text, strlen(text), &fd), 0);
	return fd;
}

static void tell_config(struct world *w, const char *text)
{
	char s[6][8] = {"alpha", "i1", "/state", "/run", "howdah", "debug"};
	const struct worker_config m = {s[0], s[1], s[2], s[3], s[4], s[5], 5};
	struct buf b;
	int fd = memfd_of(text);
	buf_init(&b, IMSG_BODY_MAX);
	worker_put_config(&b, &m);
	tell(w, WORKER_MSG_CONFIG, 0, &b, fd);
	buf_free(&b);
	close(fd);
}

static void tell_reload(struct world *w, uint32_t id, const char *text)
{
	int fd = memfd_of(text);
	assert_int_equal(lseek(fd, 3, SEEK_SET), 3);
	tell_text(w, WORKER_MSG_RELOAD, id, "info", fd);
	wait_for(w, WORKER_MSG_RELOADED);
	/* Other workers read the same open file now: none of them may move its offset. */
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 3);
	close(fd);
	assert_int_equal(w->got[WORKER_MSG_RELOADED].id, id);
}

/* Through all of its birth. */
static void bring_up(struct world *w, const char *config)
{
	spawn(w);
	wait_for(w, WORKER_MSG_HELLO);
	assert_string_equal(w->got[WORKER_MSG_HELLO].text, HOWDAH_VERSION);
	tell_config(w, config);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	tell_text(w, WORKER_MSG_LISTENER, 0, "mqtt://127.0.0.1:1883", fd);
	close(fd);
	tell(w, WORKER_MSG_START, 0, NULL, -1);
}

static void test_life(void **state)
{
	struct world w;
	(void)state;
	/* Other people's sections and keys are not looked at. */
	bring_up(&w, "node = \"x\"; other = { whatever = 1; }; tiny = { number = 3; };");
	wait_for(&w, WORKER_MSG_READY);
	assert_string_equal(w.got[WORKER_MSG_STATUS].text,
		"alpha i1 /state /run howdah /data 5 1 mqtt://127.0.0.1:1883");
	tell(&w, WORKER_MSG_PING, 77, NULL, -1);
	wait_for(&w, WORKER_MSG_PONG);
	assert_int_equal(w.got[WORKER_MSG_PONG].id, 77);

	struct buf b;
	const struct worker_peer peer = {ROLE_WALSTREAMD, true, 7};
	buf_init(&b, IMSG_BODY_MAX);
	worker_put_peer(&b, &peer);
	tell(&w, WORKER_MSG_PEER, 0, &b, -1);
	wait_for_status(&w, "peer walstreamd 1 7");

	const struct worker_relay relay = {ROLE_WALSTREAMD, RELAY_RING_ATTACH};
	int p[2];
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	buf_reset(&b);
	worker_put_relay(&b, &relay);
	buf_put_u8(&b, 41);
	tell(&w, WORKER_MSG_RELAY, 0, &b, p[1]);
	close(p[1]);
	wait_for(&w, WORKER_MSG_RELAY);
	assert_int_equal(w.got[WORKER_MSG_RELAY].number, 42);
	assert_int_equal(write(w.got[WORKER_MSG_RELAY].fd, "x", 1), 1);
	close(w.got[WORKER_MSG_RELAY].fd);
	char c;
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(read(p[0], &c, 1), 0); /* the daemon kept no copy */
	close(p[0]);
	buf_free(&b);

	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	wait_for_status(&w, "finished"); /* drain, then fini, and both reached us */
	assert_int_equal(finish(&w), 0);
	assert_null(strstr(w.log, "mem.leak"));
}

static void count_row(const struct stats_value *v, void *arg)
{
	if (strcmp(v->name, "inits") == 0 && v->value == 1)
		++*(int *)arg;
}

static void test_statistics_and_control(void **state)
{
	struct world w;
	int n = 0, sv[2];
	char text[256] = {0};
	(void)state;
	bring_up(&w, "tiny = { behave = \"late\"; };");
	wait_for(&w, WORKER_MSG_READY);
	assert_int_equal(stats_read(w.page, count_row, &n), 0);
	assert_int_equal(n, 1);

	char line[] = "{\"cmd\":\"mqtt.sessions\",\"id\":5,\"v\":1}";
	const struct worker_control m = {line, geteuid()};
	struct buf b;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	buf_init(&b, IMSG_BODY_MAX);
	worker_put_control(&b, &m);
	tell(&w, WORKER_MSG_CONTROL, 0, &b, sv[1]);
	buf_free(&b);
	close(sv[1]);
	struct pollfd p = {.fd = sv[0], .events = POLLIN};
	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
	assert_true(read(sv[0], text, sizeof(text) - 1) > 0);
	assert_string_equal(
		text, "{\"id\":5,\"row\":{\"node\":\"alpha\"}}\n{\"id\":5,\"ok\":true}\n");
	/* A client that stays does not keep the daemon from stopping. */
	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	assert_int_equal(finish(&w), 0);
	close(sv[0]);
	assert_null(strstr(w.log, "mem.leak"));
}

static void test_reload(void **state)
{
	struct world w;
	(void)state;
	bring_up(&w, "tiny = { number = 1; };");
	wait_for(&w, WORKER_MSG_READY);
	tell_reload(&w, 11, "tiny = { number = 2; };");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 1);
	assert_string_equal(w.got[WORKER_MSG_STATUS].text, "number 1 -> 2");
	/* Refused by the schema, by the cross-check, by the daemon, by the syntax: the old one
	 * stays. */
	tell_reload(&w, 12, "tiny = { number = 11; nmber = 3; };");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 0);
	assert_non_null(strstr(w.got[WORKER_MSG_RELOADED].text, "tiny.number"));
	assert_non_null(strstr(w.got[WORKER_MSG_RELOADED].text, "nmber"));
	tell_reload(&w, 13, "tiny = { number = 9; };");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 0);
	assert_non_null(strstr(w.got[WORKER_MSG_RELOADED].text, "nine is taken"));
	tell_reload(&w, 14, "tiny = { number = 8; };");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 0);
	assert_string_equal(w.got[WORKER_MSG_RELOADED].text, "eight is not to be had");
	tell_reload(&w, 15, "tiny = { number = ");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 0);
	tell_reload(&w, 16, "tiny = { number = 4; };");
	assert_int_equal(w.got[WORKER_MSG_RELOADED].number, 1);
	assert_string_equal(w.got[WORKER_MSG_STATUS].text, "number 2 -> 4");
	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	assert_int_equal(finish(&w), 0);
	assert_null(strstr(w.log, "mem.leak"));
}

static int fate(const char *config, struct world *w)
{
	bring_up(w, config);
	return finish(w);
}

static void test_ends_of_init(void **state)
{
	struct world w;
	(void)state;
	assert_int_equal(fate("tiny = { behave = \"config\"; };", &w), EXIT_CONFIG);
	assert_false(w.got[WORKER_MSG_READY].seen);
	assert_int_equal(fate("tiny = { behave = \"fail\"; };", &w), 1);
	assert_non_null(strstr(w.log, "daemon.init"));
	assert_int_equal(fate("tiny = { behave = \"exit\"; };", &w), EXIT_CONFIG);
	assert_string_equal(w.got[WORKER_MSG_STATUS].text, "finished");
	/* Findings, all of them, in the log. */
	assert_int_equal(fate("tiny = { number = 11; nmber = 3; };", &w), EXIT_CONFIG);
	assert_non_null(strstr(w.log, "tiny.number"));
	assert_non_null(strstr(w.log, "nmber"));
	assert_int_equal(fate("tiny = { number = 9; };", &w), EXIT_CONFIG);
	assert_non_null(strstr(w.log, "nine is taken"));
}

static void test_stop_before_ready(void **state)
{
	struct world w;
	(void)state;
	spawn(&w);
	wait_for(&w, WORKER_MSG_HELLO);
	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	assert_int_equal(finish(&w), 0);
	bring_up(&w, "tiny = { behave = \"never\"; };");
	wait_for(&w, WORKER_MSG_STATUS);
	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	wait_for_status(&w, "finished");
	assert_int_equal(finish(&w), 0);
	assert_null(strstr(w.log, "mem.leak"));
}

static void test_supervisor_gone(void **state)
{
	struct world w;
	(void)state;
	bring_up(&w, "");
	wait_for(&w, WORKER_MSG_READY);
	imsg_close(&w.ch);
	assert_int_equal(finish(&w), 0);
	assert_non_null(strstr(w.log, "daemon.orphaned"));
	assert_null(strstr(w.log, "mem.leak"));
}

static void test_signals(void **state)
{
	struct world w;
	(void)state;
	bring_up(&w, "");
	wait_for(&w, WORKER_MSG_READY);
	/* Ctrl-C and a hang-up go to the whole group: the supervisor decides. */
	kill(w.pid, SIGINT);
	kill(w.pid, SIGHUP);
	tell(&w, WORKER_MSG_PING, 1, NULL, -1);
	wait_for(&w, WORKER_MSG_PONG);
	kill(w.pid, SIGTERM);
	wait_for_status(&w, "finished");
	assert_int_equal(finish(&w), 0);
}

static void test_garbled(void **state)
{
	static const uint32_t types[] = {0, WORKER_MSG_HELLO, WORKER_MSG_READY, WORKER_MSG_CONFIG,
		WORKER_MSG_START, WORKER_MSG_LISTENER, WORKER_MSG_RELOAD, WORKER_MSG_CONTROL,
		WORKER_MSG_PEER, WORKER_MSG_RELAY, WORKER_MSG_LOG_LEVEL, WORKER_MSG_LOG_LEVEL + 1,
		UINT32_MAX};
	struct world w;
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		bring_up(&w, "");
		wait_for(&w, WORKER_MSG_READY);
		tell(&w, types[i], 0, NULL, -1); /* wrong now, or a body that is missing */
		assert_int_equal(finish(&w), 1);
		assert_non_null(strstr(w.log, "daemon.channel"));
		assert_null(strstr(w.log, "mem.leak"));
	}
	/* START before there is a configuration. */
	spawn(&w);
	wait_for(&w, WORKER_MSG_HELLO);
	tell(&w, WORKER_MSG_START, 0, NULL, -1);
	assert_int_equal(finish(&w), 1);
	assert_non_null(strstr(w.log, "wrong time"));
}

static void test_leak_is_told(void **state)
{
	struct world w;
	(void)state;
	bring_up(&w, "tiny = { behave = \"leak\"; };");
	wait_for(&w, WORKER_MSG_READY);
	tell(&w, WORKER_MSG_STOP, 0, NULL, -1);
	(void)finish(&w); /* under a sanitizer it says so itself, by another status */
	assert_non_null(strstr(w.log, "mem.leak"));
	assert_non_null(strstr(w.log, "tiny daemon"));
}

/* By hand: options. Returns the exit status, output in text. */
static int run(const char *config, const char *option, char *text, size_t size)
{
	char path[] = "/tmp/howdah-tiny-XXXXXX";
	int fd = mkstemp(path), p[2], status = 0;
	assert_int_equal(write(fd, config, strlen(config)), strlen(config));
	close(fd);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pid_t pid = fork();
	if (pid == 0) {
		dup2(p[1], STDOUT_FILENO);
		dup2(p[1], STDERR_FILENO);
		unsetenv(WORKER_ENV_GENERATION);
		execl("/proc/self/exe", "tiny", "--daemon", option, "-c", path, (char *)NULL);
		_exit(127);
	}
	close(p[1]);
	memset(text, 0, size);
	for (size_t at = 0; at < size - 1;) {
		ssize_t n = read(p[0], text + at, size - 1 - at);
		if (n <= 0)
			break;
		at += (size_t)n;
	}
	close(p[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	unlink(path);
	return WEXITSTATUS(status);
}

static void test_options(void **state)
{
	char text[8192];
	(void)state;
	assert_int_equal(run("brokerd = { };\nnode = \"a\";", "-t", text, sizeof(text)), 0);
	assert_string_equal(text, "");
	assert_int_equal(run("tiny = {\n number = 12;\n nmber = 1;\n};", "-t", text, sizeof(text)),
		EXIT_CONFIG);
	assert_non_null(strstr(text, ":2: "));
	assert_non_null(strstr(text, ":3: "));
	assert_int_equal(run("tiny = { number = 9; };", "-t", text, sizeof(text)), EXIT_CONFIG);
	assert_non_null(strstr(text, "nine is taken"));
	/* Refused, and never opened: root may be asked to judge a stranger's file. */
	assert_int_equal(
		run("@include \"/proc/self/environ\"\n", "-t", text, sizeof(text)), EXIT_CONFIG);
	assert_non_null(strstr(text, ":1: "));
	assert_int_equal(run("", "-V", text, sizeof(text)), 0);
	assert_non_null(strstr(text, HOWDAH_VERSION));
	assert_int_equal(run("", "-h", text, sizeof(text)), 0);
	assert_non_null(strstr(text, "usage"));
	assert_int_equal(run("", "-x", text, sizeof(text)), 1);
	assert_int_equal(run("", "-D", text, sizeof(text)), 1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_life),
		cmocka_unit_test(test_statistics_and_control),
		cmocka_unit_test(test_reload),
		cmocka_unit_test(test_ends_of_init),
		cmocka_unit_test(test_stop_before_ready),
		cmocka_unit_test(test_supervisor_gone),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_garbled),
		cmocka_unit_test(test_leak_is_told),
		cmocka_unit_test(test_options),
	};
	if (argc > 1 && strcmp(argv[1], "--daemon") == 0)
		return daemon_main(&info, argc - 1, argv + 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
