/* SPDX-License-Identifier: PostgreSQL */
/*
 * Whole reads and writes; io.h has the contract.
 *
 * Context: any, blocking. On crash: a file that was being written is cut off where it was; callers
 * write beside and rename.
 */
#include "config.h"

#include <errno.h>
#include <sys/types.h>
#include <unistd.h>

#include "common/base/io.h"

int io_read_all(int fd, void *data, size_t max_bytes, size_t *ret_len)
{
	char *p = data;
	size_t len = 0;

	while (len < max_bytes) {
		ssize_t n = pread(fd, p + len, max_bytes - len, (off_t)len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += (size_t)n;
	}
	*ret_len = len;
	return 0;
}

int io_write_all(int fd, const void *data, size_t len_bytes)
{
	const char *p = data;

	while (len_bytes > 0) {
		ssize_t n = write(fd, p, len_bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len_bytes -= (size_t)n;
	}
	return 0;
}
