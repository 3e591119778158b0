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
        let what = task(proto, to);
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

/// What a proxy's task is called.
fn task(proto: Proto, to: SocketAddr) -> String {
    format!("the port of [::1] that leads to {to}/{proto}")
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

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        runtime::Handle,
    };

    use super::*;
    use crate::faults::Faults;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// What comes back of a byte that is sent there.
    async fn sent(proto: Proto, to: SocketAddr, byte: u8) -> io::Result<u8> {
        let mut back = [0];
        match proto {
            Proto::Tcp => {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(&[byte]).await?;
                stream.read_exact(&mut back).await?;
            }
            Proto::Udp => {
                let socket = connected(to).await?;
                socket.send(&[byte]).await?;
                socket.recv(&mut back).await?;
            }
        }
        Ok(back[0])
    }

    #[tokio::test]
    async fn after_a_panic_a_port_leads_to_its_container_again() {
        let tcp = TcpListener::bind("[::1]:0").await.unwrap();
        let udp = UdpSocket::bind("[::1]:0").await.unwrap();
        let at = [(Proto::Tcp, tcp.local_addr()), (Proto::Udp, udp.local_addr())];
        tokio::spawn(async move {
            while let Ok((mut one, _)) = tcp.accept().await {
                if let Ok(byte) = one.read_u8().await {
                    let _ = one.write_all(&[byte]).await;
                }
            }
        });
        tokio::spawn(async move {
            let mut byte = [0];
            while let Ok((_, from)) = udp.recv_from(&mut byte).await {
                let _ = udp.send_to(&byte, from).await;
            }
        });
        let faults = Faults::default();
        let supervisor = Supervisor::new(Handle::current(), faults.clone());
        for (proto, to) in at {
            let to = to.unwrap();
            let kind = if proto == Proto::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
            let socket =
                socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None).unwrap();
            bind(&socket, &SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).unwrap();
            let port = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
            let _proxy = Proxy::start(&supervisor, proto, socket, to).unwrap();
            assert_eq!(sent(proto, port, 7).await.unwrap(), 7);
            supervisor.panic_in(&task(proto, to));
            let again = async {
                while faults.now().is_empty() {
                    tokio::task::yield_now().await;
                }
                while !matches!(timeout(RETRY, sent(proto, port, 8)).await, Ok(Ok(8))) {}
            };
            timeout(DEADLINE, again).await.unwrap();
        }
    }
}
