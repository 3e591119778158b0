//! The agent: follows the config file, the network and the socket, one thing at a time.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior},
};

use crate::{
    bpf::attach::Mode,
    busy::Busy,
    config::{self, Cluster},
    docker::{self, Docker},
    durable,
    host::{Host, HostError},
    net::{Change, Icmp, TooBig, Watch},
    peers::Rules,
    serving::Serving,
};

mod changes;
pub mod client;
mod filter;
mod pace;
pub mod privileges;
pub mod protocol;
mod server;
mod watch;

pub use crate::host::QUERY_INTERVAL;

use changes::Changes;
use pace::{Pace, SETTLE};
use privileges::Sockets;
use protocol::{Failure, Kind, Request, Response};

/// After an error.
const RETRY: Duration = Duration::from_secs(5);

/// Between two looks at pins and attachments, of which nobody tells, and which cut traffic off.
const GLANCE: Duration = Duration::from_secs(5);
/// Of a processor's time such looks take no more than this part.
const GLANCES_PART: u32 = 2000;

/// Between two looks at everything, of which nobody may have told.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// After which every other agent has said which networks there are.
const HEARSAY: Duration = Duration::from_secs(2);

/// Between two looks at what the ports of bridges told. They work without: it is for those who read
/// it, and for the fast way.
const LISTEN: Duration = Duration::from_secs(1);

/// What the agent does when the file changed.
const RELOAD: &str = "applying the config file";

/// What the agent was started with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: PathBuf,
    /// `--node`
    pub node: Option<String>,
    pub mode: Mode,
    pub socket: PathBuf,
    /// What is there lasts over a reboot.
    pub state_dir: PathBuf,
    /// Between two questions to all endpoints for their multicast groups.
    pub query_interval: Duration,
    /// Between two looks at everything.
    pub look_interval: Duration,
}

/// Reads the file and applies it. Returns the faults of the file, if it has any and there is an
/// older one to go on with.
pub async fn start(host: &mut Host, settings: &Settings) -> anyhow::Result<Option<String>> {
    let error = match config::read(&settings.config) {
        Ok((cluster, bytes)) => {
            apply(host, settings, cluster, &bytes).await?;
            return Ok(None);
        }
        Err(e) => e,
    };
    let last = host.file_cluster().zip(host.last_config());
    let (Some((cluster, bytes)), false) = (last, host.state.node.is_empty()) else {
        return Err(error.into());
    };
    tell_config_error(host, settings, Some(&error.to_string()));
    apply(host, settings, cluster, &bytes).await?;
    Ok(Some(error.to_string()))
}

fn tell_config_error(host: &Host, settings: &Settings, error: Option<&str>) {
    let config = &settings.config;
    // Who reads it may be in another folder.
    let path = std::path::absolute(config).unwrap_or_else(|_| config.clone());
    let fault = |error| {
        format!(
            "the config file is not applied, and what was good before stays in effect: mend the \
             file (`mesh check --config {}` looks at it without applying it): {error}",
            path.display()
        )
    };
    host.faults().set("config", error.map(fault));
}

async fn apply(
    host: &mut Host,
    settings: &Settings,
    cluster: Cluster,
    bytes: &[u8],
) -> Result<(), HostError> {
    let node = crate::host::which_node(&cluster, settings.node.as_deref(), host.net()).await?;
    let before = host.state.generation;
    let (name, nodes) = (cluster.name.clone(), cluster.nodes.len());
    host.apply(cluster, bytes, &node, settings.mode).await?;
    let generation = host.state.generation;
    if generation != before {
        tracing::info!(cluster = name, node, nodes, generation, "config applied");
    }
    Ok(())
}

/// Runs until it is told to end. `Down` takes everything away first. `changes`: watched since before
/// [`start`] looked at the network.
pub async fn run(
    mut host: Host,
    settings: Settings,
    config_error: Option<String>,
    changes: Watch,
    Sockets { icmp, mut querier }: Sockets,
    mut serving: Serving,
) -> anyhow::Result<()> {
    let busy = Busy::default();
    let (mut calls, mut _callers) =
        server::listen(&settings.socket, host.supervisor(), busy.clone())?;
    let mut files = watch::file(&settings.config)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    raise_descriptor_limit();
    tracing::info!(node = host.state.node, "up");

    let pace = Pace::new(settings.look_interval, Instant::now());
    let mut agent = Agent { config_error, retry: None, pace, glance: Instant::now() + GLANCE };
    let mut changes = Changes::of(changes);
    let mut docker = host
        .cluster()
        .map(|cluster| Docker::start(&host, cluster, &settings.state_dir, busy.clone()));
    let mut listen = tokio::time::interval(LISTEN);
    listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The config file that the other agents are known by.
    let mut told = None;
    return_memory();
    loop {
        host.check()?;
        // Somebody removed it.
        if std::fs::symlink_metadata(&settings.socket).is_err() {
            let listening = server::listen(&settings.socket, host.supervisor(), busy.clone());
            let fault = |e: &std::io::Error| {
                let (path, remedy) = (settings.socket.display(), durable::remedy(e));
                format!("no command reaches the agent: listening on {path}: {e}{remedy}")
            };
            host.faults().set("socket", listening.as_ref().err().map(fault));
            if let Ok(listening) = listening {
                (calls, _callers) = listening;
            }
        }
        let generation = Some(host.state.generation);
        if let (Some(docker), Some(cluster)) = (&docker, host.cluster())
            && told != generation
        {
            told = generation;
            if let Some(of_file) = host.file_cluster() {
                docker.shared().set_rules(Rules::new(of_file));
            }
            docker.shared().set_roster(docker::roster(cluster, &host.state.node));
        }
        if let Some(docker) = &mut docker {
            docker.follow(&host);
            docker.keep(&host);
            docker.tell_faults(&host);
        }
        busy.end();
        let query = querier.as_ref().map(|querier| querier.due(host.revision()).into());
        let due = agent.retry.into_iter().chain(host.path_mtu_ends().map(Instant::from));
        let at = due.fold(agent.pace.due(), Instant::min);
        tokio::select! {
            call = calls.recv() => {
                let Some((request, fd, answer)) = call else {
                    anyhow::bail!("nobody hears the callers of the agent's socket any more");
                };
                // Who was told that it failed may have asked for something else since.
                if answer.is_closed() && !request.outlives_its_caller() {
                    continue;
                }
                busy.begin(request.work());
                if matches!(request, Request::Down) {
                    return down(host, answer).await;
                }
                // A caller that went away does not need its answer.
                let _ = answer.send(agent.answer(&mut host, docker.as_mut(), request, fd).await);
            }
            work = next(&mut docker) => {
                if let Some(docker) = &mut docker {
                    busy.begin(work.name());
                    docker.work(&mut host, work).await;
                }
            }
            () = files.recv() => {
                busy.begin(RELOAD);
                agent.reload(&mut host, &settings).await;
            }
            _ = hangup.recv() => {
                busy.begin(RELOAD);
                agent.reload(&mut host, &settings).await;
            }
            change = changes.next(&host) => {
                if let (Some(docker), Change::Link { .. } | Change::Overrun) = (&docker, &change) {
                    docker.shared().look();
                }
                agent.noticed(&mut host, &change);
            }
            () = tokio::time::sleep_until(agent.glance) => agent.glance(&host),
            told = too_big(icmp.as_ref()) => {
                if host.learn_path_mtu(&told) {
                    agent.pace.changed(Instant::now());
                }
            }
            () = tokio::time::sleep_until(at) => {
                if agent.retry.is_some_and(|at| at <= Instant::now()) {
                    busy.begin(RELOAD);
                    agent.reload(&mut host, &settings).await;
                }
                busy.begin("a look at everything on this host");
                host.forget_old_path_mtus();
                agent.refresh(&mut host).await;
            }
            () = tokio::time::sleep_until(query.unwrap_or(at)), if query.is_some() => {
                busy.begin("questions for multicast groups");
                if let Some(querier) = &mut querier
                    && let Err(e) = host.renew_groups(querier)
                {
                    tracing::debug!("multicast groups: {e}");
                }
            }
            _ = listen.tick(), if host.is_learning() => {
                busy.begin("what ports of bridges told");
                if let Err(e) = host.take_learned().await {
                    tracing::debug!("{e}");
                    agent.pace.changed(Instant::now());
                }
            }
            () = serving.ended() => {
                anyhow::bail!(
                    "the thread ended that answers for names, other agents and callers: start the \
                     agent again, and report this"
                );
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending; the data plane stays as it is (`mesh down` takes it away)");
    let _ = std::fs::remove_file(&settings.socket);
    Ok(())
}

/// The next news of a packet that was too big; never returns without a socket.
async fn too_big(icmp: Option<&Icmp>) -> TooBig {
    loop {
        match icmp {
            Some(icmp) => match icmp.next().await {
                Ok(told) => return told,
                Err(e) => {
                    tracing::debug!("ICMP: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            },
            None => std::future::pending().await,
        }
    }
}

/// What there is to do for Docker; never returns if that is off.
async fn next(docker: &mut Option<Docker>) -> docker::Work {
    match docker {
        Some(docker) => docker.next().await,
        None => std::future::pending().await,
    }
}

async fn down(host: Host, answer: tokio::sync::oneshot::Sender<Response>) -> anyhow::Result<()> {
    let errors = host.down().await;
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let response = match errors.is_empty() {
        true => Response::Done,
        false => Response::Error(Failure::new(Kind::Fault, text)),
    };
    if answer.send(response).is_ok() {
        // The answer is written by another task; give it its turn before the process ends.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::info!("taken down on request");
    Ok(())
}

struct Agent {
    /// Why the file as it is now is not in effect.
    config_error: Option<String>,
    /// When to try a good file again that this host could not take.
    retry: Option<Instant>,
    /// When to look at the host again.
    pace: Pace,
    /// When to look at what nobody tells of.
    glance: Instant,
}

fn with_faults(e: HostError, host: &Host) -> HostError {
    let faults: Vec<String> = host.faults().now().iter().map(ToString::to_string).collect();
    match faults.is_empty() {
        true => e,
        false => HostError::User(format!("{}; because of that: {e}", faults.join("; "))),
    }
}

impl Agent {
    async fn answer(
        &mut self,
        host: &mut Host,
        mut docker: Option<&mut Docker>,
        request: Request,
        fd: Option<OwnedFd>,
    ) -> Response {
        let mut reserved = HashSet::new();
        if let (Some(docker), Request::Status) = (docker.as_deref(), &request) {
            docker.forget_removed();
            docker.tell_faults(host);
        }
        if let Some(docker) = docker.as_deref_mut() {
            reserved = docker.reserved();
            if let Some(why) = hear_others(host, docker, &request) {
                return Response::Error(Failure::new(Kind::NotNow, why));
            }
        }
        let done = match (request, fd) {
            (Request::Status, _) => match host.status().await {
                Ok(mut status) => {
                    status.agent = Some(std::process::id());
                    status.config_error.clone_from(&self.config_error);
                    if let Some(docker) = docker.as_deref() {
                        docker.tell(&mut status);
                    }
                    Ok(Response::Status(Box::new(status)))
                }
                // Where nothing can be shown, what is wrong is what there is to say.
                Err(e) => Err(with_faults(e, host)),
            },
            (Request::Attach(mut request), Some(netns)) => {
                request.reserved = reserved;
                let name = request.netns.clone();
                host.attach(*request, netns.as_fd()).await.map(|attached| {
                    tracing::info!(netns = name, endpoint = attached.name, "attached");
                    Response::Attached(Box::new(attached))
                })
            }
            (Request::Attach(_) | Request::Check { .. }, None) => {
                Err(HostError::User("the request came without its namespace".into()))
            }
            (Request::Detach { name }, _) => host.detach(&name).await.map(|()| {
                tracing::info!(endpoint = name, "detached");
                Response::Done
            }),
            (Request::Check { name }, Some(netns)) => {
                let checked = host.check_endpoint(&name, netns.as_fd()).await;
                checked.map(|attached| Response::Attached(Box::new(attached)))
            }
            (Request::Collect { cni, keep }, _) => host.collect(&cni, &keep).await.map(|gone| {
                if !gone.is_empty() {
                    tracing::info!(network = cni, endpoints = ?gone, "of no container: detached");
                }
                Response::Done
            }),
            (Request::Ready { network }, _) => {
                host.ready(network.as_deref()).map(|()| Response::Done)
            }
            (Request::Down, _) => Err(HostError::User("already on the way down".into())),
        };
        done.unwrap_or_else(|e| Response::Error(Failure::from(&e)))
    }

    /// The file changed, or somebody asked to look: apply it if it is good, else keep what is.
    async fn reload(&mut self, host: &mut Host, settings: &Settings) {
        self.retry = None;
        let applied = match config::read_if_not(&settings.config, host.last_config().as_deref()) {
            Ok(None) => Ok(()),
            Ok(Some((cluster, bytes))) => {
                let applied = apply(host, settings, cluster, &bytes).await;
                // An address or an interface that is missing may come.
                self.retry = applied.is_err().then(|| Instant::now() + RETRY);
                applied.map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        };
        return_memory();
        self.config_error = applied.err();
        tell_config_error(host, settings, self.config_error.as_deref());
        if self.config_error.is_some() {
            // Half of it may have been done; the last good state is put right again.
            self.pace.within(SETTLE, Instant::now());
        }
    }

    fn noticed(&mut self, host: &mut Host, change: &Change) {
        match change {
            Change::Neighbour { .. } | Change::Filter { .. } | Change::Forwarding { .. } => {}
            Change::Tables => host.suspect_tables(),
            Change::Overrun => {
                host.forget_routes();
                host.suspect_tables();
            }
            Change::Link { .. } | Change::Address { .. } | Change::Route { .. } => {
                host.forget_routes();
            }
        }
        self.pace.changed(Instant::now());
    }

    /// Looks whether somebody took pins or attachments away.
    fn glance(&mut self, host: &Host) {
        let began = Instant::now();
        if !host.is_whole() {
            self.pace.within(Duration::ZERO, began);
        }
        let now = Instant::now();
        self.glance = now + GLANCE.max((now - began) * GLANCES_PART);
    }

    async fn refresh(&mut self, host: &mut Host) {
        if self.pace.is_afresh(Instant::now()) {
            host.forget_routes();
            host.suspect_tables();
        }
        let done = host.refresh().await;
        self.pace.looked(Instant::now());
        if done.is_err() {
            self.pace.within(RETRY, Instant::now());
        }
        return_memory();
    }
}

/// A runtime that speaks CNI may want a network that was made on another node: the other agents are
/// listened to from its first word on. `Some`: the network is unknown, and may become known.
fn hear_others(host: &Host, docker: &mut Docker, request: &Request) -> Option<String> {
    let network = match request {
        Request::Ready { network } => network,
        Request::Attach(request) if request.cni.is_some() => &request.network,
        _ => return None,
    };
    let since = docker.serve();
    let name = network.as_ref()?;
    let is_new = since.elapsed() < HEARSAY && host.cluster()?.network(name).is_none();
    is_new
        .then(|| format!("network {name:?} is not known here yet: the other nodes are being asked"))
}

/// As many descriptors as this process may have. What strangers can take of them is bounded far below
/// the usual 1024, so that the host's own work always has some.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays {:?}: {e}", limit.current);
    }
}

/// Gives back to the kernel what the last piece of work took: an agent of a large cluster needs ten
/// times as much for a moment as it keeps.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only releases memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
