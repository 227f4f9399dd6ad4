/* SPDX-License-Identifier: PostgreSQL */
/*
 * From a call's path to what serves it, and what all unary calls have in common.
 *
 *   h2: on_call -> table of methods -> unary: the message is decoded -> begin(call)
 *                                   |            -> grpc_reply… or grpc_fail, at once or later
 *                                   '-> stream: open(svc, stream) does the rest by itself
 *
 * A unary call lives until the transport says that its stream is gone; what it still waits for is
 * cancelled then. Each begin ends in exactly one reply or failure, unless the client left first.
 * What etcd knows and we do not serve is answered as grpc-go answers an unknown method.
 *
 * Context: event thread.
 */
#ifndef WATCHD_GRPC_H
#define WATCHD_GRPC_H

#include <protobuf-c/protobuf-c.h>

#include "common/base/buf.h"
#include "watchd/h2.h"
#include "watchd/services.h"

/* What grpc-go says (Internal) of a message that is no protobuf: of a unary call, of a stream. */
#define GRPC_MALFORMED_REQUEST "grpc: error unmarshalling request: unexpected EOF"
#define GRPC_MALFORMED_MESSAGE "grpc: failed to unmarshal the received message unexpected EOF"
#define GRPC_LOW_BYTES (256u << 10)

struct grpc_call;

struct grpc_method {
	const char *path;
	const char *name; /* of its counter: "range" */
	/* Unary. */
	const ProtobufCMessageDescriptor *request;
	void (*begin)(struct grpc_call *c);
	bool changes; /* max_request_bytes is for it; Txn judges itself */
	/* Streaming: accepts or ends s. leader: hasleader was asked for. */
	void (*open)(struct services *svc, struct h2_stream *s, bool leader);
};

struct grpc_call {
	uint32_t magic;
	struct services *svc;
	struct h2_stream *stream;
	const struct grpc_method *method;
	ProtobufCMessage *request; /* owned */
	size_t request_bytes;      /* as it came */
	struct engine_op op;       /* of a change */
	struct engine_read read;   /* of a linearizable read */
	bool op_waits, read_waits;
	bool answered;
	void (*on_read)(struct grpc_call *c);
	/* NULL, or: less than GRPC_LOW_BYTES wait on the stream again. */
	void (*on_drained)(struct grpc_call *c);
	struct grpc_ticket *ticket;
	struct ev_deferred later; /* for work in steps */
	struct buf out;           /* the encoded answer */
	int64_t number[2];        /* the method's own */
	void *state;              /* the method's own; given to release */
	void (*release)(struct grpc_call *c);
};

/* Changes shared state: eval as in engine_op (see grpc_call_of), which builds the answer in out, or
 * nothing and on_done does. on_done NULL: what is in out is replied. */
void grpc_change(struct grpc_call *c,
	enum etcd_error (*eval)(struct engine_op *op, struct store *s), bool grows);
struct grpc_call *grpc_call_of(struct engine_op *op);
/* fn runs when all that was committed before is visible; a failure is answered here. */
void grpc_linearize(struct grpc_call *c, void (*fn)(struct grpc_call *c));
/* The arg for a callback that cannot be called off: grpc_ticket_take in it gives the call back, or
 * NULL if that is gone. One at a time. */
struct grpc_ticket *grpc_ticket(struct grpc_call *c);
struct grpc_call *grpc_ticket_take(struct grpc_ticket *t);
/* Those whose callbacks will not come any more: the engine was freed. */
void grpc_tickets_free(struct services *svc);
/* fn in the next pass of the loop, if the call still is. */
void grpc_later(struct grpc_call *c, void (*fn)(void *call));

/* As a change, it is longer than max_request_bytes. */
bool grpc_is_too_large(const struct grpc_call *c);

/* What is in out. */
void grpc_reply(struct grpc_call *c);
/* A message, packed. */
void grpc_reply_message(struct grpc_call *c, const ProtobufCMessage *m);
void grpc_fail(struct grpc_call *c, enum etcd_error err);
void grpc_fail_with(struct grpc_call *c, enum grpc_status status, const char *text);
/* Header of an answer that is true at the visible revision. */
void grpc_header(const struct services *svc, Etcdserverpb__ResponseHeader *h);
/* Packs m behind what is in out. */
void grpc_pack(struct buf *out, const ProtobufCMessage *m);

/* A call that lasts: embed it, add it while it is open. */
struct grpc_stream {
	struct list in_all;
	struct h2_stream *stream;
	bool leader; /* ends with NO_LEADER when there is none */
};
void grpc_stream_add(struct services *svc, struct grpc_stream *g, struct h2_stream *s, bool leader);
void grpc_stream_remove(struct grpc_stream *g);
/* Ends those that asked for a leader, or all. */
void grpc_streams_end(struct services *svc, enum etcd_error err, bool all);
/* Ends any call, and counts it. */
void grpc_end(struct services *svc, struct h2_stream *s, enum etcd_error err);
void grpc_end_with(
	struct services *svc, struct h2_stream *s, enum grpc_status status, const char *text);

/* h2_server_ops.on_call; arg is the struct services. */
void grpc_on_call(struct h2_stream *s, const struct h2_request *rq, void *arg);

/* The table, ends with path NULL; and how many there are. */
extern const struct grpc_method grpc_methods[];

#endif
