/* SPDX-License-Identifier: PostgreSQL */
/*
 * Two processes over one ring; the producer is killed between every two of its stores. ring.c is
 * built into this test with RING_INJECT, which makes ring_inject_point of each place between two
 * stores.
 *
 * For k = 1, 2, 3 …: a fresh ring, a producer process that gets SIGKILL at its k-th place, a
 * consumer that reads what is left. What it sees must be whole records 0, 1, 2 … without a gap, up
 * to the end of a published batch, and as many of them as the producer said (over a pipe, after
 * each publish) were published, or one batch more.
 */
#include "config.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/ring/ring.h"
#include "common/ring/ring_layout.h"

#define CAPACITY RING_CAPACITY_MIN
#define DATA_LEN (RING_HEADER_BYTES + CAPACITY)
#define N_BATCHES 12
#define BATCH 3

static unsigned long n_points, die_at;

void ring_inject_point(void);
void ring_inject_point(void)
{
	if (++n_points == die_at)
		raise(SIGKILL);
}

struct arena {
	void *data;
	void *cursor;
};

/* Sizes that meet the window's end in different ways; some of several fragments. */
static uint32_t length_of(uint32_t n)
{
	return n % 7 == 3 ? CAPACITY / 8 + 100 : (n * 2654435761u) % 6000;
}

static uint8_t byte_of(uint32_t n, uint32_t i)
{
	return (uint8_t)(n * 31 + i * 7 + 1);
}

static void *shared_pages(size_t len)
{
	void *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(m, MAP_FAILED);
	return m;
}

/* The producer process. Acts as its own consumer's cursor, so that the ring never fills. */
static void produce(struct arena *a, uint64_t start, int pipe_fd)
{
	static uint8_t payload[CAPACITY];
	struct ring_producer *p = ring_producer_new(a->data, CAPACITY, 1, start);
	uint32_t n = 0;
	unsigned bad;
	if (ring_producer_add(p, 0, a->cursor, 0) != 0)
		_exit(2);
	for (int batch = 0; batch < N_BATCHES; batch++) {
		for (int i = 0; i < BATCH; i++, n++) {
			struct ring_record rec = {.type = RING_MESSAGE,
				.ordinal = n,
				.payload_len = length_of(n),
				.commit_lsn = 1000 + n};
			for (uint32_t b = 0; b < rec.payload_len; b++)
				payload[b] = byte_of(n, b);
			if (ring_write(p, &rec, payload) != 0)
				_exit(3);
		}
		(void)ring_publish(p); /* nobody sleeps */
		if (write(pipe_fd, &n, sizeof(n)) != sizeof(n))
			_exit(4);
		/* The consumer is as far as the batch before: it reads [read_pos, head) afterwards.
		 */
		struct ring_cursor *c = a->cursor;
		static uint64_t before;
		if (batch > 0)
			atomic_store(&c->read_pos, before);
		before = ring_producer_head(p);
		if (ring_producer_refresh(p, &bad) != 0)
			_exit(5);
	}
	ring_producer_free(&p);
	_exit(0);
}

/* What the pipe says was published for certain. */
static uint32_t read_published(int fd)
{
	uint32_t n, last = 0;
	while (read(fd, &n, sizeof(n)) == sizeof(n))
		last = n;
	return last;
}

static void check_payload(const struct ring_record *rec, const uint8_t *payload, uint32_t n)
{
	assert_int_equal(rec->ordinal, n);
	assert_int_equal(rec->commit_lsn, 1000 + n);
	assert_int_equal(rec->total_len, length_of(n));
	for (uint32_t i = 0; i < rec->payload_len; i++) {
		if (payload[i] != byte_of(n, rec->offset + i))
			fail_msg("record %u, byte %u", n, rec->offset + i);
	}
}

/* What a consumer finds after the producer's death. */
static void consume(struct arena *a, uint32_t published)
{
	struct ring_consumer *c;
	struct ring_record rec;
	const void *payload;
	int rc;
	if (((struct ring_header *)a->data)->ready != RING_READY ||
		((struct ring_cursor *)a->cursor)->magic != RING_CURSOR_MAGIC) {
		assert_int_equal(published, 0); /* died before anybody could attach */
		return;
	}
	assert_int_equal(ring_consumer_new(a->data, DATA_LEN, a->cursor, &c), 0);
	bool first = true;
	uint32_t next = 0, at = 0;
	while ((rc = ring_peek(c, &rec, &payload)) == 1) {
		if (first)
			next = rec.ordinal; /* of the batch that was not released */
		first = false;
		assert_int_equal(rec.offset, at);
		check_payload(&rec, payload, next);
		at += rec.payload_len;
		if ((rec.flags & RING_FLAG_LAST) != 0) {
			next++;
			at = 0;
		}
	}
	assert_int_equal(rc, 0);
	assert_int_equal(at, 0);
	assert_int_equal(next % BATCH, 0);
	if (published > 0)
		assert_false(first);
	if (next != published && next != published + BATCH)
		fail_msg("%u records seen, %u published", next, published);
	uint64_t read_pos = atomic_load(&((struct ring_cursor *)a->cursor)->read_pos);
	assert_int_equal(ring_check(a->data, DATA_LEN, read_pos), 0);
	ring_consumer_free(&c);
}

/* false: the producer reached its end before its k-th place. */
static bool run_once(unsigned long k, uint64_t start)
{
	struct arena a = {shared_pages(DATA_LEN), shared_pages(RING_CURSOR_BYTES)};
	int fds[2], status;
	assert_int_equal(pipe(fds), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		die_at = k;
		close(fds[0]);
		produce(&a, start, fds[1]);
	}
	close(fds[1]);
	uint32_t published = read_published(fds[0]);
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	bool killed = WIFSIGNALED(status);
	if (killed)
		assert_int_equal(WTERMSIG(status), SIGKILL);
	else
		assert_int_equal(WEXITSTATUS(status), 0);
	consume(&a, published);
	if (!killed)
		assert_int_equal(published, N_BATCHES * BATCH);
	munmap(a.data, DATA_LEN);
	munmap(a.cursor, RING_CURSOR_BYTES);
	return killed;
}

static void kill_everywhere(uint64_t start)
{
	unsigned long k = 1;
	while (run_once(k, start))
		k++;
	/* Two header words, then per record at least four places, per batch six more. */
	assert_true(k > 2 + N_BATCHES * (BATCH * 4 + 6));
	print_message("killed at %lu places\n", k - 1);
}

static void test_kill_from_zero(void **state)
{
	(void)state;
	kill_everywhere(0);
}

static void test_kill_over_the_wraps(void **state)
{
	(void)state;
	kill_everywhere((UINT64_C(1) << 32) - 2 * CAPACITY + 4096 + 8);
	kill_everywhere(UINT64_MAX - CAPACITY + 1 - 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kill_from_zero),
		cmocka_unit_test(test_kill_over_the_wraps),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
