/* SPDX-License-Identifier: PostgreSQL */
/*
 * Watch: a gRPC stream bound to a watch_stream. The client's requests are not read while it does
 * not take its answers.
 *
 * The client's end of sending is not the end of the watches on the stream; only its leaving is.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/svc.h"

#define WATCH_STREAM_MAGIC 0x77737472u
/* On a stream: above, requests are not read; below, events flow again. A client may have many
 * streams and take from none: when its connection is crowded, the lower one is the limit. */
#define HIGH_BYTES (1u << 20)
#define LOW_BYTES (32u << 10)

MEM_TYPE(mem_watch_call, "watch call");

struct watch_call {
	uint32_t magic;
	struct services *svc;
	struct grpc_stream stream;
	struct watch_stream *watches;
	bool paused;
};

static void send_response(void *stream_arg, const struct h2_slice *slices, size_t n)
{
	struct watch_call *w;

	OBJ_CAST(w, stream_arg, WATCH_STREAM_MAGIC);
	h2_stream_send_slices(w->stream.stream, slices, n);
}

static size_t queued_bytes(void *stream_arg)
{
	struct watch_call *w;

	OBJ_CAST(w, stream_arg, WATCH_STREAM_MAGIC);
	size_t queued = h2_stream_queued_bytes(w->stream.stream);
	if (queued >= LOW_BYTES && queued < HIGH_BYTES && h2_stream_is_crowded(w->stream.stream))
		return HIGH_BYTES;
	return queued;
}

const struct watch_ops svc_watch_ops = {.send = send_response, .queued = queued_bytes};

static void on_request(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	struct watch_call *w;
	Etcdserverpb__WatchRequest *r = etcdserverpb__watch_request__unpack(NULL, len, data);

	OBJ_CAST(w, user, WATCH_STREAM_MAGIC);
	if (r == NULL) {
		grpc_end_with(w->svc, s, GRPC_INTERNAL, GRPC_MALFORMED_MESSAGE);
		return;
	}
	/* While the log is loaded anew nobody can say what is now: the client asks again. */
	if (!engine_is_loaded(w->svc->engine))
		grpc_end(w->svc, s, ETCD_TIMEOUT);
	else
		watch_stream_request(w->watches, r);
	protobuf_c_message_free_unpacked(&r->base, NULL);
	if (h2_stream_is_over(s))
		return;
	w->paused = queued_bytes(w) >= HIGH_BYTES;
	h2_stream_pause(s, w->paused);
}

static void on_drained(struct h2_stream *s, void *user)
{
	struct watch_call *w;

	OBJ_CAST(w, user, WATCH_STREAM_MAGIC);
	if (w->paused)
		h2_stream_pause(s, false);
	w->paused = false;
	watch_stream_drained(w->watches);
}

static void on_gone(struct h2_stream *s, void *user)
{
	struct watch_call *w;

	(void)s;
	OBJ_CAST(w, user, WATCH_STREAM_MAGIC);
	watch_stream_free(&w->watches);
	grpc_stream_remove(&w->stream);
	w->magic = 0;
	mem_free(&mem_watch_call, w);
}

void svc_watch_open(struct services *svc, struct h2_stream *s, bool leader)
{
	static const struct h2_call_ops ops = {.on_message = on_request,
		.on_drained = on_drained,
		.on_gone = on_gone,
		.low_bytes = LOW_BYTES};
	struct watch_call *w = mem_new(&mem_watch_call, sizeof(*w));

	w->magic = WATCH_STREAM_MAGIC;
	w->svc = svc;
	w->watches = watch_stream_new(svc->watches, w);
	grpc_stream_add(svc, &w->stream, s, leader);
	h2_stream_accept(s, &ops, w);
}
