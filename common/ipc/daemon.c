/* SPDX-License-Identifier: PostgreSQL */
/*
 * The skeleton of a worker: its phases, its side of the conversation with the supervisor, its end.
 *
 * Context: main thread of a worker process; one per process.
 *
 * State:
 *   GREETING --CONFIG--> CONFIGURED --START, init = 0--> RUNNING --STOP, EOF, SIGTERM--> DRAINING
 *     GREETING, CONFIGURED --STOP, EOF, SIGTERM--> exit 0    DRAINING --daemon_drained--> exit 0
 *     any --bad configuration, init = -ERR_CONFIG--> exit 78
 *     any --garbled message--> exit 1
 *
 * Invariants:
 *   1. d.conf is a snapshot that passed its schema and the daemon's check, from CONFIGURED on.
 *   2. fini runs exactly once if init returned 0, and never else.
 *   3. A message that is not possible in the present state is garbled: the supervisor and its
 *      workers are of one build.
 *
 * On crash: the supervisor sees EOF and SIGCHLD, and finds the ASSERT line in the panic slot.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libconfig.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/conf_text.h"
#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/daemon.h"

#define DAEMON_MAGIC 0x2b77d0c5U
#define DAEMON_FINDINGS_MAX 65536
#define DAEMON_CONFIG_MAX (1 << 20)
#define DAEMON_STATUS_MAX 512
#define DAEMON_LAST_WORDS_MS 1000
/* Without a supervisor nobody else ends a drain that hangs. */
#define DAEMON_ORPHAN_DRAIN_MS 60000
#define CONFIG_NAME "howdah.conf" /* in findings about text that came without a file name */

enum phase { PHASE_GREETING, PHASE_CONFIGURED, PHASE_RUNNING, PHASE_DRAINING, PHASE_ENDED };

struct daemon_run {
	uint32_t magic;
	enum phase phase;
	struct daemon d;
	struct imsg_channel *channel; /* NULL once the supervisor is gone */
	struct ctl_server *ctl;       /* from RUNNING on */
	struct ev_signal sigterm;
	struct ev_timer orphan_timer;
	struct conf *born; /* the snapshot that init saw; owned, may be d.conf */
	bool ready_sent;
	int exit_status;
	char status[DAEMON_STATUS_MAX];
	void *page;
};

static struct daemon_run *run_of(struct daemon *d)
{
	struct daemon_run *run = list_entry(d, struct daemon_run, d);
	OBJ_CHECK(run, DAEMON_MAGIC);
	return run;
}

/* ---- configuration ---- */

/* A sink for names: NULL-terminated, owned. */
struct names {
	char **v;
	size_t n;
};

static void names_add(struct names *names, const char *name)
{
	names->v = xrealloc(names->v, (names->n + 2) * sizeof(*names->v));
	names->v[names->n++] = xstrdup(name);
	names->v[names->n] = NULL;
}

static void names_free(struct names *names)
{
	for (size_t i = 0; i < names->n; i++)
		free(names->v[i]);
	free(names->v);
	*names = (struct names){0};
}

/* The schemas have a key of this name, or below it. */
static bool is_ours(const struct daemon_info *info, const char *name)
{
	size_t len = strlen(name);
	for (const struct conf_row *const *s = info->schemas; *s != NULL; s++) {
		for (const struct conf_row *row = *s; row->path != NULL; row++) {
			if (strncmp(row->path, name, len) == 0 &&
				(row->path[len] == '.' || row->path[len] == '\0'))
				return true;
		}
	}
	return false;
}

static void on_scan(enum conf_scan_what what, int line, void *arg)
{
	(void)line; /* conf_parse says where */
	if (what == CONF_SCAN_INCLUDE)
		*(bool *)arg = true;
}

/* Whatever stands at the top level of the text and is not ours belongs to somebody else. */
static void foreign_names(const struct daemon_info *info, const char *text, struct names *ret)
{
	config_t cfg;
	ret->v = xcalloc(1, sizeof(*ret->v));
	bool includes = false;
	conf_scan(text, on_scan, &includes);
	if (includes)
		return; /* libconfig would open the files; conf_parse refuses it anyway */
	config_init(&cfg);
	if (config_read_string(&cfg, text) == CONFIG_TRUE) {
		config_setting_t *root = config_root_setting(&cfg);
		for (int i = 0; i < config_setting_length(root); i++) {
			const char *name =
				config_setting_name(config_setting_get_elem(root, (unsigned)i));
			if (!is_ours(info, name))
				names_add(ret, name);
		}
	}
	config_destroy(&cfg);
}

/* Reads a whole file or memfd from its start. The memfd of a configuration is one open file for all
 * workers, which read it at the same time: its offset belongs to nobody. */
static int read_text(int fd, struct buf *text)
{
	for (;;) {
		uint8_t *room = buf_reserve(text, 16384);
		if (room == NULL)
			return -EFBIG;
		ssize_t n = pread(fd, room, 16384, (off_t)text->len_bytes);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return 0;
		buf_commit(text, (size_t)n);
	}
}

/* 0 and a snapshot that passed everything, or a negative code with findings, one per line. */
static int judge_config(const struct daemon_info *info, int fd, const char *name,
	struct conf **ret_conf, struct buf *findings)
{
	struct buf text;
	buf_init(&text, DAEMON_CONFIG_MAX + 16384);
	int err = read_text(fd, &text);
	if (err != 0) {
		buf_printf(findings, "%s: cannot read: %s\n", name, err_str(err));
		buf_free(&text);
		return err;
	}
	struct names foreign = {0};
	struct conf *conf = NULL;
	foreign_names(info, buf_cstr(&text), &foreign);
	err = conf_parse(buf_cstr(&text), name, info->schemas, (const char *const *)foreign.v,
		&conf, findings);
	names_free(&foreign);
	buf_free(&text);
	if (err == 0 && info->check != NULL)
		err = info->check(conf, findings);
	if (err != 0) {
		conf_free(&conf);
		return -ERR_CONFIG;
	}
	*ret_conf = conf;
	return 0;
}

/* `-t -c FILE`: findings to stdout, for whoever asked. */
static int test_config(const struct daemon_info *info, const char *file)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		printf("%s: cannot open: %s\n", file, err_str(errno));
		return EXIT_CONFIG;
	}
	struct buf findings;
	struct conf *conf = NULL;
	buf_init(&findings, DAEMON_FINDINGS_MAX);
	int err = judge_config(info, fd, file, &conf, &findings);
	(void)close(fd); /* was only read */
	fputs(buf_cstr(&findings), stdout);
	buf_free(&findings);
	conf_free(&conf);
	return err == 0 ? 0 : EXIT_CONFIG;
}

/* One log line per finding. */
static void log_findings(struct buf *findings)
{
	char *save = NULL;
	char *text = xstrdup(buf_cstr(findings));
	for (char *line = strtok_r(text, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save))
		log_error("config.finding", "%s", line);
	free(text);
}

/* ---- to the supervisor ---- */

static void run_send(struct daemon_run *run, uint32_t type, uint32_t id, const struct buf *body)
{
	if (run->channel == NULL)
		return;
	int err = imsg_send(run->channel, type, id, body, NULL, 0);
	if (err != 0)
		log_error("daemon.send", "cannot send %s to the supervisor: %s",
			worker_msg_str(type), err_str(err));
}

static void run_exit(struct daemon_run *run, int status)
{
	if (run->phase == PHASE_ENDED)
		return;
	run->exit_status = status;
	run->phase = PHASE_ENDED;
	ev_loop_stop(run->d.loop);
}

/* ---- the end ---- */

static void on_orphan_timeout(void *arg)
{
	struct daemon_run *run;
	OBJ_CAST(run, arg, DAEMON_MAGIC);
	log_warning("daemon.orphan", "not drained %d s after the supervisor went away, giving up",
		DAEMON_ORPHAN_DRAIN_MS / 1000);
	run_exit(run, 1);
}

static void run_drain(struct daemon_run *run)
{
	if (run->phase >= PHASE_DRAINING)
		return;
	bool running = run->phase == PHASE_RUNNING;
	if (!running || run->d.info->drain == NULL) {
		run_exit(run, 0);
		return;
	}
	run->phase = PHASE_DRAINING;
	run->d.info->drain(&run->d);
}

static void on_sigterm(int signo, void *arg)
{
	struct daemon_run *run;
	OBJ_CAST(run, arg, DAEMON_MAGIC);
	(void)signo; /* SIGTERM */
	run_drain(run);
}

static void on_channel_closed(int err, void *arg)
{
	struct daemon_run *run;
	OBJ_CAST(run, arg, DAEMON_MAGIC);
	imsg_close(&run->channel);
	if (err != 0) {
		log_error("daemon.channel", "cannot go on talking to the supervisor: %s",
			err_str(err));
		run_exit(run, 1);
		return;
	}
	log_warning("daemon.orphaned", "the supervisor is gone, finishing");
	ev_timer_start(&run->orphan_timer, DAEMON_ORPHAN_DRAIN_MS);
	run_drain(run);
}

/* ---- from the supervisor ---- */

static void set_level(const char *text)
{
	enum log_level level;
	if (log_level_parse(text, &level) == 0)
		log_set_level(level);
	else
		log_warning("daemon.log_level", "no such log level, ignoring");
}

static int on_config(struct daemon_run *run, struct imsg *msg)
{
	struct worker_config m;
	int fd = imsg_take_fd(msg, 0);
	int err = fd < 0 ? -ERR_MALFORMED : worker_get_config(&msg->body, &m);
	if (err != 0) {
		if (fd >= 0)
			(void)close(fd); /* was not even read */
		return err;
	}
	struct daemon *d = &run->d;
	d->node = m.node;
	d->instance = m.instance;
	d->state_dir = m.state_dir;
	d->run_dir = m.run_dir;
	d->user = m.user;
	d->enabled_roles = m.enabled_roles;
	set_level(m.log_level);
	free(m.log_level);

	struct buf findings;
	buf_init(&findings, DAEMON_FINDINGS_MAX);
	err = judge_config(d->info, fd, CONFIG_NAME, &d->conf, &findings);
	(void)close(fd); /* was only read */
	if (err == 0) {
		run->born = d->conf;
		run->phase = PHASE_CONFIGURED;
	} else {
		log_findings(&findings);
		run_exit(run, EXIT_CONFIG);
	}
	buf_free(&findings);
	return 0;
}

static int on_listener(struct daemon_run *run, struct imsg *msg)
{
	struct daemon *d = &run->d;
	char *url = NULL;
	int err = worker_get_text(&msg->body, &url);
	if (err != 0)
		return err;
	int fd = imsg_take_fd(msg, 0);
	if (fd < 0 || d->n_listeners == DAEMON_LISTENERS_MAX) {
		free(url);
		if (fd >= 0)
			(void)close(fd); /* a listener has nothing to lose */
		return fd < 0 ? -ERR_MALFORMED : -ERR_LIMIT;
	}
	d->listeners[d->n_listeners++] = (struct daemon_listener){.url = url, .fd = fd};
	return 0;
}

static int on_start(struct daemon_run *run, struct imsg *msg)
{
	struct daemon *d = &run->d;
	int err = worker_get_nothing(&msg->body);
	if (err != 0)
		return err;
	err = d->info->init != NULL ? d->info->init(d) : 0;
	if (err != 0) {
		if (err != -ERR_CONFIG)
			log_error("daemon.init", "cannot start: %s", err_str(err));
		run_exit(run, err == -ERR_CONFIG ? EXIT_CONFIG : 1);
		return 0;
	}
	run->ctl = ctl_server_new(d->loop, d->info->role, d->info->commands, geteuid(), NULL, d);
	/* init may have called daemon_exit: then fini is still due. */
	if (run->phase == PHASE_CONFIGURED)
		run->phase = PHASE_RUNNING;
	return 0;
}

static int on_ping(struct daemon_run *run, struct imsg *msg)
{
	int err = worker_get_nothing(&msg->body);
	if (err == 0)
		run_send(run, WORKER_MSG_PONG, msg->id, NULL);
	return err;
}

static void answer_reload(struct daemon_run *run, uint32_t id, bool ok, const char *text)
{
	struct buf body;
	char cut[4096]; /* the verdict is a message, and a message has a limit */
	(void)snprintf(cut, sizeof(cut), "%s", text);
	struct worker_reloaded m = {.ok = ok, .text = cut};
	buf_init(&body, IMSG_BODY_MAX);
	worker_put_reloaded(&body, &m);
	run_send(run, WORKER_MSG_RELOADED, id, &body);
	buf_free(&body);
}

static void add_change(const char *path, enum conf_reload reload, void *arg)
{
	if (reload != CONF_LIVE)
		buf_printf(arg, "%s:%s ", reload == CONF_WORKER ? "worker" : "suite", path);
}

/* The snapshot takes effect, or the present one stays and *why says why. Keys that wait for a
 * restart are added to pending. */
static int take_snapshot(
	struct daemon_run *run, struct conf *next, const char **why, struct buf *pending)
{
	struct daemon *d = &run->d;
	*why = "this worker takes changes by a restart only; use pgctl worker restart";
	if (d->info->reload == NULL || d->info->reload(d, next, why) != 0) {
		conf_free(&next);
		return -ERR_CONFIG;
	}
	/* What needs a restart is what differs from the values at its birth, whichever reload
	 * brought it; and a reload that is taken back needs none. */
	conf_changes(run->born, next, add_change, pending);
	struct conf *old = d->conf;
	d->conf = next;
	if (old != run->born)
		conf_free(&old);
	return 0;
}

static int on_reload(struct daemon_run *run, struct imsg *msg)
{
	char *level = NULL;
	int err = worker_get_text(&msg->body, &level);
	if (err != 0)
		return err;
	int fd = imsg_take_fd(msg, 0);
	if (fd < 0) {
		free(level);
		return -ERR_MALFORMED;
	}
	struct buf findings;
	struct conf *next = NULL;
	const char *why = "it is stopping";
	buf_init(&findings, DAEMON_FINDINGS_MAX);
	err = -ERR_STATE;
	if (run->phase == PHASE_RUNNING) {
		err = judge_config(run->d.info, fd, CONFIG_NAME, &next, &findings);
		why = buf_cstr(&findings);
		if (err == 0)
			err = take_snapshot(run, next, &why, &findings);
	}
	if (err == 0)
		set_level(level);
	answer_reload(run, msg->id, err == 0, err == 0 ? buf_cstr(&findings) : why);
	buf_free(&findings);
	free(level);
	(void)close(fd); /* was only read */
	return 0;
}

static int on_stop(struct daemon_run *run, struct imsg *msg)
{
	int err = worker_get_nothing(&msg->body);
	if (err == 0)
		run_drain(run);
	return err;
}

static int on_peer(struct daemon_run *run, struct imsg *msg)
{
	struct worker_peer m;
	int err = worker_get_peer(&msg->body, &m);
	if (err == 0 && run->d.info->on_peer != NULL)
		run->d.info->on_peer(&run->d, m.role, m.up, m.generation);
	return err;
}

static int on_control(struct daemon_run *run, struct imsg *msg)
{
	struct worker_control m;
	int err = worker_get_control(&msg->body, &m);
	if (err != 0)
		return err;
	int fd = imsg_take_fd(msg, 0);
	if (fd >= 0)
		ctl_server_adopt(run->ctl, fd, m.uid, m.line);
	worker_free_control(&m);
	return fd < 0 ? -ERR_MALFORMED : 0;
}

static int on_log_level(struct daemon_run *run, struct imsg *msg)
{
	char *level = NULL;
	(void)run; /* the log is the process's */
	int err = worker_get_text(&msg->body, &level);
	if (err != 0)
		return err;
	set_level(level);
	free(level);
	return 0;
}

static int on_relay(struct daemon_run *run, struct imsg *msg)
{
	struct worker_relay m;
	int err = worker_get_relay(&msg->body, &m);
	if (err != 0 || run->d.info->on_relay == NULL)
		return err;
	return run->d.info->on_relay(&run->d, m.role, m.kind, msg);
}

/* In which phases a message may come, and who takes it. */
static const struct {
	int (*fn)(struct daemon_run *run, struct imsg *msg);
	enum phase first, last;
} messages[] = {
	[WORKER_MSG_CONFIG] = {on_config, PHASE_GREETING, PHASE_GREETING},
	[WORKER_MSG_LISTENER] = {on_listener, PHASE_CONFIGURED, PHASE_CONFIGURED},
	[WORKER_MSG_START] = {on_start, PHASE_CONFIGURED, PHASE_CONFIGURED},
	[WORKER_MSG_PING] = {on_ping, PHASE_GREETING, PHASE_DRAINING},
	[WORKER_MSG_RELOAD] = {on_reload, PHASE_RUNNING, PHASE_DRAINING},
	[WORKER_MSG_STOP] = {on_stop, PHASE_GREETING, PHASE_DRAINING},
	[WORKER_MSG_PEER] = {on_peer, PHASE_RUNNING, PHASE_DRAINING},
	[WORKER_MSG_CONTROL] = {on_control, PHASE_RUNNING, PHASE_DRAINING},
	[WORKER_MSG_LOG_LEVEL] = {on_log_level, PHASE_GREETING, PHASE_DRAINING},
	[WORKER_MSG_RELAY] = {on_relay, PHASE_RUNNING, PHASE_DRAINING},
};

static int on_message(struct imsg *msg, void *arg)
{
	struct daemon_run *run;
	OBJ_CAST(run, arg, DAEMON_MAGIC);
	if (run->phase == PHASE_ENDED)
		return 0; /* the process is on its way out: whatever it is, it is too late */
	if (msg->type >= ARRAY_LEN(messages) || messages[msg->type].fn == NULL)
		return -ERR_MALFORMED;
	if (run->phase < messages[msg->type].first || run->phase > messages[msg->type].last) {
		log_error("daemon.state", "%s from the supervisor at the wrong time",
			worker_msg_str(msg->type));
		return -ERR_STATE;
	}
	return messages[msg->type].fn(run, msg);
}

/* ---- what the daemon calls ---- */

void daemon_ready(struct daemon *d)
{
	struct daemon_run *run = run_of(d);
	if (run->ready_sent)
		return;
	run->ready_sent = true;
	run_send(run, WORKER_MSG_READY, 0, NULL);
}

void daemon_drained(struct daemon *d)
{
	run_exit(run_of(d), 0);
}

void daemon_exit(struct daemon *d, int status)
{
	run_exit(run_of(d), status);
}

void daemon_status(struct daemon *d, const char *fmt, ...)
{
	struct daemon_run *run = run_of(d);
	char text[DAEMON_STATUS_MAX];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap); /* a cut line is a line */
	va_end(ap);
	for (char *p = text; *p != '\0'; p++) {
		if (*p == '\n')
			*p = ' ';
	}
	if (strcmp(text, run->status) == 0)
		return;
	memcpy(run->status, text, sizeof(text));
	struct buf body;
	buf_init(&body, IMSG_BODY_MAX);
	worker_put_text(&body, text);
	run_send(run, WORKER_MSG_STATUS, 0, &body);
	buf_free(&body);
}

int daemon_relay(struct daemon *d, uint32_t to_role, uint32_t kind, const struct buf *body,
	const int *fds, size_t n_fds)
{
	struct daemon_run *run = run_of(d);
	if (run->channel == NULL)
		return -ERR_CLOSED;
	struct buf whole;
	const struct worker_relay head = {.role = to_role, .kind = kind};
	buf_init(&whole, IMSG_BODY_MAX);
	worker_put_relay(&whole, &head);
	if (body != NULL)
		buf_put(&whole, body->data, body->len_bytes);
	int err = imsg_send(run->channel, WORKER_MSG_RELAY, 0, &whole, fds, n_fds);
	buf_free(&whole);
	return err;
}

/* ---- phases ---- */

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg; /* the log is enough */
	log_warning("mem.leak", "%lld objects of type %s still allocated at exit", (long long)count,
		name);
}

/* The fixed descriptors are there and are what they should be. */
static int attach_supervisor(struct daemon_run *run)
{
	static const struct imsg_ops ops = {
		.on_message = on_message, .on_closed = on_channel_closed};
	struct stat st;
	const char *text = getenv(WORKER_ENV_GENERATION);
	if (text == NULL || fstat(WORKER_FD_IMSG, &st) != 0 || !S_ISSOCK(st.st_mode) ||
		fstat(WORKER_FD_PAGE, &st) != 0 || st.st_size < STATS_PAGE_BYTES)
		return -ERR_STATE;
	run->d.generation = (uint32_t)strtoul(text, NULL, 10);
	proc_close_from(WORKER_FD_PAGE + 1);
	(void)fcntl(WORKER_FD_IMSG, F_SETFD, FD_CLOEXEC); /* cannot fail: both are open */
	(void)fcntl(WORKER_FD_PAGE, F_SETFD, FD_CLOEXEC);
	run->page =
		mmap(NULL, STATS_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, WORKER_FD_PAGE, 0);
	if (run->page == MAP_FAILED)
		return -errno;
	(void)close(WORKER_FD_PAGE); /* the mapping stays */
	log_set_panic_slot(stats_panic_slot(run->page), STATS_PANIC_BYTES);
	run->d.stats = stats_new(run->page, run->d.info->stats_rows, run->d.info->n_stats_rows);
	run->d.loop = ev_loop_new();
	run->channel = imsg_open(run->d.loop, WORKER_FD_IMSG, run->d.generation, &ops, run);
	return 0;
}

static void greet(struct daemon_run *run)
{
	struct buf body;
	char build[] = HOWDAH_VERSION;
	const struct worker_hello m = {
		.version = WORKER_PROTO_VERSION, .build = build, .role = run->d.info->role};
	buf_init(&body, IMSG_BODY_MAX);
	worker_put_hello(&body, &m);
	run_send(run, WORKER_MSG_HELLO, 0, &body);
	buf_free(&body);
}

/* Gives back everything, so that what is still counted afterwards was forgotten by somebody. */
static void run_free(struct daemon_run *run)
{
	struct daemon *d = &run->d;
	/* The server exists from init's success on; its clients may hold parts of the daemon. */
	if (run->ctl != NULL) {
		ctl_server_free(&run->ctl);
		if (d->info->fini != NULL)
			d->info->fini(d);
	}
	ev_timer_stop(&run->orphan_timer);
	ev_signal_stop(&run->sigterm);
	if (run->channel != NULL) {
		imsg_flush(run->channel, DAEMON_LAST_WORDS_MS);
		imsg_close(&run->channel);
	}
	for (size_t i = 0; i < d->n_listeners; i++) {
		free(d->listeners[i].url);
		if (d->listeners[i].fd >= 0)
			(void)close(d->listeners[i].fd); /* the supervisor keeps its own */
	}
	ev_loop_free(&d->loop);
	if (d->conf != run->born)
		conf_free(&run->born);
	conf_free(&d->conf);
	stats_free(&d->stats);
	free(d->node);
	free(d->instance);
	free(d->state_dir);
	free(d->run_dir);
	free(d->user);
	(void)mem_report(on_leak, NULL); /* every type has said its line */
}

static int serve(const struct daemon_info *info, const char *datadir)
{
	static struct daemon_run run;
	run.magic = DAEMON_MAGIC;
	run.d.info = info;
	run.d.datadir = datadir;
	if (attach_supervisor(&run) != 0) {
		fprintf(stderr, "%s: is started by howdahd, not by hand; see %s -h\n", info->name,
			info->name);
		return 1;
	}
	proc_allow_core();
	(void)proc_raise_nofile(); /* what is possible is possible */
	/* Ctrl-C goes to the whole group: the supervisor alone decides who stops when. */
	(void)signal(SIGINT, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	ev_timer_init(&run.orphan_timer, run.d.loop, "orphan", on_orphan_timeout, &run);
	ev_signal_start(&run.sigterm, run.d.loop, SIGTERM, on_sigterm, &run);
	greet(&run);
	ev_loop_run(run.d.loop);
	run_free(&run);
	return run.exit_status;
}

static void usage(const struct daemon_info *info, FILE *out)
{
	fprintf(out,
		"%s is a worker of howdah; howdahd starts it.\n"
		"usage: %s [-D DATADIR]      run (descriptors 3 and 4 from howdahd)\n"
		"       %s -t -c FILE        judge its part of a configuration file\n"
		"       %s -V | -h           version, this text\n",
		info->name, info->name, info->name, info->name);
}

int daemon_main(const struct daemon_info *info, int argc, char **argv)
{
	const char *file = NULL, *datadir = HOWDAH_DATADIR;
	bool test = false;
	for (int opt; (opt = getopt(argc, argv, "c:D:htV")) != -1;) {
		switch (opt) {
		case 'c':
			file = optarg;
			break;
		case 'D':
			datadir = optarg;
			break;
		case 't':
			test = true;
			break;
		case 'V':
			printf("%s (howdah) %s\n", info->name, HOWDAH_VERSION);
			return 0;
		case 'h':
			usage(info, stdout);
			return 0;
		default:
			usage(info, stderr);
			return 1;
		}
	}
	if (optind != argc || (test && file == NULL)) {
		usage(info, stderr);
		return 1;
	}
	(void)umask(027);
	(void)signal(SIGPIPE, SIG_IGN);
	proc_fill_std_fds();
	log_init(info->name, LOG_LEVEL_INFO);
	return test ? test_config(info, file) : serve(info, datadir);
}
