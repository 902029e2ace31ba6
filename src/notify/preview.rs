//! What a sink would send, for people to look at before anything is sent.

use std::collections::BTreeMap;

use serde::Serialize;

/// One message, as its sink would send it, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// What would be done, and with what: the method and the address of a request, a program, a file.
    pub target: String,
    /// Headers of a request, variables of a program, or parts of a notification, by name.
    pub fields: BTreeMap<String, String>,
    /// The content.
    pub body: String,
}
