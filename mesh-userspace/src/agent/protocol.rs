//! What goes over the agent's socket: one line of JSON each way. With `attach` the namespace comes
//! along as a descriptor, since a path or a pid may mean another thing to the agent.

use serde::{Deserialize, Serialize};

use crate::host::{AttachRequest, Attached, HostError, Status};

/// Longest line in bytes: the names of 4095 attachments to keep fit.
pub const MAX_REQUEST: usize = 1 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status,
    Attach(Box<AttachRequest>),
    Detach {
        name: String,
    },
    /// Is an attachment still as it was made? With its namespace.
    Check {
        name: String,
    },
    /// Removes what was attached by way of this CNI network, but for those named.
    Collect {
        cni: String,
        keep: Vec<String>,
    },
    /// Can a container be attached to this network, or the cluster's own?
    Ready {
        network: Option<String>,
    },
    Down,
}

impl Request {
    /// What is to go, goes though nobody waits any more. All else is not done for a caller who was told
    /// that it failed, and may have asked for something else since.
    pub fn outlives_its_caller(&self) -> bool {
        matches!(self, Self::Detach { .. } | Self::Collect { .. })
    }

    /// What the agent does for it.
    pub fn work(&self) -> &'static str {
        match self {
            Self::Status => "telling its status",
            Self::Attach(_) => "attaching a container",
            Self::Detach { .. } => "detaching a container",
            Self::Check { .. } => "checking an attachment",
            Self::Collect { .. } => "removing what is of no container",
            Self::Ready { .. } => "telling whether it is ready",
            Self::Down => "taking the mesh down",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Attached(Box<Attached>),
    Done,
    Error(Failure),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: Kind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// What was asked for can not be; another request may be better.
    Refused,
    /// There is no such endpoint.
    Unknown,
    /// The agent ends, or has not heard yet of what was asked for.
    NotNow,
    /// The host did not do as it should.
    Fault,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl From<&HostError> for Failure {
    fn from(error: &HostError) -> Self {
        let kind = match error {
            HostError::User(_) => Kind::Refused,
            HostError::Unknown(_) => Kind::Unknown,
            _ => Kind::Fault,
        };
        Self::new(kind, error.to_string())
    }
}
