/* SPDX-License-Identifier: PostgreSQL */
/*
 * Prepared transactions: one file each, from PREPARE until what ended it is confirmed.
 *
 * Context: the assembler's thread. The folder belongs to one assembler at a time (flock).
 *
 *     pgws-new-PREPAREEND-XID            being written
 *     pgws-prepared-PREPAREEND-XID       kept
 *     pgws-prepared-PREPAREEND-XID-END   ended at END: given out (or rolled back), not confirmed
 *     pgws-confirmed-END                 empty: the mark; what ended at or before END was removed
 *
 *     file = struct file_header, gid, records as in assemble_txn.c; native byte order
 *
 * A gid may be used again once its transaction has ended, while the old file still waits to be
 * confirmed: so a file is known by the end of its PREPARE and its xid, which no other has, and
 * looked up by gid and xid.
 *
 * Invariants:
 *   1. A name "pgws-prepared-…" appears only for a whole file whose bytes are on disk.
 *   2. A file is removed only when the caller has what is in it and the mark says so. The server
 *      may still send its COMMIT PREPARED again, as a slot's position need not survive the server:
 *      one that nothing is kept of and that ended at or before the mark is left out.
 *   3. store.files includes every kept file.
 *
 * On crash: before the rename a "pgws-new-" file stays, which the next life removes: PREPARE was
 * not confirmed and comes again. After it the file stands, PREPARE coming again replaces it. A
 * rename to "-END" that was lost, or a removal, shows as a transaction that is still prepared;
 * COMMIT PREPARED coming again finds it, and if it does not come, the gid's next PREPARE ends it.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libpgwalstream/assemble_internal.h"

#define MAGIC "PGWSPREP"
#define BYTE_ORDER_TAG UINT32_C(0x01020304)
#define FORMAT 1
#define GID_MAX 1024 /* PostgreSQL's is 200 */
#define NAME_SIZE 80
#define COPY_BUFFER ((size_t)64 << 10)

struct file_header {
	char magic[8];
	uint32_t byte_order, format;
	uint32_t xid, gid_len;
	uint64_t begin_lsn, prepare_lsn, end_lsn;
	uint64_t body_len;
	uint32_t body_crc;
	uint32_t header_crc; /* of all before it, and of the gid */
};
_Static_assert(sizeof(struct file_header) == 64, "the file's layout");

struct pgwsi_kept {
	struct pgwsi_kept *next;
	char *gid;
	uint32_t xid;
	uint64_t begin_lsn, prepare_lsn, end_lsn;
	uint64_t ended_lsn; /* 0: still prepared */
	uint64_t body_len;
};

struct pgwsi_keep {
	struct pgwsi_kept *list;
	uint64_t n_live, n_ended;
	uint64_t mark;   /* 0: nothing was ever removed */
	bool mark_loose; /* it need not be on disk */
	size_t memory;
	uint32_t crc_table[256];
};

/* CRC-32C, a byte at a time: the files are few. */
static void make_crc_table(struct pgwsi_keep *k)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = c >> 1 ^ ((c & 1) != 0 ? UINT32_C(0x82f63b78) : 0);
		k->crc_table[i] = c;
	}
}

static uint32_t crc_of(const struct pgwsi_keep *k, uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;
	crc = ~crc;
	while (len-- > 0)
		crc = crc >> 8 ^ k->crc_table[(crc ^ *p++) & 0xff];
	return ~crc;
}

static uint64_t file_size(const struct pgwsi_kept *e)
{
	return sizeof(struct file_header) + strlen(e->gid) + e->body_len;
}

static void name_of(const struct pgwsi_kept *e, char name[NAME_SIZE])
{
	int n = snprintf(
		name, NAME_SIZE, "pgws-prepared-%016" PRIX64 "-%08" PRIX32, e->end_lsn, e->xid);
	if (e->ended_lsn != 0)
		snprintf(name + n, NAME_SIZE - (size_t)n, "-%016" PRIX64, e->ended_lsn);
}

static void mark_name(uint64_t lsn, char name[NAME_SIZE])
{
	snprintf(name, NAME_SIZE, "pgws-confirmed-%016" PRIX64, lsn);
}

static int fail_file(struct pgwsi_store *s, const char *name, const char *why)
{
	errno = EIO;
	return pgwsi_store_fail(s, PGWS_EIO, "%s/%s %s", s->dir, name, why);
}

static int sync_dir(struct pgwsi_store *s)
{
	if (fsync(s->dir_fd) != 0)
		return pgwsi_store_fail_errno(s, "cannot sync %s", s->dir);
	return 0;
}

/* ---- the list ---- */

static size_t memory_of(const struct pgwsi_kept *e)
{
	return sizeof(*e) + strlen(e->gid) + 1;
}

static void add(struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_kept *e)
{
	e->next = k->list;
	k->list = e;
	if (e->ended_lsn != 0)
		k->n_ended++;
	else
		k->n_live++;
	k->memory += memory_of(e);
	s->files += file_size(e);
}

/* Forgets it; the file is not touched. */
static void drop(struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_kept *e)
{
	struct pgwsi_kept **at = &k->list;
	while (*at != e)
		at = &(*at)->next;
	*at = e->next;
	if (e->ended_lsn != 0)
		k->n_ended--;
	else
		k->n_live--;
	k->memory -= memory_of(e);
	s->files -= file_size(e);
	free(e->gid);
	free(e);
}

static struct pgwsi_kept *find_file(struct pgwsi_keep *k, uint64_t end_lsn, uint32_t xid)
{
	struct pgwsi_kept *e = k->list;
	while (e != NULL && (e->end_lsn != end_lsn || e->xid != xid))
		e = e->next;
	return e;
}

struct pgwsi_kept *pgwsi_keep_find(
	struct pgwsi_keep *k, const char *gid, uint32_t xid, uint64_t before)
{
	struct pgwsi_kept *found = NULL;
	for (struct pgwsi_kept *e = k->list; e != NULL; e = e->next) {
		if (e->xid == xid && e->end_lsn <= before && strcmp(e->gid, gid) == 0 &&
			(found == NULL || e->end_lsn > found->end_lsn))
			found = e;
	}
	return found;
}

bool pgwsi_keep_was_removed(const struct pgwsi_keep *k, uint64_t ended_lsn)
{
	return ended_lsn <= k->mark;
}

uint64_t pgwsi_keep_count(const struct pgwsi_keep *k)
{
	return k != NULL ? k->n_live : 0;
}

size_t pgwsi_keep_memory(const struct pgwsi_keep *k)
{
	return k != NULL ? k->memory : 0;
}

/* ---- writing ---- */

struct writer {
	struct pgwsi_store *s;
	const struct pgwsi_keep *k;
	const char *name;
	int fd;
	uint64_t offset;
	uint32_t crc;
};

static int write_bytes(void *arg, const void *data, size_t len)
{
	struct writer *w = arg;
	const uint8_t *p = data;
	w->crc = crc_of(w->k, w->crc, data, len);
	while (len > 0) {
		ssize_t done = pwrite(w->fd, p, len, (off_t)w->offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return pgwsi_store_fail_errno(
				w->s, "cannot write %s/%s", w->s->dir, w->name);
		p += done;
		len -= (size_t)done;
		w->offset += (uint64_t)done;
	}
	return 0;
}

static int write_file(struct writer *w, const struct pgwsi_kept *e, struct pgwsi_txn *t)
{
	char *buf = malloc(COPY_BUFFER);
	if (buf == NULL)
		return pgwsi_store_fail(w->s, PGWS_ENOMEM, "out of memory");
	struct file_header h = {.byte_order = BYTE_ORDER_TAG,
		.format = FORMAT,
		.xid = e->xid,
		.gid_len = (uint32_t)strlen(e->gid),
		.begin_lsn = e->begin_lsn,
		.prepare_lsn = e->prepare_lsn,
		.end_lsn = e->end_lsn,
		.body_len = e->body_len};
	memcpy(h.magic, MAGIC, sizeof(h.magic));
	w->offset = sizeof(h) + h.gid_len;
	w->crc = 0;
	int err = pgwsi_txn_copy(w->s, t, write_bytes, w, buf, COPY_BUFFER);
	free(buf);
	h.body_crc = w->crc;
	h.header_crc = crc_of(w->k, 0, &h, offsetof(struct file_header, header_crc));
	h.header_crc = crc_of(w->k, h.header_crc, e->gid, h.gid_len);
	w->offset = 0;
	if (err == 0)
		err = write_bytes(w, &h, sizeof(h));
	if (err == 0)
		err = write_bytes(w, e->gid, h.gid_len);
	if (err == 0 && fsync(w->fd) != 0)
		err = pgwsi_store_fail_errno(w->s, "cannot sync %s/%s", w->s->dir, w->name);
	return err;
}

/* Under a name of its own, then under that of e: never a part of it there. */
static int put_file(struct pgwsi_store *s, const struct pgwsi_keep *k, const struct pgwsi_kept *e,
	const char *name, struct pgwsi_txn *t)
{
	char new_name[NAME_SIZE];
	snprintf(new_name, sizeof(new_name), "pgws-new-%016" PRIX64 "-%08" PRIX32, e->end_lsn,
		e->xid);
	struct writer w = {.s = s, .k = k, .name = new_name};
	w.fd = openat(
		s->dir_fd, new_name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (w.fd < 0)
		return pgwsi_store_fail_errno(s, "cannot make %s/%s", s->dir, new_name);
	int err = write_file(&w, e, t);
	if (close(w.fd) != 0 && err == 0)
		err = pgwsi_store_fail_errno(s, "cannot close %s/%s", s->dir, new_name);
	if (err == 0 && renameat(s->dir_fd, new_name, s->dir_fd, name) != 0)
		err = pgwsi_store_fail_errno(s, "cannot rename %s/%s", s->dir, new_name);
	if (err != 0) {
		int saved = errno;
		(void)unlinkat(s->dir_fd, new_name, 0); /* else the next life does it */
		errno = saved;
		return err;
	}
	return sync_dir(s);
}

/* The gid is prepared anew: what stood under it before has ended, though we were not told where. */
static int end_older(struct pgwsi_store *s, struct pgwsi_keep *k, const struct pgwsi_kept *newest)
{
	for (struct pgwsi_kept *e = k->list; e != NULL; e = e->next) {
		if (e == newest || e->ended_lsn != 0 || e->end_lsn >= newest->end_lsn ||
			strcmp(e->gid, newest->gid) != 0)
			continue;
		int err = pgwsi_keep_end(s, k, e, newest->prepare_lsn);
		if (err != 0)
			return err;
	}
	return 0;
}

int pgwsi_keep_write(struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_txn *t,
	const struct pgws_msg *prepare)
{
	if (strlen(prepare->u.prepare.gid) > GID_MAX)
		return pgwsi_store_fail(s, PGWS_EPROTO, "a gid of more than %d bytes", GID_MAX);
	struct pgwsi_kept *e = calloc(1, sizeof(*e));
	char *gid = strdup(prepare->u.prepare.gid);
	if (e == NULL || gid == NULL) {
		free(e);
		free(gid);
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	}
	*e = (struct pgwsi_kept){.gid = gid,
		.xid = t->xid,
		.begin_lsn = t->begin_lsn,
		.prepare_lsn = prepare->u.prepare.lsn,
		.end_lsn = prepare->u.prepare.end_lsn,
		.body_len = t->len};
	/* The server sends it again from where it restarts: the file changes under its name. */
	struct pgwsi_kept *old = find_file(k, e->end_lsn, e->xid);
	if (old != NULL)
		e->ended_lsn = old->ended_lsn;
	char name[NAME_SIZE];
	name_of(e, name);
	int err = pgwsi_store_reserve(s, t->xid, file_size(e));
	if (err == 0)
		err = put_file(s, k, e, name, t);
	if (err != 0) {
		free(gid);
		free(e);
		return err;
	}
	if (old != NULL)
		drop(s, k, old);
	add(s, k, e);
	return end_older(s, k, e);
}

int pgwsi_keep_end(
	struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_kept *e, uint64_t ended_lsn)
{
	if (e->ended_lsn == ended_lsn)
		return 0;
	char old_name[NAME_SIZE], new_name[NAME_SIZE];
	name_of(e, old_name);
	uint64_t before = e->ended_lsn;
	e->ended_lsn = ended_lsn;
	name_of(e, new_name);
	if (renameat(s->dir_fd, old_name, s->dir_fd, new_name) != 0) {
		e->ended_lsn = before;
		return pgwsi_store_fail_errno(s, "cannot rename %s/%s", s->dir, old_name);
	}
	if (before == 0) {
		k->n_live--;
		k->n_ended++;
	}
	return sync_dir(s);
}

/* The mark moves there, or is there already, on disk. */
static int set_mark(struct pgwsi_store *s, struct pgwsi_keep *k, uint64_t lsn)
{
	char old_name[NAME_SIZE], name[NAME_SIZE];
	mark_name(k->mark, old_name);
	mark_name(lsn, name);
	if (lsn > k->mark && k->mark != 0) {
		if (renameat(s->dir_fd, old_name, s->dir_fd, name) != 0)
			return pgwsi_store_fail_errno(s, "cannot rename %s/%s", s->dir, old_name);
	} else if (lsn > k->mark) {
		int fd = openat(s->dir_fd, name, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return pgwsi_store_fail_errno(s, "cannot make %s/%s", s->dir, name);
		(void)close(fd); /* nothing was written: its name is what counts */
	} else if (!k->mark_loose) {
		return 0;
	}
	k->mark = lsn > k->mark ? lsn : k->mark;
	k->mark_loose = true;
	int err = sync_dir(s);
	k->mark_loose = err != 0;
	return err;
}

static bool is_done(const struct pgwsi_kept *e, uint64_t lsn)
{
	return e->ended_lsn != 0 && e->ended_lsn <= lsn;
}

int pgwsi_keep_confirmed(struct pgwsi_store *s, struct pgwsi_keep *k, uint64_t lsn)
{
	struct pgwsi_kept *next, *list = k->n_ended != 0 ? k->list : NULL;
	uint64_t last = 0;
	for (const struct pgwsi_kept *e = list; e != NULL; e = e->next) {
		if (is_done(e, lsn) && e->ended_lsn > last)
			last = e->ended_lsn;
	}
	if (last == 0)
		return 0;
	int err = set_mark(s, k, last);
	if (err != 0)
		return err;
	for (struct pgwsi_kept *e = list; e != NULL; e = next) {
		next = e->next;
		if (!is_done(e, lsn))
			continue;
		char name[NAME_SIZE];
		name_of(e, name);
		if (unlinkat(s->dir_fd, name, 0) != 0 && errno != ENOENT)
			return pgwsi_store_fail_errno(s, "cannot remove %s/%s", s->dir, name);
		drop(s, k, e);
	}
	return 0;
}

/* ---- reading ---- */

int pgwsi_keep_read(struct pgwsi_store *s, const struct pgwsi_kept *e, struct pgwsi_txn **ret_txn)
{
	char name[NAME_SIZE];
	name_of(e, name);
	struct pgwsi_txn *t = pgwsi_txn_new(s, e->xid);
	char *gid = strdup(e->gid);
	if (t == NULL || gid == NULL) {
		free(gid);
		pgwsi_txn_free(s, &t);
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	}
	t->gid = gid;
	t->kept = true;
	t->begin_lsn = e->begin_lsn;
	t->file_base = sizeof(struct file_header) + strlen(gid);
	t->fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (t->fd < 0) {
		int err = pgwsi_store_fail_errno(s, "cannot open %s/%s", s->dir, name);
		pgwsi_txn_free(s, &t);
		return err;
	}
	t->len = t->file_len = e->body_len;
	*ret_txn = t;
	return 0;
}

/* ---- loading ---- */

/* Exactly len bytes: 0, PGWS_EIO. */
static int read_exactly(
	struct pgwsi_store *s, int fd, const char *name, void *buf, size_t len, uint64_t offset)
{
	for (size_t done = 0; done < len;) {
		ssize_t got = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return pgwsi_store_fail_errno(s, "cannot read %s/%s", s->dir, name);
		if (got == 0)
			return fail_file(s, name, "is shorter than it says");
		done += (size_t)got;
	}
	return 0;
}

static int check_body(struct pgwsi_store *s, const struct pgwsi_keep *k, int fd, const char *name,
	const struct file_header *h)
{
	char *buf = malloc(COPY_BUFFER);
	if (buf == NULL)
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	uint32_t crc = 0;
	int err = 0;
	for (uint64_t at = 0; err == 0 && at < h->body_len;) {
		size_t n =
			h->body_len - at < COPY_BUFFER ? (size_t)(h->body_len - at) : COPY_BUFFER;
		err = read_exactly(s, fd, name, buf, n, sizeof(*h) + h->gid_len + at);
		if (err == 0)
			crc = crc_of(k, crc, buf, n);
		at += n;
	}
	if (err == 0 && crc != h->body_crc)
		err = fail_file(s, name, "is damaged (checksum)");
	free(buf);
	return err;
}

/* The header and the gid behind it (GID_MAX + 1 bytes), checked. */
static int read_header(struct pgwsi_store *s, const struct pgwsi_keep *k, int fd, const char *name,
	struct file_header *h, char *gid)
{
	int err = read_exactly(s, fd, name, h, sizeof(*h), 0);
	if (err != 0)
		return err;
	if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0 || h->byte_order != BYTE_ORDER_TAG)
		return fail_file(s, name, "is not a prepared transaction of this machine");
	if (h->format != FORMAT)
		return fail_file(s, name, "is of another version of the library");
	if (h->gid_len > GID_MAX)
		return fail_file(s, name, "is damaged (header)");
	err = read_exactly(s, fd, name, gid, h->gid_len, sizeof(*h));
	if (err != 0)
		return err;
	gid[h->gid_len] = 0;
	uint32_t crc = crc_of(k, 0, h, offsetof(struct file_header, header_crc));
	crc = crc_of(k, crc, gid, h->gid_len);
	if (crc != h->header_crc || strlen(gid) != h->gid_len)
		return fail_file(s, name, "is damaged (header)");
	return check_body(s, k, fd, name, h);
}

static int load_file(struct pgwsi_store *s, struct pgwsi_keep *k, const char *name,
	const struct pgwsi_kept *named)
{
	struct file_header h;
	char gid[GID_MAX + 1];
	int fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return pgwsi_store_fail_errno(s, "cannot open %s/%s", s->dir, name);
	int err = read_header(s, k, fd, name, &h, gid);
	struct stat st;
	if (err == 0 && fstat(fd, &st) != 0)
		err = pgwsi_store_fail_errno(s, "cannot look at %s/%s", s->dir, name);
	(void)close(fd); /* read only */
	if (err != 0)
		return err;
	struct pgwsi_kept *e = calloc(1, sizeof(*e));
	char *copy = strdup(gid);
	if (e == NULL || copy == NULL) {
		free(e);
		free(copy);
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	}
	*e = (struct pgwsi_kept){.gid = copy,
		.xid = h.xid,
		.begin_lsn = h.begin_lsn,
		.prepare_lsn = h.prepare_lsn,
		.end_lsn = h.end_lsn,
		.ended_lsn = named->ended_lsn,
		.body_len = h.body_len};
	add(s, k, e);
	if (h.xid != named->xid || h.end_lsn != named->end_lsn ||
		(uint64_t)st.st_size != file_size(e))
		return fail_file(s, name, "is not what its name or its header says");
	return 0;
}

/* True: it is a mark. */
static bool load_mark(struct pgwsi_keep *k, const char *name)
{
	uint64_t lsn = 0;
	char again[NAME_SIZE];
	if (sscanf(name, "pgws-confirmed-%" SCNx64, &lsn) != 1)
		return false;
	mark_name(lsn, again);
	if (strcmp(name, again) != 0)
		return false;
	k->mark = lsn > k->mark ? lsn : k->mark;
	return true;
}

static int load_entry(struct pgwsi_store *s, struct pgwsi_keep *k, const char *name)
{
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return 0;
	if (strncmp(name, "pgws-new-", 9) == 0 || strncmp(name, "pgws-open-", 10) == 0) {
		if (unlinkat(s->dir_fd, name, 0) != 0)
			return pgwsi_store_fail_errno(s, "cannot remove %s/%s", s->dir, name);
		return 0;
	}
	if (load_mark(k, name))
		return 0;
	struct pgwsi_kept named = {0};
	char again[NAME_SIZE];
	int n = sscanf(name, "pgws-prepared-%" SCNx64 "-%" SCNx32 "-%" SCNx64, &named.end_lsn,
		&named.xid, &named.ended_lsn);
	name_of(&named, again);
	if (n < 2 || strcmp(name, again) != 0)
		return fail_file(s, name,
			"is not ours; a folder for prepared transactions must hold nothing else");
	if (find_file(k, named.end_lsn, named.xid) != NULL)
		return fail_file(s, name, "is there twice, ended and not");
	return load_file(s, k, name, &named);
}

int pgwsi_keep_open(struct pgwsi_store *s, struct pgwsi_keep **ret_k)
{
	if (flock(s->dir_fd, LOCK_EX | LOCK_NB) != 0)
		return pgwsi_store_fail_errno(
			s, "cannot lock %s, which only one may use at a time", s->dir);
	int fd = openat(s->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	if (d == NULL) {
		if (fd >= 0)
			(void)close(fd);
		return pgwsi_store_fail_errno(s, "cannot read %s", s->dir);
	}
	struct pgwsi_keep *k = calloc(1, sizeof(*k));
	int err = k == NULL ? pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory") : 0;
	if (k != NULL)
		make_crc_table(k);
	while (err == 0) {
		errno = 0;
		struct dirent *entry = readdir(d);
		if (entry == NULL && errno != 0)
			err = pgwsi_store_fail_errno(s, "cannot read %s", s->dir);
		if (entry == NULL)
			break;
		err = load_entry(s, k, entry->d_name);
	}
	int saved = errno;
	(void)closedir(d); /* read only */
	if (err != 0)
		pgwsi_keep_close(s, &k);
	errno = saved;
	if (err == 0)
		*ret_k = k;
	return err;
}

void pgwsi_keep_close(struct pgwsi_store *s, struct pgwsi_keep **k)
{
	if (*k == NULL)
		return;
	while ((*k)->list != NULL)
		drop(s, *k, (*k)->list);
	free(*k);
	*k = NULL;
}
