//! The OpenAPI document: the file, the routes and the command have the same.

use std::collections::BTreeSet;
use std::path::Path;

use runwatch::control::openapi_of_routes;
use runwatch::domain::EventType;
use serde_json::Value;

use crate::support::Program;

/// With this variable, the file is written instead of compared.
const RENEW: &str = "RUNWATCH_RENEW";

#[test]
fn the_file_has_what_the_routes_have() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let of_routes = format!("{:#}\n", openapi_of_routes());
    if std::env::var_os(RENEW).is_some() {
        std::fs::write(&path, &of_routes).unwrap();
    }
    let of_file = std::fs::read_to_string(&path).unwrap();
    let different = of_file
        .lines()
        .zip(of_routes.lines())
        .find(|(file, routes)| file != routes);
    assert!(
        of_file == of_routes,
        "docs/openapi.json differs from the routes, first in {different:?}. If the routes are right, \
         `{RENEW}=1 cargo test --test it the_file_has` writes the file; commit it with the change"
    );
}

#[tokio::test]
async fn the_command_prints_the_file() {
    let ended = Program::new().run(&["openapi"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, include_str!("../../docs/openapi.json"));
}

#[test]
fn each_event_has_a_webhook_and_each_operation_a_tag() {
    let document = openapi_of_routes();
    let webhooks: BTreeSet<&str> = document["webhooks"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(webhooks, EventType::ALL.map(EventType::as_str).into());
    let tags = document["tags"].as_array().unwrap().iter();
    let tags: BTreeSet<&str> = tags.map(|tag| tag["name"].as_str().unwrap()).collect();
    let items = ["paths", "webhooks"].map(|part| document[part].as_object().unwrap().values());
    let operations = items
        .into_iter()
        .flatten()
        .flat_map(|item| item.as_object().unwrap().values());
    let used: BTreeSet<&str> = operations
        .map(|operation: &Value| operation["tags"][0].as_str().unwrap())
        .collect();
    assert_eq!(used, tags);
}
