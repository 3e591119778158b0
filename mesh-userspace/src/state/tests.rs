use std::fs;

use super::*;

#[test]
fn a_second_lock_is_refused_until_the_first_is_gone() {
    let dir = std::env::temp_dir().join(format!("mesh-lock-{}", std::process::id()));
    let first = RunDir::lock(&dir).unwrap();
    assert!(matches!(RunDir::lock(&dir), Err(StateError::Locked { .. })));
    drop(first);
    RunDir::lock(&dir).unwrap().remove().unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_folder_that_is_removed_is_made_anew_with_what_was_in_it() {
    let dir = std::env::temp_dir().join(format!("mesh-gone-{}", std::process::id()));
    let mut first = RunDir::lock(&dir).unwrap();
    first.save_cluster(b"one").unwrap();
    first.save_cluster(b"two").unwrap();
    first.save_docker(b"{}").unwrap();
    assert!(first.is_in_place());
    fs::remove_dir_all(&dir).unwrap();
    assert!(!first.is_in_place());
    first.renew().unwrap();
    assert!(first.is_in_place());
    assert_eq!(first.cluster().unwrap(), b"two");
    assert_eq!(fs::read(dir.join(DOCKER)).unwrap(), b"{}");
    fs::remove_dir_all(&dir).unwrap();
    let second = RunDir::lock(&dir).unwrap();
    assert!(matches!(first.renew(), Err(StateError::Locked { .. })) && !first.is_in_place());
    second.remove().unwrap();
}

#[test]
fn a_saved_state_is_found_again() {
    let dir = std::env::temp_dir().join(format!("mesh-state-{}", std::process::id()));
    let run = RunDir::lock(&dir).unwrap();
    let state = State { node: "h1".into(), generation: 7, ..State::default() };
    run.save(&state).unwrap();
    assert_eq!(run.load().unwrap(), state);
    run.remove().unwrap();
}

#[test]
fn a_record_of_docker_that_can_not_be_read_is_set_aside() {
    let dir = std::env::temp_dir().join(format!("mesh-docker-record-{}", std::process::id()));
    let run = RunDir::lock(&dir).unwrap();
    std::os::unix::fs::symlink(DOCKER, dir.join(DOCKER)).unwrap();
    assert_eq!(run.docker::<u32>().unwrap(), None);
    run.save_docker(b"7").unwrap();
    assert_eq!(run.docker::<u32>().unwrap(), Some(7));
    assert_eq!(run.spoiled().len(), 1);
    run.remove().unwrap();
}
