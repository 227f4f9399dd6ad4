/* SPDX-License-Identifier: PostgreSQL */
/*
 * Memory and wake-ups of the ring: memfds made, sealed and mapped; one eventfd per direction.
 * Seals on the data memfd: SHRINK, GROW, FUTURE_WRITE, SEAL after the producer mapped it; on the
 * cursor memfd SHRINK, GROW, SEAL.
 */
#ifndef COMMON_RING_RING_NOTIFY_H
#define COMMON_RING_RING_NOTIFY_H

#include <stddef.h>
#include <stdint.h>

/* Producer: makes, maps read-write, allocates and seals. *ret_fd owned by the caller. */
int ring_data_create(size_t capacity, int *ret_fd, void **ret_map)
	__attribute__((warn_unused_result));
/* Consumer: checks size and seals, maps read-only. fd stays the caller's. */
int ring_data_map(int fd, const void **ret_map, size_t *ret_len)
	__attribute__((warn_unused_result));
int ring_cursor_create(int *ret_fd, void **ret_map) __attribute__((warn_unused_result));
int ring_cursor_map(int fd, void **ret_map) __attribute__((warn_unused_result));
void ring_data_unmap(const void *map, size_t len);
void ring_cursor_unmap(void *map);

/* eventfd, nonblocking, close-on-exec. */
int ring_event_create(int *ret_fd) __attribute__((warn_unused_result));
/* EAGAIN (saturated) means already signalled: fine. */
void ring_event_signal(int fd);
/* Drain before re-checking, never after. */
void ring_event_drain(int fd);

#endif
