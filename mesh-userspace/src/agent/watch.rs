//! The config file: told of when it changes, also when it is replaced or is a link to elsewhere.

use std::path::Path;

use notify::{RecursiveMode, Watcher};
use tokio::{sync::mpsc, time::Instant};

/// Something happened to the file. Ends the watch when dropped.
pub struct FileWatch {
    _watcher: notify::RecommendedWatcher,
    changed: mpsc::Receiver<()>,
    /// When a change that we know of is worth a look.
    due: Option<Instant>,
}

impl FileWatch {
    /// May be dropped while it waits: nothing is lost.
    pub async fn recv(&mut self) -> Option<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.changed.recv().await?;
                // Editors write, rename and set modes: wait until it is done.
                *self.due.insert(Instant::now() + super::SETTLE)
            }
        };
        tokio::time::sleep_until(due).await;
        self.due = None;
        while self.changed.try_recv().is_ok() {}
        Some(())
    }
}

/// Watches the folder of `path`, since an editor puts a new file in the place of the old one.
pub fn file(path: &Path) -> notify::Result<FileWatch> {
    let (sender, changed) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading it ourselves is an event too.
        if event.is_ok_and(|e| !e.kind.is_access()) {
            // A full channel means that a look is due already.
            let _ = sender.try_send(());
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
    Ok(FileWatch { _watcher: watcher, changed, due: None })
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
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(seen, Some(Some(())));
    }
}
