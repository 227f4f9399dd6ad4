/* SPDX-License-Identifier: PostgreSQL */
/*
 * Snapshot: all keys at one revision and the leases there are, as a file of our own. Its form:
 *
 *     "HOWDAHW1"                                   8 bytes
 *     length of the leases, big-endian             8 bytes
 *     length of the keys, big-endian               8 bytes
 *     leases: LeaseGrantRequest, each as field 1 of one message around them
 *     keys:   an etcdserverpb.RangeResponse of everything
 *     zeros up to a multiple of 512 bytes
 *     SHA-256 of all before                        32 bytes
 *
 * which is what etcdctl wants of a snapshot's length and end. It is sent in pieces as the client
 * takes them; the revision is pinned meanwhile.
 */
#include "config.h"

#include <openssl/evp.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/svc.h"

#define MAGIC "HOWDAHW1"
#define MAGIC_BYTES 8
#define BLOCK_BYTES 512
#define PIECE_BYTES 32768
#define HASH_BYTES 32
#define STEP_KEYS 2000
/* On the stream: no more pieces before the client has taken some. */
#define HIGH_BYTES (1u << 20)

MEM_TYPE(mem_snapshot, "snapshot");

struct snapshot {
	Etcdserverpb__RangeRequest request; /* of everything, borrowed by range */
	struct kv_range *range;
	struct buf head; /* what stands before the keys */
	size_t head_sent;
	uint64_t keys_left, pad_left, left; /* left: all of it, without the hash */
	EVP_MD_CTX *hash;
};

static void release(struct grpc_call *c)
{
	struct snapshot *n = c->state;

	kv_range_end(&n->range);
	EVP_MD_CTX_free(n->hash);
	buf_free(&n->head);
	mem_free(&mem_snapshot, n);
	c->state = NULL;
}

/* ---- The head ---- */

static bool put_lease(struct store_lease *l, void *arg)
{
	struct buf *b = arg;
	Etcdserverpb__LeaseGrantRequest m = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;

	m.id = l->id;
	m.ttl = l->ttl_s;
	buf_put_u8(b, 1 << 3 | 2); /* field 1, length-delimited */
	buf_put_u8(b, (uint8_t)etcdserverpb__lease_grant_request__get_packed_size(&m)); /* < 128 */
	grpc_pack(b, &m.base);
	return true;
}

static void put_head(struct snapshot *n, struct store *s)
{
	struct buf leases;
	uint64_t whole;

	buf_init(&leases, 0);
	store_lease_each(s, put_lease, &leases);
	n->keys_left = kv_range_length(n->range);
	buf_put(&n->head, MAGIC, MAGIC_BYTES);
	buf_put_be64(&n->head, leases.len_bytes);
	buf_put_be64(&n->head, n->keys_left);
	buf_put(&n->head, leases.data, leases.len_bytes);
	buf_free(&leases);
	whole = n->head.len_bytes + n->keys_left;
	n->pad_left = (BLOCK_BYTES - whole % BLOCK_BYTES) % BLOCK_BYTES;
	n->left = whole + n->pad_left;
}

/* ---- Pieces ---- */

/* The next bytes of the file, at most max; 0: the store was loaded anew. */
static size_t fill(struct snapshot *n, uint8_t *out, size_t max)
{
	size_t len = n->head.len_bytes - n->head_sent;

	if (len > 0) {
		len = len < max ? len : max;
		memcpy(out, n->head.data + n->head_sent, len);
		n->head_sent += len;
	} else if (n->keys_left > 0) {
		len = kv_range_fill(n->range, out, max);
		n->keys_left -= len;
	} else {
		len = n->pad_left < max ? (size_t)n->pad_left : max;
		memset(out, 0, len);
		n->pad_left -= len;
	}
	return len;
}

static void send_blob(struct grpc_call *c, uint8_t *data, size_t len, uint64_t remaining)
{
	Etcdserverpb__SnapshotResponse m = ETCDSERVERPB__SNAPSHOT_RESPONSE__INIT;

	m.blob = (ProtobufCBinaryData){.data = data, .len = len};
	m.remaining_bytes = remaining;
	buf_reset(&c->out);
	grpc_pack(&c->out, &m.base);
	h2_stream_send(c->stream, c->out.data, c->out.len_bytes);
}

static void finish(struct grpc_call *c)
{
	struct snapshot *n = c->state;
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned len = 0;

	ASSERT(EVP_DigestFinal_ex(n->hash, digest, &len) == 1 && len == HASH_BYTES);
	send_blob(c, digest, HASH_BYTES, 0);
	c->answered = true;
	h2_stream_end(c->stream, GRPC_OK, NULL);
}

static void send_pieces(void *arg);

static void on_drained(struct grpc_call *c)
{
	c->on_drained = NULL;
	grpc_later(c, send_pieces);
}

static void send_pieces(void *arg)
{
	struct grpc_call *c = arg;
	struct snapshot *n = c->state;
	uint8_t piece[PIECE_BYTES];
	size_t len;

	if (h2_stream_is_over(c->stream))
		return;
	if (h2_stream_queued_bytes(c->stream) >= HIGH_BYTES) {
		c->on_drained = on_drained;
		return;
	}
	len = fill(n, piece, sizeof(piece));
	if (len == 0) {
		grpc_fail(c, ETCD_TIMEOUT);
		return;
	}
	n->left -= len;
	ASSERT(EVP_DigestUpdate(n->hash, piece, len) == 1);
	send_blob(c, piece, len, n->left);
	if (n->left == 0)
		finish(c);
	else
		grpc_later(c, send_pieces);
}

/* ---- Life ---- */

static void measure(void *arg)
{
	struct grpc_call *c = arg;
	struct snapshot *n = c->state;

	if (h2_stream_is_over(c->stream))
		return;
	bool more = kv_range_step(n->range, STEP_KEYS);
	if (kv_range_is_lost(n->range)) {
		grpc_fail(c, ETCD_TIMEOUT);
		return;
	}
	if (more) {
		grpc_later(c, measure);
		return;
	}
	put_head(n, c->svc->store);
	send_pieces(c);
}

static void begin(struct grpc_call *c)
{
	static uint8_t zero[1];
	struct snapshot *n = mem_new(&mem_snapshot, sizeof(*n));

	c->state = n;
	c->release = release;
	buf_init(&n->head, 0);
	n->hash = EVP_MD_CTX_new();
	ASSERT(n->hash != NULL && EVP_DigestInit_ex(n->hash, EVP_sha256(), NULL) == 1);
	etcdserverpb__range_request__init(&n->request);
	n->request.key = n->request.range_end = (ProtobufCBinaryData){.data = zero, .len = 1};
	enum etcd_error err =
		kv_range_begin(c->svc->store, &n->request, &c->svc->header, &n->range);
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		measure(c);
}

void svc_snapshot(struct grpc_call *c)
{
	grpc_linearize(c, begin);
}
