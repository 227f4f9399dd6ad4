/* SPDX-License-Identifier: PostgreSQL */
/*
 * A reader of the ring that stands where brokerd would, for the tests that compare what walstreamd
 * publishes with what the server holds: started by the real supervisor under brokerd's role, it
 * writes every record that it is handed to STATE_DIR/tap, one line each:
 *
 *     stream  FROM_LSN TIMELINE
 *     message COMMIT_LSN END_LSN LSN ORDINAL RELID TIMELINE COMMIT_TIME HEX
 *
 * Context: event thread.
 *
 * Invariants:
 *   1. A transaction is acknowledged after its COMMIT line was written to the file.
 *   2. The file's last COMMIT is where a later life goes on: what stands behind it is cut off, and
 *      transactions up to it that come again are left out.
 *
 * On crash: by 1 and 2 the file holds every transaction once. (The file is not flushed to disk: the
 * tests kill processes, not machines.)
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "brokerd/brokerd_conf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ipc/daemon.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_reader.h"

#define TAP_MAGIC 0x74617064u

MEM_TYPE(mem_tap, "tap");

struct tap {
	uint32_t magic;
	struct daemon *d;
	struct ring_reader *reader;
	FILE *f;
	uint64_t end_lsn; /* of the last transaction in the file */
	uint32_t timeline;
	char *spool_dir;
};

static void put_hex(FILE *f, const uint8_t *bytes, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < len; i++) {
		putc_unlocked(digits[bytes[i] >> 4], f);
		putc_unlocked(digits[bytes[i] & 15], f);
	}
	putc_unlocked('\n', f);
}

static int on_record(const struct ring_record *rec, const void *payload, void *arg)
{
	struct tap *t;
	OBJ_CAST(t, arg, TAP_MAGIC);
	if (rec->timeline == t->timeline && rec->commit_lsn < t->end_lsn)
		return 0;
	fprintf(t->f,
		"message %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu32 " %" PRIu32 " %" PRIu32
		" %" PRId64 " ",
		rec->commit_lsn, rec->end_lsn, rec->lsn, rec->ordinal, rec->relid, rec->timeline,
		rec->commit_time);
	put_hex(t->f, payload, rec->payload_len);
	if (rec->end_lsn != 0) {
		if (fflush(t->f) != 0)
			abort();
		t->end_lsn = rec->end_lsn;
		t->timeline = rec->timeline;
		ring_reader_ack(t->reader, rec->end_lsn);
	}
	return 0;
}

static int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	struct tap *t;
	OBJ_CAST(t, arg, TAP_MAGIC);
	fprintf(t->f, "stream %" PRIu64 " %" PRIu32 "\n", from_lsn, timeline);
	t->timeline = timeline;
	return 0;
}

static int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
{
	struct tap *t;
	OBJ_CAST(t, arg, TAP_MAGIC);
	return daemon_relay(t->d, ROLE_WALSTREAMD, RELAY_RING_ATTACH, body, fds, n_fds);
}

static void on_backpressure(bool on, void *arg)
{
	(void)on;
	(void)arg;
}

/* The file of an earlier life, cut behind its last COMMIT (invariant 2). */
static FILE *open_file(struct tap *t, const char *path)
{
	FILE *f = fopen(path, "a+");
	if (f == NULL)
		return NULL;
	char *line = NULL;
	size_t size = 0;
	off_t keep = 0, at = 0;
	ssize_t n;
	rewind(f);
	while ((n = getline(&line, &size, f)) > 0 && line[n - 1] == '\n') {
		uint64_t commit, end, lsn;
		uint32_t ordinal, relid, timeline;
		at += n;
		if (sscanf(line,
			    "message %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu32 " %" SCNu32
			    " %" SCNu32,
			    &commit, &end, &lsn, &ordinal, &relid, &timeline) == 6 &&
			end != 0) {
			keep = at;
			t->end_lsn = end;
			t->timeline = timeline;
		}
	}
	free(line);
	if (ftruncate(fileno(f), keep) != 0)
		abort();
	return f;
}

static int tap_init(struct daemon *d)
{
	static const struct ring_reader_ops ops = {.on_record = on_record,
		.on_stream = on_stream,
		.send_attach = send_attach,
		.on_backpressure = on_backpressure};
	struct tap *t = mem_new(&mem_tap, sizeof(*t));
	t->magic = TAP_MAGIC;
	t->d = d;
	d->self = t;
	char *path = xasprintf("%s/tap", d->state_dir);
	t->f = open_file(t, path);
	free(path);
	t->spool_dir = xasprintf("%s/spool", d->state_dir);
	if (t->f == NULL || (mkdir(t->spool_dir, 0700) != 0 && errno != EEXIST))
		abort();
	const struct ring_reader_options options = {.audience = RING_TO_BROKERD,
		.spool_dir = t->spool_dir,
		.spool_limit = (uint64_t)conf_int(d->conf, "walstreamd.spool_limit")};
	t->reader = ring_reader_new(d->loop, &options, &ops, t);
	if (t->end_lsn != 0)
		ring_reader_ack(t->reader, t->end_lsn);
	daemon_ready(d);
	return 0;
}

static void tap_fini(struct daemon *d)
{
	struct tap *t = d->self;
	ring_reader_free(&t->reader);
	fclose(t->f);
	free(t->spool_dir);
	t->magic = 0;
	mem_free(&mem_tap, t);
	d->self = NULL;
}

static int tap_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	(void)d;
	(void)next;
	(void)ret_why;
	return 0;
}

static void tap_on_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	struct tap *t = d->self;
	if (role == ROLE_WALSTREAMD)
		ring_reader_peer(t->reader, up, generation);
}

static int tap_on_relay(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	struct tap *t = d->self;
	if (from_role != ROLE_WALSTREAMD)
		return -ERR_MALFORMED;
	return ring_reader_relay(t->reader, kind, msg);
}

static const struct daemon_info tap_info = {
	.name = "brokerd",
	.role = ROLE_BROKERD,
	.schemas = brokerd_conf_schemas,
	.check = brokerd_conf_check,
	.init = tap_init,
	.reload = tap_reload,
	.fini = tap_fini,
	.on_peer = tap_on_peer,
	.on_relay = tap_on_relay,
};

int main(int argc, char **argv)
{
	return daemon_main(&tap_info, argc, argv);
}
