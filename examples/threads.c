/* SPDX-License-Identifier: PostgreSQL */
/*
 * Two threads: one receives and puts lines into a bounded queue, the other takes them out, does the
 * slow work (here: prints) and confirms. pgws_consumer_confirm and _stop may be called from any
 * thread; everything else belongs to the receiving one. A change is borrowed until the next call of
 * pgws_consumer_next, so what goes into the queue is a copy.
 *
 * What a signal leaves in the queue is still worked off and confirmed: pgws_consumer_free, called
 * once the worker is done, tells the server.
 *
 *     threads CONNINFO SLOT PUBLICATION [TRANSACTIONS]
 */
#include <pgwalstream.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "show.h"

#define QUEUE_SIZE 64 /* a full queue stops the receiver, and so the server: nothing is dropped */

struct item {
	char *text;       /* owned */
	uint64_t end_lsn; /* of a Commit, else 0 */
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct item items[QUEUE_SIZE];
	size_t head, n;
	bool closed;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static struct pgws_consumer *consumer;
static long wanted = -1; /* transactions; negative: until a signal */

static void on_signal(int signo)
{
	(void)signo;
	pgws_consumer_stop(consumer);
}

static void put(struct item item)
{
	pthread_mutex_lock(&queue.lock);
	while (queue.n == QUEUE_SIZE)
		pthread_cond_wait(&queue.changed, &queue.lock);
	queue.items[(queue.head + queue.n++) % QUEUE_SIZE] = item;
	pthread_cond_broadcast(&queue.changed);
	pthread_mutex_unlock(&queue.lock);
}

/* false: closed and empty. */
static bool take(struct item *ret_item)
{
	pthread_mutex_lock(&queue.lock);
	while (queue.n == 0 && !queue.closed)
		pthread_cond_wait(&queue.changed, &queue.lock);
	bool got = queue.n > 0;
	if (got) {
		*ret_item = queue.items[queue.head];
		queue.head = (queue.head + 1) % QUEUE_SIZE;
		queue.n--;
		pthread_cond_broadcast(&queue.changed);
	}
	pthread_mutex_unlock(&queue.lock);
	return got;
}

static void close_queue(void)
{
	pthread_mutex_lock(&queue.lock);
	queue.closed = true;
	pthread_cond_broadcast(&queue.changed);
	pthread_mutex_unlock(&queue.lock);
}

static void *work(void *arg)
{
	struct item item;

	(void)arg;
	while (take(&item)) {
		if (wanted != 0) /* else only emptied, for a receiver that waits for room */
			fputs(item.text, stdout);
		free(item.text);
		if (wanted == 0 || item.end_lsn == 0)
			continue;
		fflush(stdout);
		pgws_consumer_confirm(consumer, item.end_lsn, item.end_lsn, item.end_lsn);
		if (wanted > 0 && --wanted == 0)
			pgws_consumer_stop(consumer);
	}
	return NULL;
}

static int receive(void)
{
	struct pgws_change change;
	int err;

	while ((err = pgws_consumer_next(consumer, -1, &change)) >= 0) {
		struct item item = {.text = NULL, .end_lsn = 0};
		size_t size;
		FILE *text = open_memstream(&item.text, &size);
		if (text == NULL)
			return PGWS_ENOMEM;
		if (err == PGWS_RESTARTED)
			fputs("RESTARTED\n", text);
		else
			show_change(text, &change);
		if (fclose(text) != 0)
			return PGWS_ENOMEM;
		if (err == 0 && change.msg.type == PGWS_COMMIT)
			item.end_lsn = change.end_lsn;
		put(item);
	}
	return err;
}

int main(int argc, char **argv)
{
	struct pgws_consumer_options options = PGWS_CONSUMER_OPTIONS_INIT;
	pthread_t worker;

	if (argc > 4)
		wanted = strtol(argv[4], NULL, 10);
	if (argc < 4 || wanted == 0) {
		fprintf(stderr, "usage: %s CONNINFO SLOT PUBLICATION [TRANSACTIONS]\n", argv[0]);
		return 2;
	}
	options.stream.conninfo = argv[1];
	options.stream.slot = argv[2];
	options.stream.publications = argv[3];
	int err = pgws_consumer_new(&options, &consumer);
	if (err != 0 || pthread_create(&worker, NULL, work, NULL) != 0) {
		fprintf(stderr, "%s\n", pgws_strerror(err));
		return 1;
	}
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	err = receive();
	close_queue();
	pthread_join(worker, NULL);
	if (err != PGWS_EEND)
		fprintf(stderr, "%s: %s\n", pgws_strerror(err), pgws_consumer_error(consumer));
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	pgws_consumer_free(&consumer);
	return err == PGWS_EEND ? 0 : 1;
}
