/* SPDX-License-Identifier: PostgreSQL */
/*
 * The services: what stands in the table of methods (grpc.c), by file. Each begins a call; the
 * rules are in grpc.h.
 *
 * Context: event thread.
 */
#ifndef WATCHD_SVC_H
#define WATCHD_SVC_H

#include "watchd/grpc.h"

/* svc_kv.c */
void svc_range(struct grpc_call *c);
void svc_put(struct grpc_call *c);
void svc_delete_range(struct grpc_call *c);
void svc_txn(struct grpc_call *c);
void svc_compact(struct grpc_call *c);
/* For engine_op.eval: compacts at the head. */
enum etcd_error svc_do_compact(struct store *s, int64_t rev);

/* svc_lease.c */
void svc_lease_grant(struct grpc_call *c);
void svc_lease_revoke(struct grpc_call *c);
void svc_lease_time_to_live(struct grpc_call *c);
void svc_lease_leases(struct grpc_call *c);
void svc_keepalive_open(struct services *svc, struct h2_stream *s, bool leader);

/* svc_watch.c */
void svc_watch_open(struct services *svc, struct h2_stream *s, bool leader);
/* For watch_set_new; the stream_arg is the stream's own. */
extern const struct watch_ops svc_watch_ops;

/* svc_cluster.c: the others of the service are not served. */
void svc_member_list(struct grpc_call *c);

/* svc_maint.c */
void svc_alarm(struct grpc_call *c);
void svc_status(struct grpc_call *c);
void svc_defragment(struct grpc_call *c);
void svc_hash(struct grpc_call *c);
void svc_hash_kv(struct grpc_call *c);

/* svc_snapshot.c */
void svc_snapshot(struct grpc_call *c);

#endif
