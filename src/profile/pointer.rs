//! Places in an answer.

use std::fmt;

/// A place in an answer: a JSON Pointer (RFC 6901), with one more form of a step, `[key=value]` for the first element
/// of an array that has this member. Empty for the whole document.
///
/// ```
/// use runwatch::profile::Pointer;
/// let place = Pointer::parse("/status/conditions/[type=Failed]/message").unwrap();
/// assert_eq!(place.to_string(), "/status/conditions/[type=Failed]/message");
/// assert!(Pointer::parse("status").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pointer(pub Vec<Token>);

/// A step of a [`Pointer`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Token {
    /// A member of an object, or an index of an array where it is a number.
    Key(String),
    /// The first element of an array whose member has this value, as text.
    Where {
        /// The member.
        key: String,
        /// Its value.
        value: String,
    },
}

/// Why a text is not a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointerProblem {
    /// It does not begin with a slash.
    #[error("it does not begin with \"/\"")]
    NoSlash,
    /// A `~` stands for nothing.
    #[error(
        "it has a \"~\" without 0 or 1 after it (\"~0\" stands for \"~\" and \"~1\" for \"/\")"
    )]
    Tilde,
    /// A step in brackets is not `[key=value]`.
    #[error("its step in brackets is not [key=value]")]
    Brackets,
}

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// [`PointerProblem`] where the text is not one.
    pub fn parse(text: &str) -> Result<Self, PointerProblem> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let steps = text.strip_prefix('/').ok_or(PointerProblem::NoSlash)?;
        let tokens: Result<_, _> = steps.split('/').map(Token::parse).collect();
        tokens.map(Self)
    }

    /// Whether `self` is a place within the value at `outer`, and not that value itself.
    pub fn is_below(&self, outer: &Self) -> bool {
        self.0.len() > outer.0.len() && self.0.starts_with(&outer.0)
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, PointerProblem> {
        let Some(inner) = text.strip_prefix('[') else {
            return unescape(text).map(Self::Key);
        };
        let (key, value) = inner
            .strip_suffix(']')
            .and_then(|inner| inner.split_once('='))
            .filter(|(key, _)| !key.is_empty())
            .ok_or(PointerProblem::Brackets)?;
        Ok(Self::Where {
            key: unescape(key)?,
            value: unescape(value)?,
        })
    }

    /// Whether it is a number, and so may be an index of an array.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::Key(key) if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

fn unescape(text: &str) -> Result<String, PointerProblem> {
    let mut pieces = text.split('~');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (stands_for, rest) = match piece.as_bytes().first() {
            Some(b'0') => ('~', &piece[1..]),
            Some(b'1') => ('/', &piece[1..]),
            _ => return Err(PointerProblem::Tilde),
        };
        plain.push(stands_for);
        plain.push_str(rest);
    }
    Ok(plain)
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |text: &str| text.replace('~', "~0").replace('/', "~1");
        self.0.iter().try_for_each(|token| match token {
            Token::Key(key) => write!(f, "/{}", escape(key)),
            Token::Where { key, value } => write!(f, "/[{}={}]", escape(key), escape(value)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> Token {
        Token::Key(text.to_owned())
    }

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        // The examples of its section 5.
        for (text, tokens) in [
            ("", vec![]),
            ("/foo/0", vec!["foo", "0"]),
            ("/", vec![""]),
            ("/a~1b", vec!["a/b"]),
            ("/c%d", vec!["c%d"]),
            ("/i\\j", vec!["i\\j"]),
            ("/ ", vec![" "]),
            ("/m~0n", vec!["m~n"]),
            ("/~01", vec!["~1"]),
        ] {
            let pointer = Pointer::parse(text).unwrap();
            assert_eq!(pointer.0, tokens.into_iter().map(key).collect::<Vec<_>>());
            assert_eq!(pointer.to_string(), text);
        }
        for (text, problem) in [
            ("a", PointerProblem::NoSlash),
            ("#/a", PointerProblem::NoSlash),
            ("/a~", PointerProblem::Tilde),
            ("/a~2b", PointerProblem::Tilde),
        ] {
            assert_eq!(Pointer::parse(text), Err(problem), "{text}");
        }
    }

    #[test]
    fn an_element_of_an_array_is_named_by_one_of_its_members() {
        let found = Pointer::parse("/status/[type=a~1b=c]/0").unwrap();
        let (key_of, value) = ("type".to_owned(), "a/b=c".to_owned());
        assert_eq!(
            found.0,
            [key("status"), Token::Where { key: key_of, value }, key("0")]
        );
        assert_eq!(found.to_string(), "/status/[type=a~1b=c]/0");
        assert!(found.0[2].is_index() && !found.0[0].is_index());
        for text in ["/[", "/[a]", "/[a=b", "/[=b]", "/[a=b]c"] {
            assert_eq!(
                Pointer::parse(text),
                Err(PointerProblem::Brackets),
                "{text}"
            );
        }
    }

    #[test]
    fn a_place_is_below_those_on_the_way_to_it() {
        let [outer, inner] = ["/a/b", "/a/b/c"].map(|text| Pointer::parse(text).unwrap());
        assert!(inner.is_below(&outer) && !outer.is_below(&inner) && !outer.is_below(&outer));
        assert!(outer.is_below(&Pointer(Vec::new())));
    }

    proptest! {
        #[test]
        fn a_pointer_is_written_as_it_was_read(text in "(/[a~01=\\[\\]é]{0,4}){0,4}") {
            if let Ok(pointer) = Pointer::parse(&text) {
                prop_assert_eq!(Pointer::parse(&pointer.to_string()).unwrap(), pointer);
            }
        }
    }
}
