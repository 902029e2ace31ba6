/* A model of the lease (src/lease/task.rs, src/store/postgres/keeper.rs) for the model checker Spin: daemons that may be
 * as slow as they like at every step, which stands for a frozen process, a suspended machine and a network that hangs;
 * answers that are lost; and a row that is changed atomically.
 *
 * Time passes in ticks, a fifth of the lease each would be too fine: the lease lasts TTL ticks, and the gate of a leader
 * is open for CONFIRMED ticks from when its last renewal that was answered was sent.
 *
 * With PROMOTION, a standby that has the row as it was at any time is promoted at any later time, once. What happened to the
 * row in between is lost.
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
bool is_promoted = false; /* since the term began */

bool timeline = false;    /* of the server: whether a standby was promoted */

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

/* Whether the row was seen like this before. */
#ifdef SILENCE_GOES_ON
#define SEEN_BEFORE (row_epoch == seen_epoch && row_renewals == seen_renewals && row_holder == seen_holder)
#else
#define SEEN_BEFORE (row_epoch == seen_epoch && row_renewals == seen_renewals && row_holder == seen_holder && row_timeline == seen_timeline)
#endif

/* Whether the row is as it was looked at. */
#ifdef TAKEN_ON_ANOTHER_TIMELINE
#define UNCHANGED (epoch == row_epoch && renewals == row_renewals && holder == row_holder)
#else
#define UNCHANGED (epoch == row_epoch && renewals == row_renewals && holder == row_holder && timeline == row_timeline)
#endif

/* Whether the own term goes on. */
#define GOES_ON (epoch == term && holder == me && !is_promoted)

inline begin_term() {
    epoch++;
    renewals = 0;
    holder = me;
    released = false;
    is_promoted = false
}

active [DAEMONS] proctype daemon() {
    byte me = _pid - 1;
    byte seen_epoch = 0, seen_renewals = 0, seen_holder = NONE;
    byte row_epoch = 0, row_renewals = 0, row_holder = NONE;
    byte silence = 0, term = 0;
    bool has_seen = false, may_take = false, done = false, seen_timeline = false, row_timeline = false;
    do
    :: !leads[me] ->
        /* Looks at the row: the silence counts up to when the request is sent. */
        silence = silent[me];
        d_step {
            row_epoch = epoch;
            row_renewals = renewals;
            row_holder = holder;
            row_timeline = timeline;
#ifdef PROMOTION_UNSEEN
            may_take = released
#else
            may_take = released && !is_promoted
#endif
        }
        d_step {
            if
            :: has_seen && SEEN_BEFORE -> may_take = may_take || silence >= SILENCE
            :: else ->
                has_seen = true;
                seen_epoch = row_epoch;
                seen_renewals = row_renewals;
                seen_holder = row_holder;
                seen_timeline = row_timeline;
                silent[me] = 0
            fi;
            silence = 0
        }
        if
        :: may_take && epoch < TERMS ->
            requested[me] = 0;
            d_step {
                done = UNCHANGED;
                if
                :: done -> begin_term()
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
                :: UNCHANGED -> begin_term()
                :: else
                fi;
                has_seen = false
            }
        :: else
        fi;
        d_step { may_take = false; done = false; row_epoch = 0; row_renewals = 0; row_holder = NONE; row_timeline = false }
    :: leads[me] && renewals < RENEWALS ->
        requested[me] = 0;
        d_step {
            done = GOES_ON;
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
            :: GOES_ON -> released = true
            :: else
            fi
        }
        leads[me] = false
#else
        leads[me] = false;
        d_step {
            if
            :: GOES_ON -> released = true
            :: else
            fi
        }
#endif
    od
}

#ifdef PROMOTION
active proctype standby() {
    byte its_epoch, its_renewals, its_holder;
    bool its_released;
    d_step {
        holder != NONE -> /* without it the standby lacks the table, too */
        its_epoch = epoch;
        its_renewals = renewals;
        its_holder = holder;
        its_released = released
    }
    d_step {
        epoch = its_epoch;
        renewals = its_renewals;
        holder = its_holder;
        released = its_released;
        is_promoted = true;
        timeline = true;
        its_epoch = 0;
        its_renewals = 0;
        its_holder = 0;
        its_released = false
    }
}
#endif

#if DAEMONS == 2
ltl one_gate { [] !(OPEN(0) && OPEN(1)) }
#else
ltl one_gate { [] !(OPEN(0) && OPEN(1) || OPEN(0) && OPEN(2) || OPEN(1) && OPEN(2)) }
#endif
