/* SPDX-License-Identifier: PostgreSQL */
/*
 * The store against a model so simple that it can be trusted: a copy of the whole state after every
 * entry. Bytes choose what happens: random ones in test_watch_store, the fuzzer's in
 * fuzz_watch_store.
 *
 * Two stores, "a" and "b", stand for two nodes. Each entry is evaluated by one of them and applied
 * by the other from its rows; commits and rollbacks come to both. A table of rows stands for the
 * log; what either store gives as garbage is taken out of it. Now and then a third store is loaded
 * from that table, and must be like the others.
 */
#ifndef TESTS_UNIT_STORE_MODEL_H
#define TESTS_UNIT_STORE_MODEL_H

#include <stddef.h>
#include <stdint.h>

/* Runs until the bytes are used up; a difference is a failed ASSERT. Returns the entries made. */
size_t store_model_run(const uint8_t *bytes, size_t len);

#endif
