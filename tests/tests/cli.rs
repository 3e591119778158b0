//! The command line as people and programs use it: the real `mesh`, in a host of its own.

use std::{fs, io::Write, process::Stdio};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Host, Options,
    scenario::{bare, scenario},
};
use serde_json::{Value, json};

const ONE_HOST: Options = Options { hosts: 1, containers: 0, ..Options::DEFAULT };

/// Exit status, stdout and stderr of `mesh ARGS`, with this on its stdin.
fn mesh(host: &Host, args: &[&str], input: &str) -> Result<(Option<i32>, String, String)> {
    let mut mesh = host.mesh()?;
    mesh.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = mesh.spawn().context("start mesh")?;
    let written = child.stdin.take().context("stdin")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    // One that does not read it may have ended.
    ensure!(written.is_ok() || input.is_empty(), "mesh read not all of its stdin");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("text");
    Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
}

#[test]
fn a_dash_is_stdout_for_init_and_stdin_for_check() {
    bare(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let own = mesh_tests::cluster::underlay(1);
        let (status, file, said) = mesh(host, &["init", &own, "--file", "-"], "")?;
        ensure!(status == Some(0) && file.contains("[cluster]") && said.is_empty(), "{file}{said}");
        ensure!(!std::path::Path::new("-").exists(), "a file named - was written");
        let (status, shown, said) = mesh(host, &["check", "--config", "-"], &file)?;
        ensure!(status == Some(0) && shown.contains(&own) && said.is_empty(), "{shown}{said}");
        let faulty = file.replace("encap", "encaps");
        let (status, _, said) = mesh(host, &["check", "--config", "-"], &faulty)?;
        ensure!(status == Some(1) && said.starts_with("stdin:"), "{said}");
        // The agent follows a file.
        let (status, _, said) = mesh(host, &["up", "--config", "-"], "")?;
        ensure!(status == Some(2) && said.contains("write ./- for a file"), "{said}");
        Ok(())
    });
}

#[test]
fn what_is_no_file_stays_as_it_is() {
    bare(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let socket = topology.dir.join("socket");
        let _open = std::os::unix::net::UnixListener::bind(&socket)?;
        let path = socket.display().to_string();
        let own = mesh_tests::cluster::underlay(1);
        let folder = topology.dir.display().to_string();
        for (path, why) in [(&path, "no regular file"), (&folder, "it is a folder")] {
            let (status, out, said) = mesh(host, &["init", &own, "--file", path], "")?;
            ensure!(status == Some(1) && said.contains(why), "{path}: {out}{said}");
        }
        ensure!(!fs::metadata(&socket)?.is_file(), "the socket was replaced");
        // What the system says of a path goes with the path and the remedy.
        let file = topology.dir.join("file");
        fs::write(&file, "")?;
        let [file, below] =
            [file.clone(), file.join("below")].map(|path| path.display().to_string());
        for args in [
            &["init", &own, "--file", &below][..],
            &["man", &file],
            &["cni", "install", "--bin-dir", &file],
            &["status", "--run-dir", &file],
        ] {
            let (status, _, said) = mesh(host, args, "")?;
            let is_told = said.contains(&file) && said.contains("give another path");
            ensure!(status == Some(1) && is_told, "{args:?}: {said}");
        }
        Ok(())
    });
}

#[test]
fn init_names_this_hosts_addresses_where_it_is_not_among_the_hosts() {
    bare(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let path = topology.dir.join("cluster.toml").display().to_string();
        let (status, _, said) = mesh(host, &["init", "198.51.100.7", "--file", &path], "")?;
        let own = mesh_tests::cluster::underlay(1);
        ensure!(status == Some(0) && said.contains(&format!("which has {own} (")), "{said}");
        ensure!(said.lines().all(|line| line.starts_with("mesh: warning: ")), "{said}");
        ensure!(fs::metadata(&path).is_ok(), "no file was written");
        let (_, _, said) = mesh(host, &["init", "127.0.0.1", "127.0.0.2", "--file", "-"], "")?;
        ensure!(said.lines().count() == 2, "{said}");
        ensure!(said.lines().all(|line| line.starts_with("mesh: the address of")), "{said}");
        Ok(())
    });
}

#[test]
fn errors_are_objects_on_stdout_where_json_was_asked_for_and_text_on_stderr() {
    bare(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let dir = topology.dir.join("cni").display().to_string();
        let file = topology.dir.join("nothing-here.toml").display().to_string();
        fs::write(&dir, "")?;
        for args in [
            &["status", "--json"][..],
            &["attach", &host.netns.path().display().to_string(), "--json"],
            &["attach", "no-such-namespace", "--json"],
            &["docker", "configure", "--dry-run", "--json"],
            &["cni", "install", "--bin-dir", &dir, "--conf-dir", &dir, "--json"],
            &["cni", "uninstall", "--bin-dir", &dir, "--conf-dir", &dir, "--json"],
        ] {
            let (status, out, said) = mesh(host, args, "")?;
            let report: Value = serde_json::from_str(&out)
                .with_context(|| format!("mesh {args:?} printed {out:?}, and said {said}"))?;
            let message = report["error"]["message"].as_str().context("a message")?;
            ensure!(status == Some(1) && report["error"]["causes"].is_array(), "{args:?}: {out}");
            ensure!(said.contains(&format!("mesh: {message}")), "{args:?}: {said}");
        }
        // A file's faults have a report of their own.
        let (status, out, _) = mesh(host, &["check", "--config", &file, "--json"], "")?;
        let report: Value = serde_json::from_str(&out)?;
        ensure!(status == Some(1) && report["ok"] == false, "{out}");
        Ok(())
    });
}

#[test]
fn what_cni_install_would_do_and_does_is_told_as_json() {
    bare(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let [bin, conf] = ["bin", "net.d"].map(|name| topology.dir.join(name));
        let [bin_dir, conf_dir] = [&bin, &conf].map(|path| path.display().to_string());
        let steps = |verb: &str, more: &[&str]| -> Result<Vec<(Value, Value)>> {
            let args = ["cni", verb, "--json", "--bin-dir", &bin_dir, "--conf-dir", &conf_dir];
            let (status, out, said) = mesh(host, &[&args, more].concat(), "")?;
            ensure!(status == Some(0), "{out}{said}");
            let report: Value = serde_json::from_str(&out)?;
            ensure!(report["dry_run"] == !more.is_empty(), "{out}");
            let steps = report["steps"].as_array().context("steps")?;
            Ok(steps.iter().map(|step| (step["action"].clone(), step["path"].clone())).collect())
        };
        let (plugin, config) = (json!(bin.join("mesh")), json!(conf.join("10-mesh.conflist")));
        let done = vec![(json!("linked"), plugin.clone()), (json!("written"), config.clone())];
        ensure!(steps("install", &["--dry-run"])? == done && !bin.exists() && !conf.exists());
        ensure!(steps("install", &[])? == done && conf.join("10-mesh.conflist").is_file());
        let again =
            vec![(json!("unchanged"), plugin.clone()), (json!("unchanged"), config.clone())];
        ensure!(steps("install", &[])? == again);
        let removed = vec![(json!("removed"), config), (json!("removed"), plugin)];
        ensure!(steps("uninstall", &["--dry-run"])? == removed && bin.join("mesh").is_symlink());
        ensure!(steps("uninstall", &[])? == removed && !bin.join("mesh").is_symlink());
        Ok(())
    });
}

#[test]
fn what_docker_configure_would_do_and_does_is_told_as_json() {
    scenario(ONE_HOST, |topology| {
        let host = &topology.hosts[0];
        let file = topology.dir.join("daemon.json");
        let path = file.display().to_string();
        let configure = |more: &[&str]| -> Result<Value> {
            let args = [&["docker", "configure", "--json", "--file", &path], more].concat();
            let (status, out, said) = mesh(host, &args, "")?;
            ensure!(status == Some(0), "{out}{said}");
            Ok(serde_json::from_str(&out)?)
        };
        fs::write(&file, "{\"log-driver\": \"local\"}")?;
        let would = configure(&["--dry-run"])?;
        ensure!(would["written"] == false && would["restart"] == "needed", "{would}");
        let own = host.overlay_addresses()?[0].to_string();
        ensure!(would["set"]["dns"][0] == json!(own), "{would}");
        ensure!(would["set"].get("log-driver").is_none(), "{would}");
        let done = configure(&[])?;
        ensure!(done["written"] == true && done["set"] == would["set"], "{done}");
        ensure!(done["kept"] == json!(format!("{path}.before-mesh")), "{done}");
        let again = configure(&[])?;
        ensure!(again["set"] == json!({}) && again["restart"] == "not_needed", "{again}");
        Ok(())
    });
}

#[test]
fn the_log_is_as_the_options_say() {
    scenario(ONE_HOST, |topology| {
        let agent = topology.hosts[0].log.clone();
        let lines = |from: usize| -> Result<Vec<String>> {
            Ok(fs::read_to_string(&agent)?.lines().skip(from).map(str::to_owned).collect())
        };
        let before = lines(0)?.len();
        ensure!(before > 0, "nothing is logged by default");
        let cluster = topology.cluster.clone();
        let host = &mut topology.hosts[0];
        host.stop()?;
        let before = lines(before).map(|more| before + more.len())?;
        host.up_args = ["--log-level", "debug", "--log-format", "json"].map(Into::into).into();
        host.up(&cluster)?;
        host.stop()?;
        for line in lines(before)? {
            let object: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
            ensure!(object["level"].is_string() && object["message"].is_string(), "{line}");
        }
        let before = lines(before).map(|more| before + more.len())?;
        host.up_args = ["--log-level", "off"].map(Into::into).into();
        host.up(&cluster)?;
        host.stop()?;
        ensure!(lines(before)?.is_empty(), "{:?}", lines(before)?);
        // What a command fails of is a line of that form as well.
        let (status, _, said) = mesh(host, &["--log-format", "json", "detach", "nobody"], "")?;
        let object: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(status == Some(1) && object["level"] == "ERROR", "{said}");
        Ok(())
    });
}
