//! Drivers of network cards.

use std::io;

use super::ethtool::{ask, text};

/// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 3;

/// The driver of an interface of this thread's namespace: `virtio_net`, `veth`, ...
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: command, name of the driver (32 bytes), and 160 bytes more.
    let mut info = [0; 49];
    info[0] = ETHTOOL_GDRVINFO;
    // SAFETY: that is all of the structure.
    unsafe { ask(interface, &mut info) }?;
    Ok(text(&info[1..9]))
}
