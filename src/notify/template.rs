//! Messages from the user's own template.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use super::body::MAX_BODY_BYTES;
use super::payload::json_within;
use super::{Message, summary};
use crate::clock::new_delivery_id;
use crate::config::{MAX_TEMPLATE_BYTES, read_template};
use crate::domain::{Event, SinkName};

/// Work one template may do, in instructions of its engine: far more than a message needs, and an end
/// to an endless loop.
const FUEL: u64 = 200_000;

/// A template that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("cannot read the template {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file or what it makes is too large.
    #[error("the template {} {what} more than {MAX_TEMPLATE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Whether it is or makes too much.
        what: &'static str,
    },
    /// What it makes is no JSON, though it is sent as that.
    #[error("the template {} makes no JSON ({detail}): values are put in as JSON, so a text has its quotes already", path.display())]
    NoJson {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where in the message.
        detail: String,
    },
    /// It has a mistake, or uses something that is not there.
    #[error("the template {}: {}", path.display(), detail)]
    Mistake {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        detail: String,
    },
}

/// What a template sees as `values`, by name: secrets, in general.
pub(super) type TemplateValues = BTreeMap<String, String>;

/// A template, checked when it is loaded.
#[derive(Debug)]
pub(super) struct MessageTemplate {
    path: PathBuf,
    source: String,
}

impl MessageTemplate {
    /// Reads a template and checks its syntax, and, if required, that it makes JSON of a sample, with a text for each of
    /// the named values.
    pub(super) fn load<'a>(
        path: &Path,
        content_type: &str,
        values: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self, TemplateError> {
        let unreadable = |source| TemplateError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let source =
            read_template(path)
                .map_err(unreadable)?
                .ok_or_else(|| TemplateError::TooLarge {
                    path: path.to_owned(),
                    what: "is",
                })?;
        let template = Self::checked(path, source)?;
        let event = Event::sample(Timestamp::UNIX_EPOCH);
        let (delivery, sink) = (new_delivery_id(), SinkName::new("sample").expect("a name"));
        let message = Message {
            delivery: &delivery,
            sink: &sink,
            attempt: 1,
            event: &event,
            trace: None,
            now: event.timestamp,
        };
        let values = values.into_iter().map(|name| (name.clone(), name.clone()));
        match template.render(&message, content_type, &values.collect()) {
            Err(error @ TemplateError::NoJson { .. }) => Err(error),
            // It may be made for events that have more than the sample has.
            Ok(_) | Err(_) => Ok(template),
        }
    }

    /// A template that is in no file.
    #[cfg(fuzzing)]
    pub(super) fn of(source: &str) -> Result<Self, TemplateError> {
        Self::checked(Path::new("template"), source.to_owned())
    }

    fn checked(path: &Path, source: String) -> Result<Self, TemplateError> {
        let template = Self {
            path: path.to_owned(),
            source,
        };
        environment("text/plain")
            .template_from_str(&template.source)
            .map_err(|error| template.mistake(&error))?;
        Ok(template)
    }

    /// Fills the template in. For a JSON content type every value is written as JSON.
    ///
    /// It sees `type`, `timestamp` and `data` of the event, `title`, `lines`, `text` and `url` of its
    /// summary, `delivery_id` and `attempt`, and the `values` of the configuration. When it makes too much of all that, it sees an event without
    /// the large fields, as other webhooks send it.
    pub(super) fn render(
        &self,
        message: &Message<'_>,
        content_type: &str,
        values: &TemplateValues,
    ) -> Result<String, TemplateError> {
        let of = |event: &str| self.render_event(message, content_type, values, event);
        let rendered = match of(&message.event.to_json()) {
            Err(TemplateError::TooLarge { .. }) => of(&json_within(message.event, MAX_BODY_BYTES)),
            rendered => rendered,
        }?;
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if (kind == "application/json" || kind.ends_with("+json"))
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&rendered)
        {
            return Err(TemplateError::NoJson {
                path: self.path.clone(),
                detail: error.to_string(),
            });
        }
        Ok(rendered)
    }

    fn render_event(
        &self,
        message: &Message<'_>,
        content_type: &str,
        values: &TemplateValues,
        event: &str,
    ) -> Result<String, TemplateError> {
        let event: serde_json::Value =
            serde_json::from_str(event).map_err(|error| self.mistake(&error))?;
        let summary = summary::of(message.event);
        let context = context! {
            text => summary.text(),
            title => summary.title,
            lines => summary.lines,
            url => summary.url,
            delivery_id => message.delivery.as_str(),
            attempt => message.attempt,
            values => values,
            ..Value::from(Serde(&event))
        };
        let environment = environment(content_type);
        let template = environment
            .template_from_str(&self.source)
            .map_err(|error| self.mistake(&error))?;
        let mut made = Limited::default();
        let rendered = template.render_captured_to(context, &mut made).map(drop);
        if made.is_full {
            return Err(TemplateError::TooLarge {
                path: self.path.clone(),
                what: "makes",
            });
        }
        rendered.map_err(|error| self.mistake(&error))?;
        Ok(String::from_utf8(made.bytes).expect("a template makes text"))
    }

    fn mistake(&self, error: &dyn std::fmt::Display) -> TemplateError {
        TemplateError::Mistake {
            path: self.path.clone(),
            detail: error.to_string(),
        }
    }
}

/// Takes [`MAX_TEMPLATE_BYTES`] and refuses more, so that a loop over a large output fills no memory.
#[derive(Default)]
struct Limited {
    bytes: Vec<u8>,
    is_full: bool,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.is_full |= self.bytes.len() + bytes.len() > MAX_TEMPLATE_BYTES;
        if self.is_full {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment(content_type: &str) -> Environment<'static> {
    let json = content_type
        .split(';')
        .next()
        .is_some_and(|kind| kind.trim().ends_with("json"));
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(move |_name| {
        if json {
            AutoEscape::Json
        } else {
            AutoEscape::None
        }
    });
    // A misspelled field fails the attempt and is named, instead of sending an empty text.
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{DeliveryId, EventType};
    use crate::notify::summary::tests::event;

    fn rendered(source: &str, content_type: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("message.tmpl");
        std::fs::write(&path, source).unwrap();
        let event = event(EventType::RunFailed, Some("say \"no\"\n<b>"));
        let (delivery, sink) = (
            DeliveryId::new("msg_1").unwrap(),
            SinkName::new("ops").unwrap(),
        );
        let message = Message {
            delivery: &delivery,
            sink: &sink,
            attempt: 2,
            event: &event,
            trace: None,
            now: event.timestamp,
        };
        let values = TemplateValues::from([("room".to_owned(), "a \"b\"".to_owned())]);
        let template = MessageTemplate::load(&path, content_type, values.keys())
            .map_err(|error| error.to_string())?;
        template
            .render(&message, content_type, &values)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_event_and_its_summary_can_be_used() {
        let text = rendered(
            "{{ type }} {{ data.run.id }} {{ title }} {{ delivery_id }} {{ attempt }}",
            "text/plain",
        );
        assert_eq!(
            text.unwrap(),
            "run.failed run_xyz789abc run_xyz789abc failed after 3s msg_1 2"
        );
        let json = rendered(
            r#"{"why": {{ data.run.error_message }}, "url": {{ url }}, "room": {{ values.room }}}"#,
            "application/json; x=y",
        );
        let json: serde_json::Value = serde_json::from_str(&json.unwrap()).unwrap();
        assert_eq!(json["room"], "a \"b\"");
        let error = rendered("{{ values.rom }}", "text/plain").unwrap_err();
        assert!(error.contains("undefined"), "{error}");
        assert_eq!(json["why"], "say \"no\"\n<b>");
    }

    #[test]
    fn what_is_sent_as_json_is_json() {
        let quoted = rendered(
            r#"{"why": "{{ type }}"}"#,
            "application/json; charset=utf-8",
        )
        .unwrap_err();
        assert!(
            quoted.contains("makes no JSON") && quoted.contains("quotes"),
            "{quoted}"
        );
        assert!(rendered(r#"{"why": "{{ type }}"}"#, "text/plain").is_ok());
    }

    #[test]
    fn mistakes_are_named_and_loops_end() {
        assert!(
            rendered("{{ type", "text/plain")
                .unwrap_err()
                .contains("message.tmpl")
        );
        assert!(
            rendered("{{ nothing }}", "text/plain")
                .unwrap_err()
                .contains("undefined")
        );
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = b %}{% endfor %}{% endfor %}";
        assert!(
            rendered(endless, "text/plain")
                .unwrap_err()
                .contains("fuel")
        );
        assert!(
            rendered(&"x".repeat(MAX_TEMPLATE_BYTES + 1), "text/plain")
                .unwrap_err()
                .contains("is more than")
        );
        let large = "{% for a in range(999) %}{{ 'x' * 1000 }}{% endfor %}";
        assert!(
            rendered(large, "text/plain")
                .unwrap_err()
                .contains("makes more than")
        );
    }
}
