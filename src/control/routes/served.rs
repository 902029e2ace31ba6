//! The routes as the server has them.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodFilter, on};

use crate::control::openapi::{Access, HttpOperation, Method, RouteTable};

/// Collects the handlers of routes.
pub(super) struct Served<S> {
    /// The handlers.
    pub(super) router: Router<S>,
    /// The paths that require no token.
    pub(super) open: Vec<&'static str>,
}

impl<S: Clone + Send + Sync + 'static> Served<S> {
    pub(super) fn new() -> Self {
        Self {
            router: Router::new(),
            open: Vec::new(),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> RouteTable<S> for Served<S> {
    fn add<H, T>(
        mut self,
        access: Access,
        method: Method,
        path: &'static str,
        handler: H,
        _operation: impl FnOnce() -> HttpOperation,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        if access == Access::Open {
            self.open.push(path);
        }
        let filter = match method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
            Method::Delete => MethodFilter::DELETE,
        };
        self.router = self.router.route(path, on(filter, handler));
        self
    }
}
