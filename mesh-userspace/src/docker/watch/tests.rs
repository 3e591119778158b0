use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    runtime::Handle,
    time::timeout,
};

use super::*;
use crate::faults::Faults;

const DEADLINE: Duration = Duration::from_secs(60);

/// A Docker with one container that runs and no networks, to which nothing ever happens. `failures`: so
/// many questions about the container are answered with an error first.
async fn docker(listener: UnixListener, failures: u32) {
    let failures = Arc::new(AtomicU32::new(failures));
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, failures.clone()));
    }
}

async fn answer(mut stream: UnixStream, failures: Arc<AtomicU32>) -> std::io::Result<()> {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(stream.read_u8().await?);
    }
    let asked = String::from_utf8_lossy(&asked);
    let body = match asked.split(' ').nth(1).unwrap_or_default() {
        "/networks" => "[]",
        "/containers/json" => r#"[{"Id":"web"}]"#,
        "/containers/web/json" => r#"{"Id":"web","Name":"/web","State":{"Running":true}}"#,
        _ => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            return std::future::pending().await;
        }
    };
    let fails = body.contains("Name")
        && failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
    let status = if fails { "500 Internal Server Error" } else { "200 OK" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

fn watcher(
    dir: &Path,
    supervisor: &Supervisor,
) -> (Watcher, mpsc::Receiver<Event>, mpsc::Receiver<Asked>) {
    let (calls, asked) = mpsc::channel(16);
    let (events, happened) = mpsc::channel(16);
    let api = Api { socket: dir.join("docker.sock") };
    let watcher = Watcher {
        inspector: Inspector::new(api.clone(), events.clone()),
        api,
        plugin_socket: Some(dir.join("plugin/mesh.sock")),
        is_expected: false,
        calls,
        events,
        health: Health::default(),
        look: Arc::default(),
        busy: Busy::default(),
        supervisor: supervisor.clone(),
    };
    (watcher, happened, asked)
}

/// The counts of the next look at everything and of what is told of the container.
async fn looked(happened: &mut mpsc::Receiver<Event>) -> [u64; 2] {
    let (mut all, mut one) = (None, None);
    while all.is_none() || one.is_none() {
        match timeout(DEADLINE, happened.recv()).await.unwrap() {
            Some(Event::All { count, .. }) => all = Some(count),
            Some(Event::Container { count, container, .. }) => {
                assert_eq!(container.unwrap().name, "/web");
                one = Some(count);
            }
            Some(other) => panic!("{other:?}"),
            None => panic!("the watch ended"),
        }
    }
    [all.unwrap(), one.unwrap()]
}

#[tokio::test]
async fn after_a_panic_docker_is_watched_and_served_as_before() {
    let dir = std::env::temp_dir().join(format!("mesh-docker-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let _docker = tokio::spawn(docker(UnixListener::bind(dir.join("docker.sock")).unwrap(), 0));
    let faults = Faults::default();
    let supervisor = Supervisor::new(Handle::current(), faults.clone());
    let (watcher, mut happened, _asked) = watcher(&dir, &supervisor);
    let plugin = watcher.plugin_socket.clone().unwrap();
    let watcher = Arc::new(watcher);
    let _task = supervisor.spawn(TASK, move || watcher.clone().run());
    let before = looked(&mut happened).await;
    UnixStream::connect(&plugin).await.unwrap();
    supervisor.panic_in(TASK);
    let after = looked(&mut happened).await;
    assert!(after.iter().min() > before.iter().max(), "{after:?} is older than {before:?}");
    UnixStream::connect(&plugin).await.unwrap();
    let now = faults.now();
    fs::remove_dir_all(&dir).unwrap();
    let [fault] = &now[..] else { panic!("{now:?}") };
    assert!(fault.fault.contains(TASK) && fault.fault.contains("injected"), "{fault}");
}

#[tokio::test]
async fn a_question_that_docker_fails_to_answer_is_asked_again_before_the_next_look() {
    let dir = std::env::temp_dir().join(format!("mesh-docker-fails-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let listener = UnixListener::bind(dir.join("docker.sock")).unwrap();
    let _docker = tokio::spawn(docker(listener, 2));
    let supervisor = Supervisor::new(Handle::current(), Faults::default());
    let (watcher, mut happened, _asked) = watcher(&dir, &supervisor);
    let watcher = Arc::new(watcher);
    let _task = supervisor.spawn(TASK, move || watcher.clone().run());
    // Those of the first look.
    assert_eq!(looked(&mut happened).await, [1, 2]);
    fs::remove_dir_all(&dir).unwrap();
}
