//! What the kernel knows of this process, under the names that the client libraries of Prometheus share (prometheus.io,
//! "Writing client libraries", "Process metrics").

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Registers what can be read. The files of /proc/self are in memory, so that reading them does not block.
pub(super) fn register(registry: &mut Registry) {
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by(seconds(clock_gettime(ClockId::ProcessCPUTime)));
    let help = "Processor time that the process used, in user and kernel mode";
    registry.register("process_cpu_seconds", help, cpu);
    let (resident, virtual_size) = memory();
    let gauges = [
        (
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM",
            resident,
        ),
        (
            "process_virtual_memory_bytes",
            "Address space of the process",
            virtual_size,
        ),
        (
            "process_open_fds",
            "File descriptors that are open",
            open_files(),
        ),
        (
            "process_max_fds",
            "File descriptors that may be open",
            getrlimit(Resource::Nofile).current.map(as_float),
        ),
        (
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            started(),
        ),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating-point")]
fn as_float(count: u64) -> f64 {
    count as f64
}

fn seconds(time: Timespec) -> f64 {
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

/// Resident and virtual memory in bytes (proc_pid_status(5), `VmRSS` and `VmSize`, in kB).
fn memory() -> (Option<f64>, Option<f64>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(as_float(kilobytes * 1024))
    };
    (field("VmRSS:"), field("VmSize:"))
}

/// Open file descriptors, without the one by which they are counted.
fn open_files() -> Option<f64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    Some(as_float(entries.saturating_sub(1).try_into().ok()?))
}

/// When the process started. Computed once: the kernel has it by the clock that counts from the boot, which goes another
/// way than the time of day where that is set.
fn started() -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Field 22 of proc_pid_stat(5); the name of the program, field 2, may have spaces and ends with the last `)`.
        let ticks = stat.rsplit_once(") ")?.1.split(' ').nth(19)?;
        let ticks: u64 = ticks.parse().ok()?;
        let after_boot = as_float(ticks) / as_float(rustix::param::clock_ticks_per_second());
        let age = seconds(clock_gettime(ClockId::Boottime)) - after_boot;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Some(now.ok()?.as_secs_f64() - age)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let (resident, virtual_size) = memory();
        assert!(resident.unwrap() > 1e6 && virtual_size.unwrap() > resident.unwrap());
        // No test closes more files meanwhile than this one opens.
        let files: Vec<_> = (0..500)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(open_files().unwrap() >= 500.0);
        drop(files);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let age = now.unwrap().as_secs_f64() - started().unwrap();
        // `cargo test` ends within hours; the margin is for a clock that is set.
        assert!((-60.0..86_400.0).contains(&age), "{age}");
    }
}
