/* SPDX-License-Identifier: PostgreSQL */
/*
 * At most so many changes a second, with the callback interface. The program simply does not come
 * back for more: the socket's buffer fills and the server waits. Nothing is dropped, and nothing
 * grows but the WAL that the slot holds.
 *
 * While the callback sleeps nobody reads; background_feedback has a thread of the library answer
 * the server in the meantime, which otherwise ends the connection after wal_sender_timeout.
 *
 *     rate_limited CONNINFO SLOT PUBLICATION CHANGES_PER_SECOND [STOP_LSN]
 */
#include <pgwalstream.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "show.h"

static struct pgws_consumer *consumer;

static void on_signal(int signo)
{
	(void)signo;
	pgws_consumer_stop(consumer);
}

/* When the next change may be handled; a pause is not saved up for a burst later. */
struct limiter {
	int64_t interval_ns;
	int64_t next_ns;
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void wait_for_turn(struct limiter *l)
{
	int64_t now = now_ns();

	if (l->next_ns > now) {
		struct timespec until = {.tv_sec = (time_t)(l->next_ns / 1000000000),
			.tv_nsec = (long)(l->next_ns % 1000000000)};
		/* A signal ends the rest early: then the end is near anyway. */
		(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		now = l->next_ns;
	}
	l->next_ns = now + l->interval_ns;
}

/* What it returns other than 0 ends pgws_consumer_run. */
static int on_change(const struct pgws_change *change, void *arg)
{
	struct limiter *l = arg;

	if (change == NULL) { /* PGWS_RESTARTED: the open transaction comes again */
		puts("RESTARTED");
		return 0;
	}
	if (change->ordinal > 0)
		wait_for_turn(l);
	show_change(stdout, change);
	if (change->msg.type == PGWS_COMMIT) {
		fflush(stdout);
		pgws_consumer_confirm(consumer, change->end_lsn, change->end_lsn, change->end_lsn);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct pgws_consumer_options options = PGWS_CONSUMER_OPTIONS_INIT;
	long rate = argc >= 5 ? strtol(argv[4], NULL, 10) : 0;

	if (argc < 5 || rate < 1 || rate > 1000000 ||
		(argc > 5 && pgws_lsn_parse(argv[5], &options.stop_lsn) != 0)) {
		fprintf(stderr,
			"usage: %s CONNINFO SLOT PUBLICATION CHANGES_PER_SECOND [STOP_LSN]\n",
			argv[0]);
		return 2;
	}
	struct limiter limiter = {.interval_ns = 1000000000 / rate};
	options.stream.conninfo = argv[1];
	options.stream.slot = argv[2];
	options.stream.publications = argv[3];
	options.background_feedback = true;
	int err = pgws_consumer_new(&options, &consumer);
	if (err != 0) {
		fprintf(stderr, "%s\n", pgws_strerror(err));
		return 1;
	}
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	err = pgws_consumer_run(consumer, on_change, &limiter);
	if (err != PGWS_EEND)
		fprintf(stderr, "%s: %s\n", pgws_strerror(err), pgws_consumer_error(consumer));
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	pgws_consumer_free(&consumer);
	return err == PGWS_EEND ? 0 : 1;
}
