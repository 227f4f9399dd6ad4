/* SPDX-License-Identifier: PostgreSQL */
/*
 * The receive path against a walsender played by hand: every byte boundary, every kind of frame,
 * nonsense, the path, a full socket, a key update, the buffer's size; and the rest
 * between two wake-ups by a clock that the test moves.
 */
#include "config.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <poll.h>

#include <cmocka.h>

#include "libpgwalstream/stream_internal.h"
#include "libpgwalstream/wire.h"
#include "tests/unit/helper_tls.h"
#include "tests/unit/helper_walsender.h"

#define STEPS 20000 /* of a millisecond at most */

static char cert_dir[64];
static bool have_tls;

static const struct frames *copy_both(void)
{
	static struct frames f;
	f.len = 0;
	put_frame(&f, 'W', "\0\0\0", 3);
	return &f;
}

static struct walsender *open_walsender(bool tls)
{
	struct walsender *w = calloc(1, sizeof(*w));
	assert_non_null(w);
	walsender_open(w, tls ? cert_dir : NULL);
	return w;
}

static enum pgws_streaming streaming_option;

static struct pgws_stream *make(const struct walsender *w, enum pgws_receive how)
{
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	o.streaming = streaming_option;
	o.conninfo = w->conninfo;
	o.slot = "s";
	o.publications = "p";
	o.receive = how;
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_non_null(s);
	return s;
}

static void wait_readable(struct pgws_stream *s)
{
	struct pollfd p = {.fd = pgws_stream_fd(s), .events = POLLIN};
	(void)poll(&p, 1, 1);
}

/* Until the phase ends. */
static int work(struct pgws_stream *s, struct walsender *w)
{
	for (int i = 0; i < STEPS; i++) {
		int err = pgws_stream_work(s);
		if (err != PGWS_EAGAIN)
			return err;
		walsender_step(w);
		wait_readable(s);
	}
	fail_msg("no progress in phase %d", (int)pgws_stream_phase(s));
	return PGWS_EAGAIN;
}

/* As far as the command, which the walsender has read and not answered. */
static void command(struct pgws_stream *s, struct walsender *w)
{
	char body[2000];
	char type = 0;
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(work(s, w), 0);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	for (int i = 0; i < STEPS && type == 0; i++) {
		assert_int_equal(pgws_stream_work(s), PGWS_EAGAIN);
		type = walsender_frame(w, body, sizeof(body));
	}
	assert_int_equal(type, 'Q');
	assert_memory_equal(body, "START_REPLICATION ", 18);
}

static struct pgws_stream *streaming(struct walsender *w, enum pgws_receive how)
{
	struct pgws_stream *s = make(w, how);
	command(s, w);
	walsender_say(w, copy_both());
	assert_int_equal(work(s, w), 0);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_STREAMING);
	return s;
}

static void done(struct pgws_stream *s, struct walsender *w)
{
	pgws_stream_free(&s);
	walsender_hang_up(w);
}

/* The next event or error, waiting. */
static int next(struct pgws_stream *s, struct pgws_event *ret_event)
{
	for (int i = 0; i < STEPS; i++) {
		int err = pgws_stream_next(s, ret_event);
		if (err != PGWS_EAGAIN)
			return err;
		wait_readable(s);
	}
	fail_msg("nothing came");
	return PGWS_EAGAIN;
}

/* ---- Boundaries ------------------------------------------------------------------------------ */

static void put_script(struct frames *f)
{
	put_frame(f, 'N', "SNOTICE\0C00000\0Mhear\0", 22);
	put_bytes(f, copy_both()->bytes, copy_both()->len);
	put_keepalive(f, 5, 1);
	put_frame(f, 'S', "TimeZone\0UTC", 13);
	put_data(f, 10, "", 0);
	put_frame(f, 'd', "", 0);
	put_data(f, 11, "abc", 3);
	put_frame(f, 'A', "\0\0\0\1chan\0load", 14);
	put_frame(f, 'N', "SNOTICE\0C00000\0Mhear\0", 22);
	put_keepalive(f, 6, 0);
	put_data(f, 12, "0123456789", 10);
	put_frame(f, 'c', "", 0);
}

/* Takes what is there of the script; *at is how many events were seen. The last call's result. */
static int take_script(struct pgws_stream *s, int *at)
{
	static const struct {
		int kind;
		uint64_t lsn;
		const char *data;
	} expect[] = {{PGWS_EVENT_KEEPALIVE, 0, "k"}, {PGWS_EVENT_DATA, 10, ""},
		{PGWS_EVENT_DATA, 11, "abc"}, {PGWS_EVENT_KEEPALIVE, 0, ""},
		{PGWS_EVENT_DATA, 12, "0123456789"}};
	struct pgws_event ev;
	int err;
	while ((err = pgws_stream_next(s, &ev)) == 0) {
		assert_true(*at < 5);
		assert_int_equal(ev.kind, expect[*at].kind);
		assert_int_equal(ev.start_lsn, expect[*at].lsn);
		if (ev.kind == PGWS_EVENT_DATA) {
			assert_int_equal(ev.end_lsn, ev.start_lsn + 1);
			assert_int_equal(ev.send_time, 77);
			assert_int_equal(ev.len, strlen(expect[*at].data));
			assert_memory_equal(ev.data, expect[*at].data, ev.len);
		} else {
			assert_int_equal(ev.reply_requested, expect[*at].data[0] == 'k');
			assert_int_equal(ev.send_time, 78);
		}
		++*at;
	}
	return err;
}

/* The script in pieces that end at these offsets, each wholly taken in before the next. */
static void play(struct walsender *w, size_t from, size_t step)
{
	struct frames f = {.len = 0};
	put_script(&f);
	struct pgws_stream *s = make(w, PGWS_RECEIVE_SOCKET);
	command(s, w);
	size_t sent = 0;
	int at = 0, err = PGWS_EAGAIN;
	while (err == PGWS_EAGAIN) {
		size_t n = sent == 0 ? from : step;
		if (n > f.len - sent)
			n = f.len - sent;
		assert_true(n > 0);
		assert_int_equal(walsender_send(w, f.bytes + sent, n), n);
		sent += n;
		wait_readable(s);
		/* What is sent over TCP is there a little later. */
		for (int i = 0; i < (w->ssl != NULL && sent == f.len ? STEPS : 2); i++) {
			err = PGWS_EAGAIN;
			if (pgws_stream_phase(s) == PGWS_PHASE_COMMAND)
				err = pgws_stream_work(s);
			if (pgws_stream_phase(s) == PGWS_PHASE_STREAMING)
				err = take_script(s, &at);
			if (err != PGWS_EAGAIN)
				break;
			wait_readable(s);
		}
	}
	assert_int_equal(err, PGWS_EEND);
	assert_int_equal(at, 5);
	done(s, w);
}

static void test_every_boundary(void **state)
{
	(void)state;
	struct frames f = {.len = 0};
	put_script(&f);
	struct walsender *w = open_walsender(false);
	for (size_t i = 1; i < f.len; i++)
		play(w, i, f.len);
	play(w, 1, 1);
	play(w, f.len, f.len);
	walsender_close(w);
	if (!have_tls)
		skip();
	w = open_walsender(true);
	play(w, 1, 1);
	play(w, 7, 3);
	play(w, f.len, f.len);
	walsender_close(w);
}

/* What the walsender would send for one write. */
static size_t encrypt(struct walsender *w, const void *bytes, size_t len, uint8_t *ret_cipher)
{
	char *at;
	BIO *own = SSL_get_wbio(w->ssl), *memory = BIO_new(BIO_s_mem());
	BIO_up_ref(own);
	SSL_set0_wbio(w->ssl, memory);
	assert_int_equal(SSL_write(w->ssl, bytes, (int)len), len);
	size_t n = (size_t)BIO_get_mem_data(memory, &at);
	memcpy(ret_cipher, at, n);
	SSL_set0_wbio(w->ssl, own);
	return n;
}

static void send_raw(struct walsender *w, const uint8_t *bytes, size_t len)
{
	while (len > 0) {
		ssize_t n = send(w->fd, bytes, len, 0);
		assert_true(n > 0);
		bytes += n;
		len -= (size_t)n;
	}
}

/* So many messages come from *lsn on, and then none. */
static void take_numbered(struct pgws_stream *s, int n, uint64_t *lsn)
{
	struct pgws_event ev;
	for (; n > 0; n--) {
		assert_int_equal(next(s, &ev), 0);
		assert_int_equal(ev.start_lsn, *lsn);
		++*lsn;
	}
	assert_int_equal(pgws_stream_next(s, &ev), PGWS_EAGAIN);
}

/* Whatever of the last TLS record has come, the messages before it are given out. */
static void test_tls_boundaries(void **state)
{
	enum { N_SIZES = 4 };
	static const size_t sizes[N_SIZES] = {1, 200, 2500, 40000};
	static uint8_t cipher[60000], body[40000];
	static struct frames f;
	(void)state;
	if (!have_tls)
		skip();
	struct walsender *w = open_walsender(true);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	uint64_t lsn = 1;
	for (size_t cut = 1;; cut += cut < 3000 ? 1 : 997) {
		size_t end[N_SIZES], len = 0;
		int n_first = 0;
		for (size_t i = 0; i < N_SIZES; i++) {
			f.len = 0;
			put_data(&f, lsn + i, body, sizes[i]);
			len += encrypt(w, f.bytes, f.len, cipher + len);
			end[i] = len;
		}
		if (cut >= len)
			break;
		while (end[n_first] <= cut)
			n_first++;
		send_raw(w, cipher, cut);
		wait_readable(s);
		take_numbered(s, n_first, &lsn);
		send_raw(w, cipher + cut, len - cut);
		wait_readable(s);
		take_numbered(s, (int)N_SIZES - n_first, &lsn);
	}
	done(s, w);
	walsender_close(w);
}

/* ---- Ends and errors ------------------------------------------------------------------------- */

/* Both ways say the same of what the server says. */
static void same_end(const struct frames *f, int n_events, int expect, const char *sqlstate)
{
	static const enum pgws_receive ways[] = {PGWS_RECEIVE_LIBPQ, PGWS_RECEIVE_SOCKET};
	char words[2][1100];
	for (int i = 0; i < 2; i++) {
		struct walsender *w = open_walsender(false);
		struct pgws_stream *s = streaming(w, ways[i]);
		assert_int_equal(pgws_stream_receive(s), ways[i]);
		walsender_say(w, f);
		walsender_hang_up(w);
		struct pgws_event ev;
		for (int n = 0; n < n_events; n++)
			assert_int_equal(next(s, &ev), 0);
		assert_int_equal(next(s, &ev), expect);
		assert_string_equal(pgws_stream_sqlstate(s), sqlstate);
		assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
		snprintf(words[i], sizeof(words[i]), "%s", pgws_stream_error(s));
		assert_string_not_equal(words[i], "");
		done(s, w);
		walsender_close(w);
	}
	if (expect == PGWS_ESERVER || expect == PGWS_EEND)
		assert_string_equal(words[0], words[1]);
}

static void test_ends(void **state)
{
	(void)state;
	struct frames f = {.len = 0};
	put_data(&f, 1, "x", 1);
	put_data(&f, 2, "y", 1);
	put_frame(&f, 'c', "", 0);
	same_end(&f, 2, PGWS_EEND, "");
	f.len = 0;
	put_data(&f, 1, "x", 1);
	put_frame(&f, 'C', "COPY 0", 7);
	put_frame(&f, 'Z', "I", 1);
	same_end(&f, 1, PGWS_EEND, "");
#define FIELDS                                                                                     \
	"SFEHLER\0VERROR\0C55000\0Mwords\nof two lines\0Ddetail\0Hhint\0qSELECT "                  \
	"1\0Wwhere\0Fx.c\0L7\0Rfn\0"
	f.len = 0;
	put_data(&f, 1, "x", 1);
	put_frame(&f, 'E', FIELDS, sizeof(FIELDS));
	same_end(&f, 1, PGWS_ESERVER, "55000");
	/* PostgreSQL 18 on a publication that is not there: what follows lacks its changes. */
#define SKIPS "SWARNING\0VWARNING\0C55000\0Mskipped publication \"p\"\0RLoadPublications\0"
	f.len = 0;
	put_data(&f, 1, "x", 1);
	put_frame(&f, 'N', SKIPS, sizeof(SKIPS));
	put_data(&f, 2, "y", 1);
	same_end(&f, 1, PGWS_ESERVER, "42704");
	/* What 17 and 18 say while they wait for a standby is no end. */
#define WAITS "SWARNING\0VWARNING\0C55000\0Mreplication slot \"s\"\0RStandbySlotsHaveCaughtup\0"
	f.len = 0;
	put_data(&f, 1, "x", 1);
	put_frame(&f, 'N', WAITS, sizeof(WAITS));
	put_data(&f, 2, "y", 1);
	put_frame(&f, 'c', "", 0);
	same_end(&f, 2, PGWS_EEND, "");
	f.len = 0;
	put_frame(&f, 'd', "q", 1);
	same_end(&f, 0, PGWS_EPROTO, "");
	f.len = 0;
	put_frame(&f, 'd', "w1234567", 8);
	same_end(&f, 0, PGWS_EPROTO, "");
	/* In the middle of a message. */
	f.len = 0;
	put_data(&f, 1, "x", 1);
	put_data(&f, 2, "0123456789", 10);
	f.len -= 3;
	same_end(&f, 1, PGWS_ECONN, "");
	f.len = 0;
	same_end(&f, 0, PGWS_ECONN, "");
}

/* An ErrorResponse as long as it wants, without a code, without an end. */
static void test_odd_errors(void **state)
{
	(void)state;
	static const char *const bodies[] = {
		"", "S", "SERROR", "SERROR\0C", "Mno code\0", "SERROR\0C123\0Mshort code\0"};
	static const size_t sizes[] = {0, 1, 6, 8, 10, 25};
	struct walsender *w = open_walsender(false);
	struct pgws_event ev;
	for (size_t i = 0; i < 6; i++) {
		struct frames f = {.len = 0};
		put_frame(&f, 'E', bodies[i], sizes[i]);
		struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
		walsender_say(w, &f);
		assert_int_equal(next(s, &ev), PGWS_ECONN);
		done(s, w);
	}
	static char text[3000];
	memset(text, 'm', sizeof(text));
	memcpy(text, "C57P01\0M", 8);
	memcpy(text + 2000, "\0Dd\0", 5);
	struct frames f = {.len = 0};
	put_frame(&f, 'E', text, 2005);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	walsender_say(w, &f);
	assert_int_equal(next(s, &ev), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "57P01");
	assert_memory_equal(pgws_stream_error(s), "mmmm", 4);
	done(s, w);
	walsender_close(w);
}

/* An internal error of the server in the stream may be streaming's fault; another one, one that
 * comes before the stream, or without streaming, is not. */
static void test_streaming_failed(void **state)
{
	(void)state;
	static const enum pgws_receive ways[] = {PGWS_RECEIVE_LIBPQ, PGWS_RECEIVE_SOCKET};
	static const char *const errors[] = {"SERROR\0CXX000\0Mcould not map filenode\0",
		"SERROR\0C57P01\0Mthe server goes down  \0"};
	for (int i = 0; i < 16; i++) {
		bool in_stream = i & 1, internal = i & 2, on = i & 4;
		struct frames f = {.len = 0};
		struct pgws_event ev;
		struct walsender *w = open_walsender(false);
		streaming_option = on ? PGWS_STREAMING_ON : PGWS_STREAMING_OFF;
		struct pgws_stream *s = make(w, ways[i / 8]);
		assert_false(pgws_stream_streaming_failed(s));
		command(s, w);
		if (in_stream) {
			walsender_say(w, copy_both());
			assert_int_equal(work(s, w), 0);
		}
		put_frame(&f, 'E', errors[!internal], 39);
		put_frame(&f, 'Z', "I", 1);
		walsender_say(w, &f);
		assert_int_equal(in_stream ? next(s, &ev) : work(s, w), PGWS_ESERVER);
		assert_int_equal(pgws_stream_streaming_failed(s), in_stream && internal && on);
		pgws_stream_close(s);
		assert_false(pgws_stream_streaming_failed(s));
		done(s, w);
		walsender_close(w);
	}
	streaming_option = PGWS_STREAMING_OFF;
}

static void test_no_message(void **state)
{
	(void)state;
	static const uint8_t bad[][9] = {{'x', 0, 0, 0, 4}, {'d', 0, 0, 0, 3}, {'d', 0, 0, 0, 0},
		{'d', 0xff, 0xff, 0xff, 0xff}, {'d', 0x40, 0, 0, 0x41}, {'R', 0, 0, 0, 8},
		{'W', 0, 0, 0, 4}};
	struct walsender *w = open_walsender(false);
	struct pgws_event ev;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct pgws_stream *s = streaming(w, PGWS_RECEIVE_AUTO);
		struct frames f = {.len = 0};
		put_data(&f, 1, "x", 1);
		put_bytes(&f, bad[i], 9);
		walsender_say(w, &f);
		assert_int_equal(next(s, &ev), 0);
		assert_int_equal(next(s, &ev), PGWS_EPROTO);
		assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
		assert_int_equal(pgws_stream_next(s, &ev), PGWS_ESTATE);
		/* A stream that began well is no reason to go back to libpq's loop. */
		pgws_stream_close(s);
		walsender_hang_up(w);
		command(s, w);
		walsender_say(w, copy_both());
		assert_int_equal(work(s, w), 0);
		assert_int_equal(pgws_stream_receive(s), PGWS_RECEIVE_SOCKET);
		done(s, w);
	}
	walsender_close(w);
}

/* Nonsense in the place of the answer: libpq's loop from the next connection on, if it may. */
static void test_fallback(void **state)
{
	(void)state;
	static const enum pgws_receive first[] = {PGWS_RECEIVE_AUTO, PGWS_RECEIVE_SOCKET};
	static const enum pgws_receive then[] = {PGWS_RECEIVE_LIBPQ, PGWS_RECEIVE_SOCKET};
	static const char *const bad[] = {
		"\0\0\0\0\0\0\0", "d\0\0\0\5x", "W\0\0\0\3", "\x16\3\1\2\0\1\0", "Z\0\0\0\5I"};
	struct walsender *w = open_walsender(false);
	for (size_t i = 0; i < 2 * 5; i++) {
		struct pgws_stream *s = make(w, first[i % 2]);
		command(s, w);
		assert_int_equal(walsender_send(w, bad[i / 2], 6), 6);
		assert_int_equal(work(s, w), PGWS_ECONN);
		assert_non_null(strstr(pgws_stream_error(s), "START_REPLICATION"));
		assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
		pgws_stream_close(s);
		walsender_hang_up(w);
		command(s, w);
		walsender_say(w, copy_both());
		assert_int_equal(work(s, w), 0);
		assert_int_equal(pgws_stream_receive(s), then[i % 2]);
		done(s, w);
	}
	walsender_close(w);
}

static void test_refusal(void **state)
{
	(void)state;
	int ssl;
	assert_null(pgwsi_rx_refusal(false, false, NULL, false));
	assert_null(pgwsi_rx_refusal(false, true, &ssl, false));
	assert_non_null(pgwsi_rx_refusal(false, true, NULL, false));
	assert_non_null(pgwsi_rx_refusal(true, false, NULL, false));
	assert_non_null(pgwsi_rx_refusal(true, true, &ssl, false));
	assert_non_null(pgwsi_rx_refusal(false, true, &ssl, true));
}

#ifdef BIO_CTRL_GET_KTLS_RECV
/* As a socket's BIO of which the kernel has the keys. */
static long ktls_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_GET_KTLS_RECV;
}

static void test_tls_in_the_kernel(void **state)
{
	(void)state;
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	SSL *ssl = SSL_new(ctx);
	assert_non_null(ssl);
	assert_false(pgwsi_tls_in_kernel(ssl));
	SSL_set0_rbio(ssl, BIO_new(BIO_s_mem()));
	assert_false(pgwsi_tls_in_kernel(ssl));
	BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "ktls");
	BIO_meth_set_ctrl(method, ktls_ctrl);
	SSL_set0_rbio(ssl, BIO_new(method));
	assert_true(pgwsi_tls_in_kernel(ssl));
	SSL_free(ssl);
	BIO_meth_free(method);
	SSL_CTX_free(ctx);
}
#else
static void test_tls_in_the_kernel(void **state)
{
	(void)state;
	skip();
}
#endif

/* What the server may say instead of CopyBothResponse. */
static void test_start_answers(void **state)
{
	(void)state;
	struct walsender *w = open_walsender(false);
	struct pgws_stream *s = make(w, PGWS_RECEIVE_SOCKET);
	struct frames f = {.len = 0};
	put_frame(&f, 'S', "a\0b", 4);
	put_frame(&f, 'E', "SERROR\0C42704\0Mgone\0", 21);
	put_frame(&f, 'Z', "I", 1);
	command(s, w);
	walsender_say(w, &f);
	assert_int_equal(work(s, w), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "42704");
	assert_string_equal(pgws_stream_error(s), "ERROR:  gone");
	done(s, w);

	s = make(w, PGWS_RECEIVE_SOCKET);
	f.len = 0;
	put_frame(&f, 'C', "START_STREAMING", 16);
	command(s, w);
	walsender_say(w, &f);
	assert_int_equal(work(s, w), PGWS_EEND);
	done(s, w);

	s = make(w, PGWS_RECEIVE_SOCKET);
	command(s, w);
	walsender_hang_up(w);
	assert_int_equal(work(s, w), PGWS_ECONN);
	assert_string_not_equal(pgws_stream_error(s), "");
	done(s, w);
	walsender_close(w);
}

/* ---- The buffer ------------------------------------------------------------------------------ */

/* One data message of so many bytes, sent as the client reads. */
static void pass_message(struct pgws_stream *s, struct walsender *w, size_t len)
{
	struct frames f = {.len = 0};
	struct pgws_event ev;
	uint8_t *body = malloc(len);
	assert_non_null(body);
	for (size_t i = 0; i < len; i++)
		body[i] = (uint8_t)(i * 7);
	put_data(&f, 3, "", 0);
	uint32_t be = htonl((uint32_t)len + 4 + 25);
	memcpy(f.bytes + 1, &be, 4);
	walsender_say(w, &f);
	size_t sent = 0;
	int err = PGWS_EAGAIN;
	for (int i = 0; i < STEPS && err == PGWS_EAGAIN; i++) {
		if (sent < len)
			sent += walsender_send(w, body + sent, len - sent);
		err = pgws_stream_next(s, &ev);
		if (err == PGWS_EAGAIN && sent == len)
			wait_readable(s);
	}
	assert_int_equal(err, 0);
	assert_int_equal(ev.len, len);
	assert_memory_equal(ev.data, body, len);
	free(body);
}

static void test_buffer_size(void **state)
{
	(void)state;
	struct walsender *w = open_walsender(false);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct pgws_event ev;
	pass_message(s, w, 1000);
	assert_int_equal(s->rx->size, PGWSI_BUFFER_BYTES);
	pass_message(s, w, PGWSI_BUFFER_BYTES - 30);
	assert_int_equal(s->rx->size, PGWSI_BUFFER_BYTES);
	/* A megabyte seldom comes alone: kept for a while. */
	pass_message(s, w, 1000000);
	assert_true(s->rx->size >= 1000030 && s->rx->size < 2100000);
	pass_message(s, w, 10);
	assert_true(s->rx->size >= 1000030);
	for (int i = 0; i < 1200; i++)
		pass_message(s, w, 10);
	assert_int_equal(s->rx->size, PGWSI_BUFFER_BYTES);
	pass_message(s, w, 9000000);
	assert_true(s->rx->size >= 9000030);
	pass_message(s, w, 10);
	assert_int_equal(s->rx->size, PGWSI_BUFFER_BYTES);
	/* A length is a promise: it costs nothing. */
	struct frames f = {.len = 0};
	put_bytes(&f,
		"d\x3f\xff\xff\xff"
		"w",
		6);
	walsender_say(w, &f);
	walsender_hang_up(w);
	assert_int_equal(next(s, &ev), PGWS_ECONN);
	assert_int_equal(s->rx->size, PGWSI_BUFFER_BYTES);
	done(s, w);
	walsender_close(w);
}

/* ---- The path -------------------------------------------------------------------------------- */

static struct sockaddr_storage address(int family, const char *text)
{
	struct sockaddr_storage sa = {.ss_family = (sa_family_t)family};
	void *to = family == AF_INET ? (void *)&((struct sockaddr_in *)&sa)->sin_addr
				     : (void *)&((struct sockaddr_in6 *)&sa)->sin6_addr;
	assert_int_equal(inet_pton(family, text, to), 1);
	return sa;
}

static void test_same_machine(void **state)
{
	(void)state;
	static const struct {
		int family;
		const char *ours, *theirs;
		bool same;
	} pairs[] = {
		{AF_INET, "127.0.0.1", "127.0.0.1", true},
		{AF_INET, "127.0.0.1", "127.0.0.53", true},
		{AF_INET, "10.1.2.3", "10.1.2.3", true},
		{AF_INET, "10.1.2.3", "10.1.2.4", false},
		{AF_INET, "127.0.0.1", "10.1.2.4", false},
		{AF_INET6, "::1", "::1", true},
		{AF_INET6, "fe80::1", "fe80::1", true},
		{AF_INET6, "fe80::1", "fe80::2", false},
		{AF_INET6, "::ffff:127.0.0.1", "::ffff:127.0.0.1", true},
	};
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		struct sockaddr_storage ours = address(pairs[i].family, pairs[i].ours),
					theirs = address(pairs[i].family, pairs[i].theirs);
		assert_int_equal(pgwsi_same_machine(&ours, &theirs), pairs[i].same);
	}
	struct sockaddr_storage v4 = address(AF_INET, "127.0.0.1"), v6 = address(AF_INET6, "::1");
	assert_false(pgwsi_same_machine(&v4, &v6));
	struct sockaddr_storage none = {.ss_family = AF_UNSPEC};
	assert_false(pgwsi_same_machine(&none, &none));
}

/* n bytes over a socket of a path, and one read. */
static void read_once(struct pgwsi_rx *rx, int from, size_t n)
{
	static const uint8_t zeros[PGWSI_BUFFER_BYTES];
	assert_int_equal(write(from, zeros, n), n);
	rx->pos = rx->end = rx->buf;
	assert_int_equal(pgwsi_rx_read(rx), 0);
	assert_int_equal(rx->end - rx->buf, n);
}

/* What makes room at the sender is followed by one more read; a full buffer always. */
static void test_more(void **state)
{
	(void)state;
	int fds[2];
	uint8_t buf[4096];
	struct pgwsi_path path = {.more_bytes = 1000};
	struct pgwsi_rx rx = {.path = &path, .buf = buf, .pos = buf, .end = buf};
	rx.size = sizeof(buf);
	rx.quota = 10000;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	rx.fd = fds[0];
	read_once(&rx, fds[1], 1000);
	assert_true(rx.more);
	read_once(&rx, fds[1], 999);
	assert_false(rx.more);
	/* Not for ever: there is other work. */
	rx.bytes = 8999;
	read_once(&rx, fds[1], 1000);
	assert_true(rx.more);
	read_once(&rx, fds[1], 1000);
	assert_false(rx.more);
	rx.bytes = 0;
	path.more_bytes = 0;
	read_once(&rx, fds[1], 4095);
	assert_false(rx.more);
	read_once(&rx, fds[1], 4096);
	assert_true(rx.more);
	close(fds[0]);
	close(fds[1]);
}

/* What comes while a large read is given out is read, too, before anybody waits. */
static void more_is_read(bool tls)
{
	const struct pgwsi_path path = {.more_bytes = 10000};
	struct walsender *w = open_walsender(tls);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct pgws_event ev;
	const uint8_t body[10000] = {0};
	struct frames large = {.len = 0}, small = {.len = 0};
	put_data(&large, 1, body, 1000);
	put_data(&large, 2, body, sizeof(body));
	put_data(&small, 3, body, 1000);
	s->rx->path = &path;
	for (int i = 0; i < 2; i++) {
		walsender_say(w, &large);
		assert_int_equal(next(s, &ev), 0);
		walsender_say(w, &small);
		assert_int_equal(pgws_stream_next(s, &ev), 0);
		assert_int_equal(pgws_stream_next(s, &ev), 0);
		assert_int_equal(ev.start_lsn, 3);
		assert_int_equal(pgws_stream_next(s, &ev), PGWS_EAGAIN);
	}
	/* A small one is not followed by another. */
	walsender_say(w, &small);
	assert_int_equal(next(s, &ev), 0);
	walsender_say(w, &small);
	assert_int_equal(pgws_stream_next(s, &ev), PGWS_EAGAIN);
	assert_int_equal(next(s, &ev), 0);
	done(s, w);
	walsender_close(w);
}

static void test_more_is_read(void **state)
{
	(void)state;
	more_is_read(false);
	if (have_tls)
		more_is_read(true);
}

static void test_want(void **state)
{
	(void)state;
	struct pgwsi_path path = {.more_bytes = 1000};
	struct pgwsi_rx rx = {.path = &path, .quota = 5000};
	rx.bytes = 4500;
	assert_int_equal(pgwsi_rx_want(&rx, 9000), 9000);
	path.has_quota = true;
	assert_int_equal(pgwsi_rx_want(&rx, 9000), 1000);
	assert_int_equal(pgwsi_rx_want(&rx, 700), 700);
	rx.bytes = 6000;
	assert_int_equal(pgwsi_rx_want(&rx, 9000), 1000);
	rx.bytes = 0;
	assert_int_equal(pgwsi_rx_want(&rx, 9000), 5000);
}

enum { MESSAGE_BYTES = 1000 };

/* So many messages with the LSNs 1, 2, …, each sent by itself. */
static void say_messages(struct walsender *w, uint64_t n)
{
	static const uint8_t body[MESSAGE_BYTES];
	for (uint64_t i = 1; i <= n; i++) {
		struct frames f = {.len = 0};
		put_data(&f, i, body, sizeof(body));
		walsender_say(w, &f);
	}
}

/* Until the socket holds so many: TCP passes on what is small by and by. */
static void wait_bytes(const struct pgws_stream *s, size_t n)
{
	int held = 0;
	for (int i = 0; i < STEPS && (size_t)held < n; i++) {
		usleep(1000);
		assert_int_equal(ioctl(pgws_stream_fd(s), FIONREAD, &held), 0);
	}
	assert_true((size_t)held >= n);
}

/* What a quota leaves in the socket is readable at once, and comes with the next round. */
static void quota_is_kept(bool tls)
{
	const struct pgwsi_path path = {.more_bytes = 1000, .has_quota = true};
	struct walsender *w = open_walsender(tls);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct pgws_event ev;
	uint64_t lsn = 0;
	while (s->rx->read_done)
		assert_int_equal(pgws_stream_next(s, &ev), PGWS_EAGAIN);
	say_messages(w, 20);
	wait_bytes(s, 20 * MESSAGE_BYTES);
	s->rx->path = &path;
	s->rx->quota = 5000;
	int err;
	while ((err = pgws_stream_next(s, &ev)) == 0)
		assert_int_equal(ev.start_lsn, ++lsn);
	assert_int_equal(err, PGWS_EAGAIN);
	assert_int_equal(lsn, tls ? 5 : 4); /* TLS: with one more read of more_bytes */
	struct pollfd p = {.fd = pgws_stream_fd(s), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 1);
	walsender_hang_up(w);
	for (; lsn < 20; lsn++) {
		assert_int_equal(next(s, &ev), 0);
		assert_int_equal(ev.start_lsn, lsn + 1);
	}
	assert_int_equal(next(s, &ev), PGWS_ECONN);
	done(s, w);
	walsender_close(w);
}

static void test_quota_is_kept(void **state)
{
	(void)state;
	quota_is_kept(false);
	if (have_tls)
		quota_is_kept(true);
}

/* A stream that is being ended is read away without a quota. */
static void test_quota_at_the_end(void **state)
{
	(void)state;
	const struct pgwsi_path path = {.more_bytes = 1000, .has_quota = true};
	struct walsender *w = open_walsender(false);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	assert_int_equal(pgws_stream_end(s), 0);
	say_messages(w, 50);
	s->rx->path = &path;
	s->rx->quota = 5000;
	int calls = 0, held = 1;
	for (; held > 0 && calls < 50; calls++) {
		assert_int_equal(pgws_stream_work(s), PGWS_EAGAIN);
		assert_int_equal(ioctl(pgws_stream_fd(s), FIONREAD, &held), 0);
	}
	assert_in_range(calls, 2, 4);
	done(s, w);
	walsender_close(w);
}

/* Over TCP the walsender played here is on this machine. A Unix socket's needs none of that. */
static void test_paths(void **state)
{
	(void)state;
	for (int tls = 0; tls <= (have_tls ? 1 : 0); tls++) {
		struct walsender *w = open_walsender(tls == 1);
		struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
		const struct pgwsi_path *path = s->rx->path;
		assert_int_equal(path->receive_buffer, tls == 1 ? 131072 : 0);
		assert_int_equal(path->more_bytes, tls == 1 ? 16384 : 0);
		assert_int_equal(path->has_quota, tls == 1);
		assert_int_equal(path->rest_max_us, tls == 1 ? 3000 : 2000);
		done(s, w);
		walsender_close(w);
	}
}

/* ---- Output ---------------------------------------------------------------------------------- */

/* Status updates until the socket is full; returns the last write position. */
static uint64_t fill_socket(struct pgws_stream *s)
{
	uint64_t lsn = 0;
	int small = 4096;
	setsockopt(pgws_stream_fd(s), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	/* TCP moves bytes on for a while after it said that it is full. */
	for (int blocked = 0; blocked < 10; blocked++) {
		while (pgws_stream_flush(s) == 0) {
			blocked = 0;
			lsn++;
			int err = pgws_stream_feedback(s, lsn, lsn, lsn, false);
			assert_true(err == 0 || err == PGWS_EAGAIN);
			assert_true(lsn < 1000000);
		}
		usleep(10000);
	}
	assert_true(pgws_stream_wants_write(s));
	return lsn;
}

/* Reads the updates until this one and checks that each is whole and none goes back. */
static void read_updates(struct pgws_stream *s, struct walsender *w, uint64_t until)
{
	char body[100];
	uint64_t last = 0;
	for (int i = 0; i < STEPS && last < until; i++) {
		char type = walsender_frame(w, body, sizeof(body));
		if (type == 0) {
			(void)pgws_stream_flush(s);
			usleep(100);
			continue;
		}
		i = 0;
		assert_int_equal(type, 'd');
		assert_int_equal(body[0], 'r');
		uint64_t lsn = pgwsi_get64((uint8_t *)body + 1);
		assert_true(lsn > last);
		last = lsn;
	}
	assert_true(last == until);
}

static void full_socket(bool tls)
{
	struct walsender *w = open_walsender(tls);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct frames f = {.len = 0};
	struct pgws_event ev;
	uint64_t lsn = fill_socket(s);
	/* Newer ones replace the one that waits; events come in meanwhile. */
	for (int i = 0; i < 100; i++)
		assert_int_equal(
			pgws_stream_feedback(s, lsn + 1 + (uint64_t)i, 1, 1, false), PGWS_EAGAIN);
	put_data(&f, 9, "still", 5);
	walsender_say(w, &f);
	assert_int_equal(next(s, &ev), 0);
	assert_int_equal(ev.len, 5);
	assert_true(pgws_stream_wants_write(s) && pgws_stream_wants_read(s));
	read_updates(s, w, lsn + 100);
	assert_int_equal(pgws_stream_flush(s), 0);
	assert_false(pgws_stream_wants_write(s));

	/* The end goes out behind the last update, however full the socket is. */
	lsn = fill_socket(s);
	assert_int_equal(pgws_stream_feedback(s, lsn + 1, 1, 1, false), PGWS_EAGAIN);
	assert_int_equal(pgws_stream_end(s), 0);
	char body[100], type = 0;
	uint64_t last = 0;
	for (int i = 0; i < STEPS && type != 'c'; i++) {
		type = walsender_frame(w, body, sizeof(body));
		if (type == 'd') {
			last = pgwsi_get64((uint8_t *)body + 1);
			i = 0;
		}
		assert_int_equal(pgws_stream_work(s), PGWS_EAGAIN);
		if (type == 0)
			usleep(100);
	}
	assert_int_equal(type, 'c');
	assert_true(last == lsn + 1);
	done(s, w);
	walsender_close(w);
}

static void test_full_socket(void **state)
{
	(void)state;
	full_socket(false);
	if (!have_tls)
		skip();
	full_socket(true);
}

/* The server asks for new keys, the second time while the socket is full. */
static void test_key_update(void **state)
{
	(void)state;
	if (!have_tls)
		skip();
	struct walsender *w = open_walsender(true);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct frames f = {.len = 0};
	struct pgws_event ev;
	put_data(&f, 9, "after", 5);
	assert_int_equal(SSL_version(w->ssl), TLS1_3_VERSION);
	/* Without need first: it is answered at once. */
	assert_int_equal(SSL_key_update(w->ssl, SSL_KEY_UPDATE_REQUESTED), 1);
	walsender_say(w, &f);
	assert_int_equal(next(s, &ev), 0);
	uint64_t lsn = fill_socket(s);
	assert_int_equal(SSL_key_update(w->ssl, SSL_KEY_UPDATE_REQUESTED), 1);
	walsender_say(w, &f);
	int err = PGWS_EAGAIN;
	for (int i = 0; i < STEPS && err == PGWS_EAGAIN; i++) {
		walsender_read(w);
		err = pgws_stream_next(s, &ev);
		usleep(100);
	}
	assert_int_equal(err, 0);
	assert_int_equal(ev.len, 5);
	read_updates(s, w, lsn);
	assert_false(pgws_stream_wants_write(s));
	/* Some versions of OpenSSL answer while they read. */
	s->rx->read_wants_write = true;
	assert_true(pgws_stream_wants_write(s));
	assert_false(pgws_stream_wants_read(s));
	done(s, w);
	walsender_close(w);
}

/* The stream is ended; what comes meanwhile is thrown away; the connection goes on with libpq. */
static void orderly_end(bool tls)
{
	struct walsender *w = open_walsender(tls);
	struct pgws_stream *s = streaming(w, PGWS_RECEIVE_SOCKET);
	struct frames f = {.len = 0};
	char body[2000], type = 0;
	uint8_t cipher[200];
	put_data(&f, 1, "x", 1);
	put_keepalive(&f, 5, 1);
	put_frame(&f, 'N', "SNOTICE\0C00000\0Mhear\0", 22);
	put_frame(&f, 'c', "", 0);
	put_frame(&f, 'C', "COPY 0", 7);
	put_frame(&f, 'C', "START_REPLICATION", 18);
	put_frame(&f, 'Z', "I", 1);
	put_frame(&f, 'S', "a\0bcdefgh", 10);
	assert_int_equal(pgws_stream_end(s), 0);
	/* All but the last bytes: libpq would not know what to make of those. */
	walsender_send(w, f.bytes, f.len - 3);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(pgws_stream_work(s), PGWS_EAGAIN);
		wait_readable(s);
	}
	size_t n_cipher = 0, half = 0;
	if (tls) {
		/* With half a record behind it, which OpenSSL keeps for libpq. */
		n_cipher = encrypt(w, f.bytes + f.len - 3, 3, cipher);
		half = n_cipher + 30;
		n_cipher += encrypt(w,
			"S\0\0\0\x0e"
			"a\0bcdefgh",
			15, cipher + n_cipher);
		send_raw(w, cipher, half);
	} else {
		walsender_send(w, f.bytes + f.len - 3, 3);
	}
	assert_int_equal(work(s, w), 0);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
	assert_int_equal(pgws_stream_query(s, "SELECT 1"), 0);
	for (int i = 0; i < STEPS && type != 'Q'; i++) {
		assert_int_equal(pgws_stream_work(s), PGWS_EAGAIN);
		type = walsender_frame(w, body, sizeof(body));
	}
	if (tls)
		send_raw(w, cipher + half, n_cipher - half);
	f.len = 0;
	put_frame(&f, 'C', "SELECT 0", 9);
	put_frame(&f, 'Z', "I", 1);
	walsender_say(w, &f);
	assert_int_equal(work(s, w), 0);
	done(s, w);
	walsender_close(w);
}

static void test_orderly_end(void **state)
{
	(void)state;
	orderly_end(false);
	if (!have_tls)
		skip();
	orderly_end(true);
}

/* ---- The rest -------------------------------------------------------------------------------- */

static unsigned round_of(struct pgwsi_rx *rx, int64_t *now_ns, int64_t us, uint64_t n, uint64_t len)
{
	*now_ns += us * 1000;
	rx->events = n;
	rx->bytes = n * len;
	pgwsi_rx_round(rx, *now_ns);
	return rx->rest_us;
}

static void test_rest(void **state)
{
	(void)state;
	struct pgwsi_path path = {.rest_max_us = 2000, .rest_events = 1000, .rest_bytes = 65536};
	struct pgwsi_rx rx = {.fd = -1, .path = &path};
	int64_t now = INT64_C(1) << 50;
	/* Slow: never, whatever the wake-up brought. */
	for (int i = 0; i < 100; i++)
		assert_int_equal(round_of(&rx, &now, 1000, 10, 200), 0);
	/* Fast, few a wake-up: from the first millisecond on; the faster, the longer. */
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 20, 2, 200);
	assert_in_range(rx.rest_us, 899, 901);
	/* Nothing came: at once not any more, and the next ones alone do not bring it back. */
	assert_int_equal(round_of(&rx, &now, 300, 0, 0), 0);
	assert_int_equal(round_of(&rx, &now, 20, 2, 200), 0);
	assert_int_equal(round_of(&rx, &now, 1000000, 3, 200), 0);
	/* 64 events that come faster than that are enough. */
	for (int i = 0; i < 3; i++)
		assert_int_equal(round_of(&rx, &now, 20, 20, 200), 0);
	assert_true(round_of(&rx, &now, 20, 20, 200) > 0);
	/* A burst, then a pause, then one message. */
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 20, 20, 200);
	assert_true(rx.rest_us > 50);
	assert_int_equal(round_of(&rx, &now, 20000, 1, 200), 0);
	/* So fast that a Unix socket's buffer would be full: shorter. */
	path.rest_events = 64;
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 100, 50, 100);
	assert_int_equal(rx.rest_us, 128);
	/* Large rows: shorter, then not at all. */
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 100, 5, 10000);
	assert_true(rx.rest_us >= 125 && rx.rest_us <= 135);
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 100, 5, 100000);
	assert_int_equal(rx.rest_us, 0);
	/* Never longer than this. */
	path.rest_events = 100000;
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 100, 500, 1);
	assert_int_equal(rx.rest_us, 2000);
	path.rest_max_us = 3000;
	for (int i = 0; i < 99; i++)
		round_of(&rx, &now, 100, 500, 1);
	assert_int_equal(rx.rest_us, 3000);
}

/* A little less than came in a rest; what is left behind makes it grow. */
static void test_quota(void **state)
{
	(void)state;
	const size_t max = 1024 * 1024, min = 64 * 1024;
	struct pgwsi_path path = {.rest_max_us = 2000, .rest_events = 4096, .rest_bytes = 262144};
	struct pgwsi_rx rx = {.fd = -1, .path = &path, .quota = max};
	int64_t now = INT64_C(1) << 50;
	for (int i = 0; i < 9; i++)
		round_of(&rx, &now, 2000, 1600, 100);
	assert_true(rx.rest_us > 0);
	assert_int_equal(rx.quota, max);
	path.has_quota = true;
	round_of(&rx, &now, 2000, 1600, 100);
	assert_int_equal(rx.quota, 150000);
	round_of(&rx, &now, 2000, 1500, 100); /* reached: something was left */
	assert_int_equal(rx.quota, 187500);
	round_of(&rx, &now, 2000, 1874, 100); /* the end was reached first */
	assert_int_equal(rx.quota, 187400 - 11712);
	round_of(&rx, &now, 2000, 100, 100);
	assert_int_equal(rx.quota, min);
	for (int i = 0; i < 20; i++)
		round_of(&rx, &now, 2000, 10000, 105);
	assert_int_equal(rx.quota, max);
	round_of(&rx, &now, 2000, 1600, 100);
	assert_int_equal(rx.quota, 150000);
	/* Who does not rest leaves nothing. */
	assert_int_equal(round_of(&rx, &now, 1000, 10, 100), 0);
	assert_int_equal(rx.quota, max);
}

static int setup_tls(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	snprintf(cert_dir, sizeof(cert_dir), "/tmp/howdah-cert.XXXXXX");
	assert_non_null(mkdtemp(cert_dir));
	have_tls = make_certificate(cert_dir);
	return 0;
}

static int teardown_tls(void **state)
{
	(void)state;
	char path[100];
	snprintf(path, sizeof(path), "%s/server.crt", cert_dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/server.key", cert_dir);
	unlink(path);
	rmdir(cert_dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_boundary),
		cmocka_unit_test(test_tls_boundaries),
		cmocka_unit_test(test_ends),
		cmocka_unit_test(test_odd_errors),
		cmocka_unit_test(test_streaming_failed),
		cmocka_unit_test(test_no_message),
		cmocka_unit_test(test_fallback),
		cmocka_unit_test(test_refusal),
		cmocka_unit_test(test_tls_in_the_kernel),
		cmocka_unit_test(test_start_answers),
		cmocka_unit_test(test_buffer_size),
		cmocka_unit_test(test_same_machine),
		cmocka_unit_test(test_more),
		cmocka_unit_test(test_more_is_read),
		cmocka_unit_test(test_want),
		cmocka_unit_test(test_quota_is_kept),
		cmocka_unit_test(test_quota_at_the_end),
		cmocka_unit_test(test_paths),
		cmocka_unit_test(test_full_socket),
		cmocka_unit_test(test_key_update),
		cmocka_unit_test(test_orderly_end),
		cmocka_unit_test(test_rest),
		cmocka_unit_test(test_quota),
	};
	return cmocka_run_group_tests(tests, setup_tls, teardown_tls);
}
