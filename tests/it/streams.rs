//! Event streams: an end is seen at once where they work, and as soon as without them where they do not.

mod faults;
mod follow;
pub(crate) mod paused;
mod schedule;
