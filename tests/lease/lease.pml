/* A model of the lease (src/lease/task.rs, src/store/postgres/keeper.rs) for the model checker Spin: daemons that may be
 * as slow as they like at every step, which stands for a frozen process, a suspended machine and a network that hangs;
 * answers that are lost; and a row that is changed atomically.
 *
 * Time passes in ticks, a fifth of the lease each would be too fine: the lease lasts TTL ticks, and the gate of a leader
 * is open for CONFIRMED ticks from when its last renewal that was answered was sent.
 *
 * Checked: at no time are the gates of two daemons open. tests/lease/run also checks that each of the mistakes that the
 * macros make is found, so that the model can fail.
 */

#define NONE DAEMONS

/* The row. */
byte epoch = 0;
byte renewals = 0;
byte holder = NONE;
bool released = true;

/* The timers of each daemon, in ticks; they go on whatever the daemon does. */
byte silent[DAEMONS];    /* since the row was first seen as it is */
byte requested[DAEMONS];     /* since the last request that takes or renews the lease was sent */
byte confirmed[DAEMONS]; /* since the last such request that was answered was sent */
bool leads[DAEMONS];

#define OPEN(daemon) (leads[daemon] && confirmed[daemon] < CONFIRMED)

inline saturate(timer) {
    if
    :: timer < TTL -> timer++
    :: else
    fi
}

active proctype time() {
    byte daemon;
    do
    :: d_step {
        daemon = 0;
        do
        :: daemon < DAEMONS ->
            saturate(silent[daemon]);
            saturate(requested[daemon]);
            saturate(confirmed[daemon]);
            daemon++
        :: else -> break
        od;
        daemon = 0
    }
    od
}

/* Begins to trust the lease that was just taken or renewed. */
inline confirm() {
#ifdef TRUST_FROM_ANSWER
    confirmed[me] = 0
#else
    confirmed[me] = requested[me]
#endif
}

active [DAEMONS] proctype daemon() {
    byte me = _pid - 1;
    byte seen_epoch = 0, seen_renewals = 0, row_epoch = 0, row_renewals = 0, silence = 0, term = 0;
    bool has_seen = false, may_take = false, done = false;
    do
    :: !leads[me] ->
        /* Looks at the row: the silence counts up to when the request is sent. */
        silence = silent[me];
        d_step {
            row_epoch = epoch;
            row_renewals = renewals;
            may_take = released
        }
        d_step {
            if
            :: has_seen && row_epoch == seen_epoch && row_renewals == seen_renewals -> may_take = may_take || silence >= SILENCE
            :: else ->
                has_seen = true;
                seen_epoch = row_epoch;
                seen_renewals = row_renewals;
                silent[me] = 0
            fi;
            silence = 0
        }
        if
        :: may_take && epoch < TERMS ->
            requested[me] = 0;
            d_step {
                done = epoch == row_epoch && renewals == row_renewals;
                if
                :: done ->
                    epoch++;
                    renewals = 0;
                    holder = me;
                    released = false
                :: else
                fi
            }
            d_step {
                has_seen = false;
                if
                :: done -> leads[me] = true; term = row_epoch + 1; confirm()
                :: else
                fi
            }
        :: may_take && epoch < TERMS ->
            /* The answer is lost: whether the lease was taken is not known, so it counts as not taken. */
            d_step {
                if
                :: epoch == row_epoch && renewals == row_renewals ->
                    epoch++;
                    renewals = 0;
                    holder = me;
                    released = false
                :: else
                fi;
                has_seen = false
            }
        :: else
        fi;
        d_step { may_take = false; done = false; row_epoch = 0; row_renewals = 0 }
    :: leads[me] && renewals < RENEWALS ->
        requested[me] = 0;
        d_step {
            done = epoch == term && holder == me;
            if
            :: done -> renewals++
            :: else
            fi
        }
        if
        :: true ->
            d_step {
                if
                :: done -> confirm()
                :: else -> leads[me] = false
                fi
            }
        :: true ->
            /* The answer is lost. */
#ifdef BELIEF_ON_ERROR
            confirmed[me] = 0
#else
            skip
#endif
        fi;
        done = false
    :: leads[me] ->
        /* Stops: the gate closes first. */
#ifdef RELEASE_FIRST
        d_step {
            if
            :: epoch == term && holder == me -> released = true
            :: else
            fi
        }
        leads[me] = false
#else
        leads[me] = false;
        d_step {
            if
            :: epoch == term && holder == me -> released = true
            :: else
            fi
        }
#endif
    od
}

#if DAEMONS == 2
ltl one_gate { [] !(OPEN(0) && OPEN(1)) }
#else
ltl one_gate { [] !(OPEN(0) && OPEN(1) || OPEN(0) && OPEN(2) || OPEN(1) && OPEN(2)) }
#endif
