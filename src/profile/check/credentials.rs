//! Checks names, credentials and headers.

use std::collections::BTreeSet;

use reqwest::header::{HeaderName, HeaderValue};

use crate::profile::parse::ProfileReading;
use crate::profile::template::web_address;
use crate::profile::{Profile, Scheme};

/// Headers with which a request proves who sends it.
const KEY_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// Headers that say how a request is sent.
const OWN_HEADERS: [&str; 8] = [
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl ProfileReading {
    pub(super) fn check_names(&mut self, profile: &Profile) {
        for alias in &profile.aliases {
            let allowed = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
            };
            if !(1..=64).contains(&alias.len()) || !alias.bytes().all(allowed) {
                let what = format!("{alias:?} is not a name");
                self.at(
                    "aliases",
                    what,
                    "write 1 to 64 of the characters a-z 0-9 - _",
                );
            }
        }
        for (key, address) in [("base_url", &profile.base_url), ("web", &profile.web)] {
            let Some(address) = address else { continue };
            let plain =
                !address.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
            let right = web_address(address)
                .filter(|url| plain && url.query().is_none() && url.fragment().is_none());
            if right.is_none() {
                let what = format!(
                    "{address:?} is not an http or https address without user, query and fragment"
                );
                self.at(key, what, "write one such as \"https://api.example.com\"");
            }
        }
    }

    pub(super) fn check_auth(&mut self, profile: &Profile) {
        let auth = &profile.auth;
        match &auth.scheme {
            Scheme::Word(word) if HeaderName::from_bytes(word.as_bytes()).is_err() => {
                let what = format!("{word:?} is not the name of a scheme");
                self.at(
                    "auth.scheme",
                    what,
                    "write bearer, basic, none or one other word",
                );
            }
            Scheme::Header(name) => {
                if self.check_header_name("auth.header", name)
                    && OWN_HEADERS.contains(&&*name.to_ascii_lowercase())
                {
                    let what = format!("the header {name} has another purpose");
                    self.at("auth.header", what, "write the header that takes the key");
                }
            }
            Scheme::None | Scheme::Word(_) | Scheme::Basic => {}
        }
        if auth.scheme != Scheme::Basic {
            for (key, value) in [("user", &auth.user), ("user_env", &auth.user_env)] {
                if value.is_some() {
                    let key = format!("auth.{key}");
                    self.at(&key, "only the scheme basic sends a user", "remove it");
                }
            }
        }
        let login = auth.login.iter();
        let of_login = login.flat_map(|login| [&login.user_env, &login.password_env]);
        let names = auth
            .env
            .iter()
            .chain(&auth.user_env)
            .chain(of_login.flatten());
        for name in names {
            if name.is_empty() || name.contains(['=', '\0']) {
                let what = format!("{name:?} is not the name of an environment variable");
                self.at("auth", what, "write a name such as \"API_KEY\"");
            }
        }
        if auth
            .file
            .as_ref()
            .is_some_and(|file| !file.starts_with('/'))
        {
            self.at(
                "auth.file",
                "the path does not begin with \"/\"",
                "write the whole path",
            );
        }
        if let Some(login) = &auth.login {
            self.check_path("auth.login.post", &login.post, &[], &[]);
        }
    }

    fn check_header_name(&mut self, key: &str, name: &str) -> bool {
        let valid = HeaderName::from_bytes(name.as_bytes()).is_ok();
        if !valid {
            let what = format!("{name:?} is not the name of a header");
            self.at(key, what, "write one such as \"X-Api-Key\"");
        }
        valid
    }

    pub(super) fn check_headers(&mut self, profile: &Profile) {
        let mut seen = BTreeSet::new();
        if let Scheme::Header(name) = &profile.auth.scheme {
            seen.insert(name.to_ascii_lowercase());
        }
        for (name, value) in &profile.headers {
            let key = format!("headers.{name}");
            if !self.check_header_name(&key, name) {
                continue;
            }
            let lower = name.to_ascii_lowercase();
            if KEY_HEADERS.contains(&&*lower) {
                let what = "a key does not belong in a profile";
                self.at(&key, what, "describe in auth how the key is sent");
            } else if OWN_HEADERS.contains(&&*lower) {
                self.at(&key, "each request has this header already", "remove it");
            } else if !seen.insert(lower) {
                self.at(&key, "the header is there already", "remove one of them");
            }
            if HeaderValue::from_str(value).is_err() {
                let what = format!("{value:?} cannot be sent in a header");
                self.at(&key, what, "write printable ASCII characters");
            }
        }
        for (key, name) in [
            ("rate.remaining", &profile.rate.remaining),
            ("rate.reset", &profile.rate.reset),
        ] {
            self.check_header_name(key, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::check::fixture::{assert_faults, faults};

    #[test]
    fn a_header_that_cannot_be_sent_is_a_fault() {
        assert_faults(&[
            (
                "headers",
                r#"{ "A B" = "c" }"#,
                "\"A B\" is not the name of a header",
            ),
            ("headers", r#"{ A = "b\nc" }"#, "cannot be sent in a header"),
            (
                "headers",
                r#"{ authorization = "Bearer x" }"#,
                "a key does not belong in a profile; describe in auth",
            ),
            (
                "headers",
                r#"{ Cookie = "x" }"#,
                "a key does not belong in a profile",
            ),
            (
                "headers",
                r#"{ Host = "evil.example" }"#,
                "each request has this header already",
            ),
            (
                "headers",
                r#"{ Accept = "a", accept = "b" }"#,
                "the header is there already",
            ),
            (
                "auth",
                r#"{ header = "X Key" }"#,
                "is not the name of a header",
            ),
            ("auth", r#"{ header = "Host" }"#, "has another purpose"),
            (
                "auth",
                r#"{ scheme = "a b" }"#,
                "is not the name of a scheme",
            ),
            (
                "auth",
                r#"{ scheme = "bearer", user_env = "U" }"#,
                "only the scheme basic sends a user",
            ),
            (
                "auth",
                r#"{ env = ["A=B"] }"#,
                "is not the name of an environment variable",
            ),
            ("auth", r#"{ file = "key" }"#, "does not begin with \"/\""),
            (
                "rate",
                r#"{ reset = "x y" }"#,
                "is not the name of a header",
            ),
            ("rate", r#"{ per_minute = 0 }"#, "not a whole number from 1"),
            (
                "rate",
                r#"{ per_minute = 1.5 }"#,
                "not a whole number from 1",
            ),
            ("aliases", r#"["G H"]"#, "is not a name"),
        ]);
        let found = faults(&[
            ("auth", "{ header = \"X-Key\" }"),
            ("headers", "{ x-key = \"a\" }"),
        ]);
        assert!(found[0].what.contains("there already"), "{found:?}");
    }
}
