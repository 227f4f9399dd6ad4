/* SPDX-License-Identifier: PostgreSQL */
/*
 * Reload: the new configuration takes effect everywhere or nowhere.
 *
 *     read and judge the file ─► open new listeners beside the old ─► ask every worker that is UP
 *        │ bad                      │ bad                               │ one says bad, or dies
 *        ▼                          ▼                                   ▼
 *     the old stays              the old stays        those that were asked get the old one again
 *                                                                       │ all say ok
 *                                                                       ▼
 *     the new becomes present: workers that wait or are HELD start with it; those whose listeners
 *     changed are restarted, as is walstreamd if its readers did; those that are not wanted any
 * more stop, new ones start
 *
 * Context: event thread of the supervisor. One reload at a time; a signal during one asks for
 * another. On crash: the next howdahd reads the file as it is then.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/sdnotify.h"
#include "supervisor/supervisor.h"

#define FINDINGS_MAX 65536

static void on_timeout(void *arg)
{
	struct supervisor *s = arg;

	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		if ((s->reload.waiting & 1U << role) != 0)
			buf_printf(&s->reload.findings, "%s: gives no answer\n", role_str(role));
	s->reload.waiting = 0;
	supervisor_review(s);
}

void reload_init(struct supervisor *s)
{
	ev_timer_init(&s->reload.timer, s->loop, "reload", on_timeout, s);
}

static void on_client_gone(struct ctl_client *c, void *arg)
{
	struct supervisor *s = arg;

	if (s->reload.client == c)
		s->reload.client = NULL;
}

/* ---- the answer ---- */

static void answer_row(
	struct supervisor *s, const char *worker, const char *verdict, const char *text)
{
	if (s->reload.client != NULL)
		(void)ctl_row(s->reload.client, /* a few rows: no need to pause */
			json_pack("{s:s,s:s,s:s}", "worker", worker, "verdict", verdict, "text",
				text));
}

/* Who found this line: "brokerd: …", else we did. */
static const char *finder(const char *line)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		size_t len = strlen(role_str(role));

		if (strncmp(line, role_str(role), len) == 0 && line[len] == ':')
			return role_str(role);
	}
	return SUPERVISOR_NAME;
}

static void answer_findings(struct supervisor *s)
{
	char *save = NULL, *text = xstrdup(buf_cstr(&s->reload.findings));

	for (char *line = strtok_r(text, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save)) {
		log_error("config.finding", "%s", line);
		answer_row(s, finder(line), "bad", line);
	}
	free(text);
}

static void reload_end(struct supervisor *s)
{
	struct reload *r = &s->reload;
	bool again = r->again && s->phase != SUPERVISOR_STOPPING;

	ev_timer_stop(&r->timer);
	settings_free(&r->next);
	listeners_free(&r->next_listeners);
	buf_free(&r->findings);
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		death_set(&r->pending[role], NULL);
	if (r->told && s->phase == SUPERVISOR_RUNNING)
		sdnotify_ready();
	s->status[0] = '\0'; /* systemd hears the summary again */
	r->running = r->again = r->told = false;
	r->client = NULL;
	r->asked = r->waiting = 0;
	supervisor_review(s);
	if (again)
		reload_start(s, NULL);
}

static void reload_refuse(struct supervisor *s)
{
	struct reload *r = &s->reload;
	const char *first = buf_cstr(&r->findings);

	/* Who has not answered yet may still take it: the old one follows behind. */
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		if ((r->asked & 1U << role) != 0 && s->workers[role]->state == FSM_UP)
			worker_offer(s->workers[role], s->settings, s->host.log_level);
	answer_findings(s);
	log_error("suite.reload", "reload refused, the old configuration stays in force");
	if (r->client != NULL)
		ctl_fail(r->client, "invalid", "mend what is listed, then pgctl reload",
			"the old configuration stays in force: %.*s", (int)strcspn(first, "\n"),
			first);
	reload_end(s);
}

/* ---- taking effect ---- */

/* Adds the KEYs among the words "KIND:KEY" of text to keys. */
static void take_keys(const char *text, const char *kind, struct buf *keys)
{
	size_t kind_len = strlen(kind);

	for (const char *p = text; p != NULL && *p != '\0'; p += strspn(p, " ")) {
		size_t len = strcspn(p, " ");

		if (len > kind_len && strncmp(p, kind, kind_len) == 0)
			buf_printf(keys, "%s%.*s", keys->len_bytes > 0 ? ", " : "",
				(int)(len - kind_len), p + kind_len);
		p += len;
	}
}

/* A worker is told at its birth which others there are; walstreamd waits for the acknowledgements
 * of those that read the ring, and lets in nobody else. */
static void add_company_keys(const struct supervisor *s, enum role role, struct buf *keys)
{
	uint32_t changed =
		s->reload.next->roles ^ s->settings->roles; /* next: the old ones by now */

	for (uint32_t i = 0; role == ROLE_WALSTREAMD && i < ROLE_COUNT; i++)
		if ((changed & 1U << i) != 0 && role_info(i)->reads_ring)
			buf_printf(keys, "%s%s.enabled", keys->len_bytes > 0 ? ", " : "",
				role_info(i)->name);
}

/* One worker and the configuration that is now in force. */
static void move_worker(struct supervisor *s, struct worker *w, bool same_listeners)
{
	const char *name = w->info->name;
	struct buf why;

	if (!supervisor_wants(s, w->info->role)) {
		if (fsm_has_process(w->state))
			answer_row(s, name, "ok", "stopped");
		return;
	}
	buf_init(&why, 0);
	if (!same_listeners)
		buf_printf(&why, "%s.listeners", name);
	else
		take_keys(s->reload.pending[w->info->role], "worker:", &why);
	add_company_keys(s, w->info->role, &why);
	if (why.len_bytes > 0 && fsm_has_process(w->state)) {
		worker_event(w, FSM_EV_RESTART);
		buf_put_text(&why, " changed: restarted");
		answer_row(s, name, "ok", buf_cstr(&why));
	} else if (w->state == FSM_UP && w->has == s->settings->serial) {
		answer_row(s, name, "ok", "taken");
	} else {
		bool down = w->state == FSM_DOWN;

		worker_offer(w, s->settings, s->host.log_level);
		if (!down)
			answer_row(s, name, "ok", "started with it");
	}
	buf_free(&why);
}

/* What only a new start of the whole suite would change. */
static void report_restart_keys(struct supervisor *s, const struct settings *old)
{
	struct buf keys;

	buf_init(&keys, 0);
	settings_restart_keys(old, s->settings, &keys);
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct buf more;
		char *save = NULL;

		buf_init(&more, 0);
		take_keys(s->reload.pending[role], "suite:", &more);
		for (char *key = strtok_r((char *)(uintptr_t)buf_cstr(&more), ", ", &save);
			key != NULL; key = strtok_r(NULL, ", ", &save))
			if (strstr(buf_cstr(&keys), key) == NULL) /* several workers read it */
				buf_printf(&keys, "%s%s", keys.len_bytes > 0 ? ", " : "", key);
		buf_free(&more);
	}
	if (keys.len_bytes > 0) {
		buf_put_text(&keys, ": takes effect when howdahd is started again");
		log_warning("suite.reload", "%s", buf_cstr(&keys));
		answer_row(s, SUPERVISOR_NAME, "restart", buf_cstr(&keys));
	}
	buf_free(&keys);
}

/* The new settings become the present ones; what was present is the caller's to free. */
static void swap_settings(struct supervisor *s)
{
	struct reload *r = &s->reload;
	struct settings *settings = s->settings;
	struct listener_set *listeners = s->listeners;
	enum log_level level;

	s->host.settings = s->settings = r->next;
	s->host.listeners = s->listeners = r->next_listeners;
	r->next = settings;
	r->next_listeners = listeners;
	s->host.log_level = conf_str(s->settings->conf, "log_level");
	if (log_level_parse(s->host.log_level, &level) == 0)
		log_set_level(level);
}

static void reload_commit(struct supervisor *s)
{
	struct reload *r = &s->reload;

	swap_settings(s);
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		move_worker(
			s, s->workers[role], listeners_same(r->next_listeners, s->listeners, role));
	report_restart_keys(s, r->next);
	log_info("suite.reload", "reloaded");
	if (r->client != NULL)
		ctl_ok(r->client);
	reload_end(s);
}

/* ---- asking ---- */

static void ask_workers(struct supervisor *s)
{
	struct reload *r = &s->reload;
	uint32_t longest = 0;

	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		struct worker *w = s->workers[role];

		if (w->state != FSM_UP || (r->next->roles & 1U << role) == 0)
			continue;
		r->asked |= 1U << role;
		if (w->times->reload_ms > longest)
			longest = w->times->reload_ms;
		worker_offer(w, r->next, conf_str(r->next->conf, "log_level"));
	}
	r->waiting = r->asked;
	if (r->waiting != 0)
		ev_timer_start(&r->timer, longest);
	supervisor_review(s);
}

/* A worker that is restarted for another key, or dies, would go to the other database alone. */
static int check_mode(struct supervisor *s)
{
	const char *is = conf_str(s->settings->conf, "postgres.mode");
	const char *next = conf_str(s->reload.next->conf, "postgres.mode");

	if (strcmp(is, next) == 0)
		return 0;
	buf_printf(&s->reload.findings,
		"postgres.mode: cannot change from \"%s\" to \"%s\" while the suite runs; stop "
		"howdahd and start it again\n",
		is, next);
	return -ERR_CONFIG;
}

void reload_start(struct supervisor *s, struct ctl_client *client)
{
	struct reload *r = &s->reload;
	int err;

	if (s->phase == SUPERVISOR_STOPPING || r->running) {
		if (client != NULL)
			ctl_fail(client, "busy", "try again in a few seconds", "%s",
				r->running ? "a reload is in progress" : "the suite stops");
		else
			r->again = r->running;
		return;
	}
	log_info("suite.reload", "reading %s", s->options->conf_file);
	r->told = s->phase == SUPERVISOR_RUNNING;
	if (r->told)
		sdnotify_reloading();
	r->running = true;
	r->client = client;
	if (client != NULL)
		ctl_hold(client, NULL, on_client_gone, s);
	buf_init(&r->findings, FINDINGS_MAX);
	err = settings_load(s->options->conf_file, &r->next, &r->findings);
	if (err == 0)
		err = check_mode(s);
	if (err == 0)
		err = listeners_open(r->next->conf, r->next->roles, s->listeners,
			&r->next_listeners, &r->findings);
	if (err == 0)
		ask_workers(s);
	else
		reload_refuse(s);
}

/* The answer to being given the present configuration, again or late. */
static void on_late_verdict(struct supervisor *s, struct worker *w, bool ok, const char *text)
{
	struct buf keys;

	if (!ok) {
		log_error("suite.reload",
			"%s: runs with an older configuration, since it refuses the present one: "
			"%s; mend it and reload",
			w->info->name, text);
		return;
	}
	buf_init(&keys, 0);
	take_keys(text, "worker:", &keys);
	if (keys.len_bytes > 0) {
		log_info("suite.reload", "%s: %s changed while it started: restarted",
			w->info->name, buf_cstr(&keys));
		s->reload.restart |= 1U << w->info->role;
		supervisor_review(s);
	}
	buf_free(&keys);
}

void reload_on_verdict(struct supervisor *s, struct worker *w, bool ok, const char *text)
{
	struct reload *r = &s->reload;
	uint32_t bit = 1U << w->info->role;

	if (!r->running || (r->waiting & bit) == 0) {
		if (w->offered == s->settings->serial)
			on_late_verdict(s, w, ok, text);
		return;
	}
	r->waiting &= ~bit;
	if (!ok)
		buf_printf(&r->findings, "%s: %s\n", w->info->name, text);
	else
		death_set(&r->pending[w->info->role], xstrdup(text));
	supervisor_review(s);
}

static void restart_late(struct supervisor *s)
{
	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		if ((s->reload.restart & 1U << role) != 0 && s->workers[role]->state == FSM_UP &&
			supervisor_wants(s, role))
			worker_event(s->workers[role], FSM_EV_RESTART);
	s->reload.restart = 0;
}

void reload_review(struct supervisor *s)
{
	struct reload *r = &s->reload;

	restart_late(s);
	if (!r->running)
		return;
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		if ((r->waiting & 1U << role) == 0 || s->workers[role]->state == FSM_UP)
			continue;
		r->waiting &= ~(1U << role);
		buf_printf(&r->findings, "%s: went away while it judged the configuration\n",
			role_str(role));
	}
	if (r->waiting != 0)
		return;
	if (r->findings.len_bytes > 0)
		reload_refuse(s);
	else
		reload_commit(s);
}

void reload_cancel(struct supervisor *s)
{
	struct reload *r = &s->reload;

	if (!r->running)
		return;
	if (r->client != NULL)
		ctl_fail(r->client, "unavailable", NULL, "the suite stops");
	reload_end(s);
}
