/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the files of the assembler share. assemble.c is the state machine over the messages,
 * assemble_txn.c one transaction's messages in memory and in its file, assemble_prepared.c what is
 * kept by gid.
 */
#ifndef LIBPGWALSTREAM_ASSEMBLE_INTERNAL_H
#define LIBPGWALSTREAM_ASSEMBLE_INTERNAL_H

#include "libpgwalstream/pgwalstream.h"

#define PGWSI_ERROR_BYTES 512

struct pgwsi_txn;

/* What all transactions of one assembler share: the limits and what is used of them. */
struct pgwsi_store {
	size_t memory_limit, memory; /* bytes */
	size_t lists;                /* of it, lists of sub-transactions */
	uint64_t file_limit, files;  /* bytes */
	uint64_t spilled, spilled_bytes;
	char *dir;                      /* NULL: no files */
	int dir_fd;                     /* -1: no files */
	struct pgwsi_txn *transactions; /* all of them, for the choice of whom to spill */
	char error[PGWSI_ERROR_BYTES];
};

/* Keeps the text and returns err. */
int pgwsi_store_fail(struct pgwsi_store *s, int err, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The same, ": " and errno's text behind it. errno stays. */
int pgwsi_store_fail_errno(struct pgwsi_store *s, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* One message of a transaction, protocol 1's form. Borrowed until the next read. */
struct pgwsi_record {
	uint32_t subxid;
	uint64_t lsn; /* of a Relation: its number in the order of arrival */
	const uint8_t *data;
	size_t len;
};

struct pgwsi_chunk;
struct pgwsi_sub;
struct pgwsi_reader;

/*
 * The messages of one transaction, in order; offsets count their bytes with their headers:
 *
 *     0 .. file_len      in the file (fd), if it has one
 *     file_len .. len    in the chunks
 */
struct pgwsi_txn {
	struct pgwsi_txn *prev, *next; /* of the store */
	uint32_t xid;
	char *gid;          /* owned; NULL if it was not prepared */
	uint64_t begin_lsn; /* of the message that began it, 0 if that had none */
	uint64_t len, file_len;
	int fd; /* -1: none */
	uint64_t file_base;
	bool kept; /* the file is one of those kept by gid: not counted by us */
	struct pgwsi_chunk *first, *last;
	size_t chunk_bytes; /* allocated */
	struct pgwsi_sub *subs;
	uint32_t n_subs, max_subs;
	uint32_t *slots; /* hash of subs: index + 1, 0 is free */
	uint32_t n_slots;
	uint32_t last_subxid;
	size_t fixed_bytes; /* allocated by subs and slots */
	struct pgwsi_reader *reader;
};

/* NULL if memory is short. */
struct pgwsi_txn *pgwsi_txn_new(struct pgwsi_store *s, uint32_t xid);
void pgwsi_txn_free(struct pgwsi_store *s, struct pgwsi_txn **t);
/* Appends type and rest as one message, without looking into them. 0, PGWS_ELIMIT, PGWS_EIO,
 * PGWS_ENOMEM: then nothing of it was appended. */
int pgwsi_txn_append(struct pgwsi_store *s, struct pgwsi_txn *t, const struct pgwsi_record *head,
	const void *rest, size_t rest_len) PGWS_MUST;
/* Forgets subxid's first message and everything behind it. *ret_known: there was one. 0, PGWS_EIO.
 */
int pgwsi_txn_truncate(
	struct pgwsi_store *s, struct pgwsi_txn *t, uint32_t subxid, bool *ret_known) PGWS_MUST;
/* Reads from the start on, and frees what was read from memory: nothing may be appended after the
 * first read. 0, PGWS_EAGAIN at the end, PGWS_EIO, PGWS_ENOMEM. */
int pgwsi_txn_read(
	struct pgwsi_store *s, struct pgwsi_txn *t, struct pgwsi_record *ret_record) PGWS_MUST;
/* All its bytes in order, as they stand in a file, to sink, which returns 0 or an error that ends
 * it. Reads through buf. */
int pgwsi_txn_copy(struct pgwsi_store *s, struct pgwsi_txn *t,
	int (*sink)(void *arg, const void *data, size_t len), void *arg, void *buf,
	size_t size) PGWS_MUST;
/* PGWS_ELIMIT unless n more bytes may be in files. */
int pgwsi_store_reserve(struct pgwsi_store *s, uint32_t xid, uint64_t n) PGWS_MUST;

/* What is kept by gid. */
struct pgwsi_keep;
struct pgwsi_kept;
/* Locks the store's folder and loads what it holds. 0, PGWS_EIO, PGWS_ENOMEM. */
int pgwsi_keep_open(struct pgwsi_store *s, struct pgwsi_keep **ret_k) PGWS_MUST;
void pgwsi_keep_close(struct pgwsi_store *s, struct pgwsi_keep **k);
/* Writes t under the gid of the message (P or p); it is on disk when this returns 0. PGWS_EIO,
 * PGWS_ELIMIT, PGWS_ENOMEM, PGWS_EPROTO. */
int pgwsi_keep_write(struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_txn *t,
	const struct pgws_msg *prepare) PGWS_MUST;
/* NULL if none is kept. before: the end of its PREPARE is at or before this. */
struct pgwsi_kept *pgwsi_keep_find(
	struct pgwsi_keep *k, const char *gid, uint32_t xid, uint64_t before);
/* It ended there: kept until that is confirmed. 0, PGWS_EIO. */
int pgwsi_keep_end(struct pgwsi_store *s, struct pgwsi_keep *k, struct pgwsi_kept *e,
	uint64_t ended_lsn) PGWS_MUST;
/* To be read from its start; the caller's. 0, PGWS_EIO, PGWS_ENOMEM. */
int pgwsi_keep_read(
	struct pgwsi_store *s, const struct pgwsi_kept *e, struct pgwsi_txn **ret_txn) PGWS_MUST;
/* Removes what ended at or before lsn. 0, PGWS_EIO. */
int pgwsi_keep_confirmed(struct pgwsi_store *s, struct pgwsi_keep *k, uint64_t lsn) PGWS_MUST;
/* What ended there and is not kept was removed, in this life or an earlier one. */
bool pgwsi_keep_was_removed(const struct pgwsi_keep *k, uint64_t ended_lsn);
/* Not ended; bytes of memory for all. */
uint64_t pgwsi_keep_count(const struct pgwsi_keep *k);
size_t pgwsi_keep_memory(const struct pgwsi_keep *k);

#endif
