/* The lease as a model: every state of the word, every way it changes hands.
 *
 * It mirrors fastserve/engine/lease.pxd function by function (the names in the comments) and the
 * policy of _core.pyx around it: the worker's loop, the watcher's loop, closing. One step here is
 * one access to shared memory there. What only the holder touches moves in larger steps, because
 * each of them first asserts that whoever takes it is the holder. Time is absent: a verdict on a
 * word that stood for two looks may fall at any moment, or never.
 *
 * Checked:
 *   - never two holders, and nothing of a reactor is touched while a word is published  (touch)
 *   - a word is taken back only by the thread that published it, and only once      (take_back)
 *   - a connection's output is never in two hands, and replies leave in order     (hold_output)
 *   - no handler runs twice at a time on a connection                                  (handle)
 *   - at most one thread a reactor waits for the GIL as its holder or its gil_waiter      (WANT)
 *   - when nothing moves any more: every request was answered, no connection is under way, no
 *     watcher sleeps beside a standing word or with the lease in hand, no worker is parked while a
 *     watcher holds with ready requests and nobody waits for the GIL, no reactor is hungry and
 *     `wanted` is 0 again; after closing: every thread has ended                       (Quiet)
 *   - with LIVENESS and weak fairness: every request is answered in the end    (ltl all_answered)
 *   - with REST: it comes to rest: there is no cycle at all, fair or not. Requests are few and every
 *     word is new, so a cycle is leases going round without a request      (pan -l, no progress label)
 *
 * One request of connection 0 may block until all other connections were answered: only a hand-over
 * gets it on, so a wake-up that is lost anywhere ends in a standstill, which Quiet sees. With two
 * reactors and two workers the other worker may idle as the holder of the other reactor: only hunger
 * brings it over.
 *
 * Instances: WORKERS, LEASES (reactors, each with its watcher), CONNS (connection c belongs to
 * reactor c % LEASES; SKEWED: all to reactor 0), FIRST (requests on connection 0; one on each other),
 * TAILS, NO_GIL, CLOSING, SPARES (every worker is a spare one, which passes an idle lease on).
 * To make one smaller: EAGER (a verdict and an arrival fall at once), SHARP (a watcher without its
 * sleep), NEVER_FIRST (no request is taken along), INDEPENDENT (no handler waits for
 * another connection). LIVENESS checks the ltl instead of Quiet. Seeded mistakes, each of which must
 * be caught: MISTAKES in test_lease_model.py.
 */

#if defined(LIVENESS) || defined(REST)
#define EAGER
#endif
#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef LEASES
#define LEASES 1
#endif
#ifndef CONNS
#define CONNS 2
#endif
#ifndef FIRST
#define FIRST 2
#endif

#define TOTAL (FIRST + CONNS - 1)

/* The word: a state, and above it a number that never comes again, on any reactor: a worker compares
   the words of several reactors with the one let_go that it has. */
#define IO 0
#define WANT 1
#define CALL 2
#define TAIL 3
#define STATE(w) ((w) & 3)
#ifdef SAME_NUMBERS
#define FIRST_NUMBER(r) 0
#else
#define FIRST_NUMBER(r) ((r) * 24)
#endif

/* `holder` as the code writes it, and the futex word of a worker. */
#define WATCHER 255
#define PARKED 0
#define LEAVE 1
#define LENT 2

/* Where a connection is. */
#define IDLE 0      /* its next request is read as soon as it arrives */
#define READY 1     /* in the list of ready connections */
#define AWAY 2      /* taken for a call */
#define INBOX 3     /* coming home */

/* The thread that owns the GIL; workers are 0.., watchers follow. */
#define NOBODY 255
#define SELF_WATCHER(r) (WORKERS + (r))

/* struct Lease */
byte word[LEASES];
byte n[LEASES];
byte holder[LEASES];
byte asker[LEASES];
byte gil_waiter[LEASES];
bit asleep[LEASES];
bit hungry[LEASES];
bit closed[LEASES];

/* struct Crew, struct Mate. What crew.lock covers is one step here. */
byte stack[WORKERS];
byte parked;
bit closing;            /* the server's: watchers, and holders in IO */
bit nobody_parks;       /* crew.closing */
byte wanted;
byte wake[WORKERS];
byte let_go[WORKERS];

/* The reactor. */
bit poked[LEASES];      /* the eventfd: edge-triggered, one event however many pokes */
byte ready[LEASES];     /* bit c: connection c */
byte inbox[LEASES];     /* struct Lease's; bit c; pushed by anybody, taken whole by the holder */
byte called[LEASES];    /* the connection of the published CALL */

/* Connections. */
byte where[CONNS];
bit armed[CONNS];       /* the epoll set reports it */
byte left[CONNS];       /* requests that the client has still to send */
byte out[CONNS];        /* replies committed, not sent */
byte answered[CONNS];

byte gil = NOBODY;

/* What no thread may look at: the truth that the assertions compare with. */
hidden byte k;
byte rightful[LEASES];  /* the thread that holds */
bit in_io[LEASES];      /* and nothing is published */
byte queued[LEASES];    /* threads that wait for the GIL as holder or gil_waiter */
bit output_held[CONNS];
bit running[CONNS];
byte ended;

#define BIT(c) (1 << (c))
#ifdef SKEWED
#define MINE(r, c) ((r) == 0)
#else
#define MINE(r, c) ((c) % LEASES == (r))
#endif

#if CONNS == 1
#define DONE (answered[0] == FIRST)
#define OTHERS true
#define READABLE(r) (armed[0] && left[0])
#elif CONNS == 2
#define DONE (answered[0] == FIRST && answered[1] == 1)
#define OTHERS (answered[1] == 1)
#define READABLE(r) ((MINE(r, 0) && armed[0] && left[0]) || (MINE(r, 1) && armed[1] && left[1]))
#else
#define DONE (answered[0] == FIRST && answered[1] == 1 && answered[2] == 1)
#define OTHERS (answered[1] == 1 && answered[2] == 1)
#define READABLE(r) ((MINE(r, 0) && armed[0] && left[0]) || (MINE(r, 1) && armed[1] && left[1]) \
                     || (MINE(r, 2) && armed[2] && left[2]))
#endif


/* Whoever touches a reactor is its holder, in IO. */
inline touch(me, r) {
    assert(rightful[r] == me && in_io[r])
}

inline hold_output(c) {
    assert(!output_held[c]);
    output_held[c] = 1
}

/* next_call */
inline pick(r, c) {
    if
    :: ready[r] & 1 -> c = 0
    :: ready[r] & 2 -> c = 1
    :: ready[r] & 4 -> c = 2
    fi;
    ready[r] = ready[r] & ~BIT(c);
    assert(where[c] == READY);
    where[c] = AWAY
}

/* lease_publish. The store of the word comes before the load of `asleep`, lease_wake_watcher swaps. */
inline publish(me, r, w, state) {
#ifdef LOADS_BEFORE_STORE
    sleeps = asleep[r];
#endif
    d_step {
        touch(me, r);
#ifndef PLAIN_FLAG
        n[r]++;
#endif
        w = (n[r] << 2) | state;
        if
        :: state == WANT -> queued[r]++; assert(queued[r] <= 1)
        :: else
        fi;
        in_io[r] = (state == IO);
        word[r] = w
    }
#ifdef LOADS_BEFORE_STORE
    if
    :: sleeps -> asleep[r] = 0; sleeps = 0
    :: else
    fi
#else
    if
    :: asleep[r] -> asleep[r] = 0
    :: else
    fi
#endif
}

/* lease_take_back: one compare-and-swap. */
inline take_back(me, r, w, ok) {
#ifdef TAKES_BACK_WITH_A_STORE
    ok = (word[r] == w);
    if
    :: ok -> d_step { assert(rightful[r] == me); word[r] = w & ~3; in_io[r] = 1 }
    :: else
    fi
#else
    d_step {
        ok = (word[r] == w);
        if
        :: ok -> assert(rightful[r] == me && !in_io[r]); word[r] = w & ~3; in_io[r] = 1
        :: else
        fi
    }
#endif
}

/* lease_seize: the same compare-and-swap, by the watcher. */
inline seize(me, r, w, ok) {
    d_step {
        ok = (word[r] == w);
        if
        :: ok -> word[r] = w & ~3; rightful[r] = me; in_io[r] = 1
        :: else
        fi
    }
}

/* crew_pop. */
inline pop(m) {
    d_step {
        m = NOBODY;
        if
        :: parked -> parked--; m = stack[parked]; stack[parked] = 0
        :: else
        fi
    }
}

/* lease_lend: `holder` first; the store into the futex word is the hand-over. */
inline lend(me, r, m) {
    d_step { touch(me, r); holder[r] = m }
    d_step { assert(wake[m] == PARKED); rightful[r] = m; wake[m] = LENT + r }
}

/* event_poke. */
inline poke(r) {
    poked[r] = 1
}

/* lease_give_up. */
inline give_up(me, r) {
    d_step { touch(me, r); rightful[r] = SELF_WATCHER(r); holder[r] = WATCHER }
    asleep[r] = 0                                   /* lease_wake_watcher */
}

/* watcher_hungers. */
inline hungers(r, so) {
    if
    :: hungry[r] == (so)
    :: hungry[r] && !(so) -> atomic { hungry[r] = 0; assert(wanted); wanted-- }
    :: !hungry[r] && (so) ->
        atomic { hungry[r] = 1; wanted++ }
#if LEASES == 2 && !defined(HUNGERS_WITHOUT_A_POKE)
        poked[1 - r] = 1
#endif
    fi
}

/* A connection comes home, or keeps its place after a call on lease: what is already buffered makes
   it ready at once, because epoll will not report it; else it is armed again. */
inline settle(r, c) {
    if
    :: left[c] -> left[c]--; where[c] = READY; ready[r] = ready[r] | BIT(c)
    :: where[c] = IDLE; armed[c] = 1
    fi
}

/* take_home: home_take is one swap; the rest is the holder's. */
inline take_home(me, r) {
    atomic {
        touch(me, r);
        do
        :: inbox[r] ->
            c = (inbox[r] & 1 -> 0 : (inbox[r] & 2 -> 1 : 2));
            inbox[r] = inbox[r] & ~BIT(c);
            assert(where[c] == INBOX && !output_held[c] && !running[c] && !out[c]);
            settle(r, c)
        :: else -> break
        od;
        c = 0
    }
}

/* A turn: take connections home, send what was committed, epoll_wait, take home once more, parse. A
   worker (`calls`) waits unless something is ready or another reactor wants it: the poke that told it so
   may be one that an earlier turn took. The watcher waits all the same, for a poke: it runs no handlers.
   Which of the readable connections epoll reports is open; `events` has them. */
#ifdef WAITS_WHILE_WANTED
#define WAITS(r) (ready[r] == 0)
#else
#define WAITS(r) (ready[r] == 0 && wanted == 0)
#endif
inline turn(me, r, calls) {
    take_home(me, r);
    d_step {
        touch(me, r);
        k = 0;
        do
        :: k < CONNS ->
            if
            :: MINE(r, k) && where[k] != AWAY && where[k] != INBOX && out[k] ->
                assert(!output_held[k]);
                answered[k] = answered[k] + out[k];
                out[k] = 0
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    }
    ok = !(calls) || WAITS(r);
    atomic {
        (!ok || poked[r] || READABLE(r)) ->
        touch(me, r);
        ok = 0;
        poked[r] = 0;
        do
        :: c < CONNS ->
            if
            :: MINE(r, c) && armed[c] && left[c] -> events = events | BIT(c)
#ifdef EAGER
            :: else
#else
            :: true
#endif
            fi;
            c++
        :: else -> break
        od;
        c = 0
    }
    take_home(me, r);
    do
    :: atomic { events ->
            c = (events & 1 -> 0 : (events & 2 -> 1 : 2));
            events = events & ~BIT(c);
            if
            :: where[c] == IDLE && left[c] -> left[c]--; where[c] = READY; ready[r] = ready[r] | BIT(c)
            :: where[c] != IDLE -> armed[c] = 0     /* disturbed; it is armed again when it is home */
            :: else
            fi;
            c = 0
        }
    :: atomic { !events -> touch(me, r); break }
    od
}

inline take_gil(me) {
#ifndef NO_GIL
    atomic { gil == NOBODY -> gil = me }
#else
    skip
#endif
}

inline drop_gil(me) {
#ifndef NO_GIL
    d_step { assert(gil == me); gil = NOBODY }
#else
    skip
#endif
}

/* A handler: it returns, sooner or later; or it blocks without the GIL, in the worst case until every
   other connection was answered. (Computing is not returning yet.) */
inline handle(me, c) {
    d_step { assert(!running[c] && where[c] == AWAY); running[c] = 1 }
    if
    :: skip
#ifdef INDEPENDENT
    :: drop_gil(me); take_gil(me)
#else
    :: c == 0 -> drop_gil(me); (OTHERS || nobody_parks); take_gil(me)
#endif
    fi;
    running[c] = 0
}


proctype Worker(byte me) {
    byte r, c, w, m, events;
    bit ok;
#ifdef LOADS_BEFORE_STORE
    bit sleeps;
#endif

park:   /* crew_park */
    atomic { r = 0; c = 0; w = 0; m = 0; ok = 0; wake[me] = PARKED }
    atomic {                                        /* crew_push */
        if
        :: nobody_parks -> goto leave
#ifdef SPARES
        :: else -> stack[1] = stack[0]; stack[0] = me; parked++
#else
        :: else -> stack[parked] = me; parked++
#endif
        fi
    }
#ifndef PARKS_WITHOUT_A_POKE
    do
    :: r < LEASES ->
        if
        :: holder[r] == WATCHER -> poke(r)
        :: else
        fi;
        r++
    :: else -> r = 0; break
    od;
#endif
    atomic {
        wake[me] != PARKED ->
        if
        :: wake[me] == LEAVE -> goto leave
        :: else -> r = wake[me] - LENT
        fi
    }

io:     /* the holder, without the GIL */
#ifdef CLOSING
    if
    :: closing -> give_up(me, r); goto leave
    :: else
    fi;
#endif
    turn(me, r, true);
    if
    :: ready[r] == 0 ->
        if
        :: atomic { wanted -> ok = 0 }              /* lease_spares */
            give_up(me, r);
            goto park
        :: else -> goto idles
        fi
    :: else
    fi;
    goto has;
idles:
#ifdef SPARES
    pop(m);                                         /* lease_pass */
    if
    :: m != NOBODY -> lend(me, r, m); goto park
    :: else
    fi;
#endif
    goto io;
has:
#ifndef NEVER_FIRST
    if
    :: atomic { touch(me, r); pick(r, c) }          /* take_along */
        pop(m);
        if
        :: m != NOBODY ->
            d_step { touch(me, r); answered[c] = answered[c] + out[c]; out[c] = 0 }
            publish(me, r, w, IO);
            lend(me, r, m);
            take_gil(me);
            handle(me, c);
            drop_gil(me);
            goto home
        :: else -> d_step { touch(me, r); where[c] = READY; ready[r] = ready[r] | BIT(c) }
        fi
    :: skip
    fi;
#endif

    publish(me, r, w, WANT);
    atomic { take_gil(me); queued[r]-- }
    take_back(me, r, w, ok);
    if
    :: ok
    :: else ->                                      /* lease_ask */
        wake[me] = PARKED;
        asker[r] = me + 1;
#ifndef ASKS_WITHOUT_LOOKING
        if
        :: closed[r] -> drop_gil(me); goto park
        :: else
        fi;
#endif
        poke(r);
        wake[me] != PARKED;
        if
        :: wake[me] == LEAVE -> drop_gil(me); goto park
        :: else
        fi
    fi;

batch:  /* the holder, with the GIL; something is ready */
    atomic { touch(me, r); pick(r, c) }
    called[r] = c;
    publish(me, r, w, CALL);
    handle(me, c);
    take_back(me, r, w, ok);
    if
    :: ok ->                                        /* commit the reply */
        atomic {
            touch(me, r);
            assert(!output_held[c]);
            out[c]++;
            settle(r, c)
        }
    :: else ->
        drop_gil(me);
#ifndef WAITS_FOR_NO_LET_GO
        let_go[me] == w;
#endif
        goto home
    fi;

    if
    :: ready[r] -> goto batch
    :: skip
    fi;
#ifdef TAILS
    if
    :: publish(me, r, w, TAIL);
        take_back(me, r, w, ok);
        if
        :: ok
        :: else -> drop_gil(me); goto park
        fi
    :: skip
    fi;
#endif
    drop_gil(me);
#ifdef SPARES
    if
    :: ready[r] == 0 -> goto idles                  /* it parks, if somebody else is there */
    :: else
    fi;
#endif
    goto io;

home:   /* off lease: send on its own connection, then the inbox */
    hold_output(c);
    d_step { assert(!out[c]); answered[c]++; output_held[c] = 0 }
    d_step { where[c] = INBOX; inbox[r] = inbox[r] | BIT(c) }   /* home_push */
    if
    :: poke(r); goto park                           /* there is more for the holder to do */
    :: skip                                         /* quiet, unless */
    fi;
    if
    :: !armed[c] -> poke(r); goto park
    :: else
    fi;
#ifndef LOOKS_AT_NO_WATCHER
    if
    :: asleep[r] -> poke(r)
    :: else
    fi;
#endif
    goto park;

leave:
    ended++
}


proctype Watcher(byte r) {
    byte me = SELF_WATCHER(r);
    byte seen, w, who, m, c, events;
    bit ok;

holds:  /* it holds: turns, and gives after each */
#ifdef CLOSING
    if
    :: closing -> goto closes
    :: else
    fi;
#endif
    turn(me, r, false);
    atomic { ok = (ready[r] != 0); m = asker[r] }   /* watcher_gives */
    if
    :: m ->
        gil_waiter[r] = 0;
        asker[r] = 0;
        m--;
        lend(me, r, m);
        ok = 0
#ifdef GIVES_TO_ANYBODY
    :: !m ->
#else
    :: !m && gil_waiter[r] -> ok = 0; m = NOBODY
    :: !m && !gil_waiter[r] ->
#endif
        if
#ifndef TAKES_WITHOUT_NEED
        :: !ok && wanted -> m = NOBODY
#endif
        :: else ->
            pop(m);
            if
            :: m == NOBODY
            :: else -> lend(me, r, m); ok = 0
            fi
        fi
    fi;
    hungers(r, ok);
    if
    :: m == NOBODY -> m = 0; ok = 0; goto holds
    :: else -> m = 0
    fi;

looks:  /* watcher_looks: twice the same word for a verdict */
#ifdef SHARP
    /* The same with fewer steps: it neither sleeps nor looks at words that do not stand, and whoever holds
       beside an inbox is poked without waiting for its sleep. */
    atomic {
        who = 0; m = 0; c = 0; ok = 0;
        if
        :: holder[r] == WATCHER -> goto holds
        :: STATE(word[r]) != IO -> w = word[r]
        :: STATE(word[r]) == IO && inbox[r] && !poked[r] -> poked[r] = 1; goto looks
        fi
    }
    goto seizes;
#endif
    if
    :: holder[r] == WATCHER -> goto holds           /* a worker gave it up */
    :: else
    fi;
    atomic { who = 0; m = 0; c = 0; ok = 0; w = word[r] }
    atomic { who = holder[r];
#ifdef ASKS_ANYBODY
    assert(w != seen || STATE(w) != CALL || who != WATCHER);    /* whose clock, whose state? */
#endif
    if
    :: closing && STATE(w) != IO -> seen = w; who = 0; goto seizes
    :: !closing && w == seen && STATE(w) == CALL && who == WATCHER -> goto looks
    :: else -> who = 0
    fi }
    if
    :: w != seen -> seen = w; goto looks
    :: w == seen && STATE(w) == IO                  /* QUIET: watcher_rests */
    :: w == seen && STATE(w) != IO -> goto seizes
#ifndef EAGER
    :: w == seen -> goto looks
#endif
    fi;
    asleep[r] = 1;
#ifndef RESTS_BESIDE_AN_INBOX
    if
    :: inbox[r] -> poke(r)
    :: else
    fi;
#endif
    if
    :: word[r] == seen ->
#ifndef RESTS_WITHOUT_LOOKING
        if
        :: holder[r] == WATCHER -> goto rested
        :: else
        fi;
#endif
        if
        :: !nobody_parks -> asleep[r] == 0
        :: else
        fi
    :: else
    fi;
rested:
    asleep[r] = 0;
    goto looks;

seizes:
    seize(me, r, w, ok);
    if
    :: !ok -> goto looks
    :: else -> who = holder[r]
    fi;
    if
    :: STATE(w) == CALL ->
        c = called[r];
        hold_output(c);                             /* what was committed before goes first */
        d_step { answered[c] = answered[c] + out[c]; out[c] = 0; output_held[c] = 0; c = 0 }
        let_go[who] = w
    :: STATE(w) == WANT -> gil_waiter[r] = who + 1
    :: else
    fi;
#ifdef HOLDS_LATE
    pop(m);
    if
    :: STATE(w) != WANT && m != NOBODY -> lend(me, r, m); goto looks
    :: else -> holder[r] = WATCHER; goto holds
    fi;
#else
    d_step { touch(me, r); holder[r] = WATCHER }    /* before the look at the stack: see crew_park */
    if
    :: STATE(w) == WANT -> goto holds
    :: else
    fi;
    pop(m);                                         /* lease_pass */
    if
    :: m == NOBODY ->
        m = 0;
#ifndef HUNGERS_AT_THE_END_OF_A_TURN
        hungers(r, ready[r] != 0);
#endif
        goto holds
    :: else -> lend(me, r, m); goto looks
    fi;
#endif

closes: /* watcher_closes */
    atomic { touch(me, r); closed[r] = 1 }
    m = asker[r];
    if
    :: m -> wake[m - 1] = LEAVE
    :: else
    fi;
    ended++
}


#ifdef CLOSING
/* Core.close: crew_close, then a wake-up for each holder in epoll_wait and for each watcher. */
proctype Closer() {
    byte m, r;
    closing = 1;
    nobody_parks = 1;                               /* crew_close */
    do
    :: pop(m);
        if
        :: m == NOBODY -> break
        :: else -> wake[m] = LEAVE
        fi
    od;
    m = 0;
    do
    :: r < LEASES ->
        poke(r);
        asleep[r] = 0;                              /* lease_wake_watcher */
        r++
    :: else -> break
    od
}
#endif


#ifndef LIVENESS
/* Nothing can move any more: then nothing may be left to do. */
proctype Quiet() {
    byte i;
    timeout ->
#ifdef CLOSING
    assert(ended == WORKERS + LEASES);
    i = 0;
    do
    :: i < CONNS ->
        assert(where[i] != AWAY && !running[i] && !output_held[i]);
        i++
    :: else -> break
    od
#else
    i = 0;
    do
    :: i < LEASES ->
        assert(!(asleep[i] && (STATE(word[i]) != IO || holder[i] == WATCHER)));
        assert(!hungry[i]);
        assert(!(holder[i] == WATCHER && parked && ready[i] && !gil_waiter[i]));
        assert(holder[i] != WATCHER || rightful[i] == SELF_WATCHER(i));
        i++
    :: else -> break
    od;
    assert(DONE && wanted == 0);
    i = 0;
    do
    :: i < CONNS -> assert(where[i] == IDLE && !out[i] && !left[i]); i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < LEASES -> assert(!ready[i] && !inbox[i]); i++
    :: else -> break
    od
#endif
}
#endif


init {
    byte i;
    atomic {
        do
        :: i < LEASES ->                            /* lease_make */
            n[i] = FIRST_NUMBER(i);
            holder[i] = WATCHER;
            rightful[i] = SELF_WATCHER(i);
            in_io[i] = 1;
            run Watcher(i);
            i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < CONNS -> left[i] = (i == 0 -> FIRST : 1); armed[i] = 1; i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < WORKERS -> run Worker(i); i++
        :: else -> break
        od;
#ifdef CLOSING
        run Closer();
#endif
#ifndef LIVENESS
        run Quiet();
#endif
        i = 0
    }
}

#ifdef LIVENESS
ltl all_answered { <> DONE }
#endif
