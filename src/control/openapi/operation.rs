//! What one method of a route does, and its description.

use axum::http::StatusCode;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::Access;
use super::document::Schemas;

/// What operations are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::control) enum Tag {
    /// Watches.
    Watches,
    /// Streams.
    Events,
    /// Deliveries.
    Deliveries,
    /// Sinks.
    Sinks,
    /// Discoveries.
    Discoveries,
    /// Everything about the process as a whole.
    Daemon,
    /// What receivers get.
    Webhooks,
}

impl Tag {
    /// All of them, in the order of the document.
    pub(super) const ALL: [Self; 7] = [
        Self::Watches,
        Self::Events,
        Self::Deliveries,
        Self::Sinks,
        Self::Discoveries,
        Self::Daemon,
        Self::Webhooks,
    ];

    /// The name in the document.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Watches => "watches",
            Self::Events => "events",
            Self::Deliveries => "deliveries",
            Self::Sinks => "sinks",
            Self::Discoveries => "discoveries",
            Self::Daemon => "daemon",
            Self::Webhooks => "webhooks",
        }
    }

    /// The description in the document.
    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Watches => "Runs that are followed to their end",
            Self::Events => "Server-Sent Events: what happened, and what runs are doing",
            Self::Deliveries => "Events for sinks, and the attempts to deliver them",
            Self::Sinks => "Destinations of the configuration",
            Self::Discoveries => "Lists in which runs are found",
            Self::Daemon => "Probes, metrics, the use of providers, this document",
            Self::Webhooks => "What sinks receive",
        }
    }
}

/// How the schema of a type is made.
type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// What one method of a route does.
pub(in crate::control) struct HttpOperation {
    tag: Tag,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    parameters: Vec<OperationParameter>,
    body: Option<MakeSchema>,
    answers: Vec<ResponseSpec>,
    problems: Vec<StatusCode>,
}

struct OperationParameter {
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
    pub(in crate::control) fn new(
        tag: Tag,
        id: &'static str,
        summary: &'static str,
        description: &'static str,
    ) -> Self {
        Self {
            tag,
            id,
            summary,
            description,
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

    pub(in crate::control) fn path<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("path", name, description, true)
    }

    pub(in crate::control) fn query<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("query", name, description, false)
    }

    /// A part of the query that must be there.
    pub(in crate::control) fn required_query<T: JsonSchema>(
        self,
        name: &'static str,
        description: &'static str,
    ) -> Self {
        self.parameter::<T>("query", name, description, true)
    }

    pub(in crate::control) fn header<T: JsonSchema>(
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
        self.parameters.push(OperationParameter {
            place,
            name,
            description,
            required,
            schema,
        });
        self
    }

    /// A JSON body.
    pub(in crate::control) fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(SchemaGenerator::subschema_for::<T>);
        self
    }

    /// An answer without a body.
    pub(in crate::control) fn empty(
        mut self,
        status: StatusCode,
        description: &'static str,
    ) -> Self {
        self.answers.push(ResponseSpec {
            status,
            description,
            content: Vec::new(),
        });
        self
    }

    /// A JSON answer.
    pub(in crate::control) fn json<T: JsonSchema>(
        self,
        status: StatusCode,
        description: &'static str,
    ) -> Self {
        self.content::<T>(status, description, &["application/json"])
    }

    /// An answer of other types of content.
    pub(in crate::control) fn content<T: JsonSchema>(
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

    /// A problem that not every route answers with.
    pub(in crate::control) fn problem(mut self, status: StatusCode) -> Self {
        self.problems.push(status);
        self
    }

    /// Returns the operation as the document has it.
    pub(super) fn describe(self, access: Access, schemas: &mut Schemas) -> Value {
        let parameter = |parameter: OperationParameter| {
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
        let refuses_tokens = access == Access::Token;
        let problems = self.problems.into_iter();
        for status in
            problems.filter(|status| refuses_tokens || *status != StatusCode::UNAUTHORIZED)
        {
            let response =
                json!({ "$ref": format!("#/components/responses/{}", problem_name(status)) });
            responses.insert(status.as_str().to_owned(), response);
        }
        let mut operation = json!({
            "operationId": self.id,
            "tags": [self.tag.name()],
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
        if access == Access::Open {
            operation["security"] = json!([]);
        }
        operation
    }
}

/// The name under which a problem is described once for all routes, such as `NotFound`.
pub(super) fn problem_name(status: StatusCode) -> String {
    status
        .canonical_reason()
        .unwrap_or_default()
        .replace(' ', "")
}
