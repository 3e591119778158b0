//! `mesh cni`: the plugin itself, and its installation.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, builder::NonEmptyStringValueParser as NonEmpty};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Place, file, log, path, print, print_json};
use crate::{
    agent::{
        client::{self, CallError},
        protocol::{Kind, Request, Response},
    },
    cni::VERSIONS,
    state,
};

/// What runtimes look for among their plugins: the `type` in a config.
const PLUGIN: &str = "mesh";
/// The beginning of our configs' names, and their end.
const STEM: &str = "10-mesh";
const ENDING: &str = ".conflist";

/// How long an agent may take to hear of a network from the others.
const HEARSAY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct CniArgs {
    /// None: the plugin, which reads its orders from the environment and stdin
    #[command(subcommand)]
    pub verb: Option<CniVerb>,
}

#[derive(Debug, Subcommand)]
pub enum CniVerb {
    /// Make this program a plugin of the container runtimes here, with a config for it
    Install(InstallArgs),
    /// Take away what `install` made
    Uninstall(FoldersArgs),
}

#[derive(Debug, Args)]
pub struct FoldersArgs {
    /// Where the runtimes look for plugins
    #[arg(long, default_value = "/opt/cni/bin", value_parser = path::named())]
    pub bin_dir: PathBuf,
    /// Where the runtimes look for networks
    #[arg(long, default_value = "/etc/cni/net.d", value_parser = path::named())]
    pub conf_dir: PathBuf,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print what was done, or with `--dry-run` would be, as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub folders: FoldersArgs,
    /// The network of the mesh [default: the cluster's own, which runtimes then call "mesh"]
    #[arg(long, value_name = "NAME", value_parser = NonEmpty::new())]
    pub network: Option<String>,
}

impl CniArgs {
    pub fn is_json(&self) -> bool {
        match &self.verb {
            None => false,
            Some(CniVerb::Install(args)) => args.folders.json,
            Some(CniVerb::Uninstall(folders)) => folders.json,
        }
    }
}

/// What became of one file, or would.
#[derive(Debug, Serialize)]
struct Step {
    path: PathBuf,
    action: Action,
    /// What a link leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<PathBuf>,
    /// What a file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Linked,
    Written,
    Removed,
    /// It is right already.
    Unchanged,
    /// Somebody changed it by hand, so it stays.
    Kept,
}

impl Step {
    fn new(path: &Path, action: Action) -> Self {
        Self { path: path.to_owned(), action, target: None, content: None }
    }
}

/// What was done so far, said at once or, as JSON, in the end.
#[derive(Debug, Serialize)]
struct Steps {
    dry_run: bool,
    #[serde(skip)]
    json: bool,
    steps: Vec<Step>,
}

impl Steps {
    fn new(folders: &FoldersArgs) -> Self {
        Self { dry_run: folders.dry_run, json: folders.json, steps: Vec::new() }
    }

    fn add(&mut self, step: Step, text: &str) -> io::Result<()> {
        self.steps.push(step);
        if self.json { Ok(()) } else { print(text) }
    }
}

pub fn run(args: CniArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let steps = match args.verb {
        None => bail!("the plugin was to be called before this"),
        Some(CniVerb::Install(args)) => install(&args, place)?,
        Some(CniVerb::Uninstall(folders)) => uninstall(&folders)?,
    };
    if steps.json {
        print_json(&steps)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn install(args: &InstallArgs, place: &Place) -> anyhow::Result<Steps> {
    let network = args.network.as_deref();
    check_network(network, place)?;
    let mut steps = Steps::new(&args.folders);
    link(&args.folders, &mut steps)?;
    let name = network.map_or(STEM.to_owned(), |network| format!("{STEM}-{network}"));
    let path = args.folders.conf_dir.join(name + ENDING);
    let shown = path.display();
    let before = file::read(&path).map_err(file::failed(&path))?;
    // Runtimes call the plugin in folders of their own.
    let run_dir = std::path::absolute(&place.run_dir).context("where the run folder is")?;
    let run_dir = (run_dir != Path::new(Place::DEFAULT_RUN_DIR)).then_some(&*run_dir);
    let wanted = conflist(network, run_dir);
    let after = text(&wanted)?;
    let step = |action| Step { content: Some(wanted.clone()), ..Step::new(&path, action) };
    if before == after {
        steps.add(step(Action::Unchanged), &format!("{shown} is right already"))?;
    } else if !before.is_empty() && !is_as_made(&before) {
        let text = format!("{shown} was changed by hand, and stays as it is");
        steps.add(Step::new(&path, Action::Kept), &text)?;
    } else {
        if !args.folders.dry_run {
            file::replace(&path, &after).map_err(file::failed(&path))?;
        }
        let text = format!("{shown}:\n{}", file::difference(&before, &after));
        steps.add(step(Action::Written), &text)?;
    }
    Ok(steps)
}

fn uninstall(folders: &FoldersArgs) -> anyhow::Result<Steps> {
    let mut steps = Steps::new(folders);
    let remove = |path: &Path, steps: &mut Steps| -> anyhow::Result<()> {
        if !folders.dry_run {
            fs::remove_file(path).map_err(file::failed(path))?;
        }
        let text = format!("{} is removed", path.display());
        Ok(steps.add(Step::new(path, Action::Removed), &text)?)
    };
    for path in configs(&folders.conf_dir)? {
        if is_as_made(&file::read(&path).map_err(file::failed(&path))?) {
            remove(&path, &mut steps)?;
        } else {
            let text = format!("{} was changed by hand, and stays", path.display());
            steps.add(Step::new(&path, Action::Kept), &text)?;
        }
    }
    let plugin = folders.bin_dir.join(PLUGIN);
    if plugin.is_symlink() {
        remove(&plugin, &mut steps)?;
    }
    let is_found = steps.steps.iter().any(|step| matches!(step.action, Action::Removed));
    if !is_found && !folders.json {
        print("nothing is installed; nothing to do")?;
    }
    Ok(steps)
}

/// A config that no container could be attached with is not written. Without an agent nobody knows.
fn check_network(network: Option<&str>, place: &Place) -> anyhow::Result<()> {
    let request = Request::Ready { network: network.map(str::to_owned) };
    let deadline = Instant::now() + HEARSAY;
    loop {
        match client::call(
            &state::socket(&place.run_dir),
            &request,
            None,
            client::patience(&request),
        ) {
            Ok(Response::Error(failure)) => match failure.kind {
                Kind::NotNow if Instant::now() < deadline => std::thread::sleep(POLL),
                _ => bail!(failure.text),
            },
            Err(CallError::Absent(_)) => {
                log::warning("no agent runs here yet; until then runtimes are told to try again");
                return Ok(());
            }
            done => return Ok(done.map(drop)?),
        }
    }
}

/// Puts this program among the plugins.
fn link(folders: &FoldersArgs, steps: &mut Steps) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("where this program is")?;
    let path = folders.bin_dir.join(PLUGIN);
    let (from, to) = (path.display(), program.display());
    let there = fs::read_link(&path);
    let step = |action| Step { target: Some(program.clone()), ..Step::new(&path, action) };
    if there.as_ref().is_ok_and(|target| *target == program) || path == program {
        return Ok(steps.add(step(Action::Unchanged), &format!("{from} is right already"))?);
    }
    if there.is_err() && path.exists() {
        bail!("{from} is there and none of `mesh cni install`: move it away, or give a --bin-dir");
    }
    let make = || -> io::Result<()> {
        fs::create_dir_all(&folders.bin_dir)?;
        let next = crate::durable::beside(&path, ".next");
        match fs::remove_file(&next) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        symlink(&program, &next)?;
        fs::rename(next, &path)
    };
    if !folders.dry_run {
        make().map_err(file::failed(&path))?;
    }
    Ok(steps.add(step(Action::Linked), &format!("{from} -> {to}"))?)
}

/// What a runtime reads. It calls the network by its name in the mesh.
fn conflist(network: Option<&str>, run_dir: Option<&Path>) -> Value {
    let mut plugin = json!({
        "type": PLUGIN,
        "capabilities": {"aliases": true, "ips": true, "mac": true},
    });
    if let Some(network) = network {
        plugin["network"] = json!(network);
    }
    if let Some(run_dir) = run_dir {
        plugin["runDir"] = json!(run_dir);
    }
    json!({
        // Runtimes of today know cniVersion only, later ones take the highest that both speak.
        "cniVersion": "1.0.0",
        "cniVersions": VERSIONS,
        "name": network.unwrap_or(PLUGIN),
        "plugins": [plugin],
    })
}

fn text(config: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(config)? + "\n")
}

/// Whether nobody changed it since `install`.
fn is_as_made(text: &str) -> bool {
    let Ok(config) = serde_json::from_str::<Value>(text) else { return false };
    let plugin = &config["plugins"][0];
    config == conflist(plugin["network"].as_str(), plugin["runDir"].as_str().map(Path::new))
}

/// Our configs, in order.
fn configs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file::failed(folder))?,
    };
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let stem = name.and_then(|name| name.strip_suffix(ENDING)?.strip_prefix(STEM));
        stem.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let mut ours: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_ours).collect();
    ours.sort();
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_known_again_unless_it_was_changed() {
        for (network, run_dir) in [(None, None), (Some("green"), Some(Path::new("/run/other")))] {
            let made = text(&conflist(network, run_dir)).unwrap();
            assert!(is_as_made(&made), "{made}");
            assert!(!is_as_made(&made.replace("\"mac\": true", "\"mac\": false")));
        }
        assert!(!is_as_made("{}") && !is_as_made(""));
        assert_eq!(conflist(Some("green"), None)["name"], "green");
        assert_eq!(conflist(None, None)["name"], "mesh");
    }
}
