//! The config file: told of when it changes, also when it is replaced or is a link to elsewhere.
//!
//! The kernel tells of what happens in the folders of the file. A folder that is itself replaced, or a
//! link further up that is switched, nobody is told of: the file is looked at every few seconds too.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Between two looks at what nobody tells of: two calls of stat(2).
const LOOK: Duration = Duration::from_secs(2);

/// Something happened to the file. Ends the watch when dropped.
pub struct FileWatch {
    /// `None` while the folder can not be watched.
    events: Option<Events>,
    path: PathBuf,
    /// As it was at the last look; `None` within if there was no file.
    seen: Option<Option<Version>>,
    /// When a change that we know of is worth a look.
    due: Option<Instant>,
    /// When to look at what nobody tells of.
    look: Instant,
    /// Another version than `seen`, as the last such look found it: half of it may be written.
    found: Option<Option<Version>>,
}

/// What the kernel tells of the file's folders.
struct Events {
    _watcher: notify::RecommendedWatcher,
    changed: mpsc::Receiver<()>,
    /// The file was closed by its writer, or put in its place whole.
    done: Arc<Notify>,
    /// The folders as they were when the watch began.
    folders: Vec<Folder>,
}

/// A folder and which one it is: device and inode.
type Folder = (PathBuf, (u64, u64));

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
    pub async fn recv(&mut self) {
        loop {
            tokio::select! {
                () = next(self.events.as_mut(), self.due) => {
                    if self.due.take().is_none() {
                        // Editors write, rename and set modes: wait until that is over.
                        self.due = Some(Instant::now() + super::SETTLE);
                        continue;
                    }
                    self.forget_told();
                    self.follow_folders();
                    let now = version(&self.path);
                    if self.seen != Some(now) {
                        self.take(now);
                        return;
                    }
                }
                () = tokio::time::sleep_until(self.look) => {
                    self.look = Instant::now() + LOOK;
                    if self.look_at_untold() {
                        return;
                    }
                }
            }
        }
    }

    fn forget_told(&mut self) {
        if let Some(events) = &mut self.events {
            while events.changed.try_recv().is_ok() {}
        }
    }

    fn take(&mut self, now: Option<Version>) {
        self.seen = Some(now);
        self.found = None;
    }

    /// Watches the folders that the file is in now.
    fn follow_folders(&mut self) {
        let folders = folders(&self.path);
        if self.events.as_ref().is_none_or(|events| events.folders != folders) {
            self.events = watch(&self.path, folders)
                .inspect_err(|e| tracing::debug!("{} is not watched: {e}", self.path.display()))
                .ok();
        }
    }

    /// Whether the file has changed, and has been the same at two looks since.
    fn look_at_untold(&mut self) -> bool {
        self.follow_folders();
        let now = version(&self.path);
        if self.seen == Some(now) {
            self.found = None;
            return false;
        }
        if self.found != Some(now) {
            self.found = Some(now);
            return false;
        }
        self.take(now);
        true
    }
}

/// Returns at the next event, or where one came already, when the file is whole, or at `due`.
async fn next(events: Option<&mut Events>, due: Option<Instant>) {
    let told = match (events, due) {
        (Some(events), None) => events.changed.recv().await,
        (Some(events), Some(due)) => {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = events.done.notified() => {}
            }
            return;
        }
        (None, Some(due)) => return tokio::time::sleep_until(due).await,
        (None, None) => None,
    };
    if told.is_none() {
        std::future::pending::<()>().await;
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

/// Watches `path`, which is looked at once in any case: it was read before it was watched.
pub fn file(path: &Path) -> notify::Result<FileWatch> {
    let now = Instant::now();
    Ok(FileWatch {
        events: Some(watch(path, folders(path))?),
        path: path.to_owned(),
        seen: None,
        due: Some(now),
        look: now + LOOK,
        found: None,
    })
}

/// The folder of `path`, since an editor puts a new file in the place of the old one. Of a link, as in a
/// mounted ConfigMap, also the folder where it leads, which changes too.
fn folders(path: &Path) -> Vec<Folder> {
    let named = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let real = path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let mut folders: Vec<Folder> = Vec::new();
    for folder in [Some(named.to_owned()), real].into_iter().flatten() {
        let Ok(m) = folder.metadata() else { continue };
        let id = (m.dev(), m.ino());
        if !folders.iter().any(|(_, known)| *known == id) {
            folders.push((folder, id));
        }
    }
    folders
}

fn watch(path: &Path, folders: Vec<Folder>) -> notify::Result<Events> {
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
    for (folder, _) in &folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok(Events { _watcher: watcher, changed, done, folders })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tokio::time::timeout;

    use super::*;

    /// Longer than two looks take, on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-watch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    async fn begun(path: &Path) -> FileWatch {
        let mut watch = file(path).unwrap();
        let first = timeout(PATIENCE, watch.recv()).await;
        assert!(first.is_ok(), "not looked at once in any case");
        watch
    }

    async fn expect_told(watch: &mut FileWatch, what: &str) {
        let told = timeout(PATIENCE, watch.recv()).await;
        assert!(told.is_ok(), "not told of: {what}");
    }

    #[tokio::test]
    async fn a_change_is_not_lost_when_something_else_comes_first() {
        let dir = folder("lost");
        let path = dir.join("mesh.toml");
        let mut watch = begun(&path).await;
        fs::write(&path, "x").unwrap();
        // As often as the agent's loop may be woken by the network while the file settles.
        let woken = Duration::from_millis(1);
        let mut seen = false;
        for _ in 0..5000 {
            seen = timeout(woken, watch.recv()).await.is_ok();
            if seen {
                break;
            }
        }
        // Another file of the folder is none of our business.
        fs::write(dir.join("log"), "x").unwrap();
        let other = timeout(Duration::from_millis(100), watch.recv()).await;
        assert!(other.is_err(), "woken by another file");
        fs::remove_dir_all(&dir).unwrap();
        assert!(seen);
    }

    #[tokio::test]
    async fn a_folder_in_the_place_of_another_is_noticed_and_watched() {
        let dir = folder("replaced");
        let (etc, next, old) = (dir.join("etc"), dir.join("next"), dir.join("old"));
        let path = etc.join("mesh.toml");
        for (folder, text) in [(&etc, "one"), (&next, "two")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("mesh.toml"), text).unwrap();
        }
        let mut watch = begun(&path).await;
        fs::rename(&etc, &old).unwrap();
        fs::rename(&next, &etc).unwrap();
        expect_told(&mut watch, "a folder that was replaced").await;
        // The new one is watched: what is written there is told of before it is looked for.
        watch.look = Instant::now() + 2 * PATIENCE;
        fs::write(&path, "three").unwrap();
        expect_told(&mut watch, "a file in the folder that replaced the other").await;
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_deleted_and_made_again_is_noticed() {
        let dir = folder("again");
        let (etc, path) = (dir.join("etc"), dir.join("etc/mesh.toml"));
        fs::create_dir(&etc).unwrap();
        fs::write(&path, "one").unwrap();
        let mut watch = begun(&path).await;
        fs::remove_dir_all(&etc).unwrap();
        expect_told(&mut watch, "a folder that was deleted").await;
        fs::create_dir(&etc).unwrap();
        fs::write(&path, "two").unwrap();
        expect_told(&mut watch, "a folder that was made again").await;
        fs::remove_dir_all(&dir).unwrap();
    }

    /// etc -> current -> v1: neither the folder that is named nor the one where it leads changes.
    #[tokio::test]
    async fn a_link_that_is_switched_two_levels_up_is_noticed() {
        let dir = folder("switched");
        for (version, text) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir_all(dir.join(version).join("mesh")).unwrap();
            fs::write(dir.join(version).join("mesh/mesh.toml"), text).unwrap();
        }
        symlink("v1", dir.join("current")).unwrap();
        let path = dir.join("current/mesh/mesh.toml");
        let mut watch = begun(&path).await;
        symlink("v2", dir.join("next")).unwrap();
        fs::rename(dir.join("next"), dir.join("current")).unwrap();
        expect_told(&mut watch, "a link that was switched").await;
        fs::remove_dir_all(&dir).unwrap();
    }
}
