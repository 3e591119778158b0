//! What can go wrong, why, and what to do about it.

use std::{fmt, io};

use ipnet::IpNet;
use thiserror::Error;

use super::{NetnsError, Route};

#[derive(Debug, Error)]
pub enum NetError {
    /// The kernel said no.
    #[error("cannot {attempt}: {refusal}")]
    Refused { attempt: String, refusal: Refusal },

    /// Somebody else's route to the same prefix. It is never replaced.
    #[error(
        "cannot route {dst} through {dev}: there is a route already: {}; \
         remove it (`ip route del {dst}`) or give the mesh other addresses", .holder
    )]
    RouteTaken { dst: IpNet, dev: String, holder: Box<Route> },

    /// A name that no interface can have.
    #[error("no interface can be named {name:?}: 1 to 15 bytes, without '/', ':' or blanks")]
    Name { name: String },

    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl NetError {
    /// The error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.errno),
            Self::RouteTaken { .. } | Self::Name { .. } | Self::Netns(_) => None,
        }
    }
}

/// The kernel's answer to a request that it did not grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in errno(3).
    pub errno: i32,
    /// The kernel's own words, where it has any (NLMSGERR_ATTR_MSG).
    pub says: Option<String>,
}

impl Refusal {
    pub(super) fn new(errno: i32) -> Self {
        Self { errno, says: None }
    }

    pub(super) fn is(&self, errnos: &[i32]) -> bool {
        errnos.contains(&self.errno)
    }

    pub(super) fn during(self, attempt: impl Into<String>) -> NetError {
        NetError::Refused { attempt: attempt.into(), refusal: self }
    }

    /// What mends it, where that does not depend on the attempt.
    fn remedy(&self) -> Option<&'static str> {
        Some(match self.errno {
            libc::EPERM => "run as root, or with the capability CAP_NET_ADMIN",
            libc::EACCES => {
                "run as root, or with the capability CAP_NET_ADMIN; \
                 for an IPv6 address: see `sysctl net.ipv6.conf.all.disable_ipv6`"
            }
            libc::ENODEV | libc::ENXIO => "the interface is gone: see `ip link`",
            libc::EEXIST => "that name or entry is taken: see `ip link` and `ip route`",
            libc::EOPNOTSUPP => {
                "this kernel lacks it: load the module (`modprobe veth`), \
                 or use a kernel that has it"
            }
            libc::ENETUNREACH | libc::EHOSTUNREACH => {
                "the gateway is not on a network of this interface, or the interface is down"
            }
            libc::ENOBUFS | libc::ENOMEM => "the kernel is out of memory for it",
            libc::ETIMEDOUT => "the kernel did not answer: `dmesg` may tell why",
            libc::EPIPE => "the netlink socket failed: it is opened again with the next request",
            _ => return None,
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(says) = &self.says {
            write!(f, ", the kernel says {says:?}")?;
        }
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::new(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_attempt_cause_and_remedy() {
        let refusal = Refusal { errno: libc::EPERM, says: Some("no way".into()) };
        let text = refusal.during("set the MTU of eth0 to 1476").to_string();
        assert_eq!(
            text,
            "cannot set the MTU of eth0 to 1476: Operation not permitted (os error 1), \
             the kernel says \"no way\"; run as root, or with the capability CAP_NET_ADMIN"
        );
    }
}
