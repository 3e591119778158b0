//! The kernel that the tests run on.

/// Is it of this version, or later?
pub fn is_since(major: u32, minor: u32) -> bool {
    version_of(&release()) >= (major, minor)
}

/// As `uname -r` prints it.
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Why a kernel of that release does not know netkit.
pub fn why_no_netkit(release: &str) -> String {
    if version_of(release) < (6, 7) {
        return format!(
            "this kernel has no netkit: it is of Linux 6.7 and later, and this is {release}"
        );
    }
    format!("this kernel has no netkit: Linux {release} is built without CONFIG_NETKIT here")
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

    #[test]
    fn a_new_kernel_without_netkit_is_not_called_old() {
        assert!(
            why_no_netkit("6.1.0-56-amd64").ends_with("6.7 and later, and this is 6.1.0-56-amd64")
        );
        let why = why_no_netkit("6.18.44-fc-v669");
        assert!(why.contains("built without CONFIG_NETKIT") && !why.contains("6.7"), "{why}");
    }
}
