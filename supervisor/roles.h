/* SPDX-License-Identifier: PostgreSQL */
/*
 * What each worker is and may do: one table. Adding a worker to the suite is a row here, one in
 * enum role, and its program.
 */
#ifndef SUPERVISOR_ROLES_H
#define SUPERVISOR_ROLES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/ipc/worker_proto.h"

struct role_times {
	uint32_t start_ms;        /* from spawn to HELLO, from HELLO or the last STATUS to READY */
	uint32_t stop_ms;         /* from STOP to SIGKILL */
	uint32_t hurry_ms;        /* the same after a second SIGTERM */
	uint32_t kill_ms;         /* from SIGABRT, or a lost channel, to SIGKILL: time for a core */
	uint32_t ping_ms;         /* interval */
	uint32_t ping_misses;     /* unanswered in a row before it counts as hung */
	uint32_t backoff_base_ms; /* first wait after a death */
	uint32_t backoff_cap_ms;  /* longest */
	uint32_t throttle_base_ms; /* first wait after a death before READY */
	uint32_t stable_ms;        /* a life this long makes the next wait short again */
	uint32_t reload_ms;        /* for a verdict on a new configuration */
};

struct role_info {
	enum role role;
	const char *name;     /* program in libexecdir, section of the configuration */
	uint32_t after;       /* mask of roles that must have been UP before its first start */
	bool takes_listeners; /* its section has `listeners` */
	bool reads_ring;      /* walstreamd waits for what it acknowledges */
	uint32_t nofile;      /* RLIMIT_NOFILE asked for; 0: as high as allowed */
};

const struct role_info *role_info(uint32_t role);

/* The times of a role: the normal ones; relaxed where a sanitizer or HOWDAH_RELAXED in the
 * environment makes everything slow; brisk where HOWDAH_BRISK does, so that tests need not wait. */
const struct role_times *role_times(uint32_t role);

/* The order in which workers are told to stop, each after the one before is gone. */
extern const enum role roles_stop_order[ROLE_COUNT];

#endif
