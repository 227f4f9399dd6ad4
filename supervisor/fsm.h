/* SPDX-License-Identifier: PostgreSQL */
/*
 * The life of one worker as a table of state x event. Pure: no clock, no process, no descriptor;
 * the caller (worker.c) turns what happened into an event, asks for the step, takes the new state
 * and does the actions in their order.
 *
 *                     START              HELLO             READY
 *      DOWN ───────────────► STARTING ───────────► INIT ───────────► UP
 *       ▲                     │                     │                 │
 *       │ EXIT                │ EXIT, never ready   │                 │ EXIT
 *    STOPPING / RESTARTING    ▼                     ▼                 ▼
 *       ▲    (from all)   THROTTLED ◄── DYING_NEW ◄─┘   BACKOFF ◄── DYING
 *       └── STOP              │ TIMER                      │ TIMER
 *                             └──────► STARTING ◄──────────┘         HELD: exit 78, wrong version
 *
 * A worker that is killed is not gone yet: DYING, DYING_NEW and REFUSED wait for its exit, so that
 * there is never a second process of one worker.
 *
 * Invariants (proved by tests/unit/test_fsm.c over all cells):
 *   1. SPAWN happens only where no process exists: from a state without one, or on an EXIT event.
 *   2. A state with a process has a timer running, or SIGKILL has been sent.
 *   3. An EXIT event leads to a state without a process, or to STARTING by SPAWN.
 *   4. No event that a worker can cause is a bug here: every cell is an answer.
 */
#ifndef SUPERVISOR_FSM_H
#define SUPERVISOR_FSM_H

#include <stdbool.h>
#include <stddef.h>

enum fsm_state {
	FSM_DOWN,        /* no process, none wanted */
	FSM_STARTING,    /* spawned; HELLO is awaited */
	FSM_INIT,        /* HELLO was good, the configuration is sent; READY is awaited */
	FSM_INIT_RELOAD, /* as INIT, and a RELOAD waits for READY */
	FSM_UP,
	FSM_DYING_NEW,  /* killed or lost before READY; its exit is awaited */
	FSM_DYING,      /* killed or lost after READY; its exit is awaited */
	FSM_REFUSED,    /* killed for speaking another version; its exit is awaited */
	FSM_STOPPING,   /* told to stop; stays DOWN */
	FSM_RESTARTING, /* told to stop; is started again */
	FSM_BACKOFF,    /* died after READY; waits for its timer */
	FSM_THROTTLED,  /* died before READY; waits for its timer */
	FSM_HELD,       /* stays down until a reload or a command: more tries would not help */
	FSM_STATE_COUNT
};

enum fsm_event {
	FSM_EV_START, /* wanted */
	FSM_EV_HELLO_OK,
	FSM_EV_HELLO_BAD, /* another protocol version or build */
	FSM_EV_READY,
	FSM_EV_RELOADED, /* a verdict, good or bad, on the RELOAD that was asked */
	FSM_EV_PROGRESS, /* STATUS: it is alive and says what it does */
	FSM_EV_GARBLED,  /* a malformed or impossible message, or it does not read its own */
	FSM_EV_LOST,     /* its end of the channel is closed */
	FSM_EV_EXIT_0,
	FSM_EV_EXIT_CONFIG, /* exit status 78 */
	FSM_EV_EXIT_OTHER,  /* any other status, a signal, or a spawn that failed */
	FSM_EV_PING_MISSED, /* two in a row */
	FSM_EV_TIMER,       /* the one timer, set by the last TIMER action */
	FSM_EV_STOP,        /* not wanted any more */
	FSM_EV_HURRY,       /* not wanted, and soon: the second SIGTERM */
	FSM_EV_RELOAD,      /* there is a new configuration */
	FSM_EV_RESTART,     /* pgctl worker restart */
	FSM_EVENT_COUNT
};

enum fsm_action {
	FSM_ACT_END,           /* ends a list */
	FSM_ACT_SPAWN,         /* fork and exec; if that fails, FSM_EV_EXIT_OTHER follows */
	FSM_ACT_CONFIGURE,     /* send CONFIG, the LISTENERs, START */
	FSM_ACT_ANNOUNCE_UP,   /* tell the other workers, and it about them */
	FSM_ACT_ANNOUNCE_DOWN, /* tell the other workers, if they were told that it is UP */
	FSM_ACT_SEND_RELOAD,
	FSM_ACT_VERDICT, /* pass its verdict to who asked for the reload */
	FSM_ACT_SEND_PING,
	FSM_ACT_SEND_STOP,
	FSM_ACT_ABORT,     /* SIGABRT: a core shows where it hangs */
	FSM_ACT_KILL,      /* SIGKILL */
	FSM_ACT_TALLY,     /* count a death that nobody asked for, and keep its last words */
	FSM_ACT_WARN_STOP, /* it did not stop as asked */
	FSM_ACT_RESET_BACKOFF,
	FSM_ACT_TIMER_START, /* timers: one per worker, each of these replaces it */
	FSM_ACT_TIMER_PING,
	FSM_ACT_TIMER_STOP,
	FSM_ACT_TIMER_HURRY,
	FSM_ACT_TIMER_KILL,
	FSM_ACT_TIMER_BACKOFF,
	FSM_ACT_TIMER_THROTTLE,
	FSM_ACT_TIMER_NONE,
	FSM_ACTION_COUNT
};

#define FSM_ACTIONS_MAX 5

struct fsm_step {
	enum fsm_state next;
	enum fsm_action actions[FSM_ACTIONS_MAX]; /* up to the first FSM_ACT_END */
	bool written;                             /* of every cell; the test looks */
};

/* Never NULL; static. */
const struct fsm_step *fsm_step(enum fsm_state state, enum fsm_event event);

/* Is there a process in this state? */
bool fsm_has_process(enum fsm_state state);

/* "UP", as in log lines; `pgctl status` shows fewer (worker_state_str). */
const char *fsm_state_str(enum fsm_state state);
const char *fsm_event_str(enum fsm_event event);
const char *fsm_action_str(enum fsm_action action);

#endif
