//! Tables for people: a row is one line, and what does not fit is shortened or left out by importance.

use crate::style::{Style, pad, pad_left, width};

/// The columns between two cells.
const GAP: usize = 2;

/// A column of a [`TextTable`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    title: &'static str,
    /// The higher, the sooner it is left out; 0 is never left out.
    rank: u8,
    /// How narrow its cells may be cut; without it they are shown whole.
    least: Option<usize>,
    is_number: bool,
    /// Its cells are IDs of runs.
    is_run: bool,
}

/// How narrow the IDs of runs may be cut. Those of Crewship are seldom longer, and stay whole; those of others are
/// paths.
const LEAST_RUN: usize = 37;

/// When they are cut: after errors and results, and before names and states.
const RUN_CUT_RANK: u8 = 5;

impl Column {
    /// A column whose cells are shown whole, such as IDs, or not at all.
    pub(super) const fn whole(title: &'static str, rank: u8) -> Self {
        Self {
            title,
            rank,
            least: None,
            is_number: false,
            is_run: false,
        }
    }

    /// A column of IDs of runs. Very long ones lose their middle, and `show` accepts what is left.
    pub(super) const fn run(rank: u8) -> Self {
        Self {
            is_run: true,
            ..Self::text("RUN", rank, LEAST_RUN)
        }
    }

    /// A column of texts that may be cut down to `least` columns.
    pub(super) const fn text(title: &'static str, rank: u8, least: usize) -> Self {
        Self {
            least: Some(least),
            ..Self::whole(title, rank)
        }
    }

    /// The higher, the sooner it is cut. The middle of a long ID says less than names and states.
    fn cut_rank(self) -> u8 {
        if self.is_run { RUN_CUT_RANK } else { self.rank }
    }

    /// A column of numbers or times, aligned at the right.
    pub(super) const fn number(title: &'static str, rank: u8) -> Self {
        Self {
            is_number: true,
            ..Self::whole(title, rank)
        }
    }
}

/// Rows of cells in columns, without lines between them.
#[derive(Debug)]
pub(super) struct TextTable {
    style: Style,
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with a line of titles. A column in which every cell is empty is not shown.
    pub(super) fn new<const N: usize>(style: Style, columns: [Column; N]) -> Self {
        Self {
            style,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each column. Cells may be colored.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// The table as lines of at most `limit` columns, or as wide as its cells without a limit. Only a row whose columns
    /// of rank 0 alone are wider than the limit exceeds it.
    pub(super) fn into_text(self, limit: Option<u16>) -> String {
        let shown = self.layout(limit.map_or(usize::MAX, usize::from));
        let titles: Vec<_> = self
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        let mut text = String::new();
        let head = self.line(&shown, &titles);
        if !head.is_empty() {
            text.push_str(&self.style.dim(&head));
            text.push('\n');
        }
        for row in &self.rows {
            text.push_str(&self.line(&shown, row));
            text.push('\n');
        }
        text
    }

    fn line(&self, shown: &[(usize, usize)], cells: &[String]) -> String {
        let mut line = String::new();
        for (position, &(index, columns)) in shown.iter().enumerate() {
            let cell = if self.columns[index].is_run {
                let cell = self.style.cut_middle(&cells[index], columns);
                self.style.dim(&cell)
            } else {
                self.style.cut(&cells[index], columns).into_owned()
            };
            if position > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            line.push_str(&if self.columns[index].is_number {
                pad_left(&cell, columns)
            } else {
                pad(&cell, columns)
            });
        }
        line.trim_end().to_owned()
    }

    /// Chooses the columns to show, each with its width.
    fn layout(&self, limit: usize) -> Vec<(usize, usize)> {
        let mut shown = self.natural_widths();
        loop {
            let mut widths = shown.clone();
            let total: usize = widths.iter().map(|(_, columns)| columns + GAP).sum();
            let mut excess = total.saturating_sub(GAP).saturating_sub(limit);
            let mut order: Vec<_> = (0..widths.len()).collect();
            order.sort_by_key(|at| std::cmp::Reverse(self.columns[widths[*at].0].rank));
            let mut cuts = order.clone();
            cuts.sort_by_key(|at| std::cmp::Reverse(self.columns[widths[*at].0].cut_rank()));
            for at in &cuts {
                let (index, columns) = widths[*at];
                if let Some(least) = self.columns[index].least {
                    let spare = columns.saturating_sub(least.max(width(self.columns[index].title)));
                    let cut = spare.min(excess);
                    widths[*at].1 -= cut;
                    excess -= cut;
                }
            }
            match order.first() {
                Some(at) if excess > 0 && self.columns[shown[*at].0].rank > 0 => {
                    shown.remove(*at);
                }
                _ => return widths,
            }
        }
    }

    /// The columns that have something in them, each with the width of its widest cell.
    fn natural_widths(&self) -> Vec<(usize, usize)> {
        let columns = self.columns.iter().enumerate();
        columns
            .filter_map(|(index, column)| {
                let cells = self.rows.iter().map(|row| width(&row[index])).max();
                let widest = cells.filter(|widest| *widest > 0)?;
                Some((index, widest.max(width(column.title))))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(style: Style) -> TextTable {
        let columns = [
            Column::whole("", 1),
            Column::text("NAME", 2, 8),
            Column::whole("RUN", 0),
            Column::number("POLLS", 4),
            Column::whole("NOTHING", 5),
            Column::text("ERROR", 3, 6),
        ];
        let mut table = TextTable::new(style, columns);
        let mut row = |glyph: &str, name: &str, run: &str, polls: u32, error: &str| {
            table.row([
                style.good(glyph),
                name.to_owned(),
                run.to_owned(),
                polls.to_string(),
                String::new(),
                style.bad(error),
            ]);
        };
        row("✓", "週次レポート", "run_1", 7, "");
        row(
            "✗",
            "market research",
            "run_22",
            1234,
            "503 Service Unavailable",
        );
        table
    }

    #[test]
    fn columns_are_cut_and_left_out_by_importance() {
        let shown = |width| table(Style::PLAIN).into_text(width);
        insta::assert_snapshot!(shown(None), @"
           NAME             RUN     POLLS  ERROR
        ✓  週次レポート     run_1       7
        ✗  market research  run_22   1234  503 Service Unavailable
        ");
        insta::assert_snapshot!(shown(Some(50)), @"
           NAME             RUN     POLLS  ERROR
        ✓  週次レポート     run_1       7
        ✗  market research  run_22   1234  503 Service Un…
        ");
        insta::assert_snapshot!(shown(Some(30)), @"
           NAME         RUN     ERROR
        ✓  週次レポー…  run_1
        ✗  market res…  run_22  503 S…
        ");
        insta::assert_snapshot!(shown(Some(20)), @"
           NAME       RUN
        ✓  週次レポ…  run_1
        ✗  market r…  run_22
        ");
        insta::assert_snapshot!(shown(Some(5)), @"
        RUN
        run_1
        run_22
        ");
    }

    #[test]
    fn long_ids_of_runs_lose_their_middle_before_columns_are_left_out() {
        let columns = [
            Column::run(0),
            Column::whole("STATE", 1),
            Column::whole("NEXT POLL", 2),
        ];
        let shown = |style, width| {
            let mut table = TextTable::new(style, columns);
            for run in [
                "run_0123456789abcdef_market_research",
                "airflow:nightly_warehouse_load/manual__2026-11-27T06:26:48.999272+00:00",
            ] {
                let cells = [run, "running", "in 10s"].map(str::to_owned);
                table.row(cells);
            }
            table.into_text(width)
        };
        insta::assert_snapshot!(shown(Style::PLAIN, Some(60)), @"
        RUN                                       STATE    NEXT POLL
        run_0123456789abcdef_market_research      running  in 10s
        airflow:nightly_war…6:26:48.999272+00:00  running  in 10s
        ");
        insta::assert_snapshot!(shown(Style::PLAIN, Some(80)), @"
        RUN                                                           STATE    NEXT POLL
        run_0123456789abcdef_market_research                          running  in 10s
        airflow:nightly_warehouse_loa…26-11-27T06:26:48.999272+00:00  running  in 10s
        ");
        insta::assert_snapshot!(shown(Style::PLAIN, Some(40)), @"
        RUN
        run_0123456789abcdef_market_research
        airflow:nightly_war…6:26:48.999272+00:00
        ");
        let ascii = Style {
            unicode: false,
            ..Style::PLAIN
        };
        assert!(shown(ascii, Some(60)).contains("..."));
    }

    #[test]
    fn lines_fit_every_width_and_colors_take_no_room() {
        let colored = Style {
            colored: true,
            ..Style::PLAIN
        };
        for limit in 6..120 {
            let text = table(colored).into_text(Some(limit));
            let plain = table(Style::PLAIN).into_text(Some(limit));
            assert_eq!(console::strip_ansi_codes(&text), plain, "{limit}");
            for line in plain.lines() {
                assert!(width(line) <= usize::from(limit), "{limit}: {line}");
            }
            assert!(plain.contains("run_22"), "an ID is never cut: {plain}");
        }
    }
}
