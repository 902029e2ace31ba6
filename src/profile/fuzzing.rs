//! Fuzzes profiles: whatever a file contains, each of its faults is reported on a line of its own, and a profile
//! without faults never leads a request to another host.

use reqwest::Url;

use super::{ListFill, ListTarget, Parts, Profile, Template, parse};

/// Where the API is whose profile is fuzzed.
const BASE: &str = "https://api.example.com/base";

/// IDs and addresses that are tried with each profile.
const TRIED: [&str; 10] = [
    "1",
    "a/1",
    "a/b/1",
    "../x",
    "a/../../x",
    "//evil.example/1",
    "https://api.example.com/base/a/b/1",
    "https://api.example.com//evil.example/1",
    "https://evil.example/base/a/1",
    "019ad5f0-5c1e-7e3a-9d2b-3f1c8a6b7d5e",
];

/// The file of a profile; behind the first zero byte an ID or the address of a page.
pub fn profile(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (file, run) = text.split_once('\0').unwrap_or((&text, "1"));
    let profile = match parse(file, "fuzzed") {
        Ok(profile) => profile,
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                let shown = fault.to_string();
                assert!(
                    fault.line > 0 && !fault.what.is_empty() && !fault.fix.is_empty(),
                    "{shown}"
                );
            }
            return;
        }
    };
    assert!(!profile.rules.is_empty() || profile.each.is_some());
    for run in TRIED.into_iter().chain([run]) {
        if let Ok(parts) = profile.read_id(run) {
            assert_eq!(
                profile.write_id(&parts),
                run,
                "an ID is read as it is written"
            );
            check_requests(&profile, &parts);
        }
        let Ok(url) = run.parse::<Url>() else {
            continue;
        };
        if let Some(parts) = profile.read_url(&url, BASE, None) {
            assert_eq!(url.host_str(), Some("api.example.com"), "{url}");
            assert_eq!((url.scheme(), url.port()), ("https", None), "{url}");
            assert_eq!(
                profile.read_id(&profile.write_id(&parts)).as_ref(),
                Ok(&parts)
            );
            check_requests(&profile, &parts);
        }
        let _of_this_form = profile.url_shape(&url);
    }
}

/// Every request for a run goes to the API.
fn check_requests(profile: &Profile, parts: &Parts) {
    let confirm = profile.confirm.iter().map(|confirm| &confirm.get);
    let detail = profile.detail.iter().map(|detail| &detail.get);
    let each = profile.each.iter().filter_map(|each| each.get.as_ref());
    let stream = profile.stream.iter().map(|stream| &stream.sse);
    // A list may need more than a run has.
    let list = profile
        .list
        .iter()
        .flat_map(|list| list.get.iter().chain(&list.post))
        .filter(|list| {
            let mut names = list.names();
            names.all(|name| parts.get(name).is_some() || profile.vars.contains_key(name))
        });
    let templates = [&profile.get].into_iter().chain(&profile.fallback_get);
    let templates = templates
        .chain(confirm)
        .chain(detail)
        .chain(each)
        .chain(stream)
        .chain(list);
    for template in templates {
        check_request(profile, template, parts);
    }
    check_list(profile, parts);
    if let Some(page) = profile.page(parts, BASE, None) {
        let page: Url = page.parse().expect("the address of a page");
        assert!(matches!(page.scheme(), "http" | "https"), "{page}");
    }
}

/// Every request for a page of a list goes to the API, whatever its parameters contain.
fn check_list(profile: &Profile, parts: &Parts) {
    let Some(list) = &profile.list else {
        return;
    };
    for value in TRIED {
        let value_of = |name: String| {
            let value = parts.get(&name).unwrap_or(value).to_owned();
            (name, value)
        };
        let parameters = list.parameters().into_iter().map(value_of).collect();
        let fill = ListFill {
            parameters: &parameters,
            statuses: &[value.to_owned()],
            since: None,
            now: jiff::Timestamp::UNIX_EPOCH,
            offset: 0,
            cursor: Some(value),
        };
        let Ok(ListTarget { path, body }) = profile.list_target(&fill) else {
            continue;
        };
        assert!(path.starts_with('/') && !path.starts_with("//"), "{path}");
        assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
        let url: Url = format!("{BASE}{path}").parse().expect("an address");
        assert_eq!(url.host_str(), Some("api.example.com"), "{path}");
        assert!(
            url.path().starts_with("/base/"),
            "{path} leads out of the API"
        );
        if let Some(body) = body {
            drop(serde_json::from_str::<serde_json::Value>(&body).expect("JSON"));
        }
    }
}

fn check_request(profile: &Profile, template: &Template, parts: &Parts) {
    let path = profile.path(template, parts);
    assert!(path.starts_with('/') && !path.starts_with("//"), "{path}");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
    match profile.request_url(template, parts, BASE) {
        Some(url) => {
            assert_eq!(url.host_str(), Some("api.example.com"), "{path}");
            assert_eq!((url.scheme(), url.port()), ("https", None), "{path}");
            assert!(
                url.username().is_empty() && url.fragment().is_none(),
                "{path}"
            );
            if !template.is_url() {
                assert!(
                    url.path().starts_with("/base/"),
                    "{path} leads out of the API"
                );
            }
        }
        None => assert!(template.is_url(), "{path} has no address"),
    }
}
