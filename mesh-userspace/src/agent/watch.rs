//! The config file: told of when it changes, also when it is replaced or is a link to elsewhere.

use std::path::Path;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Something happened to the file. Ends the watch when dropped.
pub struct FileWatch {
    _watcher: notify::RecommendedWatcher,
    changed: mpsc::Receiver<()>,
}

impl FileWatch {
    pub async fn recv(&mut self) -> Option<()> {
        self.changed.recv().await?;
        // Editors write, rename and set modes: wait until it is done.
        tokio::time::sleep(super::SETTLE).await;
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
    Ok(FileWatch { _watcher: watcher, changed })
}
