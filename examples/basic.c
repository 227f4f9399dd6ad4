/* SPDX-License-Identifier: PostgreSQL */
/*
 * Basic streaming: makes the slot if it is not there, then prints every committed change until the
 * stop LSN or Ctrl-C.
 *
 *     basic CONNINFO SLOT PUBLICATION [STOP_LSN]
 */
#include <pgwalstream.h>
#include <signal.h>
#include <stdio.h>

#include "show.h"

static struct pgws_consumer *consumer;

static void on_signal(int signo)
{
	(void)signo;
	pgws_consumer_stop(consumer); /* is safe in a signal handler */
}

/* A consumer never makes a slot by itself: a slot made anew would begin now, and what was changed
 * before would be missing without a word. The program that sets things up does it, once. */
static int make_slot(const char *conninfo, const char *slot)
{
	struct pgws_stream_options options = PGWS_STREAM_OPTIONS_INIT;
	struct pgws_slot_options slot_options = PGWS_SLOT_OPTIONS_INIT;
	options.conninfo = conninfo;
	options.slot = slot;

	struct pgws_stream *s = pgws_stream_new(&options);
	if (s == NULL)
		return PGWS_ENOMEM;
	/* Every step has the same two halves: ask, and wait until it is done. */
	int err = pgws_stream_connect(s);
	if (err == 0)
		err = pgws_stream_wait(s, 10000);
	if (err == 0)
		err = pgws_stream_read_slot(s, slot);
	if (err == 0)
		err = pgws_stream_wait(s, 10000);
	if (err == 0 && !pgws_stream_slot_info(s)->exists) {
		err = pgws_stream_create_slot(s, &slot_options);
		if (err == 0)
			err = pgws_stream_wait(s, 60000); /* waits for running transactions */
		if (err == 0)
			fprintf(stderr, "slot %s is made\n", slot);
	}
	if (err != 0)
		fprintf(stderr, "cannot make slot %s: %s\n", slot, pgws_stream_error(s));
	pgws_stream_free(&s);
	return err;
}

static int follow(void)
{
	struct pgws_change change;
	int err;

	while ((err = pgws_consumer_next(consumer, -1, &change)) >= 0) {
		if (err == PGWS_RESTARTED) {
			/* The connection was lost in the middle of a transaction, which comes again
			 * from its Begin. */
			puts("RESTARTED");
			continue;
		}
		show_change(stdout, &change);
		/* A message outside a transaction has no Commit: it is confirmed by itself. */
		uint64_t done = 0;
		if (change.msg.type == PGWS_COMMIT)
			done = change.end_lsn;
		else if (change.msg.type == PGWS_MESSAGE && change.commit_lsn == 0)
			done = change.lsn + 1;
		if (done != 0) {
			/* Printed is as far as this program goes: the server may forget it. */
			fflush(stdout);
			pgws_consumer_confirm(consumer, done, done, done);
		}
	}
	return err;
}

int main(int argc, char **argv)
{
	struct pgws_consumer_options options = PGWS_CONSUMER_OPTIONS_INIT;

	if (argc < 4 || (argc > 4 && pgws_lsn_parse(argv[4], &options.stop_lsn) != 0)) {
		fprintf(stderr, "usage: %s CONNINFO SLOT PUBLICATION [STOP_LSN]\n", argv[0]);
		return 2;
	}
	if (make_slot(argv[1], argv[2]) != 0)
		return 1;
	options.stream.conninfo = argv[1];
	options.stream.slot = argv[2];
	options.stream.publications = argv[3];
	options.stream.messages = true;
	int err = pgws_consumer_new(&options, &consumer);
	if (err != 0) {
		fprintf(stderr, "%s\n", pgws_strerror(err));
		return 1;
	}
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	err = follow();
	if (err != PGWS_EEND)
		fprintf(stderr, "%s: %s\n", pgws_strerror(err), pgws_consumer_error(consumer));
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	pgws_consumer_free(&consumer);
	return err == PGWS_EEND ? 0 : 1;
}
