/* SPDX-License-Identifier: PostgreSQL */
/* See mapping.h. One hash entry per table, holding the list of its mappings. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>
#include <uthash.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/tojson.h"

#include "brokerd/mapping.h"

#define MAPPING_SET_MAGIC 0x7c0de004

MEM_TYPE(mem_mapping_set, "mapping set");
MEM_TYPE(mem_mapping, "mapping");
MEM_TYPE(mem_mapped, "mapped table");

struct mapped {
	uint32_t relid;
	struct mapping *first; /* owned, with its successors; never NULL */
	UT_hash_handle hh;
};

struct mapping_set {
	uint32_t magic;
	uint64_t generation;
	size_t count;
	struct mapped *tables; /* owned */
};

static void set_touch(struct mapping_set *set)
{
	static uint64_t last_generation;

	set->generation = ++last_generation;
}

static void mapping_free(struct mapping *m)
{
	template_free(&m->topic);
	template_free(&m->payload);
	free(m->name);
	free(m->topic_text);
	free(m->payload_text);
	mem_free(&mem_mapping, m);
}

static struct mapping *mapping_new(const struct mapping_row *row)
{
	struct mapping *m = mem_new(&mem_mapping, sizeof(*m));

	m->relid = row->relid;
	m->qos = row->qos > 1 ? 1 : row->qos;
	m->name = xstrdup(row->name);
	m->topic_text = xstrdup(row->topic);
	m->payload_text = row->payload != NULL ? xstrdup(row->payload) : NULL;
	if (template_compile(row->topic, true, &m->topic, &m->why) != 0)
		return m;
	if (row->payload != NULL &&
		template_compile(row->payload, false, &m->payload, &m->why) != 0)
		return m;
	m->why = NULL;
	return m;
}

struct mapping_set *mapping_set_new(void)
{
	struct mapping_set *set = mem_new(&mem_mapping_set, sizeof(*set));

	set->magic = MAPPING_SET_MAGIC;
	set_touch(set);
	return set;
}

void mapping_set_clear(struct mapping_set *set)
{
	struct mapped *t, *next;

	OBJ_CHECK(set, MAPPING_SET_MAGIC);
	HASH_ITER (hh, set->tables, t, next) {
		HASH_DEL(set->tables, t);
		for (struct mapping *m = t->first, *after; m != NULL; m = after) {
			after = m->next;
			mapping_free(m);
		}
		mem_free(&mem_mapped, t);
	}
	set->count = 0;
	set_touch(set);
}

void mapping_set_free(struct mapping_set **set)
{
	if (*set == NULL)
		return;
	mapping_set_clear(*set);
	(*set)->magic = 0;
	mem_free(&mem_mapping_set, *set);
	*set = NULL;
}

static struct mapped *table_find(const struct mapping_set *set, uint32_t relid)
{
	struct mapped *t;

	HASH_FIND(hh, set->tables, &relid, sizeof(relid), t);
	return t;
}

void mapping_set_remove(struct mapping_set *set, uint32_t relid, const char *name)
{
	OBJ_CHECK(set, MAPPING_SET_MAGIC);

	struct mapped *t = table_find(set, relid);
	if (t == NULL)
		return;
	for (struct mapping **at = &t->first; *at != NULL; at = &(*at)->next) {
		struct mapping *m = *at;

		if (strcmp(m->name, name) != 0)
			continue;
		*at = m->next;
		mapping_free(m);
		set->count--;
		set_touch(set);
		break;
	}
	if (t->first == NULL) {
		HASH_DEL(set->tables, t);
		mem_free(&mem_mapped, t);
	}
}

void mapping_set_put(struct mapping_set *set, const struct mapping_row *row)
{
	mapping_set_remove(set, row->relid, row->name);

	struct mapped *t = table_find(set, row->relid);
	if (t == NULL) {
		t = mem_new(&mem_mapped, sizeof(*t));
		t->relid = row->relid;
		HASH_ADD(hh, set->tables, relid, sizeof(t->relid), t);
	}
	struct mapping **at = &t->first;
	while (*at != NULL && strcmp((*at)->name, row->name) < 0)
		at = &(*at)->next;
	struct mapping *m = mapping_new(row);
	m->next = *at;
	*at = m;
	set->count++;
	set_touch(set);
}

const struct mapping *mapping_set_find(const struct mapping_set *set, uint32_t relid)
{
	struct mapped *t = table_find(set, relid);

	return t != NULL ? t->first : NULL;
}

size_t mapping_set_count(const struct mapping_set *set)
{
	return set->count;
}

uint64_t mapping_set_generation(const struct mapping_set *set)
{
	return set->generation;
}

static void put_text_member(struct buf *out, const char *key, const char *text)
{
	buf_put_text(out, key);
	if (text != NULL)
		tojson_string(out, text, strlen(text));
	else
		buf_put_text(out, "null");
}

void mapping_set_put_json(const struct mapping_set *set, struct buf *out)
{
	bool first = true;
	struct mapped *t, *next;

	OBJ_CHECK(set, MAPPING_SET_MAGIC);
	buf_put_u8(out, '[');
	HASH_ITER (hh, set->tables, t, next) {
		for (const struct mapping *m = t->first; m != NULL; m = m->next) {
			char numbers[64];

			snprintf(numbers, sizeof(numbers), "%s{\"relid\":%u,\"qos\":%u",
				first ? "" : ",", m->relid, m->qos);
			first = false;
			buf_put_text(out, numbers);
			put_text_member(out, ",\"name\":", m->name);
			put_text_member(out, ",\"topic\":", m->topic_text);
			put_text_member(out, ",\"payload\":", m->payload_text);
			buf_put_u8(out, '}');
		}
	}
	buf_put_u8(out, ']');
}

static int row_from_json(json_t *item, struct mapping_row *ret_row)
{
	json_int_t relid = json_integer_value(json_object_get(item, "relid"));
	json_int_t qos = json_integer_value(json_object_get(item, "qos"));

	*ret_row = (struct mapping_row){
		.relid = (uint32_t)relid,
		.qos = (uint8_t)qos,
		.name = json_string_value(json_object_get(item, "name")),
		.topic = json_string_value(json_object_get(item, "topic")),
		.payload = json_string_value(json_object_get(item, "payload")),
	};
	if (relid <= 0 || relid > UINT32_MAX || qos < 0 || qos > 1)
		return -ERR_MALFORMED;
	return ret_row->name != NULL && ret_row->topic != NULL ? 0 : -ERR_MALFORMED;
}

int mapping_set_load_json(struct mapping_set *set, const char *text)
{
	json_t *root = json_loads(text, 0, NULL), *item;
	struct mapping_row row;
	size_t i;
	int err = json_is_array(root) ? 0 : -ERR_MALFORMED;

	json_array_foreach(root, i, item)
	{
		if (err == 0)
			err = row_from_json(item, &row);
	}
	if (err == 0) {
		mapping_set_clear(set);
		json_array_foreach(root, i, item)
		{
			err = row_from_json(item, &row);
			ASSERT(err == 0);
			mapping_set_put(set, &row);
		}
	}
	json_decref(root);
	return err;
}
