//! What the statements of a server do to the row of the lease, for daemons in simulated time.

use crate::failpoint::mutant;
use crate::store::{Candidate, LeaseRow, Renewal, Term};

impl LeaseRow {
    /// A row of which no term began. A lease may be taken at once where `released`.
    pub fn new(ttl: std::time::Duration, released: bool) -> Self {
        Self {
            epoch: 0,
            renewals: 0,
            holder: None,
            holder_name: String::new(),
            version: String::new(),
            ttl,
            released,
            release_requested: false,
            state: String::new(),
            timeline: String::new(),
            is_promoted: false,
            now: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// Whether a term goes on. One ends with the timeline on which it began: what its leader knows may be missing on
    /// another one.
    pub fn is_of(&self, term: &Term) -> bool {
        (self.epoch, self.holder.as_ref()) == (term.epoch, Some(&term.holder))
            && (!self.is_promoted || mutant("lost-writes-count"))
    }

    /// Goes on as the row of a standby that is promoted.
    pub fn promote(&mut self, timeline: String) {
        self.is_promoted = self.holder.is_some();
        self.timeline = timeline;
    }

    /// Begins a term, where nothing changed since the row was `seen`.
    pub fn take(&mut self, seen: &Self, candidate: &Candidate) -> Option<Term> {
        if (self.epoch, self.renewals, &self.holder, &self.timeline)
            != (seen.epoch, seen.renewals, &seen.holder, &seen.timeline)
        {
            return None;
        }
        *self = Self {
            epoch: self.epoch + 1,
            holder: Some(candidate.holder.clone()),
            holder_name: candidate.name.clone(),
            version: candidate.version.clone(),
            timeline: std::mem::take(&mut self.timeline),
            now: self.now,
            ..Self::new(candidate.ttl, false)
        };
        Some(Term {
            epoch: self.epoch,
            holder: candidate.holder.clone(),
        })
    }

    /// Renews the lease in a term.
    pub fn renew(&mut self, term: &Term, state: &str) -> Renewal {
        if !self.is_of(term) {
            return Renewal::Superseded;
        }
        self.renewals += 1;
        state.clone_into(&mut self.state);
        Renewal::Confirmed {
            now: self.now,
            release_requested: self.release_requested,
        }
    }

    /// Releases the lease of a term. Returns whether that term went on.
    pub fn release(&mut self, term: &Term) -> bool {
        self.released |= self.is_of(term);
        self.is_of(term)
    }

    /// Requests the leader in the term of this number to release the lease. Returns whether that term goes on.
    pub fn request_release(&mut self, epoch: i64) -> bool {
        self.release_requested |= self.epoch == epoch;
        self.epoch == epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::HolderId;

    #[test]
    fn a_lease_of_another_holder_or_timeline_with_the_same_numbers_is_not_taken() {
        let ttl = std::time::Duration::from_secs(15);
        let [one, other, next] = ["one", "other", "next"].map(|name| Candidate {
            holder: HolderId::random(),
            name: name.to_owned(),
            version: "1".to_owned(),
            ttl,
        });
        let never = LeaseRow::new(ttl, true);
        let (mut seen, mut row) = (never.clone(), never.clone());
        seen.take(&never, &one).unwrap();
        row.take(&never, &other).unwrap();
        assert_eq!((row.epoch, row.renewals), (seen.epoch, seen.renewals));
        assert_eq!(row.take(&seen, &next), None);
        assert_eq!(row.holder, Some(other.holder));
        let before = row.clone();
        row.promote("1".to_owned());
        assert_eq!(row.take(&before, &next), None);
        assert_eq!(row.take(&row.clone(), &next).unwrap().epoch, 2);
    }
}
