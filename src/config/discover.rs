//! `[[discover]]`: runs that are found in lists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::load::provider_name;
use super::providers::{ProviderSettings, Providers};
use super::reader::{Item, SettingsReader, Table, Violation, check_label};
use super::rules::DAY;
use crate::domain::{ProviderName, SinkName};
use crate::profile::{Piece, Profile, Template};
use crate::text::nearest;

/// Shortest time from the beginning of a round to that of the next.
const LEAST_EVERY: Duration = Duration::from_secs(5);

/// Default of `every`.
const DEFAULT_EVERY: &str = "1m";

/// Most discoveries: each makes two requests in a round.
const MAX_DISCOVERIES: usize = 100;

/// Names in texts besides parameters, parts of the ID and the values of the profile.
const ENTRY_NAMES: [&str; 4] = ["id", "name", "group", "attempt"];

/// `[[discover]]`: runs that are watched as a list shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoverySettings {
    /// The provider.
    pub provider: ProviderName,
    /// How its API is read.
    pub profile: Arc<Profile>,
    /// The parameters of the list, by name.
    pub parameters: BTreeMap<String, String>,
    /// The name of each watch. Default: none.
    pub name: Option<EntryText>,
    /// The labels of each watch. Default: none.
    pub labels: BTreeMap<String, EntryText>,
    /// The only sinks that get messages. Default: all whose filters match.
    pub sinks: Option<Vec<EntryText>>,
    /// The time from the beginning of a round to that of the next, 5 s to 1 day. Default: 1 min.
    pub every: Duration,
}

impl DiscoverySettings {
    /// The parameters as text, which never changes: with the provider, it tells a discovery from others.
    pub fn identity(&self) -> String {
        serde_json::to_string(&self.parameters).expect("a map of texts")
    }

    /// Takes the filters away that the API lacks, for tests.
    #[cfg(test)]
    pub(crate) fn ignore_filters(&mut self, active: bool, since: bool) {
        let list = Arc::make_mut(&mut self.profile).list.as_mut();
        let list = list.expect("a discovery has a list");
        if active {
            list.active.clear();
        }
        if since {
            list.since = None;
        }
    }

    /// Whether the API can leave out runs that have ended.
    pub fn lists_active(&self) -> bool {
        let list = self.profile.list.as_ref();
        list.is_some_and(|list| !list.active.is_empty())
    }

    /// Whether the API can leave out runs that are older than a time.
    pub fn lists_since(&self) -> bool {
        let list = self.profile.list.as_ref();
        list.is_some_and(|list| list.since.is_some())
    }

    /// What it is called: its name, if that is the same for every run, or else the provider with its parameters.
    pub fn title(&self) -> String {
        if let Some(name) = self.name.as_ref().filter(|name| name.is_plain()) {
            return name.fill(&|_| None);
        }
        let mut title = self.provider.to_string();
        for (name, value) in &self.parameters {
            title.push_str(&format!(" {name}={value}"));
        }
        title
    }
}

/// A text that may name values of an entry of a list: `{branch}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryText(Template);

impl EntryText {
    /// Reads a text that may name these values.
    fn read(text: &str, known: &BTreeSet<String>) -> Result<Self, Violation> {
        let template = Template::parse(text).map_err(|stray| {
            let fix = "write a value of the run as {name}, and no other braces".to_owned();
            (stray.to_string(), fix)
        })?;
        for piece in &template.0 {
            let Piece::Part { name, slashes, raw } = piece else {
                continue;
            };
            if *slashes || *raw {
                let fix = format!("write {{{name}}}");
                return Err(("the name in braces has an end of its own".to_owned(), fix));
            }
            if !known.contains(name) {
                let what = format!("a run has no value {{{name}}}");
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                let fix = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean {{{near}}}?"),
                    None => format!("known are {}", known.join(", ")),
                };
                return Err((what, fix));
            }
        }
        Ok(Self(template))
    }

    /// Whether it is the same for every run.
    pub fn is_plain(&self) -> bool {
        self.0.names().next().is_none()
    }

    /// The text with the values; one that is lacking is empty.
    pub fn fill(&self, value: &dyn Fn(&str) -> Option<String>) -> String {
        let pieces = self.0.0.iter();
        pieces
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Part { name, .. } => value(name).unwrap_or_default(),
            })
            .collect()
    }
}

/// Reads all of them.
pub(super) fn read_discoveries(
    reader: &mut SettingsReader<'_>,
    root: &mut Table,
    providers: &Providers,
    sinks: &BTreeSet<SinkName>,
) -> Vec<DiscoverySettings> {
    let mut discoveries: Vec<DiscoverySettings> = Vec::new();
    for mut table in reader.tables(root, "discover") {
        let item = reader.take(&mut table, "provider", None);
        let account = read_account(reader, &table, item.as_ref(), providers);
        let profile = account.as_ref().map(|account| Arc::clone(&account.profile));
        let parameters = read_match(reader, &mut table, profile.as_deref());
        let known = profile.as_deref().map(names).unwrap_or_default();
        let is_known = profile.is_some();
        let text = |text: &str| match is_known {
            true => EntryText::read(text, &known),
            // Which values there are is not known.
            false => Ok(EntryText(Template::parse_beside_braces(text))),
        };
        let name = reader
            .take(&mut table, "name", None)
            .and_then(|item| reader.parsed(&item, text));
        let labels = read_labels(reader, &mut table, &text);
        let chosen = read_sinks(reader, &mut table, &text, sinks);
        let every = reader
            .take(&mut table, "every", Some(DEFAULT_EVERY))
            .and_then(|item| reader.duration(&item, LEAST_EVERY, DAY))
            .unwrap_or_default();
        reader.finish_rest(&mut table);
        let (Some(account), Some(profile), Some(item)) = (account, profile, item) else {
            continue;
        };
        let discovery = DiscoverySettings {
            provider: account.name,
            profile,
            parameters,
            name,
            labels,
            sinks: chosen,
            every,
        };
        let is_same = |known: &DiscoverySettings| {
            (&known.provider, &known.parameters) == (&discovery.provider, &discovery.parameters)
        };
        if discoveries.iter().any(is_same) {
            let fix = "keep one of them, or give them different parameters in match";
            reader.refuse(&item, "this discovery is listed twice", fix);
        }
        if discoveries.len() == MAX_DISCOVERIES {
            let what = format!("there are more than {MAX_DISCOVERIES} discoveries");
            reader.refuse(&item, what, "remove some, or match more runs with one");
        }
        discoveries.push(discovery);
    }
    discoveries
}

/// The account of the provider whose runs are to be found.
fn read_account(
    reader: &mut SettingsReader<'_>,
    table: &Table,
    item: Option<&Item>,
    providers: &Providers,
) -> Option<ProviderSettings> {
    let Some(item) = item else {
        let fix = "write the provider whose runs are to be found, such as \"github\"";
        reader.missing(table, "provider", fix);
        return None;
    };
    reader.parsed(item, |text| {
        let account = provider_name(text).and_then(|name| {
            providers
                .get(&name)
                .map_err(|why| (why, "correct it".to_owned()))
        })?;
        match account.profile.list {
            Some(_) => Ok(account),
            None => Err((
                format!(
                    "the profile {} does not say how runs are listed",
                    account.profile.name
                ),
                "name another provider, or add `list` to a profile of your own (docs/providers.md)"
                    .to_owned(),
            )),
        }
    })
}

/// The names that texts may have.
fn names(profile: &Profile) -> BTreeSet<String> {
    let list = profile.list.as_ref();
    let parameters = list.into_iter().flat_map(|list| list.parameters());
    let values = list
        .into_iter()
        .flat_map(|list| list.values.keys().cloned());
    let parts = profile.id.names().map(str::to_owned);
    let own = ENTRY_NAMES.iter().map(|name| (*name).to_owned());
    parameters.chain(values).chain(parts).chain(own).collect()
}

/// The parameters of the list.
fn read_match(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    profile: Option<&Profile>,
) -> BTreeMap<String, String> {
    let is_given = table.has("match");
    let mut own = reader.table(table, "match");
    let mut items: BTreeMap<String, Item> = BTreeMap::new();
    let mut parameters = BTreeMap::new();
    for item in reader.drain(&mut own) {
        if let Some(value) = reader.text(&item) {
            parameters.insert(item.name().to_owned(), value);
        }
        items.insert(item.name().to_owned(), item);
    }
    let Some(profile) = profile else {
        return parameters;
    };
    // One after the other, because the profile reports the first problem only.
    let mut rest = parameters.clone();
    while let Err(problem) = profile.check_list_parameters(&rest) {
        let known = profile
            .list
            .as_ref()
            .map(|list| list.parameters())
            .unwrap_or_default();
        let known = known.join(", ");
        use crate::profile::ListProblem::{Missing, None as NoList, Unknown, Value};
        let name = match &problem {
            NoList => break,
            Missing(name) | Unknown { name, .. } | Value { name, .. } => name.clone(),
        };
        let what = problem.to_string();
        match items.get(&name) {
            Some(item) => {
                let fix = match nearest(&name, known.split(", ")) {
                    Some(near) if near != name => format!("did you mean {near:?}?"),
                    _ => format!("the parameters of this list are {known}"),
                };
                reader.refuse(item, what, fix);
                rest.remove(&name);
            }
            None => {
                let place = if is_given { &own } else { &*table };
                let name = if is_given { &*name } else { "match" };
                reader.missing(place, name, &format!("{what}; write match = {{ … }} with it; the parameters of this list are {known}"));
                break;
            }
        }
        // What is required and was just refused is not reported again.
        if let Err(Missing(name)) = profile.check_list_parameters(&rest)
            && items.contains_key(&name)
        {
            break;
        }
    }
    parameters
}

fn read_labels(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    text: &dyn Fn(&str) -> Result<EntryText, Violation>,
) -> BTreeMap<String, EntryText> {
    let mut own = reader.table(table, "labels");
    let mut labels = BTreeMap::new();
    for item in reader.drain(&mut own) {
        let key = item.name().to_owned();
        let label = reader.parsed(&item, |value| {
            check_label(&key, value)?;
            text(value)
        });
        if let Some(label) = label {
            labels.insert(key, label);
        }
    }
    labels
}

fn read_sinks(
    reader: &mut SettingsReader<'_>,
    table: &mut Table,
    text: &dyn Fn(&str) -> Result<EntryText, Violation>,
    sinks: &BTreeSet<SinkName>,
) -> Option<Vec<EntryText>> {
    let item = reader.take(table, "sinks", None)?;
    let texts = reader.texts(&item)?;
    if texts.is_empty() {
        let what = "the list is empty, so that no sink would get a message";
        reader.refuse(&item, what, "name a sink, or leave it out");
    }
    let mut chosen = Vec::new();
    for name in texts {
        let read = text(&name).and_then(|text| {
            let is_known = || SinkName::new(&name).is_ok_and(|name| sinks.contains(&name));
            if text.is_plain() && !is_known() {
                let known: Vec<_> = sinks.iter().map(SinkName::as_str).collect();
                let fix = match known.is_empty() {
                    true => "add [sinks.NAME]".to_owned(),
                    false => format!("known sinks: {}", known.join(", ")),
                };
                return Err((format!("no sink is called {name:?}"), fix));
            }
            Ok(text)
        });
        match read {
            Ok(text) => chosen.push(text),
            Err((what, fix)) => reader.refuse(&item, what, fix),
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::{Loaded, Problems, Sources, load};
    use super::*;

    fn read(text: &str) -> Result<Loaded, Problems> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        load(&Sources {
            explicit: Some(path),
            ..Sources::default()
        })
    }

    #[test]
    fn a_discovery_has_a_title_and_texts_that_take_values() {
        let loaded = read(
            "[sinks.ops]\ntype = \"desktop\"\n\
             [[discover]]\nprovider = \"github\"\nmatch = { owner = \"acme\", repo = \"site\" }\n\
             name = \"{branch} of {repo}\"\nlabels = { who = \"{owner}\", all = \"x\" }\nsinks = [\"ops\", \"team-{owner}\"]\n\
             [[discover]]\nprovider = \"gh\"\nmatch = { owner = \"acme\", repo = \"api\" }\nname = \"api\"\nevery = \"5s\"\n",
        )
        .unwrap();
        let [site, api] = loaded.settings.discoveries.as_slice() else {
            panic!("there are two");
        };
        assert_eq!(site.title(), "github owner=acme repo=site");
        assert_eq!(site.identity(), r#"{"owner":"acme","repo":"site"}"#);
        assert_eq!(site.every, Duration::from_secs(60));
        let name = site.name.as_ref().unwrap();
        let value = |name: &str| (name == "repo").then(|| "site".to_owned());
        assert_eq!(name.fill(&value), " of site");
        assert_eq!(
            (api.title(), api.provider.as_str()),
            ("api".to_owned(), "github")
        );
        assert_eq!(api.every, Duration::from_secs(5));
    }

    #[test]
    fn each_fault_is_reported_with_its_place_and_what_to_do() {
        let head = "[[discover]]\nprovider = \"github\"\n";
        let matched = "match = { owner = \"acme\", repo = \"site\" }\n";
        for (text, expected) in [
            (
                "[[discover]]\n".to_owned() + matched,
                "c.toml:1:1: discover[0].provider: this is required",
            ),
            (
                "[[discover]]\nprovider = \"githup\"\n".to_owned(),
                "c.toml:2:12: discover[0].provider = \"githup\": no provider is named \"githup\"",
            ),
            (
                "[[discover]]\nprovider = \"crewship\"\n".to_owned(),
                "the profile crewship does not say how runs are listed; name another provider",
            ),
            (
                head.to_owned(),
                "c.toml:1:1: discover[0].match: this is required; the list needs the parameter owner; write match",
            ),
            (
                format!("{head}match = {{ owner = \"acme\" }}\n"),
                "discover[0].match.repo: this is required; the list needs the parameter repo",
            ),
            (
                format!(
                    "{head}match = {{ owner = \"acme\", repo = \"site\", brunch = \"main\" }}\n"
                ),
                "c.toml:3:51: discover[0].match.brunch = \"main\": the list has no parameter \"brunch\"",
            ),
            (
                format!(
                    "{head}match = {{ owner = \"acme\", repo = \"site\", brunch = \"main\" }}\n"
                ),
                "did you mean \"branch\"?",
            ),
            (
                format!("{head}match = {{ owner = \"acme\", repo = 5 }}\n"),
                "discover[0].match.repo = 5: this must be a string",
            ),
            (
                format!("{head}{matched}every = \"1s\"\n"),
                "discover[0].every = \"1s\": this duration is out of range; write a duration from 5s to 1d",
            ),
            (
                format!("{head}{matched}name = \"{{bransh}}\"\n"),
                "c.toml:4:8: discover[0].name = \"{bransh}\": a run has no value {bransh}; did you mean {branch}?",
            ),
            (
                format!("{head}{matched}name = \"{{branch\"\n"),
                "write a value of the run as {name}, and no other braces",
            ),
            (
                format!("{head}{matched}labels = {{ a = \"{{owner+}}\" }}\n"),
                "discover[0].labels.a = \"{owner+}\": the name in braces has an end of its own; write {owner}",
            ),
            (
                format!("{head}{matched}sinks = [\"ops\"]\n"),
                "discover[0].sinks = [\"ops\"]: no sink is called \"ops\"; add [sinks.NAME]",
            ),
            (
                format!("{head}{matched}sinks = []\n"),
                "the list is empty, so that no sink would get a message",
            ),
            (
                format!("{head}{matched}{head}{matched}"),
                "discover[1].provider = \"github\": this discovery is listed twice; keep one of them",
            ),
            (
                format!("{head}{matched}intervall = \"5s\"\n"),
                "discover[0].intervall: there is no such key",
            ),
        ] {
            let problems = read(&text).unwrap_err().to_string();
            assert!(problems.contains(expected), "{text}\n{problems}");
        }
    }
}
