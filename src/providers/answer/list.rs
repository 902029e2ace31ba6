//! Reads a page of a list of runs.

use jiff::Timestamp;

use super::layout::Draft;
use super::{Answer, Found, Layout, NAME_CHARS, Seen, shown, stands_without_parts};
use crate::domain::{RunState, Status};
use crate::profile::{Fields, List, Next, Pointer, Profile, Rule, Subject};
use crate::providers::error::Malformed;
use crate::providers::plan::{Plan, Use};
use crate::providers::reader::{Ending, Reader};
use crate::providers::value::{each_element, text};
use crate::text::one_line;

/// Most elements of a page.
const MAX_ELEMENTS: usize = 10_000;

/// The byte order mark of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is read of a page of a list, and of each element.
#[derive(Debug)]
pub(in crate::providers) struct PageLayout {
    /// The array and what leads to the next page.
    page: Layout,
    /// How many of the places of `page` are of the array; the cursor and the sign of another page follow.
    arrays: usize,
    /// An absent array has no elements.
    omits_empty: bool,
    /// One element; its further places are the parts of the ID and the values, by name.
    entry: Layout,
    /// The root of `entry` that is the element itself.
    here: usize,
    ids: Vec<String>,
    values: Vec<String>,
}

/// A page, as it is in an answer.
#[derive(Debug, Default)]
pub(in crate::providers) struct PageRead {
    pub(in crate::providers) elements: Vec<Element>,
    /// How many elements are not objects that can be read.
    pub(in crate::providers) unreadable: usize,
    /// The cursor or the address of the next page, where the answer has one.
    pub(in crate::providers) cursor: Option<String>,
}

/// What an element shows of a run.
#[derive(Debug, Clone)]
pub(in crate::providers) struct Element {
    /// The parts of its ID that it has, by name.
    pub(in crate::providers) ids: Vec<(String, String)>,
    pub(in crate::providers) values: Vec<(String, String)>,
    pub(in crate::providers) status: Status,
    pub(in crate::providers) attempt: Option<u64>,
    pub(in crate::providers) name: Option<String>,
    pub(in crate::providers) group: Option<String>,
    pub(in crate::providers) url: Option<String>,
    pub(in crate::providers) created_at: Option<Timestamp>,
    pub(in crate::providers) started_at: Option<Timestamp>,
    pub(in crate::providers) completed_at: Option<Timestamp>,
}

impl PageLayout {
    /// Of the lists of a profile, if it has any.
    pub(in crate::providers) fn of(profile: &Profile) -> Option<Self> {
        let list = profile.list.as_ref()?;
        let mut places: Vec<_> = list
            .items
            .iter()
            .map(|items| (items.clone(), Use::LARGE))
            .collect();
        let small = |pointer: &Pointer| (pointer.clone(), Use::SMALL);
        match &list.next {
            Some(Next::Cursor { cursor, more, .. }) => {
                places.extend([cursor].into_iter().chain(more).map(small));
            }
            Some(Next::LinkAt(link)) => places.push(small(link)),
            Some(Next::Link | Next::Offset) | None => {}
        }
        let page = Draft {
            further: places,
            ..Draft::default()
        };
        let whole = Pointer(Vec::new());
        let mut roots = match list.entry.0.is_empty() {
            true => profile.roots.clone(),
            false => Vec::new(),
        };
        if !roots.contains(&whole) {
            roots.push(whole.clone());
        }
        Some(Self {
            page: page.build(),
            arrays: list.items.len(),
            omits_empty: list.omits_empty,
            here: roots.iter().position(|root| *root == whole)?,
            entry: entry(profile, list, &roots),
            ids: list.id.keys().cloned().collect(),
            values: list.values.keys().cloned().collect(),
        })
    }

    /// The places that are walked in the body of a page.
    pub(in crate::providers) fn plan(&self) -> &Plan {
        self.page.plan()
    }

    /// Reads a page.
    ///
    /// # Errors
    /// When the body does not have a whole array of elements.
    pub(in crate::providers) fn read(&self, reader: Reader<'_>) -> Result<PageRead, Malformed> {
        let page = Answer::of(&self.page, reader);
        if page.reader.is_too_large() {
            return Err(Malformed::Shape(
                "it is larger than max_response_bytes, and only a whole list can be used",
            ));
        }
        if page.ending != Ending::Whole {
            return Err(page.malformed("it breaks off"));
        }
        let (arrays, next) = self.page.further.split_at(self.arrays);
        let array = arrays.iter().find_map(|place| match page.found(*place) {
            Found::Absent => None,
            Found::Json(json) => {
                let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
                let json = json.trim_ascii();
                (json.first() == Some(&b'[')).then_some(Ok(json))
            }
            Found::TooLarge => Some(Err(Malformed::Shape(
                "its list is larger than max_response_bytes",
            ))),
            Found::Cut | Found::NotJson | Found::Contradicts => {
                Some(Err(page.malformed("its list is not JSON")))
            }
        });
        let mut read = PageRead::default();
        match array.transpose()? {
            Some(array) => self.read_elements(array, &mut read)?,
            None if self.omits_empty && self.is_absent(&page) => {}
            None => return Err(Malformed::Shape("it has no list of runs")),
        }
        read.cursor = cursor(&page, next)?;
        Ok(read)
    }

    /// Whether an answer that is an object has no array at all.
    fn is_absent(&self, page: &Answer<'_>) -> bool {
        let mut arrays = self.page.further[..self.arrays].iter();
        arrays.all(|place| page.found(*place) == Found::Absent)
    }

    fn read_elements(&self, array: &[u8], read: &mut PageRead) -> Result<(), Malformed> {
        let mut count = 0;
        let is_json = each_element(array, &mut |json| {
            count += 1;
            match self.element(json) {
                _ if count > MAX_ELEMENTS => {}
                Some(element) => read.elements.push(element),
                None => read.unreadable += 1,
            }
            count <= MAX_ELEMENTS
        });
        if count > MAX_ELEMENTS {
            return Err(Malformed::Shape("its list has more than 10,000 elements"));
        }
        is_json.map_err(|_not_json| Malformed::Shape("its list is not JSON"))
    }

    /// Reads one element; `None` where it is not an object, or has two different values for what decides.
    fn element(&self, json: &[u8]) -> Option<Element> {
        let layout = &self.entry;
        let mut reader = Reader::new(layout.plan(), json.len() as u64, None);
        let _all = reader.push(json);
        let mut answer = Answer::of(layout, reader);
        if answer.ending != Ending::Whole || answer.check_values().is_err() {
            return None;
        }
        let status = answer.list_status();
        let fields = &layout.fields;
        let mut element = Element {
            ids: Vec::new(),
            values: Vec::new(),
            attempt: answer.first(&fields.attempt).and_then(super::whole_number),
            name: answer.name(&fields.name),
            group: answer.name(&fields.group),
            url: answer.first(&fields.url).and_then(super::page),
            created_at: answer.time(&fields.created),
            started_at: answer.time(&fields.started),
            completed_at: answer.ended_at(&status),
            status,
        };
        answer.root = self.here;
        let (ids, values) = layout.further.split_at(self.ids.len());
        for (name, place) in self.ids.iter().zip(ids) {
            let json = answer.json(*place)?;
            let id = match Seen::of(json) {
                Seen::Text(_) => text(json)?.into_owned(),
                Seen::Number(_) => String::from_utf8_lossy(json).into_owned(),
                _ => return None,
            };
            element.ids.push((name.clone(), id));
        }
        for (name, place) in self.values.iter().zip(values) {
            let shown = answer.json(*place).and_then(shown);
            let shown = shown.map(|text| one_line(&text, NAME_CHARS));
            if let Some(shown) = shown.filter(|text| !text.is_empty()) {
                element.values.push((name.clone(), shown));
            }
        }
        Some(element)
    }
}

impl Answer<'_> {
    /// The status that an element of a list shows: unknown where it has none that a rule knows.
    fn list_status(&self) -> Status {
        let unknown = || Status::from(RunState::Unknown);
        let code = 200;
        let Ok(concluded) = self.outcome(code) else {
            return unknown();
        };
        let status = self.status(concluded, code).unwrap_or_else(unknown);
        if self.layout.items.is_none() || stands_without_parts(&status) {
            return status;
        }
        self.parts(false)
            .map_or_else(|_malformed| unknown(), |parts| parts.status)
    }
}

/// The cursor of the next page, of the places of the cursor and of the sign of another page.
fn cursor(page: &Answer<'_>, places: &[super::Place]) -> Result<Option<String>, Malformed> {
    let [cursor, more @ ..] = places else {
        return Ok(None);
    };
    let is_last = |place| page.json(place).map(Seen::of) == Some(Seen::Bool(false));
    if more.iter().any(|place| is_last(*place)) {
        return Ok(None);
    }
    match page.found(*cursor) {
        Found::Absent => Ok(None),
        Found::Json(json) => match Seen::of(json) {
            Seen::Absent | Seen::Bool(false) => Ok(None),
            Seen::Text(cursor) => Ok(Some(cursor.into_owned())),
            Seen::Number(_) => Ok(Some(String::from_utf8_lossy(json).into_owned())),
            _ => Err(Malformed::Shape(
                "its cursor is neither a text nor a number",
            )),
        },
        _ => Err(Malformed::Shape("its cursor cannot be read")),
    }
}

/// The layout of an element: that of the answer about one run, from where an element stands.
fn entry(profile: &Profile, list: &List, roots: &[Pointer]) -> Layout {
    let below = |pointer: &Pointer| {
        let rest = pointer.0.strip_prefix(&*list.entry.0)?;
        Some(Pointer(rest.to_vec()))
    };
    let all = |pointers: &[Pointer]| pointers.iter().filter_map(below).collect::<Vec<_>>();
    let rules: Vec<Rule> = profile
        .rules
        .iter()
        .filter_map(|rule| {
            let when = rule.when.iter().map(|(subject, test)| {
                let subject = match subject {
                    Subject::At(pointer) => Subject::At(below(pointer)?),
                    Subject::Http => Subject::Http,
                };
                Some((subject, test.clone()))
            });
            Some(Rule {
                when: when.collect::<Option<_>>()?,
                ..rule.clone()
            })
        })
        .collect();
    let fields = &profile.fields;
    let each = profile.each.as_ref();
    let each = each.filter(|each| each.get.is_none() && list.entry.0.is_empty());
    let status = all(&profile.status);
    let ids = list
        .id
        .values()
        .map(|pointer| (pointer.clone(), Use::DECIDES));
    let values = list
        .values
        .values()
        .map(|pointer| (pointer.clone(), Use::SMALL));
    Draft {
        roots,
        rules: &rules,
        exact: profile.exact,
        status: &status,
        check_id: &[],
        fields: Fields {
            name: all(&fields.name),
            attempt: all(&fields.attempt),
            group: all(&fields.group),
            created: all(&fields.created),
            started: all(&fields.started),
            finished: all(&fields.finished),
            duration_ms: all(&fields.duration_ms),
            url: all(&fields.url),
            ..Fields::default()
        },
        each,
        parts_decide: each.is_some() && profile.rules.is_empty(),
        further: ids.chain(values).collect(),
    }
    .build()
}
