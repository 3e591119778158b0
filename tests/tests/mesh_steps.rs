//! Steps with an effect outside that fail half way: what is noted is what there is, a second try is not
//! taken for done, and what was there before stays.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd,
    sync::Once,
};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use mesh_tests::{Host, Options, SmallDisk, scenario::bare};
use mesh_userspace::{
    bpf::{sync, tables::Tables},
    cli::Place,
    config::Flood,
    host::{self, AddedNetwork, AttachRequest, PortRequest},
    state::Proto,
};
use tokio::runtime;

const ONE: Options = Options { hosts: 1, ipv6: false, ..Options::DEFAULT };
const VNI: u32 = 700;

/// Does something with a host as its agent does, while none runs.
fn as_agent<T: Send>(
    host: &Host,
    work: impl AsyncFnOnce(&mut host::Host) -> Result<T> + Send,
) -> Result<T> {
    static LOCKS: Once = Once::new();
    // SAFETY: before any thread of this program reads it.
    LOCKS.call_once(|| unsafe { std::env::set_var("MESH_LOCK_DIR", &host.lock_dir) });
    let (run_dir, pin_dir) = (host.run_dir.clone(), host.pin_dir.clone());
    let place = Place { run_dir, pin_dir, state_dir: host.state_dir.clone() };
    host.netns.run(|| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { work(&mut host::Host::open(&place)?).await })
    })
}

fn network() -> AddedNetwork {
    AddedNetwork {
        name: "net".into(),
        vni: VNI,
        cidrs: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 9, 0), 24).into()],
        first: "h1".into(),
        gateway: true,
        flood: Flood::None,
    }
}

fn is_carried(host: &Host) -> Result<bool> {
    let root = std::fs::read_dir(&host.pin_dir)?.flatten().map(|e| e.path().join("maps"));
    let maps = root.into_iter().find(|maps| maps.exists()).context("no maps")?;
    Ok(sync::networks(&Tables::open(&maps)?)?.contains_key(&VNI))
}

#[test]
fn a_network_that_could_not_be_made_is_not_made_by_asking_again() {
    bare(ONE, |mesh| {
        mesh.up()?;
        let host = &mut mesh.hosts[0];
        host.kill9();
        let underlay = Ipv4Addr::new(192, 0, 2, 11);
        as_agent(host, async |agent| {
            let netns = &host.netns;
            netns.exec(&format!("ip addr del {underlay}/24 dev eth0"))?;
            for _ in 0..2 {
                let made = agent.set_networks(vec![network()]).await;
                ensure!(made.is_err() && !is_carried(host)?, "{made:?}");
            }
            netns.exec(&format!("ip addr add {underlay}/24 dev eth0"))?;
            agent.set_networks(vec![network()]).await?;
            ensure!(is_carried(host)?, "told as made, and is not");
            Ok(())
        })
    });
}

fn port(first: u16) -> PortRequest {
    PortRequest { proto: Proto::Tcp, port: 80, host_ip: None, first, last: first }
}

/// Is a port of the host held, and does it lead to a container?
fn is_published(host: &Host, port: u16) -> Result<bool> {
    let rules = host.netns.exec("nft list table inet mesh_gateways")?;
    let is_held =
        host.netns.run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err()))?;
    let is_ruled = rules.contains(&format!("dport {port} "));
    ensure!(is_held == is_ruled, "{port}: held {is_held}, {rules}");
    Ok(is_held)
}

#[test]
fn ports_that_can_not_all_be_published_leave_those_of_before() {
    bare(ONE, |mesh| {
        mesh.up()?;
        let host = &mut mesh.hosts[0];
        let container = File::open(host.containers[0].netns.path())?;
        host.detach(0)?;
        host.kill9();
        let host = &*host;
        let disk = SmallDisk::new(&host.run_dir)?;
        let taken = host.netns.run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8090))?))?;
        as_agent(host, async |agent| {
            agent.set_networks(vec![network()]).await?;
            let request = AttachRequest {
                netns: "container".into(),
                name: Some("web".into()),
                network: Some("net".into()),
                ..AttachRequest::default()
            };
            agent.attach(request, container.as_fd()).await?;
            agent.publish("web", &[port(8080), port(8081)]).await?;
            let expect = |published: [bool; 3]| -> Result<()> {
                for (port, expected) in [8080, 8081, 8082].into_iter().zip(published) {
                    ensure!(is_published(host, port)? == expected, "{port}: not {expected}");
                }
                Ok(())
            };
            expect([true, true, false])?;
            // Somebody has one of them.
            let refused = agent.publish("web", &[port(8082), port(8090)]).await;
            ensure!(refused.is_err(), "8090 is published");
            expect([true, true, false])?;
            // It can not be noted.
            disk.fill()?;
            let refused = agent.publish("web", &[port(8081), port(8082)]).await;
            ensure!(refused.is_err(), "not noted, and nobody said so");
            expect([true, true, false])?;
            disk.make_room()?;
            agent.publish("web", &[port(8081), port(8082)]).await?;
            expect([false, true, true])?;
            // What goes, goes though that can not be noted.
            disk.fill()?;
            agent.unpublish("web").await?;
            expect([false, false, false])?;
            disk.make_room()?;
            Ok(())
        })?;
        drop(taken);
        Ok(())
    });
}
