/* SPDX-License-Identifier: PostgreSQL */
/*
 * The MQTT codec on anything: the first byte chooses the version (0, 3.1.1, 5.0, 5.0), the rest is
 * a stream of packets. What decodes must encode again, to the same bytes where there is only one
 * way to write it, and else to bytes that decode and encode to themselves.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "brokerd/mqtt_proto.h"
#include "common/base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Acknowledgements, DISCONNECT and AUTH may spell out what they could leave out. */
static bool has_long_form(const struct mqtt_packet *p)
{
	return p->version == MQTT_VERSION_5 &&
	       ((p->type >= MQTT_PUBACK && p->type <= MQTT_PUBCOMP) || p->type >= MQTT_DISCONNECT);
}

static void walk_props(const struct mqtt_props *props)
{
	struct rd r = rd_make(props->raw.p, props->raw.len);
	size_t len = 0;
	uint64_t present = 0;
	for (struct mqtt_prop prop; mqtt_prop_next(&r, &prop);) {
		len += prop.raw.len;
		present |= UINT64_C(1) << prop.row->id;
	}
	ASSERT(len == props->raw.len);
	ASSERT(present == props->present);
}

static void walk_filters(const struct mqtt_packet *p)
{
	if (p->type != MQTT_SUBSCRIBE && p->type != MQTT_UNSUBSCRIBE)
		return;
	struct rd r = rd_make(p->subscribe.filters.p, p->subscribe.filters.len);
	uint32_t n = 0;
	for (struct mqtt_filter f; mqtt_filter_next(&r, p->type, &f);) {
		n++;
		ASSERT(mqtt_utf8_valid(f.filter.p, f.filter.len));
		ASSERT(f.qos <= 2 && f.retain_handling <= 2);
	}
	ASSERT(n == p->subscribe.n_filters && r.left_bytes == 0 && !r.failed);
}

static void check_round_trip(const struct mqtt_packet *p, const uint8_t *data, size_t len)
{
	struct buf once, twice;
	struct mqtt_packet q;
	struct mqtt_error e;
	buf_init(&once, 0);
	buf_init(&twice, 0);
	mqtt_encode(&once, p);
	bool same = once.len_bytes == len && memcmp(once.data, data, len) == 0;
	ASSERT(same || (has_long_form(p) && once.len_bytes < len));
	ASSERT(mqtt_decode(once.data, once.len_bytes, p->version, &q, &e) == 0);
	mqtt_encode(&twice, &q);
	ASSERT(twice.len_bytes == once.len_bytes &&
		memcmp(twice.data, once.data, once.len_bytes) == 0);
	buf_free(&once);
	buf_free(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t versions[] = {0, MQTT_VERSION_311, MQTT_VERSION_5, MQTT_VERSION_5};
	if (size == 0)
		return 0;
	uint8_t version = versions[data[0] & 3];
	data++;
	size--;
	for (struct mqtt_frame f; mqtt_frame_peek(data, size, &f) == 0;) {
		size_t total = f.header_bytes + f.body_bytes;
		if (total > size)
			break;
		/* A copy of exact size shows the sanitizer every read beyond the packet. */
		uint8_t *exact = xmemdup(data, total);
		struct mqtt_packet p;
		struct mqtt_error e;
		int err = mqtt_decode(exact, total, version, &p, &e);
		if (err == 0) {
			walk_props(&p.props);
			if (p.type == MQTT_CONNECT && p.connect.has_will &&
				p.version == MQTT_VERSION_5)
				walk_props(&p.connect.will_props);
			walk_filters(&p);
			check_round_trip(&p, exact, total);
			version = p.version;
		} else {
			ASSERT(e.why != NULL && e.reason >= MQTT_RC_UNSPECIFIED);
		}
		free(exact);
		data += total;
		size -= total;
	}
	return 0;
}
