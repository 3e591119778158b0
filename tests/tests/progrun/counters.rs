//! All counters before and after a packet.

use std::collections::BTreeMap;

use mesh_common::{
    maps::Traffic,
    verdict::{DropReason, Hook, Verdict},
};
use mesh_userspace::bpf::tables::Tables;

/// Endpoints and peers whose counters are watched: more than any world has.
const WATCHED: u32 = 10;

/// One counter of packets and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    EndpointRx(u32),
    EndpointTx(u32),
    PeerRx(u32),
    PeerTx(u32),
}

/// Everything the programs have counted.
pub struct Counters {
    verdicts: BTreeMap<(Hook, Verdict), u64>,
    drops: BTreeMap<(Hook, DropReason), u64>,
    traffic: BTreeMap<Counter, (u64, u64)>,
}

/// What one packet moved.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved {
    pub verdict: Verdict,
    pub reason: Option<DropReason>,
    /// Packets are always 1: the counter and the bytes.
    pub traffic: Vec<(Counter, u64)>,
}

impl Counters {
    pub fn read(tables: &Tables) -> Self {
        let mut all =
            Self { verdicts: BTreeMap::new(), drops: BTreeMap::new(), traffic: BTreeMap::new() };
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                let n = tables.verdict(*hook, *verdict).unwrap();
                all.verdicts.insert((*hook, *verdict), n);
            }
            for reason in DropReason::ALL {
                all.drops.insert((*hook, *reason), tables.drops(*hook, *reason).unwrap());
            }
        }
        for i in 0..WATCHED {
            let Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes } =
                tables.endpoint_traffic(i).unwrap();
            all.traffic.insert(Counter::EndpointRx(i), (rx_packets, rx_bytes));
            all.traffic.insert(Counter::EndpointTx(i), (tx_packets, tx_bytes));
            let Traffic { rx_packets, rx_bytes, tx_packets, tx_bytes } =
                tables.peer_traffic(i).unwrap();
            all.traffic.insert(Counter::PeerRx(i), (rx_packets, rx_bytes));
            all.traffic.insert(Counter::PeerTx(i), (tx_packets, tx_bytes));
        }
        all
    }

    /// What one packet at `hook` moved since `self`. Asserts the sum law.
    #[track_caller]
    pub fn moved(&self, after: &Self, hook: Hook) -> Moved {
        let verdicts = differences(&self.verdicts, &after.verdicts);
        let [((at, verdict), 1)] = verdicts[..] else { panic!("not one verdict: {verdicts:?}") };
        assert_eq!(at, hook, "counted at another hook");
        let drops = differences(&self.drops, &after.drops);
        let reason = match (verdict, &drops[..]) {
            (Verdict::Drop, [((at, reason), 1)]) if *at == hook => Some(*reason),
            (v, []) if v != Verdict::Drop => None,
            _ => panic!("{verdict:?} with the drops {drops:?}"),
        };
        let mut traffic = Vec::new();
        for (counter, (packets, bytes)) in &after.traffic {
            let (packets_before, bytes_before) = self.traffic[counter];
            match packets - packets_before {
                0 => assert_eq!(*bytes, bytes_before, "{counter:?}: bytes without a packet"),
                1 => traffic.push((*counter, bytes - bytes_before)),
                n => panic!("{counter:?}: {n} packets"),
            }
        }
        Moved { verdict, reason, traffic }
    }
}

fn differences<K: Copy + Ord>(
    before: &BTreeMap<K, u64>,
    after: &BTreeMap<K, u64>,
) -> Vec<(K, u64)> {
    after.iter().map(|(k, n)| (*k, n - before[k])).filter(|(_, n)| *n != 0).collect()
}
