//! Reads what a profile says of further requests: how each is authorized, which follow the first, and how many are allowed.

use super::ProfileReading;
use super::values::Section;
use crate::domain::RunState;
use crate::profile::{Auth, Confirm, Detail, Each, Login, Pointer, Rate, Scheme, Stream};

impl ProfileReading {
    pub(super) fn auth(&mut self, top: &mut Section) -> Auth {
        let mut auth = Auth {
            scheme: Scheme::None,
            env: Vec::new(),
            file: None,
            user_env: None,
            user: None,
            optional: false,
            login: None,
        };
        let example = "auth = { scheme = \"bearer\", env = [\"API_KEY\"] }";
        let Some(mut section) = self.section(top, "auth", example) else {
            return auth;
        };
        let scheme = self.text(&mut section, "scheme");
        let header = self.text(&mut section, "header");
        auth.env = self.words(&mut section, "env");
        auth.file = self.text(&mut section, "file");
        auth.user_env = self.text(&mut section, "user_env");
        auth.user = self.text(&mut section, "user");
        auth.optional = self.flag(&mut section, "optional");
        auth.login = self.login(&mut section);
        auth.scheme = match (scheme, header) {
            (Some(_), Some(_)) => {
                let what = "it has a scheme and a header";
                self.fault(section.line, "auth", what, "leave out one of them");
                Scheme::None
            }
            (None, Some(header)) => Scheme::Header(header),
            (Some(word), None) => match &*word {
                "none" => Scheme::None,
                "basic" => Scheme::Basic,
                "bearer" => Scheme::Word("Bearer".to_owned()),
                _ => Scheme::Word(word),
            },
            (None, None) => Scheme::Word("Bearer".to_owned()),
        };
        self.finish(section);
        auth
    }

    fn login(&mut self, auth: &mut Section) -> Option<Login> {
        let example = "login = { post = \"/auth/token\", token = \"/access_token\" }";
        let mut section = self.section(auth, "login", example)?;
        let post = self.template(&mut section, "post");
        let token = self.pointer(&mut section, "token");
        if post.is_none() {
            self.missing(&section, "post", "post = \"/auth/token\"");
        }
        if token.is_none() {
            self.missing(&section, "token", "token = \"/access_token\"");
        }
        let user_env = self.text(&mut section, "user_env");
        let password_env = self.text(&mut section, "password_env");
        self.finish(section);
        Some(Login {
            post: post?,
            token: token?,
            user_env,
            password_env,
        })
    }

    pub(super) fn confirm(&mut self, top: &mut Section) -> Option<Confirm> {
        let example = "confirm = { on = [\"succeeded\"], get = \"/…\", rules = […] }";
        let mut section = self.section(top, "confirm", example)?;
        let on = self.states(&mut section, "on");
        if on.is_none() {
            self.missing(&section, "on", "on = [\"succeeded\"]");
        }
        let get = self.needed_template(&mut section, "get", "get = \"/…\"");
        let rules = self.rules(&mut section);
        if rules.is_empty() {
            let example = "rules = [{ when = { \"/status\" = \"paused\" }, is = \"waiting\" }]";
            self.missing(&section, "rules", example);
        }
        let error = self.pointers(&mut section, "error");
        let output = self.pointers(&mut section, "output");
        self.finish(section);
        Some(Confirm {
            on: on.unwrap_or_default(),
            get: get?,
            rules,
            error,
            output,
        })
    }

    pub(super) fn detail(&mut self, top: &mut Section) -> Option<Detail> {
        let example = "detail = { get = \"/…\", error = \"/error\" }";
        let mut section = self.section(top, "detail", example)?;
        let on = self.states(&mut section, "on");
        let get = self.needed_template(&mut section, "get", "get = \"/…\"");
        let error = self.pointers(&mut section, "error");
        let output = self.pointers(&mut section, "output");
        self.finish(section);
        Some(Detail {
            on: on.unwrap_or_else(|| vec![RunState::Failed]),
            get: get?,
            error,
            output,
        })
    }

    pub(super) fn each(&mut self, top: &mut Section) -> Option<Each> {
        let example = "each = { items = \"/items\", rules = […] }";
        let mut section = self.section(top, "each", example)?;
        let get = self.template(&mut section, "get");
        let items = self.pointer(&mut section, "items");
        if items.is_none() {
            self.missing(&section, "items", "items = \"/items\"");
        }
        let rules = self.rules(&mut section);
        if rules.is_empty() {
            let example = "rules = [{ when = { \"/status\" = \"done\" }, is = \"succeeded\" }]";
            self.missing(&section, "rules", example);
        }
        let name = self.pointers(&mut section, "name");
        self.finish(section);
        Some(Each {
            get,
            items: items.unwrap_or(Pointer(Vec::new())),
            rules,
            name,
        })
    }

    pub(super) fn rate(&mut self, top: &mut Section) -> Rate {
        let mut rate = Rate {
            remaining: "x-ratelimit-remaining".to_owned(),
            reset: "x-ratelimit-reset".to_owned(),
            per_minute: 60,
            etag_free: false,
        };
        let Some(mut section) = self.section(top, "rate", "rate = { per_minute = 60 }") else {
            return rate;
        };
        // Which status codes refuse a request is known without it.
        let _no_more_than_that = section.take("refused");
        if let Some(name) = self.text(&mut section, "remaining") {
            rate.remaining = name;
        }
        if let Some(name) = self.text(&mut section, "reset") {
            rate.reset = name;
        }
        if let Some(number) = self.whole(&mut section, "per_minute", 100_000) {
            rate.per_minute = number;
        }
        rate.etag_free = self.flag(&mut section, "etag_free");
        self.finish(section);
        rate
    }

    pub(super) fn stream(&mut self, top: &mut Section) -> Option<Stream> {
        let mut section = self.section(top, "stream", "stream = { sse = \"/…\" }")?;
        let sse = self.needed_template(&mut section, "sse", "sse = \"/runs/{run}/events\"");
        let mut words = |key| self.words(&mut section, key);
        let (started, ended) = (words("started"), words("ended"));
        let (over, alive) = (words("over"), words("alive"));
        let (news, failed, last) = (words("news"), words("failed"), words("last"));
        let suggestions = [
            ("started", &started),
            ("ended", &ended),
            ("over", &over),
            ("alive", &alive),
        ];
        for (at, (key, types)) in suggestions.into_iter().enumerate() {
            let others = &suggestions[..at];
            for kind in types {
                let other = others.iter().find(|(_, types)| types.contains(kind));
                if let Some((other, _)) = other {
                    let what =
                        format!("{kind:?} is in {other} as well, and only one of them can hold");
                    let fix = format!("take it out of {other} or of {key}");
                    self.fault(section.line, &section.key(key), what, fix);
                }
            }
        }
        self.finish(section);
        Some(Stream {
            sse: sse?,
            started,
            ended,
            over,
            alive,
            news,
            failed,
            last,
        })
    }
}
