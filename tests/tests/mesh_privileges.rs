//! What an agent may do once it runs, and who may make it wait.

use std::{fs, os::unix::net::UnixStream};

use anyhow::{Context, ensure};
use mesh_tests::{Options, rights, scenario};

const TWO: Options = Options { containers: 2, ..Options::DEFAULT };

#[test]
fn no_thread_keeps_more_than_is_needed_whatever_is_done() {
    scenario(TWO, |mesh| {
        let whole = mesh.cluster.clone();
        let smaller = whole.clone().without_node("h2");
        let host = &mut mesh.hosts[0];
        rights::expect_few_during(host.pid().context("no agent")?, || {
            for _ in 0..5 {
                host.detach(1)?;
                host.attach(1, &[])?;
            }
            for cluster in [&smaller, &whole] {
                let before = host.generation()?;
                host.write_config(&cluster.to_string())?;
                host.wait_newer(cluster, before)?;
            }
            Ok(())
        })?;
        let [one, two] = [mesh.party("h1c2")?, mesh.party("h2c1")?];
        one.expect_reaches(&two)
    });
}

#[test]
fn callers_of_roots_that_say_nothing_make_nobody_wait() {
    scenario(TWO, |mesh| {
        let host = &mut mesh.hosts[0];
        let socket = host.run_dir.join("mesh.sock");
        let idle = (0..400).map(|_| UnixStream::connect(&socket));
        let idle = idle.collect::<std::io::Result<Vec<_>>>()?;
        let pid = host.pid().context("no agent")?;
        host.status()?;
        host.detach(1)?;
        host.attach(1, &[])?;
        // Those that made place are gone.
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!(open < idle.len(), "{open} descriptors");
        Ok(())
    });
}
