//! Being told of changes of tables of nftables.

use std::io;

use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};

use super::conntrack::{GENERAL, attributes, split};

/// NFNLGRP_NFTABLES, from linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// Of the table's name, in each kind of message that is about one: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE,
/// NFTA_RULE_TABLE and so on.
const TABLE: u16 = 1;
/// Of the message that ends each transaction, which names no table.
const NFT_MSG_NEWGEN: u16 = 15;
/// Some thousand rules; more may be missed, which is a change.
const QUEUE_BYTES: u32 = 1 << 20;

/// What is done to the tables of a namespace whose names begin so.
pub(super) struct Tables {
    socket: TokioSocket,
    datagram: Vec<u8>,
    prefix: &'static [u8],
}

impl Tables {
    /// In the namespace of this thread.
    pub fn subscribe(prefix: &'static str) -> io::Result<Self> {
        let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_NETFILTER)?;
        socket.socket_mut().set_rx_buf_sz(QUEUE_BYTES)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
        Ok(Self { socket, datagram: Vec::with_capacity(64 << 10), prefix: prefix.as_bytes() })
    }

    /// Returns when one of them was changed, or may have been. May be dropped while it waits.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            self.datagram.clear();
            match self.socket.recv_from(&mut self.datagram).await {
                Ok(_) if is_about(&self.datagram, self.prefix) => return Ok(()),
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Whether any message of the datagram is about a table whose name begins with `prefix`.
fn is_about(mut datagram: &[u8], prefix: &[u8]) -> bool {
    while let Some((kind, body, rest)) = split(datagram) {
        let mut attributes = attributes(body.get(GENERAL..).unwrap_or_default());
        // The lower byte of the type: the upper one says which part of netfilter it is from.
        if kind & 0xff != NFT_MSG_NEWGEN
            && attributes.any(|(kind, value)| kind == TABLE && value.starts_with(prefix))
        {
            return true;
        }
        datagram = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS_LEN: usize = 16 + GENERAL;

    fn message(kind: u16, name: &[u8]) -> Vec<u8> {
        let len = (HEADERS_LEN + 4 + name.len()) as u32;
        let attribute = [(4 + name.len() as u16).to_ne_bytes(), TABLE.to_ne_bytes()].concat();
        let kind = (10 << 8 | kind).to_ne_bytes();
        let header = [&len.to_ne_bytes()[..], &kind, &[0; 10], &[0; GENERAL]].concat();
        let mut message = [&header[..], &attribute, name].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    #[test]
    fn only_tables_of_ours_count() {
        let [ours, theirs] = [message(2, b"mesh_guard\0"), message(6, b"filter\0")];
        assert!(is_about(&ours, b"mesh_") && !is_about(&theirs, b"mesh_"));
        assert!(is_about(&[&theirs[..], &ours].concat(), b"mesh_"));
        // A generation number may look like a name.
        assert!(!is_about(&message(NFT_MSG_NEWGEN, b"mesh_\0"), b"mesh_"));
        for len in 0..ours.len() - 4 {
            assert!(!is_about(&ours[..len], b"mesh_guard"), "{len}");
        }
    }
}
