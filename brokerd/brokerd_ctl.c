/* SPDX-License-Identifier: PostgreSQL */
/*
 * brokerd's admin commands. mqtt.sessions streams: between two rows that do not fit any more and
 * the next ones, sessions may come and go, so that the place is kept as a connection's serial
 * number.
 */
#include "config.h"

#include <string.h>

#include "brokerd/brokerd_int.h"
#include "brokerd/session.h"
#include "common/base/mem.h"

#define LISTING_MAGIC 0x6d6c6973u

struct listing {
	uint32_t magic;
	struct broker *b;
	uint64_t after; /* the last serial shown */
	int64_t left;
};

MEM_TYPE(mem_listing, "session listing");

static json_t *session_row(const struct session *s)
{
	char address[80];
	uint64_t now = ev_now_ms();
	return json_pack(
		"{s:s%,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:b}", //
		"client_id", s->client_id, strlen(s->client_id),                          //
		"version", s->version == MQTT_VERSION_5 ? "5.0" : "3.1.1",                //
		"address", session_address(s, address, sizeof(address)),                  //
		"connected_since", (json_int_t)s->connected_at,                           //
		"keep_alive_s", (json_int_t)s->keep_alive_s,                              //
		"silent_ms", (json_int_t)(now - s->heard_ms),                             //
		"subscriptions", (json_int_t)s->n_subs,                                   //
		"queued", (json_int_t)(s->q_len - s->q_sent),                             //
		"inflight", (json_int_t)s->q_sent,                                        //
		"queued_bytes", (json_int_t)s->q_bytes,                                   //
		"unsent_bytes", (json_int_t)session_out_bytes(s),                         //
		"uncommitted", (json_int_t)s->n_inbound,                                  //
		"received", (json_int_t)s->n_publish_in,                                  //
		"sent", (json_int_t)s->n_publish_out,                                     //
		"dropped", (json_int_t)s->n_dropped,                                      //
		"paused", s->paused,                                                      //
		"congested", s->congested);
}

static void listing_free(struct listing *l)
{
	l->magic = 0;
	mem_free(&mem_listing, l);
}

/* True: everything is shown. */
static bool list_on(struct ctl_client *c, struct listing *l)
{
	list_for_each (it, &l->b->sessions) {
		const struct session *s = list_entry(it, struct session, in_all);
		if (l->left == 0)
			break;
		if (s->serial <= l->after || s->state != SESSION_UP)
			continue;
		l->after = s->serial;
		l->left--;
		if (ctl_row(c, session_row(s)) != 0)
			return false;
	}
	return true;
}

static void on_drained(struct ctl_client *c, void *arg)
{
	struct listing *l;
	OBJ_CAST(l, arg, LISTING_MAGIC);
	if (!list_on(c, l))
		return;
	ctl_ok(c);
	listing_free(l);
}

static void on_gone(struct ctl_client *c, void *arg)
{
	struct listing *l;
	OBJ_CAST(l, arg, LISTING_MAGIC);
	(void)c;
	listing_free(l);
}

static void cmd_sessions(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	const struct brokerd *self = d->self;
	const json_t *limit = json_object_get(req->args, "limit");
	if (limit != NULL && (!json_is_integer(limit) || json_integer_value(limit) < 0)) {
		ctl_fail(c, "invalid", "give a whole number", "limit is not a number of rows");
		return;
	}
	struct listing *l = mem_new(&mem_listing, sizeof(*l));
	l->magic = LISTING_MAGIC;
	l->b = self->b;
	l->left = limit != NULL ? json_integer_value(limit) : -1;
	if (list_on(c, l)) {
		ctl_ok(c);
		listing_free(l);
		return;
	}
	ctl_hold(c, on_drained, on_gone, l);
}

const struct ctl_handler brokerd_commands[] = {
	{"mqtt.sessions", cmd_sessions},
	{NULL, NULL},
};
