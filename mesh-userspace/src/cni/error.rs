//! Errors as CNI wants them told: a code, what is wrong, and how to mend it.

use serde_json::{Value, json};

/// Of the specification, "Well-known Error Codes"; from 100 on they are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    Version = 1,
    Unsupported = 2,
    UnknownContainer = 3,
    Environment = 4,
    Io = 5,
    Decode = 6,
    Config = 7,
    TryAgain = 11,
    /// `STATUS`: no container could be attached now.
    NotAvailable = 50,
    /// The host did not do what the agent wanted.
    Host = 100,
    /// `CHECK`: it is not as it was made.
    Changed = 101,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    pub code: Code,
    pub msg: String,
    /// The remedy, or the cause in the words of whoever said no.
    pub details: String,
}

impl CniError {
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub fn with(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    pub fn json(&self, version: &str) -> Value {
        let mut error = json!({"cniVersion": version, "code": self.code as u32, "msg": self.msg});
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        error
    }
}
