/* SPDX-License-Identifier: PostgreSQL */
/*
 * The control socket: run_dir/control.sock, and the commands that the supervisor answers itself.
 * What belongs to a worker goes there together with the client's socket.
 *
 * Context: event thread of the supervisor. The statistics pages are written by workers, which are
 * not trusted here: stats_read bounds and copies everything. On crash: the socket file stays; the
 * next howdahd finds that nobody answers there and replaces it.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/stats.h"
#include "supervisor/supervisor.h"

#define CONTROL_FILE "control.sock"
#define CONTROL_BACKLOG 64

/* ---- status ---- */

static const char *or_empty(const char *text)
{
	return text != NULL ? text : "";
}

/* LSNs as PostgreSQL writes them. */
static json_t *value_json(const struct stats_value *v)
{
	char text[32];

	if (v->kind != STATS_LSN)
		return json_integer((json_int_t)v->value);
	snprintf(text, sizeof(text), "%" PRIX32 "/%" PRIX32, (uint32_t)(v->value >> 32),
		(uint32_t)v->value);
	return json_string(text);
}

/* A page that its worker has not laid out yet, or has spoilt, has no values. */
static void read_page(
	const struct worker *w, void (*fn)(const struct stats_value *v, void *arg), void *arg)
{
	int err = stats_read(w->page, fn, arg);

	if (err != 0)
		log_debug("control.page", "%s: statistics page: %s", w->info->name, err_str(err));
}

static void add_status_value(const struct stats_value *v, void *arg)
{
	json_t *row = arg;

	if (v->level == STATS_STATUS && json_object_get(row, v->name) == NULL)
		(void)json_object_set_new(row, v->name, value_json(v)); /* a bad name is left out */
}

static json_t *status_row_of_suite(const struct supervisor *s)
{
	static const char *const phases[] = {
		[SUPERVISOR_STARTING] = "STARTING",
		[SUPERVISOR_RUNNING] = "UP",
		[SUPERVISOR_STOPPING] = "STOPPING",
	};
	char text[sizeof(s->status)];

	supervisor_summary(s, text, sizeof(text));
	return json_pack("{s:s,s:s,s:i,s:i,s:i,s:s,s:I,s:s,s:i,s:s,s:s}", "worker", SUPERVISOR_NAME,
		"state", phases[s->phase], "pid", (int)getpid(), "restarts", 0, "deaths", 0,
		"last_exit", "", "uptime_s", (json_int_t)((ev_now_ms() - s->started_ms) / 1000),
		"text", text, "generation", 0, "last_assert", "", "core", "");
}

static json_t *status_row_of_worker(const struct worker *w)
{
	const struct death *d = worker_death(w);
	bool alive = w->pid != 0;
	char text[WORKER_TEXT_MAX];
	json_t *row;

	if (w->state == FSM_BACKOFF || w->state == FSM_THROTTLED)
		snprintf(text, sizeof(text), "starts again within %u ms", (unsigned)w->next_try_ms);
	else
		snprintf(text, sizeof(text), "%s", w->text);
	row = json_pack("{s:s,s:s,s:o,s:I,s:I,s:s,s:o,s:s,s:I,s:s,s:s}", "worker", w->info->name,
		"state", worker_state_str(w), "pid", alive ? json_integer(w->pid) : json_null(),
		"restarts", (json_int_t)(w->spawns > 0 ? w->spawns - 1 : 0), "deaths",
		(json_int_t)d->count, "last_exit", or_empty(d->last_exit), "uptime_s",
		alive ? json_integer((json_int_t)((ev_now_ms() - w->spawned_ms) / 1000))
		      : json_null(),
		"text", text, "generation", (json_int_t)w->generation, "last_assert",
		or_empty(d->last_assert), "core", or_empty(d->core));
	if (row != NULL && alive)
		read_page(w, add_status_value, row);
	return row;
}

static void cmd_status(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct supervisor *s = arg;

	(void)req;
	/* A handful of rows: below the client's mark, so no need to pause. */
	(void)ctl_row(c, status_row_of_suite(s));
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *w = s->workers[role];

		if ((s->settings->roles & 1U << role) != 0 || w->pid != 0)
			(void)ctl_row(c, status_row_of_worker(w));
	}
	ctl_ok(c);
}

/* ---- stats ---- */

struct stats_walk {
	struct ctl_client *client;
	const char *worker;
};

static void add_stats_row(const struct stats_value *v, void *arg)
{
	static const char *const kinds[] = {
		[STATS_COUNTER] = "counter", [STATS_GAUGE] = "gauge", [STATS_LSN] = "lsn"};
	struct stats_walk *walk = arg;
	const char *kind = (unsigned)v->kind < ARRAY_LEN(kinds) ? kinds[v->kind] : "?";
	json_t *row = json_pack("{s:s,s:s,s:o,s:s,s:s,s:s}", "worker", walk->worker, "name",
		v->name, "value", value_json(v), "unit", v->unit, "help", v->help, "kind", kind);

	/* At most 180 rows of one worker: bounded, so taken even beyond the mark. */
	if (row != NULL)
		(void)ctl_row(walk->client, row);
}

static void cmd_stats(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct supervisor *s = arg;
	const char *only = json_string_value(json_object_get(req->args, "worker"));
	enum role role;

	if (only != NULL && role_parse(only, &role) != 0) {
		ctl_fail(c, "not-found", "pgctl status lists the workers",
			"there is no such worker");
		return;
	}
	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		struct stats_walk walk = {.client = c, .worker = role_str(i)};

		if ((only == NULL || i == (uint32_t)role) && s->workers[i]->pid != 0)
			read_page(s->workers[i], add_stats_row, &walk);
	}
	ctl_ok(c);
}

/* ---- the others ---- */

static void cmd_reload(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req; /* no arguments */
	reload_start(arg, c);
}

static void cmd_worker_restart(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct supervisor *s = arg;
	const char *name = json_string_value(json_object_get(req->args, "name"));
	enum role role;

	if (name == NULL || role_parse(name, &role) != 0) {
		ctl_fail(c, "not-found", "pgctl status lists the workers",
			"there is no such worker");
	} else if (!supervisor_wants(s, role)) {
		ctl_fail(c, "invalid", "set enabled = true in its section, then pgctl reload",
			"%s is not enabled", role_str(role));
	} else {
		log_info("worker.restart", "%s: restart asked for", role_str(role));
		worker_event(s->workers[role], FSM_EV_RESTART);
		ctl_ok(c);
	}
}

static void cmd_log(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct supervisor *s = arg;
	const char *text = json_string_value(json_object_get(req->args, "level"));
	enum log_level level;

	if (text == NULL || log_level_parse(text, &level) != 0) {
		ctl_fail(c, "invalid", "error, warning, info or debug", "there is no such level");
		return;
	}
	log_set_level(level);
	s->host.log_level = log_level_str(level);
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		worker_send_log_level(s->workers[role], s->host.log_level);
	ctl_ok(c);
}

static void cmd_suite_info(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct supervisor *s = arg;

	(void)req;
	(void)ctl_row(c,
		json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:s}", "version", HOWDAH_VERSION,
			"node", s->host.node, "instance", s->place.instance, "user", s->place.user,
			"state_dir", s->place.state_dir, "run_dir", s->place.run_dir, "conf_file",
			s->options->conf_file, "libexecdir", s->options->libexecdir, "datadir",
			s->options->datadir, "mode", conf_str(s->settings->conf, "postgres.mode")));
	ctl_ok(c);
}

static const struct ctl_handler control_handlers[] = {
	{"status", cmd_status},
	{"stats", cmd_stats},
	{"reload", cmd_reload},
	{"worker.restart", cmd_worker_restart},
	{"log", cmd_log},
	{"suite.info", cmd_suite_info},
	{NULL, NULL},
};

static int route(
	uint32_t target, const char *line, int fd, uid_t uid, const char **ret_why, void *arg)
{
	static char why[128];
	struct supervisor *s = arg;
	struct worker *w = target < ROLE_COUNT ? s->workers[target] : NULL;
	int err;

	if (w == NULL || w->state != FSM_UP) {
		snprintf(why, sizeof(why), "%s is %s; pgctl status says why", role_str(target),
			w != NULL && (s->settings->roles & 1U << target) != 0 ? worker_state_str(w)
									      : "not enabled");
		*ret_why = why;
		return -ERR_STATE;
	}
	err = worker_send_control(w, line, uid, fd);
	if (err != 0) {
		snprintf(why, sizeof(why), "%s cannot be reached: %s", role_str(target),
			err_str(err));
		*ret_why = why;
		return err;
	}
	close(fd); /* the worker has its own copy */
	return 0;
}

static const struct ctl_server_ops control_ops = {.route = route};

/* ---- the socket ---- */

/* Does somebody answer there? */
static bool is_alive(const struct sockaddr_un *sun)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool alive;

	if (fd < 0)
		return false;
	alive = connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) == 0 || errno == EAGAIN;
	close(fd);
	return alive;
}

static int bind_socket(const struct supervisor *s, const struct sockaddr_un *sun)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), err;
	mode_t old;

	if (fd < 0)
		return -errno;
	(void)unlink(sun->sun_path); /* bind says if it is still there */
	old = umask(0117);           /* 0660 from its first moment */
	err = bind(fd, (const struct sockaddr *)sun, sizeof(*sun)) == 0 ? 0 : -errno;
	umask(old);
	if (err == 0 && geteuid() == 0 && lchown(sun->sun_path, 0, s->place.gid) != 0)
		err = -errno;
	if (err == 0 && listen(fd, CONTROL_BACKLOG) != 0)
		err = -errno;
	if (err != 0) {
		close(fd);
		return err;
	}
	return fd;
}

int control_open(struct supervisor *s)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd, n = snprintf(
			sun.sun_path, sizeof(sun.sun_path), "%s/" CONTROL_FILE, s->place.run_dir);

	if (n < 0 || (size_t)n >= sizeof(sun.sun_path)) {
		log_error("control.open",
			"run_dir %s is too long for a socket; choose a shorter one",
			s->place.run_dir);
		return -ERR_CONFIG;
	}
	if (is_alive(&sun)) {
		log_error("control.open",
			"another howdahd answers at %s; stop it, or give this one a "
			"run_dir of its own",
			sun.sun_path);
		return -ERR_STATE;
	}
	fd = bind_socket(s, &sun);
	if (fd < 0) {
		log_error("control.open", "cannot listen at %s: %s; mend the owner of run_dir",
			sun.sun_path, err_str(fd));
		return fd;
	}
	s->ctl = ctl_server_new(
		s->loop, ROLE_SUPERVISOR, control_handlers, s->place.uid, &control_ops, s);
	return ctl_server_listen(s->ctl, fd);
}

void control_close(struct supervisor *s)
{
	if (s->ctl == NULL)
		return;
	char *path = xasprintf("%s/" CONTROL_FILE, s->place.run_dir);

	ctl_server_free(&s->ctl);
	(void)unlink(path); /* a stale one is replaced anyway */
	free(path);
}
