//! A look at an enrolled pod's namespace: what is not as it was left is walled, repaired or
//! reported, or the pod is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;

use mesh_api::worker::FdKind;
use mesh_common::RESERVED_PORTS;
use tokio::time::Instant;

use super::devices::MAX_DEVICES;
use super::netlink::{Address, DUMP_LIMIT, Link, Route};
use super::netns::{self, Contents, NetnsError};
use super::ports;
use super::settings::Settings;
use super::tamper::{Outcome, Tamper, noticed};
use super::unserved::Unserved;
use super::workers::PodTask;

/// Things that a line of the log names; it tells how many more there are.
const NAMED: usize = 3;

/// What was found by the last look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    links: Vec<Link>,
    /// Addresses that are not the pod's.
    foreign: Vec<IpAddr>,
    /// `None` before the first look: what is there then is as it should be.
    routes: Option<BTreeSet<Route>>,
    settings: Option<Settings>,
}

impl PodTask {
    /// Looks at the namespace; whether the pod had to be cut off.
    pub(super) fn look(&mut self) -> bool {
        let began = Instant::now();
        let cut_off = match self.look_inside() {
            Ok(()) => {
                self.told = None;
                false
            }
            Err(why) => self.unserved(why, None),
        };
        self.look_at_grandfathers();
        self.watch.looked(began);
        cut_off
    }

    fn look_inside(&mut self) -> Result<(), Unserved> {
        let contents = match netns::look(&self.netns) {
            Ok(contents) => contents,
            Err(NetnsError::Inside { source, .. }) if source.kind() == ErrorKind::InvalidData => {
                return Err(Unserved::Unreadable(source.to_string()));
            }
            Err(e) => {
                tracing::warn!(pod = %self.record.key, error = %e, "can't look at the pod's devices; trying again");
                return Ok(());
            }
        };
        self.look_at_devices(&contents.links)?;
        self.look_at_addresses(&contents);
        self.look_at_routes(contents.routes);
        self.look_at_ports();
        self.look_at_settings();
        self.look_at_processes();
        Ok(())
    }

    fn look_at_devices(&mut self, links: &[Link]) -> Result<(), Unserved> {
        if links == self.seen.links {
            return Ok(());
        }
        if links.len() > MAX_DEVICES {
            return Err(Unserved::TooManyDevices);
        }
        let devices = match netns::match_devices(links) {
            Ok(devices) => devices,
            Err(e) => {
                tracing::warn!(pod = %self.record.key, error = %e, "can't match the pod's devices; trying again");
                return Ok(());
            }
        };
        let first = self.seen.links.is_empty();
        let before = std::mem::replace(&mut self.seen.links, links.to_vec());
        self.follow_walls(&devices.walls)
            .map_err(|e| Unserved::Wall(e.to_string()))?;
        if let Some(why) = Unserved::by_devices(&devices.bare) {
            return Err(why);
        }
        let new = links.iter().filter(|link| !first && !before.contains(link));
        let what: Vec<String> = new.map(Link::describe).collect();
        self.tell(Tamper::Device, Outcome::Contained, &what);
        Ok(())
    }

    fn look_at_addresses(&mut self, contents: &Contents) {
        let own = &self.goal.addresses;
        let foreign = |a: &Address| {
            let local = match a.address {
                IpAddr::V4(v4) => v4.is_loopback(),
                IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
            };
            (!local && !own.contains(&a.address)).then_some(a.address)
        };
        let foreign: Vec<IpAddr> = contents.addresses.iter().filter_map(foreign).collect();
        let new = foreign.iter().filter(|a| !self.seen.foreign.contains(a));
        let what: Vec<String> = new.map(ToString::to_string).collect();
        self.seen.foreign = foreign;
        self.tell(Tamper::Address, Outcome::Contained, &what);
    }

    fn look_at_routes(&mut self, routes: Vec<Route>) {
        // The kernel's own come and go with addresses and devices, which are told of.
        let routes: BTreeSet<Route> = routes.into_iter().filter(|r| !r.by_kernel).collect();
        let before = self.seen.routes.replace(routes);
        let (Some(before), Some(routes)) = (before, &self.seen.routes) else {
            return;
        };
        let new = routes.difference(&before).map(|r| format!("new: {r}"));
        // What a dump has no room for is not gone.
        let full = routes.len() >= DUMP_LIMIT;
        let gone = before.difference(routes).filter(|_| !full);
        let what: Vec<String> = new.chain(gone.map(|r| format!("gone: {r}"))).collect();
        self.tell(Tamper::Route, Outcome::Contained, &what);
    }

    fn look_at_ports(&mut self) {
        let (outcome, what) = match ports::reserve(&self.netns) {
            Ok(missing) if missing.is_empty() => return,
            Ok(missing) => {
                let what = format!("{missing:?} of {RESERVED_PORTS:?} were not reserved any more");
                (Outcome::Repaired, what)
            }
            Err(e) => (Outcome::Standing, e.to_string()),
        };
        self.tell(Tamper::Ports, outcome, &[what]);
    }

    fn look_at_settings(&mut self) {
        let Ok(now) = Settings::read(&self.netns) else {
            return;
        };
        let before = self.seen.settings.replace(now);
        if let (Some(before), Some(now)) = (before, &self.seen.settings) {
            let what = now.changes(&before);
            self.tell(Tamper::Setting, Outcome::Contained, &what);
        }
    }

    /// A ready worker has other listeners than before: some were killed, and made anew at once or
    /// not yet.
    pub(super) fn listeners_changed(&self, before: &BTreeMap<FdKind, u64>) {
        let now = self.legacy.sockets();
        let names = |kinds: Vec<&FdKind>| -> Vec<String> {
            kinds.iter().map(|kind| format!("{kind:?}")).collect()
        };
        let gone = before.keys().filter(|kind| !now.contains_key(kind));
        self.tell(Tamper::Listener, Outcome::Standing, &names(gone.collect()));
        let made = now
            .iter()
            .filter(|(kind, inode)| before.get(kind) != Some(inode));
        let made = made.map(|(kind, _)| kind).collect();
        self.tell(Tamper::Listener, Outcome::Repaired, &names(made));
    }

    /// Counts and tells of what was found, in one line.
    fn tell(&self, kind: Tamper, outcome: Outcome, what: &[String]) {
        if what.is_empty() {
            return;
        }
        let mut detail = what[..what.len().min(NAMED)].join(", ");
        if what.len() > NAMED {
            detail.push_str(&format!(" and {} more", what.len() - NAMED));
        }
        noticed(Some(&self.record.key), kind, outcome, &detail);
    }
}
