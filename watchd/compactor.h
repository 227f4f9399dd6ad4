/* SPDX-License-Identifier: PostgreSQL */
/*
 * Auto compaction: by age (the log's `at` says which revision is how old) or by a number of
 * revisions. Every node looks; who comes second finds it done.
 *
 * Context: event thread.
 */
#ifndef WATCHD_COMPACTOR_H
#define WATCHD_COMPACTOR_H

#include "watchd/services.h"

struct compactor;

struct compactor *compactor_new(struct services *svc);
/* Before the engine is freed, with no turn of the loop in between. Nulls *c. */
void compactor_free(struct compactor **c);
/* About once per second: looks whether something is to be done. */
void compactor_tick(struct compactor *c);

#endif
