/* SPDX-License-Identifier: PostgreSQL */
/*
 * Memory and wake-ups of the ring: see ring_notify.h.
 *
 * The data memfd is sealed against every new writable mapping after the producer has its own, so a
 * consumer cannot write rows that a sibling reads, and nobody can make it shorter (SIGBUS). Memory
 * is allocated at creation: shortage shows then, as an error.
 *
 * Context: any thread; nothing blocks.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_notify.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

#define SEALS_DATA (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
#define SEALS_CURSOR (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* 0600: a memfd is born 0777, and its seals are the second fence, not the only one. */
static int memory_create(const char *name, size_t len, int *ret_fd)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	int err = 0;
	if (fchmod(fd, 0600) != 0)
		err = -errno;
	if (err == 0)
		err = -posix_fallocate(fd, 0, (off_t)len);
	if (err != 0) {
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

/* Created memory: mapped writable, then sealed. A child must never inherit the mapping. */
static int memory_map_and_seal(int fd, size_t len, int seals, void **ret_map)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	if (madvise(map, len, MADV_DONTFORK) != 0 || fcntl(fd, F_ADD_SEALS, seals) != 0) {
		int err = -errno;
		munmap(map, len);
		return err;
	}
	*ret_map = map;
	return 0;
}

static int memory_create_mapped(
	const char *name, size_t len, int seals, int *ret_fd, void **ret_map)
{
	int fd = -1;
	int err = memory_create(name, len, &fd);
	if (err != 0)
		return err;
	err = memory_map_and_seal(fd, len, seals, ret_map);
	if (err != 0) {
		close(fd);
		return err;
	}
	*ret_fd = fd;
	return 0;
}

int ring_data_create(size_t capacity, int *ret_fd, void **ret_map)
{
	if (capacity < RING_CAPACITY_MIN || (capacity & (capacity - 1)) != 0)
		return -EINVAL;
	return memory_create_mapped(
		"howdah-ring", RING_HEADER_BYTES + capacity, SEALS_DATA, ret_fd, ret_map);
}

int ring_cursor_create(int *ret_fd, void **ret_map)
{
	return memory_create_mapped(
		"howdah-ring-cursor", RING_CURSOR_BYTES, SEALS_CURSOR, ret_fd, ret_map);
}

/* Somebody else's memory: without these seals it could shrink under us. */
static int memory_check(int fd, int seals, size_t *ret_len)
{
	struct stat st;
	int have = fcntl(fd, F_GET_SEALS);
	if (have < 0 || (have & seals) != seals || fstat(fd, &st) != 0 || st.st_size <= 0)
		return -ERR_MALFORMED;
	*ret_len = (size_t)st.st_size;
	return 0;
}

static int memory_map(int fd, size_t len, int prot, void **ret_map)
{
	void *map = mmap(NULL, len, prot, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	if (madvise(map, len, MADV_DONTFORK) != 0) {
		int err = -errno;
		munmap(map, len);
		return err;
	}
	*ret_map = map;
	return 0;
}

int ring_data_map(int fd, const void **ret_map, size_t *ret_len)
{
	size_t len;
	void *map;
	int err = memory_check(fd, SEALS_DATA, &len);
	if (err == 0 && len < RING_HEADER_BYTES + RING_CAPACITY_MIN)
		err = -ERR_MALFORMED;
	if (err == 0)
		err = memory_map(fd, len, PROT_READ, &map);
	if (err != 0)
		return err;
	*ret_map = map;
	*ret_len = len;
	return 0;
}

int ring_cursor_map(int fd, void **ret_map)
{
	size_t len;
	int err = memory_check(fd, SEALS_CURSOR, &len);
	if (err == 0 && len != RING_CURSOR_BYTES)
		err = -ERR_MALFORMED;
	return err != 0 ? err : memory_map(fd, len, PROT_READ | PROT_WRITE, ret_map);
}

void ring_data_unmap(const void *map, size_t len)
{
	if (map != NULL)
		munmap((void *)(uintptr_t)map, len);
}

void ring_cursor_unmap(void *map)
{
	if (map != NULL)
		munmap(map, RING_CURSOR_BYTES);
}

int ring_event_create(int *ret_fd)
{
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

void ring_event_signal(int fd)
{
	uint64_t one = 1;
	ssize_t n;
	do
		n = write(fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	/* EAGAIN: already signalled. Anything else is a peer's odd descriptor: the safety re-check
	 * of the other side covers it. */
}

void ring_event_drain(int fd)
{
	uint64_t count;
	ssize_t n;
	do
		n = read(fd, &count, sizeof(count));
	while (n < 0 && errno == EINTR);
}
