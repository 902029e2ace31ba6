//! The document as a whole.

use axum::handler::Handler;
use axum::http::StatusCode;
use schemars::Schema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::operation::{Tag, problem_name};
use super::webhooks::webhooks;
use super::{Access, HttpOperation, Method, RouteTable};
use crate::control::types::ProblemDetails;

/// What holds for all routes.
const ABOUT: &str = "\
Watches runs at services with a run API until each one ends, and notifies the people and programs that wait for it. \
A run without a provider is one of the default provider: Crewship, unless `default_provider` says otherwise. \
Served on a Unix socket, where no token is needed, and over TCP where `control.listen` is set. \
Every `GET` route answers `HEAD` too. Unknown parameters and keys are refused. \
A head of more than 16 KiB gets 431, and a request that is not HTTP gets 400, both without a body. \
The `webhooks` are what sinks of the type `webhook` with the default format receive; with `cloudevents = true` they are \
CloudEvents 1.0 in binary content mode.";

/// Problems that any route may answer with: the status, and when.
const PROBLEMS: [(StatusCode, &str); 9] = [
    (
        StatusCode::BAD_REQUEST,
        "A parameter or the body is wrong; `detail` says which and why",
    ),
    (
        StatusCode::UNAUTHORIZED,
        "The bearer token is missing or wrong; over TCP only",
    ),
    (
        StatusCode::FORBIDDEN,
        "The request is one of another web page, or its `Host` is foreign; over TCP only",
    ),
    (StatusCode::NOT_FOUND, "It is not known here"),
    (
        StatusCode::METHOD_NOT_ALLOWED,
        "The route has other methods",
    ),
    (StatusCode::REQUEST_TIMEOUT, "The body did not come in time"),
    (
        StatusCode::CONFLICT,
        "Its state does not allow that; `detail` says why",
    ),
    (
        StatusCode::PAYLOAD_TOO_LARGE,
        "The body is larger than 64 KiB",
    ),
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "The store refuses, too many requests wait already, or the daemon stops",
    ),
];

/// Makes schemas, and keeps those that have names.
pub(super) struct Schemas {
    /// For what is read: what may be left out is not required.
    pub(super) requests: SchemaGenerator,
    /// For what is written: what is always there is required.
    pub(super) answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            requests: settings().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    /// The schemas with names. One of both kinds is that of what is written.
    fn take(&mut self) -> Map<String, Value> {
        let mut definitions = self.requests.take_definitions(true);
        definitions.extend(self.answers.take_definitions(true));
        definitions
    }
}

/// Collects the descriptions of routes.
pub(in crate::control) struct Document {
    paths: Map<String, Value>,
    schemas: Schemas,
}

impl<S> RouteTable<S> for Document {
    fn add<H, T>(
        mut self,
        access: Access,
        method: Method,
        path: &'static str,
        _handler: H,
        operation: impl FnOnce() -> HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        let operation = operation().describe(access, &mut self.schemas);
        self.paths.entry(path).or_insert_with(|| json!({}))[method_word(method)] = operation;
        self
    }
}

impl Document {
    pub(in crate::control) fn new() -> Self {
        Self {
            paths: Map::new(),
            schemas: Schemas::new(),
        }
    }

    /// Returns the document of all routes that were added.
    pub(in crate::control) fn finish(mut self) -> Value {
        // What a problem looks like does not depend on the route.
        let problem = self.schemas.answers.subschema_for::<ProblemDetails>();
        let webhooks = webhooks(&mut self.schemas.answers);
        let tags = Tag::ALL.map(|tag| json!({ "name": tag.name(), "description": tag.about() }));
        let mut responses = problems(&problem);
        responses.extend(webhooks.responses);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "runwatch control interface",
                "summary": "Watch runs, follow events, see deliveries",
                "description": ABOUT,
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "security": [{ "bearer": [] }],
            "tags": tags,
            "paths": self.paths,
            "webhooks": webhooks.items,
            "components": {
                "schemas": self.schemas.take(),
                "parameters": webhooks.parameters,
                "responses": responses,
                "securitySchemes": { "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of `control.token_file`. On the Unix socket, and on loopback where no \
                                    token is configured, none is needed.",
                } },
            },
        })
    }
}

/// The key of a method in the document.
fn method_word(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Post => "post",
        Method::Delete => "delete",
    }
}

fn problems(problem: &Schema) -> Map<String, Value> {
    let response = |(status, description): (StatusCode, &str)| {
        let mut response = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": problem } },
        });
        match status {
            StatusCode::UNAUTHORIZED => {
                response["headers"] = header("WWW-Authenticate", "The scheme: `Bearer`")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                response["headers"] = header("Allow", "The methods of the route")
            }
            _ => {}
        }
        (problem_name(status), response)
    };
    PROBLEMS.into_iter().map(response).collect()
}

fn header(name: &str, description: &str) -> Value {
    json!({ name: { "description": description, "required": true, "schema": { "type": "string" } } })
}
