/* SPDX-License-Identifier: PostgreSQL */
/*
 * etcd's errors: gRPC status code and text, to the letter (etcd's api/v3rpc/rpctypes/error.go).
 * Clients match them by string. Functions of watchd that can fail towards a client return 0 or a
 * value of enum etcd_error; svc_* turn it into the stream's trailers.
 */
#ifndef WATCHD_ETCD_ERROR_H
#define WATCHD_ETCD_ERROR_H

#include "watchd/grpc_status.h"

/* X(name, code, text) */
#define ETCD_ERRORS(X)                                                                             \
	X(EMPTY_KEY, INVALID_ARGUMENT, "etcdserver: key is not provided")                          \
	X(KEY_NOT_FOUND, INVALID_ARGUMENT, "etcdserver: key not found")                            \
	X(VALUE_PROVIDED, INVALID_ARGUMENT, "etcdserver: value is provided")                       \
	X(LEASE_PROVIDED, INVALID_ARGUMENT, "etcdserver: lease is provided")                       \
	X(TOO_MANY_OPS, INVALID_ARGUMENT, "etcdserver: too many operations in txn request")        \
	X(DUPLICATE_KEY, INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")       \
	X(INVALID_SORT, INVALID_ARGUMENT, "etcdserver: invalid sort option")                       \
	X(COMPACTED, OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")       \
	X(FUTURE_REV, OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")    \
	X(NO_SPACE, RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")               \
	X(LEASE_NOT_FOUND, NOT_FOUND, "etcdserver: requested lease not found")                     \
	X(LEASE_EXISTS, FAILED_PRECONDITION, "etcdserver: lease already exists")                   \
	X(LEASE_TTL_TOO_LARGE, OUT_OF_RANGE, "etcdserver: too large lease TTL")                    \
	X(MEMBER_NOT_FOUND, NOT_FOUND, "etcdserver: member not found")                             \
	X(REQUEST_TOO_LARGE, INVALID_ARGUMENT, "etcdserver: request is too large")                 \
	X(TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED, "etcdserver: too many requests")                  \
	X(NO_LEADER, UNAVAILABLE, "etcdserver: no leader")                                         \
	X(STOPPED, UNAVAILABLE, "etcdserver: server stopped")                                      \
	X(TIMEOUT, UNAVAILABLE, "etcdserver: request timed out")                                   \
	X(UNHEALTHY, UNAVAILABLE, "etcdserver: unhealthy cluster")                                 \
	X(CORRUPT, DATA_LOSS, "etcdserver: corrupt cluster")

enum etcd_error {
	ETCD_OK = 0,
#define ETCD_ERROR_ENUM(name, code, text) ETCD_##name,
	ETCD_ERRORS(ETCD_ERROR_ENUM)
#undef ETCD_ERROR_ENUM
		ETCD_ERROR_COUNT
};

struct etcd_error_row {
	enum grpc_status code;
	const char *text;
};

/* Row of an error; ETCD_OK is GRPC_OK and "". Static. */
const struct etcd_error_row *etcd_error_row(enum etcd_error e);

#endif
