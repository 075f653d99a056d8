//! `ironclad-pki DIR [HOST]... [--node NAME=ADDRESS]...`: makes a cluster's certificates for daemons that run apart.
#![allow(clippy::disallowed_methods)] // a program of its own, which needs the date once

use anyhow::Context as _;
use auth::cluster::Cluster;
use auth::pki::Subject;

const USAGE: &str = "ironclad-pki makes what is missing of a cluster's certificates

Usage: ironclad-pki DIR [HOST]... [--node NAME=ADDRESS]...

  DIR                    where the files are written: ca, apiserver, admin, scheduler, …
  HOST                   names and addresses of the API server, beside the usual ones
  --node NAME=ADDRESS    also node-NAME, with which a node is client and server";

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next().filter(|a| !a.starts_with('-')) else {
        println!("{USAGE}");
        return Ok(());
    };
    let (mut hosts, mut nodes) = (Vec::new(), Vec::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--node" => {
                let node = args.next().context("--node needs NAME=ADDRESS")?;
                let (name, address) = node.split_once('=').context("--node needs NAME=ADDRESS")?;
                nodes.push((name.to_owned(), address.to_owned()));
            }
            flag if flag.starts_with('-') => anyhow::bail!("unknown argument {flag:?}\n{USAGE}"),
            _ => hosts.push(arg),
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let cluster = Cluster::open(std::path::Path::new(&dir), i64::try_from(now)?)?;
    cluster.components()?;
    let hosts = auth::cluster::API_HOSTS.iter().map(ToString::to_string).chain(hosts);
    let subject = Subject::client("kube-apiserver", None).serving(hosts);
    cluster.pair("apiserver", &subject, true)?;
    for (name, address) in nodes {
        let subject = Subject::client(&format!("system:node:{name}"), Some("system:nodes"));
        cluster.pair(&format!("node-{name}"), &subject.serving([name, address]), true)?;
    }
    println!("certificates are in {dir}");
    Ok(())
}
