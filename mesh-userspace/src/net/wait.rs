//! Waiting for what the kernel acknowledges before it is done.

use std::time::{Duration, Instant};

use super::NetError;

/// Asks each millisecond, once at least and no longer than `limit`. Did it become so?
pub(super) async fn until(
    limit: Duration,
    is_so: impl AsyncFn() -> Result<bool, NetError>,
) -> Result<bool, NetError> {
    let deadline = Instant::now() + limit;
    while !is_so().await? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(true)
}
