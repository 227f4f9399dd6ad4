/* SPDX-License-Identifier: PostgreSQL */
/* gRPC's framing and header texts, see grpc_proto.h. */
#include "config.h"

#include <string.h>

#include "common/base/err.h"
#include "watchd/grpc_proto.h"

int grpc_message_next(const uint8_t *data, size_t len, uint32_t max, struct grpc_message *ret)
{
	struct rd r = rd_make(data, len);
	uint8_t flag = rd_u8(&r);
	uint32_t n = rd_be32(&r);
	if (r.failed)
		return -ERR_TRUNCATED;
	*ret = (struct grpc_message){.len = n, .flag = flag};
	if (flag != 0)
		return -ERR_MALFORMED;
	if (n > max)
		return -ERR_LIMIT;
	ret->data = rd_bytes(&r, n);
	return ret->data == NULL ? -ERR_TRUNCATED : 0;
}

void grpc_put_prefix(uint8_t out[GRPC_PREFIX_BYTES], uint32_t len)
{
	out[0] = 0;
	for (int i = 0; i < 4; i++)
		out[1 + i] = (uint8_t)(len >> (24 - 8 * i));
}

bool grpc_content_type_ok(const char *text, size_t len)
{
	static const char want[] = "application/grpc";
	size_t n = sizeof(want) - 1;
	return len >= n && memcmp(text, want, n) == 0 &&
	       (len == n || text[n] == '+' || text[n] == ';');
}

/* 0: there is no such unit. */
static uint64_t unit_ns(char unit)
{
	static const struct {
		char unit;
		uint64_t ns;
	} units[] = {{'H', 3600000000000}, {'M', 60000000000}, {'S', 1000000000}, {'m', 1000000},
		{'u', 1000}, {'n', 1}};
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (units[i].unit == unit)
			return units[i].ns;
	}
	return 0;
}

int grpc_timeout_parse(const char *text, size_t len, uint64_t *ret_us)
{
	uint64_t v = 0;
	if (len < 2 || len > 9)
		return -ERR_MALFORMED;
	for (size_t i = 0; i + 1 < len; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -ERR_MALFORMED;
		v = v * 10 + (uint64_t)(text[i] - '0');
	}
	uint64_t ns = unit_ns(text[len - 1]);
	if (ns == 0)
		return -ERR_MALFORMED;
	/* 99,999,999 hours are more nanoseconds than fit. */
	*ret_us = ns >= 1000 ? v * (ns / 1000) : v / 1000;
	return 0;
}

void grpc_put_status_message(struct buf *b, const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
		if (*p >= 0x20 && *p <= 0x7E && *p != '%') {
			buf_put_u8(b, *p);
		} else {
			buf_put_u8(b, '%');
			buf_put_u8(b, (uint8_t)hex[*p >> 4]);
			buf_put_u8(b, (uint8_t)hex[*p & 15]);
		}
	}
}
