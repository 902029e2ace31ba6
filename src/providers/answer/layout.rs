//! Layouts: which places of an answer are kept, and which tests its rules make of them.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::parts::NEXT_PAGE;
use crate::profile::{
    Confirm, Detail, Each, Fields, Pointer, Profile, Rule, RuleOutcome, Scalar, Subject, Test,
    Token,
};
use crate::providers::plan::{Builder, Place, Plan, Use};
use crate::providers::value::Seen;

/// What a large answer takes of the bound on the bytes of all.
pub(in crate::providers) type Room = Arc<OwnedSemaphorePermit>;

/// What is read of one kind of answer, and where it is: made once of a profile.
#[derive(Debug)]
pub(in crate::providers) struct Layout {
    pub(super) plan: Plan,
    /// Further places, which nothing here looks at.
    pub(super) further: Vec<Place>,
    /// What the rules test, each place once.
    pub(super) tested: Vec<(Place, Kinds)>,
    pub(super) rules: Vec<TestedRule>,
    pub(super) exact: bool,
    pub(super) status: Vec<Place>,
    pub(super) check_id: Vec<Place>,
    pub(super) fields: FieldPlaces,
    pub(super) items: Option<Place>,
    /// What is read of each element of the items.
    pub(super) part: Option<Box<Layout>>,
    /// There are no rules but those for the parts of the run.
    pub(super) parts_decide: bool,
    /// Signs of another page of the list.
    pub(super) next_page: Vec<Place>,
}

/// A rule, with the numbers of what it tests.
#[derive(Debug)]
pub(super) struct TestedRule {
    pub(super) tests: Vec<(Tested, Test)>,
    pub(super) is: RuleOutcome,
    pub(super) by_http: bool,
    /// It wants something to be there.
    pub(super) is_positive: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Tested {
    /// Index of [`Layout::tested`].
    At(usize),
    Http,
}

/// The kinds of values that a place is compared with: those of another kind are no status.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kinds {
    pub(super) text: bool,
    pub(super) number: bool,
    pub(super) bool: bool,
    pub(super) any: bool,
}

impl Kinds {
    fn add(&mut self, test: &Test) {
        match test {
            Test::OneOf(values) => {
                for value in values {
                    match value {
                        Scalar::Text(_) => self.text = true,
                        Scalar::Number(_) => self.number = true,
                        Scalar::Bool(_) => self.bool = true,
                    }
                }
            }
            Test::Greater(_) => self.number = true,
            Test::Absent | Test::Present => self.any = true,
        }
    }

    pub(super) fn has(self, seen: &Seen<'_>) -> bool {
        seen.has_kind(&|seen| match seen {
            Seen::Absent | Seen::Unknown => false,
            Seen::Text(_) => self.text || self.any,
            Seen::Number(_) => self.number || self.any,
            Seen::Bool(_) => self.bool || self.any,
            Seen::Array(_) | Seen::Object => self.any,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct FieldPlaces {
    pub(super) name: Vec<Place>,
    pub(super) attempt: Vec<Place>,
    pub(super) group: Vec<Place>,
    pub(super) created: Vec<Place>,
    pub(super) started: Vec<Place>,
    pub(super) finished: Vec<Place>,
    pub(super) duration_ms: Vec<Place>,
    pub(super) error: Vec<Place>,
    pub(super) reason: Vec<Place>,
    pub(super) input: Vec<Place>,
    pub(super) output: Vec<Place>,
    pub(super) url: Vec<Place>,
    pub(super) version_id: Vec<Place>,
    pub(super) deployment_id: Vec<Place>,
    pub(super) project: Vec<Place>,
}

impl FieldPlaces {
    pub(super) fn of(fields: &Fields, builder: &mut Builder) -> Self {
        let mut all = |pointers: &[Pointer], usage| builder.all(pointers, usage);
        Self {
            name: all(&fields.name, Use::SMALL),
            attempt: all(&fields.attempt, Use::DECIDES),
            group: all(&fields.group, Use::SMALL),
            created: all(&fields.created, Use::SMALL),
            started: all(&fields.started, Use::SMALL),
            finished: all(&fields.finished, Use::SMALL),
            duration_ms: all(&fields.duration_ms, Use::SMALL),
            error: all(&fields.error, Use::LARGE),
            reason: all(&fields.reason, Use::SMALL),
            input: all(&fields.input, Use::LARGE),
            output: all(&fields.output, Use::LARGE),
            url: all(&fields.url, Use::SMALL),
            version_id: all(&fields.version_id, Use::SMALL),
            deployment_id: all(&fields.deployment_id, Use::SMALL),
            project: all(&fields.project, Use::SMALL),
        }
    }
}

/// Makes a [`Layout`].
#[derive(Default)]
pub(super) struct Draft<'a> {
    pub(super) roots: &'a [Pointer],
    pub(super) rules: &'a [Rule],
    pub(super) exact: bool,
    pub(super) status: &'a [Pointer],
    pub(super) check_id: &'a [Pointer],
    pub(super) fields: Fields,
    pub(super) each: Option<&'a Each>,
    pub(super) parts_decide: bool,
    pub(super) further: Vec<(Pointer, Use)>,
}

impl Layout {
    /// Of the answer about a run.
    pub(in crate::providers) fn of_run(profile: &Profile) -> Self {
        let same_answer = profile.each.as_ref().filter(|each| each.get.is_none());
        Draft {
            roots: &profile.roots,
            rules: &profile.rules,
            exact: profile.exact,
            status: &profile.status,
            check_id: &profile.check_id,
            fields: profile.fields.clone(),
            each: same_answer,
            parts_decide: profile.each.is_some() && profile.rules.is_empty(),
            further: Vec::new(),
        }
        .build()
    }

    /// Of the answer that confirms an outcome.
    pub(in crate::providers) fn of_confirm(confirm: &Confirm, exact: bool) -> Self {
        let fields = Fields {
            error: confirm.error.clone(),
            output: confirm.output.clone(),
            ..Fields::default()
        };
        Draft {
            rules: &confirm.rules,
            exact,
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// Of the answer that adds to a verdict.
    pub(in crate::providers) fn of_detail(detail: &Detail) -> Self {
        let fields = Fields {
            error: detail.error.clone(),
            output: detail.output.clone(),
            ..Fields::default()
        };
        Draft {
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// Of the answer that has the parts of a run.
    pub(in crate::providers) fn of_parts(each: &Each, exact: bool) -> Self {
        Draft {
            exact,
            each: Some(each),
            ..Draft::default()
        }
        .build()
    }

    /// Of one part of a run.
    fn of_part(each: &Each, exact: bool) -> Self {
        let fields = Fields {
            name: each.name.clone(),
            ..Fields::default()
        };
        Draft {
            rules: &each.rules,
            exact,
            fields,
            ..Draft::default()
        }
        .build()
    }

    /// The places that are walked.
    pub(in crate::providers) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether a rule looks at the status code `code`.
    pub(in crate::providers) fn tests_code(&self, code: u16) -> bool {
        let looks = |(tested, test): &(Tested, Test)| {
            matches!(tested, Tested::Http) && holds_code(test, code)
        };
        self.rules.iter().any(|rule| rule.tests.iter().any(looks))
    }
}

impl Draft<'_> {
    pub(super) fn build(self) -> Layout {
        let mut builder = Builder::new(self.roots);
        let mut tested: Vec<(Place, Kinds)> = Vec::new();
        let mut rules = Vec::new();
        for rule in self.rules {
            let mut tests = Vec::new();
            for (subject, test) in &rule.when {
                let Subject::At(pointer) = subject else {
                    tests.push((Tested::Http, test.clone()));
                    continue;
                };
                let place = builder.at(pointer, Use::DECIDES);
                let known = tested.iter().position(|(known, _)| *known == place);
                let index = known.unwrap_or(tested.len());
                if known.is_none() {
                    tested.push((place, Kinds::default()));
                }
                tested[index].1.add(test);
                tests.push((Tested::At(index), test.clone()));
            }
            let by_http = tests
                .iter()
                .any(|(tested, _)| matches!(tested, Tested::Http));
            let is_positive = tests.iter().any(|(_, test)| *test != Test::Absent);
            rules.push(TestedRule {
                tests,
                is: rule.is,
                by_http,
                is_positive,
            });
        }
        let next_page = match self.each {
            Some(_) => &NEXT_PAGE[..],
            None => &[],
        };
        let next_page = next_page
            .iter()
            .map(|name| Pointer(vec![Token::Key((*name).to_owned())]));
        let further = self.further.iter();
        Layout {
            further: further
                .map(|(pointer, usage)| builder.at(pointer, *usage))
                .collect(),
            status: builder.all(self.status, Use::DECIDES),
            check_id: builder.all(self.check_id, Use::DECIDES),
            fields: FieldPlaces::of(&self.fields, &mut builder),
            items: self
                .each
                .map(|each| builder.at(&each.items, Use::LARGE | Use::DECIDES)),
            part: self
                .each
                .map(|each| Box::new(Layout::of_part(each, self.exact))),
            next_page: builder.all(&next_page.collect::<Vec<_>>(), Use::SMALL),
            plan: builder.build(),
            parts_decide: self.parts_decide,
            tested,
            rules,
            exact: self.exact,
        }
    }
}

/// Whether a test of the status code holds.
pub(super) fn holds_code(test: &Test, code: u16) -> bool {
    match test {
        Test::OneOf(values) => values
            .iter()
            .any(|value| matches!(value, Scalar::Number(number) if *number == f64::from(code))),
        Test::Greater(number) => f64::from(code) > *number,
        Test::Absent => false,
        Test::Present => true,
    }
}
