//! Proxies, as the environment names them for all programs: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`,
//! also in lower case.

use std::ffi::OsString;
use std::fmt;

use reqwest::Url;

/// The proxies of requests that leave this machine. Their addresses may hold passwords.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// Of requests to `https` addresses.
    pub(crate) https: Option<Url>,
    /// Of requests to `http` addresses.
    pub(crate) http: Option<Url>,
    /// Which addresses are reached without a proxy, as `NO_PROXY` lists them.
    pub(crate) none: String,
}

/// A variable that does not name a usable proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadProxy {
    /// The variable.
    pub(crate) variable: &'static str,
    /// What is wrong with it, without its value.
    pub(crate) what: String,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |proxy: &Option<Url>| {
            proxy
                .as_ref()
                .and_then(|url| Some(url.host_str()?.to_owned()))
        };
        f.debug_struct("Proxies")
            .field("https", &shown(&self.https))
            .field("http", &shown(&self.http))
            .finish()
    }
}

impl Proxies {
    /// Reads the variables that `get` returns. Of a pair the one in upper case wins; one that is empty is not set.
    /// `HTTP_PROXY` is not read in a CGI program, where a request can set it (httpoxy.org).
    ///
    /// # Errors
    /// When a proxy that would be used cannot be.
    pub(crate) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, BadProxy> {
        let set = |name: &str| {
            get(name)
                .and_then(|value| value.into_string().ok())
                .filter(|value| !value.trim().is_empty())
        };
        let first =
            |names: [&'static str; 4]| names.into_iter().find_map(|name| Some((name, set(name)?)));
        let cgi = set("REQUEST_METHOD").is_some();
        let http = if cgi {
            None
        } else {
            first(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
        };
        let https = first(["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]);
        Ok(Self {
            https: https.map(address).transpose()?,
            http: http.map(address).transpose()?,
            none: set("NO_PROXY")
                .or_else(|| set("no_proxy"))
                .unwrap_or_default(),
        })
    }
}

fn address((variable, text): (&'static str, String)) -> Result<Url, BadProxy> {
    let text = text.trim();
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let bad = |what: String| BadProxy { variable, what };
    let url = Url::parse(&whole)
        .map_err(|_secret| bad("this is not the address of a proxy".to_owned()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() && url.port() != Some(0) => Ok(url),
        "http" | "https" => Err(bad("this is not the address of a proxy".to_owned())),
        scheme if scheme.starts_with("socks") => {
            Err(bad("SOCKS proxies are not supported".to_owned()))
        }
        _ => Err(bad("this is not the address of an HTTP proxy".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Proxies, BadProxy> {
        Proxies::read(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn proxies_are_read_as_other_programs_read_them() {
        let found = read(&[
            ("ALL_PROXY", "proxy:3128"),
            ("https_proxy", "https://u:p@secure"),
            ("NO_PROXY", "a,b"),
        ])
        .unwrap();
        assert_eq!(found.http.unwrap().as_str(), "http://proxy:3128/");
        assert_eq!(found.https.unwrap().as_str(), "https://u:p@secure/");
        assert_eq!(found.none, "a,b");
        let cgi = read(&[("HTTP_PROXY", "http://evil"), ("REQUEST_METHOD", "GET")]).unwrap();
        assert!(cgi.http.is_none());
        // What is not used does no harm.
        assert!(
            read(&[
                ("ALL_PROXY", "socks5://x"),
                ("HTTP_PROXY", "a:1"),
                ("HTTPS_PROXY", "a:1")
            ])
            .is_ok()
        );
        assert!(read(&[("HTTP_PROXY", " ")]).unwrap().http.is_none());
    }

    #[test]
    fn an_unusable_proxy_is_named_without_its_value() {
        for value in [
            "socks5://u:passw0rd@h:1080",
            "socks5h://u:passw0rd@h",
            "http://u:passw0rd@",
            "ftp://u:passw0rd@h",
            "http://u:passw0rd@h:port",
        ] {
            for variable in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "http_proxy"] {
                let bad = read(&[(variable, value)]).unwrap_err();
                assert_eq!(bad.variable, variable);
                assert!(!bad.what.contains("passw0rd") && !bad.what.is_empty());
            }
        }
    }
}
