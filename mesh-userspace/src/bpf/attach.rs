//! Programs on interfaces: tcx links, pinned, where the kernel has them (6.6); clsact filters below.
//! On a netkit pair a link of its own kind, which runs as the other end sends.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, Link},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use mesh_common::{names, verdict::Hook};

use super::{BpfError, Pins, load, pins::remove_link, raw};
use crate::net::filter_program;

/// Which kind of attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Tcx,
    Clsact,
    /// Of netkit pairs alone.
    Netkit,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Netkit => "netkit",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(format!("{other:?} is neither tcx nor clsact")),
        }
    }
}

/// An interface, by both its names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Interface {
    pub name: String,
    pub index: u32,
}

/// Ours among the filters of an interface: behind those of others, which come at low numbers.
const PRIORITY: u16 = 28_005;
/// Before those of others: any of them may end the list.
const FIRST_PRIORITY: u16 = 5;
const HANDLE: TcHandle = TcHandle::new(0, 1);

fn side(hook: Hook) -> TcAttachType {
    match hook {
        Hook::FromHost | Hook::FromForward => TcAttachType::Egress,
        Hook::FromContainer | Hook::FromUnderlay => TcAttachType::Ingress,
    }
}

/// Whether its program comes before those of others, rather than behind them.
fn is_first(hook: Hook) -> bool {
    hook == Hook::FromForward
}

fn priority(hook: Hook) -> u16 {
    if is_first(hook) { FIRST_PRIORITY } else { PRIORITY }
}

fn error(
    hook: Hook,
    interface: &Interface,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> BpfError {
    BpfError::Attach {
        program: names::program(hook),
        ifname: interface.name.clone(),
        source: source.into(),
    }
}

/// Attaches the pinned program of a hook, behind or before what is there already. Nothing happens if it is attached.
/// Returns whether a clsact qdisc had to be made for it.
pub fn attach(
    pins: &Pins,
    mode: Mode,
    hook: Hook,
    interface: &Interface,
) -> Result<bool, BpfError> {
    if let Some(running) = running(pins, mode, hook, interface) {
        let pinned = pinned_id(pins, hook);
        if pinned.is_none_or(|pinned| pinned == running) {
            return Ok(false);
        }
        if mode != Mode::Clsact && run_pinned(pins, hook, interface).is_ok() {
            return Ok(false);
        }
    }
    match mode {
        Mode::Tcx => attach_tcx(pins, hook, interface).map(|()| false),
        Mode::Clsact => attach_clsact(pins, hook, interface),
        Mode::Netkit => attach_netkit(pins, hook, interface).map(|()| false),
    }
}

/// Does the pinned program run there, by our doing?
pub fn is_attached(pins: &Pins, mode: Mode, hook: Hook, interface: &Interface) -> bool {
    running(pins, mode, hook, interface).is_some_and(|id| pinned_id(pins, hook) == Some(id))
}

/// The number of the program that runs there by our doing.
fn running(pins: &Pins, mode: Mode, hook: Hook, interface: &Interface) -> Option<u32> {
    let link = || live_link(&pins.link(hook, interface.index));
    match mode {
        // Not what is left of an interface that had this number before.
        Mode::Tcx => link().filter(|link| link.ifindex == interface.index).map(|link| link.prog_id),
        // The kernel tells the number of the other end, in the namespace where that is.
        Mode::Netkit => link().map(|link| link.prog_id),
        Mode::Clsact => {
            let is_egress = side(hook) == TcAttachType::Egress;
            filter_program(interface.index, is_egress, priority(hook), HANDLE.into()).ok().flatten()
        }
    }
}

fn pinned_id(pins: &Pins, hook: Hook) -> Option<u32> {
    raw::open_pin(&pins.program(names::program(hook))).and_then(|fd| raw::id(&fd)).ok()
}

/// Lets a link that runs something else run the pinned program.
fn run_pinned(pins: &Pins, hook: Hook, interface: &Interface) -> io::Result<()> {
    let link = raw::open_pin(&pins.link(hook, interface.index))?;
    raw::update_link(&link, &raw::open_pin(&pins.program(names::program(hook)))?)
}

/// Where a link is to be pinned, in a folder that somebody may have removed.
fn free_pin(pins: &Pins, hook: Hook, interface: &Interface) -> Result<PathBuf, BpfError> {
    if !pins.links().is_dir() {
        pins.prepare()?;
    }
    let pin = pins.link(hook, interface.index);
    let _ = fs::remove_file(&pin);
    Ok(pin)
}

fn attach_tcx(pins: &Pins, hook: Hook, interface: &Interface) -> Result<(), BpfError> {
    let pin = free_pin(pins, hook, interface)?;
    let order = if is_first(hook) { LinkOrder::first() } else { LinkOrder::last() };
    let mut prog = load::pinned(pins, names::program(hook))?;
    let id = prog
        .attach_with_options(&interface.name, side(hook), TcAttachOptions::TcxOrder(order))
        .map_err(|e| error(hook, interface, e))?;
    let link = prog.take_link(id).map_err(|e| error(hook, interface, e))?;
    let link: FdLink = link.try_into().map_err(|e| error(hook, interface, format!("{e}")))?;
    link.pin(&pin).map_err(|e| error(hook, interface, e))?;
    Ok(())
}

fn attach_netkit(pins: &Pins, hook: Hook, interface: &Interface) -> Result<(), BpfError> {
    let pin = free_pin(pins, hook, interface)?;
    let attach = || {
        let program = raw::open_pin(&pins.program(names::program(hook)))?;
        raw::pin(&raw::attach_netkit_peer(&program, interface.index)?, &pin)
    };
    attach().map_err(|e: io::Error| error(hook, interface, e))
}

fn attach_clsact(pins: &Pins, hook: Hook, interface: &Interface) -> Result<bool, BpfError> {
    // Fails where there is one already, which is all the same; the filter tells.
    let made = tc::qdisc_add_clsact(&interface.name).is_ok();
    let mut prog = load::pinned(pins, names::program(hook))?;
    let options = NlOptions { priority: priority(hook), handle: HANDLE, classid: None };
    match prog.attach_with_options(&interface.name, side(hook), TcAttachOptions::Netlink(options)) {
        Ok(id) => {
            let link = prog.take_link(id).map_err(|e| error(hook, interface, e))?;
            // Dropped, it would detach. A filter needs no owner.
            std::mem::forget(link);
        }
        // There is one: replace it.
        Err(_) => replace_clsact(&mut prog, hook, interface)?,
    }
    Ok(made)
}

fn replace_clsact(
    prog: &mut SchedClassifier,
    hook: Hook,
    interface: &Interface,
) -> Result<(), BpfError> {
    let link =
        SchedClassifierLink::attached(&interface.name, side(hook), priority(hook), HANDLE, None)
            .map_err(|e| error(hook, interface, e))?;
    let id = prog.attach_to_link(link).map_err(|e| error(hook, interface, e))?;
    let link = prog.take_link(id).map_err(|e| error(hook, interface, e))?;
    std::mem::forget(link);
    Ok(())
}

/// Takes the program off the interface. It need not be there.
pub fn detach(pins: &Pins, mode: Mode, hook: Hook, interface: &Interface) -> Result<(), BpfError> {
    match mode {
        Mode::Tcx | Mode::Netkit => match remove_link(&pins.link(hook, interface.index)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(hook, interface, e)),
            _ => Ok(()),
        },
        Mode::Clsact => {
            // By our own number: somebody else's program may have the same name. The interface may
            // be gone, and its filters with it.
            let (side, priority) = (side(hook), priority(hook));
            let gone = |errno| matches!(errno, Some(libc::ENODEV | libc::ENXIO));
            // The kernel says EINVAL where the qdisc is gone.
            let nothing = |errno| matches!(errno, Some(libc::ENOENT | libc::EINVAL));
            match SchedClassifierLink::attached(&interface.name, side, priority, HANDLE, None) {
                Ok(filter) => match filter.detach() {
                    Err(ProgramError::NetlinkError(e))
                        if gone(e.raw_os_error()) || nothing(e.raw_os_error()) =>
                    {
                        Ok(())
                    }
                    done => done.map_err(|e| error(hook, interface, e)),
                },
                Err(e) if gone(e.raw_os_error()) => Ok(()),
                Err(e) => Err(error(hook, interface, e)),
            }
        }
    }
}

/// Lets every pinned link run `program` from now on, where that is what its hook runs by `name`.
pub fn replace(pins: &Pins, name: &'static str, program: &SchedClassifier) -> Result<(), BpfError> {
    for pin in links_of(pins, name) {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| BpfError::Load(e);
        let link = match raw::open_pin(&pin) {
            Ok(link) => link,
            // Not a link at all: whoever attaches there next says so.
            Err(e) => {
                tracing::debug!("{}: {e}", pin.display());
                continue;
            }
        };
        let program = program.fd().map_err(|e| failed(e.into()))?;
        match raw::update_link(&link, program) {
            Ok(()) => {}
            Err(e) if live_link(&pin).is_some() => return Err(failed(e.into())),
            // The interface is gone; the next look at the links removes the pin.
            Err(e) => tracing::debug!("{}: {e}", pin.display()),
        }
    }
    Ok(())
}

/// Do all pinned links that are to run `name` run the program with this id? Those of interfaces that are gone
/// run nothing.
pub fn all_run(pins: &Pins, name: &str, id: u32) -> bool {
    let link = |pin: &PathBuf| raw::open_pin(pin).and_then(|fd| raw::link_info(&fd));
    links_of(pins, name)
        .iter()
        .all(|pin| link(pin).is_ok_and(|link| link.ifindex == 0 || link.prog_id == id))
}

/// Removes the pins of links that are on no interface any more, but for those that `is_wanted` names.
pub fn remove_dead(pins: &Pins, is_wanted: impl Fn(&Path) -> bool) {
    let Ok(links) = fs::read_dir(pins.links()) else { return };
    let is_dead = |pin: &Path| {
        let link = raw::open_pin(pin).and_then(|fd| raw::link_info(&fd));
        link.is_ok_and(|link| link.ifindex == 0)
    };
    for pin in links.flatten().map(|e| e.path()).filter(|p| !is_wanted(p) && is_dead(p)) {
        if let Err(e) = fs::remove_file(&pin) {
            tracing::debug!("{}: {e}", pin.display());
        }
    }
}

/// Is any program attached by the pins, whatever the namespace of the interface?
pub fn any_live(pins: &Pins) -> bool {
    let Ok(links) = fs::read_dir(pins.links()) else { return false };
    links.flatten().any(|link| live_link(&link.path()).is_some())
}

/// A pinned link that is on an interface: of a netkit pair the container's end. One that somebody took
/// off, or whose interface is gone, is on none.
fn live_link(pin: &Path) -> Option<raw::LinkInfo> {
    let link = raw::open_pin(pin).and_then(|fd| raw::link_info(&fd)).ok()?;
    (link.ifindex != 0).then_some(link)
}

/// Those at whose hook the program `name` runs.
fn links_of(pins: &Pins, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(pins.links()) else { return Vec::new() };
    let runs = |p: &PathBuf| {
        let hook = p.file_name().and_then(|f| f.to_str()?.rsplit_once('-'));
        let mut hooks = Hook::ALL.iter().filter(|hook| names::program(**hook) == name);
        hook.is_some_and(|(label, _)| hooks.any(|hook| hook.label() == label))
    };
    entries.flatten().map(|e| e.path()).filter(runs).collect()
}
