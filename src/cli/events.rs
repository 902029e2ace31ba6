//! `runwatch events`.

use std::io::ErrorKind;

use anyhow::Context as _;

use super::Signals;
use super::client::REFUSED;
use super::failure::CommandFailure;
use crate::control::{Client, ClientError};
use crate::screen::Screen;
use crate::text::escape_json_for_terminal;

/// `runwatch events`: each event as a line, the JSON that sinks get with its `id`, until a signal or until the reader
/// of standard output is gone; with `json`, errors are JSON too. Events wait in the daemon while the reader is slow.
///
/// # Errors
/// When the result cannot be written.
pub async fn events(
    client: &Client,
    after: Option<u64>,
    screen: &Screen,
    json: bool,
) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    // Both are cancel-safe: an event that has come is kept until it is whole.
    tokio::select! {
        code = print_events(client, after, screen, json) => code,
        code = signals.next() => Ok(code),
    }
}

async fn print_events(
    client: &Client,
    after: Option<u64>,
    screen: &Screen,
    json: bool,
) -> anyhow::Result<u8> {
    let failed = |error: &ClientError| {
        let failure = CommandFailure::from(error);
        screen.whole_line(&failure.text(json, screen.error_columns()));
        Ok(failure.exit_code())
    };
    let mut events = match client
        .events(after.map(|after| after.to_string()).as_deref())
        .await
    {
        Ok(events) => events,
        Err(error) => return failed(&error),
    };
    loop {
        match events.next().await {
            Ok(Some((id, event))) => {
                let event = escape_json_for_terminal(&event);
                let fields = event
                    .strip_prefix('{')
                    .context("an event is not a JSON object")?;
                screen.out.print(format!("{{\"id\":{id},{fields}\n"));
                screen.out.flush().await;
                match screen.out.result_failed() {
                    Some(ErrorKind::BrokenPipe) => return Ok(0),
                    Some(error) => {
                        return Err(std::io::Error::from(error)).context("cannot write the result");
                    }
                    None => {}
                }
            }
            Ok(None) => {
                let failure = CommandFailure::failed("the daemon has stopped", REFUSED);
                screen.whole_line(&failure.text(json, screen.error_columns()));
                return Ok(REFUSED);
            }
            Err(error) => return failed(&error),
        }
    }
}
