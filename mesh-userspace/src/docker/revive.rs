//! Containers that are to run always and that Docker gave up on, since its driver was not there: after a
//! reboot in which it started first, it waits 15 s for each and does not try again.

use super::{
    api::{Api, ApiError, Container},
    driver::NOT_YET,
    networks::DRIVER,
};

/// Starts those of these networks, one after the other.
pub async fn revive(api: Api, networks: Vec<String>) {
    if networks.is_empty() {
        return;
    }
    let exited = match api.exited(&networks).await {
        Ok(exited) => exited,
        Err(e) => {
            tracing::debug!("containers that do not run: {e}");
            return;
        }
    };
    for id in exited {
        if let Err(e) = revive_one(&api, &id).await {
            tracing::warn!("container {id} is to run always, and Docker does not start it: {e}");
        }
    }
}

async fn revive_one(api: &Api, id: &str) -> Result<(), ApiError> {
    let container = match api.container(id).await {
        Ok(container) => container,
        Err(ApiError::NotFound(_)) => return Ok(()),
        Err(e) => return Err(e),
    };
    if was_given_up(&container) {
        api.start(id).await?;
        let name = container.name.trim_start_matches('/');
        tracing::info!(container = name, "started: Docker could not while the driver was away");
    }
    Ok(())
}

/// Did Docker try to start it for its restart policy, and miss nothing but the driver?
fn was_given_up(container: &Container) -> bool {
    let state = &container.state;
    let policy = container.host_config.restart_policy.name.as_str();
    let is_missing = state.error.contains(&format!("plugin \"{DRIVER}\" not found"))
        || state.error.contains(NOT_YET);
    !state.running && is_missing && ["always", "unless-stopped", "on-failure"].contains(&policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(policy: &str, error: &str) -> Container {
        let mut container = Container::default();
        container.host_config.restart_policy.name = policy.into();
        container.state.error = error.into();
        container
    }

    #[test]
    fn only_what_is_to_run_and_missed_the_driver_is_started() {
        let missing = r#"failed to add endpoint: plugin "mesh" not found"#;
        assert!(was_given_up(&container("always", missing)));
        let unknown = "remote: network 10.0.9.0/24 is not known to the mesh yet";
        assert!(was_given_up(&container("unless-stopped", unknown)));
        assert!(!was_given_up(&container("no", missing)));
        assert!(!was_given_up(&container("always", r#"plugin "weave" not found"#)));
        assert!(!was_given_up(&container("always", "")));
        let mut running = container("always", missing);
        running.state.running = true;
        assert!(!was_given_up(&running));
    }
}
