/* SPDX-License-Identifier: PostgreSQL */
/* A listening socket: what is accepted, refused at the maximum, and done without descriptors. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/listener.h"
#include "common/base/mem.h"

#define CLIENTS 200

struct fixture {
	struct ev_loop *loop;
	struct listener *listener;
	struct sockaddr_storage at;
	socklen_t at_len;
	int accepted[CLIENTS];
	size_t n_accepted, max, n_maximum, n_short, n_first, n_closed;
	int err;
};

static bool may_accept(void *arg)
{
	const struct fixture *f = arg;
	return f->n_accepted < f->max;
}

static void on_accepted(int fd, void *arg)
{
	struct fixture *f = arg;
	assert_true((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
	assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
	f->accepted[f->n_accepted++] = fd;
}

static void on_maximum(const char *url, void *arg)
{
	struct fixture *f = arg;
	assert_string_equal(url, "here");
	f->n_maximum++;
}

static void on_short(const char *url, int err, bool first, bool closed, void *arg)
{
	struct fixture *f = arg;
	assert_string_equal(url, "here");
	f->err = err;
	f->n_short++;
	f->n_first += first ? 1 : 0;
	f->n_closed += closed ? 1 : 0;
}

static const struct listener_ops ops = {
	.name = "test listener",
	.may_accept = may_accept,
	.on_accepted = on_accepted,
	.on_maximum = on_maximum,
	.on_short = on_short,
};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct sockaddr any = {.sa_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	f->loop = ev_loop_new();
	f->at_len = sizeof(f->at);
	/* An abstract name that the kernel chooses. */
	assert_int_equal(bind(fd, &any, sizeof(any.sa_family)), 0);
	assert_int_equal(listen(fd, CLIENTS), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&f->at, &f->at_len), 0);
	f->max = CLIENTS;
	f->listener = listener_new(f->loop, fd, "here", &ops, f);
	*state = f;
	return 0;
}

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_message("left: %s %lld\n", name, (long long)count);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	listener_free(&f->listener);
	ev_loop_free(&f->loop);
	for (size_t i = 0; i < f->n_accepted; i++)
		close(f->accepted[i]);
	free(f);
	return mem_report(on_leak, NULL) == 0 ? 0 : -1;
}

static int client(struct fixture *f)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&f->at, f->at_len), 0);
	return fd;
}

static void test_budget(void **state)
{
	struct fixture *f = *state;
	int fds[CLIENTS];
	for (int i = 0; i < CLIENTS; i++)
		fds[i] = client(f);
	ev_loop_once(f->loop, false);
	assert_int_equal(f->n_accepted, LISTENER_ACCEPT_BUDGET);
	ev_loop_once(f->loop, false);
	assert_int_equal(f->n_accepted, CLIENTS);
	for (int i = 0; i < CLIENTS; i++)
		close(fds[i]);
}

static void test_maximum(void **state)
{
	struct fixture *f = *state;
	int fds[3];
	char c;
	f->max = 2;
	for (int i = 0; i < 3; i++)
		fds[i] = client(f);
	ev_loop_once(f->loop, false);
	assert_int_equal(f->n_accepted, 2);
	assert_int_equal(f->n_maximum, 1);
	assert_int_equal(read(fds[2], &c, 1), 0);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
}

static void test_no_descriptors(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, none;
	char c;
	int first = client(f), second = client(f), third = client(f), next = dup(first);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = (rlim_t)next; /* the next one would be this */
	close(next);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	/* The first to wait learns it; the others wait while accepting rests. */
	ev_loop_once(f->loop, false);
	assert_int_equal(f->err, -EMFILE);
	assert_true(f->n_short == 1 && f->n_first == 1 && f->n_closed == 1 && f->n_accepted == 0);
	assert_int_equal(read(first, &c, 1), 0);
	ev_loop_once(f->loop, false);
	assert_int_equal(f->n_short, 1);
	/* After the rest it is the same, but nothing new. */
	while (f->n_short == 1)
		ev_loop_once(f->loop, true);
	assert_true(f->n_first == 1 && f->n_closed == 2 && f->n_accepted == 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	while (f->n_accepted == 0)
		ev_loop_once(f->loop, true);
	assert_int_equal(f->n_short, 2);
	close(first);
	close(second);
	close(third);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_budget, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_maximum, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_no_descriptors, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
