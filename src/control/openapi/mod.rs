//! The OpenAPI document of the control interface, made from the routes themselves: a route can only be added together
//! with its description, and the schemas come from the types that are read and written.
//!
//! The routes are listed once and read twice: by the server, which uses the handlers, and by [`Document`], which uses
//! the descriptions. Only a test does the latter. The program contains `docs/openapi.json`, which that test compares
//! with the routes, so that neither the descriptions nor the code that makes schemas are part of a release.

mod document;
mod operation;
mod webhooks;

use axum::handler::Handler;

pub(super) use self::document::Document;
pub(super) use self::operation::{HttpOperation, Tag};

/// The document, as `docs/openapi.json` has it, without indentation (build.rs).
pub const DOCUMENT: &str = include_str!(concat!(env!("OUT_DIR"), "/openapi.json"));

/// The place where the server has the document.
pub(super) const PATH: &str = "/v1/openapi.json";

/// A reader of the list of routes, whose handlers share a state of the type `S`.
pub(super) trait RouteTable<S>: Sized {
    /// Adds a route. The operation is a closure because the server does not need it.
    fn add<H, T>(
        self,
        access: Access,
        method: Method,
        path: &'static str,
        handler: H,
        operation: impl FnOnce() -> HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static;

    /// Adds a route that requires a token where one is configured.
    fn route<H, T>(
        self,
        method: Method,
        path: &'static str,
        handler: H,
        operation: impl FnOnce() -> HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.add(Access::Token, method, path, handler, operation)
    }

    /// Adds a route that never requires a token.
    fn open_route<H, T>(
        self,
        method: Method,
        path: &'static str,
        handler: H,
        operation: impl FnOnce() -> HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.add(Access::Open, method, path, handler, operation)
    }
}

/// Who may use a route over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Callers with the token, where one is configured.
    Token,
    /// All callers.
    Open,
}

/// The methods in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Reads. `HEAD` comes with it.
    Get,
    /// Adds something, or starts an action.
    Post,
    /// Removes something.
    Delete,
}
