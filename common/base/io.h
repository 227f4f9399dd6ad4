/* SPDX-License-Identifier: PostgreSQL */
/*
 * Whole reads and writes of files, through EINTR and short counts. They block: files of the
 * configuration and the state only, nothing that a peer can hold up.
 */
#ifndef COMMON_BASE_IO_H
#define COMMON_BASE_IO_H

#include <stddef.h>

/* From the start of a file to its end, at most max_bytes; *ret_len is what was read. The
 * descriptor's own position stays. 0 or -errno. */
int io_read_all(int fd, void *data, size_t max_bytes, size_t *ret_len)
	__attribute__((warn_unused_result));
/* All of data, at the descriptor's position. 0 or -errno. */
int io_write_all(int fd, const void *data, size_t len_bytes) __attribute__((warn_unused_result));

#endif
