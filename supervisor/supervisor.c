/* SPDX-License-Identifier: PostgreSQL */
/*
 * The supervisor's own life; supervisor.h has the picture.
 *
 * Context: the one thread of howdahd.
 *
 * Invariants:
 *   1. A worker is started only while it is wanted and all that it comes after have been UP.
 *   2. While stopping, a worker is told to stop only when those before it in the order are gone.
 *   3. Listeners are open from before the first worker until after the last.
 *
 * On crash (SIGKILL of howdahd): the workers see the end of their channels and finish; the sockets
 * are gone with us; the next howdahd finds the lock free, replaces the control socket, and the
 * postgres worker adopts or stops a database that is still there. See: tests/unit/test_fsm.c,
 * tests/system/test_supervisor.py.
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/base/sdnotify.h"
#include "supervisor/supervisor.h"

#define SUPERVISOR_MAGIC 0x5ce1a9b3U
#define EXTEND_EXTRA_MS 10000

/* ---- who runs ---- */

bool supervisor_wants(const struct supervisor *s, uint32_t role)
{
	return s->phase != SUPERVISOR_STOPPING && (s->settings->roles & 1U << role) != 0;
}

/* The roles that still keep this one from its first start. */
static uint32_t missing_before(const struct supervisor *s, uint32_t role)
{
	return role_info(role)->after & s->settings->roles & ~s->was_up;
}

static void start_wanted(struct supervisor *s)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *w = s->workers[role];

		if (!supervisor_wants(s, role)) {
			if (w->state != FSM_DOWN)
				worker_event(w, FSM_EV_STOP);
		} else if (w->state == FSM_DOWN) {
			uint32_t missing = missing_before(s, role);

			if (missing == 0)
				worker_event(w, FSM_EV_START);
			else
				snprintf(w->text, sizeof(w->text), "waits for %s",
					role_str((uint32_t)__builtin_ctz(missing)));
		}
	}
}

static void stop_next(struct supervisor *s)
{
	for (size_t i = 0; i < ARRAY_LEN(roles_stop_order); i++) {
		struct worker *w = s->workers[roles_stop_order[i]];
		uint32_t bit = 1U << roles_stop_order[i];
		bool hurry = s->hurry && (s->hurried & bit) == 0;

		if (w->state == FSM_DOWN)
			continue;
		if (hurry)
			s->hurried |= bit;
		worker_event(w, hurry ? FSM_EV_HURRY : FSM_EV_STOP);
		if (w->state != FSM_DOWN)
			return; /* invariant 2 */
	}
	ev_loop_stop(s->loop);
}

/* ---- what systemd hears ---- */

void supervisor_summary(const struct supervisor *s, char *out, size_t out_size)
{
	unsigned up = 0, wanted = 0;
	size_t len;

	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		if ((s->settings->roles & 1U << role) == 0)
			continue;
		wanted++;
		up += s->workers[role]->state == FSM_UP;
	}
	len = (size_t)snprintf(out, out_size, "%u of %u workers up", up, wanted);
	for (uint32_t role = 0; role < ROLE_COUNT && len < out_size; role++)
		if ((s->settings->roles & 1U << role) != 0 && s->workers[role]->state != FSM_UP)
			len += (size_t)snprintf(out + len, out_size - len, "; %s %s",
				role_str(role), worker_state_str(s->workers[role]));
}

/* Has every worker been UP, or failed once, or waits for one that failed? */
static bool start_is_over(const struct supervisor *s)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		uint32_t waits = missing_before(s, role);
		uint32_t settled = s->was_up | s->has_failed;

		if ((s->settings->roles & 1U << role) == 0 || (settled & 1U << role) != 0)
			continue;
		if (waits == 0 || (waits & s->has_failed) == 0)
			return false;
	}
	return true;
}

static void tell_systemd(struct supervisor *s)
{
	char text[sizeof(s->status)];

	supervisor_summary(s, text, sizeof(text));
	if (s->phase == SUPERVISOR_STARTING && start_is_over(s)) {
		s->phase = SUPERVISOR_RUNNING;
		sdnotify_ready();
		log_info("suite.ready", "started: %s", text);
	}
	if (strcmp(text, s->status) != 0) {
		memcpy(s->status, text, sizeof(text));
		sdnotify_status("%s%s", s->phase == SUPERVISOR_STOPPING ? "stopping: " : "", text);
	}
}

static void on_review(void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	reload_review(s);
	if (s->phase == SUPERVISOR_STOPPING)
		stop_next(s);
	else
		start_wanted(s);
	tell_systemd(s);
}

void supervisor_review(struct supervisor *s)
{
	ev_defer(s->loop, &s->review, on_review, s);
}

/* ---- what workers report ---- */

static void on_state(struct worker *w, enum fsm_state from, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	uint32_t bit = 1U << w->info->role;

	(void)from; /* the review looks at all states as they are */
	if (w->state == FSM_STOPPING && s->phase == SUPERVISOR_STOPPING)
		sdnotify_extend_timeout_ms(w->times->stop_ms + EXTEND_EXTRA_MS);
	if (w->state == FSM_UP)
		s->was_up |= bit;
	if (w->state == FSM_BACKOFF || w->state == FSM_THROTTLED || w->state == FSM_HELD)
		s->has_failed |= bit;
	supervisor_review(s);
}

static void on_progress(struct worker *w, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	if (s->phase == SUPERVISOR_STARTING)
		sdnotify_extend_timeout_ms(w->times->start_ms + EXTEND_EXTRA_MS);
}

static void on_announce(struct worker *w, bool up, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *other = s->workers[role];

		if (other == w || !other->announced)
			continue;
		worker_send_peer(other, w->info->role, up, w->generation);
		if (up)
			worker_send_peer(w, role, true, other->generation);
	}
}

static void on_verdict(struct worker *w, bool ok, const char *text, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	reload_on_verdict(s, w, ok, text);
}

static void on_relay(struct worker *w, uint32_t to, uint32_t kind, struct imsg *msg, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	if (s->workers[to]->announced)
		worker_send_relay(s->workers[to], w->info->role, kind, msg);
}

static const struct worker_ops worker_ops = {
	.on_state = on_state,
	.on_progress = on_progress,
	.on_announce = on_announce,
	.on_verdict = on_verdict,
	.on_relay = on_relay,
};

/* ---- signals ---- */

static void on_child(int signo, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	pid_t pid;
	int status;

	(void)signo; /* SIGCHLD */
	/* Strangers too: as pid 1 of a container we inherit them. */
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (uint32_t role = 0; role < ROLE_COUNT; role++)
			if (s->workers[role]->pid == pid && !s->workers[role]->reaped) {
				worker_reaped(s->workers[role], status);
				break;
			}
}

static void on_stop_signal(int signo, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	if (s->phase == SUPERVISOR_STOPPING) {
		s->hurry = true;
		log_warning("suite.hurry", "stopping faster: %s", strsignal(signo));
	} else {
		log_info("suite.stop", "stopping: %s", strsignal(signo));
		s->phase = SUPERVISOR_STOPPING;
		sdnotify_stopping();
		reload_cancel(s);
	}
	supervisor_review(s);
}

static void on_hup(int signo, void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	(void)signo; /* SIGHUP */
	reload_start(s, NULL);
}

static void on_watchdog(void *arg)
{
	struct supervisor *s;
	OBJ_CAST(s, arg, SUPERVISOR_MAGIC);
	sdnotify_watchdog();
	ev_timer_start(&s->watchdog, sdnotify_watchdog_interval_ms());
}

/* ---- start and end ---- */

static void log_findings(struct buf *findings)
{
	char *save = NULL, *text = xstrdup(buf_cstr(findings));

	for (char *line = strtok_r(text, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save))
		log_error("config.finding", "%s", line);
	free(text);
}

/* 0, or the exit status. */
static int open_settings(struct supervisor *s)
{
	struct buf errors;
	enum log_level level;
	int err;

	buf_init(&errors, 0);
	err = settings_load(s->options->conf_file, &s->settings, &errors);
	log_findings(&errors);
	buf_free(&errors);
	if (err != 0)
		return EXIT_CONFIG;
	s->host.log_level = conf_str(s->settings->conf, "log_level");
	if (log_level_parse(s->host.log_level, &level) == 0)
		log_set_level(level);
	return 0;
}

static int open_place(struct supervisor *s)
{
	char *why = NULL;
	const struct conf *conf = s->settings->conf;
	int err = place_open(&s->place, conf_str(conf, "state_dir"), conf_str(conf, "run_dir"),
		conf_str(conf, "user"), &why);

	if (err == 0)
		return 0;
	log_error("suite.place", "%s", why);
	free(why);
	return err == -ERR_CONFIG ? EXIT_CONFIG : 1;
}

static int open_listeners(struct supervisor *s)
{
	struct buf errors;
	int err;

	buf_init(&errors, 0);
	err = listeners_open(s->settings->conf, s->settings->roles, NULL, &s->listeners, &errors);
	log_findings(&errors);
	buf_free(&errors);
	return err == 0 ? 0 : 1;
}

static int open_workers(struct supervisor *s)
{
	int err = deaths_load(&s->host.deaths, s->place.state_dir);

	if (err != 0)
		log_warning("worker.deaths", "cannot read %s/deaths.json: %s, starting it anew",
			s->place.state_dir, err_str(err));
	s->host.loop = s->loop;
	s->host.libexecdir = s->options->libexecdir;
	s->host.datadir = s->options->datadir;
	s->host.place = &s->place;
	s->host.settings = s->settings;
	s->host.listeners = s->listeners;
	s->host.node = xstrdup(s->settings->node);
	s->host.ops = &worker_ops;
	s->host.arg = s;
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		s->workers[role] = worker_new(&s->host, role);
		if (s->workers[role] == NULL) {
			log_error("suite.memory", "cannot make the page of %s: too little memory",
				role_str(role));
			return 1;
		}
	}
	return 0;
}

static void watch_signals(struct supervisor *s)
{
	uint64_t interval = sdnotify_watchdog_interval_ms();
	sigset_t none;

	/* Who started us may have blocked some: deaths of workers would go unheard. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_IGN);
	ev_signal_start(&s->on_term, s->loop, SIGTERM, on_stop_signal, s);
	ev_signal_start(&s->on_int, s->loop, SIGINT, on_stop_signal, s);
	ev_signal_start(&s->on_hup, s->loop, SIGHUP, on_hup, s);
	ev_signal_start(&s->on_child, s->loop, SIGCHLD, on_child, s);
	if (interval != 0)
		ev_timer_start(&s->watchdog, interval);
}

static int supervisor_open(struct supervisor *s)
{
	int status = open_settings(s);

	if (status == 0)
		status = open_place(s);
	if (status == 0)
		status = open_listeners(s);
	if (status == 0)
		status = open_workers(s);
	if (status == 0 && control_open(s) != 0)
		status = 1;
	if (status == 0)
		watch_signals(s);
	return status;
}

static void supervisor_close(struct supervisor *s)
{
	control_close(s);
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		worker_free(&s->workers[role]);
	ev_signal_stop(&s->on_term);
	ev_signal_stop(&s->on_int);
	ev_signal_stop(&s->on_hup);
	ev_signal_stop(&s->on_child);
	ev_timer_stop(&s->watchdog);
	ev_timer_stop(&s->reload.timer);
	listeners_free(&s->listeners);
	ev_defer_cancel(s->loop, &s->review);
	ev_loop_free(&s->loop);
	deaths_free(&s->host.deaths);
	free((char *)(uintptr_t)s->host.node);
	place_close(&s->place);
	settings_free(&s->settings);
}

int supervisor_run(const struct supervisor_options *options)
{
	static struct supervisor sup;
	struct supervisor *s = &sup;
	int status;

	s->magic = SUPERVISOR_MAGIC;
	s->options = options;
	s->place.lock_fd = -1;
	s->loop = ev_loop_new();
	s->started_ms = ev_now_ms();
	ev_timer_init(&s->watchdog, s->loop, "watchdog", on_watchdog, s);
	reload_init(s);
	status = supervisor_open(s);
	if (status == 0) {
		log_info("suite.start", "howdah %s, node %s, state in %s", HOWDAH_VERSION,
			s->host.node, s->place.state_dir);
		if (options->started_fd >= 0 && write(options->started_fd, "", 1) != 1)
			log_warning("suite.start", "who started us does not wait any more");
		supervisor_review(s);
		ev_loop_run(s->loop);
		log_info("suite.stopped", "stopped");
	}
	supervisor_close(s);
	return status;
}
