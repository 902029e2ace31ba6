//! How long runs of a group took that succeeded. [`super::steps`] adds to them.

use super::rows::get;
use super::sql::{Db, Perform, parameters};
use crate::domain::ProviderName;
use crate::store::model::StoreError;
use crate::store::operations::{Durations, DurationsOf};
use crate::store::records::{from_json, unreadable};

/// The durations of the groups of a provider.
pub(super) const OF_PROVIDER: &str = "SELECT run_group, ran_ms FROM runwatch.past_durations
    WHERE provider = $1 ORDER BY newest_at, run_group";

/// The durations of some groups. Each is looked up in the index, however many there are.
pub(super) const OF_GROUPS: &str = "SELECT wanted.provider, wanted.run_group, d.ran_ms
    FROM unnest($1::text[], $2::text[]) AS wanted (provider, run_group)
    JOIN LATERAL (SELECT ran_ms FROM runwatch.past_durations p
        WHERE p.provider = wanted.provider AND p.run_group = wanted.run_group LIMIT 1) AS d ON true";

impl Perform for DurationsOf {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let provider = self.provider.as_str();
        db.read_all(OF_PROVIDER, parameters![provider], |row| {
            Ok((get(row, 0)?, from_json("durations", get(row, 1)?)?))
        })
        .await
    }
}

impl Perform for Durations {
    const PIPELINED: bool = true;

    async fn perform(&self, db: &Db<'_>) -> Result<Self::Reply, StoreError> {
        let (providers, groups): (Vec<_>, Vec<_>) = self
            .groups
            .iter()
            .map(|(provider, group)| (provider.as_str(), group.as_str()))
            .unzip();
        db.read_all(OF_GROUPS, parameters![providers, groups], |row| {
            let provider = ProviderName::new(get::<&str>(row, 0)?);
            let provider = provider.map_err(|error| unreadable("an ID", &error))?;
            Ok((
                (provider, get(row, 1)?),
                from_json("durations", get(row, 2)?)?,
            ))
        })
        .await
    }
}
