/* SPDX-License-Identifier: PostgreSQL */
/* See etcd_error.h. */
#include "config.h"

#include "common/base/mem.h"

#include "watchd/etcd_error.h"

static const struct etcd_error_row rows[ETCD_ERROR_COUNT] = {[ETCD_OK] = {GRPC_OK, ""},
#define ETCD_ERROR_ROW(name, code, text) [ETCD_##name] = {GRPC_##code, text},
	ETCD_ERRORS(ETCD_ERROR_ROW)
#undef ETCD_ERROR_ROW
};

const struct etcd_error_row *etcd_error_row(enum etcd_error e)
{
	ASSERT(e < ETCD_ERROR_COUNT);
	return &rows[e];
}
