/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler on arbitrary sequences of messages, twice: once with memory enough, once with next
 * to none, so that everything goes through files. Both must give out the same and fail alike.
 *
 * Input: a byte for the second one's memory limit, then steps: n < 0xf0 is a message of the n bytes
 * behind it; 0xf0 n feeds the last message n times more; 0xf1 is a new session; 0xf2 a new life
 * (all is freed, what is kept by gid is loaded again); 0xf3 n confirms up to LSN n << 8.
 *
 * Invariants beyond that: Begin and Commit alternate and in_transaction says so, ordinals have no
 * gap, every row has its relation, memory and files are back at nothing after a reset but for what
 * is kept by gid.
 */
#include "config.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libpgwalstream/pgwalstream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(what)                                                                              \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);                 \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

struct side {
	char dir[64];
	struct pgws_assembler_options options;
	struct pgws_assembler *a;
	bool inside;
	uint32_t ordinal;
};

static struct side sides[2];

static void remove_sides(void)
{
	for (int i = 0; i < 2; i++)
		(void)rmdir(sides[i].dir);
}

/* In memory where the system has that. */
static void make_folders(void)
{
	for (int i = 0; i < 2; i++) {
		const char *root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
		snprintf(sides[i].dir, sizeof(sides[i].dir), "%s/fuzz-assemble.XXXXXX", root);
		REQUIRE(mkdtemp(sides[i].dir) != NULL);
	}
	atexit(remove_sides);
}

static void empty_folder(const char *path)
{
	DIR *d = opendir(path);
	REQUIRE(d != NULL);
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] != '.')
			REQUIRE(unlinkat(dirfd(d), e->d_name, 0) == 0);
	}
	closedir(d);
}

static void start(struct side *s)
{
	int err = pgws_assembler_new(&s->options, &s->a);
	if (err != 0)
		fprintf(stderr, "%s\n", pgws_assembler_error(NULL));
	REQUIRE(err == 0);
}

static void check_counts(const struct side *s)
{
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(s->a, &c);
	REQUIRE(c.open == 0);
	REQUIRE(c.memory_bytes <= c.prepared * 4096 + (1 << 20));
	if (c.prepared == 0 && c.file_bytes == 0)
		REQUIRE(c.memory_bytes == 0);
}

static void reset(struct side *s)
{
	pgws_assembler_reset(s->a);
	s->inside = false;
	check_counts(s);
}

static void check(struct side *s, const struct pgws_change *c)
{
	struct pgws_msg again;
	REQUIRE(pgws_decode(c->data, c->len, false, &again) == 0);
	REQUIRE(again.type == c->msg.type && c->msg.xid == 0 && c->data[0] == c->msg.type);
	REQUIRE(pgws_assembler_in_transaction(s->a) ==
		(c->msg.type == PGWS_BEGIN || (s->inside && c->msg.type != PGWS_COMMIT)));
	if (c->msg.type == PGWS_BEGIN) {
		REQUIRE(!s->inside);
		s->inside = true;
		s->ordinal = 0;
	} else if (c->msg.type == PGWS_COMMIT) {
		REQUIRE(s->inside && c->ordinal == 0);
		s->inside = false;
	} else if (c->ordinal != 0) {
		REQUIRE(s->inside && c->ordinal == ++s->ordinal);
	}
	bool row = c->msg.type == PGWS_INSERT || c->msg.type == PGWS_UPDATE ||
		   c->msg.type == PGWS_DELETE;
	REQUIRE(!row || (c->relation != NULL && c->relation->relid == c->msg.u.change.relid));
}

static void compare(const struct pgws_change *x, const struct pgws_change *y)
{
	REQUIRE(x->len == y->len && memcmp(x->data, y->data, x->len) == 0);
	REQUIRE(x->lsn == y->lsn && x->commit_lsn == y->commit_lsn && x->end_lsn == y->end_lsn);
	REQUIRE(x->commit_time == y->commit_time && x->xid == y->xid && x->subxid == y->subxid);
	REQUIRE(x->ordinal == y->ordinal && (x->relation == NULL) == (y->relation == NULL));
	REQUIRE((x->gid == NULL) == (y->gid == NULL));
	REQUIRE(x->gid == NULL || strcmp(x->gid, y->gid) == 0);
}

/* Both get it; what the one gives out the other must give out. */
static void feed(const uint8_t *data, size_t len, uint64_t lsn)
{
	uint8_t *copy = malloc(len == 0 ? 1 : len);
	REQUIRE(copy != NULL);
	memcpy(copy, data, len);
	struct pgws_event ev = {
		.kind = PGWS_EVENT_DATA, .start_lsn = lsn, .data = copy, .len = len};
	int err[2];
	for (int i = 0; i < 2; i++)
		err[i] = pgws_assembler_put(sides[i].a, &ev);
	while (err[0] == 0 && err[1] == 0) {
		struct pgws_change c[2];
		for (int i = 0; i < 2; i++)
			err[i] = pgws_assembler_next(sides[i].a, &c[i]);
		if (err[0] != 0 || err[1] != 0)
			break;
		for (int i = 0; i < 2; i++)
			check(&sides[i], &c[i]);
		compare(&c[0], &c[1]);
	}
	free(copy);
	REQUIRE(err[0] == err[1]);
	if (err[0] == PGWS_EAGAIN)
		return;
	for (int i = 0; i < 2; i++) {
		REQUIRE(err[i] != PGWS_EIO && err[i] != PGWS_ELIMIT && err[i] != PGWS_ESTATE);
		REQUIRE(pgws_assembler_error(sides[i].a)[0] != 0);
		reset(&sides[i]);
	}
}

static void run(const uint8_t *data, size_t size)
{
	const uint8_t *last = NULL;
	size_t last_len = 0;
	uint64_t lsn = 1;
	for (size_t at = 0; at < size;) {
		uint8_t step = data[at++];
		uint8_t n = at < size && (step == 0xf0 || step == 0xf3) ? data[at++] : 0;
		if (step < 0xf0) {
			last = data + at;
			last_len = step < size - at ? step : size - at;
			at += last_len;
			feed(last, last_len, lsn++);
		}
		for (; step == 0xf0 && last != NULL && n > 0; n--)
			feed(last, last_len, lsn++);
		for (int i = 0; i < 2; i++) {
			if (step == 0xf1)
				reset(&sides[i]);
			if (step == 0xf2) {
				pgws_assembler_free(&sides[i].a);
				sides[i].inside = false;
				start(&sides[i]);
			}
			if (step == 0xf3)
				REQUIRE(pgws_assembler_confirmed(sides[i].a, (uint64_t)n << 8) ==
					0);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	if (sides[0].dir[0] == 0)
		make_folders();
	for (int i = 0; i < 2; i++) {
		sides[i].options = (struct pgws_assembler_options)PGWS_ASSEMBLER_OPTIONS_INIT;
		sides[i].options.dir = sides[i].dir;
		sides[i].options.file_limit = UINT64_C(1) << 30;
		sides[i].options.keep_prepared = true;
		sides[i].inside = false;
		start(&sides[i]);
	}
	pgws_assembler_free(&sides[1].a);
	/* From nothing at all to 16 kB. */
	sides[1].options.memory_limit = (size_t)data[0] * data[0] / 4;
	start(&sides[1]);
	run(data + 1, size - 1);
	for (int i = 0; i < 2; i++) {
		reset(&sides[i]);
		pgws_assembler_free(&sides[i].a);
		empty_folder(sides[i].dir);
	}
	return 0;
}
