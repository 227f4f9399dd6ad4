/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler's limits and files: what goes to a file and when, that nothing is copied wrong on
 * the way, that the limits hold and their errors name the remedy; prepared transactions kept by gid
 * over sessions and lives; and what is there when a system call fails, or the process dies, between
 * any two steps (the calls are wrapped by the linker).
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/assemble_testing.h"

/* ---- the calls that touch files: counted, and the n-th fails or ends the process ---- */

static long calls, stop_at = -1; /* -1: none */
static int stop_errno;           /* 0: the process ends there */

static bool stop_here(void)
{
	if (calls++ != stop_at)
		return false;
	if (stop_errno == 0)
		_exit(42);
	errno = stop_errno;
	return true;
}

#define WRAP(type, name, params, args)                                                             \
	type __real_##name params;                                                                 \
	type __wrap_##name params;                                                                 \
	type __wrap_##name params                                                                  \
	{                                                                                          \
		return stop_here() ? -1 : __real_##name args;                                      \
	}
WRAP(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(ssize_t, pread, (int fd, void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, ftruncate, (int fd, off_t len), (fd, len))
WRAP(int, renameat, (int a, const char *x, int b, const char *y), (a, x, b, y))
WRAP(int, unlinkat, (int dir, const char *name, int flags), (dir, name, flags))
WRAP(int, __openat, (int dir, const char *name, int flags, mode_t mode), (dir, name, flags, mode))

static size_t written; /* by pwritev */
ssize_t __real_pwritev(int fd, const struct iovec *v, int n, off_t at);
ssize_t __wrap_pwritev(int fd, const struct iovec *v, int n, off_t at);
ssize_t __wrap_pwritev(int fd, const struct iovec *v, int n, off_t at)
{
	ssize_t done = stop_here() ? -1 : __real_pwritev(fd, v, n, at);
	written += done > 0 ? (size_t)done : 0;
	return done;
}

/* openat takes its mode by varargs. */
int __real_openat(int dir, const char *name, int flags, ...);
int __wrap_openat(int dir, const char *name, int flags, ...);
int __real___openat(int dir, const char *name, int flags, mode_t mode)
{
	return __real_openat(dir, name, flags, mode);
}
int __wrap_openat(int dir, const char *name, int flags, ...)
{
	va_list args;
	va_start(args, flags);
	mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
	va_end(args);
	return __wrap___openat(dir, name, flags, mode);
}

/* ---- fixtures ---- */

static struct asm_out out;
static char dir[64];
static struct pgws_assembler *a;

static struct pgws_assembler_options options_of(size_t memory, uint64_t files, bool keep)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	o.memory_limit = memory;
	o.file_limit = files;
	o.dir = dir;
	o.keep_prepared = keep;
	return o;
}

static void make(size_t memory, uint64_t files, bool keep)
{
	struct pgws_assembler_options o = options_of(memory, files, keep);
	int err = pgws_assembler_new(&o, &a);
	if (err != 0)
		fail_msg("%d %s", err, pgws_assembler_error(NULL));
}

/* A new life of the same program. */
static void relive(void)
{
	pgws_assembler_free(&a);
	make(1 << 20, 1 << 30, true);
}

/* Of transactions; the mark of what was removed is none. */
static int n_files(void)
{
	DIR *d = opendir(dir);
	assert_non_null(d);
	int n = 0;
	for (struct dirent *e; (e = readdir(d)) != NULL;)
		n += e->d_name[0] != '.' && strncmp(e->d_name, "pgws-confirmed-", 15) != 0;
	closedir(d);
	return n;
}

/* The one file there is. */
static const char *only_file(void)
{
	static char path[400];
	DIR *d = opendir(dir);
	assert_non_null(d);
	path[0] = 0;
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] == '.')
			continue;
		assert_int_equal(path[0], 0);
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
	}
	closedir(d);
	assert_true(path[0] != 0);
	return path;
}

static void empty_folder(void)
{
	DIR *d = opendir(dir);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] != '.')
			assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
	}
	closedir(d);
}

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/test-assemble.XXXXXX");
	return mkdtemp(dir) == NULL;
}

static int teardown(void **state)
{
	(void)state;
	stop_at = -1;
	if (a != NULL) {
		pgws_assembler_reset(a);
		pgws_assembler_free(&a);
	}
	asm_out_clear(&out);
	empty_folder();
	return rmdir(dir);
}

#define feed(lsn, message) assert_int_equal(asm_feed(a, &out, message, lsn), 0)
#define feed_error(err, lsn, message) assert_int_equal(asm_feed(a, &out, message, lsn), err)

static struct pgws_assembler_counts counts(void)
{
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(a, &c);
	return c;
}

/* ---- limits ---- */

/* Value number i of transaction xid: of a length between 1 and 1,500 bytes. */
static struct asm_msg row(uint32_t subxid, uint32_t relid, unsigned i)
{
	char value[1501];
	size_t len = 1 + (i * 131) % 1500;
	memset(value, 'a' + (int)(i % 26), len);
	value[len] = 0;
	return asm_insert(subxid, relid, value);
}

/* Three interleaved transactions of 400 rows, with aborts; what comes out must be the same whatever
 * the limit, and memory must never be above it. */
static void interleave(size_t memory_limit)
{
	make(memory_limit, 64 << 20, false);
	for (unsigned block = 0; block < 20; block++) {
		for (uint32_t t = 1; t <= 3; t++) {
			uint32_t top = t * 100;
			feed(1, asm_stream_start(top, block == 0));
			feed(0, asm_relation(top, t, "c"));
			for (unsigned i = 0; i < 20; i++) {
				unsigned n = block * 20 + i;
				feed(n, row(i < 10 ? top : top + 1 + block, t, n));
				struct pgws_assembler_counts c = counts();
				/* what each transaction holds besides its messages */
				if (c.memory_bytes > memory_limit + 3 * 2048)
					fail_msg("%zu bytes of %zu", (size_t)c.memory_bytes,
						memory_limit);
			}
			feed(0, asm_start('E', 0));
			if (block % 4 == 3)
				feed(0, asm_stream_abort(top, top + 1 + block - 1, false));
		}
	}
	/* Every fourth block's abort took the second half of the third and all of the fourth. */
	for (uint32_t t = 1; t <= 3; t++) {
		asm_out_clear(&out);
		feed(900, asm_stream_commit(t * 100, 1000 + t));
		size_t at = 1;
		for (unsigned block = 0; block < 20; block++) {
			unsigned rows = block % 4 == 2 ? 10 : block % 4 == 3 ? 0 : 20;
			at += block % 4 != 3;
			for (unsigned i = 0; i < rows; i++, at++) {
				struct asm_msg m = row(0, t, block * 20 + i);
				assert_true(at < out.n);
				assert_int_equal(out.list[at].len, m.len);
				assert_memory_equal(out.list[at].bytes, m.bytes, m.len);
				assert_int_equal(out.list[at].change.lsn, block * 20 + i);
			}
		}
		assert_int_equal(at + 1, out.n);
	}
	assert_int_equal(counts().memory_bytes, 0);
	assert_int_equal(counts().file_bytes, 0);
	assert_int_equal(n_files(), 0);
}

static void test_limits(void **state)
{
	(void)state;
	static const size_t limits[] = {0, 1, 100, 1000, 4096, 10000, 65536, 300000};
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		interleave(limits[i]);
		struct pgws_assembler_counts c = counts();
		assert_int_equal(c.spilled, 3);
		assert_true(c.spilled_bytes > 100000);
		pgws_assembler_free(&a);
	}
	interleave(16 << 20);
	assert_int_equal(counts().spilled, 0);
}

/* The file has no name: nothing is left when the process dies. */
static void test_files_have_no_name(void **state)
{
	(void)state;
	make(1000, 1 << 20, false);
	feed(1, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	for (unsigned i = 0; i < 50; i++)
		feed(1, row(7, 1, i));
	assert_true(counts().file_bytes > 10000);
	assert_int_equal(n_files(), 0);
	feed(1, asm_start('E', 0));
	feed(1, asm_stream_abort(7, 7, false));
	assert_int_equal(counts().file_bytes, 0);
}

/* The largest goes: the small ones stay in memory. */
static void test_the_largest_goes(void **state)
{
	(void)state;
	make(200000, 64 << 20, false);
	for (uint32_t t = 1; t <= 3; t++) {
		feed(1, asm_stream_start(t, true));
		feed(0, asm_relation(t, t, "c"));
		for (unsigned i = 0; i < (t == 2 ? 150 : 20); i++)
			feed(1, row(t, t, i));
		feed(1, asm_start('E', 0));
	}
	for (unsigned i = 0; i < 2000; i++) {
		feed(1, asm_stream_start(2, false));
		feed(1, row(2, 2, i));
		feed(1, asm_start('E', 0));
	}
	assert_int_equal(counts().spilled, 1);
	assert_true(counts().memory_bytes <= 200000);
	asm_out_clear(&out);
	feed(1, asm_stream_commit(2, 50));
	assert_int_equal(out.n, 2 + 2150 + 1);
}

/* No message waits until all of memory_limit is written: the limit is kept by steps, and who has
 * begun to leave goes on before the next one has to. */
static void test_spills_by_steps(void **state)
{
	(void)state;
	const size_t limit = 16 << 20, step = (1 << 20) + (256 << 10);
	size_t in = 0, most = 0;
	make(limit, 256 << 20, false);
	for (uint32_t t = 1; t <= 3; t++) {
		feed(1, asm_stream_start(t, true));
		feed(0, asm_relation(t, t, "c"));
		feed(1, asm_start('E', 0));
	}
	/* 9 MB and 6 MB; then the third comes for as much as the first leaves. */
	for (unsigned i = 0; in < 50 << 20; i++) {
		uint32_t t = in < 9 << 20 ? 1 : in < 15 << 20 ? 2 : in < 22 << 20 ? 3 : 1;
		feed(1, asm_stream_start(t, false));
		for (unsigned j = 0; j < 100; j++) {
			written = 0;
			feed(1, row(t, t, i + j));
			most = written > most ? written : most;
			in += 1 + ((i + j) * 131) % 1500 + 40;
			assert_true(counts().memory_bytes <= limit);
		}
		feed(1, asm_start('E', 0));
		if (in < 22 << 20)
			assert_true(counts().spilled <= 1);
	}
	assert_true(most > 0 && most <= step);
	asm_out_clear(&out);
	for (uint32_t t = 1; t <= 3; t++)
		feed(1, asm_stream_commit(t, 50 + t));
	pgws_assembler_free(&a);
}

/* Without files memory_limit is the end; with them file_limit is. The texts name the limit. */
static void test_the_end(void **state)
{
	(void)state;
	static const struct {
		size_t memory;
		uint64_t files;
		const char *names;
	} cases[] = {{20000, 0, "memory_limit"}, {1000, 20000, "file_limit"}};
	for (size_t i = 0; i < 2; i++) {
		make(cases[i].memory, cases[i].files, false);
		feed(1, asm_stream_start(7, true));
		feed(0, asm_relation(7, 1, "c"));
		int err = 0;
		for (unsigned n = 0; err == 0 && n < 1000; n++)
			err = asm_feed(a, &out, row(7, 1, n), 1);
		assert_int_equal(err, PGWS_ELIMIT);
		assert_non_null(strstr(pgws_assembler_error(a), cases[i].names));
		assert_non_null(strstr(pgws_assembler_error(a), "raise"));
		assert_true(counts().memory_bytes <= cases[i].memory);
		assert_true(counts().file_bytes <= cases[i].files);
		feed_error(PGWS_ELIMIT, 1, asm_start('E', 0)); /* until reset */
		pgws_assembler_reset(a);
		assert_int_equal(counts().memory_bytes, 0);
		assert_int_equal(counts().file_bytes, 0);
		feed(1, asm_begin(8, 100));
		pgws_assembler_free(&a);
	}
}

/* So many sub-transactions that their list alone is too much. */
static void test_too_many_subs(void **state)
{
	(void)state;
	make(1000, 1 << 30, false);
	feed(1, asm_stream_start(7, true));
	int err = 0;
	uint32_t n = 0;
	for (; err == 0 && n < 200000; n++)
		err = asm_feed(a, &out, asm_message(8 + n, true, ""), 1);
	assert_int_equal(err, PGWS_ELIMIT);
	assert_true(n > 20000);
	assert_non_null(strstr(pgws_assembler_error(a), "sub-transactions"));
	pgws_assembler_reset(a);
	/* Nor in several transactions together. */
	size_t most = 0;
	err = 0;
	for (uint32_t top = 1; err == 0 && top < 10; top++) {
		feed(1, asm_stream_start(top, true));
		for (n = 0; err == 0 && n < 16384; n++) {
			err = asm_feed(a, &out, asm_message(10 + n, true, ""), 1);
			most = counts().memory_bytes > most ? counts().memory_bytes : most;
		}
		if (err == 0)
			feed(1, asm_start('E', 0));
	}
	assert_int_equal(err, PGWS_ELIMIT);
	assert_true(most > 500000 && most < (1 << 20) + 100000);
	pgws_assembler_reset(a);
	assert_int_equal(counts().memory_bytes, 0);
}

/* One message larger than the limit, between small ones. */
static void test_large_message(void **state)
{
	(void)state;
	make(100000, 64 << 20, false);
	size_t len = 5 << 20;
	struct asm_msg small = asm_insert(7, 1, "small");
	uint8_t *large = malloc(len);
	assert_non_null(large);
	memcpy(large, small.bytes, 13);
	for (int i = 0; i < 4; i++)
		large[13 + i] = (uint8_t)((len - 17) >> (24 - 8 * i));
	for (size_t i = 17; i < len; i++)
		large[i] = (uint8_t)(i * 7);
	large[12] = 't';
	feed(1, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	for (int i = 0; i < 3; i++) {
		feed(1, small);
		assert_int_equal(asm_feed_bytes(a, &out, large, len, 2), 0);
		assert_true(counts().memory_bytes <= 100000);
	}
	feed(1, small);
	feed(1, asm_start('E', 0));
	feed(1, asm_stream_commit(7, 50));
	assert_int_equal(out.n, 2 + 7 + 1);
	for (size_t i = 3; i <= 7; i += 2) {
		assert_int_equal(out.list[i].len, len - 4);
		assert_memory_equal(out.list[i].bytes + 5, large + 9, len - 9);
		assert_int_equal(out.list[i + 1].len, small.len - 4);
	}
	free(large);
	assert_int_equal(counts().memory_bytes, 0);
}

/* A file system that is full, by the process's own limit. */
static void test_full_disk(void **state)
{
	(void)state;
	struct rlimit before;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	struct rlimit small = {.rlim_cur = 30000, .rlim_max = before.rlim_max};
	void (*old)(int) = signal(SIGXFSZ, SIG_IGN);
	make(1000, 1 << 30, false);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	feed(1, asm_stream_start(7, true));
	int err = 0;
	for (unsigned i = 0; err == 0 && i < 1000; i++)
		err = asm_feed(a, &out, row(7, 1, i), 1);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
	signal(SIGXFSZ, old);
	assert_int_equal(err, PGWS_EIO);
	assert_non_null(strstr(pgws_assembler_error(a), strerror(EFBIG)));
	pgws_assembler_reset(a);
	assert_int_equal(counts().file_bytes, 0);
	assert_int_equal(counts().memory_bytes, 0);
	feed(1, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	for (unsigned i = 0; i < 100; i++)
		feed(1, row(7, 1, i));
	feed(1, asm_start('E', 0));
	feed(1, asm_stream_commit(7, 50));
	assert_int_equal(out.n, 103);
}

/* Spills, truncates and gives out; the error of the first step that fails, or 0. */
static int spill_script(void)
{
	int err = asm_feed(a, &out, asm_stream_start(7, true), 1);
	if (err == 0)
		err = asm_feed(a, &out, asm_relation(7, 1, "c"), 0);
	for (unsigned i = 0; err == 0 && i < 6; i++)
		err = asm_feed(a, &out, row(i < 3 ? 7 : 8, 1, i * 5), 1);
	if (err == 0)
		err = asm_feed(a, &out, asm_start('E', 0), 1);
	if (err == 0)
		err = asm_feed(a, &out, asm_stream_abort(7, 8, false), 1);
	if (err == 0)
		err = asm_feed(a, &out, asm_stream_commit(7, 60), 1);
	return err;
}

/* Every call in turn fails; after a reset everything comes out. */
static void test_every_call_fails(void **state)
{
	(void)state;
	static const int errors[] = {ENOSPC, EIO, EMFILE};
	long n = 0;
	for (int err = 1; err != 0; n++) {
		make(1000, 1 << 20, false);
		stop_errno = errors[n % 3];
		calls = 0;
		stop_at = n;
		err = spill_script();
		bool reached = calls > n;
		stop_at = -1;
		/* A file system without O_TMPFILE, as it seems, gets a named one: no error. */
		if (n > 0)
			assert_int_equal(err, reached ? PGWS_EIO : 0);
		else
			err = 1;
		if (reached && n > 0) {
			const char *text = pgws_assembler_error(a);
			if (strstr(text, strerror(stop_errno)) == NULL)
				fail_msg("%s", text);
		}
		pgws_assembler_reset(a);
		assert_int_equal(counts().memory_bytes, 0);
		assert_int_equal(counts().file_bytes, 0);
		assert_int_equal(n_files(), 0);
		asm_out_clear(&out);
		assert_int_equal(spill_script(), 0);
		assert_int_equal(out.n, 2 + 3 + 1);
		asm_out_clear(&out);
		pgws_assembler_free(&a);
	}
	assert_true(n > 8);
}

/* ---- prepared transactions ---- */

static const char *summary(void)
{
	static char text[4096];
	size_t at = 0;
	text[0] = 0;
	for (size_t i = 0; i < out.n; i++) {
		const struct asm_given *g = &out.list[i];
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%c%s", i > 0 ? " " : "",
			g->bytes[0], g->change.commit_lsn == 0 ? "!" : "");
		if (g->bytes[0] == 'I')
			at += (size_t)snprintf(text + at, sizeof(text) - at, ":%.*s",
				(int)(g->len - 13), (const char *)g->bytes + 13);
	}
	return text;
}

#define expect_out(text)                                                                           \
	do {                                                                                       \
		assert_string_equal(summary(), text);                                              \
		asm_out_clear(&out);                                                               \
	} while (0)

/* b R I P: a transaction of one row. */
static int prepare(uint32_t xid, uint64_t lsn, const char *gid, const char *value)
{
	int err = asm_feed(a, &out, asm_prepare('b', xid, lsn, gid), lsn - 5);
	if (err == 0)
		err = asm_feed(a, &out, asm_relation(0, 1, "c"), 0);
	if (err == 0)
		err = asm_feed(a, &out, asm_insert(0, 1, value), lsn - 1);
	if (err == 0)
		err = asm_feed(a, &out, asm_prepare('P', xid, lsn, gid), lsn + 48);
	return err;
}

static void test_prepared(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	assert_int_equal(prepare(7, 100, "one", "a"), 0);
	expect_out("R!");
	assert_int_equal(counts().prepared, 1);
	assert_true(counts().file_bytes > 64);
	assert_int_equal(n_files(), 1);
	/* An ordinary one meanwhile: its relation was said between b and P. */
	feed(200, asm_begin(8, 250));
	feed(201, asm_insert(0, 1, "o"));
	feed(298, asm_commit(250));
	expect_out("B I:o C");
	feed(348, asm_prepare('K', 7, 300, "one"));
	struct asm_msg b = asm_begin(7, 300), c = asm_commit(300);
	assert_int_equal(out.n, 4);
	assert_memory_equal(out.list[0].bytes, b.bytes, b.len);
	assert_memory_equal(out.list[3].bytes, c.bytes, c.len);
	for (size_t i = 0; i < 4; i++) {
		assert_string_equal(out.list[i].gid, "one");
		assert_int_equal(out.list[i].change.commit_lsn, 300);
		assert_int_equal(out.list[i].change.end_lsn, 348);
		assert_int_equal(out.list[i].change.xid, 7);
		assert_int_equal(out.list[i].change.ordinal, i == 2);
	}
	assert_int_equal(out.list[0].change.lsn, 95);
	assert_int_equal(out.list[2].change.lsn, 99);
	expect_out("B R I:a C");
	assert_int_equal(counts().prepared, 0);
	/* Until it is confirmed it may be asked for again. */
	assert_int_equal(n_files(), 1);
	assert_int_equal(pgws_assembler_confirmed(a, 347), 0);
	assert_int_equal(n_files(), 1);
	pgws_assembler_reset(a);
	feed(348, asm_prepare('K', 7, 300, "one"));
	expect_out("B R I:a C");
	assert_int_equal(pgws_assembler_confirmed(a, 348), 0);
	assert_int_equal(n_files(), 0);
	assert_int_equal(counts().file_bytes, 0);
	assert_int_equal(counts().memory_bytes, 0);
}

/* Another session, another life. What was known of relations is kept with it. */
static void test_prepared_over_lives(void **state)
{
	(void)state;
	make(1000, 1 << 30, true);
	feed(10, asm_begin(5, 20));
	feed(0, asm_relation(0, 1, "c"));
	feed(11, asm_insert(0, 1, "x"));
	feed(68, asm_commit(20));
	/* The server has said relation 1 and does not say it again. */
	feed(90, asm_prepare('b', 7, 100, "one"));
	feed(91, asm_origin(0, "up"));
	for (unsigned i = 0; i < 20; i++)
		feed(92, row(0, 1, i));
	feed(93, asm_truncate(0, 1, 0));
	feed(148, asm_prepare('P', 7, 100, "one"));
	asm_out_clear(&out);
	relive();
	assert_int_equal(counts().prepared, 1);
	feed(348, asm_prepare('K', 7, 300, "one"));
	assert_int_equal(out.n, 1 + 2 + 20 + 1 + 1);
	assert_int_equal(out.list[1].bytes[0], 'O');
	assert_int_equal(out.list[2].bytes[0], 'R');
	for (unsigned i = 0; i < 20; i++) {
		struct asm_msg m = row(0, 1, i);
		assert_int_equal(out.list[3 + i].len, m.len);
		assert_memory_equal(out.list[3 + i].bytes, m.bytes, m.len);
		assert_string_equal(out.list[3 + i].column, "c");
		assert_int_equal(out.list[3 + i].change.ordinal, i + 1);
	}
	asm_out_clear(&out);
	/* Ended in the earlier life, confirmed in this one. */
	relive();
	assert_int_equal(counts().prepared, 0);
	assert_int_equal(n_files(), 1);
	assert_int_equal(pgws_assembler_confirmed(a, 1000), 0);
	assert_int_equal(n_files(), 0);
}

static void test_stream_prepared(void **state)
{
	(void)state;
	make(1000, 1 << 30, true);
	feed(90, asm_stream_start(7, true));
	feed(0, asm_relation(7, 1, "c"));
	feed(91, asm_insert(7, 1, "a"));
	for (unsigned i = 0; i < 20; i++)
		feed(92, row(8, 1, i));
	feed(92, asm_start('E', 0));
	feed(0, asm_stream_abort(7, 8, false));
	feed(93, asm_stream_start(7, false));
	feed(0, asm_relation(9, 1, "c"));
	feed(94, asm_insert(9, 1, "b"));
	feed(94, asm_start('E', 0));
	feed(148, asm_prepare('p', 7, 100, "two"));
	expect_out("");
	assert_int_equal(counts().open, 0);
	assert_null(pgws_catalog_find(pgws_assembler_catalog(a), 1));
	relive();
	feed(348, asm_prepare('K', 7, 300, "two"));
	assert_int_equal(out.list[4].change.subxid, 9);
	assert_int_equal(out.list[0].change.lsn, 90);
	expect_out("B R I:a R I:b C");
	feed_error(PGWS_EPROTO, 1, asm_prepare('p', 11, 100, "three"));
}

static void test_rollback_prepared(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	assert_int_equal(prepare(7, 100, "one", "a"), 0);
	feed(0, asm_rollback_prepared(7, 100, 300, "one"));
	feed(0, asm_rollback_prepared(7, 100, 300, "one"));
	feed(0, asm_rollback_prepared(9, 100, 300, "never seen"));
	expect_out("R!");
	assert_int_equal(counts().prepared, 0);
	relive();
	assert_int_equal(counts().prepared, 0);
	assert_int_equal(pgws_assembler_confirmed(a, 347), 0);
	assert_int_equal(n_files(), 1);
	assert_int_equal(pgws_assembler_confirmed(a, 348), 0);
	assert_int_equal(n_files(), 0);
}

/* The same gid again: after its end, and when the server repeats the PREPARE. */
static void test_same_gid(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	assert_int_equal(prepare(7, 100, "g", "first"), 0);
	assert_int_equal(prepare(7, 100, "g", "again"), 0);
	assert_int_equal(n_files(), 1);
	assert_int_equal(counts().prepared, 1);
	asm_out_clear(&out);
	feed(348, asm_prepare('K', 7, 300, "g"));
	expect_out("B R I:again C");
	assert_int_equal(prepare(8, 400, "g", "second"), 0);
	assert_int_equal(n_files(), 2);
	asm_out_clear(&out);
	/* A new session that begins before the first COMMIT PREPARED. */
	relive();
	feed(348, asm_prepare('K', 7, 300, "g"));
	expect_out("B R I:again C");
	assert_int_equal(prepare(8, 400, "g", "second"), 0);
	asm_out_clear(&out);
	feed(548, asm_prepare('K', 8, 500, "g"));
	expect_out("B R I:second C");
	assert_int_equal(pgws_assembler_confirmed(a, 348), 0);
	assert_int_equal(n_files(), 1);
	assert_int_equal(pgws_assembler_confirmed(a, 548), 0);
	assert_int_equal(n_files(), 0);
	/* The xids have wrapped round: the same gid and xid, and each has its own COMMIT PREPARED.
	 */
	assert_int_equal(prepare(9, 552, "g", "early"), 0);
	feed(602, asm_prepare('K', 9, 554 + 48, "g"));
	assert_int_equal(prepare(9, 620, "g", "late"), 0);
	asm_out_clear(&out);
	feed(750, asm_prepare('K', 9, 700, "g"));
	expect_out("B R I:late C");
	feed(602, asm_prepare('K', 9, 602, "g"));
	expect_out("B R I:early C");
	assert_int_equal(pgws_assembler_confirmed(a, 748), 0);
	assert_int_equal(n_files(), 0);
	/* One whose end was not seen here: the next of its gid ends it. */
	assert_int_equal(prepare(9, 800, "g", "third"), 0);
	assert_int_equal(prepare(10, 900, "g", "fourth"), 0);
	assert_int_equal(counts().prepared, 1);
	assert_int_equal(pgws_assembler_confirmed(a, 900), 0);
	assert_int_equal(n_files(), 1);
}

/* The server forgets how far it was confirmed (up to PostgreSQL 16 in any restart) and says again
 * what ended: left out, as its file was removed because the caller has it. */
static void test_the_server_goes_back(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	assert_int_equal(prepare(7, 100, "one", "a"), 0);
	assert_int_equal(prepare(8, 200, "two", "b"), 0);
	feed(348, asm_prepare('K', 7, 300, "one"));
	feed(448, asm_prepare('K', 8, 400, "two"));
	assert_int_equal(pgws_assembler_confirmed(a, 348), 0);
	assert_int_equal(n_files(), 1);
	asm_out_clear(&out);
	for (int life = 0; life < 2; life++) {
		feed(348, asm_prepare('K', 7, 300, "one"));
		expect_out("");
		assert_false(pgws_assembler_in_transaction(a));
		feed(448, asm_prepare('K', 8, 400, "two"));
		expect_out("B R I:b C");
		relive();
	}
	/* From its PREPARE on: at least once, as an ordinary one. */
	assert_int_equal(prepare(7, 100, "one", "a"), 0);
	asm_out_clear(&out);
	feed(348, asm_prepare('K', 7, 300, "one"));
	expect_out("B R I:a C");
	assert_int_equal(pgws_assembler_confirmed(a, 448), 0);
	assert_int_equal(n_files(), 0);
	relive();
	feed(348, asm_prepare('K', 7, 300, "one"));
	feed(448, asm_prepare('K', 8, 400, "two"));
	expect_out("");
	/* What ends behind it is as missing as ever. */
	feed_error(PGWS_EPROTO, 1, asm_prepare('K', 9, 401, "three"));
}

static void test_unknown_gid(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	feed_error(PGWS_EPROTO, 1, asm_prepare('K', 7, 300, "nobody"));
	assert_non_null(strstr(pgws_assembler_error(a), "nobody"));
	assert_non_null(strstr(pgws_assembler_error(a), "two_phase_at"));
	pgws_assembler_reset(a);
	feed(1, asm_prepare('b', 7, 100, "g"));
	feed_error(PGWS_EPROTO, 1, asm_prepare('P', 8, 100, "g"));
	pgws_assembler_reset(a);
	feed(1, asm_prepare('b', 7, 100, "g"));
	feed_error(PGWS_EPROTO, 1, asm_begin(9, 100));
	pgws_assembler_reset(a);
	feed(1, asm_prepare('b', 7, 100, "g"));
	feed_error(PGWS_EUNKNOWN, 1, asm_insert(0, 1, "x"));
	assert_int_equal(n_files(), 0);
}

/* Without keep_prepared: refused, with the remedy. */
static void test_not_kept(void **state)
{
	(void)state;
	static const char types[] = "bpK";
	for (const char *type = types; *type != 0; type++) {
		make(1 << 20, 1 << 30, false);
		feed_error(PGWS_ESTATE, 1, asm_prepare(*type, 7, 100, "g"));
		assert_non_null(strstr(pgws_assembler_error(a), "keep_prepared"));
		feed_error(PGWS_ESTATE, 1, asm_begin(7, 100));
		pgws_assembler_free(&a);
	}
}

static void expect_refused(const char *names)
{
	struct pgws_assembler_options o = options_of(1 << 20, 1 << 30, true);
	struct pgws_assembler *x = NULL;
	assert_int_equal(pgws_assembler_new(&o, &x), PGWS_EIO);
	assert_null(x);
	if (strstr(pgws_assembler_error(NULL), names) == NULL)
		fail_msg("%s does not name %s", pgws_assembler_error(NULL), names);
}

static void change_byte(const char *path, off_t at)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;
	assert_int_equal(__real_pread(fd, &byte, 1, at), 1);
	byte ^= 0x40;
	assert_int_equal(__real_pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* A file that was cut, changed in any byte, or is not ours: named, never skipped. */
static void test_damaged_files(void **state)
{
	(void)state;
	make(1 << 20, 1 << 30, true);
	expect_refused(dir); /* locked: two at once */
	assert_int_equal(prepare(7, 100, "gid", "value"), 0);
	pgws_assembler_free(&a);
	char path[400];
	snprintf(path, sizeof(path), "%s", only_file());
	const char *name = strrchr(path, '/') + 1;
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	for (off_t at = 0; at < st.st_size; at++) {
		change_byte(path, at);
		expect_refused(name);
		change_byte(path, at);
	}
	uint8_t *bytes = malloc((size_t)st.st_size + 1);
	assert_non_null(bytes);
	int fd = open(path, O_RDWR);
	assert_int_equal(__real_pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
	for (off_t len = 0; len < st.st_size; len++) {
		assert_int_equal(__real_ftruncate(fd, len), 0);
		expect_refused(name);
		assert_int_equal(__real_pwrite(fd, bytes, (size_t)st.st_size, 0), st.st_size);
	}
	assert_int_equal(__real_pwrite(fd, "x", 1, st.st_size), 1);
	expect_refused(name);
	assert_int_equal(__real_ftruncate(fd, st.st_size), 0);
	close(fd);
	free(bytes);

	char other[440];
	snprintf(other, sizeof(other), "%s/notes.txt", dir);
	close(open(other, O_CREAT | O_WRONLY, 0600));
	expect_refused("notes.txt");
	unlink(other);
	snprintf(other, sizeof(other), "%s/pgws-prepared-00000000000000AA-00000007", dir);
	assert_int_equal(rename(path, other), 0);
	expect_refused("pgws-prepared-00000000000000AA-00000007");
	assert_int_equal(rename(other, path), 0);
	snprintf(other, sizeof(other), "%s-0000000000000999", path);
	assert_int_equal(link(path, other), 0);
	expect_refused("pgws-prepared-");
	unlink(other);
	/* What dying in the middle of writing leaves is ours, and goes. */
	snprintf(other, sizeof(other), "%s/pgws-new-0000000000000094-00000007", dir);
	close(open(other, O_CREAT | O_WRONLY, 0600));
	make(1 << 20, 1 << 30, true);
	assert_int_equal(n_files(), 1);
	asm_out_clear(&out);
	feed(348, asm_prepare('K', 7, 300, "gid"));
	expect_out("B R I:value C");
}

static void test_prepared_limit(void **state)
{
	(void)state;
	make(1 << 20, 3000, true);
	assert_int_equal(prepare(7, 100, "one", "a"), 0);
	feed(1, asm_prepare('b', 8, 400, "two"));
	for (unsigned i = 0; i < 6; i++)
		feed(1, row(0, 1, i * 5));
	feed_error(PGWS_ELIMIT, 1, asm_prepare('P', 8, 400, "two"));
	assert_non_null(strstr(pgws_assembler_error(a), "file_limit"));
	pgws_assembler_reset(a);
	assert_int_equal(counts().prepared, 1);
	assert_int_equal(n_files(), 1);
}

/*
 * The process dies, or a call fails, at every step in turn. shared says how far the server was told
 * that we are; from there on it sends again.
 */
enum { NOTHING, PREPARE_CONFIRMED, COMMIT_CONFIRMED };

static int two_phase_script(int from, volatile int *progress)
{
	int err = 0;
	if (from < PREPARE_CONFIRMED) {
		err = prepare(7, 100, "gid", "value");
		if (err != 0)
			return err;
		*progress = PREPARE_CONFIRMED;
		asm_out_clear(&out);
	}
	if (from < COMMIT_CONFIRMED) {
		err = asm_feed(a, &out, asm_prepare('K', 7, 300, "gid"), 348);
		if (err != 0)
			return err;
		/* Given out whole: the caller has it, whatever happens now. */
		*progress = COMMIT_CONFIRMED;
	}
	return pgws_assembler_confirmed(a, 348);
}

static void resume(int progress)
{
	volatile int ignored;
	asm_out_clear(&out);
	assert_int_equal(two_phase_script(progress, &ignored), 0);
	assert_string_equal(summary(), progress < COMMIT_CONFIRMED ? "B R I:value C" : "");
	asm_out_clear(&out);
	assert_int_equal(n_files(), 0);
	assert_int_equal(counts().file_bytes, 0);
	assert_int_equal(counts().prepared, 0);
}

static void test_dying_anywhere(void **state)
{
	(void)state;
	volatile int *progress =
		mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(progress != MAP_FAILED);
	long n = 0;
	int status = 1;
	for (; status != 0; n++) {
		*progress = NOTHING;
		fflush(NULL);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			make(1000, 1 << 30, true);
			calls = 0;
			stop_errno = 0;
			stop_at = n;
			_exit(two_phase_script(NOTHING, progress) != 0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) &&
			    (WEXITSTATUS(status) == 42 || WEXITSTATUS(status) == 0));
		make(1000, 1 << 30, true);
		resume(*progress);
		pgws_assembler_free(&a);
	}
	assert_true(n > 8);
	munmap((void *)(uintptr_t)progress, sizeof(int));
}

static void test_failing_anywhere(void **state)
{
	(void)state;
	long n = 0;
	for (int err = 1; err != 0; n++) {
		volatile int progress = NOTHING;
		make(1000, 1 << 30, true);
		calls = 0;
		stop_errno = ENOSPC;
		stop_at = n;
		err = two_phase_script(NOTHING, &progress);
		assert_true(err == 0 || err == PGWS_EIO);
		if (err != 0)
			assert_non_null(strstr(pgws_assembler_error(a), strerror(ENOSPC)));
		stop_at = -1;
		pgws_assembler_reset(a);
		resume(progress);
		pgws_assembler_free(&a);
	}
	assert_true(n > 8);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		test(test_limits),
		test(test_files_have_no_name),
		test(test_the_largest_goes),
		test(test_spills_by_steps),
		test(test_the_end),
		test(test_too_many_subs),
		test(test_large_message),
		test(test_full_disk),
		test(test_every_call_fails),
		test(test_prepared),
		test(test_prepared_over_lives),
		test(test_stream_prepared),
		test(test_rollback_prepared),
		test(test_same_gid),
		test(test_the_server_goes_back),
		test(test_unknown_gid),
		test(test_not_kept),
		test(test_damaged_files),
		test(test_prepared_limit),
		test(test_dying_anywhere),
		test(test_failing_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
