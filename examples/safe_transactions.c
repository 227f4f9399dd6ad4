/* SPDX-License-Identifier: PostgreSQL */
/*
 * Every transaction exactly once, whatever dies when: the position is stored with the data, in one
 * transaction, and the server is told only afterwards. The store is a journal, a text file:
 *
 *     xid subxid ordinal lsn INSERT public.orders new id='1'
 *     …
 *     COMMIT xid end_lsn systemid timeline
 *
 * A transaction counts once its COMMIT line is on the disk. What stands behind the last one is half
 * a transaction: cut off at the start and after PGWS_RESTARTED, and the server sends it again. What
 * was stored but not confirmed before a crash comes again too, and is left out by start_lsn. With a
 * database as the store it is the same: a row with end_lsn, systemid and timeline, updated in the
 * transaction that writes the data.
 *
 *     safe_transactions CONNINFO SLOT PUBLICATION JOURNAL
 *
 * Large transactions come while they still run (streaming); JOURNAL.d holds what exceeds memory.
 */
#include <pgwalstream.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "show.h"

static struct pgws_consumer *consumer;

static void on_signal(int signo)
{
	(void)signo;
	pgws_consumer_stop(consumer);
}

struct journal {
	FILE *file;
	long end; /* behind the last COMMIT line */
	uint64_t lsn;
	char systemid[24];
	unsigned timeline;
};

static bool cut(struct journal *j)
{
	return fflush(j->file) == 0 && ftruncate(fileno(j->file), j->end) == 0 &&
	       fseek(j->file, j->end, SEEK_SET) == 0;
}

/* Finds the last whole transaction and cuts off what stands behind it. */
static bool open_journal(struct journal *j, const char *path)
{
	char *line = NULL, lsn[18];
	size_t size = 0;
	ssize_t n;

	memset(j, 0, sizeof(*j));
	j->file = fopen(path, "a+"); /* makes it if it is new */
	if (j->file != NULL)
		j->file = freopen(path, "r+", j->file);
	if (j->file == NULL)
		return false;
	while ((n = getline(&line, &size, j->file)) > 0) {
		if (line[n - 1] != '\n' || sscanf(line, "COMMIT %*u %17s %23s %u", lsn, j->systemid,
						   &j->timeline) != 3)
			continue;
		if (pgws_lsn_parse(lsn, &j->lsn) != 0)
			return false;
		j->end = ftell(j->file);
	}
	free(line);
	return cut(j);
}

/* The transaction becomes durable as a whole, its position with it. */
static bool commit(struct journal *j, const struct pgws_change *c)
{
	struct pgws_position at;
	char lsn[18];

	pgws_consumer_get_position(consumer, &at);
	fprintf(j->file, "COMMIT %u %s %s %u\n", c->xid, pgws_lsn_str(c->end_lsn, lsn), at.systemid,
		at.timeline);
	if (fflush(j->file) != 0 || ferror(j->file) || fdatasync(fileno(j->file)) != 0)
		return false;
	j->end = ftell(j->file);
	pgws_consumer_confirm(consumer, c->end_lsn, c->end_lsn, c->end_lsn);
	return true;
}

static int follow(struct journal *j)
{
	struct pgws_change c;
	char lsn[18];
	int err;

	while ((err = pgws_consumer_next(consumer, -1, &c)) >= 0) {
		if (err == PGWS_RESTARTED) {
			if (!cut(j))
				return PGWS_EIO;
		} else if (c.msg.type == PGWS_COMMIT) {
			if (!commit(j, &c))
				return PGWS_EIO;
		} else if (c.ordinal > 0) {
			fprintf(j->file, "%u %u %u %s ", c.xid, c.subxid, c.ordinal,
				pgws_lsn_str(c.lsn, lsn));
			show_change(j->file, &c);
		}
	}
	return err;
}

int main(int argc, char **argv)
{
	struct pgws_consumer_options options = PGWS_CONSUMER_OPTIONS_INIT;
	struct journal j;
	char dir[4096];

	if (argc != 5) {
		fprintf(stderr, "usage: %s CONNINFO SLOT PUBLICATION JOURNAL\n", argv[0]);
		return 2;
	}
	snprintf(dir, sizeof(dir), "%s.d", argv[4]);
	if (!open_journal(&j, argv[4]) || (mkdir(dir, 0700) != 0 && access(dir, W_OK) != 0)) {
		perror(argv[4]);
		return 1;
	}
	options.stream.conninfo = argv[1];
	options.stream.slot = argv[2];
	options.stream.publications = argv[3];
	options.stream.streaming = PGWS_STREAMING_ON;
	options.assembler.dir = dir;
	options.assembler.memory_limit = 16 << 20;
	options.assembler.file_limit = UINT64_C(1) << 30;
	options.start_lsn = j.lsn;
	options.known_systemid = j.systemid; /* another cluster is an error, not a surprise */
	options.known_timeline = j.timeline;
	int err = pgws_consumer_new(&options, &consumer);
	if (err == 0) {
		signal(SIGINT, on_signal);
		signal(SIGTERM, on_signal);
		err = follow(&j);
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
	}
	if (err != PGWS_EEND)
		fprintf(stderr, "%s: %s\n", pgws_strerror(err),
			consumer != NULL ? pgws_consumer_error(consumer) : dir);
	pgws_consumer_free(&consumer);
	return err == PGWS_EEND && cut(&j) ? 0 : 1;
}
