/* SPDX-License-Identifier: PostgreSQL */
/*
 * One transaction's messages: in memory in chunks, beyond the memory limit in a file.
 *
 * Context: the assembler's thread. The limits are those of the store, over all its transactions.
 *
 *     offset 0                     file_len                        len
 *     | file: record record record | chunk: record record | chunk: record |
 *     record = struct header, message (type byte, rest)
 *
 *     sub-transactions, in order of first appearance: (subxid, offset of its first record), …
 *     an abort of one cuts at its offset; what stands behind it in this list goes with it
 *
 * A record is never split between chunks, so it is given out in place. Chunks grow from 4 kB to
 * 256 kB: nothing is copied to make room. A transaction that has a file writes to it again whenever
 * its chunks hold WRITE_BUFFER bytes. It writes SPILL_STEP bytes at a time, from its beginning, so
 * that no append takes as long as writing all of memory_limit: when the limit is reached only room
 * for the next chunk is made, and the rest follows, step by step, with the next chunks.
 *
 * Invariants:
 *   1. store.memory = allocated chunks, sub-transaction lists and read buffers of all transactions.
 *      Appending keeps it at or below memory_limit as far as chunks go: when nothing is left to
 *      spill, a record is written to the file without a chunk.
 *   2. store.files = sum of file_len - 0 of the transactions with a file of their own, at most
 *      file_limit.
 *   3. An append that fails has appended nothing; a spill that fails half-way has moved whole
 *      chunks, and the rest is where it was.
 *   4. Offsets in subs grow strictly with the index.
 *
 * On crash: the files have no name (O_TMPFILE, or unlinked at once), so nothing stays behind.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "libpgwalstream/assemble_internal.h"

#define CHUNK_MIN ((size_t)4096)
#define CHUNK_MAX ((size_t)256 << 10)
#define WRITE_BUFFER ((size_t)256 << 10)
#define SPILL_STEP ((size_t)1 << 20)
#define READ_BUFFER ((size_t)64 << 10)
/* Sub-transaction lists cannot go to a file; so much of them is allowed whatever the limit. */
#define SUBS_ALLOWED ((size_t)1 << 20)

struct header {
	uint32_t len; /* of the message behind it */
	uint32_t subxid;
	uint64_t lsn;
};

struct pgwsi_chunk {
	struct pgwsi_chunk *prev, *next;
	uint64_t start; /* offset of its first byte in the transaction */
	size_t size, used;
	uint8_t data[];
};

struct pgwsi_sub {
	uint32_t xid;
	uint64_t offset;
};

struct pgwsi_reader {
	uint64_t file_pos; /* what the buffer was filled up to */
	uint8_t *buf;
	size_t size, start, end;
	size_t chunk_pos; /* in the first chunk */
};

int pgwsi_store_fail(struct pgwsi_store *s, int err, const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	vsnprintf(s->error, sizeof(s->error), fmt, args);
	va_end(args);
	return err;
}

int pgwsi_store_fail_errno(struct pgwsi_store *s, const char *fmt, ...)
{
	int saved = errno;
	va_list args;
	va_start(args, fmt);
	vsnprintf(s->error, sizeof(s->error), fmt, args);
	va_end(args);
	size_t len = strlen(s->error);
	char text[128];
	/* GNU's strerror_r: _GNU_SOURCE is on (AC_USE_SYSTEM_EXTENSIONS). */
	snprintf(s->error + len, sizeof(s->error) - len, ": %s",
		strerror_r(saved, text, sizeof(text)));
	errno = saved;
	return PGWS_EIO;
}

/* ---- life ---- */

struct pgwsi_txn *pgwsi_txn_new(struct pgwsi_store *s, uint32_t xid)
{
	struct pgwsi_txn *t = calloc(1, sizeof(*t));
	if (t == NULL)
		return NULL;
	t->xid = xid;
	t->fd = -1;
	t->next = s->transactions;
	if (t->next != NULL)
		t->next->prev = t;
	s->transactions = t;
	return t;
}

static void free_chunk(struct pgwsi_store *s, struct pgwsi_txn *t, struct pgwsi_chunk *c)
{
	if (c->prev != NULL)
		c->prev->next = c->next;
	else
		t->first = c->next;
	if (c->next != NULL)
		c->next->prev = c->prev;
	else
		t->last = c->prev;
	size_t bytes = sizeof(*c) + c->size;
	t->chunk_bytes -= bytes;
	s->memory -= bytes;
	free(c);
}

void pgwsi_txn_free(struct pgwsi_store *s, struct pgwsi_txn **t)
{
	struct pgwsi_txn *x = *t;
	if (x == NULL)
		return;
	while (x->first != NULL)
		free_chunk(s, x, x->first);
	if (x->fd >= 0) {
		(void)close(x->fd); /* nothing in it is wanted any more, or it is kept and synced */
		if (!x->kept)
			s->files -= x->file_len;
	}
	if (x->reader != NULL) {
		s->memory -= x->reader->size;
		free(x->reader->buf);
		free(x->reader);
	}
	s->memory -= x->fixed_bytes;
	s->lists -= x->fixed_bytes;
	free(x->subs);
	free(x->slots);
	free(x->gid);
	if (x->prev != NULL)
		x->prev->next = x->next;
	else
		s->transactions = x->next;
	if (x->next != NULL)
		x->next->prev = x->prev;
	free(x);
	*t = NULL;
}

/* ---- files ---- */

static int open_file(struct pgwsi_store *s, struct pgwsi_txn *t)
{
	int fd = -1;
#ifdef O_TMPFILE
	fd = openat(s->dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
#endif
	/* File systems without O_TMPFILE: a name for a moment. */
	for (unsigned i = 0; fd < 0 && i < 1000; i++) {
		char name[64];
		snprintf(name, sizeof(name), "pgws-open-%ld-%u", (long)getpid(), i);
		fd = openat(
			s->dir_fd, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd >= 0)
			(void)unlinkat(
				s->dir_fd, name, 0); /* a left-over is removed by the next life */
		else if (errno != EEXIST)
			break;
	}
	if (fd < 0)
		return pgwsi_store_fail_errno(s, "cannot make a file in %s", s->dir);
	t->fd = fd;
	s->spilled++;
	return 0;
}

int pgwsi_store_reserve(struct pgwsi_store *s, uint32_t xid, uint64_t n)
{
	if (s->file_limit == 0)
		return pgwsi_store_fail(s, PGWS_ELIMIT,
			"open transactions need more than memory_limit (%zu bytes) and files are "
			"not "
			"allowed; raise memory_limit or set file_limit",
			s->memory_limit);
	if (n > s->file_limit || s->files > s->file_limit - n)
		return pgwsi_store_fail(s, PGWS_ELIMIT,
			"open transactions need more than file_limit (%llu bytes) in %s, the last "
			"of "
			"them is %u; raise file_limit, or split the transaction",
			(unsigned long long)s->file_limit, s->dir, xid);
	return 0;
}

static int write_at(
	struct pgwsi_store *s, struct pgwsi_txn *t, struct iovec *iov, int n, uint64_t offset)
{
	while (n > 0) {
		ssize_t done = pwritev(t->fd, iov, n, (off_t)(t->file_base + offset));
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return pgwsi_store_fail_errno(
				s, "cannot write transaction %u to its file in %s", t->xid, s->dir);
		offset += (uint64_t)done;
		size_t left = (size_t)done;
		while (n > 0 && left >= iov->iov_len) {
			left -= iov->iov_len;
			iov++;
			n--;
		}
		if (n > 0) {
			iov->iov_base = (uint8_t *)iov->iov_base + left;
			iov->iov_len -= left;
		}
	}
	return 0;
}

/* The next step of t's way from memory to its file; all of it has to have room there. */
static int spill(struct pgwsi_store *s, struct pgwsi_txn *t)
{
	if (pgwsi_store_reserve(s, t->xid, t->len - t->file_len) != 0)
		return PGWS_ELIMIT;
	if (t->fd < 0 && open_file(s, t) != 0)
		return PGWS_EIO;
	const uint64_t end = t->file_len + SPILL_STEP;
	while (t->first != NULL && t->file_len < end) {
		struct pgwsi_chunk *c = t->first;
		struct iovec iov = {.iov_base = c->data, .iov_len = c->used};
		if (write_at(s, t, &iov, 1, c->start) != 0)
			return PGWS_EIO;
		t->file_len += c->used;
		s->files += c->used;
		s->spilled_bytes += c->used;
		free_chunk(s, t, c);
	}
	return 0;
}

/* A record that no chunk may be made for: to the file at once. */
static int append_to_file(struct pgwsi_store *s, struct pgwsi_txn *t, struct iovec iov[3])
{
	size_t len = iov[0].iov_len + iov[1].iov_len + iov[2].iov_len;
	int err = t->first != NULL ? spill(s, t) : 0;
	if (err == 0)
		err = pgwsi_store_reserve(s, t->xid, len);
	if (err == 0 && t->fd < 0)
		err = open_file(s, t);
	if (err == 0)
		err = write_at(s, t, iov, 3, t->len);
	if (err != 0)
		return err;
	t->len += len;
	t->file_len += len;
	s->files += len;
	s->spilled_bytes += len;
	return 0;
}

/* ---- sub-transactions ---- */

static uint32_t slot_of(const struct pgwsi_txn *t, uint32_t xid)
{
	uint32_t i = xid * UINT32_C(2654435761) & (t->n_slots - 1);
	while (t->slots[i] != 0 && t->subs[t->slots[i] - 1].xid != xid)
		i = (i + 1) & (t->n_slots - 1);
	return i;
}

static int grow_subs(struct pgwsi_store *s, struct pgwsi_txn *t)
{
	uint32_t max = t->max_subs == 0 ? 8 : t->max_subs * 2;
	size_t bytes = max * (sizeof(*t->subs) + 2 * sizeof(*t->slots));
	size_t more = bytes - t->fixed_bytes;
	size_t allowed = s->memory_limit > SUBS_ALLOWED ? s->memory_limit : SUBS_ALLOWED;
	if (s->lists > allowed || more > allowed - s->lists || max > UINT32_MAX / 4)
		return pgwsi_store_fail(s, PGWS_ELIMIT,
			"the sub-transactions of open transactions, %u of them of %u, need more "
			"than memory_limit (%zu bytes); raise memory_limit",
			t->n_subs + 1, t->xid, s->memory_limit);
	uint32_t *slots = calloc((size_t)max * 2, sizeof(*slots));
	struct pgwsi_sub *subs = slots != NULL ? realloc(t->subs, max * sizeof(*subs)) : NULL;
	if (subs == NULL) {
		free(slots);
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	}
	free(t->slots);
	t->subs = subs;
	t->slots = slots;
	t->max_subs = max;
	t->n_slots = max * 2;
	t->fixed_bytes = bytes;
	s->memory += more;
	s->lists += more;
	for (uint32_t i = 0; i < t->n_subs; i++)
		slots[slot_of(t, subs[i].xid)] = i + 1;
	return 0;
}

/* subxid's next message will stand at len. */
static int note_sub(struct pgwsi_store *s, struct pgwsi_txn *t, uint32_t subxid)
{
	if (t->n_slots != 0 && t->slots[slot_of(t, subxid)] != 0) {
		t->last_subxid = subxid;
		return 0;
	}
	int err = t->n_subs == t->max_subs ? grow_subs(s, t) : 0;
	if (err != 0)
		return err;
	t->subs[t->n_subs] = (struct pgwsi_sub){.xid = subxid, .offset = t->len};
	t->slots[slot_of(t, subxid)] = ++t->n_subs;
	t->last_subxid = subxid;
	return 0;
}

/* The last in, first out: so the probing of those that stay is not cut. */
static void forget_last_sub(struct pgwsi_txn *t)
{
	t->slots[slot_of(t, t->subs[t->n_subs - 1].xid)] = 0;
	t->n_subs--;
	t->last_subxid = 0;
}

/* ---- appending and cutting ---- */

/* On its way to its file already, and not down to its buffer. */
static bool is_leaving(const struct pgwsi_txn *t)
{
	return t->fd >= 0 && t->chunk_bytes > 2 * WRITE_BUFFER;
}

/* Who makes room: the largest of those that have begun to, else the largest. */
static struct pgwsi_txn *choose_victim(struct pgwsi_store *s)
{
	struct pgwsi_txn *found = NULL;
	for (struct pgwsi_txn *t = s->transactions; t != NULL; t = t->next) {
		if (t->chunk_bytes == 0)
			continue;
		if (found == NULL || is_leaving(t) > is_leaving(found) ||
			(is_leaving(t) == is_leaving(found) && t->chunk_bytes > found->chunk_bytes))
			found = t;
	}
	return found;
}

/* A chunk for a record of len bytes at the end of t. 0, PGWS_EAGAIN: no room for it in memory. */
static int add_chunk(struct pgwsi_store *s, struct pgwsi_txn *t, size_t len)
{
	size_t size = t->last == NULL ? CHUNK_MIN : t->last->size * 2;
	if (size > CHUNK_MAX)
		size = CHUNK_MAX;
	if (size > s->memory_limit / 4)
		size = s->memory_limit / 4;
	if (size < len)
		size = len;
	while (s->memory > s->memory_limit ||
		s->memory_limit - s->memory < sizeof(struct pgwsi_chunk) + size) {
		struct pgwsi_txn *victim = choose_victim(s);
		if (victim == NULL)
			return PGWS_EAGAIN;
		int err = spill(s, victim);
		if (err != 0)
			return err;
	}
	struct pgwsi_chunk *c = malloc(sizeof(*c) + size);
	if (c == NULL)
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	*c = (struct pgwsi_chunk){.prev = t->last, .start = t->len, .size = size};
	if (t->last != NULL)
		t->last->next = c;
	else
		t->first = c;
	t->last = c;
	t->chunk_bytes += sizeof(*c) + size;
	s->memory += sizeof(*c) + size;
	return 0;
}

static int append(struct pgwsi_store *s, struct pgwsi_txn *t, struct iovec iov[3])
{
	size_t len = iov[0].iov_len + iov[1].iov_len + iov[2].iov_len;
	struct pgwsi_chunk *c = t->last;
	if (c == NULL || c->size - c->used < len) {
		int err = 0;
		if (t->fd >= 0 && t->chunk_bytes >= WRITE_BUFFER)
			err = spill(s, t);
		if (err == 0)
			err = add_chunk(s, t, len);
		if (err == PGWS_EAGAIN)
			return append_to_file(s, t, iov);
		if (err != 0)
			return err;
		c = t->last;
	}
	for (int i = 0; i < 3; i++) {
		if (iov[i].iov_len != 0)
			memcpy(c->data + c->used, iov[i].iov_base, iov[i].iov_len);
		c->used += iov[i].iov_len;
	}
	t->len += len;
	return 0;
}

int pgwsi_txn_append(struct pgwsi_store *s, struct pgwsi_txn *t, const struct pgwsi_record *head,
	const void *rest, size_t rest_len)
{
	if (rest_len + head->len > UINT32_MAX)
		return pgwsi_store_fail(s, PGWS_EPROTO, "a message of more than 4 GB");
	uint32_t n_subs = t->n_subs;
	if (head->subxid != t->xid && head->subxid != t->last_subxid) {
		int err = note_sub(s, t, head->subxid);
		if (err != 0)
			return err;
	}
	struct header h = {
		.len = (uint32_t)(head->len + rest_len), .subxid = head->subxid, .lsn = head->lsn};
	struct iovec iov[3] = {
		{.iov_base = &h, .iov_len = sizeof(h)},
		/* iovec has no const; nothing is written through these */
		{.iov_base = (void *)(uintptr_t)head->data, .iov_len = head->len},
		{.iov_base = (void *)(uintptr_t)rest, .iov_len = rest_len},
	};
	int err = append(s, t, iov);
	if (err != 0 && t->n_subs != n_subs)
		forget_last_sub(t);
	return err;
}

static int cut(struct pgwsi_store *s, struct pgwsi_txn *t, uint64_t offset)
{
	if (offset < t->file_len) {
		if (ftruncate(t->fd, (off_t)(t->file_base + offset)) != 0)
			return pgwsi_store_fail_errno(s,
				"cannot truncate the file of transaction %u in %s", t->xid, s->dir);
		s->files -= t->file_len - offset;
		t->file_len = offset;
	}
	while (t->last != NULL && t->last->start >= offset)
		free_chunk(s, t, t->last);
	if (t->last != NULL)
		t->last->used = (size_t)(offset - t->last->start);
	t->len = offset;
	return 0;
}

int pgwsi_txn_truncate(struct pgwsi_store *s, struct pgwsi_txn *t, uint32_t subxid, bool *ret_known)
{
	uint32_t index = t->n_slots != 0 ? t->slots[slot_of(t, subxid)] : 0;
	if (index != 0) {
		int err = cut(s, t, t->subs[index - 1].offset);
		if (err != 0)
			return err;
		while (t->n_subs >= index)
			forget_last_sub(t);
	}
	*ret_known = index != 0;
	return 0;
}

/* ---- reading ---- */

static int fail_short(struct pgwsi_store *s, const struct pgwsi_txn *t)
{
	errno = EIO;
	return pgwsi_store_fail(s, PGWS_EIO,
		"the file of transaction %u in %s is shorter than what was written, or damaged",
		t->xid, s->dir);
}

static int read_at(
	struct pgwsi_store *s, const struct pgwsi_txn *t, void *buf, size_t n, uint64_t offset)
{
	for (size_t done = 0; done < n;) {
		ssize_t got = pread(t->fd, (uint8_t *)buf + done, n - done,
			(off_t)(t->file_base + offset + done));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return pgwsi_store_fail_errno(
				s, "cannot read the file of transaction %u in %s", t->xid, s->dir);
		if (got == 0)
			return fail_short(s, t);
		done += (size_t)got;
	}
	return 0;
}

/* At least n bytes in the buffer, from start on. */
static int fill(struct pgwsi_store *s, struct pgwsi_txn *t, size_t n)
{
	struct pgwsi_reader *r = t->reader;
	if (r->end - r->start >= n)
		return 0;
	if (r->start > 0)
		memmove(r->buf, r->buf + r->start, r->end - r->start);
	r->end -= r->start;
	r->start = 0;
	/* Back to the modest size after a message that needed more. */
	size_t size = n > READ_BUFFER ? n : READ_BUFFER;
	if (size != r->size) {
		uint8_t *buf = realloc(r->buf, size);
		if (buf == NULL)
			return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
		r->buf = buf;
		s->memory += size;
		s->memory -= r->size;
		r->size = size;
	}
	size_t want = r->size - r->end;
	if (want > t->file_len - r->file_pos)
		want = (size_t)(t->file_len - r->file_pos);
	if (r->end + want < n)
		return fail_short(s, t);
	int err = read_at(s, t, r->buf + r->end, want, r->file_pos);
	if (err != 0)
		return err;
	r->end += want;
	r->file_pos += want;
	return 0;
}

static int read_from_file(
	struct pgwsi_store *s, struct pgwsi_txn *t, struct pgwsi_record *ret_record)
{
	struct header h;
	struct pgwsi_reader *r = t->reader;
	int err = fill(s, t, sizeof(h));
	if (err != 0)
		return err;
	memcpy(&h, r->buf + r->start, sizeof(h));
	if (h.len > t->file_len - r->file_pos + (r->end - r->start) - sizeof(h))
		return fail_short(s, t);
	err = fill(s, t, sizeof(h) + h.len);
	if (err != 0)
		return err;
	*ret_record = (struct pgwsi_record){.subxid = h.subxid,
		.lsn = h.lsn,
		.data = r->buf + r->start + sizeof(h),
		.len = h.len};
	r->start += sizeof(h) + h.len;
	return 0;
}

int pgwsi_txn_read(struct pgwsi_store *s, struct pgwsi_txn *t, struct pgwsi_record *ret_record)
{
	if (t->reader == NULL) {
		t->reader = calloc(1, sizeof(*t->reader));
		if (t->reader == NULL)
			return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	}
	struct pgwsi_reader *r = t->reader;
	if (r->file_pos < t->file_len || r->start < r->end)
		return read_from_file(s, t, ret_record);
	if (t->first != NULL && r->chunk_pos == t->first->used) {
		free_chunk(s, t, t->first);
		r->chunk_pos = 0;
	}
	if (t->first == NULL)
		return PGWS_EAGAIN;
	struct header h;
	const uint8_t *at = t->first->data + r->chunk_pos;
	memcpy(&h, at, sizeof(h));
	*ret_record = (struct pgwsi_record){
		.subxid = h.subxid, .lsn = h.lsn, .data = at + sizeof(h), .len = h.len};
	r->chunk_pos += sizeof(h) + h.len;
	return 0;
}

int pgwsi_txn_copy(struct pgwsi_store *s, struct pgwsi_txn *t,
	int (*sink)(void *arg, const void *data, size_t len), void *arg, void *buf, size_t size)
{
	for (uint64_t at = 0; at < t->file_len;) {
		size_t n = t->file_len - at < size ? (size_t)(t->file_len - at) : size;
		int err = read_at(s, t, buf, n, at);
		if (err == 0)
			err = sink(arg, buf, n);
		if (err != 0)
			return err;
		at += n;
	}
	for (struct pgwsi_chunk *c = t->first; c != NULL; c = c->next) {
		int err = sink(arg, c->data, c->used);
		if (err != 0)
			return err;
	}
	return 0;
}
