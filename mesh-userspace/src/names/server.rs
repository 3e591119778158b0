//! UDP and TCP on port 53 of this node's overlay addresses.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::Type;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::AbortHandle,
    time::timeout,
};

use super::Resolver;
use crate::{
    docker::GATEWAY,
    host::MESH0,
    peers::{Listeners, Place, Roster, Service, bind, bind_tcp},
};

const PORT: u16 = 53;
const SERVICE: Service = Service { part: "names", port: PORT, outcome: "names are not answered" };
/// After a client that could not be taken.
const RETRY: Duration = Duration::from_secs(1);
/// Questions at once; what comes beyond that is lost, as on a network.
const AT_ONCE: usize = 1024;
/// A client that says nothing for longer is done.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one TCP client.
const PER_CLIENT: usize = 1024;

/// Listens on whatever overlay addresses this host has, to whom the names are for: the host itself,
/// the mesh, the bridges that are attached to it, and Docker's way out of its other networks.
pub async fn run(resolver: Resolver) {
    let listeners = Listeners::new(SERVICE, &resolver.shared);
    let interfaces = |roster: &Roster| {
        let own = ["lo", MESH0, GATEWAY].into_iter().map(str::to_owned);
        own.chain(roster.bridges.iter().cloned()).collect()
    };
    listeners.run(interfaces, |place| listen(&resolver, place)).await;
}

fn listen(resolver: &Resolver, place: &Place) -> io::Result<AbortHandle> {
    let udp = UdpSocket::from_std(bind(place, PORT, Type::DGRAM)?.into())?;
    let tcp = bind_tcp(place, PORT)?;
    let (for_udp, for_tcp) = (resolver.clone(), resolver.clone());
    Ok(tokio::spawn(async move {
        tokio::select! {
            () = serve_udp(for_udp, udp) => {}
            () = serve_tcp(for_tcp, tcp) => {}
        }
    })
    .abort_handle())
}

async fn serve_udp(resolver: Resolver, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is that of an answer that did not arrive.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(permit) = at_once.clone().try_acquire_owned() else { continue };
        let (resolver, socket, question) =
            (resolver.clone(), socket.clone(), buffer[..len].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&question, from.ip().to_canonical(), true).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

async fn serve_tcp(resolver: Resolver, listener: TcpListener) {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = at_once.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::debug!("the resolver takes no client: {e}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(e) = serve_client(resolver, stream, from).await {
                tracing::debug!("a client of the resolver: {e}");
            }
            drop(permit);
        });
    }
}

async fn serve_client(
    resolver: Resolver,
    mut stream: TcpStream,
    from: SocketAddr,
) -> io::Result<()> {
    for _ in 0..PER_CLIENT {
        let mut question = Vec::new();
        let read = async {
            let len = stream.read_u16().await?;
            question.resize(usize::from(len), 0);
            stream.read_exact(&mut question).await
        };
        match timeout(IDLE, read).await? {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            done => drop(done?),
        }
        let answer = resolver.answer(&question, from.ip().to_canonical(), false).await;
        let Some(answer) = answer else { return Ok(()) };
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let whole = [&len.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, stream.write_all(&whole)).await??;
    }
    Ok(())
}
