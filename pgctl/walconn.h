/* SPDX-License-Identifier: PostgreSQL */
/*
 * A replication connection to the place's database (libpgwalstream), driven by waiting; and how its
 * errors are told.
 */
#ifndef PGCTL_WALCONN_H
#define PGCTL_WALCONN_H

#include <pgwalstream.h>
#include <signal.h>
#include <stdbool.h>

#include "pgctl/place.h"

/* Not an exit status: a signal asked for the end while we waited. */
#define WALCONN_STOPPED (-1)

struct walconn {
	struct pgctl *p;       /* borrowed */
	const char *conf_file; /* borrowed, for messages */
	struct pgws_stream *s;
	const sigset_t *during;      /* mask while waiting; NULL: as it is */
	volatile sig_atomic_t *stop; /* set by a signal's handler; NULL: nobody asks */
};

/* Connects. options: everything but the conninfo. An exit status (on failure it has been said why)
 * or WALCONN_STOPPED. */
int walconn_open(struct walconn *w, const struct db *db, struct pgws_stream_options options);
void walconn_close(struct walconn *w);
/* A command was given, rc is what that returned: waits for its end. After slow_ms a warning says
 * what we wait for (slow NULL: none); after CONNECT_TIMEOUT without connection it fails. Returns as
 * open. */
int walconn_finish(struct walconn *w, int rc, const char *what, const char *slow);
/* Says why rc came; returns the exit status. */
int walconn_failed(struct walconn *w, int rc, const char *what);

#endif
