//! Routing: which sinks get which events.

use super::{Event, EventType, GroupMember, Labels, SinkName, Verdict, Watch};

/// A pattern of event types that names nothing that exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pattern:?} names no event; use one of {}, or run.*, watch.*, group.*, api.*, sink.*, *",
    event_words()
)]
pub struct InvalidFilter {
    pattern: String,
}

fn event_words() -> String {
    EventType::ALL.map(EventType::as_str).join(", ")
}

/// A set of event types, written as words and patterns (`"run.failed"`, `"watch.*"`, `"*"`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFilter {
    types: Vec<EventType>,
}

impl EventFilter {
    /// The verdict events: the default of a sink.
    pub fn verdicts() -> Self {
        Self {
            types: Verdict::WORST_FIRST.map(Verdict::event_type).to_vec(),
        }
    }

    /// Reads a list of words and patterns. An empty list selects nothing.
    ///
    /// # Errors
    /// [`InvalidFilter`] for the first pattern that matches no event type.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidFilter> {
        let mut types = Vec::new();
        for pattern in patterns {
            let family = pattern
                .strip_suffix('*')
                .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
            let selects = |event_type: &EventType| match family {
                Some(prefix) => event_type.as_str().starts_with(prefix),
                None => event_type.as_str() == pattern,
            };
            let before = types.len();
            types.extend(EventType::ALL.into_iter().filter(selects));
            if types.len() == before {
                return Err(InvalidFilter {
                    pattern: pattern.to_owned(),
                });
            }
        }
        Ok(Self { types })
    }

    /// Whether an event of this type is selected.
    pub fn selects(&self, event_type: EventType) -> bool {
        self.types.contains(&event_type)
    }
}

/// The events that one sink gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The sink.
    pub sink: SinkName,
    /// The event types it gets.
    pub events: EventFilter,
    /// It gets events only of watches that carry all of these.
    pub labels: Labels,
    /// Whether it gets one message for a group in place of the verdicts of its watches.
    pub one_per_group: bool,
    /// Whether it gets one summary of what ended while nothing watched.
    pub digest: bool,
}

/// Which events of a watch one sink gets, and why it does not get the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The sink.
    pub sink: SinkName,
    /// The events about the watch that it gets.
    pub events: Vec<EventType>,
    /// Why it gets none, or not all verdicts.
    pub why_not: Option<String>,
}

/// The routes of all configured sinks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes(Vec<Route>);

impl FromIterator<Route> for Routes {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        Self(routes.into_iter().collect())
    }
}

impl Routes {
    /// Returns whether a sink of this name is configured.
    pub fn contains(&self, sink: &SinkName) -> bool {
        self.names().any(|name| name == sink)
    }

    /// Returns the routes of all configured sinks.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// Returns the names of all configured sinks.
    pub fn names(&self) -> impl Iterator<Item = &SinkName> {
        self.0.iter().map(|route| &route.sink)
    }

    /// Returns the sinks that get `event`. `watch` is its watch; events about the API or a sink
    /// have none, and go to sinks without labels.
    pub fn sinks_for(&self, event: &Event, watch: Option<&Watch>) -> Vec<SinkName> {
        let no_labels = Labels::new();
        let labels = watch.map_or(&no_labels, |watch| &watch.labels);
        let chosen = watch.and_then(|watch| watch.sinks.as_ref());
        let is_of_group =
            event.event_type.verdict().is_some() && watch.and_then(Watch::group).is_some();
        let wants = |route: &&Route| {
            route.events.selects(event.event_type)
                && !(is_of_group && route.one_per_group)
                && route.takes(labels, chosen)
        };
        self.0
            .iter()
            .filter(wants)
            .map(|route| route.sink.clone())
            .collect()
    }

    /// Splits sinks into those that get an event at once, and those that get it in a summary.
    pub fn apart_for_digest(&self, sinks: Vec<SinkName>) -> (Vec<SinkName>, Vec<SinkName>) {
        let wants_digest = |sink: &SinkName| {
            self.0
                .iter()
                .any(|route| route.digest && route.sink == *sink)
        };
        sinks.into_iter().partition(|sink| !wants_digest(sink))
    }

    /// Returns the sinks that get the message about a finished group: those that get it in place of the verdict of one
    /// of its watches, and those whose events select it.
    pub fn sinks_for_group(&self, members: &[GroupMember]) -> Vec<SinkName> {
        let wants = |route: &&Route| {
            let selects_group = route.events.selects(EventType::GroupFinished);
            members.iter().any(|member| {
                let selects_verdict =
                    route.one_per_group && route.events.selects(member.verdict.event_type());
                (selects_group || selects_verdict)
                    && route.takes(&member.labels, member.sinks.as_ref())
            })
        };
        self.0
            .iter()
            .filter(wants)
            .map(|route| route.sink.clone())
            .collect()
    }

    /// Returns which events of `watch` each sink gets, and why it does not get the others.
    pub fn explain(&self, watch: &Watch) -> Vec<Explained> {
        let named = watch.sinks.iter().flatten();
        let gone = named
            .filter(|name| !self.contains(name))
            .map(|name| Explained {
                sink: name.clone(),
                events: Vec::new(),
                why_not: Some(
                    "the watch names it, but no sink of that name is configured any more"
                        .to_owned(),
                ),
            });
        self.0
            .iter()
            .map(|route| route.explain(watch))
            .chain(gone)
            .collect()
    }
}

impl Route {
    /// Whether it gets events of watches with these labels, whose events only the chosen sinks get.
    fn takes(&self, labels: &Labels, chosen: Option<&Vec<SinkName>>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && chosen.is_none_or(|sinks| sinks.contains(&self.sink))
    }

    fn explain(&self, watch: &Watch) -> Explained {
        let of_watches =
            |event_type: &EventType| event_type.verdict().is_some() || event_type.is_progress();
        let mut events: Vec<_> = EventType::ALL
            .into_iter()
            .filter(of_watches)
            .filter(|event_type| self.events.selects(*event_type))
            .collect();
        let lacking = self
            .labels
            .iter()
            .find(|(key, value)| watch.labels.get(*key) != Some(*value));
        let refused = if watch
            .sinks
            .as_ref()
            .is_some_and(|sinks| !sinks.contains(&self.sink))
        {
            Some("the watch names other sinks".to_owned())
        } else {
            lacking.map(|(key, value)| format!("the watch lacks the label {key}={value}"))
        };
        if refused.is_some() {
            return Explained {
                sink: self.sink.clone(),
                events: Vec::new(),
                why_not: refused,
            };
        }
        let has_verdicts = events
            .iter()
            .any(|event_type| event_type.verdict().is_some());
        if let Some(group) = watch.group() {
            let has_one = self.one_per_group && has_verdicts;
            if has_one {
                events.retain(|event_type| event_type.verdict().is_none());
            }
            if has_one || self.events.selects(EventType::GroupFinished) {
                events.push(EventType::GroupFinished);
            }
            if has_one {
                return Explained {
                    sink: self.sink.clone(),
                    events,
                    why_not: Some(format!("it gets one message for the group {group}")),
                };
            }
        }
        let left_out: Vec<_> = Verdict::WORST_FIRST
            .into_iter()
            .map(Verdict::event_type)
            .filter(|event_type| !events.contains(event_type))
            .map(EventType::as_str)
            .collect();
        let why_not =
            (!left_out.is_empty()).then(|| format!("its events leave out {}", left_out.join(", ")));
        Explained {
            sink: self.sink.clone(),
            events,
            why_not,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_families_and_words() {
        let filter = EventFilter::parse(["run.failed", "watch.*"]).unwrap();
        assert!(filter.selects(EventType::RunFailed) && filter.selects(EventType::WatchOverdue));
        assert!(!filter.selects(EventType::RunSucceeded));
        let all = EventFilter::parse(["*"]).unwrap();
        assert!(
            EventType::ALL
                .into_iter()
                .all(|event_type| all.selects(event_type))
        );
        for bad in ["run", "run.", "ru*", "", "run.done"] {
            let error = EventFilter::parse([bad]).unwrap_err().to_string();
            assert!(error.contains("names no event"), "{error}");
            assert!(error.contains("run.succeeded, run.failed, "), "{error}");
        }
    }

    #[test]
    fn a_group_is_one_message_for_the_sinks_that_want_that() {
        let name = |text: &str| SinkName::new(text).unwrap();
        let route = |sink: &str, events: &[&str], one_per_group| Route {
            sink: name(sink),
            events: EventFilter::parse(events.iter().copied()).unwrap(),
            labels: Labels::new(),
            one_per_group,
            digest: false,
        };
        let routes = Routes::from_iter([
            route("each", &["run.*"], false),
            route("one", &["run.*"], true),
            route("failures", &["run.failed", "run.waiting"], true),
            route("both", &["run.failed", "group.*"], false),
        ]);
        let mut event = Event::sample("2024-01-15T10:35:05Z".parse().unwrap());
        let group = |name: &str| Labels::from([("group".to_owned(), name.to_owned())]);
        let mut watch = Watch {
            run_id: super::super::RunRef::new("run_1").unwrap(),
            name: None,
            labels: group("nightly"),
            sinks: None,
            added_at: event.timestamp,
            deadline_at: event.timestamp,
            trace: None,
        };
        event.event_type = EventType::RunFailed;
        assert_eq!(
            routes.sinks_for(&event, Some(&watch)),
            [name("each"), name("both")]
        );
        event.event_type = EventType::RunWaiting;
        assert_eq!(
            routes.sinks_for(&event, Some(&watch)),
            [name("each"), name("one"), name("failures")],
            "only verdicts are of the group"
        );
        let why: Vec<_> = routes.explain(&watch).into_iter().collect();
        assert_eq!(
            why[2].events,
            [EventType::RunWaiting, EventType::GroupFinished]
        );
        assert_eq!(
            why[2].why_not.as_deref(),
            Some("it gets one message for the group nightly")
        );
        // An empty name is not a group.
        watch.labels = group("");
        event.event_type = EventType::RunFailed;
        assert_eq!(routes.sinks_for(&event, Some(&watch)).len(), 4);

        let member = |verdict, sinks| GroupMember {
            run_id: watch.run_id.clone(),
            name: None,
            labels: group("nightly"),
            sinks,
            verdict,
            size: None,
        };
        let good = member(Verdict::Succeeded, None);
        assert_eq!(
            routes.sinks_for_group(std::slice::from_ref(&good)),
            [name("one"), name("both")]
        );
        let bad = member(Verdict::Failed, None);
        assert_eq!(
            routes.sinks_for_group(&[good.clone(), bad]),
            [name("one"), name("failures"), name("both")]
        );
        let elsewhere = member(Verdict::Failed, Some(vec![name("each")]));
        assert_eq!(
            routes.sinks_for_group(&[elsewhere.clone(), good]),
            [name("one"), name("both")]
        );
        assert_eq!(routes.sinks_for_group(&[elsewhere]), []);
    }

    #[test]
    fn labels_and_chosen_sinks_narrow_the_choice() {
        let name = |text: &str| SinkName::new(text).unwrap();
        let labels: Labels = [("team".to_owned(), "search".to_owned())].into();
        let route = |sink: &str, labels: Labels| Route {
            sink: name(sink),
            events: EventFilter::verdicts(),
            labels,
            one_per_group: false,
            digest: false,
        };
        let routes =
            Routes::from_iter([route("all", Labels::new()), route("search", labels.clone())]);
        assert!(routes.names().eq(&[name("all"), name("search")]));
        assert!(routes.contains(&name("search")) && !routes.contains(&name("other")));
        let mut event = Event::sample("2024-01-15T10:35:05Z".parse().unwrap());
        event.event_type = EventType::RunFailed;
        let mut watch = Watch {
            run_id: super::super::RunRef::new("run_1").unwrap(),
            name: None,
            labels: Labels::new(),
            sinks: None,
            added_at: event.timestamp,
            deadline_at: event.timestamp,
            trace: None,
        };
        assert_eq!(routes.sinks_for(&event, Some(&watch)), [name("all")]);
        watch.labels = labels;
        assert_eq!(
            routes.sinks_for(&event, Some(&watch)),
            [name("all"), name("search")]
        );
        watch.sinks = Some(vec![name("search")]);
        assert_eq!(routes.sinks_for(&event, Some(&watch)), [name("search")]);
        event.event_type = EventType::RunStarted;
        assert_eq!(routes.sinks_for(&event, Some(&watch)), []);

        let reasons = |watch: &Watch| -> Vec<_> {
            routes
                .explain(watch)
                .into_iter()
                .map(|explained| explained.why_not.unwrap_or_default())
                .collect()
        };
        assert_eq!(reasons(&watch), ["the watch names other sinks", ""]);
        watch.sinks = None;
        watch.labels.clear();
        assert_eq!(
            reasons(&watch),
            ["", "the watch lacks the label team=search"]
        );
        let failures = EventFilter::parse(["run.failed", "watch.*", "api.*"]).unwrap();
        let routes = Routes(vec![Route {
            sink: name("ops"),
            events: failures,
            labels: Labels::new(),
            one_per_group: false,
            digest: false,
        }]);
        let explained = &routes.explain(&watch)[0];
        assert_eq!(
            explained.why_not.as_deref(),
            Some("its events leave out run.canceled, run.skipped, run.succeeded")
        );
        assert!(explained.events.contains(&EventType::WatchOverdue));
        assert!(!explained.events.contains(&EventType::ApiRecovered));
        // What a sink gets of a group.
        watch
            .labels
            .insert("group".to_owned(), "nightly".to_owned());
        for (patterns, one_per_group, gets_message, is_in_place) in [
            (["run.failed"], true, true, true),
            (["run.started"], true, false, false),
            (["group.finished"], true, true, false),
            (["group.finished"], false, true, false),
            (["run.failed"], false, false, false),
        ] {
            let routes = Routes(vec![Route {
                sink: name("ops"),
                events: EventFilter::parse(patterns).unwrap(),
                labels: Labels::new(),
                one_per_group,
                digest: false,
            }]);
            let explained = &routes.explain(&watch)[0];
            let has_message = explained.events.contains(&EventType::GroupFinished);
            assert_eq!(has_message, gets_message, "{patterns:?}");
            let why = explained.why_not.as_deref().unwrap_or_default();
            assert_eq!(
                why.contains("one message"),
                is_in_place,
                "{patterns:?}: {why}"
            );
        }
    }
}
