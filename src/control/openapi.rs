//! The OpenAPI document of the control interface, made from the routes themselves: a route can only be
//! added together with its description, and the schemas come from the types that are read and written.

use axum::Router;
use axum::body::Bytes;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::types::ProblemDetails;

/// What holds for all routes.
const ABOUT: &str = "\
Watches runs at services with a run API until each one ends, and notifies the people and programs that wait for it. \
A run without a provider is one of the default provider: Crewship, unless `default_provider` says otherwise. \
Served on a Unix socket, where no token is needed, and over TCP where `control.listen` is set. \
Every `GET` route answers `HEAD` too. Unknown parameters and keys are refused. \
A head of more than 16 KiB gets 431, and what is no HTTP gets 400, both without a body.";

/// Refusals that any route may give: what is wrong, and when.
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
        "The request is one of a web page, or its `Host` is foreign; over TCP only",
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

/// How the schema of a type is made.
type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// Routes, and their descriptions.
pub(super) struct DocumentedRouter<S> {
    router: Router<S>,
    open: Vec<&'static str>,
    paths: Map<String, Value>,
    schemas: Schemas,
}

/// Makes schemas and keeps those that are named.
struct Schemas {
    /// For what is read: what may be left out is not required.
    requests: SchemaGenerator,
    /// For what is written: what is always there is required.
    answers: SchemaGenerator,
}

/// What one method of a route does.
pub(super) struct HttpOperation {
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    open: bool,
    parameters: Vec<Parameter>,
    body: Option<MakeSchema>,
    answers: Vec<ResponseSpec>,
    problems: Vec<StatusCode>,
}

struct Parameter {
    place: &'static str,
    name: &'static str,
    description: &'static str,
    required: bool,
    schema: MakeSchema,
}

struct ResponseSpec {
    status: StatusCode,
    description: &'static str,
    content: Vec<(&'static str, MakeSchema)>,
}

impl HttpOperation {
    pub(super) fn new(id: &'static str, summary: &'static str, description: &'static str) -> Self {
        Self {
            id,
            summary,
            description,
            open: false,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: vec![
                StatusCode::BAD_REQUEST,
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::PAYLOAD_TOO_LARGE,
                StatusCode::SERVICE_UNAVAILABLE,
            ],
        }
    }

    /// No token is required.
    pub(super) fn open(mut self) -> Self {
        self.open = true;
        self.problems
            .retain(|status| *status != StatusCode::UNAUTHORIZED);
        self
    }

    pub(super) fn path<T: JsonSchema>(self, name: &'static str, description: &'static str) -> Self {
        self.parameter::<T>("path", name, description, true)
    }

    pub(super) fn query<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("query", name, description, false)
    }

    /// A part of the query that must be there.
    pub(super) fn required_query<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("query", name, description, true)
    }

    pub(super) fn header<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("header", name, description, false)
    }

    fn parameter<T: JsonSchema>(
        mut self,
        place: &'static str,
        name: &'static str,
        description: &'static str,
        required: bool,
    ) -> Self {
        let schema: MakeSchema = SchemaGenerator::subschema_for::<T>;
        self.parameters.push(Parameter {
            place,
            name,
            description,
            required,
            schema,
        });
        self
    }

    /// A JSON body.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// An answer without a body.
    pub(super) fn empty(mut self, status: StatusCode, description: &'static str) -> Self {
        self.answers.push(ResponseSpec {
            status,
            description,
            content: Vec::new(),
        });
        self
    }

    /// A JSON answer.
    pub(super) fn json<T: JsonSchema>(self, status: StatusCode, description: &'static str) -> Self {
        self.content::<T>(status, description, &["application/json"])
    }

    /// An answer of other types of content.
    pub(super) fn content<T: JsonSchema>(
        mut self,
        status: StatusCode,
        description: &'static str,
        types: &[&'static str],
    ) -> Self {
        let schema: MakeSchema = SchemaGenerator::subschema_for::<T>;
        let content = types.iter().map(|name| (*name, schema)).collect();
        self.answers.push(ResponseSpec {
            status,
            description,
            content,
        });
        self
    }

    /// A refusal that not every route gives.
    pub(super) fn problem(mut self, status: StatusCode) -> Self {
        self.problems.push(status);
        self
    }

    fn describe(self, schemas: &mut Schemas) -> Value {
        let parameter = |parameter: Parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.required,
                "description": parameter.description,
                "schema": (parameter.schema)(&mut schemas.requests),
            })
        };
        let parameters: Vec<_> = self.parameters.into_iter().map(parameter).collect();
        let mut responses = Map::new();
        for answer in self.answers {
            let mut response = json!({ "description": answer.description });
            let content: Map<_, _> = answer
                .content
                .into_iter()
                .map(|(name, schema)| {
                    (
                        name.to_owned(),
                        json!({ "schema": schema(&mut schemas.answers) }),
                    )
                })
                .collect();
            if !content.is_empty() {
                response["content"] = content.into();
            }
            responses.insert(answer.status.as_str().to_owned(), response);
        }
        for status in self.problems {
            let response =
                json!({ "$ref": format!("#/components/responses/{}", problem_name(status)) });
            responses.insert(status.as_str().to_owned(), response);
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "description": self.description,
            "responses": responses,
        });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            let schema = body(&mut schemas.requests);
            operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        if self.open {
            operation["security"] = json!([]);
        }
        operation
    }
}

impl<S: Clone + Send + Sync + 'static> DocumentedRouter<S> {
    pub(super) fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        let schemas = Schemas {
            requests: settings().into_generator(),
            answers: settings().for_serialize().into_generator(),
        };
        Self {
            router: Router::new(),
            open: Vec::new(),
            paths: Map::new(),
            schemas,
        }
    }

    /// Serves `handler`, and describes it as `operation`.
    pub(super) fn route<H, T>(
        mut self,
        method: Method,
        path: &'static str,
        handler: H,
        operation: HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        if operation.open {
            self.open.push(path);
        }
        self.describe(method, path, operation);
        self.router = self.router.route(path, method.serve(handler));
        self
    }

    fn describe(&mut self, method: Method, path: &'static str, operation: HttpOperation) {
        let operation = operation.describe(&mut self.schemas);
        self.paths.entry(path).or_insert_with(|| json!({}))[method.word()] = operation;
    }

    /// Serves the document too, at `path`. Returns all routes, and the paths of those that require no token.
    pub(super) fn finish(mut self, path: &'static str) -> (Router<S>, Vec<&'static str>) {
        let about = "The OpenAPI 3.1 document of what this daemon serves.";
        let operation = HttpOperation::new("describe", "This document", about)
            .json::<Map<String, Value>>(StatusCode::OK, "An OpenAPI 3.1 document");
        self.describe(Method::Get, path, operation);
        let mut definitions = self.schemas.requests.take_definitions(true);
        definitions.extend(self.schemas.answers.take_definitions(true));
        // What a refusal is does not depend on the route.
        let problem = self.schemas.answers.subschema_for::<ProblemDetails>();
        definitions.extend(self.schemas.answers.take_definitions(true));
        let document = json!({
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
            "paths": self.paths,
            "components": {
                "schemas": definitions,
                "responses": problems(&problem),
                "securitySchemes": { "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of `control.token_file`. On the Unix socket, and on loopback where no \
                                    token is configured, none is needed.",
                } },
            },
        });
        let document = Bytes::from(serde_json::to_vec(&document).expect("text keys"));
        let answer = move || async move {
            (
                [(axum::http::header::CONTENT_TYPE, "application/json")],
                document,
            )
        };
        (
            self.router.route(path, Method::Get.serve(answer)),
            self.open,
        )
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

/// The name under which a refusal is described once for all routes, such as `NotFound`.
fn problem_name(status: StatusCode) -> String {
    status
        .canonical_reason()
        .unwrap_or_default()
        .replace(' ', "")
}

/// The methods in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Reads. `HEAD` comes with it.
    Get,
    /// Adds, or has something done.
    Post,
    /// Takes away.
    Delete,
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }

    fn serve<H, T, S>(self, handler: H) -> MethodRouter<S>
    where
        H: Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        let filter = match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
            Self::Delete => MethodFilter::DELETE,
        };
        on(filter, handler)
    }
}
