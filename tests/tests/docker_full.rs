//! A full disk under the run folder: Docker is given nothing that could not be noted, what it gives back
//! is taken back, and nothing of it is left when there is room again.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    wait,
};

/// A look at everything, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn shell(docker: &mut Docker, line: &str) -> Result<()> {
    let output = docker.host(0).command("sh").args(["-c", line]).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn docker_is_given_nothing_that_could_not_be_noted() {
    scenario(1, |docker| {
        docker.run(0, "network create -d mesh --subnet 10.0.9.0/24 my-net")?;
        docker.run(0, "run -d --network my-net --ip 10.0.9.9 --name web bb sleep 1000")?;
        let cluster = docker.topology.cluster.clone();
        let at = docker.host(0).run_dir.display().to_string();
        docker.host(0).stop()?;
        shell(
            docker,
            &format!(
                "cp -a {at} {at}.kept && mount -t tmpfs -o size=256k,mode=0700 small {at} && \
                 cp -a {at}.kept/*.* {at}/ && rm -r {at}.kept"
            ),
        )?;
        docker.host(0).up(&cluster)?;
        docker.wait_network("my-net")?;
        shell(docker, &format!("cat /dev/zero > {at}/full; true"))?;
        let said = docker.refused(0, "network create -d mesh --subnet 10.0.8.0/24 other")?;
        ensure!(said.contains("make room"), "{said}");
        let said =
            docker.refused(0, "run -d --network my-net --ip 10.0.9.8 --name db bb sleep 9")?;
        ensure!(said.contains("make room"), "{said}");
        docker.try_run(0, "rm -f db")?;
        let faults = docker.host(0).faults()?;
        ensure!(faults.contains("docker.json") && faults.contains("make room"), "{faults}");
        docker.run(0, "rm -f web")?;
        shell(docker, &format!("rm {at}/full"))?;
        // All three are free.
        docker.run(0, "network create -d mesh --subnet 10.0.8.0/24 other")?;
        for (name, address) in [("web", "10.0.9.9"), ("db", "10.0.9.8")] {
            let run = format!("run -d --network my-net --ip {address} --name {name} bb sleep 1000");
            docker.run(0, &run)?;
        }
        docker.run(0, "exec web ping -c 1 -W 5 db")?;
        wait::until("no fault", PATIENCE, || match docker.topology.hosts[0].faults() {
            Ok(faults) if faults == "[]" => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        docker.host(0).stop()
    });
}
