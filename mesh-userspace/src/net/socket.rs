//! The netlink socket: one request, its answer.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use rtnetlink::{
    Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
        NlasIterator,
    },
    packet_route::RouteNetlinkMessage,
    sys::AsyncSocket,
};

use super::{NetError, Refusal, netns};

/// A netlink socket. It speaks to the network namespace in which it was opened, wherever the thread
/// that uses it is. Clones share it. Must be made and used in a tokio runtime.
#[derive(Debug, Clone)]
pub struct Net {
    /// Another one, should the task behind it ever end.
    handle: Arc<Mutex<Handle>>,
    /// The last request was not answered in time.
    is_late: Arc<AtomicBool>,
    /// The namespace it is in, if not the agent's own.
    ns: Option<Arc<OwnedFd>>,
}

/// A request that the kernel leaves unanswered this long is given up. Answers take microseconds;
/// only requests that wait for the kernel's one rtnl lock on a very busy host take long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for those that follow, until one is answered: one piece of work makes many requests.
const LATE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a dump is repeated that others changed while it was read.
const DUMP_TRIES: u32 = 5;

impl Net {
    /// Speaks to the network namespace of this thread.
    pub fn here() -> Result<Self, NetError> {
        let handle = connect().map_err(|e| Refusal::from(e).during("open a netlink socket"))?;
        Ok(Self::of(handle, None))
    }

    /// Speaks to the network namespace `ns`. The agent stays where it is: a thread that lives only
    /// for this call enters the namespace. Needs CAP_SYS_ADMIN.
    pub fn in_netns(ns: BorrowedFd<'_>) -> Result<Self, NetError> {
        let attempt = "open a netlink socket in another network namespace";
        let handle = netns::inside(ns, connect).map_err(|e| Refusal::from(e).during(attempt))?;
        let ns = ns.try_clone_to_owned().map_err(|e| Refusal::from(e).during(attempt))?;
        Ok(Self::of(handle, Some(Arc::new(ns))))
    }

    fn of(handle: Handle, ns: Option<Arc<OwnedFd>>) -> Self {
        Self { handle: Arc::new(Mutex::new(handle)), is_late: Arc::default(), ns }
    }

    fn handle(&self) -> MutexGuard<'_, Handle> {
        // It is replaced whole.
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request. A socket that failed, whose task ended, is replaced.
    fn request(
        &self,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, Refusal> {
        let mut handle = self.handle();
        if let Ok(answers) = handle.request(request.clone()) {
            return Ok(answers);
        }
        tracing::warn!("the netlink socket failed, and is opened again");
        *handle = self.inside(connect).map_err(Refusal::from)?;
        handle.request(request).map_err(|_| Refusal::new(libc::EPIPE))
    }

    /// Runs `f` on a thread that is in this socket's namespace.
    pub(super) fn inside<T: Send>(
        &self,
        f: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> std::io::Result<T> {
        match &self.ns {
            None => f(),
            Some(ns) => netns::inside(ns.as_fd(), f),
        }
    }

    /// Sends a request that changes something, with `flags` beside the usual ones.
    pub(super) async fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Refusal> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one thing.
    pub(super) async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        // With an acknowledgement the exchange ends also if the answer can not be decoded.
        let (mut answers, _) = self.exchange(message, NLM_F_REQUEST | NLM_F_ACK).await?;
        Ok(answers.pop())
    }

    /// Asks for all things of a kind.
    pub(super) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut tries = 1;
        loop {
            let (answers, torn) =
                self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP).await?;
            // Where things never stop changing, an answer that is nearly right is better than none:
            // the next change makes the agent ask again.
            if !torn || tries == DUMP_TRIES {
                return Ok(answers);
            }
            tries += 1;
        }
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Refusal> {
        let is_late = self.is_late.load(Ordering::Relaxed);
        let limit = if is_late { LATE_TIMEOUT } else { ANSWER_TIMEOUT };
        let answer = tokio::time::timeout(limit, answer).await;
        self.is_late.store(answer.is_err(), Ordering::Relaxed);
        answer.map_err(|_| Refusal::new(libc::ETIMEDOUT))
    }

    /// The answers, and whether things changed while they were collected.
    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = pin!(self.request(request)?);
        let (mut things, mut torn) = (Vec::new(), false);
        loop {
            let answer = self.in_time(answers.next()).await?;
            let Some(answer) = answer else { return Err(Refusal::new(libc::EPIPE)) };
            torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(thing) => things.push(thing),
                NetlinkPayload::Error(e) => {
                    // The error is followed by the request's header, then by attributes
                    // (NETLINK_CAP_ACK keeps the request's body away).
                    refused(e.raw_code(), e.header.get(NLMSG_HEADER_LEN..))?;
                    return Ok((things, torn));
                }
                NetlinkPayload::Done(done) => {
                    refused(done.code, Some(&done.extended_ack))?;
                    return Ok((things, torn));
                }
                _ => return Err(Refusal::new(libc::ENOBUFS)),
            }
        }
    }
}

const NLMSG_HEADER_LEN: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// `code`: negative error number, anything else is success.
fn refused(code: i32, attributes: Option<&[u8]>) -> Result<(), Refusal> {
    if code >= 0 {
        return Ok(());
    }
    let says = NlasIterator::new(attributes.unwrap_or_default())
        .map_while(Result::ok)
        .find(|a| a.kind() == NLMSGERR_ATTR_MSG)
        .map(|a| String::from_utf8_lossy(a.value()).trim_end_matches('\0').to_owned());
    Err(Refusal { errno: -code, says })
}

fn connect() -> std::io::Result<Handle> {
    // Strict checking makes the kernel filter dumps, and refuse what it does not know.
    let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    let socket = connection.socket_mut().socket_mut();
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    // A dump may end with an error, and every request must end with something.
    connection.set_forward_done(true);
    connection.set_forward_ack(true);
    tokio::spawn(connection);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_found() {
        let mut attributes = vec![8, 0, 2, 0, 1, 0, 0, 0]; // NLMSGERR_ATTR_OFFS
        attributes.extend([7, 0, 1, 0, b'n', b'o', 0, 0]);
        let refusal = refused(-libc::EINVAL, Some(&attributes)).unwrap_err();
        assert_eq!(refusal, Refusal { errno: libc::EINVAL, says: Some("no".into()) });
    }

    #[tokio::test]
    async fn a_socket_whose_task_ended_is_opened_again() {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        drop(connection);
        let net = Net::of(handle, None);
        assert!(net.links().await.unwrap().iter().any(|link| link.name == "lo"));
    }

    #[tokio::test]
    async fn after_a_request_without_an_answer_others_are_not_waited_for_as_long() {
        let net = Net::here().unwrap();
        net.is_late.store(true, Ordering::Relaxed);
        let began = std::time::Instant::now();
        let late = net.in_time(std::future::pending::<()>()).await;
        assert_eq!(late, Err(Refusal::new(libc::ETIMEDOUT)));
        assert!(began.elapsed() < ANSWER_TIMEOUT / 2);
        net.links().await.unwrap();
        assert!(!net.is_late.load(Ordering::Relaxed));
    }

    #[test]
    fn an_acknowledgement_is_no_error() {
        assert_eq!(refused(0, None), Ok(()));
        assert_eq!(refused(-libc::ENODEV, None), Err(Refusal::new(libc::ENODEV)));
    }
}
