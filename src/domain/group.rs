//! Groups: several watches about which one message is sent, once all of them have verdicts.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Labels, ProviderName, RunRef, SinkName, Verdict, Watch};

/// The label that puts a watch into the group of that name.
pub const GROUP_LABEL: &str = "group";

/// The label that says how many watches the group has.
pub const GROUP_SIZE_LABEL: &str = "group_size";

/// Most watches that a group may wait for.
pub const MOST_GROUP_SIZE: u32 = 10_000;

/// Most runs that a message about several names.
pub const NAMED_RUNS: usize = 100;

impl Watch {
    /// The group that it belongs to.
    pub fn group(&self) -> Option<&str> {
        let name = self.labels.get(GROUP_LABEL)?;
        Some(name.as_str()).filter(|name| !name.is_empty())
    }

    /// How many watches the group has before its message is sent; `None` where it is those that were added by then.
    pub fn group_size(&self) -> Option<u32> {
        self.group()?;
        read_group_size(self.labels.get(GROUP_SIZE_LABEL)?)
    }
}

/// Reads a size of a group: 1 to [`MOST_GROUP_SIZE`].
pub fn read_group_size(text: &str) -> Option<u32> {
    let size = text.parse().ok()?;
    (1..=MOST_GROUP_SIZE).contains(&size).then_some(size)
}

/// A watch of a group, with its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The run.
    pub run_id: RunRef,
    /// The name of the watch.
    pub name: Option<String>,
    /// The labels of the watch.
    pub labels: Labels,
    /// The only sinks that get its events.
    pub sinks: Option<Vec<SinkName>>,
    /// The verdict.
    pub verdict: Verdict,
    /// The size of the group, by this watch. The smallest one counts.
    pub size: Option<u32>,
}

/// Why one message is about several runs. In JSON a key of its own: `"group": "nightly"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageScope {
    /// They are the group of this name: `group.finished`.
    Group(String),
    /// They ended while nothing watched them, and this sink gets one summary: `run.digest`.
    Sink(SinkName),
}

impl MessageScope {
    /// The name of the group or the sink.
    pub fn name(&self) -> &str {
        match self {
            Self::Group(name) => name,
            Self::Sink(sink) => sink.as_str(),
        }
    }
}

/// The data of `group.finished` and `run.digest`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEvent {
    /// The group, or the sink that gets a summary.
    #[serde(flatten)]
    pub scope: MessageScope,
    /// How many watches it had.
    pub total: u64,
    /// How many of them have each verdict that occurs.
    pub verdicts: BTreeMap<String, u64>,
    /// The runs, the worst verdicts first, and else in the order in which they were added.
    pub runs: Vec<GroupRun>,
    /// How many further runs are not named.
    pub more: u64,
    /// How many watches fewer were added than its size.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// The sink that could not be reached, where the event goes to its fallback. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_for: Option<SinkName>,
}

/// A run of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRun {
    /// The provider that knows the run.
    pub provider: ProviderName,
    /// Its ID there.
    pub id: String,
    /// The name of the watch.
    pub name: Option<String>,
    /// The verdict.
    #[serde(serialize_with = "word", deserialize_with = "read_word")]
    pub verdict: Verdict,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn word<S: Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.as_str())
}

fn read_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Verdict, D::Error> {
    let word = String::deserialize(deserializer)?;
    Verdict::from_word(&word).ok_or_else(|| serde::de::Error::custom("this is not a verdict"))
}

impl GroupEvent {
    /// What happened to these watches of a group, in the order in which they were added, while `left` others go on.
    pub fn of(group: &str, members: &[GroupMember], left: u64) -> Self {
        let size = members.iter().filter_map(|member| member.size).min();
        let mut event = Self::about(MessageScope::Group(group.to_owned()), members);
        event.missing = u64::from(size.unwrap_or(0)).saturating_sub(event.total + left);
        event
    }

    /// The summary for a sink of what happened to these watches, in the order in which that became known.
    pub fn digest(sink: &SinkName, members: &[GroupMember]) -> Self {
        Self::about(MessageScope::Sink(sink.clone()), members)
    }

    fn about(scope: MessageScope, members: &[GroupMember]) -> Self {
        let mut verdicts = BTreeMap::new();
        for member in members {
            *verdicts
                .entry(member.verdict.as_str().to_owned())
                .or_default() += 1;
        }
        let ordered = Verdict::WORST_FIRST.into_iter().flat_map(|verdict| {
            members
                .iter()
                .filter(move |member| member.verdict == verdict)
        });
        let runs: Vec<_> = ordered.take(NAMED_RUNS).map(GroupRun::of).collect();
        let total = members.len() as u64;
        Self {
            scope,
            total,
            verdicts,
            more: total - runs.len() as u64,
            runs,
            missing: 0,
            fallback_for: None,
        }
    }

    /// Each verdict that occurs with how often it does, the worst first.
    pub fn counts(&self) -> impl Iterator<Item = (Verdict, u64)> {
        Verdict::WORST_FIRST.into_iter().filter_map(|verdict| {
            let count = self.verdicts.get(verdict.as_str())?;
            Some((verdict, *count))
        })
    }

    /// Whether every watch was added, and every run succeeded.
    pub fn is_good(&self) -> bool {
        self.missing == 0
            && self
                .counts()
                .all(|(verdict, _)| verdict == Verdict::Succeeded)
    }

    /// Leaves out the last run that is named. Returns whether there was one.
    pub fn name_fewer(&mut self) -> bool {
        let is_shorter = self.runs.pop().is_some();
        self.more += u64::from(is_shorter);
        is_shorter
    }
}

impl GroupRun {
    fn of(member: &GroupMember) -> Self {
        Self {
            provider: member.run_id.provider_name(),
            id: member.run_id.id().to_owned(),
            name: member.name.clone(),
            verdict: member.verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(verdicts: &[(Verdict, usize)]) -> Vec<GroupMember> {
        let each = verdicts
            .iter()
            .flat_map(|(verdict, count)| std::iter::repeat_n(*verdict, *count));
        let member = |(number, verdict)| GroupMember {
            run_id: RunRef::new(&format!("run_{number}")).unwrap(),
            name: None,
            labels: Labels::new(),
            sinks: None,
            verdict,
            size: Some(200),
        };
        each.enumerate().map(member).collect()
    }

    #[test]
    fn the_worst_come_first_and_the_rest_is_counted() {
        let members = members(&[
            (Verdict::Succeeded, 110),
            (Verdict::TimedOut, 3),
            (Verdict::Failed, 7),
        ]);
        let mut event = GroupEvent::of("nightly", &members, 0);
        assert_eq!(GroupEvent::of("nightly", &members, 50).missing, 30);
        assert_eq!((event.total, event.more, event.missing), (120, 20, 80));
        assert_eq!(event.runs.len(), NAMED_RUNS);
        assert_eq!(event.runs[0].id, "run_113");
        assert_eq!(event.runs[7].verdict, Verdict::TimedOut);
        assert_eq!(event.runs[10].id, "run_0");
        let counts: Vec<_> = event.counts().collect();
        assert_eq!(
            counts,
            [
                (Verdict::Failed, 7),
                (Verdict::TimedOut, 3),
                (Verdict::Succeeded, 110)
            ]
        );
        assert!(!event.is_good());
        assert!(event.name_fewer());
        assert_eq!((event.runs.len(), event.more), (99, 21));
        let read: GroupEvent =
            serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
        assert_eq!(read, event);
        let sink = SinkName::new("chat").unwrap();
        let digest = GroupEvent::digest(&sink, &members);
        assert_eq!((digest.total, digest.missing), (120, 0));
        let json = serde_json::to_string(&digest).unwrap();
        assert!(json.starts_with(r#"{"sink":"chat","total":120,"#), "{json}");
        let read: GroupEvent = serde_json::from_str(&json).unwrap();
        assert_eq!(read, digest);
    }

    #[test]
    fn sizes_are_whole_numbers_in_a_range() {
        for (text, size) in [
            ("1", Some(1)),
            ("10000", Some(10_000)),
            ("0", None),
            ("10001", None),
            ("-1", None),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(read_group_size(text), size, "{text}");
        }
    }
}
