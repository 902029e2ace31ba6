//! How states, marks, times and widths look: the one place for glyphs, colors and what a terminal can show.
//!
//! Each state has a glyph, a color and a word, and each of the three is readable without the others.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::text::{humanize, one_line};

/// When output has colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Longest status text that is shown as a word, in characters.
const MAX_WORD_CHARS: usize = 40;

/// The steps of the glyph that moves.
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// How the state of a run looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Not started, not polled or not there yet.
    Pending,
    /// Under way.
    Running,
    /// Stopped until a person acts.
    Waiting,
    /// Ended well.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Stopped by request.
    Canceled,
    /// Passed over by the provider.
    Skipped,
    /// Not found, or not reachable.
    Missing,
    /// Still going when the time was up.
    TimedOut,
    /// A text of the provider that is not known here; never final.
    Unknown,
}

impl Look {
    /// The look for a status, a verdict, or a word that stands for one.
    pub fn of(word: &str) -> Self {
        match word {
            "pending" | "not there" | "not there yet" | "not polled" | "not polled yet" => {
                Self::Pending
            }
            "running" => Self::Running,
            "waiting" => Self::Waiting,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "canceled" | "cancelled" => Self::Canceled,
            "skipped" => Self::Skipped,
            "not_found" | "unreachable" | "not found" => Self::Missing,
            "timed_out" | "timed out" => Self::TimedOut,
            _ => Self::Unknown,
        }
    }

    /// The glyph, and what stands for it where only ASCII can be shown. Each is one column wide.
    fn glyphs(self) -> (&'static str, &'static str) {
        match self {
            Self::Pending | Self::Unknown => ("·", "."),
            Self::Running => ("⠹", "*"),
            Self::Waiting => ("⏸", "!"),
            Self::Succeeded => ("✓", "+"),
            Self::Failed => ("✗", "x"),
            Self::Canceled => ("⊘", "-"),
            Self::Skipped => ("↷", ">"),
            Self::Missing => ("?", "?"),
            Self::TimedOut => ("⧖", "T"),
        }
    }

    /// The parameters of the escape sequence that sets its color (ECMA-48, section 8.3.117); empty for none.
    fn code(self) -> &'static str {
        match self {
            Self::Pending | Self::Skipped => DIM,
            Self::Running => CYAN,
            Self::Waiting => "1;33",
            Self::Succeeded => GREEN,
            Self::Failed | Self::Missing | Self::TimedOut => RED,
            Self::Canceled => YELLOW,
            Self::Unknown => "",
        }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

/// Whether a thing is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// In order: `✓`, or `+`.
    Good,
    /// In need of a look: `!`.
    Warning,
    /// Wrong: `✗`, or `x`.
    Bad,
}

/// What a stream shows: colors, and characters beyond ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether texts are colored.
    pub colored: bool,
    /// Whether glyphs beyond ASCII are shown.
    pub unicode: bool,
}

impl Style {
    /// Without colors, with all characters.
    pub const PLAIN: Self = Self {
        colored: false,
        unicode: true,
    };

    /// The style of a stream of this process, which is a terminal or not.
    pub fn of_process(choice: Color, is_terminal: bool) -> Self {
        Self::decide(choice, is_terminal, |name| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// Decides by the values of environment variables.
    ///
    /// Colors: `--color` wins, then `NO_COLOR` (no-color.org), then `CLICOLOR_FORCE` and `CLICOLOR=0`
    /// (bixense.com/clicolors), then whether the stream is a terminal that knows colors. Characters: ASCII where `TERM`
    /// is `dumb` or `linux` (the console, whose font lacks the glyphs), or where the first of `LC_ALL`, `LC_CTYPE` and
    /// `LANG` that is set (locale(7)) names a locale without UTF-8. No locale at all says nothing about the terminal,
    /// as in many containers; the terminals of today read UTF-8.
    fn decide(choice: Color, is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let term = set("TERM");
        let colored = match choice {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if set("NO_COLOR").is_some() => false,
            Color::Auto if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
            Color::Auto if set("CLICOLOR").as_deref() == Some("0") => false,
            Color::Auto => is_terminal && term.as_deref().is_some_and(|term| term != "dumb"),
        };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let is_utf8 = locale.is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        let unicode = is_utf8 && !matches!(term.as_deref(), Some("dumb" | "linux"));
        Self { colored, unicode }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colored && !code.is_empty() && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// The glyph of a state, in its color.
    pub fn glyph(self, look: Look) -> String {
        let (glyph, ascii) = look.glyphs();
        self.paint(look.code(), if self.unicode { glyph } else { ascii })
    }

    /// The glyph of a state that is shown again and again: that of a running one moves with `step`.
    pub fn moving_glyph(self, look: Look, step: usize) -> String {
        if look == Look::Running && self.unicode {
            self.paint(look.code(), SPINNER[step % SPINNER.len()])
        } else {
            self.glyph(look)
        }
    }

    /// A status, a verdict, or a word that stands for one, in its color. Other texts are made harmless and short.
    pub fn state(self, word: &str) -> String {
        self.as_look(Look::of(word), &one_line(word, MAX_WORD_CHARS))
    }

    /// `text` in the color of a state.
    pub fn as_look(self, look: Look, text: &str) -> String {
        self.paint(look.code(), text)
    }

    /// A mark, in its color.
    pub fn mark(self, mark: Sign) -> String {
        match mark {
            Sign::Good => self.good(if self.unicode { "✓" } else { "+" }),
            Sign::Warning => self.warning("!"),
            Sign::Bad => self.bad(if self.unicode { "✗" } else { "x" }),
        }
    }

    /// `text` in green.
    pub fn good(self, text: &str) -> String {
        self.paint(GREEN, text)
    }

    /// `text` in red.
    pub fn bad(self, text: &str) -> String {
        self.paint(RED, text)
    }

    /// `text` in yellow.
    pub fn warning(self, text: &str) -> String {
        self.paint(YELLOW, text)
    }

    /// `text` in faint characters.
    pub fn dim(self, text: &str) -> String {
        self.paint(DIM, text)
    }

    /// `text` in bold characters.
    pub fn bold(self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    /// What stands between the parts of a line, with a space on each side: `·`, or `-`.
    pub fn separator(self) -> &'static str {
        if self.unicode { " · " } else { " - " }
    }

    /// What stands in a cell that has nothing to show: `–`, or `-`.
    pub fn nothing(self) -> &'static str {
        if self.unicode { "–" } else { "-" }
    }

    /// `text`, which may be colored, cut to so many columns; the last are an ellipsis where it was wider.
    pub fn cut(self, text: &str, columns: usize) -> Cow<'_, str> {
        let tail = self.ellipsis();
        let has_room = width(tail) <= columns;
        console::truncate_str(text, columns, if has_room { tail } else { "" })
    }
}

impl Style {
    /// `text` in at most so many columns: of one that is longer, the middle is left out, since IDs differ at their
    /// ends.
    pub fn cut_middle(self, text: &str, columns: usize) -> String {
        let mark = self.ellipsis();
        let Some(room) = columns
            .checked_sub(width(mark))
            .filter(|_| width(text) > columns)
        else {
            return self.cut(text, columns).into_owned();
        };
        let fitting = |characters: &mut dyn Iterator<Item = char>, room: usize| {
            let mut taken = String::new();
            let mut used = 0;
            for character in characters {
                used += width(character.encode_utf8(&mut [0; 4]));
                if used > room {
                    break;
                }
                taken.push(character);
            }
            taken
        };
        let head = fitting(&mut text.chars(), room / 2);
        let tail = fitting(&mut text.chars().rev(), room - width(&head));
        let tail: String = tail.chars().rev().collect();
        format!("{head}{mark}{tail}")
    }

    /// What stands for a part that is left out.
    pub fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }
}

/// The columns that a text takes on a terminal: escape sequences take none, wide characters two.
pub fn width(text: &str) -> usize {
    console::measure_text_width(text)
}

/// `text` in lines of at most so many columns, as far as no word is wider: continued lines are indented.
pub fn fold(text: &str, columns: usize) -> String {
    const INDENT: &str = "  ";
    let mut folded = String::new();
    for (number, line) in text.lines().enumerate() {
        if number > 0 {
            folded.push('\n');
        }
        let mut used = 0;
        for (index, word) in line.split(' ').enumerate() {
            let space = usize::from(index > 0);
            if index > 0 && used + space + width(word) > columns {
                write!(folded, "\n{INDENT}{word}").expect("a String takes all text");
                used = INDENT.len() + width(word);
            } else {
                folded.push_str(&" "[..space]);
                folded.push_str(word);
                used += space + width(word);
            }
        }
    }
    folded
}

/// `text` with spaces after it up to so many columns.
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// `text` with spaces before it up to so many columns.
pub fn pad_left(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{}{text}", " ".repeat(missing))
}

/// A time that goes on, as a clock shows it: `0:47`, `12:05`, `2h 5m`, `3d 4h`.
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 3600 {
        format!("{}:{:02}", seconds / 60, seconds % 60)
    } else {
        humanize(time)
    }
}

/// A time that is over, as exact as is of use: `<1ms`, `340ms`, `45s`, `3m 20s`.
pub fn took(time: Duration) -> String {
    if time < Duration::from_millis(1) {
        "<1ms".to_owned()
    } else {
        humanize(time)
    }
}

/// A time of which the seconds matter only while they are few: `12s`, `4 min`, `2h 5m`, `3d 4h`.
pub fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        _ => humanize(time),
    }
}

/// How long ago something was: `just now`, `12s ago`, `4 min ago`.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    match Duration::try_from(now.duration_since(at)) {
        Ok(age) if age >= Duration::from_secs(2) => format!("{} ago", rough(age)),
        _ => "just now".to_owned(),
    }
}

/// How far ahead something is, in whole seconds rounded up: `now`, `in 12s`, `in 4 min`.
pub fn ahead(at: Timestamp, now: Timestamp) -> String {
    match Duration::try_from(at.duration_since(now)) {
        Ok(wait) if !wait.is_zero() => format!("in {}", rough(whole_seconds(wait))),
        _ => "now".to_owned(),
    }
}

/// `time` in whole seconds, rounded up.
pub fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// The time of day in a zone: `10:35:02`.
pub fn time_of_day(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned_datetime(zone.clone())
        .strftime("%H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Look; 10] = [
        Look::Pending,
        Look::Running,
        Look::Waiting,
        Look::Succeeded,
        Look::Failed,
        Look::Canceled,
        Look::Skipped,
        Look::Missing,
        Look::TimedOut,
        Look::Unknown,
    ];

    fn decided(choice: Color, is_terminal: bool, variables: &[(&str, &str)]) -> (bool, bool) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let style = Style::decide(choice, is_terminal, variable);
        (style.colored, style.unicode)
    }

    #[test]
    fn colors_follow_the_flag_then_the_variables_then_the_terminal() {
        let xterm = ("TERM", "xterm");
        let colored = |choice, is_terminal, variables: &[_]| {
            decided(choice, is_terminal, &[&[xterm], variables].concat()).0
        };
        assert!(colored(Color::Auto, true, &[]));
        assert!(!colored(Color::Auto, false, &[]));
        assert!(colored(Color::Always, false, &[("NO_COLOR", "1")]));
        assert!(!colored(Color::Never, true, &[("CLICOLOR_FORCE", "1")]));
        assert!(!colored(Color::Auto, true, &[("NO_COLOR", "1")]));
        assert!(colored(Color::Auto, true, &[("NO_COLOR", "")]));
        assert!(!colored(
            Color::Auto,
            true,
            &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]
        ));
        assert!(colored(Color::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!colored(Color::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!colored(Color::Auto, true, &[("CLICOLOR", "0")]));
        assert!(colored(Color::Auto, true, &[("CLICOLOR", "1")]));
        assert!(!colored(Color::Auto, false, &[("CLICOLOR", "1")]));
        for term in [&[("TERM", "dumb")][..], &[("TERM", "")], &[]] {
            assert!(!decided(Color::Auto, true, term).0, "{term:?}");
            assert!(decided(Color::Always, true, term).0, "{term:?}");
        }
    }

    #[test]
    fn only_ascii_is_shown_where_more_cannot_be_read() {
        let unicode = |variables: &[_]| decided(Color::Auto, true, variables).1;
        assert!(unicode(&[("TERM", "xterm")]));
        assert!(unicode(&[("LANG", "de_DE.UTF-8")]));
        assert!(unicode(&[("LANG", "C"), ("LC_ALL", "C.utf8")]));
        assert!(!unicode(&[("LANG", "C.UTF-8"), ("LC_CTYPE", "C")]));
        assert!(!unicode(&[("LANG", "POSIX"), ("LC_ALL", "")]));
        assert!(!unicode(&[("LANG", "C.UTF-8"), ("TERM", "dumb")]));
        assert!(!unicode(&[("LANG", "C.UTF-8"), ("TERM", "linux")]));
    }

    #[test]
    fn each_state_has_a_glyph_of_one_column_in_both_alphabets() {
        let ascii = Style {
            unicode: false,
            ..Style::PLAIN
        };
        for look in ALL {
            assert_eq!(width(&Style::PLAIN.glyph(look)), 1, "{look:?}");
            let glyph = ascii.glyph(look);
            assert!(glyph.is_ascii() && glyph.len() == 1, "{look:?}: {glyph}");
            assert_eq!(width(&Style::PLAIN.moving_glyph(look, 7)), 1);
            assert_eq!(ascii.moving_glyph(look, 7), glyph);
        }
        for mark in [Sign::Good, Sign::Warning, Sign::Bad] {
            assert!(ascii.mark(mark).is_ascii());
        }
        assert_ne!(
            Style::PLAIN.moving_glyph(Look::Running, 0),
            Style::PLAIN.moving_glyph(Look::Running, 1)
        );
    }

    #[test]
    fn words_are_colored_and_strange_ones_are_harmless() {
        let colored = Style {
            colored: true,
            ..Style::PLAIN
        };
        assert_eq!(colored.state("failed"), "\x1b[31mfailed\x1b[0m");
        assert_eq!(colored.state("waiting"), "\x1b[1;33mwaiting\x1b[0m");
        assert_eq!(colored.state("re\x1b]0;queued"), "re]0;queued");
        assert_eq!(colored.dim(""), "");
        assert_eq!(Style::PLAIN.state("failed"), "failed");
    }

    #[test]
    fn texts_are_cut_and_padded_by_columns() {
        let ascii = Style {
            unicode: false,
            ..Style::PLAIN
        };
        assert_eq!(Style::PLAIN.cut("日本語の名前", 7), "日本語…");
        assert_eq!(Style::PLAIN.cut("abc", 3), "abc");
        assert_eq!(ascii.cut("abcdefgh", 6), "abc...");
        assert_eq!(ascii.cut("abcdefgh", 2), "ab");
        assert_eq!(pad("日本", 6), "日本  ");
        assert_eq!(pad_left("\x1b[31m12\x1b[0m", 4), "  \x1b[31m12\x1b[0m");
    }

    #[test]
    fn times_read_naturally() {
        let ms = Duration::from_millis;
        let shown: Vec<_> = [0, 47_900, 725_000, 7_500_000, 273_600_000]
            .map(ms)
            .map(elapsed)
            .into();
        assert_eq!(shown, ["0:00", "0:47", "12:05", "2h 5m", "3d 4h"]);
        let shown: Vec<_> = [0, 340, 45_000, 200_000].map(ms).map(took).into();
        assert_eq!(shown, ["<1ms", "340ms", "45s", "3m 20s"]);
        let shown: Vec<_> = [340, 45_000, 259_000, 7_500_000].map(ms).map(rough).into();
        assert_eq!(shown, ["0s", "45s", "4 min", "2h 5m"]);
        let now: Timestamp = "2026-01-01T10:35:02.100Z".parse().unwrap();
        let at = |seconds: f64| {
            now.checked_add(jiff::SignedDuration::from_secs_f64(seconds))
                .unwrap()
        };
        let shown: Vec<_> = [5.0, 0.0, -1.5, -12.4, -250.0]
            .map(|seconds| ago(at(seconds), now))
            .into();
        assert_eq!(
            shown,
            ["just now", "just now", "just now", "12s ago", "4 min ago"]
        );
        let shown: Vec<_> = [-1.0, 0.0, 0.1, 11.2, 240.0]
            .map(|seconds| ahead(at(seconds), now))
            .into();
        assert_eq!(shown, ["now", "now", "in 1s", "in 12s", "in 4 min"]);
        assert_eq!(time_of_day(now, &TimeZone::UTC), "10:35:02");
    }
}
