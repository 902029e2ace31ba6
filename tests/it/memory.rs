//! Memory of the built daemon in a burst of large outputs, and after it.

use std::time::Duration;

use runwatch::domain::RunRef;
use runwatch::simulator::{Receiver, Script};
use tokio::process::Child;

use crate::daemon::{add, program, start, stop};
use crate::support::{PATIENCE, api, eventually, received_within};

const MIB: u64 = 1024 * 1024;

/// A figure of the process, in bytes, by its name in `/proc/PID/status`.
fn figure(daemon: &Child, name: &str) -> u64 {
    let pid = daemon.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.expect(name).parse::<u64>().unwrap() * 1024
}

/// Memory that belongs to the process alone: pages of the program itself are not counted.
fn anonymous(daemon: &Child) -> u64 {
    figure(daemon, "RssAnon")
}

#[tokio::test]
async fn memory_comes_back_after_a_burst_of_large_outputs() {
    const RUNS: usize = 6;
    const OUTPUT: usize = 7 * 1024 * 1024;
    let simulator = api([]).await;
    let receiver = Receiver::start([]).await.unwrap();
    let configured = "[api]\nrequests_per_minute = 100000\n[watch]\nevents = \"off\"\n";
    let program = program(&simulator, &receiver, configured);
    let daemon = start(&program).await;
    for number in 0..RUNS {
        let id = format!("large_{number}");
        // The first requests find it running, so that all end together.
        let script = Script::succeeds()
            .runs_for(Duration::from_secs(5))
            .from_first_poll()
            .output("m".repeat(OUTPUT).into());
        simulator.add_run(&RunRef::new(&id).unwrap(), script);
        add(&program, &id).await;
    }
    let idle = anonymous(&daemon);
    // A program with debug assertions reads so much slowly, and beside other tests more so.
    received_within(10 * PATIENCE, &receiver, RUNS).await;
    // 42 MiB of outputs came at once; the bound of answers in memory is 16 MiB, and each may be there a few times. The
    // test of the container image has 64 runs, and a build that is fast enough for them.
    let (peak, least) = (figure(&daemon, "VmHWM"), figure(&daemon, "VmRSS"));
    assert!(
        peak < 96 * MIB,
        "{} MiB at the most, {} MiB now",
        peak / MIB,
        least / MIB
    );
    eventually("the memory is given back", || {
        anonymous(&daemon) < idle + 4 * MIB
    })
    .await;
    assert_eq!(stop(daemon).await.code, Some(0));
}
