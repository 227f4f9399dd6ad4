/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ring's producer: see publisher.h.
 *
 * Context: event thread.
 *
 * A consumer's life, seen from here:
 *   DISABLED (its worker is not part of this suite; gates nothing)
 *   ABSENT --ATTACH--> ATTACHED --PEER gone, bad cursor--> ABSENT
 * ATTACHED gates space and LSN, ABSENT gates the LSN only: nothing that it has not acknowledged may
 * be passed while its role is enabled.
 *
 * Invariants:
 *   1. flush_lsn <= acked_lsn of every enabled consumer, or everything published is acknowledged
 *      and flush_lsn is a keepalive's position that came after it all.
 *   2. flush_lsn never goes back on one timeline, and never stands below the slot's confirmed
 *      position. What was acknowledged on another timeline counts for nothing: the same LSNs may
 *      name other transactions now.
 *   3. A (new) life of a consumer begins with acked_lsn = flush_lsn: lower is of no use (the slot
 *      cannot go back), higher would trust a memory that died.
 *   4. Records of a transaction carry its commit LSN and time from BEGIN on; I, U, D, T and M are
 *      numbered from 1.
 *   5. While a record waits for room nothing else is written; gaps and RING_STREAM go before it.
 *   6. While a gap is not told, a consumer's acknowledged position begins below the gap's end: only
 *      the consumer itself can say that it knows.
 *   7. What is written comes from the assembler: committed transactions only, in the order of their
 *      commits, as protocol 1 says it. An ordinary transaction's message passes in place; a
 * streamed one comes at its commit, some of it per pass of the loop, and nothing else is put into
 * the assembler until it is in the ring. Transactions that are still open count for no position:
 *      their commit comes later.
 *
 * The assembler's limit, or a file that cannot be written: the stream has to begin anew without
 * streaming, so that the server puts large transactions aside itself. That stays so until
 * publisher_allow_streaming (a reload) or the next life: whoever would try again by itself would
 * meet the same transaction.
 *
 * GRANT's from_lsn is flush_lsn, 0 before the first stream: it is at or below the confirmed
 * position that RING_STREAM announces, and RING_STREAM, which comes before any record that counts,
 * is what binds.
 *
 * On crash: the ring is gone with us; the next life makes a new one under a new epoch, and the slot
 * has not moved past what was acknowledged.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"

#include "walstreamd/publisher.h"
#include "walstreamd/walstreamd.h"

#define PUBLISHER_MAGIC 0x7075626cu
/* The safety net of the sleep protocol: look again although nobody woke us. */
#define LOOK_AGAIN_MS 1000
#define PUBLISHER_GAPS_MAX 16
/* Of a large transaction per pass of the loop. */
#define GIVE_CHANGES 2000
#define GIVE_BYTES (1u << 20)

MEM_TYPE(mem_publisher, "wal publisher");

struct consumer {
	const char *name;
	uint32_t role;
	uint32_t audience;
	bool enabled;
	bool attached;
	uint64_t acked_lsn;
	int data_event; /* we signal */
	void *cursor;
};

/* By index = id in the ring. Workers that do not exist yet have no role to attach with. */
static const struct consumer consumer_table[] = {
	{.name = "brokerd", .role = ROLE_BROKERD, .audience = RING_TO_BROKERD, .data_event = -1},
	{.name = "watchd", .role = ROLE_WATCHD, .audience = RING_TO_WATCHD, .data_event = -1},
};
#define N_CONSUMERS ARRAY_LEN(consumer_table)

static const struct {
	const char *schema;
	uint32_t audience;
} audiences[] = {
	{"howdah_watch", RING_TO_WATCHD},
	{"howdah_tun", RING_TO_TUND},
};

struct publisher {
	uint32_t magic;
	struct daemon *d;
	struct publisher_ops ops;
	void *arg;
	struct ring_producer *ring;
	size_t ring_size;
	int data_fd;
	void *data;
	int space_event; /* consumers signal */
	struct ev_io space_io;
	struct ev_timer look_again;
	struct consumer consumers[N_CONSUMERS];
	struct pgws_assembler *assembler; /* its relations' user = audience */
	bool giving;                      /* it has not said PGWS_EAGAIN since the last put */
	struct ev_deferred give_on;
	bool in_txn;       /* a Begin is written, its Commit is not */
	uint32_t timeline; /* 0: no stream yet */
	int64_t history;

	/* Gaps that not everybody has acknowledged, oldest first; payloads owned. */
	struct ring_record gaps[PUBLISHER_GAPS_MAX];
	char *gap_reasons[PUBLISHER_GAPS_MAX];
	size_t n_gaps, next_gap; /* next_gap: to be written into the ring */
	uint32_t left_timeline;  /* see publisher_begin; of the present timeline */
	uint64_t left_lsn;

	struct ring_record begin;   /* RING_STREAM that waits for room; type 0: none */
	struct ring_record waiting; /* type 0: nothing waits */
	const void *waiting_payload;
	size_t waiting_offset;
	uint64_t full_since_ms; /* up to then it is counted; 0: there is room */

	uint64_t flush_lsn;
	uint64_t received_lsn;  /* end of the last complete transaction in the ring */
	uint64_t published_lsn; /* the same, visible to consumers */
	uint64_t keepalive_lsn;
	char trouble[160];
	char no_streaming[640]; /* why large transactions are not streamed any more; "" else */
	char error[640];        /* why the last write failed */
	/* Since the last publish: the statistics are written once per batch. */
	uint64_t n_messages, n_bytes, n_transactions;
	uint64_t n_given_up; /* streaming */
};

/* ---- Consumers ------------------------------------------------------------------------------ */

static void drop_consumer(struct publisher *p, size_t id)
{
	struct consumer *c = &p->consumers[id];
	if (!c->attached)
		return;
	ring_producer_drop(p->ring, (unsigned)id);
	ring_cursor_unmap(c->cursor);
	close(c->data_event);
	c->cursor = NULL;
	c->data_event = -1;
	c->attached = false;
}

static void refuse(struct publisher *p, uint32_t role, const char *why)
{
	struct buf body;
	buf_init(&body, IMSG_BODY_MAX);
	buf_put_string(&body, why);
	int err = daemon_relay(p->d, role, RELAY_RING_REFUSE, &body, NULL, 0);
	buf_free(&body);
	stats_add(p->d->stats, WAL_STAT_REFUSALS, 1);
	log_warning("wal.refuse", "%s: cannot let it read the ring: %s%s", role_str(role), why,
		err != 0 ? "; nor tell it so" : "");
}

/* Takes the consumers' positions over. A cursor that lies costs its owner the ring. */
static void refresh(struct publisher *p)
{
	unsigned bad;
	while (ring_producer_refresh(p->ring, &bad) != 0) {
		ASSERT(bad < N_CONSUMERS);
		drop_consumer(p, bad);
		refuse(p, p->consumers[bad].role, "its cursor is not possible");
		p->ops.on_detached(p->arg);
	}
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		struct consumer *c = &p->consumers[i];
		if (c->attached && ring_producer_acked(p->ring, (unsigned)i) > c->acked_lsn)
			c->acked_lsn = ring_producer_acked(p->ring, (unsigned)i);
	}
}

static int find_role(const struct publisher *p, uint32_t role)
{
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		if (p->consumers[i].role == role && p->consumers[i].enabled)
			return (int)i;
	}
	return -1;
}

static int grant(struct publisher *p, const struct consumer *c)
{
	struct ring_link_grant m = {
		.epoch = p->d->generation, .from_lsn = p->flush_lsn, .timeline = p->timeline};
	struct buf body;
	buf_init(&body, IMSG_BODY_MAX);
	ring_link_put_grant(&body, &m);
	const int fds[] = {p->data_fd, p->space_event};
	int err = daemon_relay(p->d, c->role, RELAY_RING_GRANT, &body, fds, 2);
	buf_free(&body);
	return err;
}

/* Invariant 6. */
static uint64_t below_gap(const struct publisher *p, uint64_t lsn)
{
	if (p->n_gaps == 0 || lsn < p->gaps[p->n_gaps - 1].end_lsn)
		return lsn;
	return p->gaps[p->n_gaps - 1].end_lsn - 1;
}

/* Takes the descriptors over in any case. */
static const char *let_in(struct publisher *p, size_t id, int cursor_fd, int data_event)
{
	struct consumer *c = &p->consumers[id];
	void *cursor = NULL;
	int err = ring_cursor_map(cursor_fd, &cursor);
	close(cursor_fd);
	if (err != 0) {
		close(data_event);
		return "its cursor cannot be mapped";
	}
	c->acked_lsn = below_gap(p, p->flush_lsn); /* invariant 3 */
	err = ring_producer_add(p->ring, (unsigned)id, cursor, c->acked_lsn);
	ASSERT(err == 0); /* the id is free and in range */
	c->cursor = cursor;
	c->data_event = data_event;
	c->attached = true;
	err = grant(p, c);
	if (err != 0) {
		drop_consumer(p, id);
		return "the grant cannot be sent";
	}
	return NULL;
}

int publisher_attach(struct publisher *p, uint32_t role, struct imsg *msg)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	struct ring_link_attach m;
	int err = ring_link_get_attach(&msg->body, &m);
	if (err != 0)
		return err;
	int id = find_role(p, role);
	if (id < 0 || m.version != RING_LINK_VERSION) {
		refuse(p, role,
			id < 0 ? "it is not one of the ring's readers"
			       : "its build is another one than walstreamd's; restart both");
		return 0;
	}
	if (msg->n_fds != 2)
		return -ERR_MALFORMED;
	refresh(p);
	drop_consumer(p, (size_t)id);
	int cursor_fd = imsg_take_fd(msg, 0), data_event = imsg_take_fd(msg, 1);
	const char *why = let_in(p, (size_t)id, cursor_fd, data_event);
	if (why != NULL) {
		refuse(p, role, why);
		p->ops.on_detached(p->arg);
		return 0;
	}
	stats_add(p->d->stats, WAL_STAT_ATTACHES, 1);
	log_debug("wal.attach", "%s reads the ring", p->consumers[id].name);
	p->ops.on_attached(p->arg);
	return 0;
}

void publisher_detach(struct publisher *p, uint32_t role)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	int id = find_role(p, role);
	if (id < 0 || !p->consumers[id].attached)
		return;
	refresh(p); /* its last acknowledgements count */
	drop_consumer(p, (size_t)id);
	log_debug("wal.detach", "%s no longer reads the ring", p->consumers[id].name);
	p->ops.on_detached(p->arg);
}

size_t publisher_attached(const struct publisher *p)
{
	size_t n = 0;
	for (size_t i = 0; i < N_CONSUMERS; i++)
		n += p->consumers[i].attached;
	return n;
}

bool publisher_wants_stream(const struct publisher *p)
{
	size_t n_enabled = 0;
	for (size_t i = 0; i < N_CONSUMERS; i++)
		n_enabled += p->consumers[i].enabled;
	return n_enabled == 0 || publisher_attached(p) > 0;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static uint32_t audience_of_schema(const char *schema)
{
	for (size_t i = 0; i < ARRAY_LEN(audiences); i++) {
		if (strcmp(audiences[i].schema, schema) == 0)
			return audiences[i].audience;
	}
	return RING_TO_BROKERD;
}

/* Kept with the relation, whose schema decides. */
static inline uint32_t audience_of(struct pgws_relation *rel)
{
	if (rel->user == NULL)
		rel->user = (void *)(uintptr_t)audience_of_schema(rel->nspname);
	return (uint32_t)(uintptr_t)rel->user;
}

/* The assembler knows all of them. */
static uint32_t audience_of_truncate(struct publisher *p, const struct pgws_msg *m)
{
	struct pgws_catalog *catalog = pgws_assembler_catalog(p->assembler);
	uint32_t audience = 0;
	for (uint32_t i = 0; i < m->u.truncate.n_relids; i++)
		audience |= audience_of(pgws_catalog_find(catalog, pgws_truncate_relid(m, i)));
	return audience;
}

static void look_for_room(struct publisher *p)
{
	ring_producer_arm_space(p->ring);
	ev_timer_start(&p->look_again, LOOK_AGAIN_MS);
}

/* One record, as far as it goes. */
static int write_record(
	struct publisher *p, const struct ring_record *rec, const void *payload, size_t *offset)
{
	int err = ring_write_part(p->ring, rec, payload, offset);
	if (err == -EAGAIN) {
		/* Consumers can make room only of what they see. */
		publisher_publish(p);
		refresh(p);
		err = ring_write_part(p->ring, rec, payload, offset);
	}
	ASSERT(err == 0 || err == -EAGAIN);
	return err;
}

/* Gaps and RING_STREAM. */
static int write_beginning(struct publisher *p)
{
	size_t offset = 0;
	if (p->begin.type == 0)
		return 0;
	for (; p->next_gap < p->n_gaps; p->next_gap++, offset = 0) {
		/* Short: all of it or nothing. */
		if (write_record(p, &p->gaps[p->next_gap], p->gap_reasons[p->next_gap], &offset) !=
			0)
			return -EAGAIN;
	}
	if (write_record(p, &p->begin, NULL, &offset) != 0)
		return -EAGAIN;
	p->begin.type = 0;
	return 0;
}

static inline void written(struct publisher *p, const struct ring_record *rec)
{
	if (rec->end_lsn == 0)
		return;
	p->received_lsn = rec->end_lsn;
	p->in_txn = false;
	p->n_transactions++;
}

/* What has passed of a stall since it was counted last. */
static void count_stall(struct publisher *p)
{
	uint64_t now = ev_now_ms();
	if (p->full_since_ms == 0)
		return;
	stats_add(p->d->stats, WAL_STAT_RING_STALL_MS, now - p->full_since_ms);
	p->full_since_ms = now;
}

static void end_stall(struct publisher *p)
{
	if (p->full_since_ms == 0)
		return;
	count_stall(p);
	p->full_since_ms = 0;
	ring_producer_disarm_space(p->ring);
	ev_timer_stop(&p->look_again);
}

/* What waits, as far as it goes. */
static int write_waiting(struct publisher *p)
{
	if (write_beginning(p) != 0)
		return -EAGAIN;
	if (p->waiting.type != 0 &&
		write_record(p, &p->waiting, p->waiting_payload, &p->waiting_offset) != 0)
		return -EAGAIN;
	if (p->waiting.type != 0)
		written(p, &p->waiting);
	p->waiting.type = 0;
	p->waiting_payload = NULL;
	end_stall(p);
	return 0;
}

static int write_all_waiting(struct publisher *p)
{
	int err = write_waiting(p);
	if (err != -EAGAIN)
		return err;
	if (p->full_since_ms == 0) {
		p->full_since_ms = ev_now_ms();
		stats_add(p->d->stats, WAL_STAT_RING_STALLS, 1);
	}
	/* Arm, look once more, only then sleep: a consumer that released in between did not know.
	 */
	look_for_room(p);
	refresh(p);
	return write_waiting(p);
}

/* One change into the ring. -EAGAIN: it waits, its bytes are borrowed. */
static inline int put(struct publisher *p, const struct pgws_change *change)
{
	struct ring_record rec = {.type = RING_MESSAGE,
		.audience = RING_TO_ALL,
		.timeline = p->timeline,
		.ordinal = change->ordinal,
		.payload_len = (uint32_t)change->len,
		.lsn = change->lsn,
		.commit_lsn = change->commit_lsn,
		.commit_time = change->commit_time};
	if (change->relation != NULL) {
		rec.relid = change->relation->relid;
		rec.audience = audience_of(change->relation);
	}
	switch (change->msg.type) {
	case PGWS_BEGIN:
		p->in_txn = true;
		break;
	case PGWS_COMMIT:
		rec.end_lsn = change->end_lsn;
		break;
	case PGWS_TRUNCATE:
		rec.audience = audience_of_truncate(p, &change->msg);
		break;
	default:
		break;
	}
	p->n_messages++;
	p->n_bytes += change->len;
	size_t offset = 0;
	ASSERT(p->waiting.type == 0); /* invariant 5 */
	if (p->begin.type == 0 && ring_write_part(p->ring, &rec, change->data, &offset) == 0) {
		written(p, &rec);
		return 0;
	}
	p->waiting = rec;
	p->waiting_payload = change->data;
	p->waiting_offset = offset;
	return write_all_waiting(p);
}

/* The stream cannot go on, and why. A transaction that does not fit here may fit there. */
static int give_up(struct publisher *p, int err)
{
	const char *why = pgws_assembler_error(p->assembler);
	p->giving = false;
	if (err == PGWS_ENOMEM)
		return -ENOMEM;
	if (err != PGWS_ELIMIT && err != PGWS_EIO) {
		snprintf(p->error, sizeof(p->error),
			"a message of the server cannot be followed: %s", why);
		return -ERR_MALFORMED;
	}
	char text[400];
	snprintf(text, sizeof(text), "%s; %s", why,
		err == PGWS_ELIMIT ? "raise walstreamd.transaction_spool_limit"
				   : "make room in state_dir/spool");
	publisher_forbid_streaming(p, text);
	snprintf(p->error, sizeof(p->error), "%s", p->no_streaming);
	return -ENOSPC;
}

void publisher_forbid_streaming(struct publisher *p, const char *why)
{
	snprintf(p->no_streaming, sizeof(p->no_streaming),
		"large transactions are left to the server until the next reload or restart: "
		"%.500s",
		why);
	p->n_given_up++;
}

static void on_give_on(void *arg)
{
	struct publisher *p;
	OBJ_CAST(p, arg, PUBLISHER_MAGIC);
	if (p->giving && !publisher_is_full(p))
		p->ops.on_room(p->arg);
}

/* What the assembler has. -EAGAIN: the ring is full, or it is enough for this pass. */
static int give_out(struct publisher *p)
{
	struct pgws_change change;
	size_t n = 0, bytes = 0;
	int err;
	while ((err = pgws_assembler_next(p->assembler, &change)) == 0) {
		/* A message outside of transactions, which nobody asked for. */
		if (change.commit_lsn == 0)
			continue;
		err = put(p, &change);
		if (err != 0)
			return err;
		bytes += change.len;
		if (++n == GIVE_CHANGES || bytes >= GIVE_BYTES) {
			publisher_publish(p);
			ev_defer(p->d->loop, &p->give_on, on_give_on, p);
			return -EAGAIN;
		}
	}
	if (err != PGWS_EAGAIN)
		return give_up(p, err);
	p->giving = false;
	return 0;
}

int publisher_continue(struct publisher *p)
{
	int err = write_all_waiting(p);
	if (err != 0 || !p->giving)
		return err;
	return give_out(p);
}

bool publisher_is_full(const struct publisher *p)
{
	return p->waiting.type != 0 || p->begin.type != 0;
}

uint64_t publisher_written(const struct publisher *p)
{
	struct ring_counts counts;
	ring_producer_get_counts(p->ring, &counts);
	return counts.records;
}

/* ---- Gaps ----------------------------------------------------------------------------------- */

static void drop_gaps(struct publisher *p)
{
	for (size_t i = 0; i < p->n_gaps; i++)
		free(p->gap_reasons[i]);
	p->n_gaps = p->next_gap = 0;
}

void publisher_set_gaps(struct publisher *p, const struct publisher_gap *gaps, size_t n)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	ASSERT(n <= PUBLISHER_GAPS_MAX);
	drop_gaps(p);
	for (size_t i = 0; i < n; i++) {
		p->gaps[i] = (struct ring_record){.type = RING_GAP,
			.audience = RING_TO_ALL,
			.timeline = gaps[i].timeline,
			.payload_len = (uint32_t)strlen(gaps[i].reason),
			.lsn = gaps[i].from_lsn,
			.end_lsn = gaps[i].to_lsn,
			.commit_time = gaps[i].at};
		p->gap_reasons[i] = xstrdup(gaps[i].reason);
	}
	p->n_gaps = n;
}

bool publisher_gaps_told(struct publisher *p)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	if (p->n_gaps == 0 || p->next_gap < p->n_gaps || p->begin.type != 0)
		return false;
	refresh(p);
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		const struct consumer *c = &p->consumers[i];
		if (c->enabled && c->acked_lsn < p->gaps[p->n_gaps - 1].end_lsn)
			return false;
	}
	drop_gaps(p);
	return true;
}

/* ---- Streams -------------------------------------------------------------------------------- */

/* The server goes another way from here (a failover, a recovery to an earlier point), or it is
 * another one: what was acknowledged beyond does not count any more, and a cursor cannot go back.
 * So its owner attaches anew. */
static void leave_timeline(struct publisher *p, const struct publisher_begin *b)
{
	bool same = b->history == p->history && b->left_timeline == p->timeline;
	uint64_t kept = same ? b->left_lsn : 0;
	refresh(p);
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		struct consumer *c = &p->consumers[i];
		if (c->acked_lsn > kept)
			c->acked_lsn = kept;
		if (!c->attached)
			continue;
		drop_consumer(p, i);
		refuse(p, c->role,
			"the server went another way than before; it has to attach again");
		p->ops.on_detached(p->arg);
	}
	if (p->flush_lsn > kept)
		p->flush_lsn = kept;
}

void publisher_begin(struct publisher *p, const struct publisher_begin *b)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	publisher_end(p);
	bool same = p->timeline == b->timeline && p->history == b->history;
	if (p->timeline != 0 && !same)
		leave_timeline(p, b);
	if (!same) {
		p->left_timeline = b->left_timeline;
		p->left_lsn = b->left_lsn;
	}
	p->timeline = b->timeline;
	p->history = b->history;
	const uint64_t confirmed_lsn = b->confirmed_lsn;
	if (confirmed_lsn > p->flush_lsn)
		p->flush_lsn = confirmed_lsn; /* invariant 2 */
	/* Nothing beyond it is in flight any more: it all comes again. */
	p->received_lsn = p->published_lsn = confirmed_lsn;
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		if (p->consumers[i].acked_lsn < below_gap(p, confirmed_lsn))
			p->consumers[i].acked_lsn = below_gap(p, confirmed_lsn);
	}
	p->next_gap = 0;
	p->keepalive_lsn = 0;
	p->begin = (struct ring_record){.type = RING_STREAM,
		.audience = RING_TO_ALL,
		.timeline = p->timeline,
		.relid = p->left_timeline,
		.commit_lsn = confirmed_lsn,
		.commit_time = p->history,
		.lsn = p->left_lsn};
	if (publisher_continue(p) == 0)
		publisher_publish(p);
}

void publisher_end(struct publisher *p)
{
	pgws_assembler_reset(p->assembler);
	ev_defer_cancel(p->d->loop, &p->give_on);
	p->in_txn = p->giving = false;
	p->begin.type = p->waiting.type = 0;
	p->waiting_payload = NULL;
	end_stall(p);
	publisher_publish(p);
}

int publisher_write(struct publisher *p, const struct pgws_event *ev)
{
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	if (ev->len > UINT32_MAX)
		return -ERR_MALFORMED;
	int err = pgws_assembler_put(p->assembler, ev);
	if (err != 0)
		return give_up(p, err);
	p->giving = true;
	return give_out(p);
}

const char *publisher_error(const struct publisher *p)
{
	return p->error;
}

const char *publisher_no_streaming(const struct publisher *p)
{
	return p->no_streaming[0] != '\0' ? p->no_streaming : NULL;
}

void publisher_allow_streaming(struct publisher *p)
{
	p->no_streaming[0] = '\0';
}

/* Nothing is half in the ring, or half out of the assembler. */
static bool is_between_transactions(const struct publisher *p)
{
	return !p->in_txn && !p->giving && !publisher_is_full(p);
}

void publisher_keepalive(struct publisher *p, uint64_t wal_end)
{
	if (is_between_transactions(p) && wal_end > p->keepalive_lsn)
		p->keepalive_lsn = wal_end;
}

static void flush_counters(struct publisher *p)
{
	stats_add(p->d->stats, WAL_STAT_MESSAGES, p->n_messages);
	stats_add(p->d->stats, WAL_STAT_BYTES, p->n_bytes);
	stats_add(p->d->stats, WAL_STAT_TRANSACTIONS, p->n_transactions);
	p->n_messages = p->n_bytes = p->n_transactions = 0;
}

void publisher_publish(struct publisher *p)
{
	uint32_t wake = ring_publish(p->ring);
	p->published_lsn = p->received_lsn;
	if (p->n_messages != 0)
		flush_counters(p);
	for (size_t i = 0; wake != 0; i++, wake >>= 1) {
		if ((wake & 1) != 0 && p->consumers[i].attached)
			ring_event_signal(p->consumers[i].data_event);
	}
}

/* ---- Positions ------------------------------------------------------------------------------ */

static uint64_t least_acked(const struct publisher *p)
{
	uint64_t min = p->received_lsn;
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		const struct consumer *c = &p->consumers[i];
		if (c->enabled && c->acked_lsn < min)
			min = c->acked_lsn;
	}
	return min;
}

bool publisher_is_idle(const struct publisher *p)
{
	return least_acked(p) >= p->received_lsn && is_between_transactions(p);
}

uint64_t publisher_flush_lsn(struct publisher *p)
{
	uint64_t min = least_acked(p);
	/* Nothing in flight: the server's idle position is as good as acknowledged. */
	if (publisher_is_idle(p) && p->keepalive_lsn > min)
		min = p->keepalive_lsn;
	if (min > p->flush_lsn)
		p->flush_lsn = min;
	return p->flush_lsn;
}

uint32_t publisher_timeline(const struct publisher *p)
{
	return p->timeline;
}

uint64_t publisher_published_lsn(const struct publisher *p)
{
	return p->published_lsn;
}

uint64_t publisher_received_lsn(const struct publisher *p)
{
	return p->received_lsn > p->keepalive_lsn ? p->received_lsn : p->keepalive_lsn;
}

const char *publisher_trouble(struct publisher *p)
{
	if (p->full_since_ms == 0)
		return NULL;
	size_t slowest = 0;
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		if (ring_producer_lag_bytes(p->ring, (unsigned)i) >
			ring_producer_lag_bytes(p->ring, (unsigned)slowest))
			slowest = i;
	}
	snprintf(p->trouble, sizeof(p->trouble),
		"the ring is full: %s does not keep up and its spool_limit is reached",
		p->consumers[slowest].name);
	return p->trouble;
}

static void on_space(int fd, short what, void *arg)
{
	struct publisher *p;
	OBJ_CAST(p, arg, PUBLISHER_MAGIC);
	(void)what; /* EV_READ */
	ring_event_drain(fd);
	/* One wake-up per sleep: if this was not room enough, sleeping again is another one. */
	ring_producer_disarm_space(p->ring);
	refresh(p);
	if (publisher_is_full(p))
		p->ops.on_room(p->arg);
	p->ops.on_acked(p->arg);
}

static void on_look_again(void *arg)
{
	struct publisher *p;
	OBJ_CAST(p, arg, PUBLISHER_MAGIC);
	refresh(p);
	if (publisher_is_full(p))
		p->ops.on_room(p->arg);
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int new_assembler(struct publisher *p, const struct publisher_options *options)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	/* The rest is for what the allocator and a read buffer need beside it. */
	o.memory_limit = options->transaction_memory - options->transaction_memory / 16;
	o.file_limit = options->spool_limit;
	o.dir = options->spool_dir;
	int err = pgws_assembler_new(&o, &p->assembler);
	if (err != PGWS_EIO)
		return err == 0 ? 0 : -ENOMEM;
	/* Without files memory is the end; the server takes the rest. */
	log_warning("wal.spool",
		"%s cannot be used: %s; transactions that are larger than transaction_memory are "
		"left to the server",
		options->spool_dir, strerror(errno));
	o.file_limit = 0;
	o.dir = NULL;
	return pgws_assembler_new(&o, &p->assembler) == 0 ? 0 : -ENOMEM;
}

int publisher_new(struct daemon *d, const struct publisher_options *options,
	const struct publisher_ops *ops, void *arg, struct publisher **ret_p)
{
	const size_t ring_size = options->ring_size;
	struct publisher *p = mem_new(&mem_publisher, sizeof(*p));
	p->magic = PUBLISHER_MAGIC;
	p->d = d;
	p->ops = *ops;
	p->arg = arg;
	p->data_fd = p->space_event = -1;
	p->ring_size = ring_size;
	memcpy(p->consumers, consumer_table, sizeof(p->consumers));
	for (size_t i = 0; i < N_CONSUMERS; i++)
		p->consumers[i].enabled = (d->enabled_roles >> p->consumers[i].role & 1) != 0;
	ev_io_init(&p->space_io, d->loop, "ring space", on_space, p);
	ev_timer_init(&p->look_again, d->loop, "ring space", on_look_again, p);
	int err = ring_data_create(ring_size, &p->data_fd, &p->data);
	if (err == 0)
		err = ring_event_create(&p->space_event);
	if (err == 0)
		err = new_assembler(p, options);
	if (err != 0) {
		publisher_free(&p);
		return err;
	}
	p->ring = ring_producer_new(p->data, ring_size, d->generation, 0);
	ev_io_set(&p->space_io, p->space_event, EV_READ);
	*ret_p = p;
	return 0;
}

void publisher_free(struct publisher **pp)
{
	struct publisher *p = *pp;
	*pp = NULL;
	if (p == NULL)
		return;
	OBJ_CHECK(p, PUBLISHER_MAGIC);
	for (size_t i = 0; i < N_CONSUMERS; i++)
		drop_consumer(p, i);
	drop_gaps(p);
	ev_io_stop(&p->space_io);
	ev_timer_stop(&p->look_again);
	ev_defer_cancel(p->d->loop, &p->give_on);
	ring_producer_free(&p->ring);
	pgws_assembler_free(&p->assembler);
	if (p->data != NULL)
		ring_data_unmap(p->data, RING_HEADER_BYTES + p->ring_size);
	if (p->data_fd >= 0)
		close(p->data_fd);
	if (p->space_event >= 0)
		close(p->space_event);
	p->magic = 0;
	mem_free(&mem_publisher, p);
}

/* ---- Looking -------------------------------------------------------------------------------- */

void publisher_update_stats(struct publisher *p)
{
	struct ring_counts counts;
	ring_producer_get_counts(p->ring, &counts);
	struct stats *s = p->d->stats;
	count_stall(p);
	stats_set(s, WAL_STAT_PUBLISHED_LSN, p->published_lsn);
	stats_set(s, WAL_STAT_ACKNOWLEDGED_LSN, publisher_flush_lsn(p));
	stats_set(s, WAL_STAT_CONSUMERS, publisher_attached(p));
	stats_set(s, WAL_STAT_RING_FREE_BYTES, ring_producer_free_bytes(p->ring));
	stats_set(s, WAL_STAT_RING_RECORDS, counts.records);
	stats_set(s, WAL_STAT_RING_PAD_BYTES, counts.pad_bytes);
	stats_set(s, WAL_STAT_RING_WAKES, counts.wakes);
	struct pgws_assembler_counts n;
	pgws_assembler_get_counts(p->assembler, &n);
	stats_set(s, WAL_STAT_TXN_OPEN, n.open);
	stats_set(s, WAL_STAT_TXN_MEMORY_BYTES, n.memory_bytes);
	stats_set(s, WAL_STAT_TXN_FILE_BYTES, n.file_bytes);
	stats_set(s, WAL_STAT_TXN_STREAMED, n.streamed);
	stats_set(s, WAL_STAT_TXN_ABORTED, n.aborted);
	stats_set(s, WAL_STAT_TXN_SPILLED, n.spilled);
	stats_set(s, WAL_STAT_TXN_SPILLED_BYTES, n.spilled_bytes);
	stats_set(s, WAL_STAT_STREAMING_GIVEN_UP, p->n_given_up);
}

static json_t *json_lsn(uint64_t lsn)
{
	char text[18];
	return json_string(pgws_lsn_str(lsn, text));
}

/* Those that are taken while they run. */
static json_t *transactions_row(struct publisher *p)
{
	struct pgws_assembler_counts n;
	pgws_assembler_get_counts(p->assembler, &n);
	json_t *row = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", "transactions",
		"open", (json_int_t)n.open, "memory_bytes", (json_int_t)n.memory_bytes,
		"file_bytes", (json_int_t)n.file_bytes, "streamed", (json_int_t)n.streamed,
		"aborted", (json_int_t)n.aborted, "spilled", (json_int_t)n.spilled, "spilled_bytes",
		(json_int_t)n.spilled_bytes);
	ASSERT(row != NULL);
	return row;
}

void publisher_each_row(struct publisher *p, void (*fn)(json_t *row, void *arg), void *arg)
{
	struct ring_counts n;
	refresh(p);
	ring_producer_get_counts(p->ring, &n);
	json_t *row = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name",
		"ring", "epoch", (json_int_t)p->d->generation, "size_bytes",
		(json_int_t)p->ring_size, "free_bytes",
		(json_int_t)ring_producer_free_bytes(p->ring), "head",
		(json_int_t)ring_producer_head(p->ring), "records", (json_int_t)n.records, "bytes",
		(json_int_t)n.bytes, "batches", (json_int_t)n.batches, "stalls",
		(json_int_t)n.stalls, "wakes", (json_int_t)n.wakes);
	ASSERT(row != NULL);
	json_object_set_new(row, "full", json_boolean(p->full_since_ms != 0));
	fn(row, arg);
	fn(transactions_row(p), arg);
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		const struct consumer *c = &p->consumers[i];
		if (!c->enabled)
			continue;
		row = json_pack("{s:s, s:b, s:I}", "name", c->name, "attached", (int)c->attached,
			"lag_bytes", (json_int_t)ring_producer_lag_bytes(p->ring, (unsigned)i));
		ASSERT(row != NULL);
		json_object_set_new(row, "acknowledged", json_lsn(c->acked_lsn));
		fn(row, arg);
	}
}

void publisher_each_acked(struct publisher *p,
	void (*fn)(const char *consumer, bool attached, uint64_t acked_lsn, void *arg), void *arg)
{
	refresh(p);
	for (size_t i = 0; i < N_CONSUMERS; i++) {
		const struct consumer *c = &p->consumers[i];
		if (c->enabled)
			fn(c->name, c->attached, c->acked_lsn, arg);
	}
}
