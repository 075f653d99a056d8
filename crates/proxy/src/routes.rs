//! What the routing table needs so that Services can be reached from this machine.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use daemon::Context;
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, RouteMessageBuilder};

/// Reads `a.b.c.d/n`.
///
/// # Errors
/// Says what the text should be.
pub fn parse_cidr(text: &str) -> anyhow::Result<(Ipv4Addr, u8)> {
    let bad = || anyhow::anyhow!("{text:?} is no IPv4 range like 10.96.0.0/16");
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let (address, prefix): (Ipv4Addr, u8) =
        (address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
    anyhow::ensure!((1..=32).contains(&prefix), "{text:?}: the prefix must be /1 to /32");
    Ok((Ipv4Addr::from(u32::from(address) & (u32::MAX << (32 - prefix))), prefix))
}

fn netlink(ctx: &Context) -> anyhow::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open route netlink")?;
    ctx.tasks.job(connection);
    Ok(handle)
}

async fn loopback(handle: &Handle) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name("lo".to_owned()).execute();
    let link = links.try_next().await.context("look up lo")?.context("there is no lo")?;
    Ok(link.header.index)
}

/// Lets packets through from one interface to another: every node is a router for its pods.
///
/// # Errors
/// When the kernel's switch cannot be set.
pub fn forward() -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    std::fs::write(path, "1").with_context(|| format!("write {path}"))
}

/// Routes the Services' range to this machine itself. Their addresses are replaced on the way out, but the kernel wants
/// a route before it lets a packet go, and a machine without an uplink has none.
///
/// # Errors
/// When the route cannot be set.
pub async fn services(
    cidr: (Ipv4Addr, u8),
    source: Option<Ipv4Addr>,
    ctx: &Context,
) -> anyhow::Result<()> {
    let handle = netlink(ctx)?;
    let index = loopback(&handle).await?;
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(cidr.0, cidr.1)
        .output_interface(index);
    if let Some(source) = source {
        route = route.pref_source(source);
    }
    handle.route().add(route.build()).replace().execute().await.context("route the Services' range")
}

/// Takes the route away again.
///
/// # Errors
/// When there is one and it cannot be removed.
pub async fn remove_services(cidr: (Ipv4Addr, u8), ctx: &Context) -> anyhow::Result<()> {
    let handle = netlink(ctx)?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(cidr.0, cidr.1).build();
    match handle.route().del(route).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ESRCH => Ok(()),
        other => other.context("remove the route of the Services' range"),
    }
}

/// Gives the loopback interface an address of the node, for a machine that has no other.
///
/// # Errors
/// When it cannot be set.
pub async fn own_address(address: Ipv4Addr, ctx: &Context) -> anyhow::Result<()> {
    let handle = netlink(ctx)?;
    let index = loopback(&handle).await?;
    let request = handle.address().add(index, IpAddr::V4(address), 32).replace();
    request.execute().await.with_context(|| format!("add {address} to lo"))?;
    handle
        .link()
        .set(rtnetlink::LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .context("bring lo up")
}

/// Takes such an address away again.
///
/// # Errors
/// When it is there and cannot be removed.
pub async fn remove_own_address(address: Ipv4Addr, ctx: &Context) -> anyhow::Result<()> {
    let handle = netlink(ctx)?;
    let index = loopback(&handle).await?;
    let mut found = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = found.try_next().await.context("list addresses")? {
        if message.attributes.contains(&AddressAttribute::Local(IpAddr::V4(address))) {
            handle.address().del(message).execute().await.context("remove the address")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_cut_to_their_base() {
        assert_eq!(parse_cidr("10.96.7.1/16").unwrap(), (Ipv4Addr::new(10, 96, 0, 0), 16));
        assert!(parse_cidr("10.96.0.0").is_err());
        assert!(parse_cidr("10.96.0.0/0").is_err());
    }
}
