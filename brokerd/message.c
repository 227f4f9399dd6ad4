/* SPDX-License-Identifier: PostgreSQL */
/*
 * Messages, see message.h: one block of memory for the struct, its topic, properties and payload.
 */
#include "config.h"

#include <string.h>

#include "brokerd/message.h"
#include "common/base/mem.h"

MEM_TYPE(mem_message, "message");

struct message *message_new(const char *topic, size_t topic_len, const void *payload,
	size_t payload_len, uint8_t qos, const void *props, size_t props_len, struct track *track)
{
	ASSERT(topic_len <= 65535 && payload_len <= UINT32_MAX && props_len <= UINT32_MAX);
	struct message *m =
		mem_new(&mem_message, sizeof(*m) + topic_len + 1 + props_len + payload_len);
	char *at = (char *)(m + 1);
	m->refs = 1;
	m->qos = qos;
	m->topic = memcpy(at, topic, topic_len);
	m->topic_len = (uint32_t)topic_len;
	at += topic_len + 1;
	if (props_len > 0)
		m->props = memcpy(at, props, props_len);
	m->props_len = (uint32_t)props_len;
	at += props_len;
	m->payload = (uint8_t *)at;
	if (payload_len > 0)
		memcpy(at, payload, payload_len);
	m->payload_len = (uint32_t)payload_len;
	m->track = track;
	if (track != NULL)
		track_ref(track);
	return m;
}

void message_unref(struct message **m)
{
	struct message *gone = *m;
	*m = NULL;
	if (gone == NULL)
		return;
	ASSERT(gone->refs > 0);
	if (--gone->refs > 0)
		return;
	struct track *track = gone->track;
	mem_free(&mem_message, gone);
	if (track != NULL)
		track_unref(track);
}
