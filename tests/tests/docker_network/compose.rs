//! `docker compose` with a file that says no more than `driver: mesh`.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    netns::check,
    scenario::skip,
};
use serde_json::json;

/// Where `docker compose` is: set by `cargo xtask test`.
const COMPOSE: &str = "MESH_DOCKER_COMPOSE";

const SHOP: &str = "\
services:
  web:
    image: bb
    command: httpd -f -p 80 -h /var/www
    stop_grace_period: 1s
    networks: [back]
  asker:
    image: bb
    command: sleep 10000
    stop_grace_period: 1s
    networks:
      back:
        aliases: [curious]
networks:
  back:
    name: shop
    driver: mesh
    ipam:
      config:
        - subnet: 10.0.9.0/24
";
const VISITOR: &str = "\
services:
  visitor:
    image: bb
    command: sleep 10000
    stop_grace_period: 1s
    networks: [shop]
networks:
  shop:
    external: true
";

/// `docker compose` on a host, with a file of its own.
struct Compose<'a> {
    docker: &'a Docker,
    at: usize,
    file: PathBuf,
}

impl<'a> Compose<'a> {
    fn new(docker: &'a Docker, at: usize, text: &str) -> Result<Self> {
        let plugins = env::var(COMPOSE).context(COMPOSE)?;
        let dir = docker.topology.dir.join(format!("compose-{at}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("config.json"), json!({"cliPluginsExtraDirs": [plugins]}).to_string())?;
        let file = dir.join("compose.yaml");
        fs::write(&file, text)?;
        Ok(Self { docker, at, file })
    }

    fn run(&self, line: &str) -> Result<String> {
        let file = self.file.to_str().context("path")?;
        let dir = self.file.parent().and_then(|dir| dir.to_str()).context("path")?;
        let words = ["--config", dir, "compose", "--progress", "plain", "-f", file];
        let words: Vec<&str> = words.into_iter().chain(line.split_whitespace()).collect();
        let output = self.docker.docker(self.at, &words).output()?;
        check(&format!("h{}: docker compose {line}", self.at + 1), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

#[test]
fn compose_needs_no_more_than_the_name_of_the_driver() {
    if env::var_os(COMPOSE).is_none() {
        return skip(&format!("{COMPOSE} does not say where docker compose is"));
    }
    scenario(2, |docker| {
        let shop = Compose::new(docker, 0, SHOP)?;
        let visitor = Compose::new(docker, 1, VISITOR)?;
        shop.run("up -d")?;
        docker.wait_network("shop")?;
        visitor.run("up -d")?;

        // By service, by alias, and by what compose calls the container.
        shop.run("exec -T asker timeout 5 wget -qO- http://web")?;
        let web = shop.run("ps --format {{.Name}} web")?;
        for name in ["web", "curious", &web, "web.shop"] {
            let line = format!("exec compose-1-visitor-1 ping -c 1 -w 5 {name}");
            docker.wait_for(1, &line, |_| true)?;
        }
        let page = "exec compose-1-visitor-1 timeout 5 wget -qO- http://web";
        docker.wait_for(1, page, |page| page == "hello")?;
        let back = "exec -T asker ping -c 1 -w 5 visitor";
        shop.run(back)?;

        // Again, it finds all as it should be; and it grows.
        shop.run("up -d")?;
        shop.run("up -d --scale web=3")?;
        let three = |text: &str| text.matches("Address: 10.0.9.").count() == 3;
        let ask = "exec compose-1-visitor-1 nslookup -type=a web";
        docker.wait_for(1, ask, three)?;

        visitor.run("down")?;
        shop.run("down")?;
        for at in [0, 1] {
            docker.wait_for(at, "network ls -q -f name=^shop$", str::is_empty)?;
            let endpoints = docker.topology.hosts[at].status()?["endpoints"].clone();
            ensure!(endpoints.as_array().is_some_and(Vec::is_empty), "{endpoints}");
        }
        Ok(())
    });
}
