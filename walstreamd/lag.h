/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ladder of positions: how far every stage is behind the server's head, in bytes and in time.
 *
 * The stages are read one after the other while they move, some of them on the server; what a later
 * stage has passed, an earlier one has passed too. lag_settle makes the ladder say so. Pure memory.
 */
#ifndef WALSTREAMD_LAG_H
#define WALSTREAMD_LAG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LAG_CONSUMERS_MAX 8
#define LAG_SAMPLES 256

/* 0: not known. */
struct lag_positions {
	uint64_t server;       /* its head */
	uint64_t sent;         /* as last heard on the stream */
	uint64_t received;     /* whole, by us */
	uint64_t published;    /* visible in the ring */
	uint64_t acknowledged; /* by all consumers: what the slot may move to */
	uint64_t slot;         /* confirmed to the server */
	uint64_t retained;     /* the server keeps its WAL from here on */
	size_t n_consumers;
	struct lag_consumer {
		const char *name; /* borrowed */
		bool attached;
		uint64_t acked;
	} consumers[LAG_CONSUMERS_MAX];
};

/* When the server was where: (head, time) by and by, the old ones thinned out. */
struct lag_history {
	size_t n;
	struct lag_sample {
		uint64_t lsn, at_ms;
	} samples[LAG_SAMPLES]; /* both ascending */
};

/* The head at now_ms; what is at or below done is not asked for any more. */
void lag_history_note(struct lag_history *h, uint64_t head, uint64_t done, uint64_t now_ms);
/* Milliseconds since the server was first seen beyond lsn; 0: it was not. */
uint64_t lag_history_behind_ms(const struct lag_history *h, uint64_t lsn, uint64_t now_ms);

/* From the server down, no stage stands higher than the one before it. */
void lag_settle(struct lag_positions *p);
/* A row for each stage that is known: point, lsn, behind_bytes, behind_s, of consumers also
 * attached. */
void lag_rows(const struct lag_positions *p, const struct lag_history *h, uint64_t now_ms,
	void (*fn)(json_t *row, void *arg), void *arg);

#endif
