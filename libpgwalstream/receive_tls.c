/* SPDX-License-Identifier: PostgreSQL */
/*
 * TLS after the takeover: libpq's SSL goes on, but reads from a buffer that we fill.
 *
 * Context: one thread per stream; see receive.h.
 *
 * The server makes a TLS record of every message, and OpenSSL reads a record's header and body each
 * by itself. A BIO of ours in the place of the reading one gives it the bytes of one large recv:
 * few calls per wake-up, and "no more" without asking the socket. With its read-ahead it asks us
 * for several records at once. Writing goes through libpq's own BIO.
 *
 * Invariants:
 *   1. The BIO never says end of file, only "retry": how the socket ended we know ourselves, and
 *      OpenSSL's state stays clean until then.
 *   2. dry: neither raw nor OpenSSL holds anything of which more could be made. Only then may
 *      somebody wait for the descriptor. What OpenSSL has read ahead it counts as pending, so this
 *      is either its own word (nothing pending, nothing in raw) or that it wanted more than raw
 * had.
 *   3. The SSL has libpq's BIO and read-ahead as it was again before libpq gets the connection back
 *      (PQfinish frees both). The front part of a record may then stand in OpenSSL's buffer, which
 *      its next read begins with.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/receive.h"

/* What OpenSSL is given at once: it moves all that is behind a record of 128 bytes or more to where
 * it is aligned, so much would cost more than it saves. */
#define FEED_BYTES 2048

struct pgwsi_tls {
	SSL *ssl;
	int read_ahead; /* as libpq had it */
	int fd;
	BIO_METHOD *method;
	bool dry;
	size_t raw_pos, raw_end;
	uint8_t raw[PGWSI_BUFFER_BYTES];
};

/* ---- The BIO --------------------------------------------------------------------------------- */

static int feed_read(BIO *bio, char *to, int len)
{
	struct pgwsi_tls *tls = BIO_get_data(bio);
	size_t n = tls->raw_end - tls->raw_pos;
	BIO_clear_retry_flags(bio);
	if (len <= 0)
		return 0;
	if (n == 0) {
		BIO_set_retry_read(bio);
		return -1;
	}
	if (n > (size_t)len)
		n = (size_t)len;
	if (n > FEED_BYTES)
		n = FEED_BYTES;
	memcpy(to, tls->raw + tls->raw_pos, n);
	tls->raw_pos += n;
	return (int)n;
}

static long feed_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_FLUSH ? 1 : 0;
}

static BIO *new_bio(struct pgwsi_tls *tls)
{
	tls->method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "pgwalstream");
	if (tls->method == NULL || BIO_meth_set_read(tls->method, feed_read) != 1 ||
		BIO_meth_set_ctrl(tls->method, feed_ctrl) != 1)
		return NULL;
	BIO *bio = BIO_new(tls->method);
	if (bio == NULL)
		return NULL;
	BIO_set_data(bio, tls);
	BIO_set_init(bio, 1);
	return bio;
}

bool pgwsi_tls_in_kernel(const void *openssl)
{
	BIO *bio = SSL_get_rbio(openssl);
#ifdef BIO_get_ktls_recv
	return bio != NULL && BIO_get_ktls_recv(bio);
#else
	(void)bio; /* OpenSSL 1.1.1 has none of it */
	return false;
#endif
}

struct pgwsi_tls *pgwsi_tls_new(void *openssl, int fd)
{
	struct pgwsi_tls *tls = malloc(sizeof(*tls));
	if (tls == NULL)
		return NULL;
	tls->ssl = openssl;
	tls->fd = fd;
	tls->dry = false;
	tls->raw_pos = tls->raw_end = 0;
	BIO *bio = new_bio(tls);
	if (bio == NULL) {
		BIO_meth_free(tls->method);
		free(tls);
		return NULL;
	}
	/* Lets go of the reading side's reference to libpq's BIO; the writing side keeps its own.
	 */
	SSL_set0_rbio(tls->ssl, bio);
	tls->read_ahead = SSL_get_read_ahead(tls->ssl);
	SSL_set_read_ahead(tls->ssl, 1);
	return tls;
}

void pgwsi_tls_free(struct pgwsi_tls **tlsp)
{
	struct pgwsi_tls *tls = *tlsp;
	*tlsp = NULL;
	if (tls == NULL)
		return;
	BIO *own = SSL_get_wbio(tls->ssl);
	BIO_up_ref(own);
	SSL_set0_rbio(tls->ssl, own);
	SSL_set_read_ahead(tls->ssl, tls->read_ahead);
	BIO_meth_free(tls->method);
	free(tls);
}

bool pgwsi_tls_dry(const struct pgwsi_tls *tls)
{
	return tls->dry;
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

static void lost(struct pgwsi_rx *rx, const char *why)
{
	rx->eof = true;
	snprintf(rx->error, sizeof(rx->error), "could not receive data from the server: %s", why);
}

/* One read of the socket into raw, which is empty. False: nothing came. */
static bool feed(struct pgwsi_rx *rx)
{
	struct pgwsi_tls *tls = rx->tls;
	ssize_t n;
	do {
		n = recv(tls->fd, tls->raw, pgwsi_rx_want(rx, sizeof(tls->raw)), MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	tls->raw_pos = 0;
	tls->raw_end = n > 0 ? (size_t)n : 0;
	if (n > 0) {
		tls->dry = false;
		return true;
	}
	if (n == 0)
		rx->eof = true;
	else if (errno != EAGAIN && errno != EWOULDBLOCK)
		lost(rx, strerror(errno));
	return false;
}

/* What OpenSSL said instead of bytes. */
static void no_bytes(struct pgwsi_rx *rx, int ret)
{
	char why[200];
	switch (SSL_get_error(rx->tls->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		rx->tls->dry = true;
		break;
	case SSL_ERROR_WANT_WRITE: /* it answers a KeyUpdate and the socket is full */
		rx->read_wants_write = true;
		break;
	case SSL_ERROR_ZERO_RETURN:
		rx->eof = true;
		break;
	default:
		ERR_error_string_n(ERR_get_error(), why, sizeof(why));
		lost(rx, why);
		ERR_clear_error();
	}
}

void pgwsi_tls_read(struct pgwsi_rx *rx)
{
	struct pgwsi_tls *tls = rx->tls;
	bool fed = false;
	rx->read_wants_write = false;
	ERR_clear_error();
	while (!rx->eof && !rx->read_wants_write) {
		size_t room = rx->size - (size_t)(rx->end - rx->buf);
		if (room == 0) {
			rx->more = true;
			return;
		}
		if (tls->dry) {
			if (fed || !feed(rx)) {
				rx->more = fed && pgwsi_rx_is_more(rx, tls->raw_end);
				return;
			}
			fed = true;
		}
		int n = SSL_read(tls->ssl, rx->end, room > INT_MAX ? INT_MAX : (int)room);
		if (n <= 0) {
			no_bytes(rx, n);
			continue;
		}
		rx->end += n;
		rx->bytes += (size_t)n;
		/* Saves the call that would say so. */
		tls->dry = tls->raw_pos == tls->raw_end && SSL_has_pending(tls->ssl) == 0;
	}
}

int pgwsi_tls_write(struct pgwsi_rx *rx, const void *bytes, size_t len)
{
	ERR_clear_error();
	int n = SSL_write(rx->tls->ssl, bytes, (int)len);
	if (n > 0)
		return n;
	switch (SSL_get_error(rx->tls->ssl, n)) {
	case SSL_ERROR_WANT_READ:
		rx->write_wants_read = true;
		return 0;
	case SSL_ERROR_WANT_WRITE:
		return 0;
	default:
		ERR_clear_error();
		return -1;
	}
}
