/* SPDX-License-Identifier: PostgreSQL */
/*
 * etcd's WatchResponse and Event as bytes, written by hand straight from the store's memory: a head
 * for each response, and events that are the same for whoever watches.
 *
 *     head (fields 1 to 7) | event | event | …            each event is field 11 of the response
 *
 * Fields stand in the order of their numbers and zeros are left out, as Go's etcd does it.
 *
 * Context: any.
 */
#ifndef WATCHD_WATCH_ENCODE_H
#define WATCHD_WATCH_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "watchd/kv.h"
#include "watchd/store.h"

struct watch_head {
	int64_t revision; /* of the header; 0: left out */
	int64_t watch_id;
	bool created, canceled, fragment;
	int64_t compact_revision;
	const char *cancel_reason; /* NULL: none; at most WATCH_REASON_MAX bytes */
};

#define WATCH_REASON_MAX 100
#define WATCH_HEAD_MAX (80 + WATCH_REASON_MAX)

/* Writes the head to `to`, WATCH_HEAD_MAX bytes at most; returns how many. */
size_t watch_encode_head(
	uint8_t *to, const struct kv_header *header, const struct watch_head *head);

/* Appends an event with its tag and length. with_prev: and the previous version, if it has one. */
void watch_encode_event(struct buf *out, const struct store_event *e, bool with_prev);

#endif
