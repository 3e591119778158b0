//! What is wrong with a config file, and where.

use std::fmt;

use serde::{Serialize, Serializer};

/// One fault of a config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// From 1; 0 if the fault has no place in the file, which JSON shows as `null`.
    #[serde(serialize_with = "null_if_zero")]
    pub line: usize,
    /// In characters, from 1; 0 as for the line.
    #[serde(serialize_with = "null_if_zero")]
    pub column: usize,
    /// The way to the value, such as `node[1].subnet`, counted from 0; empty for the file itself.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

fn null_if_zero<S: Serializer>(n: &usize, to: S) -> Result<S::Ok, S::Error> {
    (*n != 0).then_some(n).serialize(to)
}

/// `LINE:COLUMN: key: message`, as compilers write it.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line != 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All faults of a file, in the order of their places. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Faults(pub Vec<Fault>);

/// One a line.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
