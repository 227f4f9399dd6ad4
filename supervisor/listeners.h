/* SPDX-License-Identifier: PostgreSQL */
/*
 * The listening sockets of all workers. The supervisor binds and keeps them, so that a worker that
 * dies closes nothing: clients wait in the backlog until the next one accepts. A reload opens the
 * new set beside the old one, taking over what stays; which of the two is kept is decided
 * afterwards.
 *
 * Context: event thread; opening may block for a name lookup where a url holds no literal address.
 */
#ifndef SUPERVISOR_LISTENERS_H
#define SUPERVISOR_LISTENERS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/conf.h"

#define LISTENERS_MAX 64

struct listener {
	uint32_t role;
	char *url; /* owned */
	int fd;    /* owned */
};

struct listener_set {
	struct listener items[LISTENERS_MAX];
	size_t n;
};

/*
 * Opens the listeners of the roles in the mask. Sockets of old (may be NULL) with the same url are
 * shared, not bound again; at the first start those that systemd passed are taken where the address
 * is the same. On failure -ERR_CONFIG, with one finding per line in errors, and nothing stays open.
 */
int listeners_open(const struct conf *conf, uint32_t roles, const struct listener_set *old,
	struct listener_set **ret_set, struct buf *errors) __attribute__((warn_unused_result));
/* Closes them (shared ones live on in the other set). Nulls *set. */
void listeners_free(struct listener_set **set);
/* Does this role have the same urls in both? */
bool listeners_same(const struct listener_set *a, const struct listener_set *b, uint32_t role);

#endif
