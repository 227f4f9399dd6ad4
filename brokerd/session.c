/* SPDX-License-Identifier: PostgreSQL */
/*
 * A session's life and its socket: reading, sending, timers, the end. See session.h for the states;
 * packets are session_in.c, deliveries session_out.c.
 *
 * Reading: one read per pass into the broker's shared buffer; what is not a whole packet yet is
 * kept in s->in, which grows with what has arrived, never with what a header claims. Sending:
 * everything that was added in a pass leaves in one write at its end.
 *
 * On crash: clients see a closed connection and connect again; nothing of a session outlives it.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "brokerd/session.h"
#include "common/base/err.h"
#include "common/base/listener.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define OUT_KEEP_BYTES 1024 /* an empty output buffer of up to this size is kept */

MEM_TYPE(mem_session, "session");

const char *session_state_str(enum session_state state)
{
	static const char *const names[SESSION_STATE_COUNT] = {"new", "up", "linger", "gone"};
	return state < SESSION_STATE_COUNT ? names[state] : "?";
}

const char *session_address(const struct session *s, char *out, size_t size)
{
	return listener_peer(s->fd, out, size);
}

const char *session_name(const struct session *s, char *out, size_t size)
{
	char id[160], address[80];
	session_address(s, address, sizeof(address));
	if (s->client_id != NULL)
		snprintf(out, size, "client %s at %s",
			log_escape(s->client_id, strlen(s->client_id), id, sizeof(id)), address);
	else
		snprintf(out, size, "connection from %s", address);
	return out;
}

static void session_set_state(struct session *s, enum session_state state)
{
	if (log_get_level() >= LOG_LEVEL_DEBUG) {
		char name[320];
		log_debug("mqtt.session", "%s: %s -> %s", session_name(s, name, sizeof(name)),
			session_state_str(s->state), session_state_str(state));
	}
	s->state = (uint8_t)state;
}

/* --- timers --- */

/* When the oldest QoS 1 delivery has waited for ack_timeout: for its PUBACK, or, while bytes before
 * it fill the socket, for the client to read any of them. 0: nothing waits. */
static uint64_t ack_deadline(const struct session *s)
{
	uint64_t since = s->acked_ms;
	if (s->q_len == 0)
		return 0;
	if (s->q_sent == 0 && s->sent_ms > since)
		since = s->sent_ms;
	return since + s->b->conf.ack_timeout_ms;
}

/* When something is due, given what the session is doing; 0: never. */
static uint64_t next_deadline(const struct session *s)
{
	const struct broker_conf *c = &s->b->conf;
	uint64_t at = 0, ack_at = ack_deadline(s);
	if (s->state == SESSION_NEW)
		return s->created_ms + c->connect_timeout_ms;
	if (s->state != SESSION_UP)
		return s->heard_ms + SESSION_LINGER_MS;
	if (s->stalled_out)
		return s->sent_ms + c->ack_timeout_ms;
	/* Whom we do not read from at the moment owes us nothing. */
	if (s->paused)
		return 0;
	if (s->keep_alive_s > 0)
		at = s->heard_ms + (uint64_t)s->keep_alive_s * 1500; /* MQTT-3.1.2-22 */
	return ack_at != 0 && (at == 0 || ack_at < at) ? ack_at : at;
}

void session_wake_at(struct session *s, uint64_t at_ms)
{
	if (s->timer.active && s->timer_at_ms <= at_ms)
		return;
	uint64_t now = ev_now_ms();
	s->timer_at_ms = at_ms;
	ev_timer_start(&s->timer, at_ms > now ? at_ms - now : 0);
}

static void release(void *arg)
{
	struct session *s;
	OBJ_CAST(s, arg, SESSION_MAGIC);
	ASSERT(s->state == SESSION_GONE && s->q == NULL && s->will == NULL);
	buf_free(&s->in);
	buf_free(&s->out);
	free(s->client_id);
	s->magic = 0;
	mem_free(&mem_session, s);
}

/* The last step: from here on only the memory is left, until the end of the pass. */
static void session_gone(struct session *s)
{
	ASSERT(s->state == SESSION_LINGER);
	session_set_state(s, SESSION_GONE);
	ev_timer_stop(&s->timer);
	ev_io_stop(&s->io);
	(void)close(s->fd); /* nothing that was sent depends on it */
	s->fd = -1;
	list_remove(&s->in_all);
	list_remove(&s->in_dirty);
	s->b->n_connections--;
	ev_defer(s->b->loop, &s->release, release, s);
}

void session_abandon(struct session *s)
{
	if (s->state == SESSION_LINGER)
		session_gone(s);
}

static const char not_read[] = "nothing was read within brokerd.ack_timeout";

/* True: ack_timeout was over, and so is the session. */
static bool end_unacknowledged(struct session *s)
{
	uint64_t at = ack_deadline(s);
	if (at == 0 || at > ev_now_ms())
		return false;
	if (s->q_sent == 0)
		session_end(s, END_STALLED, not_read);
	else
		session_end(
			s, END_ACK_TIMEOUT, "nothing was acknowledged within brokerd.ack_timeout");
	return true;
}

static void on_timer(void *arg)
{
	struct session *s;
	OBJ_CAST(s, arg, SESSION_MAGIC);
	uint64_t now = ev_now_ms(), at = next_deadline(s);
	if (at == 0)
		return;
	if (at > now) {
		session_wake_at(s, at);
		return;
	}
	if (s->state == SESSION_NEW)
		session_end(s, END_CONNECT_TIMEOUT, "no CONNECT within brokerd.connect_timeout");
	else if (s->state == SESSION_LINGER)
		session_gone(s);
	else if (s->stalled_out)
		session_end(s, END_STALLED, not_read);
	else if (!end_unacknowledged(s))
		session_end(s, END_KEEP_ALIVE, "silent for 1.5 times the keep-alive");
}

/* --- sending --- */

static void update_io(struct session *s)
{
	short what = 0;
	bool pending = session_out_bytes(s) > 0;
	if (s->state == SESSION_GONE)
		return;
	if (s->state == SESSION_LINGER || !(s->paused || s->stalled_out))
		what |= EV_READ;
	if (pending && !list_empty(&s->in_dirty))
		pending = false; /* it will be tried at the end of the pass */
	if (pending)
		what |= EV_WRITE;
	ev_io_set(&s->io, s->fd, what);
}

/* Bytes of the output buffer that are gone. */
static void out_sent(struct session *s, size_t n)
{
	s->out_at += n;
	s->bytes_out += n;
	broker_count(s->b, STAT_BYTES_OUT, n);
	if (s->out_at == s->out.len_bytes) {
		s->out_at = 0;
		if (s->out.cap_bytes > OUT_KEEP_BYTES) {
			buf_free(&s->out);
			buf_init(&s->out, 0);
		} else {
			buf_reset(&s->out);
		}
	} else if (s->out_at > s->out.len_bytes / 2) {
		buf_consume(&s->out, s->out_at);
		s->out_at = 0;
	}
}

/* 0: everything is sent; -EAGAIN: the socket is full; else it is broken. */
static int write_out(struct session *s)
{
	while (session_out_bytes(s) > 0) {
		ssize_t n =
			send(s->fd, s->out.data + s->out_at, session_out_bytes(s), MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EWOULDBLOCK ? -EAGAIN : -errno;
		s->sent_ms = ev_now_ms();
		out_sent(s, (size_t)n);
	}
	return 0;
}

static void session_process_kept(struct session *s);

/* After a time in which nothing was read from the client, that time does not count against it.
 * Short ones do: a client that makes us pause all the time would else never be due. */
static void read_again(struct session *s)
{
	uint64_t now = ev_now_ms();
	s->heard_ms = now;
	if (now - s->unread_ms >= SESSION_LONG_PAUSE_MS)
		s->acked_ms = now;
}

void session_flush(struct session *s)
{
	int err = 0;
	if (s->state == SESSION_GONE)
		return;
	/* Twice: what the first write made room for. More in the next pass, others want their turn.
	 */
	for (int i = 0; i < 2 && err == 0; i++) {
		if (s->state == SESSION_UP)
			session_pump(s);
		if (session_out_bytes(s) == 0)
			break;
		err = write_out(s);
	}
	if (err != 0 && err != -EAGAIN) {
		s->out_at = s->out.len_bytes; /* nobody will take it any more */
		if (s->state == SESSION_LINGER)
			session_gone(s);
		else
			session_end(s, END_LOST, err_str(err));
		return;
	}
	if (s->state == SESSION_LINGER && session_out_bytes(s) == 0 && !s->shut) {
		s->shut = true;
		(void)shutdown(s->fd, SHUT_WR); /* if it fails, the timer closes */
	}
	if (s->state == SESSION_UP && err == 0 && s->q_sent < s->q_len &&
		s->q_sent < s->send_window)
		broker_flush_soon(s->b, s);
	if (s->stalled_out && session_out_bytes(s) < s->b->conf.max_queued_bytes) {
		s->stalled_out = false;
		read_again(s);
		session_process_kept(s);
		if (s->state == SESSION_UP && next_deadline(s) != 0)
			session_wake_at(s, next_deadline(s));
	}
	update_io(s);
}

/* --- reading --- */

/* CONNECT that is longer than max_packet: 5.0 has an answer, if we already see that it is 5.0. */
static void refuse_large(struct session *s, const uint8_t *data, size_t len, size_t header)
{
	static const char why[] =
		"the packet is longer than brokerd.max_packet allows; raise it or send less";
	static const uint8_t v5[] = {0, 4, 'M', 'Q', 'T', 'T', MQTT_VERSION_5};
	if (s->state == SESSION_UP) {
		session_end(s, END_TOO_LARGE, why);
		return;
	}
	bool is_v5 = data[0] == MQTT_CONNECT << 4 && len >= header + sizeof(v5) &&
		     memcmp(data + header, v5, sizeof(v5)) == 0;
	session_refuse(s, END_TOO_LARGE, is_v5 ? MQTT_VERSION_5 : 0, MQTT_RC_PACKET_TOO_LARGE, why);
}

/* Handles whole packets; returns how many bytes are used up. */
static size_t process(struct session *s, const uint8_t *data, size_t len)
{
	size_t used = 0;
	while ((s->state == SESSION_NEW || s->state == SESSION_UP) && !s->paused &&
		!s->stalled_out) {
		struct mqtt_frame frame;
		int err = mqtt_frame_peek(data + used, len - used, &frame);
		if (err == -ERR_TRUNCATED)
			break;
		size_t total = err == 0 ? frame.header_bytes + frame.body_bytes : len - used;
		if (err == 0 && total > s->max_in_bytes) {
			refuse_large(s, data + used, len - used, frame.header_bytes);
			break;
		}
		if (err == 0 && total > len - used &&
			(s->state == SESSION_UP || frame.type == MQTT_CONNECT))
			break;
		/* A header that is malformed, or that cannot begin a connection, needs no more
		 * bytes. */
		if (err == 0 && total > len - used) {
			session_refuse(s, END_NOT_MQTT, 0, 0, "the first packet is not CONNECT");
			break;
		}
		if (session_handle(s, data + used, total) == HANDLED_LATER)
			break;
		used += total;
		s->stalled_out =
			s->state == SESSION_UP &&
			session_out_bytes(s) > s->b->conf.max_queued_bytes + SESSION_OUT_SLACK;
		if (s->stalled_out) {
			s->unread_ms = ev_now_ms();
			session_wake_at(s, s->unread_ms + s->b->conf.ack_timeout_ms);
		}
	}
	return s->state == SESSION_NEW || s->state == SESSION_UP ? used : len;
}

/* Looks again at what is kept in s->in. */
static void session_process_kept(struct session *s)
{
	if (s->in.len_bytes > 0)
		buf_consume(&s->in, process(s, s->in.data, s->in.len_bytes));
	if (s->in.len_bytes == 0) {
		buf_free(&s->in);
		buf_init(&s->in, 0);
	}
}

static void on_bytes(struct session *s, const uint8_t *data, size_t len)
{
	s->heard_ms = ev_now_ms();
	s->bytes_in += len;
	broker_count(s->b, STAT_BYTES_IN, len);
	if (s->in.len_bytes > 0) {
		/* At most max_packet and one read: a longer packet is refused by its header. */
		buf_put(&s->in, data, len);
	} else {
		size_t used = process(s, data, len);
		if (used == len)
			return;
		buf_put(&s->in, data + used, len - used);
		return;
	}
	session_process_kept(s);
}

static void on_readable(struct session *s)
{
	ssize_t n = recv(s->fd, s->b->read_buf, sizeof(s->b->read_buf), 0);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (n <= 0) {
		const char *why = n == 0 ? "the client closed the connection" : err_str(-errno);
		if (s->state == SESSION_LINGER)
			session_gone(s);
		else
			session_end(s, END_LOST, why);
		return;
	}
	if (s->state != SESSION_LINGER) /* there it is thrown away */
		on_bytes(s, s->b->read_buf, (size_t)n);
}

static void on_io(int fd, short what, void *arg)
{
	struct session *s;
	OBJ_CAST(s, arg, SESSION_MAGIC);
	(void)fd;
	if ((what & EV_READ) != 0)
		on_readable(s);
	if ((what & EV_WRITE) != 0 && s->state != SESSION_GONE)
		session_flush(s);
	update_io(s);
}

void session_resume(struct session *s)
{
	ASSERT(s->paused);
	s->paused = false;
	s->b->n_paused--;
	list_remove(&s->in_paused);
	read_again(s);
	session_process_kept(s);
	/* It may be paused again already, and then has no deadline. */
	if (s->state == SESSION_UP && !end_unacknowledged(s) && next_deadline(s) != 0)
		session_wake_at(s, next_deadline(s));
	update_io(s);
}

/* --- birth and end --- */

struct session *session_new(struct broker *b, int fd)
{
	struct session *s = mem_new(&mem_session, sizeof(*s));
	s->magic = SESSION_MAGIC;
	s->state = SESSION_NEW;
	s->b = b;
	s->fd = fd;
	s->serial = s->origin = ++b->next_serial;
	s->q_pid = SESSION_FIRST_PACKET_ID;
	s->max_in_bytes = b->conf.max_packet_bytes;
	s->created_ms = s->heard_ms = s->sent_ms = ev_now_ms();
	list_init(&s->in_dirty);
	list_init(&s->in_paused);
	list_init(&s->subs);
	list_init(&s->inbound);
	buf_init(&s->in, 0);
	buf_init(&s->out, 0);
	list_push_back(&b->sessions, &s->in_all);
	b->n_connections++;
	ev_io_init(&s->io, b->loop, "mqtt client", on_io, s);
	ev_timer_init(&s->timer, b->loop, "mqtt client timer", on_timer, s);
	ev_io_set(&s->io, fd, EV_READ);
	session_wake_at(s, s->created_ms + b->conf.connect_timeout_ms);
	return s;
}

void session_up(struct session *s, const char *client_id)
{
	struct broker *b = s->b;
	struct session *old = NULL;
	unsigned hash = (unsigned)topic_hash(client_id, strlen(client_id), 0);
	ASSERT(s->state == SESSION_NEW && s->client_id == NULL);
	HASH_FIND_BYHASHVALUE(hh, b->by_client, client_id, strlen(client_id), hash, old);
	if (old != NULL) {
		s->origin = old->origin; /* still the same client: no-local goes on */
		session_end(
			old, END_TAKEN_OVER, "another connection uses the same client identifier");
	}
	s->client_id = xstrdup(client_id);
	s->connected_at = (int64_t)time(NULL);
	HASH_ADD_KEYPTR_BYHASHVALUE(hh, b->by_client, s->client_id, strlen(s->client_id), hash, s);
	b->n_sessions++;
	broker_count(b, STAT_CONNECTED, 1);
	session_set_state(s, SESSION_UP);
	/* The timer stands at the connect timeout; next_deadline decides when it comes. */
	if (next_deadline(s) != 0)
		session_wake_at(s, next_deadline(s));
}

/* What the session holds for others goes back; its name is free. */
static void session_detach(struct session *s)
{
	struct broker *b = s->b;
	while (!list_empty(&s->subs))
		topic_tree_remove(b->tree, list_first(&s->subs, struct topic_sub, in_owner));
	s->n_subs = 0;
	session_forget_inbound(s);
	session_drop_queue(s);
	if (s->paused) {
		s->paused = false;
		b->n_paused--;
		list_remove(&s->in_paused);
	}
	s->stalled_out = false;
	for (size_t i = 0; s->aliases != NULL && i < s->alias_maximum; i++)
		free(s->aliases[i].topic);
	free(s->aliases);
	s->aliases = NULL;
	if (s->client_id != NULL) {
		HASH_DELETE(hh, b->by_client, s);
		b->n_sessions--;
	}
}

static void log_end(const struct session *s, enum end_reason reason, const char *why)
{
	char name[320];
	session_name(s, name, sizeof(name));
	if (reason == END_CLIENT || reason == END_LOST || reason == END_SHUTDOWN)
		log_debug("mqtt.end", "%s: %s: %s", name, brokerd_ends[reason].name, why);
	else
		log_limited(LOG_LEVEL_INFO, "mqtt.end", "%s: closed: %s: %s", name,
			brokerd_ends[reason].name, why);
}

/* From NEW or UP to LINGER, or straight to GONE if there is nobody to talk to. */
static void session_close(struct session *s, enum end_reason reason, const char *why)
{
	ASSERT(s->state == SESSION_NEW || s->state == SESSION_UP);
	log_end(s, reason, why);
	broker_count(s->b, STAT_ENDS + reason, 1);
	s->end = (uint8_t)reason;
	session_set_state(s, SESSION_LINGER);
	session_detach(s);
	session_publish_will(s);
	s->heard_ms = ev_now_ms();
	if (reason == END_LOST || reason == END_STALLED) {
		session_gone(s);
		return;
	}
	session_wake_at(s, s->heard_ms + SESSION_LINGER_MS);
	broker_flush_soon(s->b, s);
}

static void put_last_words(struct session *s, enum mqtt_type type, uint8_t code, const char *why)
{
	struct mqtt_packet p = {.type = type, .version = s->version};
	struct buf props;
	buf_init(&props, 0);
	size_t len = strlen(why);
	/* The reason code matters more than its text. */
	if (s->version == MQTT_VERSION_5 &&
		(s->max_out_bytes == 0 || len + 16 <= s->max_out_bytes)) {
		mqtt_prop_put_bytes(&props, MQTT_PROP_REASON_STRING, why, len);
		p.props.raw =
			(struct mqtt_bytes){.p = props.data, .len = (uint32_t)props.len_bytes};
	}
	if (type == MQTT_CONNACK)
		p.connack.code = code;
	else
		p.reason = code;
	session_send(s, &p);
	buf_free(&props);
}

void session_end_code(struct session *s, enum end_reason reason, uint8_t code, const char *why)
{
	if (s->state != SESSION_NEW && s->state != SESSION_UP)
		return;
	bool speak = s->state == SESSION_UP && s->version == MQTT_VERSION_5 && code != 0;
	session_close(s, reason, why);
	if (speak)
		put_last_words(s, MQTT_DISCONNECT, code, why);
}

void session_end(struct session *s, enum end_reason reason, const char *why)
{
	session_end_code(s, reason, brokerd_ends[reason].code, why);
}

void session_refuse(
	struct session *s, enum end_reason reason, uint8_t version, uint8_t code, const char *why)
{
	/* What 3.1.1 can say of it; what it cannot say is said by closing. */
	static const uint8_t returns[256] = {[MQTT_RC_UNSUPPORTED_VERSION] = MQTT_311_BAD_VERSION,
		[MQTT_RC_CLIENT_ID_INVALID] = MQTT_311_BAD_CLIENT_ID,
		[MQTT_RC_SERVER_UNAVAILABLE] = MQTT_311_UNAVAILABLE,
		[MQTT_RC_BAD_USER_OR_PASSWORD] = MQTT_311_BAD_USER_OR_PASSWORD,
		[MQTT_RC_NOT_AUTHORIZED] = MQTT_311_NOT_AUTHORIZED};
	ASSERT(s->state == SESSION_NEW);
	session_close(s, reason, why);
	s->version = version;
	if (version == MQTT_VERSION_311 && returns[code] == 0)
		return;
	if (version != 0)
		put_last_words(
			s, MQTT_CONNACK, version == MQTT_VERSION_5 ? code : returns[code], why);
}
