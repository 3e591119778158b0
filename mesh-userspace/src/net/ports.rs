//! Ports that are taken.

use std::{collections::BTreeSet, fs, io, net::IpAddr};

use crate::shown::plain;

/// Of a process, in characters: the kernel gives 15 bytes.
const NAME_MAX: usize = 64;

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

/// The name and process id of who has this port of an address, by UDP or by TCP, in this thread's
/// network namespace. `None` if nobody has but this process, or it cannot be seen who.
pub fn port_holder(address: IpAddr, port: u16) -> Option<(String, u32)> {
    let tables = ["udp", "udp6", "tcp", "tcp6"];
    let inodes: BTreeSet<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|table| inodes(&table, address, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let mut links = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.to_str().is_some_and(|link| inodes.contains(link)))
    };
    let pid = pids.find(|pid| *pid != std::process::id() && has(pid))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((plain(name.trim(), NAME_MAX), pid))
}

/// The inodes of sockets in such a table that hear what is sent to this port of an address.
fn inodes(table: &str, address: IpAddr, port: u16) -> Vec<u64> {
    // Each 32 bits of an address are in the byte order of this machine.
    let words: Vec<[u8; 4]> = match address {
        IpAddr::V4(v4) => vec![v4.octets()],
        IpAddr::V6(v6) => v6.octets().as_chunks::<4>().0.to_vec(),
    };
    let own: String = words.iter().map(|w| format!("{:08X}", u32::from_ne_bytes(*w))).collect();
    let inode = |line: &str| -> Option<u64> {
        let mut fields = line.split_whitespace().skip(1);
        let (ip, its_port) = fields.next()?.rsplit_once(':')?;
        let is_any = ip.bytes().all(|digit| digit == b'0');
        let from_anyone = fields.next()?.ends_with(":0000");
        let is_it = u16::from_str_radix(its_port, 16) == Ok(port) && (is_any || ip == own);
        // After them: state, queues, timer, retransmissions, user, timeout.
        let inode = fields.nth(6)?.parse().ok()?;
        (is_it && from_anyone).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
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

    #[test]
    fn the_socket_in_the_way_is_found_by_its_address() {
        let table = "heading\n \
            7608: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11 2 0 0\n \
            7609: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12 2 0 0\n \
            7610: 0200007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 13 2 0 0\n \
            7611: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14 2 0 0\n \
            7612: 0100007F:0035 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 15 2 0 0\n";
        #[cfg(target_endian = "little")]
        assert_eq!(inodes(table, "127.0.0.1".parse().unwrap(), 53), [11, 12]);
        assert_eq!(inodes("heading\n 1: x y\n", "::1".parse().unwrap(), 53), [0; 0]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        // This process has it, which is none of those that are in its way.
        assert_eq!(port_holder(own.ip(), own.port()), None);
    }
}
