//! `ironclad-pki DIR HOST…`: makes a cluster's certificates for daemons that run apart.
#![allow(clippy::disallowed_methods)] // a program of its own, which needs the date once

use auth::cluster::Cluster;
use auth::pki::Subject;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(dir) = args.next().filter(|a| !a.starts_with('-')) else {
        println!(
            "ironclad-pki makes what is missing of a cluster's certificates\n\n\
             Usage: ironclad-pki DIR [HOST]...\n\n\
             \x20 DIR    where the files are written: ca, apiserver, admin, scheduler, …\n\
             \x20 HOST   names and addresses of the API server, beside the usual ones"
        );
        return Ok(());
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let cluster = Cluster::open(std::path::Path::new(&dir), i64::try_from(now)?)?;
    cluster.components()?;
    let hosts = auth::cluster::API_HOSTS.iter().map(ToString::to_string).chain(args);
    let subject = Subject::client("kube-apiserver", None).serving(hosts);
    cluster.pair("apiserver", &subject, true)?;
    println!("certificates are in {dir}");
    Ok(())
}
