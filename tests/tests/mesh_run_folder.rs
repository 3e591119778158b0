//! The run folder is taken away, or what it is on is full: the agent goes on, and nothing is lost.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Options, flow, scenario, wait};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

const TWO: Options = Options { containers: 2, ipv6: false, ..Options::DEFAULT };
/// Longer than the agent takes to look, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

fn wait_answered(host: &Host) -> Result<()> {
    let answered = wait::until("the agent to answer", PATIENCE, || {
        let status = host.status().map_err(|e| format!("{e:#}"))?;
        let (pid, agent) = (host.pid().map(u64::from), status["agent"].as_u64());
        if agent == pid { Ok(()) } else { Err(format!("{agent:?} answers and not {pid:?}")) }
    });
    host.with_log(answered)
}

/// In one step: the agent may make it anew at any moment.
fn remove(dir: &Path) -> Result<()> {
    let away = dir.with_extension("away");
    fs::rename(dir, &away)?;
    Ok(fs::remove_dir_all(&away)?)
}

#[test]
fn a_run_folder_that_is_removed_is_made_anew_and_nothing_is_lost() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let flows = flow::start_all(&[(&one, &far), (&far, &one)])?;
        let host = &mut mesh.hosts[0];
        let before = host.status()?["endpoints"].to_string();
        remove(&host.run_dir)?;
        // Who asks at once waits until the folder is there again.
        let output = host.try_mesh(&["status", "--check"])?;
        ensure!(output.status.success(), "{output:?}");
        wait_answered(host)?;
        let status = host.status()?;
        let past = status["past_faults"].to_string();
        ensure!(past.contains("was removed") && host.faults()? == "[]", "{past}");
        for name in ["state.json", "cluster.toml"] {
            ensure!(host.run_dir.join(name).exists(), "{name} is missing");
        }
        host.detach(1)?;
        host.attach(1, &[])?;
        fs::remove_file(host.run_dir.join("mesh.sock"))?;
        wait_answered(host)?;
        // With a config file that is bad the last good one is needed.
        remove(&host.run_dir)?;
        wait_answered(host)?;
        host.kill9();
        host.up(&cluster)?;
        let names = |text: &str| text.matches("\"name\"").count();
        let after = host.status()?["endpoints"].to_string();
        ensure!(names(&after) == names(&before) && host.faults()? == "[]", "{after}");
        flows.iter().try_for_each(|flow| flow.wait_for(50))?;
        flow::expect_no_loss(flows)
    });
}

#[test]
fn a_state_folder_that_is_removed_is_made_anew() {
    scenario(Options { hosts: 1, containers: 0, ..TWO }, |mesh| {
        let (cluster, host) = (mesh.cluster.clone(), &mut mesh.hosts[0]);
        let identity = host.state_dir.join("host.json");
        let before = fs::read_to_string(&identity)?;
        remove(&host.state_dir)?;
        wait::until_true("the folder", PATIENCE, || identity.exists())?;
        ensure!(fs::read_to_string(&identity)? == before, "another host by now");
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        host.stop()?;
        host.up(&cluster)?;
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        Ok(())
    });
}

#[test]
fn an_agent_ends_when_another_process_has_its_run_folder() {
    scenario(Options { hosts: 1, containers: 0, ..TWO }, |mesh| {
        let host = &mut mesh.hosts[0];
        let other = host.run_dir.with_extension("other");
        fs::create_dir(&other)?;
        let lock = fs::File::create(other.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        renameat_with(CWD, &other, CWD, &host.run_dir, RenameFlags::EXCHANGE)?;
        let pid = host.pid().context("no agent")?;
        let is_over = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        wait::until_true("the agent to end", PATIENCE, is_over)?;
        host.kill9();
        let said = host.log_tail();
        ensure!(said.contains("was removed, and another process has it now"), "{said}");
        drop(lock);
        fs::remove_dir_all(&host.run_dir)?;
        fs::rename(&other, &host.run_dir)?;
        Ok(())
    });
}

#[test]
fn pins_without_a_run_folder_are_said_and_taken_up_again_without_a_fault() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let flows = flow::start_all(&[(&one, &far), (&far, &one)])?;
        let host = &mut mesh.hosts[0];
        let before = host.endpoint_names()?;
        host.kill9();
        remove_contents(&host.run_dir)?;
        for args in [&["status"][..], &["status", "--check"]] {
            let output = host.try_mesh(args)?;
            let said = [&output.stdout[..], &output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let is_said = said.contains("no agent runs") && said.contains("containers keep");
            ensure!(is_said && !said.contains("not up"), "{args:?}: {said}");
        }
        host.up(&cluster)?;
        ensure!(host.endpoint_names()? == before, "{:?}", host.endpoint_names()?);
        // Of a plain attachment all is in the kernel.
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        flows.iter().try_for_each(|flow| flow.wait_for(50))?;
        flow::expect_no_loss(flows)
    });
}

fn remove_contents(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}
