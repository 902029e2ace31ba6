//! Load and clocks for `benches/run`: what must take little time itself, so that it is not what is measured.
//! Each command writes one JSON object. A package of its own, so that nothing it needs is built into the
//! program that is measured.
//!
//! ```text
//! runwatch-load add SOCKET CONNECTIONS WATCHES PREFIX   adds watches to a daemon and waits for each answer
//! runwatch-load sync FOLDER BYTES TIMES                 appends so many bytes and has the disk keep them
//! runwatch-load exec TIMES PROGRAM ARGUMENT...          runs a program from its start to its exit
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// No answer takes longer than this; a later one is a failure, not a measurement.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["add", socket, connections, watches, prefix] => {
            add(socket, connections.parse()?, watches.parse()?, prefix)
        }
        ["sync", folder, bytes, times] => sync(folder, bytes.parse()?, times.parse()?),
        ["exec", times, program, ref arguments @ ..] => exec(times.parse()?, program, arguments),
        _ => Err("see the head of benches/load/src/main.rs".into()),
    }
}

/// Adds watches of runs `PREFIX_0`, ... over as many connections, each with one request at a time. Each must be
/// acknowledged as new.
fn add(socket: &str, connections: usize, watches: usize, prefix: &str) -> Result<()> {
    let (next, ready) = (AtomicUsize::new(0), Barrier::new(connections + 1));
    let one_connection = || -> Result<Vec<Duration>> {
        let stream = UnixStream::connect(socket);
        // A connection that fails keeps no other one waiting.
        ready.wait();
        let mut stream = stream?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut times = Vec::with_capacity(watches / connections + 1);
        let mut answer = vec![0; 4096];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= watches {
                return Ok(times);
            }
            let body = format!("{{\"run_id\":\"{prefix}_{number}\"}}");
            let request = format!(
                "POST /v1/watches HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
            let began = Instant::now();
            stream.write_all(request.as_bytes())?;
            let code = read_answer(&mut stream, &mut answer)?;
            times.push(began.elapsed());
            if code != 201 {
                return Err(format!("a new watch was answered with {code}").into());
            }
        }
    };
    let (seconds, times) = std::thread::scope(|scope| -> Result<_> {
        let all: Vec<_> = (0..connections)
            .map(|_| scope.spawn(one_connection))
            .collect();
        ready.wait();
        let began = Instant::now();
        let mut times = Vec::new();
        for one in all {
            times.extend(
                one.join()
                    .map_err(|_panic| "a connection's thread panicked")??,
            );
        }
        Ok((began.elapsed(), times))
    })?;
    print(times, seconds)
}

/// Reads one answer and returns its code. Its body is short and says how long it is.
fn read_answer(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<u16> {
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            buffer.resize(2 * filled, 0);
        }
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err("the daemon closed the connection".into());
        }
        filled += read;
        let text = std::str::from_utf8(&buffer[..filled])?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.ok_or("an answer of unknown length")?.parse()? {
            return Ok(head.split(' ').nth(1).ok_or("no code")?.parse()?);
        }
    }
}

/// How long the disk takes to keep what is appended to a file.
fn sync(folder: &str, bytes: usize, times: usize) -> Result<()> {
    let path = std::path::Path::new(folder).join("synced");
    let mut file = File::create(&path)?;
    let (piece, mut taken) = (vec![b'x'; bytes], Vec::new());
    let all = Instant::now();
    for _ in 0..times {
        let began = Instant::now();
        file.write_all(&piece)?;
        file.sync_data()?;
        taken.push(began.elapsed());
    }
    let all = all.elapsed();
    std::fs::remove_file(path)?;
    print(taken, all)
}

/// Runs a program again and again, with nothing to read and its output thrown away. It must end well.
fn exec(times: usize, program: &str, arguments: &[&str]) -> Result<()> {
    let (mut taken, all) = (Vec::new(), Instant::now());
    for _ in 0..times {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let began = Instant::now();
        let status = command.status()?;
        taken.push(began.elapsed());
        if !status.success() {
            return Err(format!("{program} ended with {status}").into());
        }
    }
    print(taken, all.elapsed())
}

/// How many there were, how long all of them took, and the spread of the single times in milliseconds.
fn print(mut times: Vec<Duration>, all: Duration) -> Result<()> {
    times.sort_unstable();
    let last = times.len().checked_sub(1).ok_or("nothing was measured")?;
    let at = |percent: usize| times[(last * percent).div_ceil(100)].as_secs_f64() * 1e3;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{{\"count\":{},\"seconds\":{:.6},\"p50_ms\":{:.4},\"p99_ms\":{:.4},\"max_ms\":{:.4}}}",
        times.len(),
        all.as_secs_f64(),
        at(50),
        at(99),
        at(100)
    )?;
    Ok(())
}
