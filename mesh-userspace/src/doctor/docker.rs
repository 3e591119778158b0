//! Docker on this host, where it is by default: does it find the driver, and may it lead into the
//! world?

use std::{os::unix::net::UnixStream, path::Path};

use super::{
    Finding,
    Status::{Info, Ok, Warn},
    sysctl,
};

const SOCKET: &str = "/run/docker.sock";
const PLUGIN: &str = "/run/docker/plugins/mesh.sock";

pub(super) fn findings() -> Vec<Finding> {
    if !Path::new(SOCKET).exists() {
        return Vec::new();
    }
    let meaning = "`docker network create -d mesh` works while an agent serves the driver.";
    let driver = match UnixStream::connect(PLUGIN) {
        Result::Ok(_) => Finding::new("docker_driver", Ok, PLUGIN, meaning),
        Err(e) => {
            let finding = Finding::new("docker_driver", Info, format!("{PLUGIN}: {e}"), meaning);
            finding.mended_by("mesh up --config FILE; mesh status  # says what Docker lacks")
        }
    };
    vec![driver, forwarding()]
}

fn forwarding() -> Finding {
    let meaning = "Containers of networks with gateway=mesh reach the world if the host forwards.";
    match sysctl("net/ipv4/ip_forward") {
        Result::Ok(value) if value == "0" => Finding::new("ip_forward", Warn, value, meaning)
            .mended_by("sysctl -w net.ipv4.ip_forward=1"),
        Result::Ok(value) => Finding::new("ip_forward", Ok, value, meaning),
        Err(e) => Finding::new("ip_forward", Warn, format!("unseen: {e}"), meaning)
            .mended_by("sysctl net.ipv4.ip_forward"),
    }
}
