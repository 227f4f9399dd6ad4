/* SPDX-License-Identifier: PostgreSQL */
/*
 * How bytes come in and go out once the socket was taken over from libpq: a buffer of frames over a
 * plain socket, a Unix socket or OpenSSL's TLS. receive.c has the buffer, sockets and the rest
 * between two wake-ups, receive_tls.c the TLS, frames.c what the frames mean.
 *
 * The takeover happens before START_REPLICATION is sent, while libpq is idle: its buffer is empty
 * then, so that no half message can be stuck in it, and it never learns of the stream. From then on
 * until the end of the stream nothing calls libpq for this connection: a write of libpq that
 * blocks may read, and what it reads would be lost. After the stream's end libpq has it again.
 *
 * Ownership: struct pgwsi_rx is the stream's; the descriptor and the SSL stay libpq's. It must be
 * freed before PQfinish.
 */
#ifndef LIBPGWALSTREAM_RECEIVE_H
#define LIBPGWALSTREAM_RECEIVE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A frame is a type byte, a length that counts itself, and the body. */
#define PGWSI_FRAME_HEADER_BYTES 5
/* The server cannot build a longer message: 1 GiB and the headers around it. */
#define PGWSI_FRAME_MAX ((UINT32_C(1) << 30) + 64)
#define PGWSI_BUFFER_BYTES ((size_t)256 * 1024)

struct pgwsi_tls;
struct sockaddr_storage;

/* What the way between the server and us holds, and how it is read best. */
struct pgwsi_path {
	int receive_buffer;   /* SO_RCVBUF; 0: the kernel's own, which grows */
	unsigned more_bytes;  /* a read of so many is followed by one more; 0: never */
	bool has_quota;       /* a round leaves something in the socket; more_bytes must be > 0 */
	unsigned rest_max_us; /* the longest rest */
	unsigned rest_events, rest_bytes; /* at most so many come in during a rest */
};

struct pgwsi_rx {
	/* Received and not given out yet: pos to end, in bytes at buf. What is in front of pos may
	 * be borrowed by the caller until the next read. */
	uint8_t *buf, *pos, *end;
	size_t size;
	int fd;
	const struct pgwsi_path *path;
	struct pgwsi_tls *tls; /* NULL: none */
	bool read_done;        /* one read was made since the last PGWS_EAGAIN */
	bool more;             /* another one is worth it: this one left nothing free, or
				  brought much */
	bool eof;              /* nothing comes any more; why is in error */
	bool read_wants_write; /* TLS */
	bool write_wants_read; /* TLS */
	bool write_failed;     /* output is thrown away; reading tells the loss */
	bool started;          /* START_REPLICATION was answered well */
	bool done;             /* ReadyForQuery behind the stream's end */
	uint8_t *out;          /* whole frames */
	size_t out_off, out_len, out_size;
	size_t out_tried;     /* bytes of the SSL_write that must be repeated; 0: none */
	unsigned reads_small; /* reads in a row that would have done with the small buffer */
	/* The rest: see pgwsi_rx_round. */
	unsigned rest_us;
	uint64_t events; /* given out in this round */
	size_t bytes;    /* read in this round */
	size_t quota;    /* after so many the round ends, even if more is there */
	uint64_t window_events, window_bytes;
	int64_t window_ns; /* when the window began */
	int64_t round_ns;  /* when the last round ended */
	char error[300];
};

/* Why the socket cannot be taken over, NULL if it can. */
const char *pgwsi_rx_refusal(bool gss, bool tls, const void *openssl, bool in_kernel);
const char *pgwsi_rx_refusal_of(PGconn *conn);
/* NULL: no memory. */
struct pgwsi_rx *pgwsi_rx_new(PGconn *conn);
/* Gives the socket back as it was, but for the receive buffer of a connection inside this machine,
 * which stays small: nothing that libpq does with it afterwards needs a large one. What is still
 * buffered is lost. */
void pgwsi_rx_free(struct pgwsi_rx **rx);

/* Puts a frame behind the output. PGWS_ENOMEM. */
int pgwsi_rx_put(struct pgwsi_rx *rx, char type, const void *body, size_t len);
/* 0: nothing is left to write; PGWS_EAGAIN. */
int pgwsi_rx_flush(struct pgwsi_rx *rx);
/* Reads once, so that at least a byte of the frame at pos comes in if one is there. eof and more
 * tell. PGWS_ENOMEM, PGWS_EPROTO (a frame that is too long; see error). */
int pgwsi_rx_read(struct pgwsi_rx *rx);
/* Whether one of n bytes is worth another: see path, and not for ever. They were counted. */
bool pgwsi_rx_is_more(const struct pgwsi_rx *rx, size_t n);
/* What to read at once if there is so much room; at least more_bytes of path, room for it given. */
size_t pgwsi_rx_want(const struct pgwsi_rx *rx, size_t room);
/* Both ends of an IPv4 or IPv6 connection have one address, or an IPv4 server has a loopback one.
 */
bool pgwsi_same_machine(const struct sockaddr_storage *ours, const struct sockaddr_storage *theirs);
/* The round is over: how long to rest, and the next one's quota. now_ns: CLOCK_MONOTONIC. */
void pgwsi_rx_round(struct pgwsi_rx *rx, int64_t now_ns);
int64_t pgwsi_rx_now_ns(void);

/* receive_tls.c. NULL: no memory. */
struct pgwsi_tls *pgwsi_tls_new(void *openssl, int fd);
void pgwsi_tls_free(struct pgwsi_tls **tls);
/* The kernel decrypts (kTLS, where openssl.cnf asks for it): the socket gives no records. */
bool pgwsi_tls_in_kernel(const void *openssl);
/* Nothing is buffered in it. */
bool pgwsi_tls_dry(const struct pgwsi_tls *tls);
/* Into the room behind end; one read of the socket at most. */
void pgwsi_tls_read(struct pgwsi_rx *rx);
/* Like write(2): bytes, 0 for "not now" (wants kept in rx), -1. */
int pgwsi_tls_write(struct pgwsi_rx *rx, const void *bytes, size_t len);

#endif
