//! `runwatch store copy`.

use rustix::fs::Mode;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant};

use super::{configured, not_done, server};
use crate::cli::args::StoreCopyArgs;
use crate::cli::client::Printer;
use crate::cli::table::{Column, TextTable};
use crate::cli::write_text;
use crate::config::{Settings, format_duration};
use crate::store::{CopyPlace, CopyStep, CopySummary, copy_store};
use crate::style::Style;

/// How often it is printed how far a table is.
const REPORT_PERIOD: Duration = Duration::from_secs(2);

const COLUMNS: [Column; 2] = [Column::whole("TABLE", 0), Column::number("ROWS", 0)];

/// Copies a store, and prints how many rows each table has. An end that is not named is the configured store, for which
/// `settings` reads the configuration. Returns 1 when the store was not copied.
///
/// # Errors
/// When an end cannot be named, or the result cannot be written.
pub async fn copy(
    args: &StoreCopyArgs,
    settings: impl Fn() -> anyhow::Result<Settings>,
    mut printer: Printer<'_>,
) -> anyhow::Result<u8> {
    // Files that are made here are for this user alone, as those of the daemon.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let end =
        async |path: Option<&std::path::PathBuf>, url_file: Option<&std::path::PathBuf>| match (
            path, url_file,
        ) {
            (Some(path), _) => Ok(CopyPlace::File(path.clone())),
            (None, Some(file)) => server(file, &args.schema, args.ca_file.clone()).await,
            (None, None) => configured(&settings()?.store).await,
        };
    let from = end(args.from.as_ref(), args.from_file.as_ref()).await?;
    let to = end(args.to.as_ref(), args.to_file.as_ref()).await?;
    let mut last = None;
    let copied = copy_store(&from, &to, |step| {
        if let Some(line) = progress(&step, &mut last) {
            // A reader that is gone misses nothing but this.
            let _gone = printer.remark(&line);
        }
    })
    .await;
    let summary = match copied {
        Ok(summary) => summary,
        Err(error) => return printer.failed(not_done(&error)),
    };
    if printer.json {
        printer.json(&to_json(&summary))?;
    } else {
        let text = text(&summary, printer.width, printer.style);
        write_text(printer.out, &text)?;
    }
    Ok(0)
}

/// The line for a step, unless the same table had one a moment ago.
fn progress(step: &CopyStep, last: &mut Option<(&'static str, Instant)>) -> Option<String> {
    match step {
        CopyStep::Waiting { name, time } => Some(format!(
            "waiting up to {} to see whether {name} still leads",
            format_duration(*time)
        )),
        CopyStep::Copying { total: 0, .. } => None,
        CopyStep::Copying {
            table,
            copied,
            total,
        } => {
            let is_new =
                last.is_none_or(|(before, at)| before != *table || at.elapsed() >= REPORT_PERIOD);
            if !is_new {
                return None;
            }
            *last = Some((*table, Instant::now()));
            Some(format!("copying {table}: {copied} of {total}"))
        }
        CopyStep::Finishing => Some("the source is marked as moved".to_owned()),
    }
}

/// A row for each table that has rows, and what to do next.
fn text(summary: &CopySummary, width: Option<u16>, style: Style) -> String {
    let mut table = TextTable::new(style, COLUMNS);
    for (name, rows) in summary.rows.iter().filter(|(_, rows)| *rows > 0) {
        table.row([(*name).to_owned(), rows.to_string()]);
    }
    let rows: u64 = summary.rows.iter().map(|(_, rows)| rows).sum();
    let CopySummary { from, to, .. } = summary;
    format!(
        "{}{rows} rows were copied from {from} to {to}; no daemon starts on the former any more\n",
        table.into_text(width)
    )
}

/// `{"from", "to", "rows", "tables": {"watches": 3, …}}`.
fn to_json(summary: &CopySummary) -> Value {
    let tables: Map<_, _> = summary
        .rows
        .iter()
        .map(|(name, rows)| ((*name).to_owned(), json!(rows)))
        .collect();
    let rows: u64 = summary.rows.iter().map(|(_, rows)| rows).sum();
    json!({"from": summary.from, "to": summary.to, "rows": rows, "tables": tables})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> CopySummary {
        CopySummary {
            from: "/var/lib/runwatch/runwatch.db".to_owned(),
            to: "PostgreSQL at db-1:5432, database runwatch, schema runwatch".to_owned(),
            rows: vec![("watches", 1_204), ("payloads", 0), ("events", 3_391)],
        }
    }

    #[test]
    fn the_summary_names_both_stores_and_the_rows() {
        insta::assert_snapshot!(text(&summary(), None, Style::PLAIN), @r"
        TABLE    ROWS
        watches  1204
        events   3391
        4595 rows were copied from /var/lib/runwatch/runwatch.db to PostgreSQL at db-1:5432, database runwatch, schema runwatch; no daemon starts on the former any more
        ");
        let expected = json!({
            "from": "/var/lib/runwatch/runwatch.db",
            "to": "PostgreSQL at db-1:5432, database runwatch, schema runwatch",
            "rows": 4_595,
            "tables": {"watches": 1_204, "payloads": 0, "events": 3_391},
        });
        assert_eq!(to_json(&summary()), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_has_a_line_at_its_beginning_and_one_every_two_seconds() {
        let mut last = None;
        let mut line = |table, copied| {
            let step = CopyStep::Copying {
                table,
                copied,
                total: 9,
            };
            progress(&step, &mut last)
        };
        assert_eq!(line("events", 0).as_deref(), Some("copying events: 0 of 9"));
        assert_eq!(line("events", 3), None);
        assert!(line("attempts", 0).is_some());
        tokio::time::advance(REPORT_PERIOD).await;
        assert_eq!(
            line("attempts", 6).as_deref(),
            Some("copying attempts: 6 of 9")
        );
        let empty = CopyStep::Copying {
            table: "payloads",
            copied: 0,
            total: 0,
        };
        assert_eq!(progress(&empty, &mut last), None);
    }
}
