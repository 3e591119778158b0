//! Published ports at `[::1]`. The kernel lets packets to 127.0.0.1 leave by other interfaces than
//! `lo` where it is told to (`route_localnet`), and has no such setting for IPv6. So what asks there is
//! answered here, and asks the container in turn: the socket that holds the port takes connections.
//! Whatever comes by another address is rewritten before it gets to the socket.

use std::{
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use crate::{
    state::Proto,
    supervise::{Supervisor, Task},
};

const BACKLOG: i32 = 128;
/// Connections, or in UDP clients, of one port at a time.
const AT_ONCE: usize = 1024;
/// A client in UDP that got no answer for so long is forgotten.
const IDLE: Duration = Duration::from_secs(90);
/// After a connection that could not be taken, for want of descriptors.
const RETRY: Duration = Duration::from_secs(1);

/// From a socket to a container's port, until dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    to: SocketAddr,
    _task: Task,
}

impl Proxy {
    /// `socket`: bound.
    pub fn start(
        supervisor: &Supervisor,
        proto: Proto,
        socket: OwnedFd,
        to: SocketAddr,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let _made_there = supervisor.runtime().enter();
        let what = format!("a published port of {to}/{proto} at [::1]");
        let task = match proto {
            Proto::Tcp => {
                rustix::net::listen(&socket, BACKLOG)?;
                let listener = Arc::new(TcpListener::from_std(socket.into())?);
                supervisor.spawn(what, move || tcp(listener.clone(), to))
            }
            Proto::Udp => {
                let socket = Arc::new(UdpSocket::from_std(socket.into())?);
                supervisor.spawn(what, move || udp(socket.clone(), to))
            }
        };
        Ok(Self { to, _task: task })
    }

    pub fn leads_to(&self, to: SocketAddr) -> bool {
        self.to == to
    }
}

async fn tcp(listener: Arc<TcpListener>, to: SocketAddr) {
    // Ends with this, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= AT_ONCE {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((mut client, _)) => drop(connections.spawn(async move {
                // Refused, it is closed for the client too.
                if let Ok(mut server) = TcpStream::connect(to).await {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                }
            })),
            Err(e) => {
                tracing::debug!("{to} gets no connection: {e}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn udp(socket: Arc<UdpSocket>, to: SocketAddr) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answering = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        tokio::select! {
            Some(Ok(client)) = answering.join_next() => drop(clients.remove(&client)),
            received = socket.recv_from(&mut buffer) => {
                // An error is that of an answer that did not arrive.
                let Ok((len, client)) = received else { continue };
                let server = match clients.get(&client) {
                    Some(server) => server.clone(),
                    None if clients.len() >= AT_ONCE => continue,
                    None => {
                        let Ok(server) = connected(to).await else { continue };
                        answering.spawn(answer(server.clone(), socket.clone(), client));
                        clients.insert(client, server.clone());
                        server
                    }
                };
                let _ = server.send(&buffer[..len]).await;
            }
        }
    }
}

async fn connected(to: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    Ok(Arc::new(socket))
}

/// Returns the client, when it is done.
async fn answer(server: Arc<UdpSocket>, socket: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    while let Ok(received) = timeout(IDLE, server.recv(&mut buffer)).await {
        // An error is that of a question that did not arrive.
        if let Ok(len) = received {
            let _ = socket.send_to(&buffer[..len], client).await;
        }
    }
    client
}
