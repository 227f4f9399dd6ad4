/* SPDX-License-Identifier: PostgreSQL */
/*
 * gRPC's own wire format, inside HTTP/2: length-prefixed messages and the texts of its headers.
 * Pure: bytes in, struct out.
 *
 *     message = flag (0; 1: compressed, never accepted), length (32 bits, big-endian), bytes
 */
#ifndef WATCHD_GRPC_PROTO_H
#define WATCHD_GRPC_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

#define GRPC_PREFIX_BYTES 5

struct grpc_message {
	const uint8_t *data; /* borrowed from the input */
	uint32_t len;
	uint8_t flag;
};

/*
 * The message at the start of data. 0: it is whole, in GRPC_PREFIX_BYTES + ret->len bytes.
 * -ERR_TRUNCATED: it is not whole yet; -ERR_LIMIT: it is longer than max; -ERR_MALFORMED: its flag
 * is not 0. With the latter two ret->len and ret->flag say what it claims to be.
 */
int grpc_message_next(const uint8_t *data, size_t len, uint32_t max, struct grpc_message *ret)
	__attribute__((warn_unused_result));
void grpc_put_prefix(uint8_t out[GRPC_PREFIX_BYTES], uint32_t len);

/* "application/grpc", also with "+proto" or ";…". */
bool grpc_content_type_ok(const char *text, size_t len);
/* "5000m": 1 to 8 digits and a unit, in microseconds. -ERR_MALFORMED. */
int grpc_timeout_parse(const char *text, size_t len, uint64_t *ret_us)
	__attribute__((warn_unused_result));
/* Percent-encodes text for grpc-message. */
void grpc_put_status_message(struct buf *b, const char *text);

#endif
