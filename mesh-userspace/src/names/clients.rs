//! Clients of the resolver by TCP. Each asker may have a few connections, and all together some more;
//! one that says nothing makes room for one that has just come.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};

use super::{Outcome, QUESTION_MAX, Resolver, limits::Asker};
use crate::peers::{Place, refuse};

/// Of all askers together. Each has a descriptor.
const CLIENTS: usize = 128;
/// A client that says nothing for longer is done. So is one that takes longer to say it.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one client.
const PER_CLIENT: usize = 1024;

/// Who is connected. Clones share it.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    by_id: HashMap<u64, Client>,
}

struct Client {
    asker: Asker,
    /// Since when it says nothing; `None` while it is answered.
    idle: Option<Instant>,
    end: Arc<Notify>,
}

/// A client's place, until it is dropped.
pub struct Entry {
    clients: Clients,
    id: u64,
    end: Arc<Notify>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more of this asker's, perhaps that of one that is idle.
    pub fn enter(&self, asker: Asker) -> Option<Entry> {
        let mut table = self.lock();
        let own = table.count(asker);
        if own >= asker.clients() {
            table.end_idle(asker)?;
        } else if table.by_id.len() >= CLIENTS {
            let most = table.by_id.values().map(|c| c.asker).max_by_key(|a| table.count(*a))?;
            // Nobody with as few gives way.
            if table.count(most) <= own {
                return None;
            }
            table.end_idle(most)?;
        }
        table.last += 1;
        let (id, end) = (table.last, Arc::new(Notify::new()));
        let client = Client { asker, idle: Some(Instant::now()), end: end.clone() };
        table.by_id.insert(id, client);
        Some(Entry { clients: self.clone(), id, end })
    }
}

impl Table {
    fn count(&self, asker: Asker) -> usize {
        self.by_id.values().filter(|client| client.asker == asker).count()
    }

    /// Ends that client of an asker's that is idle for longest, if one is.
    fn end_idle(&mut self, asker: Asker) -> Option<()> {
        let own = self.by_id.iter().filter(|(_, client)| client.asker == asker);
        let idle = own.filter_map(|(id, client)| Some((client.idle?, *id)));
        let (_, id) = idle.min()?;
        self.by_id.remove(&id)?.end.notify_one();
        Some(())
    }
}

impl Entry {
    fn is_idle(&self, is_idle: bool) {
        if let Some(client) = self.clients.lock().by_id.get_mut(&self.id) {
            client.idle = is_idle.then(Instant::now);
        }
    }

    /// Answers its questions, from now on.
    pub fn serve(self, resolver: Resolver, mut stream: TcpStream, source: IpAddr, place: Place) {
        tokio::spawn(async move {
            let served = tokio::select! {
                served = self.answer(&resolver, &mut stream, source, &place) => served,
                () = self.end.notified() => Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(e) = served {
                tracing::debug!("a client of the resolver: {e}");
                refuse(stream);
            }
        });
    }

    async fn answer(
        &self,
        resolver: &Resolver,
        stream: &mut TcpStream,
        source: IpAddr,
        place: &Place,
    ) -> io::Result<()> {
        for _ in 0..PER_CLIENT {
            self.is_idle(true);
            let Some(question) = timeout(IDLE, read(stream)).await?? else { return Ok(()) };
            self.is_idle(false);
            let caller = resolver.caller(source, place, false);
            let answer = match resolver.begin(&question, caller) {
                Outcome::Done(answer) => answer,
                Outcome::Later(question, step, share) => {
                    resolver.finish(question, step, share).await
                }
            };
            let Some(answer) = answer else { return Ok(()) };
            let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let whole = [&len.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, stream.write_all(&whole)).await??;
        }
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.lock().by_id.remove(&self.id);
    }
}

/// The next question; `None` at the end.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u16().await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        len => usize::from(len?),
    };
    if len > QUESTION_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a question that long"));
    }
    let mut question = vec![0; len];
    stream.read_exact(&mut question).await?;
    Ok(Some(question))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(n: u8) -> Asker {
        Asker::Known([10, 0, 9, n].into())
    }

    #[test]
    fn idle_clients_make_room_first_their_own_askers() {
        let clients = Clients::default();
        let mut held: Vec<_> = (0..8).map(|_| clients.enter(asker(1)).unwrap()).collect();
        held.iter().for_each(|entry| entry.is_idle(false));
        assert!(clients.enter(asker(1)).is_none(), "all of them are busy");
        held[3].is_idle(true);
        held.push(clients.enter(asker(1)).unwrap());
        assert!(!clients.lock().by_id.contains_key(&held[3].id));
        assert_eq!(clients.lock().count(asker(1)), 8);
        held.clear();
        assert!(clients.lock().by_id.is_empty());
    }

    #[test]
    fn where_all_places_are_taken_who_has_most_gives_way() {
        let clients = Clients::default();
        let full: Vec<_> = (0..16)
            .flat_map(|n| (0..8).map(move |_| n))
            .filter_map(|n| clients.enter(asker(n)))
            .collect();
        assert_eq!(full.len(), CLIENTS);
        let new = clients.enter(asker(99)).unwrap();
        assert_eq!(clients.lock().by_id.len(), CLIENTS);
        assert_eq!(clients.lock().count(asker(99)), 1);
        full.iter().for_each(|entry| entry.is_idle(false));
        assert!(clients.enter(asker(98)).is_none(), "nobody is idle but who has fewest");
        drop(new);
        assert!(clients.enter(asker(98)).is_some());
    }
}
