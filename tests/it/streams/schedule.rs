//! When runs that have an event stream are polled, against the schedule without one: in paused time.

use std::time::Duration;

use jiff::SignedDuration;
use runwatch::clock::Jump;
use runwatch::domain::{EventType, OverdueAfter};
use runwatch::providers::ApiError;
use tokio::time::Instant;

use super::paused::{HOUR, LATENCY, MINUTE, SECOND, Simulation, Stream, assert_within_budget, id};

/// What an answer takes and what rounding to milliseconds does, twice.
const SLACK: Duration = Duration::from_millis(100);

/// The promise of docs/performance.md for a run of this length that is only polled: a fifth of its age and a second, and
/// never more than half a minute.
fn promised(length: Duration) -> Duration {
    (length.mul_f64(0.2) + SECOND).min(SECOND * 30)
}

fn status(status: u16, retry_after: Option<Duration>) -> ApiError {
    ApiError::Status {
        status,
        message: String::new(),
        retry_after,
    }
}

const EVERY: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_run_with_a_working_stream_is_polled_at_the_longest_interval_and_at_its_end() {
    for length in [SECOND * 3, MINUTE, HOUR, HOUR * 5] {
        let simulation = Simulation::start(7, |_| ());
        let run = simulation
            .add(0, length, Stream::Works { every: EVERY })
            .await;
        let (verdict, delay) = simulation.verdict(&run).await;
        assert_eq!(verdict, EventType::RunSucceeded);
        assert!(delay <= LATENCY * 2, "{length:?}: {delay:?} late");
        assert_eq!(simulation.found_by(&run).await, "stream");
        let polls = simulation.api.polls_of(run.as_str());
        // Until the ordinary interval is longer than the stream is silent, there are ordinary polls; and one
        // at the end of each of the half hours after which the API ends a stream.
        let early = polls
            .iter()
            .filter(|at| **at - simulation.start < SECOND * 10)
            .count();
        let connections = simulation.api.streams().openings().len();
        // The next one is opened within a second.
        let half_hours = usize::try_from(length.as_secs() / 1801).unwrap();
        assert_eq!(connections, half_hours + 1, "{length:?}");
        let most = early + usize::try_from(length.as_secs()).unwrap() / 30 + connections;
        assert!(
            early <= 6 && polls.len() <= most,
            "{length:?}: {} polls, {early} early",
            polls.len()
        );
        for pair in polls.windows(2) {
            assert!(
                pair[1] - pair[0] <= SECOND * 30 + LATENCY,
                "{length:?}: polls {:?} apart",
                pair[1] - pair[0]
            );
        }
        let openings = simulation.api.streams().openings();
        assert!(openings[0].last_id.is_none());
        assert!(
            openings[1..]
                .iter()
                .all(|opening| opening.last_id.is_some()),
            "{openings:?}"
        );
        simulation.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_fault_of_a_stream_makes_an_end_later_than_polling_would() {
    let faults = [
        ("never opens", Stream::NeverOpens),
        ("is refused", Stream::Refused(|| status(500, None))),
        (
            "is unauthorized",
            Stream::Refused(|| ApiError::Unauthorized {
                status: 403,
                message: String::new(),
            }),
        ),
        (
            "asks for a pause",
            Stream::Refused(|| status(503, Some(HOUR))),
        ),
        ("is silent", Stream::Silent),
        (
            "hangs at once",
            Stream::Hangs {
                every: EVERY,
                after: SECOND,
            },
        ),
        (
            "hangs later",
            Stream::Hangs {
                every: SECOND,
                after: SECOND * 40,
            },
        ),
        (
            "hangs after a heartbeat that is rare",
            Stream::Hangs {
                every: SECOND * 15,
                after: SECOND * 50,
            },
        ),
        (
            "ends at once",
            Stream::Ends {
                every: EVERY,
                after: Duration::ZERO,
            },
        ),
        (
            "ends again and again",
            Stream::Ends {
                every: EVERY,
                after: SECOND * 7,
            },
        ),
        (
            "breaks",
            Stream::Breaks {
                every: EVERY,
                after: SECOND * 11,
            },
        ),
        ("lies", Stream::Lies),
        ("ends without a word", Stream::NoTerminal { every: EVERY }),
        ("works", Stream::Works { every: SECOND * 10 }),
    ];
    let lengths = [
        SECOND / 2,
        SECOND * 5,
        SECOND * 42,
        SECOND * 55,
        MINUTE * 10,
    ];
    for (fault, stream) in faults {
        for (index, length) in lengths.into_iter().enumerate() {
            let simulation = Simulation::start(index as u64, |_| ());
            let run = simulation.add(0, length, stream.clone()).await;
            let (verdict, delay) = simulation.verdict(&run).await;
            assert_eq!(verdict, EventType::RunSucceeded, "{fault}");
            assert!(
                delay <= promised(length) + SLACK,
                "{fault}: {length:?}: {delay:?} late"
            );
            assert_within_budget(&simulation.api, 60);
            // Reconnecting backs off: 1 s, 2 s, up to 5 minutes, each up to a third shorter.
            let openings = simulation.api.streams().openings().len();
            assert!(
                openings <= 14,
                "{fault}: {length:?}: {openings} streams opened"
            );
            simulation.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_that_outlives_its_run_hides_the_end_no_longer_than_the_longest_interval() {
    for length in [SECOND * 5, MINUTE * 2] {
        let simulation = Simulation::start(7, |_| ());
        let run = simulation.add(0, length, Stream::Floods).await;
        // Another run, without a stream: its polls are not delayed by the flood.
        let other = simulation.add(1, length, Stream::NeverOpens).await;
        let (_, delay) = simulation.verdict(&other).await;
        assert!(
            delay <= promised(length) + SLACK,
            "{length:?}: {delay:?} late"
        );
        let (verdict, delay) = simulation.verdict(&run).await;
        assert_eq!(verdict, EventType::RunSucceeded);
        assert!(delay <= SECOND * 30 + SLACK, "{length:?}: {delay:?} late");
        simulation.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_verdict_comes_from_a_stream_alone() {
    let simulation = Simulation::start(7, |_| ());
    let run = simulation.add(0, HOUR, Stream::Silent).await;
    tokio::time::sleep(SECOND * 30).await;
    // From now on nothing but the stream says something, and it says that the run has ended.
    simulation.api.streams().set_failing(true);
    simulation.api.streams().set_stream(&run, Stream::Lies);
    simulation
        .watches
        .reload(simulation.api.clone(), simulation.policy.clone())
        .await
        .unwrap();
    tokio::time::sleep(MINUTE * 50).await;
    assert!(
        simulation.api.streams().openings().len() > 1,
        "the stream reported an end"
    );
    assert!(
        simulation
            .event_types()
            .await
            .iter()
            .all(|event_type| event_type.verdict().is_none())
    );
    simulation.api.streams().set_failing(false);
    tokio::time::sleep(MINUTE * 5).await;
    assert!(
        simulation
            .event_types()
            .await
            .iter()
            .all(|event_type| event_type.verdict().is_none())
    );
    let (verdict, _) = simulation.verdict(&run).await;
    assert_eq!(verdict, EventType::RunSucceeded);
    assert!(Instant::now() - simulation.start >= HOUR);
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_without_streams_is_left_alone_for_an_hour() {
    let absent: [(u16, fn() -> ApiError); 4] = [
        (404, || ApiError::NotFound {
            message: String::new(),
        }),
        (405, || status(405, None)),
        (406, || status(406, None)),
        (501, || status(501, None)),
    ];
    for (code, absent) in absent {
        let simulation = Simulation::start(7, |_| ());
        let run = simulation
            .add(0, HOUR * 4 - MINUTE, Stream::Refused(absent))
            .await;
        tokio::time::sleep(MINUTE * 10).await;
        // Nor are the streams of other runs requested.
        for index in 1..10 {
            simulation
                .add(index, HOUR * 4, Stream::Refused(absent))
                .await;
        }
        tokio::time::sleep(MINUTE * 45).await;
        assert_eq!(simulation.api.streams().openings().len(), 1, "{code}");
        let (_, delay) = simulation.verdict(&run).await;
        assert!(delay <= SECOND * 30 + SLACK, "{code}: {delay:?}");
        let openings = simulation.api.streams().openings();
        for pair in openings.windows(2) {
            // Several may be requested before the first answer is there.
            let apart = pair[1].at - pair[0].at;
            assert!(apart >= HOUR || apart <= LATENCY, "{code}: {apart:?} apart");
        }
        let rounds = openings
            .windows(2)
            .filter(|pair| pair[1].at - pair[0].at >= HOUR)
            .count();
        assert_eq!(rounds, 3, "{code}: tried again every hour: {openings:?}");
        simulation.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_are_streams_a_missing_one_is_the_affair_of_its_run() {
    let simulation = Simulation::start(7, |_| ());
    simulation
        .add(0, HOUR, Stream::Works { every: EVERY })
        .await;
    tokio::time::sleep(MINUTE).await;
    simulation
        .add(
            1,
            HOUR,
            Stream::Refused(|| ApiError::NotFound {
                message: String::new(),
            }),
        )
        .await;
    tokio::time::sleep(MINUTE).await;
    let third = simulation
        .add(2, MINUTE, Stream::Works { every: EVERY })
        .await;
    let (_, delay) = simulation.verdict(&third).await;
    assert!(delay <= LATENCY * 2, "{delay:?}");
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_the_refusal_of_a_stream_asks_for_rests_the_streams_only() {
    for code in [429, 503, 403] {
        let why: fn() -> ApiError = match code {
            429 => || status(429, Some(MINUTE * 10)),
            503 => || status(503, Some(MINUTE * 10)),
            _ => || status(403, Some(MINUTE * 10)),
        };
        let simulation = Simulation::start(7, |_| ());
        let run = simulation.add(0, HOUR, Stream::Refused(why)).await;
        simulation
            .add(1, HOUR, Stream::Works { every: EVERY })
            .await;
        tokio::time::sleep(MINUTE * 9).await;
        let polls = simulation.api.polls_of(run.as_str());
        let longest = polls
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap();
        assert!(longest <= SECOND * 31, "{code}: {longest:?} without a poll");
        let refused = simulation
            .api
            .streams()
            .openings()
            .iter()
            .filter(|opening| opening.run_id == run)
            .count();
        assert_eq!(refused, 1, "{code}");
        simulation
            .api
            .streams()
            .set_stream(&run, Stream::Works { every: EVERY });
        tokio::time::sleep(MINUTE * 10).await;
        let opened = simulation
            .api
            .streams()
            .openings()
            .iter()
            .filter(|opening| opening.run_id == run)
            .count();
        assert_eq!(opened, 2, "{code}: its stream is opened after the pause");
        simulation.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_stream_delays_neither_a_deadline_nor_the_moment_a_run_is_overdue() {
    let simulation = Simulation::start(7, |policy| {
        policy.limits.overdue_after = OverdueAfter::Watched(MINUTE * 10)
    });
    let works = Stream::Works { every: SECOND };
    simulation
        .add_with_timeout(0, HOUR * 50, works, MINUTE * 20)
        .await;
    let all = [
        EventType::RunStarted,
        EventType::WatchOverdue,
        EventType::WatchTimedOut,
    ];
    // An answer each, and what rounding to milliseconds adds.
    for (minutes, count) in [(10, 2), (20, 3)] {
        tokio::time::sleep_until(simulation.start + MINUTE * minutes - SECOND).await;
        assert_eq!(simulation.event_types().await, all[..count - 1]);
        tokio::time::sleep(SECOND + SLACK).await;
        assert_eq!(
            simulation.event_types().await,
            all[..count],
            "after {minutes} min"
        );
    }
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_refused_are_opened_more_and_more_rarely() {
    let simulation = Simulation::start(7, |_| ());
    let why: fn() -> ApiError = || status(429, Some(SECOND * 20));
    for index in 0..8 {
        simulation.add(index, HOUR, Stream::Refused(why)).await;
    }
    tokio::time::sleep(HOUR - MINUTE).await;
    // After 80, 140, 260, 500, 980 and 1,940 s.
    let opened = simulation.api.streams().openings().len();
    assert!(
        (2..=7).contains(&opened),
        "{opened} streams were requested in an hour"
    );
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_watches_have_the_streams_there_are() {
    let simulation = Simulation::start(7, |policy| {
        policy.max_streams = 4;
        policy.requests_per_minute = 6000;
    });
    let works = || Stream::Works { every: EVERY };
    for index in 0..10 {
        simulation.add(index, HOUR, works()).await;
    }
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!(simulation.api.streams().open(), 4);
    let before = simulation.api.streams().openings().len();
    tokio::time::sleep(MINUTE * 5).await;
    assert_eq!(
        simulation.api.streams().openings().len(),
        before,
        "they keep their places"
    );
    let newest = simulation.add(10, MINUTE, works()).await;
    tokio::time::sleep(SECOND * 10).await;
    assert_eq!(
        simulation.api.streams().openings().last().unwrap().run_id,
        newest,
        "a newer one takes a place"
    );
    assert_eq!(simulation.api.streams().open(), 4);
    let (_, delay) = simulation.verdict(&newest).await;
    assert!(delay <= LATENCY * 2, "{delay:?}");
    tokio::time::sleep(SECOND * 10).await;
    assert_eq!(
        simulation.api.streams().open(),
        4,
        "its place is taken again"
    );
    // One whose stream was closed to make room is polled as if it had none.
    let old = simulation.api.polls_of(id(0).as_str());
    assert!(
        old.windows(2).all(|pair| pair[1] - pair[0] <= SECOND * 31),
        "{old:?}"
    );
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_polls_use_up_has_room_for_streams_and_for_what_they_say() {
    let simulation = Simulation::start(7, |policy| policy.requests_per_minute = 60);
    for index in 0..500 {
        simulation
            .add(index, HOUR * 10, Stream::Works { every: EVERY })
            .await;
    }
    tokio::time::sleep(MINUTE * 30).await;
    assert_eq!(simulation.api.streams().open(), 16);
    // A newer run takes a place, and its end is seen as soon as there is room for one request.
    let newest = simulation
        .add(500, MINUTE * 30, Stream::Works { every: EVERY })
        .await;
    let (verdict, delay) = simulation.verdict(&newest).await;
    assert_eq!(verdict, EventType::RunSucceeded);
    assert!(delay <= SECOND * 2, "{delay:?}");
    assert_eq!(simulation.found_by(&newest).await, "stream");
    assert_within_budget(&simulation.api, 60);
    // The others are polled in turn: fair shares, but for those whose streams stand for polls.
    let polls: Vec<_> = (0..400)
        .map(|index| simulation.api.polls_of(id(index).as_str()).len())
        .collect();
    let (least, most) = (polls.iter().min().unwrap(), polls.iter().max().unwrap());
    assert!(most - least <= 2, "between {least} and {most} polls each");
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_and_a_suspend_open_the_streams_anew() {
    let simulation = Simulation::start(7, |_| ());
    for index in 0..3 {
        simulation
            .add(index, HOUR * 10, Stream::Works { every: EVERY })
            .await;
    }
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (3, 3)
    );
    simulation.clock.jump(Jump {
        slept: HOUR,
        stepped: SignedDuration::ZERO,
    });
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (3, 6)
    );
    // The wall clock alone says nothing about connections.
    simulation.clock.jump(Jump {
        slept: Duration::ZERO,
        stepped: SignedDuration::from_secs(-90),
    });
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (3, 6)
    );

    let mut policy = simulation.policy.clone();
    policy.max_streams = 2;
    simulation
        .watches
        .reload(simulation.api.clone(), policy.clone())
        .await
        .unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (2, 8)
    );
    policy.max_streams = 0;
    simulation
        .watches
        .reload(simulation.api.clone(), policy.clone())
        .await
        .unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (0, 8)
    );
    policy.max_streams = 16;
    simulation
        .watches
        .reload(simulation.api.clone(), policy)
        .await
        .unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(
        (
            simulation.api.streams().open(),
            simulation.api.streams().openings().len()
        ),
        (3, 11)
    );
    simulation.watches.remove(id(1), false).await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(
        simulation.api.streams().open(),
        2,
        "the stream of a watch that is gone is closed"
    );
    simulation.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_request_is_sent_while_nothing_happens() {
    // The scheduler has nothing to do but to look at the clock once a second, whatever rests or waits.
    let simulation = Simulation::start(7, |policy| {
        policy.max_streams = 1;
        policy.backoff.initial = HOUR;
        policy.backoff.max = HOUR;
    });
    simulation
        .add(0, HOUR * 10, Stream::Refused(|| status(500, None)))
        .await;
    simulation.add(1, HOUR * 10, Stream::Silent).await;
    simulation
        .add(
            2,
            HOUR * 10,
            Stream::Refused(|| ApiError::NotFound {
                message: String::new(),
            }),
        )
        .await;
    // In paused time a task that never rests would stop the clock, and this would not come to its end.
    tokio::time::sleep(HOUR * 2).await;
    assert!(
        simulation.api.polls().len() <= 3 * 4,
        "{:?}",
        simulation.api.polls().len()
    );
    simulation.end().await;
}
