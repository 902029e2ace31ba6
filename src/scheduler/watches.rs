//! Watches, whichever daemon leads.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};

use super::{AddedBy, Breakers, Removed, RunActivity, Schedulers, Usage, WatchView};
use crate::domain::{ProviderName, RunRef, Watch};
use crate::failpoint::mutant;
use crate::store::{Added, Store, StoreError};

/// Adds, removes and shows watches: through the schedulers where this daemon leads, and in the store where it stands
/// by, from which the leader takes them up. Clones share it.
#[derive(Debug, Clone)]
pub struct Watches {
    store: Store,
    leading: watch::Receiver<Option<Schedulers>>,
}

impl Watches {
    /// Watches in `store`, which does not require a lease. `leading` has the schedulers while this daemon leads.
    pub fn new(store: Store, leading: watch::Receiver<Option<Schedulers>>) -> Self {
        Self { store, leading }
    }

    /// The schedulers, while this daemon leads.
    pub fn schedulers(&self) -> Option<Schedulers> {
        self.leading.borrow().clone()
    }

    /// Whether this daemon leads, as it changes.
    pub fn leading(&self) -> watch::Receiver<Option<Schedulers>> {
        self.leading.clone()
    }

    /// As [`Schedulers::add`], for the requests of people and programs.
    ///
    /// # Errors
    /// When the store rejects the write.
    pub async fn add(&self, watch: Watch, again: bool) -> Result<Added, StoreError> {
        if let Some(schedulers) = self.schedulers() {
            let origin = if again {
                AddedBy::RequestAgain
            } else {
                AddedBy::Request
            };
            match schedulers.add(watch.clone(), origin).await {
                Err(error) if self.has_another_leader(&error) => {}
                added => return added,
            }
        }
        let added = if again {
            self.store.add_watch_again(watch).await
        } else {
            self.store.add_watch(watch).await
        };
        match added {
            Err(StoreError::Unknown) if mutant("unknown-counts") => Ok(Added::New),
            added => added.map(|(added, _)| added),
        }
    }

    /// As [`Schedulers::remove`].
    ///
    /// # Errors
    /// As [`Schedulers::remove`].
    pub async fn remove(&self, run_id: RunRef, force: bool) -> Result<Removed, StoreError> {
        if let Some(schedulers) = self.schedulers() {
            match schedulers.remove(run_id.clone(), force).await {
                Err(error) if self.has_another_leader(&error) => {}
                removed => return removed,
            }
        }
        let removed = self.store.remove_watches(run_id, force).await?;
        Ok(if removed.is_empty() {
            Removed::NotFound
        } else {
            Removed::Removed
        })
    }

    /// As [`Schedulers::view`]; empty where this daemon stands by.
    ///
    /// # Errors
    /// When the schedulers of a store of its own have ended.
    pub async fn view(&self, only: Option<Vec<RunRef>>) -> Result<Vec<WatchView>, StoreError> {
        match self.schedulers() {
            Some(schedulers) => self.unless_over(schedulers.view(only).await),
            None => Ok(Vec::new()),
        }
    }

    /// As [`Schedulers::usage`]; empty where this daemon stands by.
    ///
    /// # Errors
    /// When the schedulers of a store of its own have ended.
    pub async fn usage(&self) -> Result<BTreeMap<ProviderName, Usage>, StoreError> {
        match self.schedulers() {
            Some(schedulers) => self.unless_over(schedulers.usage().await),
            None => Ok(BTreeMap::new()),
        }
    }

    /// As [`Schedulers::ping`]; at once where this daemon stands by.
    ///
    /// # Errors
    /// When the schedulers of a store of its own have ended.
    pub async fn ping(&self) -> Result<(), StoreError> {
        match self.schedulers() {
            Some(schedulers) => self.unless_over(schedulers.ping().await),
            None => Ok(()),
        }
    }

    /// The circuit breakers as they are now; none where this daemon stands by.
    pub fn breakers(&self) -> Breakers {
        self.schedulers()
            .map(|schedulers| schedulers.breakers().borrow().clone())
            .unwrap_or_default()
    }

    /// As [`Schedulers::activities`]; `None` where this daemon stands by.
    pub fn activities(&self) -> Option<broadcast::Receiver<Arc<RunActivity>>> {
        self.schedulers().map(|schedulers| schedulers.activities())
    }

    /// Whether an error of the schedulers shows that this daemon does not lead any more.
    fn has_another_leader(&self, error: &StoreError) -> bool {
        self.store.is_shared() && matches!(error, StoreError::Closed | StoreError::Superseded)
    }

    fn unless_over<T: Default>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match result {
            Err(error) if self.has_another_leader(&error) => Ok(T::default()),
            result => result,
        }
    }
}
