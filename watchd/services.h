/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the services share: the parts of the daemon that calls are answered with, and the answer's
 * header. watchd.c makes it; it outlives every call.
 *
 * Context: event thread.
 */
#ifndef WATCHD_SERVICES_H
#define WATCHD_SERVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/base/list.h"
#include "common/base/stats.h"
#include "watchd/engine.h"
#include "watchd/kv.h"
#include "watchd/lease.h"
#include "watchd/watch.h"
#include "watchd/watchd_conf.h"

/* The API that we speak: what /version and Status say. Clients judge by it what a server can. */
#define ETCD_API_VERSION "3.4.31"
#define ETCD_CLUSTER_VERSION "3.4.0"
/* There are no elections; clients want a term that is not 0. */
#define ETCD_RAFT_TERM 2

struct services {
	struct ev_loop *loop;
	struct stats *stats;
	const char *node;
	const struct watchd_conf *conf; /* the present values */
	struct engine *engine;
	struct store *store; /* the engine's */
	struct lessor *lessor;
	struct watch_set *watches;
	struct kv_header header;
	bool stopping;
	struct list streams; /* of struct grpc_stream: calls without an end of their own */
	struct list tickets; /* of struct grpc_ticket */
};

/* When a request that begins now has waited for long enough. */
uint64_t services_deadline(const struct services *svc);

#endif
