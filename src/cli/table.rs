//! Tables that fit a terminal.

use comfy_table::{ContentArrangement, presets};

/// Rows of cells in columns, without lines between them.
#[derive(Debug)]
pub(super) struct Table(comfy_table::Table);

impl Table {
    /// A table with a line of titles.
    pub(super) fn new<const N: usize>(titles: [&str; N]) -> Self {
        let mut table = Self::plain();
        table.0.set_header(titles);
        table
    }

    /// A table without titles.
    pub(super) fn plain() -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        Self(table)
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }

    /// The table as lines, none longer than `width`: what does not fit goes on in the next line.
    /// Without a width every row is one line.
    pub(super) fn into_text(mut self, width: Option<u16>) -> String {
        if let Some(width) = width {
            self.0
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.0.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_the_width_or_stay_whole() {
        let table = || {
            let mut table = Table::new(["RUN", "STATUS"]);
            table.row(["run_1".to_owned(), "running".to_owned()]);
            table.row(["run_22".to_owned(), "a status of several words".to_owned()]);
            table
        };
        insta::assert_snapshot!(table().into_text(None), @r"
        RUN     STATUS
        run_1   running
        run_22  a status of several words
        ");
        let narrow = table().into_text(Some(24));
        assert!(
            narrow.lines().all(|line| line.chars().count() <= 24),
            "{narrow}"
        );
        assert!(narrow.lines().count() > 3, "{narrow}");
    }
}
