/* SPDX-License-Identifier: PostgreSQL */
/*
 * See changes.h. The way of a record:
 *
 *   ring_reader -> on_record -> decode -> BEGIN / RELATION / change / COMMIT
 *   change of a mapped table -> change -> templates -> message -> broker_publish
 *   change of publish_mapping -> the set; at COMMIT -> statestore
 *   COMMIT -> tracker -> (PUBACKs, stored sets) -> ring_reader_ack
 *
 * Reading pauses, with the record not taken, while
 *   - the set of mappings at the stream's beginning is not known (readdb),
 *   - what is stored may still change behind our back, after a history ended (statestore),
 *   - a relation has columns of types that are not known (readdb),
 *   - the broker is congested (broker_on_room),
 *   - the broker stops (changes_quiesce).
 *
 * Invariants:
 *   1. set holds what is in force at the record that is handled next
 *   2. acked <= end of the last transaction that, with all before it, has neither a message without
 *      its subscribers' PUBACK nor a set of mappings that is not committed (tracker.h)
 *   3. every relation in the catalogue that changes arrive for has its relmeta
 *
 * On crash: the stream comes again from the slot's position, which is not past our acked; the set
 * comes from the newest node_state at or below that position. Subscribers see again what they had
 * not acknowledged, and what they had acknowledged behind that.
 */
#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <pgwalstream.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/pg_time.h"
#include "common/ring/ring_reader.h"

#include "brokerd/change.h"
#include "brokerd/changes.h"
#include "brokerd/mapping.h"
#include "brokerd/readdb.h"
#include "brokerd/statestore.h"
#include "brokerd/template.h"
#include "brokerd/tracker.h"

#define CHANGES_MAGIC 0x7c0de00a
/* MQTT's largest packet is 268435455 bytes: room for the topic and the properties. */
#define PAYLOAD_MAX_BYTES (268435455 - 2 * 65536)
/* Buffers that one huge row has grown are given back. */
#define BUFFER_KEEP_BYTES (1 << 20)
#define PRUNE_MS 60000
#define REREAD_MS 10000
#define GAP_TOPIC "$SYS/howdah/gap"

MEM_TYPE(mem_changes, "changes");

enum trouble_source { TROUBLE_STATE, TROUBLE_READ, TROUBLE_STORE, TROUBLE_SPOOL, TROUBLE_COUNT };

struct changes {
	uint32_t magic;
	struct daemon *d;
	struct broker *b;
	struct ring_reader *reader;
	struct readdb *db;
	struct statestore *states;
	struct typecache *types;
	struct pgws_catalog *catalog;
	struct mapping_set *set;
	struct tracker *tracker;
	struct ev_timer prune;
	char *spool_dir;

	/* Where the stream is. */
	bool set_loaded;   /* set is that of the present stream */
	bool stream_ready; /* on_stream was answered with a pause and can be taken now */
	uint64_t from_lsn; /* of the present stream */
	uint64_t end_lsn;  /* of the last transaction taken */
	uint32_t timeline;
	bool in_transaction;
	uint64_t open_lsn; /* of its commit */
	bool set_changed;  /* by the open transaction */
	uint64_t set_lsn;  /* end of the last transaction that changed the set, 0: as it was read */
	bool new_history;  /* sets that are being stored may be of one that ended */
	bool waiting_empty; /* for the state store, before the set is read */
	bool waiting_room;
	bool quiesced;      /* the end of a session is no PUBACK any more */
	uint64_t pruned_at; /* acked LSN of the last prune */
	bool peer_up;
	uint32_t peer_generation;
	struct ev_deferred reopen;

	struct change change;
	struct buf topic, payload, props;
	uint64_t counts[CHANGES_STAT_COUNT];
	char trouble[TROUBLE_COUNT][640]; /* "" if none */
	char gap[400];                    /* the last one */
};

/* ---- What the operator sees ---- */

const char *changes_trouble(const struct changes *c)
{
	for (size_t i = 0; i < TROUBLE_COUNT; i++) {
		if (c->trouble[i][0] != '\0')
			return c->trouble[i];
	}
	return "";
}

__attribute__((format(printf, 3, 4))) static void set_trouble(
	struct changes *c, enum trouble_source source, const char *fmt, ...)
{
	char text[sizeof(c->trouble[0])];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (strcmp(text, c->trouble[source]) == 0)
		return;
	memcpy(c->trouble[source], text, sizeof(text));
	log_error("changes.trouble", "%s", text);
}

static void clear_trouble(struct changes *c, enum trouble_source source)
{
	if (c->trouble[source][0] == '\0')
		return;
	c->trouble[source][0] = '\0';
	log_info("changes.trouble_over", "table changes are followed again");
}

/* The stream cannot be trusted: nothing of it may be passed over, so this life ends and the next
 * one reads it again from the slot. */
static int fatal(struct changes *c, const struct ring_record *rec, const char *why)
{
	char lsn[18];

	log_error("changes.stream", "stream at %s: %s; restarting to read it again",
		pgws_lsn_str(rec->lsn != 0 ? rec->lsn : rec->commit_lsn, lsn), why);
	daemon_exit(c->d, 1);
	return RING_READER_PAUSE;
}

/* ---- Messages ---- */

static void put_utf8(struct buf *b, const char *s)
{
	size_t len = strlen(s);

	buf_put_be16(b, (uint16_t)len);
	buf_put(b, s, len);
}

/* MQTT 5 properties: payload format indicator (UTF-8), content type, user properties. */
static void make_props(struct changes *c, const struct mapping *m)
{
	const struct change *ch = &c->change;
	char xid[16];
	const char *const user[][2] = {
		{"lsn", ch->lsn}, {"xid", xid}, {"op", change_op_str(ch->op)}};

	snprintf(xid, sizeof(xid), "%u", ch->xid);
	buf_reset(&c->props);
	if (m->payload == NULL) {
		buf_put(&c->props, "\x01\x01\x03", 3);
		put_utf8(&c->props, "application/json");
	}
	for (size_t i = 0; i < ARRAY_LEN(user); i++) {
		buf_put_u8(&c->props, 0x26);
		put_utf8(&c->props, user[i][0]);
		put_utf8(&c->props, user[i][1]);
	}
}

static void buffer_shrink(struct buf *b)
{
	size_t max_bytes = b->max_bytes;

	if (b->cap_bytes <= BUFFER_KEEP_BYTES)
		return;
	buf_free(b);
	buf_init(b, max_bytes);
}

/* A message that cannot be made: counted by reason, logged. */
static void skip(
	struct changes *c, const struct mapping *m, enum changes_stat reason, const char *why)
{
	c->counts[reason]++;
	log_limited(LOG_LEVEL_WARNING, "changes.skip",
		"table %s.%s, mapping %s: cannot make a message of the %s at %s: %s, passing it "
		"over",
		c->change.rel->nspname, c->change.rel->relname, m->name,
		change_op_str(c->change.op), c->change.lsn, why);
}

static bool make_topic(struct changes *c, const struct mapping *m)
{
	buf_reset(&c->topic);
	int err = template_render(m->topic, &c->change, &c->topic);
	if (err != 0)
		skip(c, m, CHANGES_STAT_BAD_TOPIC,
			err == -ERR_LIMIT ? "its topic is longer than 65535 bytes"
					  : "its topic is empty");
	return err == 0;
}

static bool make_payload(struct changes *c, const struct mapping *m)
{
	buf_reset(&c->payload);
	/* A full buffer is the one way to fail, and seen below. */
	if (m->payload != NULL)
		(void)!template_render(m->payload, &c->change, &c->payload);
	else
		change_put_json(&c->change, &c->payload);
	if (c->payload.failed)
		skip(c, m, CHANGES_STAT_BAD_PAYLOAD, "its payload is larger than MQTT allows");
	return !c->payload.failed;
}

static void publish_one(struct changes *c, const struct mapping *m)
{
	if (m->why != NULL) {
		skip(c, m, CHANGES_STAT_BAD_MAPPING, m->why);
		return;
	}
	if (!make_topic(c, m))
		return;
	if (!broker_wants(c->b, (const char *)c->topic.data, c->topic.len_bytes)) {
		c->counts[CHANGES_STAT_UNMATCHED]++;
		buffer_shrink(&c->topic);
		return;
	}
	if (!make_payload(c, m))
		return;
	make_props(c, m);

	struct track *track = m->qos > 0 ? tracker_hold(c->tracker) : NULL;
	struct message *msg =
		message_new((const char *)c->topic.data, c->topic.len_bytes, c->payload.data,
			c->payload.len_bytes, m->qos, c->props.data, c->props.len_bytes, track);
	c->counts[CHANGES_STAT_MESSAGES]++;
	(void)broker_publish(c->b, msg); /* somebody wants it, see above */
	message_unref(&msg);
	buffer_shrink(&c->topic);
	buffer_shrink(&c->payload);
}

/* The relation's mappings; cached with it while the set stays as it is. */
static const struct mapping *find_mappings(struct changes *c, const struct pgws_relation *rel)
{
	struct relmeta *meta = rel->user;

	if (meta->mappings_generation != mapping_set_generation(c->set)) {
		meta->mappings_generation = mapping_set_generation(c->set);
		meta->mappings = mapping_set_find(c->set, rel->relid);
	}
	return meta->mappings;
}

/* ---- The mapping table's own changes ---- */

static bool is_mapping_table(const struct pgws_relation *rel)
{
	return strcmp(rel->relname, "publish_mapping") == 0 &&
	       strcmp(rel->nspname, "howdah_mqtt") == 0;
}

/* Owned copy of a column's text, NULL for NULL and for what is not there. */
static char *column_text(
	const struct pgws_relation *rel, const struct pgws_column *row, const char *name)
{
	for (size_t i = 0; row != NULL && i < rel->n_columns; i++) {
		if (strcmp(rel->columns[i].name, name) == 0)
			return row[i].kind == PGWS_TEXT ? xstrndup(row[i].data, row[i].len) : NULL;
	}
	return NULL;
}

static uint32_t column_number(
	const struct pgws_relation *rel, const struct pgws_column *row, const char *name)
{
	char *text = column_text(rel, row, name);
	uint32_t v = text != NULL ? (uint32_t)strtoul(text, NULL, 10) : 0;

	free(text);
	return v;
}

static void forget_mapping(struct changes *c)
{
	const struct pgws_relation *rel = c->change.rel;
	const struct pgws_column *row = c->change.old_row;
	char *name = column_text(rel, row, "name");

	if (name != NULL) {
		uint32_t relid = column_number(rel, row, "relid");

		mapping_set_remove(c->set, relid, name);
		if (c->change.new_row == NULL)
			log_info("changes.mapping_end", "table with OID %u: mapping %s ends at %s",
				relid, name, c->change.lsn);
	}
	free(name);
}

static void learn_mapping(struct changes *c)
{
	const struct pgws_relation *rel = c->change.rel;
	const struct pgws_column *row = c->change.new_row;
	char *name = column_text(rel, row, "name"), *topic = column_text(rel, row, "topic");
	char *payload = column_text(rel, row, "payload");
	struct mapping_row m = {.relid = column_number(rel, row, "relid"),
		.qos = (uint8_t)column_number(rel, row, "qos"),
		.name = name,
		.topic = topic,
		.payload = payload};

	if (name != NULL && topic != NULL && m.relid != 0) {
		mapping_set_put(c->set, &m);
		log_info("changes.mapping", "table with OID %u: mapping %s takes effect at %s",
			m.relid, name, c->change.lsn);
	} else {
		log_error("changes.mapping_row",
			"the row of howdah_mqtt.publish_mapping at %s has no relid, name or topic; "
			"use howdah_mqtt.publish_table, ignoring",
			c->change.lsn);
	}
	free(name);
	free(topic);
	free(payload);
}

/* The change is one of publish_mapping. The transaction is held until the new set is stored. */
static void follow_mapping(struct changes *c)
{
	(void)tracker_hold(c->tracker);
	c->set_changed = true;
	if (c->change.op == CHANGE_TRUNCATE)
		mapping_set_clear(c->set);
	forget_mapping(c);
	if (c->change.new_row != NULL)
		learn_mapping(c);
}

static void store_set(struct changes *c, uint64_t end_lsn)
{
	struct buf json;

	buf_init(&json, 0);
	mapping_set_put_json(c->set, &json);
	statestore_put(c->states, end_lsn, &json, tracker_hold(c->tracker));
	buf_free(&json);
	c->set_changed = false;
	c->set_lsn = end_lsn;
}

/* ---- Records ---- */

/* The rest of the open transaction will not come. */
static void abandon_open(struct changes *c)
{
	log_warning(
		"changes.cut", "a transaction was cut short by another timeline or another slot");
	tracker_abandon(c->tracker);
	c->in_transaction = false;
	c->set_changed = false;
}

static int on_begin(struct changes *c, const struct ring_record *rec, const struct pgws_msg *msg)
{
	if (c->in_transaction) /* on another timeline, where its rest does not exist */
		abandon_open(c);
	c->in_transaction = true;
	c->open_lsn = rec->commit_lsn;
	change_set_transaction(&c->change, msg->u.begin.xid, msg->u.begin.commit_time);
	return 0;
}

static int on_commit(struct changes *c, const struct ring_record *rec, const struct pgws_msg *msg)
{
	uint64_t end_lsn = msg->u.commit.end_lsn;

	if (end_lsn == 0)
		return fatal(c, rec, "a commit without its end");
	if (c->set_changed)
		store_set(c, end_lsn);
	c->in_transaction = false;
	c->end_lsn = end_lsn;
	tracker_commit(c->tracker, end_lsn);
	return 0;
}

/* True if all types of the relation are known; else they are asked for. */
static bool have_types(struct changes *c, const struct pgws_relation *rel)
{
	uint32_t *oids = xcalloc((size_t)rel->n_columns + 1, sizeof(*oids));
	size_t n = relmeta_missing(rel, c->types, oids);

	if (n > 0)
		readdb_want_types(c->db, oids, n);
	free(oids);
	return n == 0;
}

static int on_relation(struct changes *c, const struct ring_record *rec, const struct pgws_msg *msg)
{
	if (pgws_catalog_learn(c->catalog, msg) != 0)
		return fatal(c, rec, "a relation message that cannot be read");

	struct pgws_relation *rel = pgws_catalog_find(c->catalog, msg->u.relation.relid);
	if (rel->user != NULL)
		return 0;
	if (!have_types(c, rel))
		return RING_READER_PAUSE;
	rel->user = relmeta_new(rel, c->types);
	return 0;
}

static void on_relation_drop(struct pgws_relation *rel, void *arg)
{
	struct relmeta *meta = rel->user;

	(void)arg;
	relmeta_free(&meta);
	rel->user = NULL;
}

/* Values did not fit their types: somebody may have altered a type since it was read. Once in a
 * while they are read again, and the change is made again then. */
static bool reread_types(struct changes *c)
{
	const struct pgws_relation *rel = c->change.rel;
	struct relmeta *meta = rel->user;
	uint64_t now = ev_now_ms();

	if (meta->reread_ms != 0 && now - meta->reread_ms < REREAD_MS)
		return false;
	meta->reread_ms = now;
	for (size_t i = 0; i < rel->n_columns; i++)
		typecache_forget(c->types, rel->columns[i].typid);
	return !have_types(c, rel);
}

/* True if the values fit their types, or never will. */
static bool try_values(struct changes *c)
{
	buf_reset(&c->payload);
	c->change.bad_values = 0;
	change_put_new(&c->change, &c->payload);
	change_put_old(&c->change, &c->payload);
	return c->change.bad_values == 0 || !reread_types(c);
}

static bool has_composite(const struct relmeta *meta)
{
	for (size_t i = 0; i < meta->n_columns; i++) {
		const struct type_info *t = meta->columns[i].type;

		while (t->kind == TYPE_ARRAY)
			t = t->elem;
		if (t->kind == TYPE_COMPOSITE)
			return true;
	}
	return false;
}

static int handle_change(struct changes *c, const struct ring_record *rec,
	const struct pgws_msg *msg, const struct pgws_relation *rel)
{
	if (rel == NULL || rel->user == NULL)
		return fatal(c, rec, "a change of a relation that was not announced");

	bool follow = is_mapping_table(rel);
	const struct mapping *m = follow ? NULL : find_mappings(c, rel);
	if (!follow && m == NULL)
		return 0;
	if (!change_set(&c->change, msg, rel, rec->lsn))
		return fatal(c, rec, "a row that does not have its relation's columns");
	if (follow) {
		follow_mapping(c);
		return 0;
	}
	/* Only types that can be altered are worth a trial. */
	if (has_composite(rel->user) && !try_values(c))
		return RING_READER_PAUSE;
	c->change.bad_values = 0;
	c->counts[CHANGES_STAT_ROWS]++;
	for (; m != NULL; m = m->next)
		publish_one(c, m);
	c->counts[CHANGES_STAT_BAD_VALUE] += c->change.bad_values;
	return 0;
}

static int on_change(struct changes *c, const struct ring_record *rec, const struct pgws_msg *msg)
{
	return handle_change(c, rec, msg, pgws_catalog_find(c->catalog, msg->u.change.relid));
}

static int on_truncate(struct changes *c, const struct ring_record *rec, const struct pgws_msg *msg)
{
	for (uint32_t i = 0; i < msg->u.truncate.n_relids; i++) {
		uint32_t relid = pgws_truncate_relid(msg, i);
		int rc = handle_change(c, rec, NULL, pgws_catalog_find(c->catalog, relid));

		if (rc != 0)
			return rc;
	}
	return 0;
}

static int (*const handlers[256])(
	struct changes *, const struct ring_record *, const struct pgws_msg *) = {
	[PGWS_BEGIN] = on_begin,
	[PGWS_COMMIT] = on_commit,
	[PGWS_RELATION] = on_relation,
	[PGWS_INSERT] = on_change,
	[PGWS_UPDATE] = on_change,
	[PGWS_DELETE] = on_change,
	[PGWS_TRUNCATE] = on_truncate,
};

static int on_record(const struct ring_record *rec, const void *payload, void *arg)
{
	struct changes *c;
	struct pgws_msg msg;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (rec->type != RING_MESSAGE)
		return 0;
	if (c->quiesced)
		return RING_READER_PAUSE;
	if (broker_congested(c->b)) {
		c->waiting_room = true;
		c->counts[CHANGES_STAT_PAUSES]++;
		return RING_READER_PAUSE;
	}
	if (pgws_decode(payload, rec->payload_len, false, &msg) != 0)
		return fatal(c, rec, "a message that cannot be read");
	c->counts[CHANGES_STAT_RECORDS]++;
	return handlers[msg.type] != NULL ? handlers[msg.type](c, rec, &msg) : 0;
}

/* ---- The stream's beginning ---- */

static void on_ack(uint64_t lsn, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (!c->quiesced)
		ring_reader_ack(c->reader, lsn);
}

static void open_reader(struct changes *c);

static void on_reopen(void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	ring_reader_free(&c->reader);
	clear_trouble(c, TROUBLE_SPOOL); /* it was the old one's */
	open_reader(c);
	if (c->peer_up)
		ring_reader_peer(c->reader, true, c->peer_generation);
}

/* What was handled may be missing in the new history, changes of mappings too, or nobody knows
 * where the histories part. So nothing that was seen counts any more: a new reader attaches, and
 * everything from the slot's position on comes again. */
static void begin_anew(struct changes *c)
{
	tracker_free(&c->tracker);
	c->tracker = tracker_new(on_ack, c);
	c->in_transaction = false;
	c->set_changed = false;
	c->set_loaded = false;
	c->stream_ready = false;
	c->new_history = true;
	ev_defer(c->d->loop, &c->reopen, on_reopen, c);
}

/* True if the set is the one that was in force at this LSN. */
static bool set_is_of(const struct changes *c, uint64_t lsn)
{
	bool dirty = c->in_transaction && c->set_changed && c->open_lsn >= lsn;

	return c->set_loaded && c->set_lsn <= lsn && !dirty;
}

/* What both timelines have stays as it is: it was handled, is acknowledged or will be. */
static int on_timeline(uint32_t timeline, uint64_t kept_lsn, void *arg)
{
	struct changes *c;
	char lsn[18];

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (!set_is_of(c, kept_lsn) || kept_lsn < c->from_lsn) {
		if (timeline == c->timeline)
			log_warning("changes.history",
				"it is another server, or one restored to an earlier state: "
				"reading again from the slot's position");
		else
			log_warning("changes.timeline",
				"the server went from timeline %u to %u: reading again from the "
				"slot's position",
				c->timeline, timeline);
		begin_anew(c);
		return RING_READER_PAUSE;
	}
	log_warning("changes.timeline",
		"the server went from timeline %u to %u, which has all up to %s%s", c->timeline,
		timeline, pgws_lsn_str(kept_lsn, lsn),
		c->end_lsn > kept_lsn ? "; what was published of later changes did not last" : "");
	if (c->in_transaction && c->open_lsn >= kept_lsn)
		abandon_open(c);
	if (!c->in_transaction)
		tracker_cut(c->tracker, kept_lsn);
	if (c->end_lsn > kept_lsn)
		c->end_lsn = kept_lsn;
	c->timeline = timeline;
	return 0;
}

/* {"node": …, "from_lsn": …, "to_lsn": …, "reason": …, "at": …} for whoever subscribes to it. Not
 * waited for: the gap is written down in howdah.gap. */
static void publish_gap(struct changes *c, const struct ring_gap *gap)
{
	char from[18], to[18];
	double at = (double)gap->at / 1e6 + (double)PG_EPOCH_S;
	json_t *o = json_pack("{s:s,s:s,s:s,s:s%,s:f}", "node", c->d->node, "from_lsn",
		pgws_lsn_str(gap->from_lsn, from), "to_lsn", pgws_lsn_str(gap->to_lsn, to),
		"reason", gap->reason, gap->reason_len, "at", at);
	char *text = o != NULL ? json_dumps(o, JSON_COMPACT) : NULL;

	if (text != NULL) {
		struct message *msg = message_new(
			GAP_TOPIC, strlen(GAP_TOPIC), text, strlen(text), 1, NULL, 0, NULL);
		(void)broker_publish(c->b, msg); /* nobody has to want it */
		message_unref(&msg);
	}
	free(text);
	json_decref(o);
}

static int on_gap(const struct ring_gap *gap, void *arg)
{
	struct changes *c;
	char from[18], to[18];

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (c->quiesced)
		return RING_READER_PAUSE; /* the next life hears of it */
	snprintf(c->gap, sizeof(c->gap), "table changes from %s to %s are missing: %.*s",
		pgws_lsn_str(gap->from_lsn, from), pgws_lsn_str(gap->to_lsn, to),
		gap->reason_len < 240 ? (int)gap->reason_len : 240, gap->reason);
	log_error("changes.gap", "%s", c->gap);
	c->counts[CHANGES_STAT_GAPS]++;
	/* A set of before that is stored later than the new slot's own is void, whatever its LSN.
	 */
	c->new_history = true;
	publish_gap(c, gap);
	return 0;
}

const char *changes_gap(const struct changes *c)
{
	return c->gap;
}

static void on_states_empty(void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (!c->waiting_empty)
		return;
	c->waiting_empty = false;
	readdb_want_state(c->db, c->from_lsn);
}

/* The set is right as long as the stream goes on where it was, which it does while the open
 * transaction is still to come. After a gap, which is one of transactions that were not for us, or
 * of a slot that was made anew, it is read again. */
static int on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (c->stream_ready && c->from_lsn == from_lsn && c->timeline == timeline) {
		c->stream_ready = false;
		/* Nothing before it is owed to anybody. */
		ring_reader_ack(c->reader, from_lsn);
		return 0;
	}
	if (c->set_loaded && !c->new_history &&
		from_lsn <= (c->in_transaction ? c->open_lsn : c->end_lsn))
		return 0;
	if (c->in_transaction)
		abandon_open(c);
	c->set_loaded = false;
	c->stream_ready = false;
	c->from_lsn = from_lsn;
	c->timeline = timeline;
	/* A set of a history that ended could be stored behind our back. */
	c->waiting_empty = c->new_history && !statestore_is_empty(c->states);
	if (!c->waiting_empty)
		readdb_want_state(c->db, from_lsn);
	return RING_READER_PAUSE;
}

static bool on_state(const char *mappings, void *arg)
{
	struct changes *c;
	char lsn[18];

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	pgws_lsn_str(c->from_lsn, lsn);
	if (mappings == NULL || mapping_set_load_json(c->set, mappings) != 0) {
		set_trouble(c, TROUBLE_STATE,
			"the set of mappings at %s is %s; to follow the present one from there on: "
			"SELECT howdah_mqtt.slot_created('%s', '%s')",
			lsn, mappings == NULL ? "not in howdah_mqtt.node_state" : "unreadable",
			c->d->node, lsn);
		return false;
	}
	clear_trouble(c, TROUBLE_STATE);
	c->set_loaded = true;
	c->stream_ready = true;
	c->new_history = false;
	c->end_lsn = c->from_lsn;
	c->set_lsn = 0;
	log_info("changes.start", "following table changes from %s with %zu mappings", lsn,
		mapping_set_count(c->set));
	ring_reader_resume(c->reader);
	return true;
}

static void on_types(void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	ring_reader_resume(c->reader);
}

static void on_room(void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (!c->waiting_room)
		return;
	c->waiting_room = false;
	ring_reader_resume(c->reader);
}

static void on_read_trouble(const char *why, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (why != NULL)
		set_trouble(c, TROUBLE_READ, "table changes: %s", why);
	else
		clear_trouble(c, TROUBLE_READ);
}

static void on_store_trouble(const char *why, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (why != NULL)
		set_trouble(c, TROUBLE_STORE, "table changes: %s", why);
	else
		clear_trouble(c, TROUBLE_STORE);
}

static int send_attach(const struct buf *body, const int *fds, size_t n_fds, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	return daemon_relay(c->d, ROLE_WALSTREAMD, RELAY_RING_ATTACH, body, fds, n_fds);
}

static void on_backpressure(bool on, void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	if (on)
		set_trouble(c, TROUBLE_SPOOL,
			"the spool in %s takes no more: the replication stream waits for slow "
			"subscribers",
			c->spool_dir);
	else
		clear_trouble(c, TROUBLE_SPOOL);
}

/* ---- Life ---- */

static void on_prune(void *arg)
{
	struct changes *c;

	OBJ_CAST(c, arg, CHANGES_MAGIC);
	uint64_t acked = tracker_acked(c->tracker);
	if (acked != c->pruned_at) {
		c->pruned_at = acked;
		readdb_prune(c->db, acked);
	}
	ev_timer_start(&c->prune, PRUNE_MS);
}

static void open_reader(struct changes *c)
{
	static const struct ring_reader_ops ops = {.on_record = on_record,
		.on_stream = on_stream,
		.on_gap = on_gap,
		.on_timeline = on_timeline,
		.send_attach = send_attach,
		.on_backpressure = on_backpressure};
	struct ring_reader_options options = {.audience = RING_TO_BROKERD,
		.spool_limit = (uint64_t)conf_int(c->d->conf, "walstreamd.spool_limit")};

	if (mkdir(c->spool_dir, 0700) != 0 && errno != EEXIST)
		log_warning("changes.spool",
			"cannot create %s: %s; slow subscribers will slow down the replication "
			"stream",
			c->spool_dir, strerror(errno));
	options.spool_dir = c->spool_dir;
	c->reader = ring_reader_new(c->d->loop, &options, &ops, c);
}

struct changes *changes_new(struct daemon *d, struct broker *b, struct batch *writer,
	size_t state_kind, const char *conninfo)
{
	static const struct readdb_ops db_ops = {
		.on_state = on_state, .on_types = on_types, .on_trouble = on_read_trouble};
	static const struct statestore_ops state_ops = {
		.on_trouble = on_store_trouble, .on_empty = on_states_empty};
	struct changes *c = mem_new(&mem_changes, sizeof(*c));

	c->magic = CHANGES_MAGIC;
	c->d = d;
	c->b = b;
	c->types = typecache_new();
	c->catalog = pgws_catalog_new(on_relation_drop, c);
	c->set = mapping_set_new();
	c->tracker = tracker_new(on_ack, c);
	c->states = statestore_new(d->loop, writer, state_kind, &state_ops, c);
	c->db = readdb_new(d->loop, conninfo, d->node, c->types, &db_ops, c);
	buf_init(&c->topic, 0);
	buf_init(&c->payload, PAYLOAD_MAX_BYTES);
	buf_init(&c->props, 0);
	c->spool_dir = xasprintf("%s/spool", d->state_dir);
	open_reader(c);
	broker_on_room(b, on_room, c);
	ev_timer_init(&c->prune, d->loop, "changes prune", on_prune, c);
	ev_timer_start(&c->prune, PRUNE_MS);
	return c;
}

void changes_free(struct changes **cp)
{
	struct changes *c = *cp;

	if (c == NULL)
		return;
	OBJ_CHECK(c, CHANGES_MAGIC);
	ev_timer_stop(&c->prune);
	ev_defer_cancel(c->d->loop, &c->reopen);
	tracker_free(&c->tracker);
	statestore_free(&c->states);
	ring_reader_free(&c->reader);
	readdb_free(&c->db);
	pgws_catalog_free(&c->catalog);
	mapping_set_free(&c->set);
	typecache_free(&c->types);
	change_fini(&c->change);
	buf_free(&c->topic);
	buf_free(&c->payload);
	buf_free(&c->props);
	free(c->spool_dir);
	c->magic = 0;
	mem_free(&mem_changes, c);
	*cp = NULL;
}

void changes_quiesce(struct changes *c)
{
	OBJ_CHECK(c, CHANGES_MAGIC);
	c->quiesced = true;
}

void changes_peer(struct changes *c, bool up, uint32_t generation)
{
	OBJ_CHECK(c, CHANGES_MAGIC);
	c->peer_up = up;
	c->peer_generation = generation;
	ring_reader_peer(c->reader, up, generation);
}

int changes_relay(struct changes *c, uint32_t kind, struct imsg *msg)
{
	OBJ_CHECK(c, CHANGES_MAGIC);
	return ring_reader_relay(c->reader, kind, msg);
}

void changes_update_stats(struct changes *c)
{
	struct ring_reader_counts ring;

	OBJ_CHECK(c, CHANGES_MAGIC);
	ring_reader_get_counts(c->reader, &ring);
	c->counts[CHANGES_STAT_MAPPINGS] = mapping_set_count(c->set);
	c->counts[CHANGES_STAT_PENDING_TX] = tracker_pending(c->tracker);
	c->counts[CHANGES_STAT_STATES_STORED] = statestore_stored(c->states);
	c->counts[CHANGES_STAT_RECEIVED_LSN] = c->end_lsn;
	c->counts[CHANGES_STAT_ACKED_LSN] = tracker_acked(c->tracker);
	c->counts[CHANGES_STAT_RING_LAG] = ring.lag_bytes;
	c->counts[CHANGES_STAT_DELAY_P50] = ring.delay_p50_us;
	c->counts[CHANGES_STAT_DELAY_P99] = ring.delay_p99_us;
	c->counts[CHANGES_STAT_SPOOLED] = ring.spooled_records;
	c->counts[CHANGES_STAT_SPOOL_BYTES] = ring.spool_bytes_now;
	c->counts[CHANGES_STAT_DUPLICATES] = ring.duplicates_dropped;
	for (size_t i = 0; i < CHANGES_STAT_COUNT; i++)
		stats_set(c->d->stats, i, c->counts[i]);
}
