/* SPDX-License-Identifier: PostgreSQL */
/*
 * The worker state machine, exhaustively. `expected` is written by hand from the operator's point
 * of view (column by column: what must an event do in each state), not taken from fsm.c; every cell
 * is compared. Then the invariants of fsm.h are proved by walking every reachable combination.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "supervisor/fsm.h"

/* "a b c: next action action": in states a, b and c; "= " as next: the same state. What is not
 * listed for an event is ignored, and "-" lists those that are: each state appears once. */
struct column {
	enum fsm_event event;
	const char *cells[12];
};

static const struct column expected[] = {
	{FSM_EV_START,
		{
			"DOWN: STARTING spawn timer-start",
			"BACKOFF THROTTLED: STARTING spawn timer-start",
			"HELD: STARTING reset-backoff spawn timer-start",
			"STOPPING: RESTARTING",
			"STARTING INIT INIT_RELOAD UP DYING_NEW DYING REFUSED RESTARTING: =",
		}},
	{FSM_EV_HELLO_OK,
		{
			"STARTING: INIT configure timer-start",
			"INIT INIT_RELOAD: DYING_NEW kill timer-none",
			"UP: DYING kill timer-none",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_HELLO_BAD,
		{
			"STARTING: REFUSED kill timer-none",
			"INIT INIT_RELOAD: DYING_NEW kill timer-none",
			"UP: DYING kill timer-none",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_READY,
		{
			"STARTING: DYING_NEW kill timer-none",
			"INIT: UP announce-up timer-ping",
			"INIT_RELOAD: UP announce-up send-reload timer-ping",
			"UP: DYING kill timer-none",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_RELOADED,
		{
			"STARTING INIT INIT_RELOAD: DYING_NEW kill timer-none",
			"UP: = verdict",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_PROGRESS,
		{
			"STARTING: DYING_NEW kill timer-none",
			"INIT INIT_RELOAD: = timer-start",
			"DOWN UP DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED "
			"HELD: =",
		}},
	{FSM_EV_GARBLED,
		{
			"STARTING INIT INIT_RELOAD DYING_NEW: DYING_NEW kill timer-none",
			"UP DYING: DYING kill timer-none",
			"REFUSED STOPPING RESTARTING: = kill timer-none",
			"DOWN BACKOFF THROTTLED HELD: =",
		}},
	{FSM_EV_LOST,
		{
			"STARTING INIT INIT_RELOAD: DYING_NEW timer-kill",
			"UP: DYING timer-kill",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_EXIT_0,
		{
			"STARTING INIT INIT_RELOAD DYING_NEW: THROTTLED tally timer-throttle",
			"UP DYING: BACKOFF announce-down tally timer-backoff",
			"REFUSED: HELD tally timer-none",
			"STOPPING: DOWN announce-down timer-none",
			"RESTARTING: STARTING announce-down reset-backoff spawn timer-start",
			"DOWN BACKOFF THROTTLED HELD: =",
		}},
	{FSM_EV_EXIT_CONFIG,
		{
			"STARTING INIT INIT_RELOAD DYING_NEW REFUSED: HELD tally timer-none",
			"UP DYING: HELD announce-down tally timer-none",
			"STOPPING: DOWN announce-down timer-none",
			"RESTARTING: STARTING announce-down reset-backoff spawn timer-start",
			"DOWN BACKOFF THROTTLED HELD: =",
		}},
	{FSM_EV_EXIT_OTHER,
		{
			"STARTING INIT INIT_RELOAD DYING_NEW: THROTTLED tally timer-throttle",
			"UP DYING: BACKOFF announce-down tally timer-backoff",
			"REFUSED: HELD tally timer-none",
			"STOPPING: DOWN announce-down warn-stop timer-none",
			"RESTARTING: STARTING announce-down warn-stop reset-backoff spawn "
			"timer-start",
			"DOWN BACKOFF THROTTLED HELD: =",
		}},
	{FSM_EV_PING_MISSED,
		{
			"STARTING INIT INIT_RELOAD: DYING_NEW abort timer-kill",
			"UP: DYING abort timer-kill",
			"DOWN DYING_NEW DYING REFUSED STOPPING RESTARTING BACKOFF THROTTLED HELD: "
			"=",
		}},
	{FSM_EV_TIMER,
		{
			"STARTING INIT INIT_RELOAD: DYING_NEW abort timer-kill",
			"UP: = send-ping timer-ping",
			"DYING_NEW DYING REFUSED STOPPING RESTARTING: = kill timer-none",
			"BACKOFF THROTTLED: STARTING spawn timer-start",
			"DOWN HELD: =",
		}},
	{FSM_EV_STOP,
		{
			"STARTING INIT INIT_RELOAD UP: STOPPING send-stop timer-stop",
			"DYING_NEW DYING REFUSED: STOPPING timer-kill",
			"RESTARTING: STOPPING",
			"STOPPING: =",
			"BACKOFF THROTTLED: DOWN timer-none",
			"HELD: DOWN",
			"DOWN: =",
		}},
	{FSM_EV_HURRY,
		{
			"STARTING INIT INIT_RELOAD UP: STOPPING send-stop timer-hurry",
			"DYING_NEW DYING REFUSED STOPPING RESTARTING: STOPPING timer-hurry",
			"BACKOFF THROTTLED: DOWN timer-none",
			"HELD: DOWN",
			"DOWN: =",
		}},
	{FSM_EV_RELOAD,
		{
			"INIT: INIT_RELOAD",
			"UP: = send-reload",
			"BACKOFF THROTTLED HELD: STARTING reset-backoff spawn timer-start",
			"DOWN STARTING INIT_RELOAD DYING_NEW DYING REFUSED STOPPING RESTARTING: =",
		}},
	{FSM_EV_RESTART,
		{
			"DOWN BACKOFF THROTTLED HELD: STARTING reset-backoff spawn timer-start",
			"STARTING INIT INIT_RELOAD UP: RESTARTING send-stop timer-stop",
			"DYING_NEW DYING REFUSED: RESTARTING timer-kill",
			"STOPPING: RESTARTING",
			"RESTARTING: =",
		}},
};

static void step_text(enum fsm_state state, enum fsm_event event, char *out, size_t out_size)
{
	const struct fsm_step *step = fsm_step(state, event);
	size_t len = (size_t)snprintf(
		out, out_size, "%s", step->next == state ? "=" : fsm_state_str(step->next));

	for (size_t i = 0; i < FSM_ACTIONS_MAX && step->actions[i] != FSM_ACT_END; i++)
		len += (size_t)snprintf(
			out + len, out_size - len, " %s", fsm_action_str(step->actions[i]));
	assert_true(len < out_size);
}

/* Is name one of the words before the colon? */
static bool cell_lists(const char *cell, const char *name)
{
	const char *colon = strchr(cell, ':');
	size_t len = strlen(name);

	assert_non_null(colon);
	for (const char *p = cell; p < colon; p += strcspn(p, " :") + 1)
		if (strcspn(p, " :") == len && memcmp(p, name, len) == 0)
			return true;
	return false;
}

/* "starting: starting kill" and "starting: = kill" say the same. */
static void check_cell(enum fsm_state state, const struct column *col)
{
	const char *name = fsm_state_str(state);
	const char *want = NULL;
	char got[200], norm[200];

	for (size_t i = 0; i < ARRAY_LEN(col->cells) && col->cells[i] != NULL; i++) {
		if (!cell_lists(col->cells[i], name))
			continue;
		if (want != NULL)
			fail_msg("%s appears twice for %s", name, fsm_event_str(col->event));
		want = strchr(col->cells[i], ':') + 2;
	}
	if (want == NULL)
		fail_msg("nothing is expected of %s in %s", fsm_event_str(col->event), name);
	if (strcspn(want, " ") == strlen(name) && strncmp(want, name, strlen(name)) == 0)
		snprintf(norm, sizeof(norm), "=%s", want + strlen(name));
	else
		snprintf(norm, sizeof(norm), "%s", want);
	step_text(state, col->event, got, sizeof(got));
	if (strcmp(got, norm) != 0)
		fail_msg("%s in %s: got \"%s\", want \"%s\"", fsm_event_str(col->event), name, got,
			norm);
}

static void test_every_cell(void **state)
{
	bool seen[FSM_EVENT_COUNT] = {false};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
		assert_false(seen[expected[i].event]);
		seen[expected[i].event] = true;
		for (int s = 0; s < FSM_STATE_COUNT; s++) {
			assert_true(fsm_step((enum fsm_state)s, expected[i].event)->written);
			check_cell((enum fsm_state)s, &expected[i]);
		}
	}
	for (int e = 0; e < FSM_EVENT_COUNT; e++)
		assert_true(seen[e]);
}

/* What the caller's world looks like beside the state. */
struct world {
	enum fsm_state state;
	bool process, timer, killed, announced;
};

static bool is_exit(enum fsm_event e)
{
	return e == FSM_EV_EXIT_0 || e == FSM_EV_EXIT_CONFIG || e == FSM_EV_EXIT_OTHER;
}

/* Events that cannot happen in this world. */
static bool possible(const struct world *w, enum fsm_event e)
{
	if (e == FSM_EV_TIMER)
		return w->timer;
	if (e >= FSM_EV_HELLO_OK && e <= FSM_EV_PING_MISSED)
		return w->process;
	return true;
}

static void act(struct world *w, enum fsm_action a)
{
	if (a >= FSM_ACT_TIMER_START && a <= FSM_ACT_TIMER_NONE)
		w->timer = a != FSM_ACT_TIMER_NONE;
	switch ((int)a) {
	case FSM_ACT_SPAWN:
		assert_false(w->process); /* invariant 1 */
		assert_false(w->announced);
		w->process = true;
		w->killed = false;
		break;
	case FSM_ACT_KILL:
		w->killed = true;
		/* fallthrough */
	case FSM_ACT_ABORT:
	case FSM_ACT_SEND_STOP:
	case FSM_ACT_SEND_PING:
	case FSM_ACT_SEND_RELOAD:
	case FSM_ACT_CONFIGURE:
		assert_true(w->process);
		break;
	case FSM_ACT_ANNOUNCE_UP:
		assert_false(w->announced);
		w->announced = true;
		break;
	case FSM_ACT_ANNOUNCE_DOWN:
		assert_false(w->process); /* the others may take over what it held */
		w->announced = false;
		break;
	default:
		break;
	}
}

static struct world walk(struct world w, enum fsm_event e)
{
	const struct fsm_step *step = fsm_step(w.state, e);

	if (is_exit(e))
		w.process = false;
	if (e == FSM_EV_TIMER)
		w.timer = false;
	w.state = step->next;
	for (size_t i = 0; i < FSM_ACTIONS_MAX && step->actions[i] != FSM_ACT_END; i++)
		act(&w, step->actions[i]);
	if (w.process != fsm_has_process(w.state))
		fail_msg("%s: state and process disagree", fsm_state_str(w.state));
	if (w.process && !w.timer && !w.killed) /* invariant 2 */
		fail_msg("%s after %s: nothing would end it", fsm_state_str(w.state),
			fsm_event_str(e));
	if (!w.process && w.timer != (w.state == FSM_BACKOFF || w.state == FSM_THROTTLED))
		fail_msg("%s after %s: timer", fsm_state_str(w.state), fsm_event_str(e));
	if (is_exit(e) && w.process)
		assert_int_equal(w.state, FSM_STARTING); /* invariant 3 */
	if (!w.process && w.announced)
		fail_msg("%s after %s: still announced", fsm_state_str(w.state), fsm_event_str(e));
	return w;
}

#define WORLDS (FSM_STATE_COUNT * 16)

static size_t world_index(const struct world *w)
{
	return (size_t)w->state * 16 + (w->process ? 1 : 0) + (w->timer ? 2 : 0) +
	       (w->killed ? 4 : 0) + (w->announced ? 8 : 0);
}

static void test_invariants_hold_everywhere(void **state)
{
	static bool seen[WORLDS];
	static struct world todo[WORLDS];
	bool reached[FSM_STATE_COUNT] = {false};
	size_t n = 1;

	(void)state;
	todo[0] = (struct world){.state = FSM_DOWN};
	seen[world_index(&todo[0])] = true;
	for (size_t i = 0; i < n; i++) {
		reached[todo[i].state] = true;
		for (int e = 0; e < FSM_EVENT_COUNT; e++) {
			if (!possible(&todo[i], (enum fsm_event)e))
				continue;
			struct world next = walk(todo[i], (enum fsm_event)e);

			if (!seen[world_index(&next)]) {
				seen[world_index(&next)] = true;
				todo[n++] = next;
			}
		}
	}
	for (int s = 0; s < FSM_STATE_COUNT; s++)
		if (!reached[s])
			fail_msg("%s cannot be reached", fsm_state_str((enum fsm_state)s));
}

/* From anywhere, STOP and then what must follow ends DOWN, also if the worker never listens. */
static void test_stop_always_ends(void **state)
{
	(void)state;
	for (int s = 0; s < FSM_STATE_COUNT; s++) {
		enum fsm_state now = fsm_step((enum fsm_state)s, FSM_EV_STOP)->next;

		if (fsm_has_process(now)) {
			now = fsm_step(now, FSM_EV_TIMER)->next;
			assert_true(fsm_has_process(now));
			now = fsm_step(now, FSM_EV_EXIT_OTHER)->next;
		}
		assert_int_equal(now, FSM_DOWN);
	}
}

static void test_names(void **state)
{
	(void)state;
	for (int i = 0; i < FSM_STATE_COUNT; i++)
		for (int j = 0; j < i; j++)
			assert_string_not_equal(
				fsm_state_str((enum fsm_state)i), fsm_state_str((enum fsm_state)j));
	for (int i = 0; i < FSM_ACTION_COUNT; i++)
		assert_non_null(fsm_action_str((enum fsm_action)i));
	assert_string_equal(fsm_state_str(FSM_STATE_COUNT), "?");
	assert_string_equal(fsm_event_str(FSM_EVENT_COUNT), "?");
	assert_string_equal(fsm_action_str(FSM_ACTION_COUNT), "?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_cell),
		cmocka_unit_test(test_invariants_hold_everywhere),
		cmocka_unit_test(test_stop_always_ends),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests_name("fsm", tests, NULL, NULL);
}
