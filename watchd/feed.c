/* SPDX-License-Identifier: PostgreSQL */
/*
 * See feed.h. RELATION tells which column is the seq, INSERT has it, COMMIT rings.
 *
 * On crash: the stream comes again from the slot's position, and begins with on_stream, which
 * rings.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <pgwalstream.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/ring/ring_reader.h"
#include "watchd/feed.h"

#define FEED_MAGIC 0x66656564u
#define SEQ_DIGITS_MAX 19

MEM_TYPE(mem_feed, "watch feed");

struct feed {
	uint32_t magic;
	struct daemon *d;
	void (*on_bell)(int64_t seq, void *arg);
	void *arg;
	struct ring_reader *reader;
	struct pgws_catalog *catalog;
	char *spool_dir;
	int64_t seq;  /* of the open transaction's rows */
	bool has_row; /* the open transaction has some */
	uint64_t records, bells, end_lsn;
};

static void ring_bell(struct feed *f, int64_t seq)
{
	f->bells++;
	f->on_bell(seq, f->arg);
}

static int column_of_seq(const struct pgws_relation *rel)
{
	for (uint16_t i = 0; i < rel->n_columns; i++)
		if (strcmp(rel->columns[i].name, "seq") == 0)
			return i;
	return -1;
}

static int64_t seq_of(const struct pgws_tuple *row, int column)
{
	struct pgws_column col;
	size_t offset = 0;
	char text[SEQ_DIGITS_MAX + 1];

	for (int i = 0; pgws_tuple_next(row, &offset, &col); i++) {
		if (i != column)
			continue;
		if (col.kind != PGWS_TEXT || col.len == 0 || col.len > SEQ_DIGITS_MAX)
			return 0;
		memcpy(text, col.data, col.len);
		text[col.len] = '\0';
		return strtoll(text, NULL, 10);
	}
	return 0;
}

/* A row whose seq cannot be told rings without one. */
static void on_insert(struct feed *f, const struct pgws_msg *msg)
{
	const struct pgws_relation *rel = pgws_catalog_find(f->catalog, msg->u.change.relid);
	int column = rel != NULL ? column_of_seq(rel) : -1;
	int64_t seq = column >= 0 ? seq_of(&msg->u.change.new_row, column) : 0;

	f->seq = f->has_row && (f->seq == 0 || seq == 0) ? 0 : seq > f->seq ? seq : f->seq;
	f->has_row = true;
}

static void on_commit(struct feed *f, const struct ring_record *rec)
{
	f->end_lsn = rec->end_lsn;
	if (f->has_row)
		ring_bell(f, f->seq);
	f->has_row = false;
	f->seq = 0;
	ring_reader_ack(f->reader, rec->end_lsn);
}

static int on_record(const struct ring_record *rec, const void *payload, void *arg)
{
	struct feed *f;
	struct pgws_msg msg;

	OBJ_CAST(f, arg, FEED_MAGIC);
	if (rec->type != RING_MESSAGE)
		return 0;
	f->records++;
	if (pgws_decode(payload, rec->payload_len, false, &msg) != 0 ||
		(msg.type == PGWS_RELATION && pgws_catalog_learn(f->catalog, &msg) != 0)) {
		log_error("watch.feed", "a message of the stream that cannot be read, ignoring");
		f->has_row = true;
		f->seq = 0;
	} else if (msg.type == PGWS_INSERT) {
		on_insert(f, &msg);
	} else if (msg.type == PGWS_COMMIT) {
		on_commit(f, rec);
	}
	return 0;
}

static int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	struct feed *f;

	OBJ_CAST(f, arg, FEED_MAGIC);
	(void)timeline; /* the tables say what is */
	f->has_row = false;
	f->seq = 0;
	ring_reader_ack(f->reader, from_lsn);
	ring_bell(f, 0);
	return 0;
}

/* What is missing is in the tables. */
static int on_gap(const struct ring_gap *gap, void *arg)
{
	struct feed *f;

	OBJ_CAST(f, arg, FEED_MAGIC);
	ring_reader_ack(f->reader, gap->to_lsn);
	ring_bell(f, 0);
	return 0;
}

static int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
{
	struct feed *f;

	OBJ_CAST(f, arg, FEED_MAGIC);
	return daemon_relay(f->d, ROLE_WALSTREAMD, RELAY_RING_ATTACH, body, fds, n_fds);
}

/* Records are always taken: nothing is ever spooled. */
static void on_backpressure(bool on, void *arg)
{
	(void)on;
	(void)arg;
}

struct feed *feed_new(struct daemon *d, void (*on_bell)(int64_t seq, void *arg), void *arg)
{
	static const struct ring_reader_ops ops = {.on_record = on_record,
		.on_stream = on_stream,
		.on_gap = on_gap,
		.send_attach = send_attach,
		.on_backpressure = on_backpressure};
	struct ring_reader_options options = {.audience = RING_TO_WATCHD};
	struct feed *f = mem_new(&mem_feed, sizeof(*f));

	f->magic = FEED_MAGIC;
	f->d = d;
	f->on_bell = on_bell;
	f->arg = arg;
	f->catalog = pgws_catalog_new(NULL, NULL);
	ASSERT(f->catalog != NULL);
	f->spool_dir = xasprintf("%s/spool", d->state_dir);
	if (mkdir(f->spool_dir, 0700) != 0 && errno != EEXIST)
		log_warning("watch.feed", "cannot create %s: %s", f->spool_dir, strerror(errno));
	options.spool_dir = f->spool_dir;
	f->reader = ring_reader_new(d->loop, &options, &ops, f);
	return f;
}

void feed_free(struct feed **fp)
{
	struct feed *f = *fp;

	if (f == NULL)
		return;
	OBJ_CHECK(f, FEED_MAGIC);
	ring_reader_free(&f->reader);
	pgws_catalog_free(&f->catalog);
	free(f->spool_dir);
	f->magic = 0;
	mem_free(&mem_feed, f);
	*fp = NULL;
}

void feed_peer(struct feed *f, bool up, uint32_t generation)
{
	OBJ_CHECK(f, FEED_MAGIC);
	ring_reader_peer(f->reader, up, generation);
}

int feed_relay(struct feed *f, uint32_t kind, struct imsg *msg)
{
	OBJ_CHECK(f, FEED_MAGIC);
	return ring_reader_relay(f->reader, kind, msg);
}

void feed_get_counts(const struct feed *f, struct feed_counts *ret_counts)
{
	struct ring_reader_counts ring;

	OBJ_CHECK(f, FEED_MAGIC);
	ring_reader_get_counts(f->reader, &ring);
	*ret_counts = (struct feed_counts){.records = f->records,
		.bells = f->bells,
		.received_lsn = f->end_lsn,
		.lag_bytes = ring.lag_bytes,
		.delay_p50_us = ring.delay_p50_us,
		.delay_p99_us = ring.delay_p99_us,
		.trouble = ring.trouble};
}
