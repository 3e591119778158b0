//! What goes over the agent's socket: one line of JSON each way. With `attach` the namespace comes
//! along as a descriptor, since a path or a pid may mean another thing to the agent.

use serde::{Deserialize, Serialize};

use crate::host::{AttachRequest, Attached, Status};

/// Longest line in bytes.
pub const MAX_REQUEST: usize = 16 << 10;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    Attach(AttachRequest),
    Detach { name: String },
    Down,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Attached(Box<Attached>),
    Done,
    Error(String),
}
