//! What listens on this node's overlay addresses, which come and go with the config file.
//!
//! Each listener is for one interface: the kernel hands it nothing that came in by another. The underlay
//! and the bridges of strangers find a closed port, or get no answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::{net::TcpListener, sync::watch, time::sleep};

use super::{Roster, Shared};
use crate::{faults::Faults, net, supervise::Task};

/// Between two looks at what nobody tells of: ports that became free.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two looks, however much happens.
const SETTLE: Duration = Duration::from_millis(20);
/// An address may be taken up a little before the interface has it.
const ADDRESS_LATE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// What is served.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Whose faults they are.
    pub part: &'static str,
    pub port: u16,
    /// What does not work where it can not listen.
    pub outcome: &'static str,
}

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub address: IpAddr,
    pub interface: String,
    /// The interface's index: a new one of the same name has another.
    pub index: u32,
}

/// Where the answers of a listener leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// By its interface.
    SameInterface,
    /// Where the route to the client leads.
    AnyRoute,
}

/// The listeners of one service.
pub struct Listeners {
    service: Service,
    roster: watch::Receiver<Roster>,
    looks: watch::Receiver<u64>,
    faults: Faults,
    tasks: HashMap<Place, Task>,
    /// Since when an address can not be listened on.
    failing: BTreeMap<IpAddr, Instant>,
}

impl Listeners {
    pub fn new(service: Service, shared: &Shared) -> Self {
        Self {
            service,
            roster: shared.roster.subscribe(),
            looks: shared.looks.subscribe(),
            faults: shared.faults.clone(),
            tasks: HashMap::new(),
            failing: BTreeMap::new(),
        }
    }

    /// Keeps a listener on each of this node's addresses and each of these interfaces that there is.
    /// Returns only if nothing more will change.
    pub async fn run(
        mut self,
        interfaces: impl Fn(&Roster) -> Vec<String>,
        open: impl Fn(&Place) -> io::Result<Task>,
    ) {
        loop {
            let wanted = {
                let roster = self.roster.borrow_and_update();
                places(&roster.addresses, &interfaces(&roster))
            };
            self.looks.borrow_and_update();
            let mut failed = Vec::new();
            let missing = self.missing(wanted);
            let holders = holders(&missing, self.service.port).await;
            for place in missing {
                let is_taken = holders.contains_key(&place.address);
                let opened =
                    if is_taken { Err(io::ErrorKind::AddrInUse.into()) } else { open(&place) };
                match opened {
                    Ok(task) => drop(self.tasks.insert(place, task)),
                    Err(e) => failed.push((place, e)),
                }
            }
            self.tell(&failed, &holders);
            sleep(SETTLE).await;
            tokio::select! {
                changed = self.roster.changed() => if changed.is_err() { return },
                changed = self.looks.changed() => if changed.is_err() { return },
                () = sleep(PERIOD) => {}
            }
        }
    }

    /// Ends those that are not wanted, and returns the places that have none.
    fn missing(&mut self, mut wanted: Vec<Place>) -> Vec<Place> {
        self.tasks.retain(|place, _| wanted.contains(place));
        wanted.retain(|place| !self.tasks.contains_key(place));
        wanted
    }

    fn tell(&mut self, failed: &[(Place, io::Error)], holders: &Holders) {
        self.failing.retain(|address, _| failed.iter().any(|(place, _)| place.address == *address));
        let mut faults = BTreeMap::new();
        for (place, error) in failed {
            let since = *self.failing.entry(place.address).or_insert_with(Instant::now);
            let is_late = error.kind() == io::ErrorKind::AddrNotAvailable;
            if !is_late || since.elapsed() > ADDRESS_LATE {
                let holder = holders.get(&place.address);
                let fault = || self.service.fault(place, error, holder);
                faults.entry(place.address.to_string()).or_insert_with(fault);
            }
        }
        self.faults.set_all(self.service.part, faults);
    }
}

impl Service {
    /// What a listener's task is called.
    pub fn task(&self, place: &Place) -> String {
        let (part, Place { address, interface, .. }) = (self.part, place);
        format!("{part} on {address} at {interface}")
    }

    fn fault(&self, place: &Place, error: &io::Error, holder: Option<&Holder>) -> String {
        let Self { port, outcome, .. } = *self;
        let address = place.address;
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let remedy = remedy(holder.map(|(name, _)| name.as_str()), address);
                let holder = holder.map_or_else(
                    || "another program".to_owned(),
                    |(name, pid)| format!("{name} (process {pid})"),
                );
                format!(
                    "port {port} of {address} is taken by {holder}, so that {outcome}: {remedy}. It \
                     is tried again each {} s",
                    PERIOD.as_secs()
                )
            }
            _ => format!(
                "port {port} of {address} on {} can not be listened on ({error}), so that {outcome}; \
                 it is tried again each {} s",
                place.interface,
                PERIOD.as_secs()
            ),
        }
    }
}

/// Another program that has a port: its name and process id.
type Holder = (String, u32);
type Holders = BTreeMap<IpAddr, Holder>;

/// Who has the port of these places. Looks at all sockets of the host, and where the port is taken at all
/// processes: that takes its time, on a thread of its own.
async fn holders(places: &[Place], port: u16) -> Holders {
    let addresses: BTreeSet<IpAddr> = places.iter().map(|place| place.address).collect();
    if addresses.is_empty() {
        return Holders::new();
    }
    let holder = move |ip: IpAddr| Some((ip, net::port_holder(ip, port)?));
    let look = move || addresses.into_iter().filter_map(holder).collect();
    // Who is in the way of bind(2) is said by that, too.
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// How a program that listens on every address is made to leave one alone.
fn remedy(holder: Option<&str>, address: IpAddr) -> String {
    match holder {
        Some("dnsmasq") => "give it `bind-dynamic` and `except-interface=mesh0`".into(),
        Some("systemd-resolve" | "systemd-resolved") => {
            "take the address out of DNSStubListenerExtra= in resolved.conf".into()
        }
        Some("named") => "list other addresses in its `listen-on` and `listen-on-v6`".into(),
        Some("unbound") => "list other addresses in its `interface`".into(),
        _ => format!("end it, or let it listen on other addresses than {address}"),
    }
}

/// Each address on each interface that there is.
fn places(addresses: &[IpAddr], interfaces: &[String]) -> Vec<Place> {
    let mut places = Vec::new();
    for interface in interfaces {
        let Some(index) = net::interface_index(interface) else { continue };
        places.extend(addresses.iter().map(|address| Place {
            address: *address,
            interface: interface.clone(),
            index,
        }));
    }
    places
}

/// A socket on a port of this place, which does not block.
///
/// # Errors
///
/// Those of bind(2).
pub fn bind(place: &Place, port: u16, kind: Type, answers: Answers) -> io::Result<Socket> {
    let address = SocketAddr::new(place.address, port);
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match answers {
        Answers::SameInterface => socket.bind_device(Some(place.interface.as_bytes()))?,
        Answers::AnyRoute => socket.attach_filter(&only_from(place.index))?,
    }
    // To the kernel, one that is bound to no interface is in the way of those that are. Another process of
    // root's may do the same, and would share out the clients: [`holders`] looks before.
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // What was accepted by an agent before may linger.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
    } else {
        socket.bind(&address.into())?;
    }
    Ok(socket)
}

/// The same for TCP.
pub fn bind_tcp(place: &Place, port: u16, answers: Answers) -> io::Result<TcpListener> {
    TcpListener::from_std(bind(place, port, Type::STREAM, answers)?.into())
}

/// TCP listeners of one port of which some are bound to no interface.
///
/// While such a one shares its port, the kernel may hand it what is for one that is bound, as it takes the
/// first that shares its port and fits at all (`inet_lhash2_lookup` of Linux). Only one that does not share
/// it gives way to those that fit better. So it does only while another is bound.
#[derive(Debug, Default)]
pub struct TcpListeners(Mutex<Vec<(IpAddr, Weak<TcpListener>)>>);

impl TcpListeners {
    /// A listener on a port of this place.
    ///
    /// # Errors
    ///
    /// Those of [`bind`].
    pub fn bind(&self, place: &Place, port: u16, answers: Answers) -> io::Result<Arc<TcpListener>> {
        // Every change is one insertion or removal.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, listener)| listener.strong_count() > 0);
        let own = all.iter().filter(|(address, _)| *address == place.address);
        // One of an interface that is gone may be there for a little longer.
        let unbound: Vec<_> = own.filter_map(|(_, listener)| listener.upgrade()).collect();
        let share = |shares| {
            unbound.iter().try_for_each(|other| SockRef::from(&**other).set_reuse_port(shares))
        };
        let bound = share(true).and_then(|()| bind_tcp(place, port, answers));
        share(false)?;
        let listener = Arc::new(bound?);
        if answers == Answers::AnyRoute {
            SockRef::from(&*listener).set_reuse_port(false)?;
            all.push((place.address, Arc::downgrade(&listener)));
        }
        Ok(listener)
    }
}

/// A UDP socket that answers from this port of an address, where the route to the client leads. It hears
/// nobody.
///
/// # Errors
///
/// Those of bind(2).
pub fn answering(address: IpAddr, port: u16) -> io::Result<Socket> {
    let from = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&[DROP])?;
    socket.bind(&from.into())?;
    // One that is connected hears its peer alone: for others the port is as closed as without it.
    socket.connect(&SocketAddr::new(address, DISCARD).into())?;
    Ok(socket)
}

/// Nobody sends from it (RFC 863).
const DISCARD: u16 = 9;

const fn instruction(code: u32, (jt, jf): (u8, u8), k: u32) -> SockFilter {
    SockFilter::new(code as u16, jt, jf, k)
}

const DROP: SockFilter = instruction(libc::BPF_RET | libc::BPF_K, (0, 0), 0);

/// Takes packets that came in by the interface of this index, and drops all others (classic BPF;
/// SKF_AD_IFINDEX of linux/filter.h). What the host sends itself comes by `lo`, but is handed to who
/// listens on the interface that has the address.
fn only_from(index: u32) -> [SockFilter; 5] {
    const AD_IFINDEX: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX) as u32;
    const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), AD_IFINDEX),
        instruction(EQUALS, (1, 0), index),
        instruction(EQUALS, (0, 1), LOOPBACK_INDEX),
        instruction(libc::BPF_RET | libc::BPF_K, (0, 0), u32::MAX),
        DROP,
    ]
}

/// In each network namespace (LOOPBACK_IFINDEX of net/flow.h).
const LOOPBACK_INDEX: u32 = 1;

/// Ends a connection at once, and leaves nothing of it behind in the kernel.
pub fn refuse(stream: tokio::net::TcpStream) {
    // Else the kernel would keep it for a minute, for a peer that may never answer.
    _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Service = Service { part: "x", port: 53, outcome: "nothing works" };

    fn place() -> Place {
        Place { address: "127.0.0.1".parse().unwrap(), interface: "lo".into(), index: 1 }
    }

    #[test]
    fn a_place_is_an_address_on_an_interface_that_there_is() {
        let own = place();
        let there = places(&[own.address], &["lo".into(), "mesh-nowhere".into()]);
        assert_eq!(there, [own]);
    }

    #[test]
    fn a_busy_port_is_said_with_who_has_it_and_what_to_do() {
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        let fault = SERVICE.fault(&place(), &error, Some(&("dnsmasq".into(), 7)));
        assert!(
            fault.starts_with("port 53 of 127.0.0.1 is taken by dnsmasq (process 7)"),
            "{fault}"
        );
        assert!(fault.contains("so that nothing works"), "{fault}");
        assert!(remedy(Some("dnsmasq"), place().address).contains("except-interface"));
        assert!(remedy(None, place().address).contains("127.0.0.1"));
    }

    #[tokio::test]
    async fn one_that_is_bound_to_no_interface_takes_nothing_from_those_that_are() {
        for address in ["127.0.0.53", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let free = std::net::TcpListener::bind((address, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let at = |interface: &str, index| Place { address, interface: interface.into(), index };
            let listeners = TcpListeners::default();
            let bind = |place: &Place, answers| listeners.bind(place, port, answers).unwrap();
            let is_taken_by = async |listener: &TcpListener| {
                let limit = Duration::from_secs(1);
                let to = (address, port).into();
                std::net::TcpStream::connect_timeout(&to, limit).is_ok()
                    && tokio::time::timeout(limit, listener.accept()).await.is_ok()
            };
            let first = bind(&at("lo", 1), Answers::SameInterface);
            let unbound = bind(&at("mesh-a", 9998), Answers::AnyRoute);
            assert!(is_taken_by(&first).await, "{address}: the bound one first");
            // Made anew, before the one before it is gone.
            let anew = bind(&at("mesh-b", 9999), Answers::AnyRoute);
            drop(unbound);
            assert!(is_taken_by(&first).await, "{address}: made anew");
            drop(first);
            // As what the host asks itself at an address of another interface.
            assert!(is_taken_by(&anew).await, "{address}: nobody else is there");
            let later = bind(&at("lo", 1), Answers::SameInterface);
            assert!(is_taken_by(&later).await, "{address}: the bound one last");
        }
    }

    #[test]
    fn an_address_that_is_late_is_no_fault_at_first() {
        let shared =
            Shared::new(super::super::Directory::new("h".into(), 1, vec![]), Faults::default());
        let (mut listeners, none) = (Listeners::new(SERVICE, &shared), Holders::new());
        listeners.tell(&[(place(), io::ErrorKind::AddrNotAvailable.into())], &none);
        assert_eq!(shared.faults.now(), [""; 0]);
        listeners.tell(&[(place(), io::ErrorKind::PermissionDenied.into())], &none);
        assert_eq!(shared.faults.now().len(), 1);
        listeners.tell(&[], &none);
        assert_eq!(shared.faults.now(), [""; 0]);
    }
}
