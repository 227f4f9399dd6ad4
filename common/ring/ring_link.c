/* SPDX-License-Identifier: PostgreSQL */
/*
 * Bodies of the messages by which a consumer and the producer find each other: see ring_link.h.
 *
 * Context: event thread; pure bytes.
 */
#include "config.h"

#include "common/ring/ring_link.h"

void ring_link_put_attach(struct buf *b, const struct ring_link_attach *m)
{
	buf_put_be32(b, m->version);
	buf_put_be64(b, m->acked_lsn);
}

int ring_link_get_attach(struct rd *r, struct ring_link_attach *ret_m)
{
	struct ring_link_attach m = {.version = rd_be32(r), .acked_lsn = 0};
	m.acked_lsn = rd_be64(r);
	int err = rd_end(r);
	if (err == 0)
		*ret_m = m;
	return err;
}

void ring_link_put_grant(struct buf *b, const struct ring_link_grant *m)
{
	buf_put_be64(b, m->epoch);
	buf_put_be64(b, m->from_lsn);
	buf_put_be32(b, m->timeline);
}

int ring_link_get_grant(struct rd *r, struct ring_link_grant *ret_m)
{
	struct ring_link_grant m;
	m.epoch = rd_be64(r);
	m.from_lsn = rd_be64(r);
	m.timeline = rd_be32(r);
	int err = rd_end(r);
	if (err == 0)
		*ret_m = m;
	return err;
}
