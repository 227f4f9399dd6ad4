/* SPDX-License-Identifier: PostgreSQL */
/*
 * The skeleton of a worker. daemon_main owns the phases, in this order: version and help -> umask,
 * SIGPIPE, stray descriptors -> log -> (`-t -c FILE`: judge the configuration, exit) -> HELLO ->
 * configuration and descriptors -> init -> READY -> loop -> drain -> fini -> exit. A daemon
 * supplies struct daemon_info and nothing else.
 *
 * Options: -t -c FILE judges the daemon's part of a configuration file (findings to stdout), -V
 * prints the version, -D DATADIR says where the data files of the package are (development).
 *
 * Exit status: 0 after STOP; EXIT_CONFIG when init or -t returns -ERR_CONFIG; 1 else. The control
 * socket's EOF means that the supervisor is gone: drain and exit.
 */
#ifndef COMMON_IPC_DAEMON_H
#define COMMON_IPC_DAEMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/conf.h"
#include "common/base/ev.h"
#include "common/base/stats.h"
#include "common/ipc/ctl.h"
#include "common/ipc/imsg.h"
#include "common/ipc/worker_proto.h"

#define DAEMON_LISTENERS_MAX 32

struct daemon_listener {
	char *url;
	int fd; /* owned by the daemon struct until taken (set to -1) */
};

/* What every worker has; borrowed by the daemon's callbacks for the life of the process. */
struct daemon {
	const struct daemon_info *info;
	struct ev_loop *loop;
	struct stats *stats;
	struct conf *conf; /* the present snapshot; replaced on reload */
	char *node;
	char *instance;
	char *state_dir;
	char *run_dir;
	char *user;
	const char *datadir;    /* -D, else HOWDAH_DATADIR */
	uint32_t enabled_roles; /* bit mask 1 << enum role */
	uint32_t generation;
	struct daemon_listener listeners[DAEMON_LISTENERS_MAX];
	size_t n_listeners;
	void *self; /* the daemon's own state, from init to fini */
};

struct daemon_info {
	const char *name; /* "brokerd" */
	enum role role;
	const struct conf_row *const *schemas; /* NULL-terminated: own rows and shared ones */
	const struct ctl_handler
		*commands; /* ends with name == NULL; NULL: none; arg is the daemon */
	const struct stats_row *stats_rows;
	size_t n_stats_rows;
	/* Cross-checks of a snapshot beyond single values; adds findings to errors. May be NULL. */
	int (*check)(const struct conf *conf, struct buf *errors);
	/* Sets d->self. 0, or negative (-ERR_CONFIG: stay down; fini is not called then). Call
	 * daemon_ready when ready, now or later. */
	int (*init)(struct daemon *d);
	/* The new snapshot has passed validation; d->conf is still the old one. 0: taken, it
	 * becomes d->conf; negative: the old one stays, *ret_why (static or in self) says why. */
	int (*reload)(struct daemon *d, const struct conf *next, const char **ret_why);
	/* Finish what must be finished, then call daemon_drained. NULL: nothing to do. */
	void (*drain)(struct daemon *d);
	/* Frees everything that hangs on d->self; the loop still exists. Called once if init was 0.
	 */
	void (*fini)(struct daemon *d);
	/* Another worker came UP or went away (generation: of its present life). May be NULL. */
	void (*on_peer)(struct daemon *d, uint32_t role, bool up, uint32_t generation);
	/* Negative: garbled; ends this worker. fds: imsg_take_fd what is kept. May be NULL. */
	int (*on_relay)(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg);
};

/* The whole main of a worker. */
int daemon_main(const struct daemon_info *info, int argc, char **argv);

void daemon_ready(struct daemon *d);
void daemon_drained(struct daemon *d);
/* Ends the process with this status after a flush of the channel: for late -ERR_CONFIG and the
 * like. */
void daemon_exit(struct daemon *d, int status);
/* One line for `pgctl status`; sent only when it changes. */
void daemon_status(struct daemon *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Message to another worker through the supervisor; lost if that one is not UP. */
int daemon_relay(struct daemon *d, uint32_t to_role, uint32_t kind, const struct buf *body,
	const int *fds, size_t n_fds) __attribute__((warn_unused_result));

#endif
