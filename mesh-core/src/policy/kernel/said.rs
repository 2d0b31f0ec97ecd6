//! What terms say of ports, added up.

use std::collections::BTreeSet;

use super::super::{Action, Direction, PortTerm, Protocol};
use super::{KernelClass, KernelVerdict, Verdicts};

/// A set of ports.
#[derive(Clone, Debug, Default)]
pub(super) struct Ports {
    pub(super) all: bool,
    pub(super) single: BTreeSet<u16>,
}

impl Ports {
    fn add(&mut self, port: Option<u16>) {
        match port {
            None => self.all = true,
            // No flow has it, and look-ups take it for all.
            Some(0) => {}
            Some(port) => {
                self.single.insert(port);
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.all |= other.all;
        self.single.extend(&other.single);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.single.is_empty()
    }

    pub(super) fn has(&self, port: u16) -> bool {
        self.all || self.single.contains(&port)
    }
}

/// What is allowed and what is denied of one class of UDP.
#[derive(Clone, Debug, Default)]
pub(super) struct Udp {
    pub(super) allow: Ports,
    pub(super) deny: Ports,
}

impl Udp {
    fn merge(&mut self, other: &Self) {
        self.allow.merge(&other.allow);
        self.deny.merge(&other.deny);
    }

    fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    fn verdicts(&self, class: KernelClass, verdicts: &mut Verdicts) {
        if self.deny.all {
            return;
        }
        if self.allow.all {
            verdicts.insert((class, 0), KernelVerdict::Allow);
            let denied = self.deny.single.iter();
            verdicts.extend(denied.map(|port| ((class, *port), KernelVerdict::Deny)));
            return;
        }
        let allowed = self.allow.single.difference(&self.deny.single);
        verdicts.extend(allowed.map(|port| ((class, *port), KernelVerdict::Allow)));
    }
}

/// All that concerns the kernel of what is said of some peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) tcp_denied: Ports,
    pub(super) udp_out: Udp,
    pub(super) udp_in: Udp,
}

impl Said {
    /// Adds a clause's port. `member` is whether the clause is for members alone.
    pub(super) fn add(
        &mut self,
        direction: Direction,
        action: Action,
        member: bool,
        term: PortTerm,
    ) {
        let ports = match (term.protocol, direction, action) {
            (Protocol::Tcp, Direction::Outbound, Action::Deny) => &mut self.tcp_denied,
            // Allowing TCP, and all of it inbound, is the workers' part.
            (Protocol::Tcp, ..) => return,
            // Nobody proves anything in UDP.
            (Protocol::Udp, ..) if member => return,
            (Protocol::Udp, Direction::Outbound, Action::Allow) => &mut self.udp_out.allow,
            (Protocol::Udp, Direction::Outbound, Action::Deny) => &mut self.udp_out.deny,
            (Protocol::Udp, Direction::Inbound, Action::Allow) => &mut self.udp_in.allow,
            (Protocol::Udp, Direction::Inbound, Action::Deny) => &mut self.udp_in.deny,
        };
        ports.add(term.port);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.tcp_denied.merge(&other.tcp_denied);
        self.udp_out.merge(&other.udp_out);
        self.udp_in.merge(&other.udp_in);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tcp_denied.is_empty() && self.udp_out.is_empty() && self.udp_in.is_empty()
    }

    pub(super) fn verdicts(&self) -> Verdicts {
        let mut verdicts = Verdicts::new();
        let tcp = &self.tcp_denied;
        let denied = match tcp.all {
            true => &BTreeSet::from([0]),
            false => &tcp.single,
        };
        let deny = |port: &u16| ((KernelClass::TcpOut, *port), KernelVerdict::Deny);
        verdicts.extend(denied.iter().map(deny));
        self.udp_out.verdicts(KernelClass::UdpOut, &mut verdicts);
        self.udp_in.verdicts(KernelClass::UdpIn, &mut verdicts);
        verdicts
    }
}
