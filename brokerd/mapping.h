/* SPDX-License-Identifier: PostgreSQL */
/*
 * The set of mappings in force: table -> topic, QoS, payload; several per table, by name. It
 * follows the rows of howdah_mqtt.publish_mapping, and is stored and loaded as JSON
 * (howdah_mqtt.node_state).
 *
 * Context: event thread.
 */
#ifndef BROKERD_MAPPING_H
#define BROKERD_MAPPING_H

#include <stddef.h>
#include <stdint.h>

#include "brokerd/template.h"
#include "common/base/buf.h"

/* Owned by the set. */
struct mapping {
	uint32_t relid;
	uint8_t qos;
	char *name;
	char *topic_text, *payload_text; /* payload_text NULL: the default payload */
	struct tmpl *topic, *payload;
	const char *why;      /* not NULL: a template cannot be used, and why */
	struct mapping *next; /* of the same table, by name */
};

struct mapping_row {
	uint32_t relid;
	uint8_t qos;
	const char *name, *topic, *payload; /* borrowed; payload may be NULL */
};

struct mapping_set;

struct mapping_set *mapping_set_new(void);
void mapping_set_free(struct mapping_set **set);
/* Adds or replaces. */
void mapping_set_put(struct mapping_set *set, const struct mapping_row *row);
/* No such mapping: no-op. */
void mapping_set_remove(struct mapping_set *set, uint32_t relid, const char *name);
void mapping_set_clear(struct mapping_set *set);
/* First of the table's mappings, NULL: none. Valid until the next change of the set. */
const struct mapping *mapping_set_find(const struct mapping_set *set, uint32_t relid);
size_t mapping_set_count(const struct mapping_set *set);
/* Differs after each change of any set: never 0, never the same again in this process. */
uint64_t mapping_set_generation(const struct mapping_set *set);

/* Appends [{"relid": …, "name": …, "topic": …, "qos": …, "payload": …}, …]. */
void mapping_set_put_json(const struct mapping_set *set, struct buf *out);
/* Replaces the content. 0, or -ERR_MALFORMED: unchanged. */
int mapping_set_load_json(struct mapping_set *set, const char *text)
	__attribute__((warn_unused_result));

#endif
