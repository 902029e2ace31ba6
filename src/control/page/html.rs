//! HTML in which every text from outside is text.

use std::collections::HashMap;
use std::fmt::Write as _;

use jiff::Timestamp;

use super::PAGE;
use crate::domain::RunRef;
use crate::links::run_path;
use crate::style::{Look, Style};
use crate::text::one_line;

/// Longest text in one place of the page, in characters.
const MAX_CHARS: usize = 2000;

/// HTML that holds no markup from outside.
#[derive(Debug, Clone, Default)]
pub(super) struct Html(String);

impl Html {
    /// A text: characters that are not shown are left out, and the others mean nothing but themselves.
    pub(super) fn of(text: &str) -> Self {
        let mut html = Self::default();
        html.text(text);
        html
    }

    /// Appends a text, as [`Html::of`] has it.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for character in one_line(text, MAX_CHARS).chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// Appends markup of our own.
    pub(super) fn markup(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Appends an element with a text that runs in its own direction, whatever stands beside it.
    pub(super) fn isolated(&mut self, text: &str) -> &mut Self {
        self.markup("<bdi>").text(text).markup("</bdi>")
    }

    /// Appends a time: in UTC for people, until the script shows it in their zone.
    pub(super) fn time(&mut self, at: Timestamp) -> &mut Self {
        let shown = at.strftime("%Y-%m-%d %H:%M:%S UTC");
        write!(self.0, "<time datetime=\"{at}\">{shown}</time>").expect("a String takes all text");
        self
    }

    /// Appends the glyph of a state, which says nothing that the word beside it does not say.
    pub(super) fn glyph(&mut self, word: &str) -> &mut Self {
        let look = Look::of(word);
        let glyph = Style::PLAIN.glyph(look);
        write!(
            self.0,
            "<span class=\"glyph {}\" aria-hidden=\"true\">{glyph}</span> ",
            class(look)
        )
        .expect("a String takes all text");
        self
    }

    /// Appends a link to the view of a run: its name, or else its ID, and below a name the ID.
    pub(super) fn run(&mut self, root: &str, run: &RunRef, name: Option<&str>) -> &mut Self {
        let id = run.to_string();
        write!(self.0, "<a href=\"{root}{}\">", run_path(run)).expect("a String takes all text");
        self.isolated(name.unwrap_or(&id)).markup("</a>");
        if name.is_some() {
            self.markup("<small>").isolated(&id).markup("</small>");
        }
        self
    }

    /// Appends other HTML.
    pub(super) fn html(&mut self, html: &Self) -> &mut Self {
        self.0.push_str(&html.0);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The class that gives a state its color.
fn class(look: Look) -> &'static str {
    match look {
        Look::Pending | Look::Skipped => "dim",
        Look::Running => "run",
        Look::Waiting | Look::Canceled => "warn",
        Look::Succeeded => "good",
        Look::Failed | Look::Missing | Look::TimedOut => "bad",
        Look::Unknown => "odd",
    }
}

/// Fills the marks of the page. `<!--NAME-->` and `<!--/NAME-->` enclose what only some views have; `{{NAME}}` stands for
/// a value. Values are filled in one pass, so that none is taken for a mark.
pub(super) struct Fill {
    parts: Vec<&'static str>,
    values: HashMap<&'static str, Html>,
}

/// The parts of the page that not every view has.
const PARTS: [&str; 6] = ["login", "nothing", "overview", "run", "session", "live"];

impl Fill {
    /// A view at this path.
    pub(super) fn view(view: &'static str, path: &str) -> Self {
        let root = Self::root(path);
        let mut fill = Self {
            parts: vec![view],
            values: HashMap::new(),
        };
        fill.set("view", Html::of(view));
        fill.set("root", Html::of(root));
        fill.set("version", Html::of(env!("CARGO_PKG_VERSION")));
        fill
    }

    /// The way from a view to the root of the page, which need not be that of its host.
    pub(super) fn root(path: &str) -> &'static str {
        if path.starts_with("/runs/") {
            "../"
        } else {
            "./"
        }
    }

    pub(super) fn set(&mut self, name: &'static str, value: Html) {
        self.values.insert(name, value);
    }

    /// Adds the button that ends a session, where there is one.
    pub(super) fn with_session(&mut self, has_session: bool) {
        if has_session {
            self.parts.push("session");
        }
    }

    /// Adds what shows the state of the connection, as of `now`.
    pub(super) fn live(&mut self, now: Timestamp, newest_event: i64) {
        let mut time = Html::default();
        time.time(now);
        self.set("now", time);
        self.set("event", Html::of(&newest_event.to_string()));
        self.parts.push("live");
    }

    /// The whole page.
    pub(super) fn page(mut self, title: &str) -> String {
        self.set("title", Html::of(title));
        let mut template = PAGE.to_owned();
        for part in PARTS {
            let (begin, end) = (format!("<!--{part}-->"), format!("<!--/{part}-->"));
            while let Some(start) = template.find(&begin) {
                let stop = template[start..]
                    .find(&end)
                    .map_or(template.len(), |at| start + at);
                if self.parts.contains(&part) {
                    template.replace_range(stop..(stop + end.len()).min(template.len()), "");
                    template.replace_range(start..start + begin.len(), "");
                } else {
                    template.replace_range(start..(stop + end.len()).min(template.len()), "");
                }
            }
        }
        let mut page = String::with_capacity(template.len() + 4096);
        let mut rest = template.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").unwrap_or((after, ""));
            page.push_str(before);
            page.push_str(self.values.get(name).map_or("", Html::as_str));
            rest = after;
        }
        page.push_str(rest);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_never_markup_and_never_a_mark() {
        let hostile = "<img src=x onerror=alert(1)>\"'&{{token}}<!--login-->\u{202e}\u{7}é🚀";
        let html = Html::of(hostile);
        assert_eq!(
            html.as_str(),
            "&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;{{token}}&lt;!--login--&gt;é🚀"
        );
        let mut fill = Fill::view("nothing", "/");
        fill.set("why", html);
        let page = fill.page(hostile);
        assert!(page.contains("{{token}}&lt;!--login--&gt;"), "{page}");
        assert!(
            !page.contains("<img") && !page.contains("name=\"token\""),
            "{page}"
        );
    }

    #[test]
    fn every_mark_is_closed_and_every_view_has_its_parts_only() {
        for part in PARTS {
            let count = |mark: String| PAGE.matches(&mark).count();
            let begins = count(format!("<!--{part}-->"));
            assert!(
                begins > 0 && begins == count(format!("<!--/{part}-->")),
                "{part}"
            );
        }
        let login = Fill::view("login", "/").page("Log in");
        assert!(login.contains("type=\"password\"") && !login.contains("id=\"active\""));
        assert!(!login.contains("<!--") && !login.contains("{{"));
        let overview = Fill::view("overview", "/").page("runwatch");
        assert!(overview.contains("id=\"active\"") && !overview.contains("type=\"password\""));
        assert!(overview.contains("href=\"./page.css\""));
        let run = Fill::view("run", "/runs/run_1").page("run_1");
        assert!(run.contains("href=\"../page.css\"") && !run.contains("id=\"active\""));
    }
}
