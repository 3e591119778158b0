//! Waiting on conditions.

use std::{
    env, iter,
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(10);
/// Set to a number by which every deadline is multiplied: emulated machines take longer.
pub const PATIENCE: &str = "MESH_TESTS_PATIENCE";

/// How long to wait here for what takes less than `limit` on a real machine.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = || env::var(PATIENCE).ok()?.parse().ok();
    limit * *FACTOR.get_or_init(|| factor().unwrap_or(1))
}

/// How long to wait for one packet. It arrives at once or never; but a machine that shares its CPUs
/// may stand still for a second, and the first packet may wait for a neighbour to be found.
pub fn arrival() -> Duration {
    patient(Duration::from_secs(5))
}

/// What is left until `deadline`, each time that it is asked for; at last, when that is over, an instant
/// more: what came while this thread stood still is there. Never 0, which a socket takes for no limit.
pub fn left_until(deadline: Instant) -> impl Iterator<Item = Duration> {
    let mut is_over = false;
    iter::from_fn(move || {
        let left = deadline.saturating_duration_since(Instant::now());
        let was_over = std::mem::replace(&mut is_over, left.is_zero());
        (!was_over).then_some(left.max(Duration::from_micros(1)))
    })
}

/// Repeats `probe` until it succeeds. The error names `what` was waited for and the last answer.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let limit = patient(limit);
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                bail!("waited {limit:?} in vain for {what}: {last}")
            }
            Err(_) => sleep(INTERVAL),
        }
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || if probe() { Ok(()) } else { Err("not yet".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_is_named_with_the_last_answer() {
        let error =
            until("spring", Duration::from_millis(20), || Err::<(), _>("snow".into())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("spring") && text.contains("snow"), "{text}");
    }
}
