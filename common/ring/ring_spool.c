/* SPDX-License-Identifier: PostgreSQL */
/*
 * The spool file: see ring_spool.h. Records lie one behind the other, struct ring_record as it is
 * in memory and then the payload; nobody but this process ever reads it.
 *
 *   0 … freed … read_at … write_at          freed: given back to the file system
 *
 * Invariants: freed <= read_at <= write_at; write_at - freed <= limit.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ring/ring_spool.h"

#define SPOOL_MAGIC 0x52535031u
#define HOLE_BYTES (1024 * 1024)
#define READ_BYTES (256 * 1024)

struct ring_spool {
	uint32_t magic;
	char *dir;
	uint64_t limit;
	int fd; /* -1: none yet */
	uint64_t freed, read_at, write_at;
	uint64_t total;
	/* Bytes [buf_at, buf_at + buf_len) of the file. */
	uint8_t *buf;
	size_t buf_cap, buf_len;
	uint64_t buf_at;
	size_t peeked_len; /* of the record last peeked; 0: none */
};

MEM_TYPE(mem_ring_spool, "ring spool");

struct ring_spool *ring_spool_new(const char *dir, uint64_t limit_bytes)
{
	struct ring_spool *s = mem_new(&mem_ring_spool, sizeof(*s));
	s->magic = SPOOL_MAGIC;
	s->dir = xstrdup(dir);
	s->limit = limit_bytes;
	s->fd = -1;
	return s;
}

void ring_spool_free(struct ring_spool **s)
{
	if (*s == NULL)
		return;
	OBJ_CHECK(*s, SPOOL_MAGIC);
	ring_spool_clear(*s);
	free((*s)->dir);
	(*s)->magic = 0;
	mem_free(&mem_ring_spool, *s);
	*s = NULL;
}

/* Without a name from birth where the file system can, else unlinked at once. */
static int spool_open(struct ring_spool *s)
{
	int fd = open(s->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
		char *name = xasprintf("%s/ring.XXXXXX", s->dir);
		fd = mkostemp(name, O_CLOEXEC);
		if (fd >= 0 && unlink(name) != 0) {
			int err = errno;
			close(fd);
			fd = -1;
			errno = err;
		}
		free(name);
	}
	if (fd < 0)
		return -errno;
	s->fd = fd;
	return 0;
}

int ring_spool_put(struct ring_spool *s, const struct ring_record *rec, const void *payload)
{
	OBJ_CHECK(s, SPOOL_MAGIC);
	size_t len = sizeof(*rec) + rec->payload_len;
	if (s->write_at - s->freed + len > s->limit)
		return -ERR_LIMIT;
	if (s->fd < 0) {
		int err = spool_open(s);
		if (err != 0)
			return err;
	}
	struct iovec iov[2] = {
		{.iov_base = (void *)(uintptr_t)rec, .iov_len = sizeof(*rec)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = rec->payload_len},
	};
	ssize_t n;
	do
		n = pwritev(s->fd, iov, rec->payload_len > 0 ? 2 : 1, (off_t)s->write_at);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* A short write is a file system about to be full: the bytes are written again later. */
	if ((size_t)n != len)
		return -ENOSPC;
	s->write_at += len;
	s->total += len;
	return 0;
}

/* Makes [read_at, read_at + len) present in buf. */
static int spool_load(struct ring_spool *s, size_t len)
{
	uint64_t want_end = s->read_at + len;
	if (want_end > s->write_at)
		return -ERR_MALFORMED;
	if (s->read_at >= s->buf_at && want_end <= s->buf_at + s->buf_len)
		return 0;
	size_t cap = len > READ_BYTES ? len : READ_BYTES;
	if (s->buf_cap < cap) {
		free(s->buf);
		s->buf = xmalloc(cap);
		s->buf_cap = cap;
	}
	s->buf_at = s->read_at;
	s->buf_len = 0;
	size_t todo = s->write_at - s->read_at < s->buf_cap ? (size_t)(s->write_at - s->read_at)
							    : s->buf_cap;
	while (s->buf_len < todo) {
		ssize_t n = pread(s->fd, s->buf + s->buf_len, todo - s->buf_len,
			(off_t)(s->buf_at + s->buf_len));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ERR_TRUNCATED;
		s->buf_len += (size_t)n;
	}
	return 0;
}

int ring_spool_peek(struct ring_spool *s, struct ring_record *ret_rec, const void **ret_payload)
{
	OBJ_CHECK(s, SPOOL_MAGIC);
	s->peeked_len = 0;
	if (ring_spool_empty(s))
		return 0;
	int err = spool_load(s, sizeof(*ret_rec));
	if (err != 0)
		return err;
	struct ring_record rec;
	memcpy(&rec, s->buf + (s->read_at - s->buf_at), sizeof(rec));
	size_t len = sizeof(rec) + rec.payload_len;
	err = spool_load(s, len);
	if (err != 0)
		return err;
	s->peeked_len = len;
	*ret_rec = rec;
	*ret_payload = s->buf + (s->read_at - s->buf_at) + sizeof(rec);
	return 1;
}

/* Whole pieces only: a hole per record would be a system call per record. */
static void spool_punch(struct ring_spool *s)
{
	uint64_t upto = s->read_at / HOLE_BYTES * HOLE_BYTES;
	if (upto <= s->freed)
		return;
	int rc = fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)s->freed,
		(off_t)(upto - s->freed));
	if (rc == 0)
		s->freed = upto;
}

void ring_spool_next(struct ring_spool *s)
{
	OBJ_CHECK(s, SPOOL_MAGIC);
	ASSERT(s->peeked_len > 0);
	s->read_at += s->peeked_len;
	s->peeked_len = 0;
	if (ring_spool_empty(s))
		ring_spool_clear(s);
	else
		spool_punch(s);
}

void ring_spool_clear(struct ring_spool *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	s->freed = s->read_at = s->write_at = 0;
	free(s->buf);
	s->buf = NULL;
	s->buf_cap = s->buf_len = 0;
	s->buf_at = 0;
	s->peeked_len = 0;
}

bool ring_spool_empty(const struct ring_spool *s)
{
	return s->read_at == s->write_at;
}

uint64_t ring_spool_bytes(const struct ring_spool *s)
{
	return s->write_at - s->read_at;
}

uint64_t ring_spool_bytes_total(const struct ring_spool *s)
{
	return s->total;
}
