//! Observations: what one usable answer reports about a run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{JsonText, Status, UsualDuration};

/// One usable answer about one run.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The status.
    pub status: Status,
    /// Everything else that the answer contains.
    pub details: RunDetails,
}

/// What is known of a run besides its status. Absent and `null` are the same.
///
/// `input` and `output` are kept as the JSON text the API sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunDetails {
    /// `version_id` (current documentation) of the deployment's version.
    pub version_id: Option<String>,
    /// `deployment_id`.
    pub deployment_id: Option<String>,
    /// Name of the project (older documentation).
    pub project: Option<String>,
    /// The input the run was created with.
    pub input: Option<JsonText>,
    /// The final output of a run that succeeded.
    pub output: Option<JsonText>,
    /// Why the run failed.
    pub error_message: Option<String>,
    /// When the run was created.
    pub created_at: Option<Timestamp>,
    /// When execution started.
    pub started_at: Option<Timestamp>,
    /// When the run ended.
    pub completed_at: Option<Timestamp>,
    /// How long execution took in milliseconds, if the API reports it (older documentation).
    pub duration_ms: Option<u64>,
    /// The attempt, for a provider that runs the same ID again: it grows with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What runs that are alike have in common: a workflow, a deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A word that says more than the status: why the run waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The address of the run's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Names of the fields that the answer has, or should have, and that could not be read: too large, not JSON, or
    /// cut off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// How long runs of its group usually take, as far as that is known. Not from the API, and not stored here.
    #[serde(skip)]
    pub usual: Option<UsualDuration>,
}

/// How long the parts of a run took, in milliseconds; `null` where the API gave no time, or nothing is usual yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From creation to start.
    pub queued_ms: Option<u64>,
    /// From start to end.
    pub ran_ms: Option<u64>,
    /// From the end of the run to our observing it. 0 when the API's clock is ahead of ours.
    pub detected_after_ms: Option<u64>,
    /// How long the runs of its group that succeeded usually take: the median.
    #[serde(default)]
    pub usual_ms: Option<u64>,
    /// As `usual_ms`, the 10th percentile.
    #[serde(default)]
    pub usual_p10_ms: Option<u64>,
    /// As `usual_ms`, the 90th percentile.
    #[serde(default)]
    pub usual_p90_ms: Option<u64>,
}

impl Timing {
    /// Computes the spans from the times the API gave and the time `now` of the observation.
    pub fn of(details: &RunDetails, now: Timestamp) -> Self {
        let span = |from: Option<Timestamp>, to: Option<Timestamp>| {
            let milliseconds = to?.as_millisecond().saturating_sub(from?.as_millisecond());
            Some(u64::try_from(milliseconds).unwrap_or(0))
        };
        Self {
            queued_ms: span(details.created_at, details.started_at),
            ran_ms: details
                .duration_ms
                .or_else(|| span(details.started_at, details.completed_at)),
            detected_after_ms: span(details.completed_at, Some(now)),
            usual_ms: details.usual.map(|usual| usual.median_ms),
            usual_p10_ms: details.usual.map(|usual| usual.p10_ms),
            usual_p90_ms: details.usual.map(|usual| usual.p90_ms),
        }
    }

    /// What is usual for runs of its group, where that is known.
    pub fn usual(&self) -> Option<UsualDuration> {
        Some(UsualDuration {
            p10_ms: self.usual_p10_ms?,
            median_ms: self.usual_ms?,
            p90_ms: self.usual_p90_ms?,
        })
    }
}
