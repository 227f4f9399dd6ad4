/* SPDX-License-Identifier: PostgreSQL */
/*
 * One producer thread, two consumer threads of different pace, over one ring with real eventfds:
 * every record arrives, in order and whole, and nobody sleeps through a wake-up. Meaningful above
 * all with
 * --with-sanitizer=thread, which sees whether payloads are read and overwritten in order.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/ring/ring.h"
#include "common/ring/ring_notify.h"

#define CAPACITY RING_CAPACITY_MIN
#define N_CONSUMERS 2
#define N_RECORDS 60000
#define LARGE_EVERY 500
#define LARGE_BYTES (3 * CAPACITY)
#define STUCK_MS 20000 /* far more than a pause can last: a wake-up was lost */

struct consumer {
	struct ring_consumer *c;
	int data_event, space_event;
	unsigned pause_every; /* consumer of another pace: a yield per so many records */
	uint32_t n_seen;
	uint64_t n_sleeps;
	const char *failure;
};

struct shared {
	struct ring_producer *p;
	int space_event;
	struct consumer consumers[N_CONSUMERS];
	uint64_t n_sleeps;
	const char *failure;
};

static uint32_t length_of(uint32_t n)
{
	return n % LARGE_EVERY == 0 ? LARGE_BYTES : (n * 2654435761u) % 700;
}

static uint8_t byte_of(uint32_t n, uint32_t i)
{
	return (uint8_t)(n * 13 + i * 7);
}

/* Waits for an eventfd; false: it never came. */
static bool wait_event(int fd)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	if (poll(&pfd, 1, STUCK_MS) != 1)
		return false;
	ring_event_drain(fd);
	return true;
}

static bool fragment_ok(
	const struct ring_record *rec, const uint8_t *payload, uint32_t n, uint32_t at)
{
	if (rec->ordinal != n || rec->offset != at || rec->total_len != length_of(n))
		return false;
	for (uint32_t i = 0; i < rec->payload_len; i++) {
		if (payload[i] != byte_of(n, at + i))
			return false;
	}
	return true;
}

/* Takes what is there. 1: some, 0: nothing, -1: wrong. */
static int take(struct consumer *k, uint32_t *at)
{
	struct ring_record rec;
	const void *payload;
	int rc, any = 0;
	while ((rc = ring_peek(k->c, &rec, &payload)) == 1) {
		any = 1;
		if (!fragment_ok(&rec, payload, k->n_seen, *at))
			return -1;
		*at += rec.payload_len;
		if ((rec.flags & RING_FLAG_LAST) != 0) {
			k->n_seen++;
			*at = 0;
		}
		if (k->n_seen % k->pause_every == 0)
			sched_yield();
		if (ring_release(k->c))
			ring_event_signal(k->space_event);
	}
	return rc < 0 ? -1 : any;
}

static void *consume(void *arg)
{
	struct consumer *k = arg;
	uint32_t at = 0;
	while (k->n_seen < N_RECORDS) {
		int rc = take(k, &at);
		if (rc == 0) {
			ring_consumer_arm(k->c);
			rc = take(k, &at);
			if (rc == 0) {
				k->n_sleeps++;
				if (!wait_event(k->data_event)) {
					k->failure = "slept through a wake-up";
					return NULL;
				}
			}
			ring_consumer_disarm(k->c);
		}
		if (rc < 0) {
			k->failure = "a record is wrong";
			return NULL;
		}
	}
	return NULL;
}

static void publish(struct shared *s)
{
	uint32_t wake = ring_publish(s->p);
	for (unsigned i = 0; i < N_CONSUMERS; i++) {
		if ((wake & 1u << i) != 0)
			ring_event_signal(s->consumers[i].data_event);
	}
}

static bool refresh(struct shared *s)
{
	unsigned bad;
	return ring_producer_refresh(s->p, &bad) == 0;
}

/* After -EAGAIN. false: failed. */
static bool wait_space(struct shared *s, size_t need)
{
	publish(s);
	ring_producer_arm_space(s->p);
	if (!refresh(s))
		return false;
	if (ring_producer_free_bytes(s->p) < need) {
		s->n_sleeps++;
		if (!wait_event(s->space_event))
			return false;
	}
	ring_producer_disarm_space(s->p);
	return refresh(s);
}

static void *produce(void *arg)
{
	struct shared *s = arg;
	uint8_t *payload = malloc(LARGE_BYTES);
	for (uint32_t n = 0; n < N_RECORDS; n++) {
		struct ring_record rec = {
			.type = RING_MESSAGE, .ordinal = n, .payload_len = length_of(n)};
		for (uint32_t i = 0; i < rec.payload_len; i++)
			payload[i] = byte_of(n, i);
		size_t offset = 0;
		while (ring_write_part(s->p, &rec, payload, &offset) != 0) {
			if (!wait_space(s, CAPACITY / 2)) {
				s->failure =
					"slept through a wake-up for space, or a cursor is wrong";
				free(payload);
				return NULL;
			}
		}
		if (n % 5 == 0)
			publish(s);
		/* Now and then all consumers go to sleep. */
		if (n % 3000 == 0)
			usleep(2000);
	}
	publish(s);
	free(payload);
	return NULL;
}

static void test_threads(void **state)
{
	(void)state;
	static const uint64_t start = UINT64_MAX - 16 * CAPACITY + 1; /* wraps on the way */
	struct shared s = {.failure = NULL};
	int data_fd, cursor_fd[N_CONSUMERS];
	void *data, *cursor[N_CONSUMERS];
	pthread_t producer, threads[N_CONSUMERS];
	assert_int_equal(ring_data_create(CAPACITY, &data_fd, &data), 0);
	assert_int_equal(ring_event_create(&s.space_event), 0);
	s.p = ring_producer_new(data, CAPACITY, 1, start);
	for (unsigned i = 0; i < N_CONSUMERS; i++) {
		struct consumer *k = &s.consumers[i];
		k->pause_every = i == 0 ? 1000000 : 3;
		k->space_event = s.space_event;
		assert_int_equal(ring_cursor_create(&cursor_fd[i], &cursor[i]), 0);
		assert_int_equal(ring_event_create(&k->data_event), 0);
		assert_int_equal(ring_producer_add(s.p, i, cursor[i], 0), 0);
		assert_int_equal(
			ring_consumer_new(data, RING_HEADER_BYTES + CAPACITY, cursor[i], &k->c), 0);
	}
	for (unsigned i = 0; i < N_CONSUMERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, consume, &s.consumers[i]), 0);
	assert_int_equal(pthread_create(&producer, NULL, produce, &s), 0);
	pthread_join(producer, NULL);
	for (unsigned i = 0; i < N_CONSUMERS; i++) {
		struct consumer *k = &s.consumers[i];
		pthread_join(threads[i], NULL);
		assert_null(k->failure);
		assert_int_equal(k->n_seen, N_RECORDS);
		assert_true(k->n_sleeps > 0);
		ring_consumer_free(&k->c);
		ring_cursor_unmap(cursor[i]);
		close(cursor_fd[i]);
		close(k->data_event);
	}
	assert_null(s.failure);
	struct ring_counts counts;
	ring_producer_get_counts(s.p, &counts);
	assert_true(counts.stalls > 0 && counts.wakes > 0);
	ring_producer_free(&s.p);
	ring_data_unmap(data, RING_HEADER_BYTES + CAPACITY);
	close(data_fd);
	close(s.space_event);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
