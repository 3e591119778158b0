//! Daemons and agents that end while containers talk, and what is cleared away afterwards.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    wait,
};
use rustix::process::Signal;

use crate::{CREATE, address, get, holdings::Holdings};

/// Sends a file again and again to whoever connects, until there is `/stop`; then says how often.
const SOURCE: &str = "dd if=/dev/urandom of=/data bs=1M count=4 2>/dev/null; touch /ready; \
                      while ! [ -e /stop ]; do cat /data; n=$((n+1)); usleep 20000; done \
                      | nc -l -p 7000; sleep 10000";
const TRANSFER: Duration = Duration::from_secs(60);
const WAITED: Duration = Duration::from_secs(5);
/// Longer than the agent takes to look twice at all that Docker has.
const LEAKS: Duration = Duration::from_secs(90);

/// `docker exec CONTAINER sh -c SCRIPT`
fn shell(docker: &Docker, at: usize, container: &str, script: &str) -> Result<String> {
    let output = docker.docker(at, &["exec", container, "sh", "-c", script]).output()?;
    mesh_tests::netns::check(script, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run_shell(docker: &Docker, at: usize, name: &str, script: &str) -> Result<()> {
    let args = ["run", "-d", "--network", "my-net", "--name", name, "bb", "sh", "-c", script];
    let output = docker.docker(at, &args).output()?;
    mesh_tests::netns::check(&format!("docker run {name}"), &output)
}

/// Bytes that have arrived.
fn arrived(docker: &Docker) -> Result<u64> {
    Ok(shell(docker, 1, "sink", "stat -c %s /got")?.parse()?)
}

/// Waits until more has arrived: the connection is alive.
fn flows(docker: &Docker) -> Result<()> {
    let before = arrived(docker)?;
    wait::until("more to arrive", TRANSFER, || match arrived(docker) {
        Ok(now) if now > before => Ok(()),
        Ok(now) => Err(format!("{now} bytes and no more")),
        Err(e) => Err(format!("{e:#}")),
    })
}

/// Restarts the daemon of a host, which leaves its containers running.
fn restart(docker: &mut Docker, at: usize, signal: Signal) -> Result<()> {
    docker.end_daemon(at, signal)?;
    docker.start_daemon(at, &["--live-restore"])?;
    docker.wait_daemon(at)
}

#[test]
fn a_transfer_outlives_the_agent_and_with_live_restore_the_daemon() {
    scenario(2, |docker| {
        for at in [0, 1] {
            restart(docker, at, Signal::TERM)?;
        }
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        run_shell(docker, 0, "source", SOURCE)?;
        docker.wait_for(0, "exec source test -e /ready", |_| true)?;
        let source = address(docker, 0, "source")?;
        // Of one that has no more to say, nc takes leave.
        let sink = format!(
            "mkfifo /open; nc {source} 7000 < /open > /got & exec 3> /open; wait; touch /all; \
             sleep 10000"
        );
        run_shell(docker, 1, "sink", &sink)?;
        docker.wait_for(1, "exec sink test -s /got", |_| true)?;

        let cluster = docker.topology.cluster.clone();
        for at in [0, 1] {
            docker.host(at).kill9();
            flows(docker)?;
            docker.host(at).up(&cluster)?;
            flows(docker)?;
            for signal in [Signal::TERM, Signal::KILL] {
                restart(docker, at, signal)?;
                flows(docker)?;
            }
        }
        shell(docker, 0, "source", "touch /stop")?;
        docker.wait_for(1, "exec sink test -e /all", |_| true)?;
        // It is that file, as often as it fits, and not a byte else.
        let size: u64 = arrived(docker)?;
        ensure!(size > 0 && size.is_multiple_of(4 << 20), "{size} bytes arrived");
        let again = format!("n={}; while [ $n -gt 0 ]; do cat /data; n=$((n-1)); done", size >> 22);
        let sent = shell(docker, 0, "source", &format!("({again}) | md5sum"))?;
        let got = shell(docker, 1, "sink", "md5sum < /got")?;
        ensure!(sent == got, "{size} bytes arrived, but not those that were sent");
        println!("{} MB arrived, in spite of two agents and four daemons that ended", size >> 20);

        // What lives on is as it was: names, new containers, and the way out.
        docker.run(0, "run -d --network my-net --name web bb httpd -f -p 80 -h /var/www")?;
        get(docker, 1, "http://web")?;
        docker.run(1, "exec sink ping -c 1 -w 5 source")?;
        for at in [0, 1] {
            docker.run(at, "rm -f source sink web")?;
            let held = Holdings::of(docker, at)?;
            ensure!(held.endpoints == 0, "h{}: {held:?}", at + 1);
        }
        Ok(())
    });
}

#[test]
fn a_daemon_that_is_told_to_end_does_not_wait_for_the_agent() {
    scenario(1, |docker| {
        // Since 28.0 it waits 5 s for those who read its events. On a busy host the rest takes a while
        // too, so it has some attempts.
        let mut took = Vec::new();
        for _ in 0..4 {
            wait::until("the agent to follow Docker", TRANSFER, || {
                let status = docker.topology.hosts[0].status().map_err(|e| format!("{e:#}"))?;
                let health = &status["docker"];
                if health["connected"] == true { Ok(()) } else { Err(health.to_string()) }
            })?;
            // Connected is who has asked for the events, which it does next.
            docker.run(0, CREATE)?;
            docker.run(0, "network rm my-net")?;
            let began = Instant::now();
            docker.end_daemon(0, Signal::TERM)?;
            took.push(began.elapsed());
            if took.last() < Some(&WAITED) {
                return Ok(());
            }
            docker.start_daemon(0, &[])?;
            docker.wait_daemon(0)?;
        }
        anyhow::bail!("it took {took:?}")
    });
}

#[test]
fn what_went_while_the_agent_was_away_is_cleared_away() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(1, "run -d --network my-net --name asker bb sleep 10000")?;
        docker.run(0, "run -d --network my-net --name stays bb sleep 10000")?;
        let cluster = docker.topology.cluster.clone();
        let before = Holdings::of(docker, 0)?;
        for name in ["goes", "dies"] {
            docker.run(0, &format!("run -d --network my-net --name {name} bb sleep 10000"))?;
        }
        let gone: IpAddr = address(docker, 0, "goes")?.into();
        docker.run(1, &format!("exec asker ping -c 1 -w 5 {gone}"))?;

        // Docker asks a driver that is away for half a minute, and then does without.
        docker.host(0).kill9();
        let docker_ref = &*docker;
        thread::scope(|scope| -> Result<()> {
            let removed: Vec<_> = ["goes", "dies"]
                .map(|name| scope.spawn(move || docker_ref.run(0, &format!("rm -f {name}"))))
                .into_iter()
                .collect();
            removed.into_iter().try_for_each(|run| run.join().expect("docker rm").map(drop))
        })?;
        let leaked = Holdings::of(docker, 0)?;
        ensure!(leaked != before, "nothing leaked: {leaked:?}");
        docker.host(0).up(&cluster)?;
        let gone_again = wait::until("what leaked to be gone", LEAKS, || {
            let now = Holdings::of(docker, 0).map_err(|e| format!("{e:#}"))?;
            if now == before { Ok(()) } else { Err(format!("{now:#?}\nand not {before:#?}")) }
        });
        docker.topology.hosts[0].with_log(gone_again)?;
        docker.refused(1, &format!("exec asker ping -c 1 -w 1 {gone}"))?;
        docker.run(1, "exec asker ping -c 1 -w 5 stays")?;
        docker.run(0, "run -d --network my-net --name goes bb sleep 10000")?;
        docker.wait_for(1, "exec asker ping -c 1 -w 5 goes", |_| true)?;
        Ok(())
    });
}
