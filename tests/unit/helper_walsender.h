/* SPDX-License-Identifier: PostgreSQL */
/*
 * A walsender that a test plays by hand, in the same thread as the client: it takes a connection as
 * far as the command (TLS too, with TCP), then says exactly the bytes that it is given. Nothing of
 * it blocks; drive it by turns with the client. Include after cmocka.h.
 */
#ifndef TESTS_UNIT_HELPER_WALSENDER_H
#define TESTS_UNIT_HELPER_WALSENDER_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SSL_REQUEST 80877103u
#define GSS_REQUEST 80877104u

struct walsender {
	int listener, fd;
	SSL_CTX *ctx; /* NULL: a Unix socket without TLS */
	SSL *ssl;
	bool accepting, startup_done;
	size_t n_in;
	uint8_t in[1 << 20];
	char dir[64];
	char conninfo[160];
};

/* Frames under construction. */
struct frames {
	size_t len;
	uint8_t bytes[1 << 16];
};

static inline void put_bytes(struct frames *f, const void *bytes, size_t len)
{
	assert_true(f->len + len <= sizeof(f->bytes));
	memcpy(f->bytes + f->len, bytes, len);
	f->len += len;
}

static inline void put_u32(struct frames *f, uint32_t v)
{
	v = htonl(v);
	put_bytes(f, &v, 4);
}

static inline void put_u64(struct frames *f, uint64_t v)
{
	put_u32(f, (uint32_t)(v >> 32));
	put_u32(f, (uint32_t)v);
}

static inline void put_frame(struct frames *f, char type, const void *body, size_t len)
{
	put_bytes(f, &type, 1);
	put_u32(f, (uint32_t)len + 4);
	put_bytes(f, body, len);
}

static inline void put_data(struct frames *f, uint64_t lsn, const void *body, size_t len)
{
	put_bytes(f, "d", 1);
	put_u32(f, (uint32_t)len + 4 + 25);
	put_bytes(f, "w", 1);
	put_u64(f, lsn);
	put_u64(f, lsn + 1);
	put_u64(f, 77);
	put_bytes(f, body, len);
}

static inline void put_keepalive(struct frames *f, uint64_t lsn, char reply)
{
	put_bytes(f, "d", 1);
	put_u32(f, 4 + 18);
	put_bytes(f, "k", 1);
	put_u64(f, lsn);
	put_u64(f, 78);
	put_bytes(f, &reply, 1);
}

static inline void set_nonblocking(int fd)
{
	assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), 0);
}

/* dir: of a certificate, for TLS over TCP; NULL: a Unix socket. */
static inline void walsender_open(struct walsender *w, const char *dir)
{
	w->fd = -1;
	if (dir != NULL) {
		char path[200];
		struct sockaddr_in in = {
			.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
		socklen_t len = sizeof(in);
		w->listener = socket(AF_INET, SOCK_STREAM, 0);
		assert_int_equal(bind(w->listener, (struct sockaddr *)&in, sizeof(in)), 0);
		assert_int_equal(getsockname(w->listener, (struct sockaddr *)&in, &len), 0);
		int small = 4096;
		setsockopt(w->listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
		snprintf(w->conninfo, sizeof(w->conninfo),
			"host=127.0.0.1 port=%d user=u dbname=d sslmode=require gssencmode=disable",
			ntohs(in.sin_port));
		w->ctx = SSL_CTX_new(TLS_server_method());
		snprintf(path, sizeof(path), "%s/server.crt", dir);
		assert_int_equal(SSL_CTX_use_certificate_file(w->ctx, path, SSL_FILETYPE_PEM), 1);
		snprintf(path, sizeof(path), "%s/server.key", dir);
		assert_int_equal(SSL_CTX_use_PrivateKey_file(w->ctx, path, SSL_FILETYPE_PEM), 1);
	} else {
		struct sockaddr_un un = {.sun_family = AF_UNIX};
		snprintf(w->dir, sizeof(w->dir), "/tmp/howdah-walsender.XXXXXX");
		assert_non_null(mkdtemp(w->dir));
		snprintf(un.sun_path, sizeof(un.sun_path), "%s/.s.PGSQL.5432", w->dir);
		w->listener = socket(AF_UNIX, SOCK_STREAM, 0);
		assert_int_equal(bind(w->listener, (struct sockaddr *)&un, sizeof(un)), 0);
		snprintf(w->conninfo, sizeof(w->conninfo),
			"host=%s port=5432 user=u dbname=d sslmode=disable gssencmode=disable",
			w->dir);
	}
	assert_int_equal(listen(w->listener, 5), 0);
	set_nonblocking(w->listener);
}

static inline void walsender_hang_up(struct walsender *w)
{
	SSL_free(w->ssl);
	w->ssl = NULL;
	if (w->fd >= 0)
		close(w->fd);
	w->fd = -1;
	w->n_in = 0;
	w->accepting = w->startup_done = false;
}

static inline void walsender_close(struct walsender *w)
{
	walsender_hang_up(w);
	close(w->listener);
	SSL_CTX_free(w->ctx);
	if (w->dir[0] != 0) {
		char path[100];
		snprintf(path, sizeof(path), "%s/.s.PGSQL.5432", w->dir);
		unlink(path);
		rmdir(w->dir);
	}
	free(w);
}

/* How many went out; less when the client does not read. */
static inline size_t walsender_send(struct walsender *w, const void *bytes, size_t len)
{
	size_t n = 0;
	while (n < len) {
		ssize_t sent =
			w->ssl != NULL
				? SSL_write(w->ssl, (const uint8_t *)bytes + n, (int)(len - n))
				: send(w->fd, (const uint8_t *)bytes + n, len - n, MSG_NOSIGNAL);
		if (sent <= 0)
			break;
		n += (size_t)sent;
	}
	return n;
}

static inline void walsender_say(struct walsender *w, const struct frames *f)
{
	assert_int_equal(walsender_send(w, f->bytes, f->len), f->len);
}

/* Takes in what the client wrote, as far as there is room. */
static inline void walsender_read(struct walsender *w)
{
	while (w->fd >= 0 && w->n_in < sizeof(w->in)) {
		size_t room = sizeof(w->in) - w->n_in;
		ssize_t n = w->ssl != NULL ? SSL_read(w->ssl, w->in + w->n_in, (int)room)
					   : recv(w->fd, w->in + w->n_in, room, 0);
		if (n <= 0)
			break;
		w->n_in += (size_t)n;
	}
	ERR_clear_error();
}

static inline uint32_t walsender_u32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return ntohl(v);
}

static inline void walsender_drop(struct walsender *w, size_t n)
{
	memmove(w->in, w->in + n, w->n_in - n);
	w->n_in -= n;
}

static inline void walsender_startup(struct walsender *w)
{
	uint32_t code = walsender_u32(w->in + 4);
	walsender_drop(w, walsender_u32(w->in));
	if (code == GSS_REQUEST) {
		walsender_send(w, "N", 1);
	} else if (code == SSL_REQUEST) {
		walsender_send(w, w->ctx != NULL ? "S" : "N", 1);
		w->accepting = w->ctx != NULL;
	} else {
		struct frames f = {.len = 0};
		put_frame(&f, 'R', "\0\0\0\0", 4);
		put_frame(&f, 'S',
			"server_version\0"
			"17.1",
			20);
		put_frame(&f, 'S',
			"client_encoding\0"
			"UTF8",
			21);
		put_frame(&f, 'K', "\0\0\0\1\0\0\0\2", 8);
		put_frame(&f, 'Z', "I", 1);
		w->startup_done = true;
		walsender_say(w, &f);
	}
}

/* As far as it goes: a connection to take, its startup. */
static inline void walsender_step(struct walsender *w)
{
	if (w->fd < 0) {
		w->fd = accept(w->listener, NULL, NULL);
		if (w->fd < 0)
			return;
		set_nonblocking(w->fd);
	}
	if (w->accepting) {
		if (w->ssl == NULL) {
			w->ssl = SSL_new(w->ctx);
			SSL_set_fd(w->ssl, w->fd);
		}
		if (SSL_accept(w->ssl) != 1) {
			ERR_clear_error();
			return;
		}
		w->accepting = false;
	}
	if (w->startup_done)
		return;
	/* Nothing behind a request may be taken: the handshake is OpenSSL's to read. */
	if (w->ssl == NULL) {
		ssize_t n = recv(w->fd, w->in + w->n_in, w->n_in < 8 ? 8 - w->n_in : 1000, 0);
		w->n_in += n > 0 ? (size_t)n : 0;
	} else {
		walsender_read(w);
	}
	if (w->n_in >= 8 && w->n_in >= walsender_u32(w->in))
		walsender_startup(w);
}

/* The first frame that the client sent, taken; its type, or 0: none is there. Body NUL-terminated.
 */
static inline char walsender_frame(struct walsender *w, char *body, size_t size)
{
	walsender_read(w);
	if (w->n_in < 5 || w->n_in - 1 < walsender_u32(w->in + 1))
		return 0;
	char type = (char)w->in[0];
	size_t len = walsender_u32(w->in + 1) - 4;
	assert_true(len < size);
	memcpy(body, w->in + 5, len);
	body[len] = 0;
	walsender_drop(w, len + 5);
	return type;
}

#endif
