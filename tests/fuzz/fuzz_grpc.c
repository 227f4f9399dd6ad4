/* SPDX-License-Identifier: PostgreSQL */
/*
 * gRPC's framing on anything: the first two bytes are the longest message that is taken, the rest
 * is a stream of messages; then the same bytes as header texts.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/grpc_proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_messages(const uint8_t *data, size_t size, uint32_t max)
{
	struct grpc_message m;
	int err;
	while ((err = grpc_message_next(data, size, max, &m)) == 0) {
		size_t total = GRPC_PREFIX_BYTES + (size_t)m.len;
		uint8_t prefix[GRPC_PREFIX_BYTES];
		struct grpc_message cut;
		ASSERT(m.len <= max && total <= size && m.data == data + GRPC_PREFIX_BYTES);
		ASSERT(grpc_message_next(data, total - 1, max, &cut) == -ERR_TRUNCATED);
		grpc_put_prefix(prefix, m.len);
		ASSERT(memcmp(prefix, data, sizeof(prefix)) == 0);
		data += total;
		size -= total;
	}
	ASSERT(err == -ERR_TRUNCATED || (err == -ERR_LIMIT && m.len > max) ||
		(err == -ERR_MALFORMED && m.flag != 0));
}

static void check_texts(const char *text, size_t len)
{
	uint64_t us = 0;
	struct buf b;
	if (grpc_timeout_parse(text, len, &us) == 0)
		ASSERT(len <= 9 && us <= UINT64_C(359999996400000000));
	(void)grpc_content_type_ok(text, len);
	char *c = xstrndup(text, len);
	buf_init(&b, 0);
	grpc_put_status_message(&b, c);
	ASSERT(b.len_bytes <= 3 * len && !b.failed);
	for (size_t i = 0; i < b.len_bytes; i++)
		ASSERT(b.data[i] >= 0x20 && b.data[i] <= 0x7E);
	buf_free(&b);
	free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	uint32_t max = (uint32_t)data[0] << 8 | data[1];
	uint8_t *exact = xmemdup(data + 2, size - 2);
	check_messages(exact, size - 2, max);
	check_texts((const char *)exact, size - 2);
	free(exact);
	return 0;
}
