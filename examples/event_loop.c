/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer in an event loop, here plain poll(2): one descriptor for the whole life, readable
 * when there is something to do. Beside it the loop listens to its standard input ("position" and
 * "quit") and does something every second, to show that nothing here blocks.
 *
 *     event_loop CONNINFO SLOT PUBLICATION
 */
#include <errno.h>
#include <pgwalstream.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "show.h"

/* Changes at one go, so that a busy server does not keep the loop from its other work. What is left
 * keeps the descriptor readable. */
#define BUDGET 500

static int handle_changes(struct pgws_consumer *c)
{
	struct pgws_change change;
	int err = 0;

	for (int i = 0; i < BUDGET; i++) {
		err = pgws_consumer_next(c, 0, &change); /* 0: never waits */
		if (err < 0)
			break;
		if (err == PGWS_RESTARTED) {
			puts("RESTARTED");
			continue;
		}
		show_change(stdout, &change);
		if (change.msg.type == PGWS_COMMIT)
			pgws_consumer_confirm(c, change.end_lsn, change.end_lsn, change.end_lsn);
	}
	fflush(stdout);
	return err == PGWS_EAGAIN || err == PGWS_RESTARTED ? 0 : err;
}

static void show_position(struct pgws_consumer *c)
{
	struct pgws_position at;
	char server[18], received[18], confirmed[18];

	pgws_consumer_get_position(c, &at);
	printf("POSITION server %s received %s confirmed %s, %llu reconnects\n",
		pgws_lsn_str(at.server_lsn, server), pgws_lsn_str(at.received_lsn, received),
		pgws_lsn_str(at.confirmed_lsn, confirmed), (unsigned long long)at.reconnects);
	fflush(stdout);
}

/* One read, perhaps several lines; false at the end of the input. */
static bool handle_input(struct pgws_consumer *c)
{
	char text[256];
	ssize_t n = read(STDIN_FILENO, text, sizeof(text) - 1);

	if (n <= 0)
		return false;
	text[n] = 0;
	for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
		if (strcmp(line, "position") == 0)
			show_position(c);
		else if (strcmp(line, "quit") == 0)
			pgws_consumer_stop(c); /* next will say PGWS_EEND, in good order */
		else
			printf("? %s\n", line);
	}
	return true;
}

static int loop(struct pgws_consumer *c)
{
	struct pollfd fds[2] = {
		{.fd = pgws_consumer_fd(c), .events = POLLIN},
		{.fd = STDIN_FILENO, .events = POLLIN},
	};
	int err = 0, seconds = 0;

	while (err == 0) {
		int n = poll(fds, 2, 1000);
		if (n < 0 && errno != EINTR)
			return PGWS_EIO;
		if (n == 0)
			fprintf(stderr, "idle for %d s\n", ++seconds);
		if (n <= 0)
			continue;
		seconds = 0;
		if (fds[1].revents != 0 && !handle_input(c))
			fds[1].fd = -1; /* the input ended; poll leaves it out */
		if (fds[0].revents != 0)
			err = handle_changes(c);
	}
	return err;
}

int main(int argc, char **argv)
{
	struct pgws_consumer_options options = PGWS_CONSUMER_OPTIONS_INIT;
	struct pgws_consumer *c;

	if (argc != 4) {
		fprintf(stderr, "usage: %s CONNINFO SLOT PUBLICATION\n", argv[0]);
		return 2;
	}
	options.stream.conninfo = argv[1];
	options.stream.slot = argv[2];
	options.stream.publications = argv[3];
	int err = pgws_consumer_new(&options, &c);
	if (err != 0) {
		fprintf(stderr, "%s\n", pgws_strerror(err));
		return 1;
	}
	err = loop(c);
	if (err != PGWS_EEND)
		fprintf(stderr, "%s: %s\n", pgws_strerror(err), pgws_consumer_error(c));
	pgws_consumer_free(&c);
	return err == PGWS_EEND ? 0 : 1;
}
