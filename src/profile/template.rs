//! Texts with named parts: how a run is named, where it is requested, and the addresses of its pages.
//!
//! Nothing that a part contains can lead a request to another host or another place of the API: in a path, each part
//! is one percent-encoded segment; in a query, one encoded value. [`Profile::read_url`] takes an address only where its
//! scheme, host and port are those that the provider is configured for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

use super::{PartKind, Profile};

/// What a segment of a path and a value of a query have as they are (RFC 3986, section 2.3).
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Longest ID, in bytes.
const MAX_ID_BYTES: usize = 1024;

/// Longest address that is read, in bytes.
const MAX_URL_BYTES: usize = 8192;

/// Longest value of [`PartKind::Number`] and [`PartKind::Token`], in bytes.
const MAX_WORD_BYTES: usize = 128;

/// A text with named parts: `/repos/{owner}/{repo}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(pub Vec<Piece>);

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Taken as it is.
    Text(String),
    /// `{name}`, `{name+}` or `{name|raw}`.
    Part {
        /// The name.
        name: String,
        /// `+` in an ID or an address: it may have slashes.
        slashes: bool,
        /// `|raw` in a path: its slashes stay slashes; everything else is encoded.
        raw: bool,
    },
}

impl Piece {
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Text(_) => None,
            Self::Part { name, .. } => Some(name),
        }
    }

    /// Whether it is a part that takes several segments of a path.
    pub(super) fn spans(&self) -> bool {
        matches!(self, Self::Part { slashes, raw, .. } if *slashes || *raw)
    }
}

/// A brace of a template that begins or ends no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has a brace that is not of a part such as {{run}}")]
pub struct StrayBrace;

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`StrayBrace`] where a brace is not one of `{name}`, `{name+}` or `{name|raw}`.
    pub fn parse(text: &str) -> Result<Self, StrayBrace> {
        let found = Self::parse_beside_braces(text);
        let stray = |piece: &Piece| matches!(piece, Piece::Text(text) if text.contains(['{', '}']));
        if found.0.iter().any(stray) {
            return Err(StrayBrace);
        }
        Ok(found)
    }

    /// Reads a template whose text may have braces, as JSON and GraphQL do: those of `{name}` alone begin a part.
    pub fn parse_beside_braces(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            let part = rest[start + 1..]
                .split_once('}')
                .and_then(|(inner, after)| Some((part(inner)?, after)));
            let Some((part, after)) = part else {
                plain.push_str(&rest[..=start]);
                rest = &rest[start + 1..];
                continue;
            };
            plain.push_str(&rest[..start]);
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(part);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Self(pieces)
    }

    /// The names of its parts, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(Piece::name)
    }

    /// Whether it is `{url}` alone: the ID is the address that is requested.
    pub fn is_url(&self) -> bool {
        matches!(&*self.0, [Piece::Part { name, raw: false, slashes: false }] if name == "url")
    }
}

/// The part between two braces, if it is one.
fn part(inner: &str) -> Option<Piece> {
    let (name, slashes, raw) = match (inner.strip_suffix('+'), inner.strip_suffix("|raw")) {
        (Some(name), _) => (name, true, false),
        (_, Some(name)) => (name, false, true),
        _ => (inner, false, false),
    };
    let mut bytes = name.bytes();
    let valid = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    valid.then(|| Piece::Part {
        name: name.to_owned(),
        slashes,
        raw,
    })
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Part { name, slashes, raw } => {
                let form = match (slashes, raw) {
                    (true, _) => "+",
                    (_, true) => "|raw",
                    _ => "",
                };
                write!(f, "{{{name}{form}}}")
            }
        })
    }
}

impl PartKind {
    /// Whether `value` looks like this.
    pub fn fits(self, value: &str) -> bool {
        match self {
            Self::Number => {
                (1..=MAX_WORD_BYTES).contains(&value.len())
                    && value.bytes().all(|byte| byte.is_ascii_digit())
            }
            Self::Uuid => {
                let hyphen = |index| matches!(index, 8 | 13 | 18 | 23);
                value.len() == 36
                    && value.bytes().enumerate().all(|(index, byte)| {
                        if hyphen(index) {
                            byte == b'-'
                        } else {
                            byte.is_ascii_hexdigit()
                        }
                    })
            }
            Self::Token => {
                (1..=MAX_WORD_BYTES).contains(&value.len())
                    && value.bytes().all(|byte| {
                        byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
                    })
            }
            Self::Url => web_address(value).is_some_and(|url| url.fragment().is_none()),
        }
    }

    /// What a value of this kind is, with its article.
    fn what(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Uuid => "a UUID",
            Self::Token => "1 to 128 of the characters A-Z a-z 0-9 _ - .",
            Self::Url => "an http or https address without a fragment",
        }
    }
}

/// Whether a value that is put into a path would be another place: a segment of it is empty, `.` or `..`.
pub(super) fn has_dots(value: &str) -> bool {
    let mut segments = value.split('/');
    segments.any(|segment| matches!(segment, "" | "." | ".."))
}

/// An http or https address without a user and a password.
pub(super) fn web_address(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (matches!(url.scheme(), "http" | "https") && url.has_host() && plain).then_some(url)
}

/// Scheme, host and port.
fn same_origin(left: &Url, right: &Url) -> bool {
    left.scheme() == right.scheme()
        && left.host() == right.host()
        && left.port_or_known_default() == right.port_or_known_default()
}

/// The parts of a run's ID by their names, as [`Profile::read_id`] and the like checked them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Parts(BTreeMap<String, String>);

impl Parts {
    /// The value of a part.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// Why a text is not an ID of a provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdProblem {
    /// It has another form.
    #[error("an ID has the form {0}")]
    Form(String),
    /// A part does not look as its profile says.
    #[error("the {name} of an ID of the form {form} is {what}")]
    Part {
        /// The part.
        name: String,
        /// What it has to be.
        what: &'static str,
        /// The form of the whole ID.
        form: String,
    },
    /// A part would be another place of the API.
    #[error("no part of an ID of the form {0} may be empty, \".\" or \"..\"")]
    Dots(String),
    /// It has control characters, or white space at its ends.
    #[error("an ID has neither control characters nor white space at its ends")]
    Invisible,
    /// It has too many bytes.
    #[error("an ID has at most {MAX_ID_BYTES} bytes")]
    Long,
}

impl Profile {
    /// Reads an ID.
    ///
    /// # Errors
    /// [`IdProblem`] where it has another form, or a part is not what the profile says.
    pub fn read_id(&self, id: &str) -> Result<Parts, IdProblem> {
        if id.len() > MAX_ID_BYTES {
            return Err(IdProblem::Long);
        }
        let slashes =
            |piece: &Piece| matches!(piece, Piece::Part { slashes: true, .. }) || self.get.is_url();
        let kind = |name: &str| self.parts.get(name).copied();
        let found = Matching::new(&self.id.0, id, &slashes, &kind)
            .run()
            // Without the kinds, to say which part is wrong.
            .or_else(|| Matching::new(&self.id.0, id, &slashes, &|_| None).run())
            .ok_or_else(|| IdProblem::Form(self.id.to_string()))?;
        self.check_parts(found)
    }

    /// Takes values of all parts of an ID, as an entry of a list gives them.
    ///
    /// # Errors
    /// [`IdProblem`] where one is missing, or a part is not what the profile says.
    pub fn make_parts<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Parts, IdProblem> {
        let mut values: BTreeMap<_, _> = values.into_iter().collect();
        let form = || IdProblem::Form(self.id.to_string());
        let named: Option<Vec<_>> = self
            .id
            .names()
            .map(|name| Some((name.to_owned(), values.remove(name)?.to_owned())))
            .collect();
        let parts = self.check_parts(named.ok_or_else(form)?)?;
        // Otherwise the ID would be read back as another run.
        match self.read_id(&self.write_id(&parts)) {
            Ok(read) if read == parts => Ok(parts),
            Ok(_) => Err(form()),
            Err(problem) => Err(problem),
        }
    }

    fn check_parts(&self, values: Vec<(String, String)>) -> Result<Parts, IdProblem> {
        let form = || self.id.to_string();
        for (name, value) in &values {
            if value.contains(char::is_control) {
                return Err(IdProblem::Invisible);
            }
            if let Some(kind) = self.parts.get(name).filter(|kind| !kind.fits(value)) {
                return Err(IdProblem::Part {
                    name: name.clone(),
                    what: kind.what(),
                    form: form(),
                });
            }
            if self.parts.get(name) == Some(&PartKind::Url) {
                continue;
            }
            if has_dots(value) {
                return Err(IdProblem::Dots(form()));
            }
            let spans = |piece: &Piece| piece.name() == Some(name) && piece.spans();
            if value.contains('/') && !self.id.0.iter().any(spans) {
                return Err(IdProblem::Form(form()));
            }
        }
        let parts = Parts(values.into_iter().collect());
        let id = self.write_id(&parts);
        if id.trim() != id {
            return Err(IdProblem::Invisible);
        }
        Ok(parts)
    }

    fn fits(&self, name: &str, value: &str) -> bool {
        self.parts.get(name).is_none_or(|kind| kind.fits(value))
    }

    /// Writes the ID of these parts.
    pub fn write_id(&self, parts: &Parts) -> String {
        let pieces = self.id.0.iter();
        pieces
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Part { name, .. } => parts.get(name).unwrap_or_default(),
            })
            .collect()
    }

    /// Returns the path and the query of a request: `/repos/acme/site/actions/runs/7`.
    ///
    /// It begins with exactly one slash. Of a template that is `{url}`, it is the path and the query of that address.
    pub fn path(&self, template: &Template, parts: &Parts) -> String {
        if template.is_url() {
            let url = parts.get("url").and_then(web_address);
            return url.map_or_else(|| "/".to_owned(), |url| path_of(&url));
        }
        let mut path = String::new();
        for piece in &template.0 {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Part {
                    name, raw: true, ..
                } => {
                    let value = parts.get(name).unwrap_or_default();
                    let encoded = |segment| utf8_percent_encode(segment, ENCODED).to_string();
                    let segments: Vec<_> = value.split('/').map(encoded).collect();
                    path.push_str(&segments.join("/"));
                }
                Piece::Part { name, .. } => {
                    let value = self.value(name, parts);
                    path.extend(utf8_percent_encode(&value, ENCODED));
                }
            }
        }
        path
    }

    /// A part, or a text of `vars` with its parts as JSON writes them within quotes.
    fn value<'a>(&self, name: &str, parts: &'a Parts) -> Cow<'a, str> {
        if let Some(value) = parts.get(name) {
            return Cow::Borrowed(value);
        }
        let pieces = self.vars.get(name).into_iter().flat_map(|text| &text.0);
        let filled: String = pieces
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Part { name, .. } => {
                    let value = parts.get(name).unwrap_or_default();
                    let quoted = serde_json::Value::from(value).to_string();
                    quoted[1..quoted.len() - 1].to_owned()
                }
            })
            .collect();
        Cow::Owned(filled)
    }

    /// Returns the address of a request at the API that is at `base_url`; `None` where `base_url` is not an address, or
    /// the ID is an address of another scheme, host or port.
    pub fn request_url(&self, template: &Template, parts: &Parts, base_url: &str) -> Option<Url> {
        let base = web_address(base_url)?;
        let url = if template.is_url() {
            web_address(parts.get("url")?)?
        } else {
            let path = self.path(template, parts);
            let base = base_url.trim_end_matches('/');
            format!("{base}{path}").parse().ok()?
        };
        same_origin(&base, &url).then_some(url)
    }

    /// Returns the address of a run's page, of `url` where it is a template. Without `web`, the pages are at the scheme,
    /// host and port of `base_url`.
    pub fn page(&self, parts: &Parts, base_url: &str, web: Option<&str>) -> Option<String> {
        let template = self.fields.url_template.as_ref()?;
        let mut page = String::new();
        for piece in &template.0 {
            match piece {
                Piece::Text(text) => page.push_str(text),
                Piece::Part { name, .. } if name == "base_url" => {
                    page.push_str(base_url.trim_end_matches('/'));
                }
                Piece::Part { name, .. } if name == "web" => {
                    page.push_str(&web_of(base_url, web)?);
                }
                Piece::Part { name, .. } => {
                    let encoded = |segment| utf8_percent_encode(segment, ENCODED).to_string();
                    let value = parts.get(name)?;
                    if piece.spans() {
                        let segments: Vec<_> = value.split('/').map(encoded).collect();
                        page.push_str(&segments.join("/"));
                    } else {
                        page.push_str(&encoded(value));
                    }
                }
            }
        }
        Some(page)
    }

    /// Reads the address of a page that names a run, where it is one of the provider that is at `base_url` with its
    /// pages at `web`: same scheme, host and port, and no user or password.
    ///
    /// Without `web`, the pages are at the scheme, host and port of `base_url`. What follows the part that names the run
    /// is cut off.
    pub fn read_url(&self, url: &Url, base_url: &str, web: Option<&str>) -> Option<Parts> {
        let url = web_address(url.as_str()).filter(|url| url.as_str().len() <= MAX_URL_BYTES)?;
        if self.get.is_url() {
            let base = web_address(base_url).filter(|base| same_origin(base, &url))?;
            let mut id = url;
            id.set_fragment(None);
            // The base address itself names no run.
            let names_one = id.path().trim_end_matches('/') != base.path().trim_end_matches('/')
                || id.query().is_some();
            return names_one.then(|| self.read_id(id.as_str()).ok())?;
        }
        self.urls.iter().find_map(|template| {
            let (origin, rest) = template.0.split_first()?;
            let origin = match origin.name()? {
                "base_url" => base_url.to_owned(),
                "web" => web_of(base_url, web)?,
                _ => return None,
            };
            let origin = web_address(&origin).filter(|origin| same_origin(origin, &url))?;
            self.read_page(rest, &url, &origin)
        })
    }

    /// Whether [`Profile::read_url`] would read this address if its scheme, host and port were right.
    pub fn url_shape(&self, url: &Url) -> bool {
        let url = web_address(url.as_str()).filter(|url| url.as_str().len() <= MAX_URL_BYTES);
        let Some(url) = url else {
            return false;
        };
        self.urls.iter().any(|template| {
            let Some((origin, rest)) = template.0.split_first() else {
                return false;
            };
            let known = match origin.name() {
                Some("base_url") => self.base_url.clone(),
                _ => self
                    .base_url
                    .as_deref()
                    .and_then(|base| web_of(base, self.web.as_deref())),
            };
            let known = known.as_deref().and_then(web_address);
            known.is_some_and(|origin| self.read_page(rest, &url, &origin).is_some())
                || url
                    .join("/")
                    .is_ok_and(|origin| self.read_page(rest, &url, &origin).is_some())
        })
    }

    /// Reads path, query and fragment of an address by what follows `{web}` in a template.
    fn read_page(&self, template: &[Piece], url: &Url, origin: &Url) -> Option<Parts> {
        let pattern = PagePattern::of(template);
        let base: Vec<_> = segments(origin.path()).collect::<Option<_>>()?;
        let path: Vec<_> = segments(url.path()).collect::<Option<_>>()?;
        let path = path.strip_prefix(&*base)?;
        let mut found = self.read_segments(&pattern.path, path)?;
        for (key, pieces) in &pattern.query {
            let mut pairs = url.query_pairs();
            let (_, value) = pairs.find(|(name, _)| name == key)?;
            found.extend(self.read_segment(pieces, &value)?);
        }
        if let Some(pieces) = &pattern.fragment {
            let fragment = url.fragment()?;
            let fragment = fragment.split_once('?').map_or(fragment, |(path, _)| path);
            let path: Vec<_> = segments(fragment).collect::<Option<_>>()?;
            found.extend(self.read_segments(pieces, &path)?);
        }
        let values = found.iter().map(|(name, value)| (&**name, &**value));
        self.make_parts(values).ok()
    }

    /// Matches the beginning of a path; a part with slashes takes as few segments as it can.
    fn read_segments(
        &self,
        pattern: &[Vec<Piece>],
        path: &[String],
    ) -> Option<Vec<(String, String)>> {
        let Some((first, rest)) = pattern.split_first() else {
            return Some(Vec::new());
        };
        let [piece @ Piece::Part { name, .. }] = &**first else {
            let (segment, after) = path.split_first()?;
            let mut found = self.read_segment(first, segment)?;
            found.extend(self.read_segments(rest, after)?);
            return Some(found);
        };
        let most = if piece.spans() {
            path.len()
        } else {
            path.len().min(1)
        };
        (1..=most).find_map(|taken| {
            let (segments, after) = path.split_at(taken);
            if taken > 1 && segments.iter().any(|segment| segment.contains('/')) {
                return None;
            }
            let value = segments.join("/");
            if value.is_empty() || !self.fits(name, &value) {
                return None;
            }
            let mut found = vec![(name.clone(), value)];
            found.extend(self.read_segments(rest, after)?);
            Some(found)
        })
    }

    /// Matches one whole segment, decoded.
    fn read_segment(&self, pieces: &[Piece], segment: &str) -> Option<Vec<(String, String)>> {
        let kind = |name: &str| self.parts.get(name).copied();
        Matching::new(pieces, segment, &|_| true, &kind).run()
    }
}

/// Path and query of an address, with one slash at the beginning.
fn path_of(url: &Url) -> String {
    let path = url.path().trim_start_matches('/');
    match url.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    }
}

/// Where the pages are: `web`, or the scheme, host and port of `base_url`.
fn web_of(base_url: &str, web: Option<&str>) -> Option<String> {
    match web {
        Some(web) => Some(web.trim_end_matches('/').to_owned()),
        None => Some(web_address(base_url)?.origin().ascii_serialization()),
    }
}

/// The decoded segments of a path without its first slash and its last one; `None` for one that is not UTF-8.
fn segments(path: &str) -> impl Iterator<Item = Option<String>> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let decoded = |segment| {
        let decoded = percent_decode_str(segment).decode_utf8().ok()?;
        Some(decoded.into_owned())
    };
    path.split('/')
        .filter(move |_| !path.is_empty())
        .map(decoded)
}

/// What follows `{web}` or `{base_url}` in the address of a page.
#[derive(Debug, Default)]
pub(super) struct PagePattern {
    pub(super) path: Vec<Vec<Piece>>,
    pub(super) query: Vec<(String, Vec<Piece>)>,
    pub(super) fragment: Option<Vec<Vec<Piece>>>,
}

impl PagePattern {
    pub(super) fn of(template: &[Piece]) -> Self {
        let whole = |pieces: &[Piece]| Template(pieces.to_vec()).to_string();
        // Parts have none of these characters.
        let text = whole(template);
        let (text, fragment) = match text.split_once('#') {
            Some((text, fragment)) => (text, Some(fragment)),
            None => (&*text, None),
        };
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let pieces = |text: &str| Template::parse_beside_braces(text).0;
        let split = |path: &str| {
            let path = path.strip_prefix('/').unwrap_or(path);
            let path = path.strip_suffix('/').unwrap_or(path);
            let segments = path.split('/').filter(|_| !path.is_empty());
            segments.map(pieces).collect::<Vec<_>>()
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self {
            path: split(path),
            query: pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (key.to_owned(), pieces(value)))
                .collect(),
            fragment: fragment.map(split),
        }
    }
}

/// A text that is matched with pieces, each part as short as it can be.
struct Matching<'a> {
    pieces: &'a [Piece],
    text: &'a str,
    may_have_slashes: &'a dyn Fn(&Piece) -> bool,
    kind: &'a dyn Fn(&str) -> Option<PartKind>,
    /// From which place on a piece is known not to match, within an end: none is tried twice, so that the time grows
    /// with the length of the text and not with its square.
    failed: BTreeMap<(usize, usize), usize>,
}

impl<'a> Matching<'a> {
    fn new(
        pieces: &'a [Piece],
        text: &'a str,
        may_have_slashes: &'a dyn Fn(&Piece) -> bool,
        kind: &'a dyn Fn(&str) -> Option<PartKind>,
    ) -> Self {
        Self {
            pieces,
            text,
            may_have_slashes,
            kind,
            failed: BTreeMap::new(),
        }
    }

    fn run(mut self) -> Option<Vec<(String, String)>> {
        let mut found = Vec::new();
        self.step(0, 0, &mut found).then_some(found)
    }

    fn step(&mut self, index: usize, at: usize, found: &mut Vec<(String, String)>) -> bool {
        let rest = &self.text[at..];
        match self.pieces.get(index) {
            None => rest.is_empty(),
            Some(Piece::Text(text)) => {
                rest.starts_with(&**text) && self.step(index + 1, at + text.len(), found)
            }
            Some(piece @ Piece::Part { name, .. }) => {
                let kind = (self.kind)(name);
                let end = match rest.find('/') {
                    Some(slash) if !(self.may_have_slashes)(piece) => slash,
                    _ => rest.len(),
                };
                // A part that takes anything and does not match from here on does not match from a later place.
                let key = match kind {
                    None => (index, at + end),
                    Some(_) => (index, at),
                };
                if self.failed.get(&key).is_some_and(|from| *from <= at) {
                    return false;
                }
                let matched = self.part(index, at, end, kind, found);
                if !matched {
                    self.failed.insert(key, at);
                }
                matched
            }
        }
    }

    /// Matches a part of at most `end` bytes, and all that follows it.
    fn part(
        &mut self,
        index: usize,
        at: usize,
        end: usize,
        kind: Option<PartKind>,
        found: &mut Vec<(String, String)>,
    ) -> bool {
        let rest = &self.text[at..];
        let Some(name) = self.pieces[index].name() else {
            return false;
        };
        let longest = match kind {
            Some(PartKind::Number | PartKind::Uuid | PartKind::Token) => end.min(MAX_WORD_BYTES),
            Some(PartKind::Url) | None => end,
        };
        let first = match self.pieces.get(index + 1) {
            None => rest.len(),
            Some(_) => 1,
        };
        for taken in first.max(1)..=longest {
            let fits = rest.is_char_boundary(taken)
                && match self.pieces.get(index + 1) {
                    Some(Piece::Text(next)) => rest[taken..].starts_with(&**next),
                    Some(Piece::Part { .. }) | None => true,
                }
                && kind.is_none_or(|kind| kind.fits(&rest[..taken]));
            if !fits {
                continue;
            }
            found.push((name.to_owned(), rest[..taken].to_owned()));
            if self.step(index + 1, at + taken, found) {
                return true;
            }
            found.pop();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use proptest::prelude::*;

    const BASE: &str = "https://api.example.com";
    const WEB: &str = "https://example.com";

    fn profile(text: &str) -> Profile {
        let rest = "\nrules = [{ when = { \"/s\" = \"done\" }, is = \"succeeded\" }]\n";
        parse(&format!("{text}{rest}"), "test").unwrap_or_else(|faults| panic!("{faults:?}"))
    }

    fn github() -> Profile {
        profile(
            r#"
            base_url = "https://api.example.com"
            web = "https://example.com"
            id = "{owner}/{repo}/{run}"
            parts = { run = "number" }
            urls = ["{web}/{owner}/{repo}/actions/runs/{run}"]
            get = "/repos/{owner}/{repo}/actions/runs/{run}?exclude=true"
            url = "{web}/{owner}/{repo}/actions/runs/{run}""#,
        )
    }

    fn gitlab() -> Profile {
        profile(
            r#"
            id = "{project+}/{pipeline}"
            parts = { pipeline = "number" }
            urls = ["{base_url}/{project+}/-/pipelines/{pipeline}"]
            get = "/api/v4/projects/{project}/pipelines/{pipeline}"
            url = "{base_url}/{project+}/-/pipelines/{pipeline}""#,
        )
    }

    fn temporal() -> Profile {
        profile(
            r#"
            id = "{namespace}/{workflow+}"
            urls = ["{web}/namespaces/{namespace}/workflows/{workflow}/{run}/history"]
            get = "/api/v1/namespaces/{namespace}/workflows/{workflow}""#,
        )
    }

    fn two_parts(get: &str, url: &str) -> Profile {
        profile(&format!(
            "id = \"{{a}}/{{b}}\"\nurls = [{url:?}]\nget = {get:?}"
        ))
    }

    /// The ID that an address names, and the request for it.
    fn read(profile: &Profile, url: &str) -> Option<(String, String)> {
        let parts = profile.read_url(&url.parse().ok()?, BASE, Some(WEB))?;
        Some((profile.write_id(&parts), profile.path(&profile.get, &parts)))
    }

    fn request(profile: &Profile, id: &str) -> Result<String, IdProblem> {
        let parts = profile.read_id(id)?;
        assert_eq!(profile.write_id(&parts), id);
        Ok(profile.path(&profile.get, &parts))
    }

    #[test]
    fn templates_are_read_and_written() {
        for text in ["", "/a/{b}-{c_1}?d={e|raw}", "{project+}/{run}", "{a}{b}"] {
            assert_eq!(Template::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "{", "}", "{}", "{a", "a}", "{a b}", "{1}", "{a|x}", "{a+|raw}", "{{a}}",
        ] {
            assert_eq!(Template::parse(text), Err(StrayBrace), "{text}");
        }
        let query = Template::parse_beside_braces("query($id:ID!){run(id:$id){ status }} {id}");
        assert_eq!(query.names().collect::<Vec<_>>(), ["id"]);
    }

    #[test]
    fn an_id_becomes_the_path_of_its_request() {
        let k8s = two_parts("/apis/namespaces/{a}/jobs/{b}", "{web}/{a}/{b}");
        for (profile, id, path) in [
            (
                &github(),
                "acme/site/7",
                "/repos/acme/site/actions/runs/7?exclude=true",
            ),
            (&gitlab(), "acme/7", "/api/v4/projects/acme/pipelines/7"),
            (
                &gitlab(),
                "a/b/c/d/7",
                "/api/v4/projects/a%2Fb%2Fc%2Fd/pipelines/7",
            ),
            (
                &temporal(),
                "default/order/7",
                "/api/v1/namespaces/default/workflows/order%2F7",
            ),
            (
                &temporal(),
                "d/a:b c?d#e",
                "/api/v1/namespaces/d/workflows/a%3Ab%20c%3Fd%23e",
            ),
            (
                &k8s,
                "prod/backup-28",
                "/apis/namespaces/prod/jobs/backup-28",
            ),
            (
                &two_parts("/api/v2/dags/{a}/dagRuns/{b}", "{web}/dags/{a}/runs/{b}"),
                "etl/manual__2026-11-27T06:26:48.867841+00:00",
                "/api/v2/dags/etl/dagRuns/manual__2026-11-27T06%3A26%3A48.867841%2B00%3A00",
            ),
            (&k8s, "a/%2e%2e", "/apis/namespaces/a/jobs/%252e%252e"),
            (
                &k8s,
                "a/é\u{2044}b",
                "/apis/namespaces/a/jobs/%C3%A9%E2%81%84b",
            ),
            (&k8s, "a/...", "/apis/namespaces/a/jobs/..."),
            (&k8s, "a\\..\\b/c", "/apis/namespaces/a%5C..%5Cb/jobs/c"),
            (
                &k8s,
                "a@evil.example:80/c",
                "/apis/namespaces/a%40evil.example%3A80/jobs/c",
            ),
        ] {
            assert_eq!(request(profile, id).unwrap(), path);
        }
    }

    #[test]
    fn what_is_not_an_id_of_the_profile_is_refused_with_the_form() {
        for (profile, id, expected) in [
            (github(), "7", "an ID has the form {owner}/{repo}/{run}"),
            (
                github(),
                "acme/site/7/8",
                "an ID has the form {owner}/{repo}/{run}",
            ),
            (
                github(),
                "acme/site/x7",
                "the run of an ID of the form {owner}/{repo}/{run} is a number",
            ),
            (github(), "acme//7", "an ID has the form"),
            (github(), "../site/7", "may be empty, \".\" or \"..\""),
            (github(), "acme/./7", "may be empty"),
            (gitlab(), "a/../b/7", "may be empty"),
            (gitlab(), "a//b/7", "may be empty"),
            (gitlab(), "/a/7", "may be empty"),
            (gitlab(), "7", "the form {project+}/{pipeline}"),
            (temporal(), "default/", "the form"),
            (temporal(), "default/a/..", "may be empty"),
            (temporal(), "default/a\n", "control characters"),
            (temporal(), "default/a ", "white space"),
            (
                temporal(),
                &format!("d/{}", "x".repeat(1023)),
                "at most 1024 bytes",
            ),
        ] {
            let problem = profile.read_id(id).unwrap_err().to_string();
            assert!(problem.contains(expected), "{id}: {problem}");
        }
    }

    #[test]
    fn a_part_looks_as_its_profile_says() {
        let uuid = "019ad5f0-5c1e-7e3a-9d2b-3f1c8a6b7d5e";
        for (kind, good, bad) in [
            (
                "number",
                vec!["0", "12345678901234567890"],
                vec!["-1", "1.0", "0x1", "٣", "1 "],
            ),
            (
                "uuid",
                vec![uuid],
                vec![
                    "019ad5f0",
                    &uuid[1..],
                    "019ad5f0_5c1e-7e3a-9d2b-3f1c8a6b7d5e",
                ],
            ),
            (
                "token",
                vec!["run_1-a.B", "..."],
                vec!["a:b", "a%62", "é", ".", ".."],
            ),
        ] {
            let profile = profile(&format!(
                "id = \"{{run}}\"\nparts = {{ run = \"{kind}\" }}\nget = \"/{{run}}\""
            ));
            for id in good {
                assert!(profile.read_id(id).is_ok(), "{kind} {id}");
            }
            for id in bad {
                assert!(profile.read_id(id).is_err(), "{kind} {id}");
            }
        }
    }

    #[test]
    fn the_address_of_a_page_names_its_run() {
        let github = github();
        let run = Some((
            "acme/site/7".to_owned(),
            "/repos/acme/site/actions/runs/7?exclude=true".to_owned(),
        ));
        for url in [
            "https://example.com/acme/site/actions/runs/7",
            "https://example.com:443/acme/site/actions/runs/7/",
            "https://EXAMPLE.com/acme/site/actions/runs/7/attempts/2/job/8",
            "https://example.com/acme/site/actions/runs/7?check_suite_focus=true#step:1",
            "https://example.com/x/../acme/site/actions/runs/7",
            "https://example.com/%61cme/site/actions/runs/%37",
        ] {
            assert_eq!(read(&github, url), run, "{url}");
        }
        let gitlab = gitlab();
        for (url, id) in [
            (
                "https://api.example.com/acme/site/-/pipelines/7",
                "acme/site/7",
            ),
            (
                "https://api.example.com/a/b/c/d/e/-/pipelines/7/builds",
                "a/b/c/d/e/7",
            ),
        ] {
            assert_eq!(read(&gitlab, url).unwrap().0, id);
        }
        assert_eq!(
            read(
                &temporal(),
                "https://example.com/namespaces/default/workflows/order%2F7/0a/history"
            )
            .unwrap(),
            (
                "default/order/7".to_owned(),
                "/api/v1/namespaces/default/workflows/order%2F7".to_owned()
            )
        );
        let airflow = two_parts("/dags/{a}/runs/{b}", "{base_url}/dags/{a}/runs/{b}");
        for url in [
            "https://api.example.com/dags/etl/runs/manual__2026-11-27T06:26:48.86+00:00/graph",
            "https://api.example.com/dags/etl/runs/manual__2026-11-27T06%3A26%3A48.86%2B00%3A00",
        ] {
            assert_eq!(
                read(&airflow, url).unwrap().0,
                "etl/manual__2026-11-27T06:26:48.86+00:00"
            );
        }
    }

    #[test]
    fn an_address_of_another_place_names_no_run() {
        let github = github();
        for url in [
            "https://example.org/acme/site/actions/runs/7",
            "https://example.com.evil.example/acme/site/actions/runs/7",
            "https://example.com@evil.example/acme/site/actions/runs/7",
            "https://evil.example\\@example.com/acme/site/actions/runs/7",
            "https://user:key@example.com/acme/site/actions/runs/7",
            "https://key@example.com/acme/site/actions/runs/7",
            "http://example.com/acme/site/actions/runs/7",
            "https://example.com:8443/acme/site/actions/runs/7",
            "https://example.com./acme/site/actions/runs/7",
            "https://ex\u{430}mple.com/acme/site/actions/runs/7",
            "https://sub.example.com/acme/site/actions/runs/7",
            "ftp://example.com/acme/site/actions/runs/7",
            "file:///acme/site/actions/runs/7",
            // The API is at another host than the pages.
            "https://api.example.com/acme/site/actions/runs/7",
        ] {
            assert_eq!(read(&github, url), None, "{url}");
        }
        // What looks like the right host to a person is another one, or the same to a browser.
        let wide = "https://example\u{ff0e}com/acme/site/actions/runs/7";
        assert_eq!(
            read(&github, wide).map(|(id, _)| id).as_deref(),
            Some("acme/site/7")
        );
    }

    #[test]
    fn an_address_of_another_page_names_no_run() {
        let github = github();
        for url in [
            "https://example.com/acme/site/actions/runs",
            "https://example.com/acme/site/actions/runs/",
            "https://example.com/acme/site/actions/runs/latest",
            "https://example.com/acme/site/actions/runs/../7",
            "https://example.com/acme/site/actions/runs/%2e%2e/7",
            "https://example.com/acme%2Fsite/x/actions/runs/7",
            "https://example.com/acme%2F..%2F..%2Fkeys/site/actions/runs/7",
            "https://example.com//acme/site/actions/runs/7",
            "https://example.com/acme//actions/runs/7",
            "https://example.com/acme/site\u{ff0f}x/Actions/runs/7",
            "https://example.com/%FF/site/actions/runs/7",
            "https://example.com/a%00b/site/actions/runs/7",
            "https://example.com/%20acme/site/actions/runs/7",
            "https://example.com/?x=/acme/site/actions/runs/7",
            "https://example.com/#/acme/site/actions/runs/7",
        ] {
            assert_eq!(read(&github, url), None, "{url}");
        }
        for url in [
            "https://api.example.com/-/pipelines/7",
            "https://api.example.com/a%2Fb/c/-/pipelines/7",
            "https://api.example.com/a/%2e%2e/-/pipelines/7",
        ] {
            assert_eq!(read(&gitlab(), url), None, "{url}");
        }
        assert_eq!(
            read(
                &temporal(),
                "https://example.com/namespaces/d/workflows/..%2F..%2Fkeys/r/history"
            ),
            None
        );
    }

    #[test]
    fn queries_and_fragments_name_runs_where_the_template_has_them() {
        let devops = profile(
            r#"
            id = "{org}/{project}/{build}"
            parts = { build = "number" }
            urls = ["{base_url}/{org}/{project}/_build/results?buildId={build}"]
            get = "/{org}/{project}/_apis/build/builds/{build}?api-version=7.1""#,
        );
        let pages = "https://api.example.com/o/my%20project/_build/results";
        for query in ["?buildId=7", "?view=logs&buildId=7&j=1", "?buildId=7#x"] {
            let (id, path) = read(&devops, &format!("{pages}{query}")).unwrap();
            assert_eq!(id, "o/my project/7");
            assert_eq!(path, "/o/my%20project/_apis/build/builds/7?api-version=7.1");
        }
        for query in [
            "",
            "?buildid=7",
            "?buildId=",
            "?buildId=7%2F8",
            "?x=buildId%3D7",
            "#buildId=7",
        ] {
            assert_eq!(read(&devops, &format!("{pages}{query}")), None, "{query}");
        }
        let mlflow = profile(
            r#"
            id = "{run}"
            urls = ["{base_url}/#/experiments/{experiment}/runs/{run}"]
            get = "/api/2.0/mlflow/runs/get?run_id={run}""#,
        );
        for rest in ["", "/artifacts", "?tab=x"] {
            let page = format!("https://api.example.com/#/experiments/1/runs/0a+b{rest}");
            let (_, path) = read(&mlflow, &page).unwrap();
            assert_eq!(path, "/api/2.0/mlflow/runs/get?run_id=0a%2Bb");
        }
        assert_eq!(
            read(&mlflow, "https://api.example.com/experiments/1/runs/0a"),
            None
        );
    }

    #[test]
    fn a_base_address_may_have_a_path() {
        let prefect = profile(
            r#"
            id = "{run}"
            urls = ["{web}/runs/flow-run/{run}", "{base_url}/flow_runs/{run}"]
            get = "/flow_runs/{run}"
            url = "{web}/runs/flow-run/{run}""#,
        );
        let base = "http://127.0.0.1:4200/api/";
        let read = |url: &str, web| {
            let parts = prefect.read_url(&url.parse().unwrap(), base, web);
            parts.map(|parts| {
                prefect
                    .request_url(&prefect.get, &parts, base)
                    .unwrap()
                    .to_string()
            })
        };
        let request = Some("http://127.0.0.1:4200/api/flow_runs/7".to_owned());
        assert_eq!(read("http://127.0.0.1:4200/runs/flow-run/7", None), request);
        assert_eq!(read("http://127.0.0.1:4200/api/flow_runs/7", None), request);
        assert_eq!(read("http://127.0.0.1:4200/flow_runs/7", None), None);
        assert_eq!(
            read("http://127.0.0.1:4200/runs/flow-run/7", Some(WEB)),
            None
        );
        assert_eq!(
            read("https://example.com/runs/flow-run/7", Some(WEB)),
            request
        );
        let parts = prefect.read_id("7").unwrap();
        let page = |web| prefect.page(&parts, base, web).unwrap();
        assert_eq!(page(None), "http://127.0.0.1:4200/runs/flow-run/7");
        assert_eq!(
            page(Some("https://example.com/ui/")),
            "https://example.com/ui/runs/flow-run/7"
        );
    }

    #[test]
    fn slashes_stay_where_the_template_says_so() {
        let jenkins = profile(
            r#"
            id = "{job+}/{number}"
            parts = { number = "number" }
            urls = ["{base_url}/{job+}/{number}"]
            get = "/{job|raw}/{number}/api/json?tree=number""#,
        );
        let (id, path) = read(
            &jenkins,
            "https://api.example.com/job/a%20b/job/c/7/execution/node/3/ws",
        )
        .unwrap();
        assert_eq!(id, "job/a b/job/c/7");
        assert_eq!(path, "/job/a%20b/job/c/7/api/json?tree=number");
        assert!(jenkins.read_id("job/../../x/7").is_err());
    }

    #[test]
    fn an_address_may_be_the_id() {
        let monitor = profile("id = \"{url}\"\nparts = { url = \"url\" }\nget = \"{url}\"");
        let id = "https://api.example.com/jobs/7?api-version=1";
        assert_eq!(
            read(&monitor, id).unwrap(),
            (id.to_owned(), "/jobs/7?api-version=1".to_owned())
        );
        let parts = monitor.read_id(id).unwrap();
        assert_eq!(
            monitor
                .request_url(&monitor.get, &parts, BASE)
                .unwrap()
                .as_str(),
            id
        );
        for base in [
            "https://api.example.org",
            "http://api.example.com",
            "https://api.example.com:8443",
        ] {
            assert_eq!(monitor.request_url(&monitor.get, &parts, base), None);
        }
        for url in [
            "https://evil.example/jobs/7",
            "https://api.example.com@evil.example/",
            "https://key@api.example.com/jobs/7",
            "https://api.example.com/",
        ] {
            assert_eq!(read(&monitor, url), None, "{url}");
        }
        for id in [
            "jobs/7",
            "/jobs/7",
            "ftp://api.example.com/7",
            "https://a:b@example.com/7",
        ] {
            assert!(monitor.read_id(id).is_err(), "{id}");
        }
        let odd = monitor
            .read_id("https://api.example.com//evil.example/7")
            .unwrap();
        assert_eq!(monitor.path(&monitor.get, &odd), "/evil.example/7");
    }

    #[test]
    fn a_text_of_the_profile_is_one_value_of_the_query() {
        let dagster = profile(
            r#"
            id = "{run}"
            get = "/graphql?query={query}&variables={variables}"
            vars = { query = "query($id:ID!){run(id:$id){ status }}", variables = '{"id":"{run}"}' }"#,
        );
        let path = request(&dagster, r#"a","id":"b&query=c"#).unwrap();
        let url: Url = format!("{BASE}{path}").parse().unwrap();
        let pairs: Vec<_> = url.query_pairs().collect();
        assert_eq!(pairs[0].1, "query($id:ID!){run(id:$id){ status }}");
        assert_eq!(pairs[1].1, r#"{"id":"a\",\"id\":\"b&query=c"}"#);
        assert_eq!(pairs.len(), 2);
    }

    #[test]
    fn a_page_of_the_right_form_is_known_at_any_host() {
        let shape = |url: &str| github().url_shape(&url.parse().unwrap());
        assert!(shape("https://ghe.example.org/acme/site/actions/runs/7"));
        assert!(shape("http://example.com/acme/site/actions/runs/7"));
        assert!(!shape("https://example.com/acme/site/pulls/7"));
        assert!(!shape("https://a:b@example.com/acme/site/actions/runs/7"));
    }

    #[test]
    fn no_id_takes_long_to_read() {
        let parts: Vec<_> = (0..16).map(|index| format!("{{p{index}}}")).collect();
        let id = parts.join("-");
        let hostile = profile(&format!("id = \"{id}x\"\nget = \"/{}\"", parts.join("/")));
        let (text, began) = ("-".repeat(MAX_ID_BYTES), tokio::time::Instant::now());
        assert!(hostile.read_id(&text).is_err());
        assert!(hostile.read_id(&format!("{}x", &text[1..])).is_ok());
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn a_text_between_parts_may_overlap_itself() {
        let dashes = profile("id = \"{a}--{b}x\"\nget = \"/{a}/{b}\"");
        let parts = dashes.read_id("u---vx").unwrap();
        assert_eq!((parts.get("a"), parts.get("b")), (Some("u"), Some("-v")));
        let numbers = profile("id = \"{a}--{b}\"\nparts = { b = \"number\" }\nget = \"/{a}/{b}\"");
        assert_eq!(numbers.read_id("u---7").unwrap().get("a"), Some("u-"));
    }

    #[test]
    fn parts_from_elsewhere_are_taken_only_where_the_id_reads_back() {
        let joined = profile("id = \"{a}-{b}\"\nget = \"/{a}/{b}\"");
        assert!(
            joined
                .make_parts([("a", "x"), ("b", "y-z"), ("other", "")])
                .is_ok()
        );
        assert!(joined.make_parts([("a", "x-y"), ("b", "z")]).is_err());
        assert!(joined.make_parts([("a", "x")]).is_err());
        assert!(joined.make_parts([("a", ""), ("b", "y")]).is_err());
    }

    proptest! {
        #[test]
        fn no_id_leads_elsewhere(id in "(\\PC|[/.%\\\\@:?#+]){0,24}") {
            let raw = two_parts("/x/{a}/{b|raw}", "{web}/{a}/{b}");
            for profile in [github(), gitlab(), temporal(), raw] {
                let Ok(parts) = profile.read_id(&id) else { continue };
                prop_assert_eq!(profile.write_id(&parts), id.clone());
                let path = profile.path(&profile.get, &parts);
                let url = profile.request_url(&profile.get, &parts, BASE).unwrap();
                // What is sent is what was written: nothing was taken for another segment.
                prop_assert_eq!(path_of(&url), path);
                prop_assert_eq!(url.host_str(), Some("api.example.com"));
                prop_assert!(url.fragment().is_none());
            }
        }

        #[test]
        fn the_page_of_a_run_names_it(owner in "[^/\\p{C}]{1,8}", repo in "\\PC{1,8}", run in 0_u64..) {
            let id = format!("{owner}/{repo}/{run}");
            for profile in [github(), gitlab()] {
                let Ok(parts) = profile.read_id(&id) else { continue };
                let page = profile.page(&parts, BASE, Some(WEB)).unwrap();
                let read = profile.read_url(&page.parse().unwrap(), BASE, Some(WEB));
                prop_assert_eq!(read, Some(parts));
            }
        }
    }
}
