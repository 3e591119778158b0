//! The config file: told of when it changes, also when it is replaced or is a link to elsewhere.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Something happened to the file. Ends the watch when dropped.
pub struct FileWatch {
    _watcher: notify::RecommendedWatcher,
    changed: mpsc::Receiver<()>,
    /// The file was closed by its writer, or put in its place whole.
    done: Arc<Notify>,
    path: PathBuf,
    /// As it was at the last look; `None` within if there was no file.
    seen: Option<Option<Version>>,
    /// When a change that we know of is worth a look.
    due: Option<Instant>,
}

/// Device, inode, size, and times of change: enough to tell that a file is another.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

fn version(path: &Path) -> Option<Version> {
    let m = path.metadata().ok()?;
    let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
    Some((m.dev(), m.ino(), m.size(), mtime, ctime))
}

impl FileWatch {
    /// Returns when the file has changed: other files of its folder, such as a log, may change all
    /// the time. May be dropped while it waits: nothing is lost.
    pub async fn recv(&mut self) -> Option<()> {
        loop {
            let due = match self.due {
                Some(due) => due,
                None => {
                    self.changed.recv().await?;
                    // Editors write, rename and set modes: wait until that is over.
                    *self.due.insert(Instant::now() + super::SETTLE)
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.done.notified() => {}
            }
            self.due = None;
            while self.changed.try_recv().is_ok() {}
            let now = version(&self.path);
            if self.seen != Some(now) {
                self.seen = Some(now);
                return Some(());
            }
        }
    }
}

/// Is the file of this event whole? One that was written to and not closed may be half of one.
fn completes(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
    )
}

/// Watches the folder of `path`, since an editor puts a new file in the place of the old one.
pub fn file(path: &Path) -> notify::Result<FileWatch> {
    let (sender, changed) = mpsc::channel(1);
    let done = Arc::new(Notify::new());
    let (is_done, name) = (done.clone(), path.file_name().map(ToOwned::to_owned));
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let Ok(event) = event else { return };
        let closed = completes(event.kind);
        // Reading it ourselves is an event too.
        if closed || !event.kind.is_access() {
            // A full channel means that a look is due already.
            let _ = sender.try_send(());
        }
        if closed && event.paths.last().and_then(|path| path.file_name()) == name.as_deref() {
            is_done.notify_one();
        }
    })?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    // A link, as in a mounted ConfigMap: where it leads changes too.
    if let Ok(real) = path.canonicalize()
        && let Some(real_folder) = real.parent()
        && Some(real_folder) != folder.canonicalize().ok().as_deref()
    {
        watcher.watch(real_folder, RecursiveMode::NonRecursive)?;
    }
    // Looked at once in any case: it was read before it was watched.
    let due = Some(Instant::now());
    Ok(FileWatch { _watcher: watcher, changed, done, path: path.to_owned(), seen: None, due })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_change_is_not_lost_when_something_else_comes_first() {
        let dir = std::env::temp_dir().join(format!("mesh-watch-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("mesh.toml");
        let mut watch = file(&path).unwrap();
        assert_eq!(watch.recv().await, Some(()), "looked at once in any case");
        std::fs::write(&path, "x").unwrap();
        // As often as the agent's loop may be woken by the network while the file settles.
        let woken = Duration::from_millis(1);
        let mut seen = None;
        for _ in 0..5000 {
            seen = tokio::time::timeout(woken, watch.recv()).await.ok();
            if seen.is_some() {
                break;
            }
        }
        // Another file of the folder is none of our business.
        std::fs::write(dir.join("log"), "x").unwrap();
        let other = tokio::time::timeout(Duration::from_millis(100), watch.recv()).await;
        assert!(other.is_err(), "woken by another file");
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(seen, Some(Some(())));
    }
}
