//! The settings that the overlay needs on its device; the rest is [`super::reconcile`]'s.

use super::{Error, Link, Netlink, Result, sysctl};

impl Netlink {
    /// Finds the device that was just opened and makes it ready to be set up. To be called in this connection's
    /// namespace, whose `/proc/sys` it writes.
    ///
    /// # Errors
    /// If there is no such device, or the kernel does not take a setting.
    pub async fn prepare_device(&self, name: &str) -> Result<Link> {
        let link = self.link(name).await?;
        let link =
            link.ok_or_else(|| Error::new(format!("find link {name}"), nix::Error::ENODEV))?;
        // ICMP errors come from our own overlay address, which Linux takes for a martian otherwise.
        sysctl::write(&sysctl::conf("ipv4", name, "accept_local"), "1")?;
        // No link-local address: it would only probe for neighbours that a TUN device cannot have. Where
        // the kernel has no IPv6 there is nothing to set.
        let _ = sysctl::write(&sysctl::conf("ipv6", name, "addr_gen_mode"), "1");
        Ok(link)
    }
}
