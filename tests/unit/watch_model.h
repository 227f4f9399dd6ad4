/* SPDX-License-Identifier: PostgreSQL */
/*
 * A random life of watches: streams come and go, are slow or fast, watch what they like from where
 * they like, while history is written, rolled back, compacted, trimmed and loaded anew. A model
 * knows every event; each response is judged when it is sent, and at the end everybody must have
 * everything exactly once. Used by the unit test with random numbers and by the fuzz target with
 * the fuzzer's bytes.
 */
#ifndef TESTS_UNIT_WATCH_MODEL_H
#define TESTS_UNIT_WATCH_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wm_source {
	/* A number below n (n > 0). */
	uint32_t (*below)(uint32_t n, void *arg);
	bool (*is_over)(void *arg);
	void *arg;
};

struct wm_counts {
	uint64_t responses, events, compacted, progress, fragments;
};

/* Runs until the source is over. Aborts if something is wrong. */
void wm_run(const struct wm_source *source, struct wm_counts *ret_counts);

#endif
