/* SPDX-License-Identifier: PostgreSQL */
/*
 * One application message on its way to subscribers, shared by reference: encoded bytes are not
 * here, since each connection has its own version, packet id and QoS. And the track, by which the
 * source of a message learns that everybody who had to acknowledge it has done so.
 *
 * Context: event thread. Reference counts are plain integers.
 */
#ifndef BROKERD_MESSAGE_H
#define BROKERD_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Counts what is still owed before a source may acknowledge. Made with one reference for the source
 * itself; each QoS 1 delivery holds one until PUBACK or until its session is gone. on_done runs
 * once, when the last one goes, and never from inside broker_publish.
 */
struct track {
	uint32_t refs;
	void (*on_done)(struct track *t);
};
static inline void track_ref(struct track *t)
{
	t->refs++;
}
static inline void track_unref(struct track *t)
{
	if (--t->refs == 0)
		t->on_done(t);
}

struct message {
	uint32_t refs;
	uint8_t qos;
	char *topic; /* owned; valid UTF-8, no wildcards, at most 65535 bytes, and a zero after them
		      */
	uint32_t topic_len;
	uint32_t payload_len;
	uint32_t props_len;
	uint8_t *payload; /* owned */
	uint8_t *props; /* owned; encoded MQTT 5 PUBLISH properties that travel with the message (no
			   topic alias, no subscription id), without their length; NULL: none */
	uint64_t expires_ms; /* ev_now_ms at which it expires; 0: never */
	struct track *track; /* one reference while the message lives; NULL: nobody waits */
	uint64_t origin;     /* whose it is, for subscriptions with no-local; 0: no client's */
};

/* Copies topic, payload and props; takes a reference on track. One reference for the caller. */
struct message *message_new(const char *topic, size_t topic_len, const void *payload,
	size_t payload_len, uint8_t qos, const void *props, size_t props_len, struct track *track);
static inline struct message *message_ref(struct message *m)
{
	m->refs++;
	return m;
}
/* Frees with the last reference. Nulls *m. */
void message_unref(struct message **m);

#endif
