/* SPDX-License-Identifier: PostgreSQL */
/*
 * The supervisor: what howdahd is after its options are read. It holds the workers, their sockets
 * and the control socket, and decides who runs when.
 *
 *     STARTING --every worker was UP, or has failed once--> RUNNING --SIGTERM, SIGINT--> STOPPING
 *        └──────────────────────── SIGTERM, SIGINT ──────────────────────────────────────►
 *
 * Decisions about workers are made in one place, supervisor_review, which looks at all states and
 * may be asked for at any time; it runs at the end of the loop's pass.
 *
 * Context: the one thread of howdahd. It links no libpq, parses no protocol, reads no ring.
 */
#ifndef SUPERVISOR_SUPERVISOR_H
#define SUPERVISOR_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/ipc/ctl.h"
#include "supervisor/listeners.h"
#include "supervisor/place.h"
#include "supervisor/settings.h"
#include "supervisor/worker.h"

#define SUPERVISOR_NAME "howdahd"

struct supervisor_options {
	const char *conf_file;
	const char *libexecdir;
	const char *datadir;
	int started_fd; /* gets one byte once the sockets are there; -1: nobody waits */
};

enum supervisor_phase { SUPERVISOR_STARTING, SUPERVISOR_RUNNING, SUPERVISOR_STOPPING };

/* A reload in progress; reload.c. */
struct reload {
	bool running;
	bool again; /* a SIGHUP came meanwhile */
	bool told;  /* systemd knows */
	struct settings *next;
	struct listener_set *next_listeners;
	uint32_t asked, waiting;   /* masks of roles */
	struct buf findings;       /* one per line */
	char *pending[ROLE_COUNT]; /* what a worker said needs a restart; owned, may be NULL */
	uint32_t restart; /* mask: took the present configuration late, and need one for it */
	struct ev_timer timer;
	struct ctl_client *client; /* who asked; NULL: a signal, or it left */
};

struct supervisor {
	uint32_t magic;
	const struct supervisor_options *options;
	enum supervisor_phase phase;
	bool hurry;
	uint32_t hurried; /* mask of roles that were told: a third signal must not prolong it */
	struct ev_loop *loop;
	struct place place;
	struct settings *settings;
	struct listener_set *listeners;
	struct worker_host host;
	struct worker *workers[ROLE_COUNT];
	uint32_t was_up, has_failed; /* masks of roles, since the start */
	struct ctl_server *ctl;
	struct reload reload;
	uint64_t started_ms;
	struct ev_signal on_term, on_int, on_hup, on_child;
	struct ev_timer watchdog;
	struct ev_deferred review;
	char status[256]; /* as systemd was told */
};

/* The whole life: returns the exit status of howdahd. */
int supervisor_run(const struct supervisor_options *options);
/* -t: judges the file and has every worker judge it; findings to stdout. Exit status. */
int supervisor_check(const struct supervisor_options *options);

void supervisor_review(struct supervisor *s);
bool supervisor_wants(const struct supervisor *s, uint32_t role);
/* "2 of 3 workers up; brokerd HELD" */
void supervisor_summary(const struct supervisor *s, char *out, size_t out_size);

/* control.c */
int control_open(struct supervisor *s) __attribute__((warn_unused_result));
void control_close(struct supervisor *s);

/* reload.c. client: who asked, or NULL. */
void reload_init(struct supervisor *s);
void reload_start(struct supervisor *s, struct ctl_client *client);
void reload_on_verdict(struct supervisor *s, struct worker *w, bool ok, const char *text);
/* Part of the review: ends a reload that waits for nobody any more. */
void reload_review(struct supervisor *s);
/* Ends one without a decision: we stop. */
void reload_cancel(struct supervisor *s);

#endif
