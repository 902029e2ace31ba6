//! How long a wait tries an API that it never reached.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How often the time is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Longest time between two looks that counts. After more the process or the machine slept, and a network needs time
/// to come back: the time begins again.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// The time left to reach an API that was never reached. Only time in which the process could poll counts.
#[derive(Debug)]
pub(super) struct ConnectGrace {
    within: Duration,
    used: Duration,
    looked_at: (Instant, Timestamp),
}

impl ConnectGrace {
    pub(super) fn new(within: Duration, now: Instant, wall: Timestamp) -> Self {
        Self {
            within,
            used: Duration::ZERO,
            looked_at: (now, wall),
        }
    }

    /// Takes in that it is `now`, and returns the time left.
    pub(super) fn look(&mut self, now: Instant, wall: Timestamp) -> Duration {
        let (before, wall_before) = self.looked_at;
        let passed = now.duration_since(before);
        // The clock of timers stands still while the machine sleeps; that on the wall does not.
        let by_wall = Duration::try_from(wall.duration_since(wall_before)).unwrap_or(passed);
        if passed.max(by_wall) > LONGEST_GAP {
            self.used = Duration::ZERO;
        } else {
            self.used += passed;
        }
        self.looked_at = (now, wall);
        self.left()
    }

    /// The time left as of the last look.
    pub(super) fn left(&self) -> Duration {
        self.within.saturating_sub(self.used)
    }

    /// When to look again.
    pub(super) fn looks_at(&self) -> Instant {
        self.looked_at.0 + self.left().min(LOOK)
    }
}

/// Why every answer of an API may be 404: the path of its address ends with the version that is added to it.
pub(super) fn wrong_path(base_url: &str, host: &str) -> Option<String> {
    let trimmed = base_url.trim_end_matches('/');
    let (rest, last) = trimmed.rsplit_once('/')?;
    let is_version = last.strip_prefix('v').is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    is_version.then(|| {
        format!(
            "{host} answers 404 to {trimmed}/v1/runs/...: api.base_url ends in /{last}; set it to {rest}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn looked(steps: &[(u64, u64)]) -> Duration {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut grace = ConnectGrace::new(SECOND * 30, start, wall);
        let (mut now, mut wall) = (start, wall);
        for (passed, by_wall) in steps {
            now += SECOND * u32::try_from(*passed).unwrap();
            wall = wall.checked_add(Duration::from_secs(*by_wall)).unwrap();
            grace.look(now, wall);
        }
        grace.left()
    }

    #[test]
    fn only_time_in_which_polls_can_be_made_counts() {
        assert_eq!(looked(&[(1, 1); 10]), SECOND * 20);
        assert_eq!(looked(&[(1, 1); 40]), Duration::ZERO);
        // The machine slept, or the process was stopped: it has all of the time again.
        let mut slept = vec![(1, 1); 29];
        slept.push((1, 3600));
        assert_eq!(looked(&slept), SECOND * 30);
        slept.pop();
        slept.extend([(600, 600), (1, 1)]);
        assert_eq!(looked(&slept), SECOND * 29);
    }

    #[test]
    fn an_address_that_ends_in_a_version_is_pointed_out() {
        let fix = wrong_path("https://api.crewship.dev/v1/", "api.crewship.dev").unwrap();
        assert!(
            fix.contains("ends in /v1; set it to https://api.crewship.dev"),
            "{fix}"
        );
        for right in [
            "https://api.crewship.dev",
            "https://example.org/crewship",
            "http://v1",
        ] {
            assert_eq!(wrong_path(right, "").filter(|_| right != "http://v1"), None);
        }
    }
}
