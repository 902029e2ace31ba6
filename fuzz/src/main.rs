//! All fuzz targets in one program: `RUNWATCH_FUZZ_TARGET` says which one it runs. libFuzzer brings `main`.
//! Without `--cfg fuzzing`, as `run` sets it, there is nothing to fuzz.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod targets {
    use std::sync::LazyLock;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 11] = [
        ("answer", runwatch::providers::fuzzing::answer),
        ("reading", runwatch::providers::fuzzing::reading),
        ("pause", runwatch::providers::fuzzing::pause),
        ("events", runwatch::providers::fuzzing::events),
        ("redact", runwatch::providers::fuzzing::redact),
        ("config", runwatch::config::fuzzing::file),
        ("profile", runwatch::profile::fuzzing::profile),
        ("control", runwatch::control::fuzzing::request),
        ("template", runwatch::notify::fuzzing::template),
        ("input", runwatch::cli::fuzzing::input),
        ("arguments", runwatch::cli::fuzzing::arguments),
    ];

    static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
        let wanted =
            std::env::var("RUNWATCH_FUZZ_TARGET").expect("RUNWATCH_FUZZ_TARGET names a target");
        let found = TARGETS.iter().find(|(name, _)| *name == wanted);
        found
            .unwrap_or_else(|| panic!("no target is called {wanted}"))
            .1
    });

    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| CHOSEN(bytes));
}

#[cfg(not(fuzzing))]
fn main() {
    panic!("build it with fuzz/run");
}
