//! What `doctor` and `store check` found, for people and programs.

use std::fmt::Write as _;

use serde_json::json;

use crate::style::{Sign, Style, pad, width};
use crate::text::one_line;

/// Longest text of a check, in characters.
const MAX_CHARS: usize = 600;

/// Columns of the names of checks, as far as there is room.
const NAME_COLUMNS: usize = 16;

/// The worse one of two marks.
pub(in crate::cli) fn worse(one: Sign, other: Sign) -> Sign {
    match (one, other) {
        (Sign::Bad, _) | (_, Sign::Bad) => Sign::Bad,
        (Sign::Warning, _) | (_, Sign::Warning) => Sign::Warning,
        (Sign::Good, Sign::Good) => Sign::Good,
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Check {
    pub(in crate::cli) name: String,
    pub(in crate::cli) mark: Sign,
    /// What is so; one line, no secrets.
    pub(in crate::cli) text: String,
    /// What to do, unless all is well.
    pub(in crate::cli) fix: Option<String>,
}

impl Check {
    pub(in crate::cli) fn new(name: impl Into<String>, mark: Sign, text: impl AsRef<str>) -> Self {
        Self {
            name: name.into(),
            mark,
            text: one_line(text.as_ref(), MAX_CHARS),
            fix: None,
        }
    }

    /// With a remedy, after those that it has.
    pub(in crate::cli) fn with_fix(self, fix: &str) -> Self {
        let fix = one_line(fix, MAX_CHARS);
        let fix = match self.fix {
            Some(before) => format!("{before}; {fix}"),
            None => fix,
        };
        Self {
            fix: Some(fix),
            ..self
        }
    }
}

/// All checks, in the order of the way of a run's end.
#[derive(Debug)]
pub(in crate::cli) struct CheckReport(pub(in crate::cli) Vec<Check>);

impl CheckReport {
    fn count(&self, mark: Sign) -> usize {
        self.0.iter().filter(|check| check.mark == mark).count()
    }

    /// Whether there is nothing to do.
    pub(in crate::cli) fn is_well(&self) -> bool {
        self.count(Sign::Good) == self.0.len()
    }

    /// Whether there is a problem; a warning is none.
    pub(in crate::cli) fn has_problem(&self) -> bool {
        self.count(Sign::Bad) > 0
    }

    /// One object: `{"ok", "problems", "warnings", "checks": [{"name", "mark", "text", "fix"}]}`, where a mark is `ok`,
    /// `warning` or `problem`.
    pub(in crate::cli) fn json(&self, is_ok: bool) -> String {
        let check = |check: &Check| {
            let mark = match check.mark {
                Sign::Good => "ok",
                Sign::Warning => "warning",
                Sign::Bad => "problem",
            };
            json!({"name": check.name, "mark": mark, "text": check.text, "fix": check.fix})
        };
        let checks: Vec<_> = self.0.iter().map(check).collect();
        let whole = json!({
            "ok": is_ok,
            "problems": self.count(Sign::Bad),
            "warnings": self.count(Sign::Warning),
            "checks": checks,
        });
        format!("{whole}\n")
    }

    /// A line for each check, broken between words where it is wider than `columns`, and a line that sums up and names
    /// the exit code `code`.
    pub(in crate::cli) fn text(&self, style: Style, columns: usize, code: u8) -> String {
        let mut text = String::new();
        let mut line = |line: &str| writeln!(text, "{line}").expect("a String takes all text");
        // Where a third of the line would be names, texts begin on a line of their own.
        let is_wide = columns >= 3 * (NAME_COLUMNS + 3);
        for check in &self.0 {
            let mark = style.mark(check.mark);
            let what = match &check.fix {
                Some(fix) => format!("{}: {fix}", check.text),
                None => check.text.clone(),
            };
            let name_columns = NAME_COLUMNS.max(width(&check.name));
            let (first, indent) = if is_wide {
                let name = style.bold(&pad(&check.name, name_columns));
                (format!("{mark} {name}  "), NAME_COLUMNS + 4)
            } else {
                line(&format!("{mark} {}", style.bold(&check.name)));
                ("  ".to_owned(), 2)
            };
            for piece in wrapped(&first, indent, &what, columns) {
                line(&piece);
            }
        }
        line(&self.total(code));
        text
    }

    fn total(&self, code: u8) -> String {
        let some = |count: usize, word: &str| match count {
            0 => None,
            1 => Some(format!("1 {word}")),
            count => Some(format!("{count} {word}s")),
        };
        let parts = [
            some(self.count(Sign::Bad), "problem"),
            some(self.count(Sign::Warning), "warning"),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "all is well".to_owned()
        } else {
            format!("{}: exit code {code}", parts.join(", "))
        }
    }
}

/// `first` and a text after it, with `indent` columns before each further line. Words are never broken.
fn wrapped(first: &str, indent: usize, text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut line, mut is_empty) = (Vec::new(), first.to_owned(), true);
    for word in text.split(' ') {
        if !is_empty && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> CheckReport {
        let good = |name: &str, text: &str| Check::new(name, Sign::Good, text);
        CheckReport(vec![
            good("configuration", "/etc/runwatch/config.toml"),
            good("key", "CREWSHIP_API_KEY, accepted by api.crewship.dev in 112 ms"),
            Check::new("clock", Sign::Warning, "2 s behind that of api.crewship.dev")
                .with_fix("set it with NTP: timedatectl set-ntp true"),
            good("store", "/var/lib/runwatch/runwatch.db, 12 MiB, version 9, writable"),
            Check::new(
                "sink ops",
                Sign::Bad,
                "standard to hooks.example.com; /etc/runwatch/ops-secret holds a secret, and every user of this machine \
                 may read it",
            )
            .with_fix("chmod 600 /etc/runwatch/ops-secret"),
            good("sink 通知", "slack to hooks.slack.com (--send sends a test)"),
        ])
    }

    #[test]
    fn each_check_is_readable_on_every_terminal() {
        for columns in [40, 80, 120, 200] {
            let text = report().text(Style::PLAIN, columns, 1);
            assert!(text.lines().all(|line| width(line) <= columns), "{text}");
        }
        insta::assert_snapshot!(report().text(Style::PLAIN, 40, 1), @r"
        ✓ configuration
          /etc/runwatch/config.toml
        ✓ key
          CREWSHIP_API_KEY, accepted by
          api.crewship.dev in 112 ms
        ! clock
          2 s behind that of api.crewship.dev:
          set it with NTP: timedatectl set-ntp
          true
        ✓ store
          /var/lib/runwatch/runwatch.db, 12 MiB,
          version 9, writable
        ✗ sink ops
          standard to hooks.example.com;
          /etc/runwatch/ops-secret holds a
          secret, and every user of this machine
          may read it: chmod 600
          /etc/runwatch/ops-secret
        ✓ sink 通知
          slack to hooks.slack.com (--send sends
          a test)
        1 problem, 1 warning: exit code 1
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 80, 1), @r"
        ✓ configuration     /etc/runwatch/config.toml
        ✓ key               CREWSHIP_API_KEY, accepted by api.crewship.dev in 112 ms
        ! clock             2 s behind that of api.crewship.dev: set it with NTP:
                            timedatectl set-ntp true
        ✓ store             /var/lib/runwatch/runwatch.db, 12 MiB, version 9, writable
        ✗ sink ops          standard to hooks.example.com; /etc/runwatch/ops-secret
                            holds a secret, and every user of this machine may read it:
                            chmod 600 /etc/runwatch/ops-secret
        ✓ sink 通知         slack to hooks.slack.com (--send sends a test)
        1 problem, 1 warning: exit code 1
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 120, 1), @r"
        ✓ configuration     /etc/runwatch/config.toml
        ✓ key               CREWSHIP_API_KEY, accepted by api.crewship.dev in 112 ms
        ! clock             2 s behind that of api.crewship.dev: set it with NTP: timedatectl set-ntp true
        ✓ store             /var/lib/runwatch/runwatch.db, 12 MiB, version 9, writable
        ✗ sink ops          standard to hooks.example.com; /etc/runwatch/ops-secret holds a secret, and every user of this
                            machine may read it: chmod 600 /etc/runwatch/ops-secret
        ✓ sink 通知         slack to hooks.slack.com (--send sends a test)
        1 problem, 1 warning: exit code 1
        ");
        insta::assert_snapshot!(report().text(Style::PLAIN, 200, 1), @r"
        ✓ configuration     /etc/runwatch/config.toml
        ✓ key               CREWSHIP_API_KEY, accepted by api.crewship.dev in 112 ms
        ! clock             2 s behind that of api.crewship.dev: set it with NTP: timedatectl set-ntp true
        ✓ store             /var/lib/runwatch/runwatch.db, 12 MiB, version 9, writable
        ✗ sink ops          standard to hooks.example.com; /etc/runwatch/ops-secret holds a secret, and every user of this machine may read it: chmod 600 /etc/runwatch/ops-secret
        ✓ sink 通知         slack to hooks.slack.com (--send sends a test)
        1 problem, 1 warning: exit code 1
        ");
    }

    #[test]
    fn the_object_has_every_check_with_its_remedy() {
        let value: serde_json::Value = serde_json::from_str(&report().json(false)).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(
            (&value["problems"], &value["warnings"]),
            (&1.into(), &1.into())
        );
        assert_eq!(value["checks"][4]["mark"], "problem");
        assert_eq!(
            value["checks"][4]["fix"],
            "chmod 600 /etc/runwatch/ops-secret"
        );
        assert_eq!(value["checks"][0]["fix"], serde_json::Value::Null);
    }
}
