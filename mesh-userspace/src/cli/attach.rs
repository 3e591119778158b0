//! `mesh attach`

use std::{net::IpAddr, os::fd::AsFd, process::ExitCode};

use anyhow::bail;
use clap::{Args, builder::NonEmptyStringValueParser as NonEmpty};

use super::{
    Place, print, print_json,
    session::{self, Session},
};
use crate::{
    agent::protocol::{Request, Response},
    host::{AttachRequest, Attached},
    net::open_netns,
};

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The namespace: a name of `ip netns`, a path, or the pid of a process in it
    #[arg(value_parser = NonEmpty::new())]
    pub netns: String,
    /// Name of the endpoint [default: that of the namespace]
    #[arg(long, value_parser = NonEmpty::new())]
    pub name: Option<String>,
    /// Address of the endpoint; once more for the other of IPv4 and IPv6 [default: the first that is
    /// free in the node's subnet]
    #[arg(long, value_name = "ADDR")]
    pub ip: Vec<IpAddr>,
    /// Network to connect it to [default: the cluster's own]
    #[arg(long, value_name = "NET", value_parser = NonEmpty::new())]
    pub network: Option<String>,
    /// Print what it was given (interface, addresses, routes) as JSON
    #[arg(long)]
    pub json: bool,
}

pub async fn run(args: AttachArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let netns = open_netns(&args.netns)?;
    let request = AttachRequest {
        netns: canonical(&args.netns),
        name: args.name,
        addresses: args.ip,
        network: args.network,
        ..AttachRequest::default()
    };
    let call = Request::Attach(Box::new(request.clone()));
    let attached = match session::open(place, &call, Some(netns.as_fd()), false).await? {
        Session::Agent(Response::Attached(attached)) => *attached,
        Session::Agent(other) => bail!("the agent answered something else: {other:?}"),
        Session::Direct(mut host) => host.attach(request, netns.as_fd()).await?,
    };
    if args.json {
        print_json(&attached)?;
    } else {
        print(&text(&attached))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The namespace as it can be opened again, whatever the folder a command runs in.
fn canonical(netns: &str) -> String {
    if netns.bytes().all(|b| b.is_ascii_digit()) {
        format!("/proc/{netns}/ns/net")
    } else if netns.contains('/') {
        std::path::absolute(netns).map_or_else(|_| netns.into(), |p| p.display().to_string())
    } else {
        format!("/run/netns/{netns}")
    }
}

fn text(a: &Attached) -> String {
    let list = |items: Vec<String>| items.join(", ");
    format!(
        "{} is attached to network {}\n  interface  {} (on the host {})\n  address    {}\n  \
         gateway    {}\n  routes     {}\n  mac        {}\n  mtu        {}\n",
        a.name,
        a.network,
        a.ifname,
        a.host_ifname,
        a.addresses.join(", "),
        list(a.gateways.iter().map(ToString::to_string).collect()),
        list(a.routes.iter().map(ToString::to_string).collect()),
        a.mac,
        a.mtu
    )
}
