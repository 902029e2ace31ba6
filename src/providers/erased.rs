//! Providers behind one type, so that the engine does not carry the type of its provider through every part.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    ApiError, EventStream, ListParameters, ListReply, ListRequest, Provider, Reply, StreamItem,
};
use crate::domain::{ProviderName, RunRef};

/// Any provider; clones share it.
#[derive(Clone)]
pub struct AnyProvider(Arc<dyn ErasedProvider>);

/// Any event stream.
pub struct AnyStream(Box<dyn ErasedStream>);

/// As [`Provider`], for dynamic dispatch.
trait ErasedProvider: Any + Send + Sync {
    fn get_run<'a>(&'a self, id: &'a RunRef) -> BoxFuture<'a, Reply>;
    fn is_open(&self) -> bool;
    fn opened(&self) -> BoxFuture<'_, ()>;
    fn address(&self, id: &RunRef) -> Option<String>;
    fn reconnect(&self);
    fn is_same_account(&self, other: &dyn ErasedProvider) -> bool;
    fn open_events<'a>(
        &'a self,
        id: &'a RunRef,
        last_id: Option<&'a str>,
    ) -> BoxFuture<'a, Result<AnyStream, ApiError>>;
    fn list_of(&self, id: &RunRef) -> Option<ListParameters>;
    fn has_same_lists(&self, other: &dyn ErasedProvider) -> bool;
    fn list<'a>(
        &'a self,
        provider: &'a ProviderName,
        request: &'a ListRequest,
    ) -> BoxFuture<'a, ListReply>;
}

/// As [`EventStream`], for dynamic dispatch.
trait ErasedStream: Send {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<StreamItem>, ApiError>>;
    fn last_id(&self) -> Option<&str>;
}

impl<P: Provider> ErasedProvider for P {
    fn get_run<'a>(&'a self, id: &'a RunRef) -> BoxFuture<'a, Reply> {
        Box::pin(Provider::get_run(self, id))
    }

    fn is_open(&self) -> bool {
        Provider::is_open(self)
    }

    fn opened(&self) -> BoxFuture<'_, ()> {
        Box::pin(Provider::opened(self))
    }

    fn address(&self, id: &RunRef) -> Option<String> {
        Provider::address(self, id)
    }

    fn reconnect(&self) {
        Provider::reconnect(self);
    }

    fn is_same_account(&self, other: &dyn ErasedProvider) -> bool {
        let other: &dyn Any = other;
        other
            .downcast_ref()
            .is_some_and(|other| Provider::is_same_account(self, other))
    }

    fn open_events<'a>(
        &'a self,
        id: &'a RunRef,
        last_id: Option<&'a str>,
    ) -> BoxFuture<'a, Result<AnyStream, ApiError>> {
        Box::pin(async move {
            let stream = Provider::open_events(self, id, last_id).await?;
            Ok(AnyStream(Box::new(stream)))
        })
    }

    fn list_of(&self, id: &RunRef) -> Option<ListParameters> {
        Provider::list_of(self, id)
    }

    fn has_same_lists(&self, other: &dyn ErasedProvider) -> bool {
        let other: &dyn Any = other;
        other
            .downcast_ref()
            .is_some_and(|other| Provider::has_same_lists(self, other))
    }

    fn list<'a>(
        &'a self,
        provider: &'a ProviderName,
        request: &'a ListRequest,
    ) -> BoxFuture<'a, ListReply> {
        Box::pin(Provider::list(self, provider, request))
    }
}

impl<E: EventStream> ErasedStream for E {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<StreamItem>, ApiError>> {
        Box::pin(EventStream::next(self))
    }

    fn last_id(&self) -> Option<&str> {
        EventStream::last_id(self)
    }
}

impl AnyProvider {
    /// Hides the type of a provider.
    pub fn new(provider: impl Provider) -> Self {
        Self(Arc::new(provider))
    }

    /// As [`Provider::get_run`]. The future is on the heap.
    pub fn get_run<'a>(&'a self, id: &'a RunRef) -> BoxFuture<'a, Reply> {
        self.0.get_run(id)
    }

    /// As [`Provider::is_open`].
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// As [`Provider::opened`].
    pub async fn opened(&self) {
        self.0.opened().await;
    }

    /// As [`Provider::address`].
    pub fn address(&self, id: &RunRef) -> Option<String> {
        self.0.address(id)
    }

    /// As [`Provider::reconnect`].
    pub fn reconnect(&self) {
        self.0.reconnect();
    }

    /// As [`Provider::is_same_account`]; never the same where the types differ.
    pub fn is_same_account(&self, other: &Self) -> bool {
        self.0.is_same_account(&*other.0)
    }

    /// As [`Provider::open_events`].
    ///
    /// # Errors
    /// When the stream cannot be opened.
    pub async fn open_events(
        &self,
        id: &RunRef,
        last_id: Option<&str>,
    ) -> Result<AnyStream, ApiError> {
        self.0.open_events(id, last_id).await
    }

    /// As [`Provider::list_of`].
    pub fn list_of(&self, id: &RunRef) -> Option<ListParameters> {
        self.0.list_of(id)
    }

    /// As [`Provider::has_same_lists`]; never the same where the types differ.
    pub fn has_same_lists(&self, other: &Self) -> bool {
        self.0.has_same_lists(&*other.0)
    }

    /// As [`Provider::list`].
    pub async fn list(&self, provider: &ProviderName, request: &ListRequest) -> ListReply {
        self.0.list(provider, request).await
    }
}

impl fmt::Debug for AnyProvider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AnyProvider")
    }
}

impl fmt::Debug for AnyStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AnyStream")
    }
}

impl EventStream for AnyStream {
    async fn next(&mut self) -> Result<Option<StreamItem>, ApiError> {
        self.0.next().await
    }

    fn last_id(&self) -> Option<&str> {
        self.0.last_id()
    }
}
