//! Reads how a profile requests lists of runs.

use super::ProfileReading;
use super::tree::TomlValue;
use super::values::Section;
use crate::profile::{List, Next, Pointer};

impl ProfileReading {
    pub(super) fn list(&mut self, top: &mut Section) -> Option<List> {
        let example = "list = { get = \"/runs\", items = \"/runs\", id = { run = \"/id\" } }";
        let mut section = self.section(top, "list", example)?;
        let get = self.template(&mut section, "get");
        let post = self.template(&mut section, "post");
        let body = self.body(&mut section);
        let items = self.pointers(&mut section, "items");
        if items.is_empty() {
            self.missing(
                &section,
                "items",
                "items = \"/runs\", or items = \"\" for the whole answer",
            );
        }
        let omits_empty = self.flag(&mut section, "omits_empty");
        let id = self.places(&mut section, "id", "id = { run = \"/id\" }");
        let entry = self.pointer(&mut section, "entry");
        let limit = self.whole(&mut section, "limit", 1000);
        let active = self.groups(&mut section, "active");
        let unlisted = self.words(&mut section, "unlisted");
        let since = self.template(&mut section, "since");
        let needs = self.words(&mut section, "needs");
        let values = self.places(&mut section, "values", "values = { branch = \"/branch\" }");
        let next = self.next(&mut section);
        if get.is_none() && post.is_none() && !self.lines.contains_key("list.post") {
            self.missing(&section, "get", "get = \"/runs\", or post");
        } else if get.is_some() && post.is_some() {
            let what = "the list has get and post";
            self.fault(section.line, "list", what, "leave out one of them");
        }
        self.finish(section);
        Some(List {
            get,
            post,
            body,
            items,
            omits_empty,
            id,
            entry: entry.unwrap_or(Pointer(Vec::new())),
            limit: limit.unwrap_or(100),
            active,
            unlisted,
            since,
            needs,
            values,
            next,
        })
    }

    /// Takes JSON that is written as a text.
    fn body(&mut self, section: &mut Section) -> Option<serde_json::Value> {
        let text = self.text(section, "body")?;
        let path = section.key("body");
        match serde_json::from_str(&text) {
            Ok(body @ serde_json::Value::Object(_)) => Some(body),
            Ok(_) => {
                let what = "it is not a JSON object";
                let fix = "write one such as '{\"limit\": \"{limit}\"}'";
                self.fault(self.lines[&path], &path, what, fix);
                None
            }
            Err(error) => {
                let what = format!("it is not JSON ({error})");
                let fix = "write a JSON object in single quotes; parameters are in its texts, as \"{status}\"";
                self.fault(self.lines[&path], &path, what, fix);
                None
            }
        }
    }

    fn next(&mut self, list: &mut Section) -> Option<Next> {
        let (path, node) = self.take(list, "next")?;
        let example = "next = \"link\", \"offset\" or { cursor = \"/next\", param = \"cursor\" }";
        match &node.value {
            TomlValue::Text(word) if word == "link" => Some(Next::Link),
            TomlValue::Text(word) if word == "offset" => Some(Next::Offset),
            TomlValue::Table(_) => {
                let mut section = self.table(path, node, example)?;
                if let Some(link) = self.pointer(&mut section, "link") {
                    self.finish(section);
                    return Some(Next::LinkAt(link));
                }
                let cursor = self.pointer(&mut section, "cursor");
                if cursor.is_none() {
                    self.missing(&section, "cursor", "cursor = \"/next\"");
                }
                let param = self.text(&mut section, "param");
                let more = self.pointer(&mut section, "more");
                self.finish(section);
                Some(Next::Cursor {
                    cursor: cursor?,
                    param,
                    more,
                })
            }
            _ => {
                self.fault(
                    node.line,
                    &path,
                    "there is no such way to the next page",
                    format!("write {example}"),
                );
                None
            }
        }
    }
}
