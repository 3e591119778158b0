//! What is pinned, held open: a pin that somebody removes is made again, and what it held does not end
//! meanwhile.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use mesh_common::names;

use super::{BpfError, Pins, load, raw};

/// Maps and programs as they were pinned.
#[derive(Debug)]
pub struct Held(Vec<Object>);

#[derive(Debug)]
struct Object {
    pin: PathBuf,
    fd: OwnedFd,
    /// The kernel's number.
    id: u32,
}

impl Held {
    /// Of everything that is pinned. Fails if a pin is missing.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let maps = names::ALL_MAPS.iter().map(|name| pins.map(name));
        let programs = load::PROGRAMS.iter().map(|name| pins.program(name));
        let open = |pin: PathBuf| match raw::open_pin(&pin).and_then(|fd| Ok((raw::id(&fd)?, fd))) {
            Ok((id, fd)) => Ok(Object { pin, fd, id }),
            Err(source) => Err(BpfError::Pin { what: "opening the pin", path: pin, source }),
        };
        maps.chain(programs).map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Whether each is pinned where it was.
    pub fn is_pinned(&self) -> bool {
        self.0.iter().all(Object::is_pinned)
    }

    /// Pins anew what is not, also where something else was put in its place.
    pub fn pin(&self, pins: &Pins) -> Result<(), BpfError> {
        let missing: Vec<&Object> = self.0.iter().filter(|object| !object.is_pinned()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        pins.prepare()?;
        for Object { pin, fd, .. } in missing {
            tracing::warn!("somebody removed the pin {}: it is made again", pin.display());
            let pinned = remove(pin).and_then(|()| raw::pin(fd, pin));
            pinned.map_err(|source| BpfError::Pin {
                what: "pinning anew",
                path: pin.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

impl Object {
    fn is_pinned(&self) -> bool {
        raw::open_pin(&self.pin).and_then(|fd| raw::id(&fd)).is_ok_and(|id| id == self.id)
    }
}

fn remove(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
