//! What a look at everything could not put right, part by part: one that fails keeps no other from
//! being put right.

use std::collections::BTreeMap;

use super::HostError;
use crate::faults::Faults;

/// The faults' part of the agent.
const REFRESH: &str = "refresh";

#[derive(Debug, Default)]
pub(super) struct Parts {
    first: Option<HostError>,
    faults: BTreeMap<String, String>,
}

impl Parts {
    /// Notes how it went with a part. Returns what came of it.
    pub fn note<T>(&mut self, part: &str, done: Result<T, HostError>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(e) => {
                self.faults.insert(part.to_owned(), e.to_string());
                self.first.get_or_insert(e);
                None
            }
        }
    }

    /// Has just these under FAULTS until the next look. Returns the first.
    pub fn tell(self, faults: &Faults) -> Result<(), HostError> {
        faults.set_all(REFRESH, self.faults);
        self.first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_told_and_the_first_is_returned() {
        let faults = Faults::default();
        let mut parts = Parts::default();
        assert_eq!(parts.note("routes", Ok(7)), Some(7));
        for part in ["underlay", "maps"] {
            assert_eq!(parts.note::<()>(part, Err(HostError::User(format!("no {part}")))), None);
        }
        let first = parts.tell(&faults).unwrap_err();
        assert_eq!(first.to_string(), "no underlay");
        assert_eq!(faults.now(), ["no maps", "no underlay"]);
        Parts::default().tell(&faults).unwrap();
        assert!(faults.now().is_empty());
        assert_eq!(faults.past().len(), 2);
    }
}
