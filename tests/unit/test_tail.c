/* SPDX-License-Identifier: PostgreSQL */
/* pgctl wal tail without a server: changes as lines, and lines to an output that is slow. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/base/mem.h"
#include "pgctl/tail_out.h"
#include "pgctl/tail_show.h"

/* ---- Lines ----------------------------------------------------------------------------------- */

static struct pgws_relation_column columns[] = {
	{true, "id", 23, -1}, {false, "Na\"me", 25, -1}, {false, "doc", 3802, -1}};
static struct pgws_relation table = {.relid = 7,
	.nspname = "public",
	.relname = "t",
	.replident = 'd',
	.n_columns = 3,
	.columns = columns};

static struct tail_show show;
static struct buf out;
static uint8_t bytes[2][512];

static int start(void **state)
{
	(void)state;
	show = (struct tail_show){.filter = {.ops = TAIL_OPS_DEFAULT}, .types = typecache_new()};
	buf_init(&out, 0);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	typecache_free(&show.types);
	buf_free(&out);
	return 0;
}

/* A column's value: NULL null, "?" unchanged. */
static struct pgws_tuple tuple(int buffer, const char *id, const char *name, const char *doc)
{
	const char *const texts[] = {id, name, doc};
	struct pgws_column cols[3];
	struct pgws_tuple t;
	for (size_t i = 0; i < 3; i++) {
		const char *s = texts[i];
		cols[i] = (struct pgws_column){.kind = PGWS_NULL};
		if (s != NULL && strcmp(s, "?") == 0)
			cols[i].kind = PGWS_UNCHANGED;
		else if (s != NULL)
			cols[i] = (struct pgws_column){PGWS_TEXT, s, (uint32_t)strlen(s)};
	}
	int64_t len = pgws_encode_tuple(cols, 3, bytes[buffer], sizeof(bytes[0]), &t);
	assert_in_range(len, 1, sizeof(bytes[0]));
	return t;
}

static struct pgws_change change(enum pgws_type type)
{
	return (struct pgws_change){.msg = {.type = type},
		.lsn = 0x10,
		.commit_lsn = 0x20,
		.end_lsn = 0x30,
		.commit_time = 1500000,
		.xid = 5,
		.subxid = 6,
		.ordinal = 1,
		.relation = &table};
}

static unsigned show_one(const struct pgws_change *c)
{
	buf_reset(&out);
	return tail_show_change(&show, c, &out);
}

#define HEAD                                                                                       \
	"{\"lsn\":\"0/10\",\"commit_lsn\":\"0/20\",\"end_lsn\":\"0/30\",\"xid\":5,\"subxid\":6,"   \
	"\"ordinal\":1,\"commit_time\":\"2000-01-01T00:00:01.500000+00:00\","
#define OF_TABLE "\"schema\":\"public\",\"table\":\"t\","

static void test_json(void **state)
{
	(void)state;
	show.json = true;
	struct pgws_change c = change(PGWS_INSERT);
	c.msg.u.change.new_row = tuple(0, "1", "a\"\n\x1b", "{\"k\": 1}");
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out), HEAD
		"\"op\":\"insert\"," OF_TABLE "\"new\":{\"id\":1,\"Na\\\"me\":\"a\\\"\\n\\u001b\","
		"\"doc\":{\"k\": 1}}}\n");
	c = change(PGWS_UPDATE);
	c.msg.u.change.old_kind = PGWS_OLD_KEY;
	c.msg.u.change.old_row = tuple(0, "1", NULL, NULL);
	c.msg.u.change.new_row = tuple(1, "2", NULL, "?");
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out),
		HEAD "\"op\":\"update\"," OF_TABLE "\"new\":{\"id\":2,\"Na\\\"me\":null},"
		     "\"key\":{\"id\":1},\"unchanged\":[\"doc\"]}\n");
	c.msg.u.change.old_kind = PGWS_OLD_FULL;
	c.msg.u.change.old_row = tuple(0, "1", "x", "[2]");
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out), HEAD
		"\"op\":\"update\"," OF_TABLE "\"new\":{\"id\":2,\"Na\\\"me\":null,\"doc\":[2]},"
		"\"old\":{\"id\":1,\"Na\\\"me\":\"x\",\"doc\":[2]},\"unchanged\":[\"doc\"]}\n");
	c = change(PGWS_MESSAGE);
	c.relation = NULL;
	c.commit_lsn = c.end_lsn = 0;
	c.msg.u.message.prefix = "p";
	c.msg.u.message.data = (const uint8_t *)"\0\xff";
	c.msg.u.message.len = 2;
	assert_int_equal(show_one(&c), 0); /* not asked for */
	show.filter.ops |= TAIL_MESSAGE;
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out),
		"{\"lsn\":\"0/"
		"10\",\"commit_lsn\":null,\"end_lsn\":null,\"xid\":null,\"subxid\":null,"
		"\"ordinal\":null,\"commit_time\":null,\"op\":\"message\",\"transactional\":false,"
		"\"prefix\":\"p\",\"content_hex\":\"00ff\"}\n");
}

/* Whatever bytes a value has, a line of people's text is one line of harmless UTF-8. */
static void test_harmless(void **state)
{
	(void)state;
	struct pgws_change c = change(PGWS_INSERT);
	struct pgws_change begin = change(PGWS_BEGIN);
	srand(3);
	for (int i = 0; i < 5000; i++) {
		char text[40];
		size_t n = (size_t)(rand() % 39) + 1;
		for (size_t k = 0; k < n; k++)
			text[k] =
				(char)(rand() % 4 == 0 ? rand() % 255 + 1
						       : "\xe2\x80\xae\xc2\x9b\x1b'\\"[rand() % 8]);
		text[n] = '\0';
		c.msg.u.change.new_row = tuple(0, text, text, NULL);
		(void)show_one(&begin);
		assert_int_equal(show_one(&c), 1);
		const char *s = buf_cstr(&out);
		size_t lines = 0;
		json_t *utf8 = json_string(s);
		assert_non_null(utf8);
		json_decref(utf8);
		for (const char *at = s; *at != '\0'; at++) {
			lines += *at == '\n';
			assert_true(*at == '\n' || ((uint8_t)*at >= 0x20 && *at != 0x7f));
		}
		assert_int_equal(lines, 2); /* BEGIN and the change */
		assert_null(strstr(s, "\xe2\x80\xae"));
		assert_null(strstr(s, "\xc2\x9b"));
	}
}

static void test_people(void **state)
{
	(void)state;
	struct pgws_change c = change(PGWS_DELETE);
	c.msg.u.change.old_kind = PGWS_OLD_KEY;
	c.msg.u.change.old_row = tuple(0, "1", NULL, NULL);
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out), "BEGIN xid 5 at 0/20 2000-01-01T00:00:01.500000+00:00\n"
					    "  DELETE public.t key(id=1)\n");
	c = change(PGWS_UPDATE);
	c.msg.u.change.new_row = tuple(0, "x y", "it's\\", "?");
	assert_int_equal(show_one(&c), 1);
	assert_string_equal(buf_cstr(&out),
		"  UPDATE public.t id='x y' \"Na\"\"me\"='it''s\\\\' doc=(unchanged)\n");
	show.filter.ops = TAIL_DELETE;
	assert_int_equal(show_one(&c), 0);
	c = change(PGWS_COMMIT);
	assert_int_equal(show_one(&c), 0);
	assert_string_equal(buf_cstr(&out),
		"COMMIT xid 5 end 0/30 2000-01-01T00:00:01.500000+00:00 2 of 3 changes\n");
}

static void test_filter(void **state)
{
	(void)state;
	static const struct {
		const char *word;
		bool wanted;
	} rows[] = {{"t", true}, {"public.t", true}, {"s.t", false}, {"public", false},
		{"public.", false}, {"tt", false}, {"", false}, {"public.tt", false}};
	unsigned ops;
	assert_true(tail_wants_relation(&show.filter, &table));
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		show.filter.tables = &rows[i].word;
		show.filter.n_tables = 1;
		assert_int_equal(tail_wants_relation(&show.filter, &table), rows[i].wanted);
	}
	assert_int_equal(tail_ops_parse("insert,message", &ops), 0);
	assert_int_equal(ops, TAIL_INSERT | TAIL_MESSAGE);
	assert_int_equal(tail_ops_parse("", &ops), -EINVAL);
	assert_int_equal(tail_ops_parse("insert,", &ops), -EINVAL);
	assert_int_equal(tail_ops_parse("inserts", &ops), -EINVAL);
	assert_int_equal(tail_ops_parse("insert, delete", &ops), -EINVAL);
}

/* ---- Output ---------------------------------------------------------------------------------- */

static size_t drain(int fd, char *text, size_t size)
{
	size_t n = 0;
	ssize_t got;
	while (n < size && (got = read(fd, text + n, size - n)) > 0)
		n += (size_t)got;
	return n;
}

/* Through a pipe or a socket that takes little: never waits, and a position counts as printed only
 * when all before it is written. */
static void slow_output(int in, int reader)
{
	static char text[1 << 20];
	struct tail_out o;
	size_t total = 0, n_lines = 0, read_bytes = 0;
	uint64_t ends[400];
	tail_out_init(&o, in);
	assert_int_equal(fcntl(reader, F_SETFL, O_NONBLOCK), 0);
	while (n_lines < ARRAY_LEN(ends)) {
		for (int i = 0; i < 1500; i++)
			buf_put_u8(&o.lines, 'x');
		buf_put_u8(&o.lines, '\n');
		ends[n_lines++] = total += 1501;
		tail_out_mark(&o, n_lines); /* the position of a line is its number */
		assert_int_equal(tail_out_write(&o), 0);
		uint64_t printed = tail_out_printed(&o);
		assert_true(printed == 0 || ends[printed - 1] <= total - tail_out_pending(&o));
	}
	assert_true(tail_out_pending(&o) > 0); /* it was slow indeed */
	while (read_bytes < total) {
		read_bytes += drain(reader, text, 3000);
		assert_int_equal(tail_out_write(&o), 0);
		uint64_t printed = tail_out_printed(&o);
		assert_true(printed == 0 || ends[printed - 1] <= total - tail_out_pending(&o));
	}
	assert_int_equal(tail_out_pending(&o), 0);
	assert_int_equal(tail_out_printed(&o), n_lines);
	/* Half a line is out: its rest stays, what comes after it goes. */
	for (int i = 0; i < 1000000; i++)
		buf_put_u8(&o.lines, 'y');
	buf_put_text(&o.lines, "\nz\n");
	assert_int_equal(tail_out_write(&o), 0);
	size_t before = tail_out_pending(&o);
	tail_out_cut(&o);
	assert_int_equal(tail_out_pending(&o), before - 2);
	close(reader);
	assert_int_equal(tail_out_write(&o), -EPIPE);
	tail_out_free(&o);
}

static void test_slow_pipe(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(pipe(fds), 0);
	slow_output(fds[1], fds[0]);
	assert_int_equal(fcntl(fds[1], F_GETFL) & O_NONBLOCK, 0); /* it is shared with others */
	close(fds[1]);
}

static void test_slow_socket(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	slow_output(fds[1], fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_json, start, stop),
		cmocka_unit_test_setup_teardown(test_people, start, stop),
		cmocka_unit_test_setup_teardown(test_harmless, start, stop),
		cmocka_unit_test_setup_teardown(test_filter, start, stop),
		cmocka_unit_test(test_slow_pipe),
		cmocka_unit_test(test_slow_socket),
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
