/* SPDX-License-Identifier: PostgreSQL */
/*
 * Names to addresses, off the event loop: libpq resolves synchronously inside PQconnectStart, so
 * every host without a hostaddr is resolved first and the conninfo is rewritten with hostaddr (host
 * kept for TLS verification; a name with several addresses becomes several entries; the order and
 * the ports stay paired).
 * Sockets ("/…", "@…") and literal addresses need no resolving.
 */
#ifndef COMMON_PG_PGRESOLVE_H
#define COMMON_PG_PGRESOLVE_H

#include "common/base/ev.h"

struct pgresolve;

/* conninfo: rewritten, keyword=value form, borrowed for the call; NULL if err != 0 (why says it).
 */
typedef void (*pgresolve_fn)(int err, const char *conninfo, const char *why, void *arg);

/* extra: NULL-terminated keyword, value pairs that override (application_name, options,
 * replication); may be NULL. cb is called later, never from inside. Free it in the callback or to
 * cancel. */
struct pgresolve *pgresolve_start(struct ev_loop *loop, const char *conninfo,
	const char *const *extra, pgresolve_fn cb, void *arg);
void pgresolve_free(struct pgresolve **r);

#endif
