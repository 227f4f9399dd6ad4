/* SPDX-License-Identifier: PostgreSQL */
/*
 * libpgwalstream: PostgreSQL's logical replication for C programs. This header is the public
 * contract; the library needs libpq and OpenSSL and nothing else.
 *
 * Five parts, each usable without those after it:
 *   - the decoder and the encoder: pgoutput bytes to structures and back; no connection, no
 *     allocation, bounds-checked;
 *   - the catalogue: what Relation messages taught, by relation id;
 *   - the assembler: streamed, prepared and ordinary transactions in, committed transactions out,
 *     in commit order, within a memory limit;
 *   - the stream: a replication connection with slot commands, START_REPLICATION and feedback,
 *     nonblocking, with a pollable descriptor;
 *   - the consumer: all of it together, with retry, as an iterator or by callback.
 *
 * Protocol: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and
 * protocol-replication.html. Integers are big-endian; LSNs are uint64_t; times are microseconds
 * since 2000-01-01 UTC.
 *
 * Threads: an object belongs to one thread at a time, but for what the consumer's section says.
 *
 * Structures of options begin with their size and are initialised by their _INIT macro, so that a
 * later version may add fields behind the last one. That holds for those inside another one too.
 */
#ifndef PGWALSTREAM_H
#define PGWALSTREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PGWS_API __attribute__((visibility("default")))
#define PGWS_MUST __attribute__((warn_unused_result))
#else
#define PGWS_API
#define PGWS_MUST
#endif

/* Return codes: 0 or positive is success. */
enum pgws_error {
	PGWS_EAGAIN = -1,   /* nothing now: wait for the descriptor */
	PGWS_EPROTO = -2,   /* the server's bytes break the protocol */
	PGWS_ECONN = -3,    /* the connection is lost or was refused: retry */
	PGWS_ESERVER = -4,  /* the server reported an error: pgws_stream_sqlstate says which */
	PGWS_EUNKNOWN = -5, /* a change names a relation that no Relation message announced */
	PGWS_ESTATE = -6,   /* not possible in the present state */
	PGWS_EEND = -7,     /* the end: of the server's stream, or the stop LSN was reached */
	PGWS_ENOMEM = -8,
	PGWS_EUNSUPPORTED =
		-9,         /* this server's version cannot do it: the error text says which can */
	PGWS_EINVAL = -10,  /* an option that makes no sense */
	PGWS_ELIMIT = -11,  /* a limit of the assembler is reached: the error text names it */
	PGWS_EIO = -12,     /* a file of the assembler: errno says why */
	PGWS_ESLOT = -13,   /* the slot is gone or invalidated: changes are lost */
	PGWS_ESYSTEM = -14, /* another system identifier than before: another cluster */
	PGWS_ETIMELINE = -15, /* another timeline than before, and the caller wants to know */
	PGWS_EBACK = -16 /* the server stands before what was confirmed: it went back in time */
};
PGWS_API const char *pgws_strerror(int err);
/* "0.1.0" of the library at run time. */
PGWS_API const char *pgws_version(void);

/* LSN as "16/B374D848" into buf (at least 18 bytes); returns buf. */
PGWS_API const char *pgws_lsn_str(uint64_t lsn, char *buf);
/* 0 or PGWS_EPROTO. */
PGWS_API int pgws_lsn_parse(const char *text, uint64_t *ret_lsn) PGWS_MUST;

/* ---- Decoder --------------------------------------------------------------------------------- */

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
	/* protocol 2; PostgreSQL 18 may send StreamAbort unasked in protocol 1 */
	PGWS_STREAM_START = 'S',
	PGWS_STREAM_STOP = 'E',
	PGWS_STREAM_COMMIT = 'c',
	PGWS_STREAM_ABORT = 'A',
	/* protocol 3 */
	PGWS_BEGIN_PREPARE = 'b',
	PGWS_PREPARE = 'P',
	PGWS_COMMIT_PREPARED = 'K',
	PGWS_ROLLBACK_PREPARED = 'r',
	PGWS_STREAM_PREPARE = 'p'
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
	/* R Y I U D T M inside a stream: the (sub)transaction that wrote it; else 0 */
	uint32_t xid;
	union {
		struct {
			uint64_t final_lsn; /* the commit record's */
			int64_t commit_time;
			uint32_t xid;
		} begin;
		struct {
			uint8_t flags; /* 0 today */
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
		struct {
			uint32_t xid; /* of the top transaction, as in all that follows */
			bool first;   /* its first block in this session */
		} stream_start;
		struct {
			uint32_t xid;
			uint8_t flags;
			uint64_t commit_lsn, end_lsn;
			int64_t commit_time;
		} stream_commit;
		struct {
			uint32_t xid, subxid; /* equal: the whole transaction */
			bool has_lsn;         /* only with streaming 'parallel' */
			uint64_t lsn;
			int64_t time;
		} stream_abort;
		/* b P p; also K with lsn = commit LSN and time = commit time */
		struct {
			uint8_t flags; /* not in b */
			uint64_t lsn, end_lsn;
			int64_t time;
			uint32_t xid;
			const char *gid;
		} prepare;
		struct {
			uint8_t flags;
			uint64_t prepare_end_lsn, end_lsn;
			int64_t prepare_time, rollback_time;
			uint32_t xid;
			const char *gid;
		} rollback_prepared;
	} u;
};

/* Decodes one message. in_stream: between StreamStart and StreamStop, where R Y I U D T M carry an
 * xid. Pointers are into data. Everything is bounds-checked here, the tuples included: walking them
 * later cannot fail. A message is accepted only if it is used up exactly. 0 or PGWS_EPROTO; an
 * unknown type is PGWS_EPROTO. */
PGWS_API int pgws_decode(
	const void *data, size_t len, bool in_stream, struct pgws_msg *ret_msg) PGWS_MUST;

/* *offset starts at 0. true and the column, or false at the end. */
PGWS_API bool pgws_tuple_next(
	const struct pgws_tuple *t, size_t *offset, struct pgws_column *ret_col);

struct pgws_relation_column {
	bool key;
	const char *name;
	uint32_t typid;
	int32_t typmod;
};
PGWS_API bool pgws_relation_next(
	const struct pgws_msg *relation, size_t *offset, struct pgws_relation_column *ret_col);
PGWS_API uint32_t pgws_truncate_relid(const struct pgws_msg *truncate, uint32_t i);

/* ---- Encoder --------------------------------------------------------------------------------- */

/* Writes msg as pgoutput would, inverse of pgws_decode: what was decoded comes out as the same
 * bytes. Returns the length in bytes that the message takes; nothing is written if that is more
 * than size. PGWS_EINVAL: not a message (a column kind, an identity, a string that is NULL). */
PGWS_API int64_t pgws_encode(
	const struct pgws_msg *msg, bool in_stream, void *buf, size_t size) PGWS_MUST;
/* Columns into buf in the form that pgws_tuple borrows. Length, as above. */
PGWS_API int64_t pgws_encode_tuple(const struct pgws_column *columns, uint16_t n, void *buf,
	size_t size, struct pgws_tuple *ret_tuple) PGWS_MUST;
/* The same for a Relation message's columns: sets u.relation.columns, columns_len, n_columns. */
PGWS_API int64_t pgws_encode_relation_columns(const struct pgws_relation_column *columns,
	uint16_t n, void *buf, size_t size, struct pgws_msg *relation) PGWS_MUST;

/* ---- Catalogue ------------------------------------------------------------------------------- */

struct pgws_relation {
	uint32_t relid;
	char *nspname, *relname;
	char replident;
	uint16_t n_columns;
	struct pgws_relation_column *columns; /* names owned by the relation */
	uint64_t version; /* grows with every Relation message that changed something */
	void *user;       /* the caller's; see on_drop */
	uint64_t heard;   /* the assembler's: when the server said it last */
};

struct pgws_catalog;
/* on_drop may be NULL. NULL if memory is short. */
PGWS_API struct pgws_catalog *pgws_catalog_new(
	void (*on_drop)(struct pgws_relation *rel, void *arg), void *arg);
PGWS_API void pgws_catalog_free(struct pgws_catalog **c);
/* Learns a Relation message; on_drop is called for a definition that it replaces, one that comes
 * again unchanged keeps its object. 0, PGWS_EPROTO (not a Relation message) or PGWS_ENOMEM. */
PGWS_API int pgws_catalog_learn(struct pgws_catalog *c, const struct pgws_msg *relation) PGWS_MUST;
/* NULL if unknown. Owned by the catalogue, valid until the next learn of the same relid or reset.
 */
PGWS_API struct pgws_relation *pgws_catalog_find(struct pgws_catalog *c, uint32_t relid);
/* Forgets everything: a new session sends it all again. */
PGWS_API void pgws_catalog_reset(struct pgws_catalog *c);

/* ---- Events and changes -----------------------------------------------------------------------
 */

/* What a stream receives. */
struct pgws_event {
	enum { PGWS_EVENT_DATA, PGWS_EVENT_KEEPALIVE } kind;
	uint64_t start_lsn; /* DATA: of the message, 0 for Relation, Type and some Begin */
	uint64_t end_lsn;   /* server's WAL end */
	int64_t send_time;
	bool reply_requested; /* KEEPALIVE */
	const uint8_t *data;  /* borrowed, see pgws_stream_next */
	size_t len;
};

/* What the assembler gives out: one message of a committed transaction, in protocol 1's form
 * (Begin, Origin, Relation, Type, Insert, Update, Delete, Truncate, Message, Commit), whichever way
 * the server sent it. Outside (commit_lsn 0) stand a non-transactional Message, and what a Relation
 * or Type between BeginPrepare and Prepare teaches: the server takes that as said from then on.
 * Before a Commit a Relation may come that the server said between the transaction's blocks: it is
 * what holds after it. */
struct pgws_change {
	struct pgws_msg msg; /* decoded; msg.xid is 0, see subxid */
	const uint8_t *data; /* the same as bytes, protocol 1; borrowed as long as msg */
	size_t len;
	uint64_t lsn;        /* of the message, 0 if it has none */
	uint64_t commit_lsn; /* of the transaction's commit record */
	uint64_t end_lsn;    /* behind the commit record; known in every change of a streamed or
				prepared transaction, else only in Commit */
	int64_t commit_time;
	uint32_t xid;                   /* of the top transaction */
	uint32_t subxid;                /* that wrote it; known where it was streamed, else xid */
	uint32_t ordinal;               /* I U D T M of the transaction, from 1; 0 for the others */
	struct pgws_relation *relation; /* of I U D R and the first of T; else NULL */
	const char *gid;                /* of a transaction that was prepared, else NULL */
};

/* ---- Assembler --------------------------------------------------------------------------------
 */

struct pgws_assembler_options {
	size_t size;
	size_t memory_limit; /* bytes of open transactions in memory; beyond it they go to files */
	uint64_t file_limit; /* bytes of files; 0: no files, memory_limit is the end */
	const char *dir;     /* for files; NULL with file_limit 0. Open transactions leave nothing
				there when the process dies, prepared ones stay */
	bool keep_prepared; /* prepared transactions are kept in dir (with fsync) by their gid until
			       they end: what a stream with two_phase needs. Without it Prepare is
			       PGWS_ESTATE */
};
#define PGWS_ASSEMBLER_OPTIONS_INIT                                                                \
	{                                                                                          \
		sizeof(struct pgws_assembler_options), 64 << 20, 0, 0, false                       \
	}

struct pgws_assembler;
/* Copies the options, loads the prepared transactions that dir holds. 0, PGWS_EINVAL, PGWS_EIO,
 * PGWS_ENOMEM; pgws_assembler_error(NULL) says more. With keep_prepared dir belongs to this
 * assembler alone: it is locked, and a file in it that is not ours, or damaged, is PGWS_EIO. */
PGWS_API int pgws_assembler_new(
	const struct pgws_assembler_options *options, struct pgws_assembler **ret_a) PGWS_MUST;
PGWS_API void pgws_assembler_free(struct pgws_assembler **a);
/*
 * Feeds one DATA event. Possible only when pgws_assembler_next has said PGWS_EAGAIN (else
 * PGWS_ESTATE). The event's bytes must stay until then: an ordinary transaction's message is given
 * out in place. 0; PGWS_EPROTO, PGWS_EUNKNOWN, PGWS_ELIMIT, PGWS_EIO, PGWS_ENOMEM: the stream has
 * to begin anew (pgws_assembler_reset); pgws_assembler_error says more.
 */
PGWS_API int pgws_assembler_put(struct pgws_assembler *a, const struct pgws_event *ev) PGWS_MUST;
/* The next change: 0, or PGWS_EAGAIN: put another event; PGWS_EIO, PGWS_ENOMEM, PGWS_EUNKNOWN as
 * above. What it points to is borrowed until the next call. */
PGWS_API int pgws_assembler_next(
	struct pgws_assembler *a, struct pgws_change *ret_change) PGWS_MUST;
/* A new session: forgets open transactions, what was learnt and half of what was given out; keeps
 * the prepared transactions. */
PGWS_API void pgws_assembler_reset(struct pgws_assembler *a);
/* Everything up to lsn is safe with the caller and was confirmed to the server: prepared
 * transactions that ended at or before it are removed from dir. A server that forgot the
 * confirmation may send a COMMIT PREPARED of them again, which is left out then. 0 or PGWS_EIO. */
PGWS_API int pgws_assembler_confirmed(struct pgws_assembler *a, uint64_t lsn);
/* What Insert and the like refer to, as far as it was given out. Borrowed. */
PGWS_API struct pgws_catalog *pgws_assembler_catalog(struct pgws_assembler *a);
/* A transaction's Begin was given out and its Commit was not. */
PGWS_API bool pgws_assembler_in_transaction(const struct pgws_assembler *a);

struct pgws_assembler_counts {
	uint64_t open;         /* streamed transactions that have not ended */
	uint64_t prepared;     /* kept by gid */
	uint64_t memory_bytes; /* held by both, now */
	uint64_t file_bytes;   /* now */
	uint64_t streamed;     /* streamed transactions committed so far */
	uint64_t aborted;      /* streamed (sub)transactions aborted so far */
	uint64_t spilled;      /* transactions that went to a file */
	uint64_t spilled_bytes;
	uint64_t ignored; /* StreamAborts of transactions of which nothing is known */
};
PGWS_API void pgws_assembler_get_counts(
	const struct pgws_assembler *a, struct pgws_assembler_counts *ret_counts);
/* Why the last put, next or confirmed failed, one line; "" if it did not. NULL: why the last
 * pgws_assembler_new of this thread failed. */
PGWS_API const char *pgws_assembler_error(const struct pgws_assembler *a);

/* ---- Stream -----------------------------------------------------------------------------------
 */

enum pgws_streaming { PGWS_STREAMING_OFF, PGWS_STREAMING_ON, PGWS_STREAMING_PARALLEL };
enum pgws_origin_filter { PGWS_ORIGIN_ANY, PGWS_ORIGIN_NONE };
/* How bytes come in once the stream runs. AUTO takes the socket over from libpq where that is safe
 * and falls back to libpq's own loop where it is not (GSS encryption, a TLS library that is not
 * OpenSSL or has the kernel decrypt, first bytes that are not a sane message). */
enum pgws_receive { PGWS_RECEIVE_AUTO, PGWS_RECEIVE_LIBPQ, PGWS_RECEIVE_SOCKET };

struct pgws_stream_options {
	size_t size;
	const char *conninfo;     /* libpq; hosts already resolved if the caller must not block */
	const char *slot;         /* default slot of the commands and of start */
	const char *publications; /* "a,b": quoted by the library; no comma in a name */
	int proto_version;        /* 1 to 4; 0: the lowest that the other options need */
	enum pgws_streaming streaming;  /* on: 14+, parallel: 16+ */
	enum pgws_origin_filter origin; /* none: 16+ */
	bool binary;
	/* Logical decoding messages too. With streaming the server does not say which savepoint
	 * wrote one: where that was streamed and rolled back, a Message before its first row comes
	 * all the same. */
	bool messages;
	bool two_phase; /* 15+; the slot must have it */
	enum pgws_receive receive;
};
#define PGWS_STREAM_OPTIONS_INIT                                                                   \
	{                                                                                          \
		sizeof(struct pgws_stream_options), 0, 0, 0, 0, PGWS_STREAMING_OFF,                \
			PGWS_ORIGIN_ANY, false, false, false, PGWS_RECEIVE_AUTO                    \
	}

/* Work that takes several round trips is a phase; drive it with pgws_stream_work. */
enum pgws_phase {
	PGWS_PHASE_IDLE,
	PGWS_PHASE_CONNECTING,
	PGWS_PHASE_READY,   /* connected: a command may be given */
	PGWS_PHASE_COMMAND, /* a command is under way */
	PGWS_PHASE_STREAMING,
	PGWS_PHASE_FAILED
};

struct pgws_stream;
/* Copies the options. NULL if memory is short. */
PGWS_API struct pgws_stream *pgws_stream_new(const struct pgws_stream_options *options);
PGWS_API void pgws_stream_free(struct pgws_stream **s);
/* Starts connecting. The session pins datestyle ISO, timezone UTC, intervalstyle postgres,
 * bytea_output hex, extra_float_digits 1, client_encoding UTF8: text columns then have one form.
 * PGWS_EINVAL: options that do not go together. */
PGWS_API int pgws_stream_connect(struct pgws_stream *s) PGWS_MUST;
/* Advances connecting or a command as far as it goes without blocking: 0 when the phase ended
 * (READY), PGWS_EAGAIN, or an error (FAILED). */
PGWS_API int pgws_stream_work(struct pgws_stream *s) PGWS_MUST;
/* Drives work until it is done, waiting for the descriptor: for programs without an event loop.
 * timeout_ms < 0: as long as it takes. PGWS_EAGAIN: not in time. */
PGWS_API int pgws_stream_wait(struct pgws_stream *s, int timeout_ms) PGWS_MUST;
PGWS_API enum pgws_phase pgws_stream_phase(const struct pgws_stream *s);
/* Descriptor (may change while CONNECTING) and what to wait for, level-triggered: PGWS_EAGAIN does
 * not say that nothing is left in it. */
PGWS_API int pgws_stream_fd(const struct pgws_stream *s);
PGWS_API bool pgws_stream_wants_read(const struct pgws_stream *s);
PGWS_API bool pgws_stream_wants_write(const struct pgws_stream *s);

/* Commands: READY only (PGWS_ESTATE else); results are there when pgws_stream_work returns 0. What
 * this server's version cannot do is refused before anything is sent: PGWS_EUNSUPPORTED, the phase
 * stays READY. */
PGWS_API int pgws_stream_identify(struct pgws_stream *s) PGWS_MUST; /* -> pgws_stream_system */
/* -> pgws_stream_text: the history file's bytes. PGWS_EINVAL for timeline 1, which has none. */
PGWS_API int pgws_stream_timeline_history(struct pgws_stream *s, uint32_t timeline) PGWS_MUST;
/* Any simple SQL statement (for example BEGIN … for PGWS_SNAPSHOT_USE) -> pgws_stream_value. */
PGWS_API int pgws_stream_query(struct pgws_stream *s, const char *sql) PGWS_MUST;

enum pgws_snapshot { PGWS_SNAPSHOT_NOTHING, PGWS_SNAPSHOT_EXPORT, PGWS_SNAPSHOT_USE };
struct pgws_slot_options {
	size_t size;
	const char *slot;   /* NULL: the stream's */
	const char *plugin; /* NULL: pgoutput */
	bool physical;
	bool temporary;
	bool reserve_wal; /* physical only */
	bool two_phase;   /* logical only, 15+ */
	bool failover;    /* logical only, not temporary, 17+ */
	enum pgws_snapshot
		snapshot; /* logical only; USE needs a transaction, see pgws_stream_query */
};
#define PGWS_SLOT_OPTIONS_INIT                                                                     \
	{                                                                                          \
		sizeof(struct pgws_slot_options), 0, 0, false, false, false, false, false,         \
			PGWS_SNAPSHOT_NOTHING                                                      \
	}
/* -> pgws_stream_consistent_point, pgws_stream_snapshot_name. */
PGWS_API int pgws_stream_create_slot(
	struct pgws_stream *s, const struct pgws_slot_options *options) PGWS_MUST;
/* failover (17+), two_phase (18+): 0 off, 1 on, negative: as it is. */
PGWS_API int pgws_stream_alter_slot(
	struct pgws_stream *s, const char *slot, int failover, int two_phase) PGWS_MUST;
/* wait: until nobody uses it. slot NULL: the stream's. */
PGWS_API int pgws_stream_drop_slot(struct pgws_stream *s, const char *slot, bool wait) PGWS_MUST;

struct pgws_slot_info {
	bool exists;
	bool physical, temporary, active, two_phase, failover, synced, conflicting;
	uint64_t restart_lsn, confirmed_lsn, two_phase_at; /* 0: none */
	int64_t safe_wal_size; /* bytes until it may be invalidated; -1: no limit, or unknown */
	char plugin[64], database[64];
	char wal_status[16];   /* reserved extended unreserved lost, "" if unknown */
	char invalidation[64]; /* reason (17+, "conflicting" on 16), "" if none */
	int active_pid;
};
/* -> pgws_stream_slot_info: everything that pg_replication_slots of this version says. */
PGWS_API int pgws_stream_read_slot(struct pgws_stream *s, const char *slot) PGWS_MUST;

struct pgws_system {
	const char *systemid;
	uint32_t timeline;
	uint64_t xlogpos;
	const char *dbname;
};
/* Results, borrowed until the next command; NULL or 0 if it gave none. */
PGWS_API const struct pgws_system *pgws_stream_system(const struct pgws_stream *s);
PGWS_API const char *pgws_stream_snapshot_name(const struct pgws_stream *s);
PGWS_API uint64_t pgws_stream_consistent_point(const struct pgws_stream *s);
PGWS_API const struct pgws_slot_info *pgws_stream_slot_info(const struct pgws_stream *s);
PGWS_API const char *pgws_stream_text(const struct pgws_stream *s, size_t *ret_len);
PGWS_API const char *pgws_stream_value(const struct pgws_stream *s, int row, int column);
/* Where a timeline began, from the history file of it or of a later one: 0, PGWS_EPROTO. */
PGWS_API int pgws_timeline_begin(
	const char *history, size_t len, uint32_t timeline, uint64_t *ret_lsn) PGWS_MUST;

/* START_REPLICATION from the slot's position on (start_lsn 0) or a later one; STREAMING when work
 * returns 0. The server moves a lower LSN forward without a word: compare with read_slot first.
 * PGWS_EUNSUPPORTED: an option that this server does not have. */
PGWS_API int pgws_stream_start(struct pgws_stream *s, uint64_t start_lsn) PGWS_MUST;
/* STREAMING: next event, 0; PGWS_EAGAIN; PGWS_EEND or an error (FAILED). Reads the socket once
 * between two PGWS_EAGAIN, again where that read says that more is there, so call it until it says
 * PGWS_EAGAIN, or come back without waiting. The event's data is borrowed until the next call of
 * _next, _end or _close. */
PGWS_API int pgws_stream_next(struct pgws_stream *s, struct pgws_event *ret_event) PGWS_MUST;
/* After PGWS_EAGAIN: how many microseconds to rest before the next _next without waiting for the
 * descriptor. 0: wait for the descriptor. Not 0 only while messages come fast: the server sends
 * each by itself, and a wake-up costs more than everything else. */
PGWS_API unsigned pgws_stream_rest_us(const struct pgws_stream *s);
/* How bytes really come in: PGWS_RECEIVE_LIBPQ or _SOCKET; STREAMING only. */
PGWS_API enum pgws_receive pgws_stream_receive(const struct pgws_stream *s);
/* Standby status update. 0, PGWS_EAGAIN (kept, replaced by a newer one, and sent by the next flush
 * or the next _next that reads), or PGWS_ESTATE. A blocked write may have moved input into libpq:
 * after PGWS_EAGAIN call pgws_stream_next without waiting for the descriptor. A lost connection
 * shows in pgws_stream_next. */
PGWS_API int pgws_stream_feedback(struct pgws_stream *s, uint64_t write_lsn, uint64_t flush_lsn,
	uint64_t apply_lsn, bool request_reply);
/* Sends what is buffered: 0, PGWS_EAGAIN (wants_write; see feedback), PGWS_ESTATE. */
PGWS_API int pgws_stream_flush(struct pgws_stream *s);
/* Ends the stream in an orderly way (CopyDone): work until READY. What still comes is thrown away.
 * Another stream needs another connection: the server takes a second logical one as ended already.
 */
PGWS_API int pgws_stream_end(struct pgws_stream *s) PGWS_MUST;
/* Closes the connection: IDLE. */
PGWS_API void pgws_stream_close(struct pgws_stream *s);

PGWS_API int pgws_stream_server_version(const struct pgws_stream *s);
PGWS_API const char *pgws_stream_error(const struct pgws_stream *s);    /* one line, "" if none */
PGWS_API const char *pgws_stream_sqlstate(const struct pgws_stream *s); /* "" if none */
/* FAILED: the server broke the stream by an internal error (XX...) while it streamed open
 * transactions. Begin a new one with streaming off, from the same position: what PostgreSQL (14 to
 * 18) cannot decode before a transaction's end ("could not map filenode": a table changed after a
 * savepoint that had changed it was rolled back), it can at its end. */
PGWS_API bool pgws_stream_streaming_failed(const struct pgws_stream *s);

/* ---- Consumer ---------------------------------------------------------------------------------
 *
 * Stream and assembler together. A lost connection is tried again, with a backoff and jitter, from
 * the confirmed position; a transaction that a loss cut short is given out again from its Begin,
 * after a change of kind PGWS_RESTARTED. What a retry cannot mend is told apart: PGWS_ESLOT,
 * PGWS_ESYSTEM, PGWS_ETIMELINE, PGWS_EBACK. A slot is never made again behind the caller's back.
 * Streaming that the server cannot do (pgws_stream_streaming_failed) is off for the rest of the
 * consumer's life.
 *
 * Threads: pgws_consumer_confirm, _get_position and _stop from any thread at any time; the others
 * from one thread at a time.
 */
struct pgws_consumer_options {
	size_t size;
	struct pgws_stream_options stream;
	struct pgws_assembler_options assembler;
	uint64_t start_lsn; /* 0: the slot's; transactions that end at or before it are left out */
	uint64_t stop_lsn;  /* 0: none; PGWS_EEND after the last transaction that ends at or before.
			       The end of a record, as every LSN that the server tells is */
	unsigned retry_max; /* attempts in a row in which the stream said nothing; 0: no retry */
	unsigned retry_base_ms, retry_cap_ms; /* the pause: doubled until a stream brings something
						 new or lasts a minute */
	unsigned status_interval_ms; /* 0: 10 s, or a third of wal_sender_timeout if that is less */
	bool accept_timeline;        /* go on after a failover; else PGWS_ETIMELINE */
	/* A thread of the library's own answers the server while the caller is busy with a change
	 * for longer than wal_sender_timeout. */
	bool background_feedback;
	/* Position of an earlier life, for the checks: "" or 0 if unknown. */
	const char *known_systemid;
	uint32_t known_timeline;
	/* start_lsn is pgws_position.confirmed_lsn of an earlier life, idle positions included: a
	 * slot that stands behind it was moved by somebody else, PGWS_ESLOT. Without it that is
	 * found out within one life only. The library confirms idle positions by itself, so what
	 * has to be stored is confirmed_lsn as it is after PGWS_EEND, and nothing may be confirmed
	 * behind that; a life that ended otherwise (a crash) may give the same answer. */
	bool exact_start;
	/* One line for a person to read: why a connection that is tried again was lost, that
	 * streaming was given up. From within next and run; NULL: not wanted. */
	void (*on_notice)(const char *text, void *arg);
	void *notice_arg;
};
#define PGWS_CONSUMER_OPTIONS_INIT                                                                 \
	{                                                                                          \
		sizeof(struct pgws_consumer_options), PGWS_STREAM_OPTIONS_INIT,                    \
			PGWS_ASSEMBLER_OPTIONS_INIT, 0, 0, 10, 200, 10000, 0, false, false, 0, 0,  \
			false, 0, 0                                                                \
	}

struct pgws_consumer;
/* 0, PGWS_EINVAL, PGWS_EIO, PGWS_ENOMEM. Connects with the first call of next or run. */
PGWS_API int pgws_consumer_new(
	const struct pgws_consumer_options *options, struct pgws_consumer **ret_c) PGWS_MUST;
/* What was confirmed and not sent yet is sent first, behind PGWS_EEND too, if the connection still
 * stands: that waits for the server, 5 s at most. Not from on_change. */
PGWS_API void pgws_consumer_free(struct pgws_consumer **c);
/* Iterator: the next change, waiting up to timeout_ms (0: not at all, < 0: as long as it takes). 0;
 * PGWS_RESTARTED (positive: forget a half transaction); PGWS_EAGAIN: nothing in time; PGWS_EEND:
 * stop LSN or pgws_consumer_stop; an error that no retry mends. Borrowed until the next call. */
#define PGWS_RESTARTED 1
PGWS_API int pgws_consumer_next(
	struct pgws_consumer *c, int timeout_ms, struct pgws_change *ret_change) PGWS_MUST;
/* Callback: until it returns other than 0 (which run then returns), or the end as above. On
 * PGWS_RESTARTED change is NULL. */
PGWS_API int pgws_consumer_run(struct pgws_consumer *c,
	int (*on_change)(const struct pgws_change *change, void *arg), void *arg) PGWS_MUST;
/* Readable whenever pgws_consumer_next(c, 0, …) has something to do: for any event loop. The same
 * descriptor for the consumer's life, closed by free. Before the first next: readable. */
PGWS_API int pgws_consumer_fd(struct pgws_consumer *c);
/* What the caller has written, flushed and applied; monotonic. Any thread. The slot moves to flush.
 * Idle positions of the server are confirmed by the library once everything given out is flushed: a
 * transaction at its end_lsn, a Message outside at its lsn + 1. */
PGWS_API void pgws_consumer_confirm(
	struct pgws_consumer *c, uint64_t write_lsn, uint64_t flush_lsn, uint64_t apply_lsn);
/* Ends next and run soon with PGWS_EEND, the last confirmed position sent and the slot let go; the
 * connection stays until free. Any thread, and safe in a signal handler. */
PGWS_API void pgws_consumer_stop(struct pgws_consumer *c);

struct pgws_position {
	uint64_t server_lsn;    /* as last heard; never before received_lsn */
	uint64_t received_lsn;  /* end of the last transaction given out whole */
	uint64_t confirmed_lsn; /* flush position last sent */
	uint64_t reconnects;
	uint32_t timeline;
	char systemid[24];
};
PGWS_API void pgws_consumer_get_position(
	struct pgws_consumer *c, struct pgws_position *ret_position);
PGWS_API const char *pgws_consumer_error(const struct pgws_consumer *c);
PGWS_API const char *pgws_consumer_sqlstate(const struct pgws_consumer *c);

#ifdef __cplusplus
}
#endif

#endif
