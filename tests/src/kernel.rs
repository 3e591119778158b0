//! The kernel that the tests run on.

/// Is it of this version, or later?
pub fn is_since(major: u32, minor: u32) -> bool {
    version_of(&rustix::system::uname().release().to_string_lossy()) >= (major, minor)
}

/// The first two numbers of a release, as in `6.1.0-56-amd64`.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version_of("6.1.0-56-amd64"), (6, 1));
        assert!(version_of("5.10.0-46-amd64") > (5, 9));
        assert_eq!(version_of("7"), (7, 0));
    }
}
