/* SPDX-License-Identifier: PostgreSQL */
/*
 * What libpq's connection parameters promise holds for the stream: SCRAM with channel binding,
 * sslmode=verify-full, a client's certificate, several hosts. With a CA of the test's own. Runs
 * inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_sql.h"

#define PATIENCE_MS 30000

static char dir[40];

/* Each file dir/NAME.crt and .key: a CA, what it signed for the server and for a client, and
 * another CA that signed neither. */
static bool make_certificates(void)
{
	static const char script[] =
		"exec >/dev/null 2>&1; set -e; cd \"$0\"\n"
		"for ca in ca other; do openssl req -new -x509 -days 30 -nodes -newkey rsa:2048 "
		"-subj /CN=test-$ca -out $ca.crt -keyout $ca.key; done\n"
		"sign() { openssl req -new -nodes -newkey rsa:2048 -subj /CN=$2 -out $1.csr "
		"-keyout "
		"$1.key; openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial "
		"-days 30 -out $1.crt -extfile $1.ext; }\n"
		"echo subjectAltName=DNS:localhost >server.ext; : >client.ext\n"
		"sign server localhost; sign client certuser; chmod 600 *.key\n";
	char command[1500];
	strcpy(dir, "/tmp/howdah-tls.XXXXXX");
	if (mkdtemp(dir) == NULL)
		return false;
	snprintf(command, sizeof(command), "sh -c '%s' %s", script, dir);
	return system(command) == 0;
}

static void install(const char *name, const char *as)
{
	char command[500];
	struct stat st;
	const char *data = getenv("HOWDAH_TEST_PGDATA");
	assert_int_equal(stat(data, &st), 0);
	snprintf(command, sizeof(command), "cp %s/%s %s/%s && chmod 600 %s/%s", dir, name, data, as,
		data, as);
	assert_int_equal(system(command), 0);
	snprintf(command, sizeof(command), "%s/%s", data, as);
	if (geteuid() == 0)
		assert_int_equal(chown(command, st.st_uid, st.st_gid), 0);
}

static int setup(void **state)
{
	(void)state;
	char path[300];
	install("server.crt", "server.crt");
	install("server.key", "server.key");
	install("ca.crt", "root.crt");
	snprintf(path, sizeof(path), "%s/pg_hba.conf", getenv("HOWDAH_TEST_PGDATA"));
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs("local all all trust\n"
	      "hostssl all certuser 127.0.0.1/32 cert\n"
	      "hostssl all all 127.0.0.1/32 scram-sha-256\n",
		f);
	assert_int_equal(fclose(f), 0);
	run("ALTER SYSTEM SET ssl_ca_file = 'root.crt'");
	run("SET password_encryption = 'scram-sha-256'; CREATE ROLE scramuser LOGIN REPLICATION "
	    "PASSWORD 'secret'; CREATE ROLE certuser LOGIN REPLICATION");
	run("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t");
	run("SELECT pg_reload_conf()");
	for (int i = 0; i < 500 && !sql_is("SHOW ssl", "on"); i++)
		usleep(20000);
	assert_true(sql_is("SHOW ssl", "on"));
	return 0;
}

static int connect_to(struct pgws_stream **ret_s, const char *format, ...)
{
	char own[500], text[700];
	va_list args;
	va_start(args, format);
	vsnprintf(own, sizeof(own), format, args);
	va_end(args);
	snprintf(text, sizeof(text), "port=%s %s", getenv("HOWDAH_TEST_PGTCP"), own);
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	o.conninfo = text;
	o.slot = "tls_slot";
	o.publications = "p";
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_non_null(s);
	int err = pgws_stream_connect(s);
	if (err == 0)
		err = pgws_stream_wait(s, PATIENCE_MS);
	if (err != 0)
		print_message("refused: %s\n", pgws_stream_error(s));
	*ret_s = s;
	return err;
}

/* A temporary slot, a stream, a row. */
static void assert_streams(struct pgws_stream **s)
{
	static int id;
	char text[60];
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	so.temporary = true;
	assert_int_equal(pgws_stream_create_slot(*s, &so), 0);
	assert_int_equal(pgws_stream_wait(*s, PATIENCE_MS), 0);
	assert_int_equal(pgws_stream_start(*s, 0), 0);
	assert_int_equal(pgws_stream_wait(*s, PATIENCE_MS), 0);
	snprintf(text, sizeof(text), "INSERT INTO t VALUES (%d)", ++id);
	run(text);
	struct pgws_event ev = {.data = NULL};
	bool got = false;
	for (int i = 0; i < 10000 && !got; i++) {
		int err = pgws_stream_next(*s, &ev);
		if (err == PGWS_EAGAIN)
			usleep(2000);
		else if (err != 0)
			fail_msg("%d: %s", err, pgws_stream_error(*s));
		else
			got = ev.kind == PGWS_EVENT_DATA && ev.data[0] == PGWS_INSERT;
	}
	assert_true(got);
	pgws_stream_free(s);
	for (int i = 0; i < 500; i++) {
		if (sql_is("SELECT count(*) FROM pg_replication_slots", "0"))
			break;
		usleep(20000);
	}
}

#define SCRAM "host=localhost hostaddr=127.0.0.1 user=scramuser "

static void test_scram_with_channel_binding(void **state)
{
	(void)state;
	struct pgws_stream *s;
	assert_int_equal(
		connect_to(&s, SCRAM "password=secret sslmode=require channel_binding=require"), 0);
	assert_streams(&s);
	assert_int_equal(
		connect_to(&s, SCRAM "password=wrong sslmode=require channel_binding=require"),
		PGWS_ECONN);
	assert_string_equal(pgws_stream_sqlstate(s), "28P01");
	pgws_stream_free(&s);
	/* Without TLS there is no channel to bind to, and this server takes nobody. */
	assert_int_equal(connect_to(&s, SCRAM "password=secret sslmode=disable"), PGWS_ECONN);
	assert_string_equal(pgws_stream_sqlstate(s), "28000");
	pgws_stream_free(&s);
}

static void test_verify_full(void **state)
{
	(void)state;
	struct pgws_stream *s;
	assert_int_equal(
		connect_to(
			&s, SCRAM "password=secret sslmode=verify-full sslrootcert=%s/ca.crt", dir),
		0);
	assert_streams(&s);
	assert_int_equal(connect_to(&s,
				 SCRAM "password=secret sslmode=verify-full "
				       "sslrootcert=%s/other.crt",
				 dir),
		PGWS_ECONN);
	pgws_stream_free(&s);
	/* The right CA, another name. */
	assert_int_equal(connect_to(&s,
				 "host=elsewhere.invalid hostaddr=127.0.0.1 user=scramuser "
				 "password=secret sslmode=verify-full sslrootcert=%s/ca.crt",
				 dir),
		PGWS_ECONN);
	assert_non_null(strstr(pgws_stream_error(s), "elsewhere.invalid"));
	pgws_stream_free(&s);
}

static void test_client_certificate(void **state)
{
	(void)state;
	struct pgws_stream *s;
	const char *format = "host=localhost hostaddr=127.0.0.1 user=certuser sslmode=verify-full "
			     "sslrootcert=%s/ca.crt sslcert=%s/%s.crt sslkey=%s/%s.key";
	assert_int_equal(connect_to(&s, format, dir, dir, "client", dir, "client"), 0);
	assert_streams(&s);
	assert_int_equal(connect_to(&s, format, dir, dir, "other", dir, "other"), PGWS_ECONN);
	pgws_stream_free(&s);
	/* Another's certificate is not ours. */
	assert_int_equal(connect_to(&s, format, dir, dir, "server", dir, "server"), PGWS_ECONN);
	assert_string_equal(pgws_stream_sqlstate(s), "28000");
	pgws_stream_free(&s);
}

static void test_several_hosts(void **state)
{
	(void)state;
	char text[300];
	const char *port = getenv("HOWDAH_TEST_PGTCP"), *host = getenv("PGHOST");
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	snprintf(text, sizeof(text),
		"host=/nonexistent,127.0.0.1,%s port=%s,1,%s target_session_attrs=read-write", host,
		port, port);
	o.conninfo = text;
	o.slot = "tls_slot";
	o.publications = "p";
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	assert_streams(&s);
	/* No host that may be written to. */
	run("ALTER SYSTEM SET default_transaction_read_only = on");
	run("SELECT pg_reload_conf()");
	int err = 0;
	for (int i = 0; i < 200 && err == 0; i++) {
		s = pgws_stream_new(&o);
		err = pgws_stream_connect(s);
		if (err == 0)
			err = pgws_stream_wait(s, PATIENCE_MS);
		if (err != 0)
			assert_non_null(strstr(pgws_stream_error(s), "read-only"));
		pgws_stream_free(&s);
		usleep(20000);
	}
	assert_int_equal(err, PGWS_ECONN);
	run("ALTER SYSTEM RESET default_transaction_read_only");
	run("SELECT pg_reload_conf()");
}

int main(void)
{
	sql_conn = PQconnectdb(
		"options='-c client_min_messages=error -c default_transaction_read_only=off'");
	if (PQstatus(sql_conn) != CONNECTION_OK) {
		fprintf(stderr, "%s\n", PQerrorMessage(sql_conn));
		return 1;
	}
	PGresult *res = PQexec(sql_conn, "ALTER SYSTEM SET ssl = on");
	bool tls = PQresultStatus(res) == PGRES_COMMAND_OK;
	PQclear(res);
	if (!tls || !make_certificates()) {
		fprintf(stderr, "no openssl program, or a server without TLS\n");
		PQfinish(sql_conn);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scram_with_channel_binding),
		cmocka_unit_test(test_verify_full),
		cmocka_unit_test(test_client_certificate),
		cmocka_unit_test(test_several_hosts),
	};
	int failed = cmocka_run_group_tests(tests, setup, NULL);
	char command[80];
	snprintf(command, sizeof(command), "rm -r %s", dir);
	if (system(command) != 0)
		failed++;
	PQfinish(sql_conn);
	return failed;
}
