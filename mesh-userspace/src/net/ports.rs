//! UDP ports that are taken.

use std::{collections::BTreeSet, fs, io};

/// The UDP ports that are listened on in this thread's network namespace, by whoever. The kernel's
/// tunnels are among them also where their interface was moved to another namespace, as Docker's
/// are: their socket stays where they were made.
pub fn udp_listeners() -> io::Result<BTreeSet<u16>> {
    let mut ports = parse(&fs::read_to_string("/proc/thread-self/net/udp")?);
    match fs::read_to_string("/proc/thread-self/net/udp6") {
        Ok(text) => ports.extend(parse(&text)),
        // The kernel has no IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(ports)
}

/// Local ports of the sockets that hear from everybody, in a table as proc_net_udp(5) has it: a line
/// of headings, then `sl local_address rem_address ...`, each address in hexadecimal as `IP:PORT`.
fn parse(table: &str) -> BTreeSet<u16> {
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let listener = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (port(fields.next()?)?, port(fields.next()?)?);
        (remote == 0).then_some(local)
    };
    table.lines().skip(1).filter_map(listener).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn ports_are_read_from_the_kernels_tables() {
        let v4 = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
            7608: 00000000:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5404481 2 000000005aecc758 0\n \
            7609: 0100007F:9C40 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 5404482 2 000000005aecc759 0\n";
        assert_eq!(parse(v4), [4789].into(), "one that is connected hears from one only");
        let v6 = "heading\n 7608: 00000000000000000000000000000000:17C1 \
            00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 5402566 2 0 0\n";
        assert_eq!(parse(v6), [6081].into());
        assert_eq!(parse(""), BTreeSet::new());
    }

    #[test]
    fn a_socket_of_this_process_is_seen() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(udp_listeners().unwrap().contains(&port));
        drop(socket);
        assert!(!udp_listeners().unwrap().contains(&port));
    }
}
