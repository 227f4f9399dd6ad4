/* SPDX-License-Identifier: PostgreSQL */
/*
 * libpgwalstream: PostgreSQL's logical replication for C programs. This header is the public
 * contract; the library needs libpq and nothing else.
 *
 * Three parts that can be used apart:
 *   - the decoder: pgoutput bytes in, structures out; no connection, no allocation, bounds-checked;
 *   - the catalogue: what Relation messages taught, by relation id;
 *   - the stream: a replication connection with slot commands, START_REPLICATION and feedback,
 *     nonblocking, with a pollable descriptor.
 *
 * Protocol: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and
 * protocol-replication.html. Integers are big-endian; LSNs are uint64_t; times are microseconds
 * since 2000-01-01 UTC.
 *
 * Threads: an object belongs to one thread at a time.
 */
#ifndef PGWALSTREAM_H
#define PGWALSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Return codes: 0 or positive is success. */
enum pgws_error {
	PGWS_EAGAIN = -1,   /* nothing now: wait for the descriptor */
	PGWS_EPROTO = -2,   /* the server's bytes break the protocol */
	PGWS_ECONN = -3,    /* the connection is lost or was refused: retry */
	PGWS_ESERVER = -4,  /* the server reported an error: pgws_stream_sqlstate says which */
	PGWS_EUNKNOWN = -5, /* a change names a relation that no Relation message announced */
	PGWS_ESTATE = -6,   /* not possible in the present state */
	PGWS_EEND = -7,     /* the server ended the stream */
	PGWS_ENOMEM = -8
};
const char *pgws_strerror(int err);

/* LSN as "16/B374D848" into buf (at least 18 bytes); returns buf. */
const char *pgws_lsn_str(uint64_t lsn, char *buf);
/* 0 or PGWS_EPROTO. */
int pgws_lsn_parse(const char *text, uint64_t *ret_lsn);

/* ---- Decoder ------------------------------------------------------------------------------- */

enum pgws_type {
	PGWS_BEGIN = 'B',
	PGWS_COMMIT = 'C',
	PGWS_ORIGIN = 'O',
	PGWS_RELATION = 'R',
	PGWS_TYPE = 'Y',
	PGWS_INSERT = 'I',
	PGWS_UPDATE = 'U',
	PGWS_DELETE = 'D',
	PGWS_TRUNCATE = 'T',
	PGWS_MESSAGE = 'M',
	PGWS_STREAM_ABORT = 'A' /* PostgreSQL 18 may send it unasked: to be ignored */
};

enum pgws_column_kind {
	PGWS_NULL = 'n',
	PGWS_UNCHANGED = 'u', /* TOASTed value that did not change: not sent */
	PGWS_TEXT = 't',
	PGWS_BINARY = 'b'
};

/* Columns of a tuple, in place: walk it with pgws_tuple_next. */
struct pgws_tuple {
	const uint8_t *data;
	size_t len;
	uint16_t n_columns;
};

struct pgws_column {
	enum pgws_column_kind kind;
	const char *data; /* borrowed, not zero-terminated; NULL without a value */
	uint32_t len;
};

/* Which old row came along. */
enum pgws_old { PGWS_OLD_NONE = 0, PGWS_OLD_KEY = 'K', PGWS_OLD_FULL = 'O' };

struct pgws_msg {
	enum pgws_type type;
	union {
		struct {
			uint64_t final_lsn;
			int64_t commit_time;
			uint32_t xid;
		} begin;
		struct {
			uint64_t commit_lsn, end_lsn;
			int64_t commit_time;
		} commit;
		struct {
			uint64_t lsn;
			const char *name;
		} origin;
		struct {
			uint32_t relid;
			const char *nspname, *relname; /* nspname "" was sent for pg_catalog */
			char replident;                /* d n f i */
			uint16_t n_columns;
			const uint8_t *columns; /* walk with pgws_relation_next */
			size_t columns_len;
		} relation;
		struct {
			uint32_t typid;
			const char *nspname, *typname;
		} type_;
		/* insert: new only; update: old if old_kind, new; delete: old */
		struct {
			uint32_t relid;
			enum pgws_old old_kind;
			struct pgws_tuple old_row, new_row;
		} change;
		struct {
			bool cascade, restart_identity;
			uint32_t n_relids;
			const uint8_t *relids; /* pgws_truncate_relid */
		} truncate;
		struct {
			bool transactional;
			uint64_t lsn;
			const char *prefix;
			const uint8_t *data;
			uint32_t len;
		} message;
	} u;
};

/* Decodes one message (protocol version 1). Pointers are into data. Everything is bounds-checked
 * here, the tuples included: walking them later cannot fail. 0 or PGWS_EPROTO; an unknown type is
 * PGWS_EPROTO. */
int pgws_decode(const void *data, size_t len, struct pgws_msg *ret_msg);

/* *offset starts at 0. true and the column, or false at the end. */
bool pgws_tuple_next(const struct pgws_tuple *t, size_t *offset, struct pgws_column *ret_col);

struct pgws_relation_column {
	bool key;
	const char *name;
	uint32_t typid;
	int32_t typmod;
};
bool pgws_relation_next(
	const struct pgws_msg *relation, size_t *offset, struct pgws_relation_column *ret_col);
uint32_t pgws_truncate_relid(const struct pgws_msg *truncate, uint32_t i);

/* ---- Catalogue ------------------------------------------------------------------------------- */

struct pgws_relation {
	uint32_t relid;
	char *nspname, *relname;
	char replident;
	uint16_t n_columns;
	struct pgws_relation_column *columns; /* names owned by the relation */
	uint64_t version; /* grows with every Relation message that changed something */
	void *user;       /* the caller's; see on_drop */
};

struct pgws_catalog;
/* on_drop may be NULL. NULL if memory is short. */
struct pgws_catalog *pgws_catalog_new(
	void (*on_drop)(struct pgws_relation *rel, void *arg), void *arg);
void pgws_catalog_free(struct pgws_catalog **c);
/* Learns a Relation message; on_drop is called for a definition that it replaces, one that comes
 * again unchanged keeps its object. 0, PGWS_EPROTO (not a Relation message) or PGWS_ENOMEM. */
int pgws_catalog_learn(struct pgws_catalog *c, const struct pgws_msg *relation);
/* NULL if unknown. Owned by the catalogue, valid until the next learn of the same relid or reset.
 */
struct pgws_relation *pgws_catalog_find(struct pgws_catalog *c, uint32_t relid);
/* Forgets everything: a new session sends it all again. */
void pgws_catalog_reset(struct pgws_catalog *c);

/* ---- Stream -----------------------------------------------------------------------------------
 */

struct pgws_stream;

struct pgws_stream_options {
	const char *conninfo; /* libpq; hosts already resolved if the caller must not block */
	const char *slot;
	const char *publications; /* "a,b": quoted by the library; no comma in a name */
	bool messages;            /* logical decoding messages too (14+) */
};

/* Work that takes several round trips is a phase; drive it with pgws_stream_work. */
enum pgws_phase {
	PGWS_PHASE_IDLE,
	PGWS_PHASE_CONNECTING,
	PGWS_PHASE_READY,   /* connected: a command may be given */
	PGWS_PHASE_COMMAND, /* a command is under way */
	PGWS_PHASE_STREAMING,
	PGWS_PHASE_FAILED
};

/* Copies the options. NULL if memory is short. */
struct pgws_stream *pgws_stream_new(const struct pgws_stream_options *options);
void pgws_stream_free(struct pgws_stream **s);
/* Starts connecting. The session pins datestyle ISO, timezone UTC, intervalstyle postgres,
 * bytea_output hex, extra_float_digits 1, client_encoding UTF8: text columns then have one form. */
int pgws_stream_connect(struct pgws_stream *s);
/* Advances connecting or a command as far as it goes without blocking: 0 when the phase ended
 * (READY), PGWS_EAGAIN, or an error (FAILED). */
int pgws_stream_work(struct pgws_stream *s);
enum pgws_phase pgws_stream_phase(const struct pgws_stream *s);
/* Descriptor (may change while CONNECTING) and what to wait for. */
int pgws_stream_fd(const struct pgws_stream *s);
bool pgws_stream_wants_read(const struct pgws_stream *s);
bool pgws_stream_wants_write(const struct pgws_stream *s);

/* Commands: READY only; results are there when pgws_stream_work returns 0. */
int pgws_stream_identify(struct pgws_stream *s); /* -> pgws_stream_system */
int pgws_stream_create_slot(struct pgws_stream *s, bool export_snapshot);
int pgws_stream_drop_slot(struct pgws_stream *s);
struct pgws_system {
	const char *systemid;
	uint32_t timeline;
	uint64_t xlogpos;
	const char *dbname;
};
/* Borrowed until the next command. */
const struct pgws_system *pgws_stream_system(const struct pgws_stream *s);
const char *pgws_stream_snapshot_name(const struct pgws_stream *s);
uint64_t pgws_stream_consistent_point(const struct pgws_stream *s);
/* START_REPLICATION from the slot's position on (start_lsn 0) or a later one; STREAMING when work
 * returns 0. */
int pgws_stream_start(struct pgws_stream *s, uint64_t start_lsn);

struct pgws_event {
	enum { PGWS_EVENT_DATA, PGWS_EVENT_KEEPALIVE } kind;
	uint64_t start_lsn; /* DATA: of the message, 0 for Relation, Type and some Begin */
	uint64_t end_lsn;   /* server's WAL end */
	int64_t send_time;
	bool reply_requested; /* KEEPALIVE */
	const uint8_t *data;  /* borrowed until the next pgws_stream_next, _end, _close */
	size_t len;
};
/* STREAMING: next event, 0; PGWS_EAGAIN; PGWS_EEND or an error (FAILED). Reads the socket once
 * between two PGWS_EAGAIN, so call it until it says PGWS_EAGAIN, or come back without waiting. */
int pgws_stream_next(struct pgws_stream *s, struct pgws_event *ret_event);
/* Standby status update. 0, PGWS_EAGAIN (kept, replaced by a newer one, and sent by the next
 * next/flush), or PGWS_ESTATE. A blocked write may have moved input into libpq: after PGWS_EAGAIN
 * call pgws_stream_next without waiting for the descriptor. A lost connection shows in
 * pgws_stream_next. */
int pgws_stream_feedback(struct pgws_stream *s, uint64_t write_lsn, uint64_t flush_lsn,
	uint64_t apply_lsn, bool request_reply);
/* Sends what is buffered: 0, PGWS_EAGAIN (wants_write; see feedback), PGWS_ESTATE. */
int pgws_stream_flush(struct pgws_stream *s);
/* Ends the stream in an orderly way (CopyDone): work until READY. */
int pgws_stream_end(struct pgws_stream *s);
/* Closes the connection: IDLE. */
void pgws_stream_close(struct pgws_stream *s);

int pgws_stream_server_version(const struct pgws_stream *s);
const char *pgws_stream_error(const struct pgws_stream *s);    /* one line, "" if none */
const char *pgws_stream_sqlstate(const struct pgws_stream *s); /* "" if none */

#ifdef __cplusplus
}
#endif

#endif
