//! Live lines at the bottom of a terminal: which bytes show them, and take them away.
//!
//! The cursor stands below the lines, at the left, so that what the terminal itself shows there (`^C`) is removed with
//! the next frame and moves no line. A line never fills its row, so that none wraps.

use std::fmt::Write as _;

/// The lines as they are on the screen.
#[derive(Debug, Default)]
pub(crate) struct LiveLines {
    shown: Vec<String>,
    /// The columns of the terminal when they were drawn.
    columns: usize,
    /// Whether the terminal wraps lines anew when it becomes narrower.
    reflows: bool,
}

/// Takes everything from the cursor on away (ECMA-48, ED).
const CLEAR_BELOW: &str = "\x1b[J";

/// Takes the rest of the row away (ECMA-48, EL).
const CLEAR_ROW: &str = "\x1b[K";

impl LiveLines {
    /// No lines, on the terminal of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            reflows: reflows(|name| std::env::var_os(name).is_some()),
            ..Self::default()
        }
    }

    /// What removes the lines from a terminal with so many columns: the cursor is then where the first of them began.
    pub(crate) fn erase(&mut self, columns: usize) -> String {
        let mut bytes = self.to_top(columns);
        if !self.shown.is_empty() {
            bytes.push_str(CLEAR_BELOW);
            self.shown.clear();
        }
        bytes
    }

    /// What shows `lines` in place of those shown before on a terminal with so many columns; nothing if they are the
    /// same.
    pub(crate) fn draw(&mut self, lines: &[String], columns: usize) -> String {
        let room = columns.saturating_sub(1);
        let lines: Vec<String> = lines
            .iter()
            .map(|line| console::truncate_str(line, room, "").into_owned())
            .collect();
        if lines == self.shown && columns == self.columns {
            return String::new();
        }
        if lines.is_empty() {
            return self.erase(columns);
        }
        let mut bytes = self.to_top(columns);
        if columns < self.columns {
            bytes.push_str(CLEAR_BELOW);
        }
        for line in &lines {
            bytes.push_str(line);
            bytes.push_str(CLEAR_ROW);
            bytes.push('\n');
        }
        if lines.len() < self.shown.len() {
            bytes.push_str(CLEAR_BELOW);
        }
        (self.shown, self.columns) = (lines, columns);
        bytes
    }

    /// What moves the cursor to the beginning of the first line.
    fn to_top(&self, columns: usize) -> String {
        let rows_of = |line: &String| match console::measure_text_width(line) {
            wide if self.reflows && wide > columns => wide.div_ceil(columns.max(1)),
            _ => 1,
        };
        let rows: usize = self.shown.iter().map(rows_of).sum();
        let mut bytes = String::from(if rows > 0 { "\r" } else { "" });
        if rows > 0 {
            write!(bytes, "\x1b[{rows}A").expect("a String takes all text");
        }
        bytes
    }
}

/// Whether the terminal is known to wrap lines anew when it becomes narrower; xterm, screen and the Linux console cut
/// them. Most of those that do name themselves in the environment.
fn reflows(is_set: impl Fn(&str) -> bool) -> bool {
    [
        "TMUX",
        "VTE_VERSION",
        "KITTY_WINDOW_ID",
        "ALACRITTY_WINDOW_ID",
        "WEZTERM_PANE",
        "KONSOLE_VERSION",
        "WT_SESSION",
        "TERM_PROGRAM",
    ]
    .into_iter()
    .any(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal with a line of text above the live ones.
    fn terminal(columns: u16) -> vt100::Parser {
        let mut terminal = vt100::Parser::new(8, columns, 0);
        feed(&mut terminal, "above\n");
        terminal
    }

    /// Sends bytes as a terminal gets them: its driver puts a carriage return before each newline.
    fn feed(terminal: &mut vt100::Parser, bytes: &str) {
        terminal.process(bytes.replace('\n', "\r\n").as_bytes());
    }

    fn lines<const N: usize>(lines: [&str; N]) -> Vec<String> {
        lines.map(ToOwned::to_owned).into()
    }

    fn rows(terminal: &vt100::Parser) -> String {
        terminal.screen().contents()
    }

    #[test]
    fn lines_are_replaced_where_they_are_and_leave_nothing_behind() {
        let (mut terminal, mut live) = (terminal(20), LiveLines::default());
        feed(
            &mut terminal,
            &live.draw(&lines(["one", "two long", "three"]), 20),
        );
        assert_eq!(rows(&terminal), "above\none\ntwo long\nthree");
        assert_eq!(live.draw(&lines(["one", "two long", "three"]), 20), "");
        feed(&mut terminal, &live.draw(&lines(["1", "2"]), 20));
        assert_eq!(rows(&terminal), "above\n1\n2");
        feed(&mut terminal, &live.erase(20));
        feed(&mut terminal, "an end\n");
        feed(&mut terminal, &live.draw(&lines(["3"]), 20));
        assert_eq!(rows(&terminal), "above\nan end\n3");
        // What the terminal shows for Ctrl-C is below them, and goes with them.
        feed(&mut terminal, "^C");
        feed(&mut terminal, &live.erase(20));
        feed(&mut terminal, "stopping\n");
        assert_eq!(rows(&terminal), "above\nan end\nstopping");
    }

    #[test]
    fn no_line_wraps_and_wide_characters_count_as_two() {
        let (mut terminal, mut live) = (terminal(10), LiveLines::default());
        let wide = lines(["0123456789", "日本語の名前"]);
        feed(&mut terminal, &live.draw(&wide, 10));
        assert_eq!(rows(&terminal), "above\n012345678\n日本語の");
        feed(&mut terminal, &live.erase(10));
        assert_eq!(rows(&terminal), "above");
    }

    #[test]
    fn a_terminal_that_becomes_narrow_keeps_no_part_of_a_line() {
        let (mut terminal, mut live) = (terminal(20), LiveLines::default());
        feed(
            &mut terminal,
            &live.draw(&lines(["a long line of text", "two"]), 20),
        );
        terminal.screen_mut().set_size(8, 10);
        feed(&mut terminal, &live.draw(&lines(["short", "2"]), 10));
        assert_eq!(rows(&terminal), "above\nshort\n2");
        // One that wraps lines anew shows the first in two rows.
        let mut live = LiveLines {
            reflows: true,
            ..LiveLines::default()
        };
        live.draw(&lines(["a long line of text", "two"]), 20);
        assert_eq!(live.erase(10), "\r\x1b[3A\x1b[J");
        assert!(reflows(|name| name == "TMUX") && !reflows(|_| false));
    }
}
