//! Settings of a pod's namespace that are watched but not repaired: an app may have its reasons,
//! and what they allow is contained. The kernel tells of none of them.

use std::fs;
use std::io;
use std::path::Path;

use super::events::word;
use super::netns::{Netns, NetnsError};

/// Below `/proc/sys/net`, and what contains what each allows:
/// the worker's ports are fixed; the wall passes no foreign source, which a bind to a foreign
/// address and forwarding lead to; steering and wall know 127.0.0.0/8 on no device but `lo`.
const WATCHED: [&str; 6] = [
    "ipv4/ip_local_port_range",
    "ipv4/ip_nonlocal_bind",
    "ipv6/ip_nonlocal_bind",
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/route_localnet",
];

/// What they are, in the order of [`WATCHED`]; `None` where the kernel has no such setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings([Option<String>; WATCHED.len()]);

impl Settings {
    pub(super) fn read(netns: &Netns) -> Result<Self, NetnsError> {
        netns.inside("reading settings", || {
            Ok(Self(WATCHED.map(|name| read(name).ok())))
        })
    }

    /// Those that are another than before, for people.
    pub(super) fn changes(&self, before: &Self) -> Vec<String> {
        let both = WATCHED.iter().zip(before.0.iter().zip(&self.0));
        let changed = both.filter(|(_, (before, now))| before != now);
        changed
            .map(|(name, (before, now))| {
                let show = |value: &Option<String>| word(value.as_deref().unwrap_or("none"));
                format!("{name}: {} (was {})", show(now), show(before))
            })
            .collect()
    }
}

fn read(name: &str) -> io::Result<String> {
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(name))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named() {
        let mut values = [const { None }; WATCHED.len()];
        values[0] = Some("32768-60999".to_owned());
        let before = Settings(values.clone());
        assert_eq!(before.changes(&before), Vec::<String>::new());
        values[0] = Some("15001-15010".to_owned());
        assert_eq!(
            Settings(values).changes(&before),
            ["ipv4/ip_local_port_range: 15001-15010 (was 32768-60999)"]
        );
    }
}
