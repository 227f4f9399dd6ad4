/* SPDX-License-Identifier: PostgreSQL */
/* schema: install, upgrade, all or nothing, a newer database, broken folders. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/schema.h"
#include "tests/unit/pg_testing.h"

struct fixture {
	char dir[64];
	PGconn *pg;
	struct buf why;
};

static void write_file(const struct fixture *f, const char *name, const char *text)
{
	char *path = xasprintf("%s/%s", f->dir, name);
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	fclose(file);
	free(path);
}

static void remove_file(const struct fixture *f, const char *name)
{
	char *path = xasprintf("%s/%s", f->dir, name);

	assert_int_equal(unlink(path), 0);
	free(path);
}

static void on_notice(void *arg, const char *message)
{
	(void)arg, (void)message;
}

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof *f);
	char *path;

	strcpy(f->dir, "/tmp/howdah-schema.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	path = xasprintf("%s/howdah", f->dir);
	assert_int_equal(mkdir(path, 0755), 0);
	free(path);
	path = xasprintf("%s/howdah_mqtt", f->dir);
	assert_int_equal(mkdir(path, 0755), 0);
	free(path);
	write_file(f, "howdah/0001-first.sql",
		"CREATE TABLE howdah.a (i int); -- one\nINSERT INTO howdah.a "
		"VALUES (1);\n");
	write_file(f, "howdah/README", "no SQL");
	write_file(f, "howdah_mqtt/0001-m.sql",
		"CREATE SCHEMA howdah_mqtt; CREATE TABLE howdah_mqtt.m AS SELECT * FROM howdah.a;");
	f->pg = PQconnectdb("");
	PQsetNoticeProcessor(f->pg, on_notice, NULL);
	pg_testing_on(f->pg, "DROP SCHEMA IF EXISTS howdah CASCADE");
	pg_testing_on(f->pg, "DROP SCHEMA IF EXISTS howdah_mqtt CASCADE");
	buf_init(&f->why, 4096);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char *command = xasprintf("rm -r %s", f->dir);

	assert_int_equal(system(command), 0);
	free(command);
	PQfinish(f->pg);
	buf_free(&f->why);
	free(f);
	return 0;
}

static void upgrade(struct fixture *f, int expected_err, size_t expected_applied)
{
	size_t applied = 99;
	int err;

	buf_reset(&f->why);
	err = schema_upgrade(f->pg, f->dir, &applied, &f->why);
	if (err != expected_err)
		fail_msg("%d, expected %d: %s", err, expected_err, buf_cstr(&f->why));
	if (err == 0)
		assert_int_equal(applied, expected_applied);
	else
		assert_true(f->why.len_bytes > 0 && applied == 99);
	assert_int_equal(PQtransactionStatus(f->pg), PQTRANS_IDLE);
}

static void assert_status(struct fixture *f, int installed, int available, int mqtt_installed)
{
	struct schema_status status[SCHEMA_PARTS_MAX];
	size_t n = 0;

	assert_int_equal(schema_status(f->pg, f->dir, status, &n, &f->why), 0);
	assert_int_equal(n, 3);
	assert_string_equal(status[0].part, "howdah");
	assert_string_equal(status[1].part, "howdah_mqtt");
	assert_string_equal(status[2].part, "howdah_watch");
	assert_int_equal(status[0].installed, installed);
	assert_int_equal(status[0].available, available);
	assert_int_equal(status[1].installed, mqtt_installed);
}

static void test_install_and_upgrade(void **state)
{
	struct fixture *f = *state;

	assert_status(f, 0, 1, 0);
	upgrade(f, 0, 2);
	assert_status(f, 1, 1, 1);
	assert_string_equal(pg_testing_on(f->pg, "SELECT count(*) FROM howdah_mqtt.m"), "1");
	upgrade(f, 0, 0);
	write_file(f, "howdah/0002-second.sql", "ALTER TABLE howdah.a ADD t text");
	write_file(f, "howdah/0003-third.sql", "-- nothing");
	assert_status(f, 1, 3, 1);
	upgrade(f, 0, 2);
	assert_status(f, 3, 3, 1);
	assert_string_equal(
		pg_testing_on(f->pg,
			"SELECT string_agg(part || version, ' ' ORDER BY part, version) FROM "
			"howdah.schema_version WHERE applied_at <= now()"),
		"howdah1 howdah2 howdah3 howdah_mqtt1");
}

/* An error in the last file leaves nothing of the first. */
static void test_all_or_nothing(void **state)
{
	struct fixture *f = *state;

	write_file(f, "howdah_mqtt/0002-bad.sql", "CREATE TABLE howdah_mqtt.x (); SELECT 1/0;");
	upgrade(f, -EIO, 0);
	assert_non_null(strstr(buf_cstr(&f->why), "0002-bad.sql"));
	assert_non_null(strstr(buf_cstr(&f->why), "22012"));
	assert_string_equal(pg_testing_on(f->pg, "SELECT to_regnamespace('howdah') IS NULL"), "t");
	remove_file(f, "howdah_mqtt/0002-bad.sql");
	write_file(f, "howdah_mqtt/0002-commit.sql", "COMMIT;");
	upgrade(f, -ERR_CONFIG, 0);
	assert_non_null(strstr(buf_cstr(&f->why), "ends the transaction"));
}

static void test_newer_database(void **state)
{
	struct fixture *f = *state;
	struct schema_status status[SCHEMA_PARTS_MAX];
	size_t n = 0;

	upgrade(f, 0, 2);
	pg_testing_on(f->pg, "INSERT INTO howdah.schema_version VALUES ('howdah', 2, now())");
	upgrade(f, -ERR_VERSION, 0);
	assert_non_null(strstr(buf_cstr(&f->why), "newer build"));
	assert_int_equal(schema_status(f->pg, f->dir, status, &n, &f->why), -ERR_VERSION);
	/* What another build's part says does not concern us. */
	pg_testing_on(f->pg, "DELETE FROM howdah.schema_version WHERE version = 2");
	pg_testing_on(f->pg, "INSERT INTO howdah.schema_version VALUES ('other', 9, now())");
	upgrade(f, 0, 0);
}

static void test_broken_folders(void **state)
{
	struct fixture *f = *state;
	size_t applied = 0;

	write_file(f, "howdah/0003-gap.sql", "");
	upgrade(f, -ERR_CONFIG, 0);
	assert_non_null(strstr(buf_cstr(&f->why), "0002"));
	write_file(f, "howdah/0002-a.sql", "");
	write_file(f, "howdah/0002-b.sql", "");
	upgrade(f, -ERR_CONFIG, 0);
	assert_non_null(strstr(buf_cstr(&f->why), "two files"));
	buf_reset(&f->why);
	assert_int_equal(schema_upgrade(f->pg, "/nowhere", &applied, &f->why), -ERR_CONFIG);
	assert_non_null(strstr(buf_cstr(&f->why), "/nowhere"));
}

/* Four at once: one applies, the others wait and find nothing to do. */
static void test_concurrent(void **state)
{
	struct fixture *f = *state;
	pid_t pids[4];
	int n_applied = 0;

	for (int i = 0; i < 4; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0) {
			PGconn *pg = PQconnectdb("");
			struct buf why;
			size_t applied = 0;
			int err;

			buf_init(&why, 4096);
			err = schema_upgrade(pg, f->dir, &applied, &why);
			if (err != 0)
				print_error("%s\n", buf_cstr(&why));
			_exit(err != 0 ? 100 : (int)applied);
		}
	}
	for (int i = 0; i < 4; i++) {
		int status = 0;

		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 100);
		n_applied += WEXITSTATUS(status);
	}
	assert_int_equal(n_applied, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_install_and_upgrade, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_all_or_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_newer_database, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_broken_folders, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_concurrent, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
