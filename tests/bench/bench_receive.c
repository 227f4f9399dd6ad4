/* SPDX-License-Identifier: PostgreSQL */
/*
 * What it costs to receive a logical stream, by the way in which the bytes come in:
 *
 *     tests/helpers/with-postgres -p tests/bench/bench_receive [EVENTS [ROUNDS [TCP|TLS|Unix]]]
 *
 * Every method reads a transaction of EVENTS inserted rows (100000) from its first to its last
 * message, one method after the other, ROUNDS times (5) over; the medians are printed as a table:
 * the client's and the walsender's CPU time per event, events per second, and how often the client
 * waited or rested per thousand events. With a quiet machine and the default it takes two minutes.
 *
 * Methods A to K stand by themselves on libpq, OpenSSL and the socket; the last five are the
 * library's; the consumer's waits are not counted.
 */
#include "config.h"

#include <libpq-fe.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_tls.h"

#define BUFFER_BYTES (1 << 20)
#define SOCKET_READ_BYTES (256 * 1024)
#define NAP_US 200
#define LOWAT_BYTES 32768
#define ROUNDS_MAX 51
#define START                                                                                      \
	"START_REPLICATION SLOT bench LOGICAL 0/0 (proto_version '1', publication_names 'bench')"

enum { ON_TCP = 1, ON_TLS = 2, ON_UNIX = 4, ON_ALL = 7 };
enum { NAP = 1, READ_AHEAD = 2, BIO_BUFFER = 4, LOWAT = 8 };

struct run {
	uint64_t n, waits;
	bool over;
	int walsender;
	int64_t cpu_ns, walsender_ns, wall_ns; /* at the first event, then: spent */
};

struct method {
	const char *name;
	int transports;
	void (*read)(struct run *r, const char *conninfo, int how);
	int how;
};

static PGconn *sql;

/* ---- Clocks ---------------------------------------------------------------------------------- */

static int64_t clock_ns(clockid_t id)
{
	struct timespec ts;
	clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t process_ns(int pid)
{
	char path[64];
	long long ns = 0;
	snprintf(path, sizeof(path), "/proc/%d/schedstat", pid);
	FILE *f = fopen(path, "r");
	if (f == NULL || fscanf(f, "%lld", &ns) != 1)
		ns = 0;
	if (f != NULL)
		fclose(f);
	return ns;
}

static void take_clocks(struct run *r, int sign)
{
	r->cpu_ns = sign * r->cpu_ns + clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	r->walsender_ns = sign * r->walsender_ns + process_ns(r->walsender);
	r->wall_ns = sign * r->wall_ns + clock_ns(CLOCK_MONOTONIC);
}

/* ---- SQL ------------------------------------------------------------------------------------- */

static char *query(const char *text)
{
	PGresult *res = PQexec(sql, text);
	if (PQresultStatus(res) != PGRES_TUPLES_OK && PQresultStatus(res) != PGRES_COMMAND_OK) {
		fprintf(stderr, "%s: %s", text, PQresultErrorMessage(res));
		exit(1);
	}
	char *value = strdup(PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : "");
	PQclear(res);
	return value;
}

static void run_sql(const char *text)
{
	free(query(text));
}

static void wait_until(const char *text)
{
	char *value = query(text);
	while (strcmp(value, "t") != 0) {
		free(value);
		usleep(5000);
		value = query(text);
	}
	free(value);
}

/* The load begins while the reader waits for it. */
static void begin_load(struct run *r)
{
	char text[200];
	wait_until("SELECT active FROM pg_replication_slots WHERE slot_name = 'bench'");
	char *pid = query("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'bench'");
	r->walsender = atoi(pid);
	free(pid);
	snprintf(text, sizeof(text),
		"INSERT INTO bench SELECT i, repeat('x', 100), now() FROM generate_series(1, %llu) "
		"i",
		(unsigned long long)r->n);
	PQsendQuery(sql, text);
}

/* Every message of the stream. */
static inline void on_message(struct run *r, const char *data)
{
	if (data[0] == 'B') {
		take_clocks(r, 0);
	} else if (data[0] == 'C') {
		take_clocks(r, -1);
		r->over = true;
	}
}

/* ---- Methods --------------------------------------------------------------------------------- */

static PGconn *start(struct run *r, const char *conninfo)
{
	char text[300];
	snprintf(text, sizeof(text), "%s replication=database", conninfo);
	PGconn *conn = PQconnectdb(text);
	PGresult *res = PQexec(conn, START);
	if (PQresultStatus(res) != PGRES_COPY_BOTH) {
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(1);
	}
	PQclear(res);
	PQsetnonblocking(conn, 1);
	begin_load(r);
	return conn;
}

static void wait_readable(struct run *r, int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	(void)poll(&p, 1, timeout_ms);
	r->waits++;
}

/* A BIO of OpenSSL's own between the SSL and libpq's: both are freed with the SSL. */
static BIO *push_buffer(SSL *ssl)
{
	BIO *own = SSL_get_rbio(ssl), *buffer = BIO_new(BIO_f_buffer());
	BIO_set_read_buffer_size(buffer, SOCKET_READ_BYTES);
	BIO_up_ref(own);
	BIO_push(buffer, own);
	SSL_set0_rbio(ssl, buffer);
	return buffer;
}

static void read_libpq(struct run *r, const char *conninfo, int how)
{
	PGconn *conn = start(r, conninfo);
	BIO *buffer = (how & BIO_BUFFER) != 0 ? push_buffer(PQsslStruct(conn, "OpenSSL")) : NULL;
	while (!r->over) {
		char *copy;
		int n;
		while ((n = PQgetCopyData(conn, &copy, 1)) > 0) {
			if (copy[0] == 'w')
				on_message(r, copy + 25);
			PQfreemem(copy);
		}
		if (buffer == NULL || BIO_pending(buffer) == 0)
			wait_readable(r, PQsocket(conn), 1000);
		if (n < 0 || PQconsumeInput(conn) != 1)
			exit(1);
	}
	PQfinish(conn);
}

struct buffer {
	size_t pos, end;
	char bytes[BUFFER_BYTES];
};

static void take_frames(struct run *r, struct buffer *b)
{
	while (b->end - b->pos >= 5) {
		uint32_t len;
		memcpy(&len, b->bytes + b->pos + 1, 4);
		len = __builtin_bswap32(len);
		if (b->end - b->pos < len + 1)
			break;
		if (b->bytes[b->pos] == 'd' && b->bytes[b->pos + 5] == 'w')
			on_message(r, b->bytes + b->pos + 5 + 25);
		b->pos += len + 1;
	}
	memmove(b->bytes, b->bytes + b->pos, b->end - b->pos);
	b->end -= b->pos;
	b->pos = 0;
}

static void read_own(struct run *r, const char *conninfo, int how)
{
	PGconn *conn = start(r, conninfo);
	SSL *ssl = PQsslStruct(conn, "OpenSSL");
	struct buffer *b = malloc(sizeof(*b));
	char *copy;
	int fd = PQsocket(conn), lowat = LOWAT_BYTES;
	bool any = false;
	b->pos = b->end = 0;
	while (PQgetCopyData(conn, &copy, 1) > 0)
		PQfreemem(copy);
	if ((how & BIO_BUFFER) != 0)
		push_buffer(ssl);
	if ((how & READ_AHEAD) != 0) {
		SSL_set_read_ahead(ssl, 1);
		SSL_set_default_read_buffer_len(ssl, SOCKET_READ_BYTES);
	}
	if ((how & LOWAT) != 0)
		setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat));
	while (!r->over) {
		size_t room = sizeof(b->bytes) - b->end;
		ssize_t n = ssl != NULL
				    ? SSL_read(ssl, b->bytes + b->end, (int)room)
				    : recv(fd, b->bytes + b->end,
					      room < SOCKET_READ_BYTES ? room : SOCKET_READ_BYTES,
					      MSG_DONTWAIT);
		if (n > 0) {
			b->end += (size_t)n;
			any = true;
			take_frames(r, b);
		} else if ((how & NAP) != 0 && any) {
			any = false;
			r->waits++;
			usleep(NAP_US);
		} else {
			wait_readable(r, fd, (how & LOWAT) != 0 ? 1 : 1000);
		}
	}
	if (ssl != NULL)
		SSL_set_read_ahead(ssl, 0);
	PQfinish(conn);
	free(b);
}

static void read_library(struct run *r, const char *conninfo, int how)
{
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	o.conninfo = conninfo;
	o.slot = "bench";
	o.publications = "bench";
	o.receive = how < 0 ? PGWS_RECEIVE_LIBPQ : PGWS_RECEIVE_SOCKET;
	struct pgws_stream *s = pgws_stream_new(&o);
	struct pgws_event ev;
	if (s == NULL || pgws_stream_connect(s) != 0 || pgws_stream_wait(s, -1) != 0 ||
		pgws_stream_start(s, 0) != 0 || pgws_stream_wait(s, -1) != 0) {
		fprintf(stderr, "%s\n", s != NULL ? pgws_stream_error(s) : "");
		exit(1);
	}
	begin_load(r);
	while (!r->over) {
		int err = pgws_stream_next(s, &ev);
		unsigned rest = (how & NAP) != 0 && err != 0 ? pgws_stream_rest_us(s) : 0;
		if (err == 0 && ev.kind == PGWS_EVENT_DATA) {
			on_message(r, (const char *)ev.data);
		} else if (err == PGWS_EAGAIN && rest > 0) {
			r->waits++;
			usleep(rest);
		} else if (err == PGWS_EAGAIN) {
			wait_readable(r, pgws_stream_fd(s), 1000);
		} else if (err != 0) {
			exit(1);
		}
	}
	pgws_stream_free(&s);
}

/* how: with the background thread. */
static void read_consumer(struct run *r, const char *conninfo, int how)
{
	struct pgws_consumer_options o = PGWS_CONSUMER_OPTIONS_INIT;
	o.stream.conninfo = conninfo;
	o.stream.slot = "bench";
	o.stream.publications = "bench";
	o.background_feedback = how != 0;
	struct pgws_consumer *c = NULL;
	struct pgws_change change;
	if (pgws_consumer_new(&o, &c) != 0 || pgws_consumer_next(c, 500, &change) != PGWS_EAGAIN) {
		fprintf(stderr, "%s\n", c != NULL ? pgws_consumer_error(c) : "");
		exit(1);
	}
	begin_load(r);
	while (!r->over) {
		int err = pgws_consumer_next(c, 1000, &change);
		if (err == 0)
			on_message(r, (const char *)change.data);
		else if (err != PGWS_EAGAIN)
			exit(1);
	}
	pgws_consumer_free(&c);
}

static const struct method methods[] = {
	{"A libpq's loop", ON_ALL, read_libpq, 0},
	{"B libpq's loop over a buffering BIO", ON_TLS, read_libpq, BIO_BUFFER},
	{"C SSL_read into an own buffer", ON_TLS, read_own, 0},
	{"D C with read-ahead", ON_TLS, read_own, READ_AHEAD},
	{"E C with read-ahead and a buffering BIO", ON_TLS, read_own, READ_AHEAD | BIO_BUFFER},
	{"F E with rests of 200 us", ON_TLS, read_own, READ_AHEAD | BIO_BUFFER | NAP},
	{"H recv into an own buffer", ON_TCP | ON_UNIX, read_own, 0},
	{"I H with rests of 200 us", ON_TCP | ON_UNIX, read_own, NAP},
	{"K H with SO_RCVLOWAT of 32 kB, 1 ms", ON_TCP, read_own, LOWAT},
	{"library, libpq's loop", ON_ALL, read_library, -2},
	{"library, socket, rests left out", ON_ALL, read_library, 0},
	{"library, socket", ON_ALL, read_library, NAP},
	{"library, consumer", ON_ALL, read_consumer, 0},
	{"library, consumer with background_feedback", ON_ALL, read_consumer, 1},
};
#define METHODS (sizeof(methods) / sizeof(methods[0]))

static const struct {
	const char *name, *conninfo;
	int bit;
} transports[] = {
	{"TCP", "host=127.0.0.1 port=%s sslmode=disable", ON_TCP},
	{"TLS", "host=127.0.0.1 port=%s sslmode=require", ON_TLS},
	{"Unix", "sslmode=disable", ON_UNIX},
};
#define TRANSPORTS (sizeof(transports) / sizeof(transports[0]))

/* ---- The table ------------------------------------------------------------------------------- */

static struct run results[TRANSPORTS][METHODS][ROUNDS_MAX];

static void measure(size_t t, size_t m, size_t round, uint64_t n)
{
	char conninfo[200];
	struct run *r = &results[t][m][round];
	*r = (struct run){.n = n};
	wait_until("SELECT NOT coalesce(bool_or(active), false) FROM pg_replication_slots");
	run_sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
	run_sql("TRUNCATE bench");
	run_sql("SELECT pg_create_logical_replication_slot('bench', 'pgoutput')");
	snprintf(conninfo, sizeof(conninfo), transports[t].conninfo, getenv("HOWDAH_TEST_PGTCP"));
	methods[m].read(r, conninfo, methods[m].how);
	PGresult *res;
	while ((res = PQgetResult(sql)) != NULL)
		PQclear(res);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
	qsort(values, n, sizeof(*values), compare);
	return values[n / 2];
}

static void print_row(size_t t, size_t m, size_t rounds)
{
	double client[ROUNDS_MAX], walsender[ROUNDS_MAX], rate[ROUNDS_MAX], waits[ROUNDS_MAX];
	for (size_t i = 0; i < rounds; i++) {
		const struct run *r = &results[t][m][i];
		client[i] = (double)r->cpu_ns / 1e3 / (double)r->n;
		walsender[i] = (double)r->walsender_ns / 1e3 / (double)r->n;
		rate[i] = (double)r->n * 1e9 / (double)r->wall_ns;
		waits[i] = (double)r->waits * 1e3 / (double)r->n;
	}
	printf("| %s | %s | %.2f | %.2f | %.0f | %.1f |\n", transports[t].name, methods[m].name,
		median(client, rounds), median(walsender, rounds), median(rate, rounds) / 1e3,
		median(waits, rounds));
}

int main(int argc, char **argv)
{
	uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000;
	size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 5;
	const char *only = argc > 3 ? argv[3] : NULL;
	if (n < 1000 || rounds < 1 || rounds > ROUNDS_MAX) {
		fprintf(stderr, "usage: bench_receive [EVENTS [ROUNDS [TCP|TLS|Unix]]]\n");
		return 2;
	}
	sql = PQconnectdb("options='-c client_min_messages=error'");
	run_sql("CREATE TABLE bench (id int, payload text, created timestamp)");
	run_sql("CREATE PUBLICATION bench FOR TABLE bench");
	run_sql("ALTER SYSTEM SET logical_decoding_work_mem = '512MB'");
	bool tls = make_certificate(getenv("HOWDAH_TEST_PGDATA"));
	if (tls)
		run_sql("ALTER SYSTEM SET ssl = on");
	run_sql("SELECT pg_reload_conf()");
	if (tls)
		wait_until("SELECT current_setting('ssl') = 'on'");
	for (size_t i = 0; i < rounds; i++) {
		for (size_t t = 0; t < TRANSPORTS; t++) {
			if (only != NULL && strcmp(only, transports[t].name) != 0)
				continue;
			for (size_t m = 0; m < METHODS; m++) {
				bool on = (methods[m].transports & transports[t].bit) != 0;
				if (on && (tls || transports[t].bit != ON_TLS))
					measure(t, m, i, n);
			}
		}
		fprintf(stderr, "round %zu of %zu\n", i + 1, rounds);
	}
	printf("| over | method | client us/event | walsender us/event | k events/s | "
	       "waits/1000 |\n|---|---|---|---|---|---|\n");
	for (size_t t = 0; t < TRANSPORTS; t++) {
		for (size_t m = 0; m < METHODS; m++) {
			if (results[t][m][0].over)
				print_row(t, m, rounds);
		}
	}
	PQfinish(sql);
	return 0;
}
