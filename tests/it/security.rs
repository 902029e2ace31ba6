//! What must never happen, however it is tried: a secret that shows, a hostile text that acts, a caller of
//! the control interface who reaches what is not configured.

mod hostile;
mod process;
mod reach;
mod secrets;
