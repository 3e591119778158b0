//! UDP on port 53 of this node's overlay addresses, and where TCP clients come in.

use std::{io, sync::Arc, time::Duration};

use socket2::{Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::{Outcome, QUESTION_MAX, Resolver, clients::Clients};
use crate::{
    docker::GATEWAY,
    host::MESH0,
    peers::{Answers, Listeners, Place, Roster, Service, TcpListeners, answering, bind, refuse},
    supervise::{Supervisor, Task},
};

const PORT: u16 = 53;
const SERVICE: Service = Service { part: "names", port: PORT, outcome: "names are not answered" };
/// By it this host asks itself.
pub const LOOPBACK: &str = "lo";
/// After an error of a socket.
const RETRY: Duration = Duration::from_millis(100);

/// Listens on whatever overlay addresses this host has, to whom the names are for: the host itself,
/// the mesh, the bridges that are attached to it, and Docker's way out of its other networks.
pub async fn run(resolver: Resolver, supervisor: Supervisor) {
    let listeners = Listeners::new(SERVICE, &resolver.shared);
    let (clients, listening) = (Clients::default(), TcpListeners::default());
    let interfaces = |roster: &Roster| {
        let own = [LOOPBACK, MESH0, GATEWAY].into_iter().map(str::to_owned);
        own.chain(roster.bridges.iter().cloned()).collect()
    };
    let open = |place: &Place| listen(&resolver, (&clients, &listening), &supervisor, place);
    listeners.run(interfaces, open).await;
}

fn listen(
    resolver: &Resolver,
    (clients, listening): (&Clients, &TcpListeners),
    supervisor: &Supervisor,
    place: &Place,
) -> io::Result<Task> {
    let udp = Arc::new(udp(bind(place, PORT, Type::DGRAM, Answers::SameInterface)?)?);
    // Containers whose router is this host ask by mesh0, and have a route of their own back.
    let (answers, answering) = match place.interface.as_str() {
        MESH0 => (Answers::AnyRoute, Arc::new(self::udp(answering(place.address, PORT)?)?)),
        _ => (Answers::SameInterface, udp.clone()),
    };
    let tcp = listening.bind(place, PORT, answers)?;
    let (resolver, clients, what) = (resolver.clone(), clients.clone(), SERVICE.task(place));
    let place = place.clone();
    Ok(supervisor.spawn(what, move || {
        let (resolver, clients, place) = (resolver.clone(), clients.clone(), place.clone());
        let (udp, answering, tcp) = (udp.clone(), answering.clone(), tcp.clone());
        async move {
            tokio::select! {
                () = serve_udp(&resolver, &udp, &answering, &place) => {}
                () = serve_tcp(&resolver, &clients, &tcp, &place) => {}
            }
        }
    }))
}

fn udp(socket: Socket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(socket.into())
}

/// What can be answered at once is, here and now: it needs no place beside what must wait.
async fn serve_udp(
    resolver: &Resolver,
    socket: &UdpSocket,
    answering: &Arc<UdpSocket>,
    place: &Place,
) {
    let mut buffer = [0; QUESTION_MAX + 1];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Most likely that of an answer that did not arrive.
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        match resolver.begin(&buffer[..len], resolver.caller(from.ip(), place, true)) {
            Outcome::Done(None) => {}
            // One that does not fit into the socket is lost, as on a network.
            Outcome::Done(Some(answer)) => drop(answering.try_send_to(&answer, from)),
            Outcome::Later(question, step, share) => {
                let (resolver, answering) = (resolver.clone(), answering.clone());
                tokio::spawn(async move {
                    if let Some(answer) = resolver.finish(question, step, share).await {
                        drop(answering.send_to(&answer, from).await);
                    }
                });
            }
        }
    }
}

async fn serve_tcp(resolver: &Resolver, clients: &Clients, listener: &TcpListener, place: &Place) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let asker = resolver.caller(from.ip(), place, false).asker;
                match clients.enter(asker) {
                    Some(entry) => entry.serve(resolver.clone(), stream, from.ip(), place.clone()),
                    None => refuse(stream),
                }
            }
            Err(e) => {
                tracing::debug!("a client of the resolver: {e}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
