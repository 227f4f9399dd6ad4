/* SPDX-License-Identifier: PostgreSQL */
/*
 * One worker: its state machine (fsm.h), process, channel, timer, page, and what is known of it.
 * The supervisor holds one for every role and speaks to it by events.
 *
 * Context: event thread of the supervisor. Callbacks of worker_ops come from inside worker_event
 * and from message handlers: they must not call worker_event or worker_free; note and defer.
 */
#ifndef SUPERVISOR_WORKER_H
#define SUPERVISOR_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/ev.h"
#include "common/ipc/imsg.h"
#include "supervisor/deaths.h"
#include "supervisor/fsm.h"
#include "supervisor/listeners.h"
#include "supervisor/place.h"
#include "supervisor/roles.h"
#include "supervisor/settings.h"

#define WORKER_TEXT_MAX 512

struct worker;

struct worker_ops {
	/* It changed its state. */
	void (*on_state)(struct worker *w, enum fsm_state from, void *arg);
	/* STATUS came while it starts. */
	void (*on_progress)(struct worker *w, void *arg);
	/* The others must hear that it is up, or gone. */
	void (*on_announce)(struct worker *w, bool up, void *arg);
	/* Its answer to the configuration that worker_offer gave it. */
	void (*on_verdict)(struct worker *w, bool ok, const char *text, void *arg);
	/* It wants this passed on. msg->body is at the first byte after the head. */
	void (*on_relay)(struct worker *w, uint32_t to, uint32_t kind, struct imsg *msg, void *arg);
};

/* What all workers share; owned by the supervisor, which outlives them. */
struct worker_host {
	struct ev_loop *loop;
	const char *libexecdir;
	const char *datadir;
	const struct place *place;
	const struct settings *settings;      /* the present ones */
	const struct listener_set *listeners; /* the present ones */
	const char *log_level;
	const char *node;
	uint32_t last_generation;
	struct deaths deaths;
	const struct worker_ops *ops;
	void *arg;
};

struct worker {
	uint32_t magic;
	struct worker_host *host; /* borrowed */
	const struct role_info *info;
	const struct role_times *times;
	enum fsm_state state;
	pid_t pid; /* 0: none */
	uint32_t generation;
	uint64_t spawns;
	uint64_t spawned_ms, up_ms; /* since when; up_ms 0: not yet in this life */
	bool announced;
	char text[WORKER_TEXT_MAX]; /* its last STATUS */

	struct imsg_channel *channel; /* owned; NULL: lost or none */
	struct ev_timer timer;        /* the FSM's */
	struct ev_backoff backoff, throttle;
	uint32_t next_try_ms; /* how long the present wait is */
	void *page;           /* mapping of page_fd, ours to read and to clear */
	int page_fd;

	uint64_t ping_due_ms;
	uint32_t pings_out; /* unanswered in a row */
	uint32_t ping_id;

	int offer_fd; /* borrowed: the configuration of the next RELOAD */
	const char *offer_level;
	uint64_t has,
		offered; /* serials of the settings that it runs with, that it was asked about */
	uint32_t reload_id;
	bool reload_out;

	char *why; /* why we kill it, or could not start it; owned */
	bool reaped;
	int wait_status;
	struct ev_timer linger; /* reaped, but its last words are not read yet */
	bool spawn_failed;
};

/* NULL if its page cannot be made (memory). */
struct worker *worker_new(struct worker_host *host, uint32_t role);
/* Kills and reaps what still runs. Nulls *w. */
void worker_free(struct worker **w);

/* From outside: START, STOP, HURRY, RELOAD, RESTART. */
void worker_event(struct worker *w, enum fsm_event event);
/* waitpid has returned its pid. */
void worker_reaped(struct worker *w, int wait_status);
/* Sets what the next RELOAD sends (borrowed until the verdict or the next offer), then asks. */
void worker_offer(struct worker *w, const struct settings *s, const char *log_level);

/* Messages to it; without a channel they are dropped. fd is duplicated, -1: none. */
void worker_send_peer(struct worker *w, uint32_t role, bool up, uint32_t generation);
void worker_send_relay(struct worker *w, uint32_t from, uint32_t kind, const struct imsg *msg);
void worker_send_log_level(struct worker *w, const char *level);
int worker_send_control(struct worker *w, const char *line, uid_t uid, int fd)
	__attribute__((warn_unused_result));

/* State in the words of `pgctl status`: DOWN STARTING UP DYING STOPPING BACKOFF THROTTLED HELD. */
const char *worker_state_str(const struct worker *w);
const struct death *worker_death(const struct worker *w);

#endif
