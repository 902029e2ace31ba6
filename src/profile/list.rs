//! Requests for lists: templates and bodies that are filled with parameters.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use percent_encoding::utf8_percent_encode;
use serde_json::{Map, Value};

use super::template::{ENCODED, has_dots};
use super::{List, Next, PartKind, Piece, Profile, Template};

/// The parameter that chooses runs by their status.
pub(super) const STATUS: &str = "status";

/// Parameters that the request for a page has by itself.
pub(super) const OWN: [&str; 5] = ["since", "now", "limit", "offset", "cursor"];

/// Names in the text of `{since}`.
pub(super) const TIMES: [&str; 3] = ["time", "seconds", "ms"];

/// Longest value of a parameter, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// What a request for one page of a list is filled with.
#[derive(Debug, Clone, Copy)]
pub struct ListFill<'a> {
    /// Parameters by name, as their user gives them.
    pub parameters: &'a BTreeMap<String, String>,
    /// The values of `{status}`.
    pub statuses: &'a [String],
    /// The value of `{since}`.
    pub since: Option<Timestamp>,
    /// The value of `{now}`.
    pub now: Timestamp,
    /// The value of `{offset}`.
    pub offset: u64,
    /// The value of `{cursor}`.
    pub cursor: Option<&'a str>,
}

/// Where a request for a page of a list goes, and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListTarget {
    /// Path and query. It begins with exactly one slash.
    pub path: String,
    /// The body of a POST; `None` for a GET.
    pub body: Option<String>,
}

/// Why a list cannot be requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListProblem {
    /// The profile describes none.
    #[error("this API has no list of runs")]
    None,
    /// A parameter is missing.
    #[error("the list needs the parameter {0}")]
    Missing(String),
    /// There is no such parameter.
    #[error("the list has no parameter {name:?}; it has {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those of the list, separated by commas.
        known: String,
    },
    /// A parameter has a value that the request cannot have.
    #[error("the parameter {name} is {value:?}, and {what}")]
    Value {
        /// The name.
        name: String,
        /// The value.
        value: String,
        /// What it has to be.
        what: &'static str,
    },
}

impl List {
    /// The names in the request, in their order, each once.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut add = |template: &Template| {
            for name in template.names() {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        };
        self.get.iter().chain(&self.post).for_each(&mut add);
        if let Some(body) = &self.body {
            each_text(body, &mut |text| add(&Template::parse_beside_braces(text)));
        }
        names
    }

    /// The names of its parameters.
    pub fn parameters(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| !OWN.contains(&&**name));
        names
    }

    /// The names in its path.
    pub(super) fn path_names(&self) -> Vec<&str> {
        let in_path = |piece: &&Piece| !matches!(piece, Piece::Text(text) if text.contains('?'));
        let templates = self.get.iter().chain(&self.post);
        let pieces = templates.flat_map(|template| template.0.iter().take_while(in_path));
        pieces.filter_map(Piece::name).collect()
    }

    fn since(&self, since: Timestamp) -> Option<String> {
        let pieces = self.since.as_ref()?.0.iter();
        Some(
            pieces
                .map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Part { name, .. } => match &**name {
                        "ms" => since.as_millisecond().to_string(),
                        "seconds" => since.as_second().to_string(),
                        _ => time(since),
                    },
                })
                .collect(),
        )
    }

    /// The value of a name in a request, if it has one; `status` is that of `{status}`.
    fn value<'a>(
        &self,
        name: &str,
        status: Option<&'a str>,
        fill: &ListFill<'a>,
    ) -> Option<Cow<'a, str>> {
        let own = match name {
            STATUS => return status.map(Cow::Borrowed),
            "since" => self.since(fill.since?)?,
            "now" => time(fill.now),
            "limit" => self.limit.to_string(),
            "offset" => fill.offset.to_string(),
            "cursor" => return fill.cursor.map(Cow::Borrowed),
            name => {
                return fill
                    .parameters
                    .get(name)
                    .map(|value| Cow::Borrowed(&**value));
            }
        };
        Some(Cow::Owned(own))
    }

    /// A text of a request with its values: none where a parameter has no value, and as many as there are of
    /// `{status}` where it names that.
    fn filled(
        &self,
        pieces: &[Piece],
        fill: &ListFill<'_>,
        write: &dyn Fn(&str) -> String,
    ) -> Vec<String> {
        let with = |status| {
            let text = |piece: &Piece| match piece {
                Piece::Text(text) => Some(text.clone()),
                Piece::Part { name, .. } => Some(write(&self.value(name, status, fill)?)),
            };
            pieces.iter().map(text).collect::<Option<String>>()
        };
        if !pieces.iter().any(|piece| piece.name() == Some(STATUS)) {
            return with(None).into_iter().collect();
        }
        let statuses = fill.statuses.iter();
        statuses
            .filter_map(|status| with(Some(&**status)))
            .collect()
    }

    /// A value of the body, filled: nothing where it names a parameter without a value, several where it is a text that
    /// names `{status}` and there are several.
    fn fill_json(&self, value: &Value, fill: &ListFill<'_>) -> Vec<Value> {
        let all = |values: &mut dyn Iterator<Item = &Value>| {
            values
                .flat_map(|value| self.fill_json(value, fill))
                .collect::<Vec<_>>()
        };
        match value {
            Value::String(text) => self.fill_text(text, fill),
            Value::Array(elements) => {
                let filled = all(&mut elements.iter());
                let is_emptied = filled.is_empty() && !elements.is_empty();
                (!is_emptied)
                    .then_some(Value::Array(filled))
                    .into_iter()
                    .collect()
            }
            Value::Object(members) => {
                let member = |(name, value): (&String, &Value)| {
                    let mut values = self.fill_json(value, fill);
                    let value = match values.len() {
                        0 | 1 => values.pop()?,
                        _ => Value::Array(values),
                    };
                    Some((name.clone(), value))
                };
                let filled: Map<_, _> = members.iter().filter_map(member).collect();
                let is_emptied = filled.is_empty() && !members.is_empty();
                (!is_emptied)
                    .then_some(Value::Object(filled))
                    .into_iter()
                    .collect()
            }
            other => vec![other.clone()],
        }
    }

    fn fill_text(&self, text: &str, fill: &ListFill<'_>) -> Vec<Value> {
        let template = Template::parse_beside_braces(text);
        match &*template.0 {
            [Piece::Part { name, .. }] if name == "limit" => vec![self.limit.into()],
            [Piece::Part { name, .. }] if name == "offset" => vec![fill.offset.into()],
            pieces => {
                let filled = self.filled(pieces, fill, &str::to_owned);
                filled.into_iter().map(Value::String).collect()
            }
        }
    }
}

impl Profile {
    /// The parameters without which a list cannot be requested: those of its path, the parts of an ID that its
    /// elements do not have, and those that the API needs.
    pub fn list_needs(&self) -> Vec<&str> {
        let Some(list) = &self.list else {
            return Vec::new();
        };
        let mut needs = list.path_names();
        let of_id = self.id.names().filter(|name| !list.id.contains_key(*name));
        for name in of_id.chain(list.needs.iter().map(String::as_str)) {
            if !needs.contains(&name) {
                needs.push(name);
            }
        }
        needs
    }

    /// Checks the parameters of a request for a list.
    ///
    /// # Errors
    /// The first [`ListProblem`].
    pub fn check_list_parameters(
        &self,
        parameters: &BTreeMap<String, String>,
    ) -> Result<(), ListProblem> {
        let list = self.list.as_ref().ok_or(ListProblem::None)?;
        let known = list.parameters();
        if let Some(name) = parameters.keys().find(|name| !known.contains(name)) {
            let known = match &*known {
                [] => "none".to_owned(),
                known => known.join(", "),
            };
            let name = name.clone();
            return Err(ListProblem::Unknown { name, known });
        }
        for name in self.list_needs() {
            if !parameters.contains_key(name) {
                return Err(ListProblem::Missing(name.to_owned()));
            }
        }
        let in_path = list.path_names();
        for (name, value) in parameters {
            if let Some(what) = self.wrong_parameter(name, value, in_path.contains(&&**name)) {
                let (name, value) = (name.clone(), value.chars().take(60).collect());
                return Err(ListProblem::Value { name, value, what });
            }
        }
        Ok(())
    }

    /// What a value of a parameter has to be, if it is not that.
    fn wrong_parameter(&self, name: &str, value: &str, in_path: bool) -> Option<&'static str> {
        let mut pieces = self.id.0.iter();
        let part = pieces.find(|piece| piece.name() == Some(name));
        if value.is_empty() {
            return Some("it must not be empty");
        }
        if value.len() > MAX_VALUE_BYTES || value.contains(char::is_control) {
            return Some("it has at most 1,024 bytes and no control characters");
        }
        if (in_path || part.is_some()) && has_dots(value) {
            return Some("no part of a path may be empty, \".\" or \"..\"");
        }
        if part.is_some_and(|part| !part.spans() && value.contains('/')) {
            return Some("this part of an ID has no \"/\"");
        }
        let kind = part.and_then(|_| self.parts.get(name));
        kind.filter(|kind| !kind.fits(value))
            .map(|kind| match kind {
                PartKind::Number => "it has to be a number",
                PartKind::Uuid => "it has to be a UUID",
                PartKind::Token | PartKind::Url => "an ID has no such part",
            })
    }

    /// Fills the request for a page of the list. Whatever the parameters contain, each is one segment of the path, one
    /// value of the query, or within one text of the body. What names a parameter without a value is left out.
    ///
    /// # Errors
    /// As [`Profile::check_list_parameters`].
    pub fn list_target(&self, fill: &ListFill<'_>) -> Result<ListTarget, ListProblem> {
        self.check_list_parameters(fill.parameters)?;
        let list = self.list.as_ref().ok_or(ListProblem::None)?;
        let template = list.get.as_ref().or(list.post.as_ref());
        let (path, query) = template.map(split).unwrap_or_default();
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let mut target = String::new();
        for piece in &path {
            match piece {
                Piece::Text(text) => target.push_str(text),
                Piece::Part { name, raw, .. } => {
                    let value = list.value(name, None, fill).unwrap_or_default();
                    match raw {
                        true => {
                            let segments: Vec<_> = value.split('/').map(encoded).collect();
                            target.push_str(&segments.join("/"));
                        }
                        false => target.push_str(&encoded(&value)),
                    }
                }
            }
        }
        let pairs = query.iter();
        let mut pairs: Vec<_> = pairs
            .flat_map(|pair| list.filled(pair, fill, &encoded))
            .collect();
        if let Some(Next::Cursor {
            param: Some(param), ..
        }) = &list.next
            && let Some(cursor) = fill.cursor
        {
            pairs.push(format!("{}={}", encoded(param), encoded(cursor)));
        }
        for (index, pair) in pairs.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(pair);
        }
        let body = list.post.is_some().then(|| {
            let body = list
                .body
                .iter()
                .flat_map(|body| list.fill_json(body, fill))
                .next();
            body.unwrap_or_else(|| Value::Object(Map::new()))
                .to_string()
        });
        Ok(ListTarget { path: target, body })
    }
}

/// A time as RFC 3339 has it, in whole seconds: the second in which it is.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The pieces of the path of a template, and those of each pair of its query.
fn split(template: &Template) -> (Vec<Piece>, Vec<Vec<Piece>>) {
    // No name has these characters.
    let text = template.to_string();
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    let pieces = |text: &str| Template::parse_beside_braces(text).0;
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    (pieces(path), pairs.map(pieces).collect())
}

/// Calls `seen` with each text of a value.
fn each_text(value: &Value, seen: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => seen(text),
        Value::Array(elements) => elements.iter().for_each(|element| each_text(element, seen)),
        Value::Object(members) => members.values().for_each(|member| each_text(member, seen)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile(list: &str) -> Profile {
        let text = format!(
            r#"
            base_url = "https://api.example.com"
            id = "{{job+}}/{{team}}/{{run}}"
            parts = {{ run = "number", team = "token" }}
            get = "/{{job|raw}}/{{team}}/{{run}}"
            rules = [{{ when = {{ "/state" = "on" }}, is = "running" }}]
            list = {{ items = "", id = {{ run = "/id" }}, {list} }}"#
        );
        super::super::parse(&text, "jobs").unwrap()
    }

    fn target(profile: &Profile, parameters: &[(&str, &str)]) -> Result<ListTarget, ListProblem> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let parameters = parameters.iter().map(own).collect();
        profile.list_target(&ListFill {
            parameters: &parameters,
            statuses: &[],
            since: Some("2026-11-28T08:00:00.9Z".parse().unwrap()),
            now: "2026-11-28T09:00:00Z".parse().unwrap(),
            offset: 95,
            cursor: None,
        })
    }

    #[test]
    fn parameters_without_a_value_are_left_out_of_the_query_only() {
        let jobs = profile(
            r#"get = "/x/{job|raw}/{team}/runs?all=1&on={branch}&s={status}&from={since}&to={now}&l={limit}&q=a%20{branch}",
               since = ">={time}""#,
        );
        let team = [("job", "a b/c"), ("team", "t")];
        let path = |parameters: &[(&str, &str)]| target(&jobs, parameters).unwrap().path;
        assert_eq!(
            path(&team),
            "/x/a%20b/c/t/runs?all=1&from=%3E%3D2026-11-28T08%3A00%3A00Z&to=2026-11-28T09%3A00%3A00Z&l=100"
        );
        let branch = [team[0], team[1], ("branch", "a&b/c")];
        assert!(path(&branch).contains("&on=a%26b%2Fc&from="));
        assert!(path(&branch).ends_with("&q=a%20a%26b%2Fc"));
        for (parameters, name) in [
            (vec![team[0]], "team"),
            (vec![team[1]], "job"),
            (vec![("job", ""), team[1]], "job"),
            (vec![("job", "a//b"), team[1]], "job"),
            (vec![("job", "a/.."), team[1]], "job"),
            (vec![team[0], ("team", ".")], "team"),
            (vec![team[0], ("team", "a/b")], "team"),
            (vec![team[0], ("team", "a b")], "team"),
            (vec![team[0], team[1], ("branch", "")], "branch"),
            (vec![team[0], team[1], ("branch", "a\nb")], "branch"),
            (vec![team[0], team[1], ("since", "x")], "since"),
            (vec![team[0], team[1], ("limit", "7")], "limit"),
        ] {
            let problem = target(&jobs, &parameters).unwrap_err().to_string();
            assert!(problem.contains(name), "{problem}");
        }
        let list = jobs.list.as_ref().unwrap();
        assert_eq!(list.parameters(), ["job", "team", "branch", "status"]);
        assert_eq!(jobs.list_needs(), ["job", "team"]);
    }

    #[test]
    fn what_a_body_leaves_out_takes_what_is_empty_by_it_along() {
        let jobs = profile(
            r#"post = "/x", needs = ["experiment"], since = "{seconds}", next = "offset", body = '''{
                "query": "query($a:ID){ runs(id:$a){ id } }", "team": "{team}", "n": [1, null, true], "job": "x{job}",
                "a": {"b": [{"c": "{other}"}], "d": "{experiment} {since}"}, "o": "{offset}", "l": ["{limit}"], "e": [{}, []]
            }'''"#,
        );
        let given = [("job", "j"), ("team", "t"), ("experiment", "e")];
        let body = target(&jobs, &given).unwrap().body.unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "query": "query($a:ID){ runs(id:$a){ id } }", "team": "t", "n": [1, null, true], "job": "xj",
                "a": {"d": "e 1795852800"}, "o": 95, "l": [100], "e": [{}, []]
            })
        );
        assert_eq!(
            target(&jobs, &given[..2]),
            Err(ListProblem::Missing("experiment".to_owned()))
        );
    }

    proptest! {
        #[test]
        fn no_parameter_leads_elsewhere(job in "(\\PC|[/.%\\\\@:?#+&=]){1,20}", branch in "\\PC{1,12}") {
            let jobs = profile(r#"get = "/x/{job|raw}/{team}?on={branch}&z=1", next = { cursor = "/c", param = "a[b]" }"#);
            let given = [("job", job.as_str()), ("team", "t"), ("branch", &branch)];
            let Ok(target) = target(&jobs, &given) else { return Ok(()) };
            prop_assert!(target.path.starts_with("/x/"));
            let url: reqwest::Url = format!("https://api.example.com{}", target.path).parse().unwrap();
            prop_assert_eq!(url.host_str(), Some("api.example.com"));
            prop_assert!(url.path().starts_with("/x/") && url.path().ends_with("/t"));
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            prop_assert_eq!(pairs, [("on".to_owned(), branch), ("z".to_owned(), "1".to_owned())]);
        }
    }
}
