//! Many containers at once, on three hosts.
//!
//! `MESH_TESTS_CROWD=200 cargo xtask test crowd` starts 200 instead of 60.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    netns::check,
    wait,
};

use crate::holdings::Holdings;

/// Room for all on each host, which has a part of it.
const CREATE: &str = "network create -d mesh --subnet 10.0.8.0/22 my-net";
const SIZE: &str = "MESH_TESTS_CROWD";
const HOSTS: usize = 3;
/// Commands at a time on each host: more only wait for the daemon.
const AT_ONCE: usize = 4;
/// Every that many of those that are removed have a successor, at the same time.
const SUCCEEDED: usize = 4;
const NAMES: Duration = Duration::from_secs(40);
/// Longer than the agent takes to look twice at all that Docker has: until then it may hold what
/// Docker was about to remove at the first look.
const LEAKS: Duration = Duration::from_secs(90);

/// By name of each container: its host and address.
type Found = BTreeMap<String, (usize, Ipv4Addr)>;
/// Names of containers on each host.
type Crowd = [Vec<String>; HOSTS];

#[test]
fn a_crowd_neither_collides_nor_leaks_and_all_its_names_are_right() {
    let size = env::var(SIZE).ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    scenario(HOSTS, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        for at in 0..HOSTS {
            docker.run(at, &format!("run -d --network my-net --name asker{at} bb sleep 10000"))?;
        }
        let docker = &*docker;
        let before = holdings(docker)?;
        let crowd = |prefix: &str, size: usize| -> Crowd {
            let name = |at, n| format!("{prefix}{at}-{n}");
            std::array::from_fn(|at| (at..size).step_by(HOSTS).map(|n| name(at, n)).collect())
        };
        let (first, second) = (crowd("c", size), crowd("d", size / SUCCEEDED));

        let began = Instant::now();
        on_all(docker, &first, start)?;
        let started = began.elapsed();
        let addresses = distinct(docker, &first)?;
        all_are_found(docker, &addresses)?;
        let found = began.elapsed() - started;

        // Removed and started at a time: addresses and names change hands.
        let began = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let starting = scope.spawn(|| on_all(docker, &second, start));
            on_all(docker, &first, remove)?;
            starting.join().expect("the one that starts")
        })?;
        let replaced = began.elapsed();
        let successors = distinct(docker, &second)?;
        all_are_found(docker, &successors)?;
        nobody_is_called(docker, "c", &addresses)?;
        on_all(docker, &second, remove)?;
        let began = Instant::now();
        wait::until("nothing to be left of the crowd", LEAKS, || {
            let after = holdings(docker).map_err(|e| format!("{e:#}"))?;
            if after == before { Ok(()) } else { Err(format!("{after:#?}\nand not {before:#?}")) }
        })?;
        println!(
            "{size} containers on {HOSTS} hosts: started in {:.1} s, all names right on another \
             host in {:.1} s, {} removed and {} started in {:.1} s, nothing left {:.1} s later",
            started.as_secs_f32(),
            found.as_secs_f32(),
            size,
            size / SUCCEEDED,
            replaced.as_secs_f32(),
            began.elapsed().as_secs_f32(),
        );
        Ok(())
    });
}

fn start(name: &str) -> String {
    format!("run -d --network my-net --name {name} --memory 16m bb sleep 10000")
}

fn remove(name: &str) -> String {
    format!("rm -f {name}")
}

/// `docker LINE` for each of a crowd, some at a time on each host.
fn on_all(docker: &Docker, crowd: &Crowd, line: fn(&str) -> String) -> Result<()> {
    let work = |at: usize, first: usize| -> Result<()> {
        let names = crowd[at].iter().skip(first).step_by(AT_ONCE);
        names.map(|name| line(name)).try_for_each(|line| docker.run(at, &line).map(drop))
    };
    thread::scope(|scope| {
        let workers = (0..HOSTS * AT_ONCE).map(|n| scope.spawn(move || work(n % HOSTS, n / HOSTS)));
        let workers: Vec<_> = workers.collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker"))
    })
}

/// Host and address of each container, which no two share.
fn distinct(docker: &Docker, crowd: &Crowd) -> Result<Found> {
    const FORMAT: &str = "{{.Name}}={{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let (mut all, mut owners) = (BTreeMap::new(), HashMap::new());
    for (at, names) in crowd.iter().enumerate() {
        let said = docker.run(at, &format!("inspect -f {FORMAT} {}", names.join(" ")))?;
        for line in said.lines() {
            let (name, address) = line.trim_start_matches('/').split_once('=').context("a line")?;
            let address: Ipv4Addr = address.parse().with_context(|| line.to_owned())?;
            if let Some(other) = owners.insert(address, name.to_owned()) {
                anyhow::bail!("{other} and {name} both have {address}");
            }
            all.insert(name.to_owned(), (at, address));
        }
    }
    ensure!(all.len() == crowd.iter().map(Vec::len).sum::<usize>());
    Ok(all)
}

/// Waits until each name leads, from the host that follows its own, to its address.
fn all_are_found(docker: &Docker, wanted: &Found) -> Result<()> {
    for asker in 0..HOSTS {
        let of_asker = wanted.iter().filter(|(_, (at, _))| (at + 1) % HOSTS == asker);
        let of_asker: Vec<_> = of_asker.map(|(name, (_, address))| (name, *address)).collect();
        let names: Vec<&str> = of_asker.iter().map(|(name, _)| name.as_str()).collect();
        let script = format!(
            "for n in {}; do echo \"$n=$(nslookup -type=a $n | grep -A1 ^Name: | tail -n 1)\"; done",
            names.join(" ")
        );
        wait::until(&format!("{} names on h{}", names.len(), asker + 1), NAMES, || {
            let text = ask(docker, asker, &script).map_err(|e| format!("{e:#}"))?;
            let got: HashMap<&str, Ipv4Addr> = text
                .lines()
                .filter_map(|line| line.split_once('='))
                .filter_map(|(name, rest)| {
                    Some((name, rest.trim_start_matches("Address: ").parse().ok()?))
                })
                .collect();
            let is_wrong =
                |(name, address): &&(&String, _)| got.get(name.as_str()) != Some(address);
            match of_asker.iter().find(is_wrong) {
                None => Ok(()),
                Some((name, address)) => {
                    Err(format!("{name} is {:?} and not {address:?}", got.get(name.as_str())))
                }
            }
        })?;
    }
    Ok(())
}

/// Waits until no address, asked about on any host, leads to a name that begins so. (A name that is
/// gone is none of the mesh's: the world is asked, which is not there.)
fn nobody_is_called(docker: &Docker, prefix: &str, addresses: &Found) -> Result<()> {
    let addresses: Vec<String> = addresses.values().map(|(_, ip)| ip.to_string()).collect();
    let script = format!("for a in {}; do nslookup $a; done; true", addresses.join(" "));
    let name = format!("name = {prefix}");
    for asker in 0..HOSTS {
        wait::until(&format!("h{} to forget names", asker + 1), NAMES, || {
            let text = ask(docker, asker, &script).map_err(|e| format!("{e:#}"))?;
            let found = text.lines().find(|line| line.contains(&name));
            found.map_or(Ok(()), |line| Err(line.to_owned()))
        })?;
    }
    Ok(())
}

/// What a script prints in the container that asks on a host.
fn ask(docker: &Docker, at: usize, script: &str) -> Result<String> {
    let container = format!("asker{at}");
    let asked = docker.docker(at, &["exec", &container, "sh", "-c", script]).output()?;
    check("ask", &asked)?;
    Ok(String::from_utf8_lossy(&asked.stdout).into_owned())
}

fn holdings(docker: &Docker) -> Result<Vec<Holdings>> {
    (0..HOSTS).map(|at| Holdings::of(docker, at)).collect()
}
