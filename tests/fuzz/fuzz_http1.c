/* SPDX-License-Identifier: PostgreSQL */
/*
 * Heads of HTTP/1.1 requests on anything: texts lie inside the head, the head ends with an empty
 * line, a head is taken at its end and not before, and what follows it changes nothing.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/http1_proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_inside(struct http1_text t, const uint8_t *data, size_t len)
{
	const char *from = (const char *)data;
	ASSERT(t.p >= from && t.len <= len && t.p + t.len <= from + len);
}

static void check_query(const struct http1_request *rq, const uint8_t *data)
{
	static const char *const names[] = {"", "serializable", "a"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct http1_text v;
		if (http1_query_get(rq, names[i], &v))
			check_inside(v, data, rq->head_bytes);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct http1_request rq, again;
	uint8_t *exact = xmemdup(data, size);
	int err = http1_parse(exact, size, &rq);
	if (err == 0) {
		ASSERT(rq.head_bytes <= size && exact[rq.head_bytes - 1] == '\n');
		ASSERT(rq.path.len > 0 && rq.minor <= 1);
		check_inside(rq.path, exact, rq.head_bytes);
		check_inside(rq.query, exact, rq.head_bytes);
		check_query(&rq, exact);
		ASSERT(http1_parse(exact, rq.head_bytes, &again) == 0);
		ASSERT(memcmp(&again, &rq, sizeof(rq)) == 0);
		ASSERT(http1_parse(exact, rq.head_bytes - 1, &again) == -ERR_TRUNCATED);
	}
	free(exact);
	return 0;
}
