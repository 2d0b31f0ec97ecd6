//! Values of the mesh's own kinds, each checked while it is read.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use mesh_core::identity::Identity;
use mesh_core::policy::{Action, AuthenticationMode, Direction, Protocol};
use mesh_core::traffic::{Balancing, LocalityPreference};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{PortVisitor, TargetPort, checked, text};

text! {
    /// Which way flows go that a policy is about.
    PolicyDirection(Direction) = direction;
    /// What a policy does.
    PolicyAction(Action) = action;
    /// How inbound connections are taken.
    Mode(AuthenticationMode) = mode;
    /// How an endpoint is chosen.
    ServiceBalancing(Balancing) = balancing;
    /// Whether nearer endpoints come first.
    ServiceLocality(LocalityPreference) = locality;
    /// A workload's SPIFFE ID.
    SpiffeId(Identity) = spiffe_id;
    /// A block of addresses.
    Cidr(IpNet) = cidr;
    /// A service: its namespace, where one is given, and its name.
    ServiceRef((Option<String>, String)) = service_ref;
    /// A path of an HTTP request.
    HttpPath(String) = http_path;
    /// A Host header.
    HttpHost(String) = http_host;
}

fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Result<T, String> {
    let found = values.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

fn direction(text: &str) -> Result<Direction, String> {
    let values = [
        ("Inbound", Direction::Inbound),
        ("Outbound", Direction::Outbound),
    ];
    one_of(text, &values)
}

fn action(text: &str) -> Result<Action, String> {
    one_of(text, &[("Allow", Action::Allow), ("Deny", Action::Deny)])
}

fn mode(text: &str) -> Result<AuthenticationMode, String> {
    let values = [
        ("Strict", AuthenticationMode::Strict),
        ("Permissive", AuthenticationMode::Permissive),
    ];
    one_of(text, &values)
}

fn balancing(text: &str) -> Result<Balancing, String> {
    let values = [
        ("LeastRequests", Balancing::LeastRequests),
        ("RoundRobin", Balancing::RoundRobin),
    ];
    one_of(text, &values)
}

fn locality(text: &str) -> Result<LocalityPreference, String> {
    let values = [
        ("Nearest", LocalityPreference::Nearest),
        ("None", LocalityPreference::None),
    ];
    one_of(text, &values)
}

fn spiffe_id(text: &str) -> Result<Identity, String> {
    text.parse().map_err(|error| {
        format!("{error}; a workload's is spiffe://<trust domain>/ns/<namespace>/sa/<account>")
    })
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let block: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is not an address block, such as 10.0.0.0/8 or fd00::/8"))?;
    let mapped = match block {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().is_some(),
    };
    if mapped {
        return Err(format!("{text:?} is IPv4 in IPv6's form: write it as IPv4"));
    }
    let whole = block.trunc();
    if whole != block {
        let (address, bits) = (block.addr(), block.max_prefix_len());
        return Err(format!(
            "{text:?} has bits set beyond its length: is {whole} meant, or {address}/{bits}?"
        ));
    }
    Ok(block)
}

fn service_ref(text: &str) -> Result<(Option<String>, String), String> {
    match text.split_once('/') {
        None => Ok((None, super::label(text)?)),
        Some((namespace, name)) => Ok((Some(super::label(namespace)?), super::label(name)?)),
    }
}

fn http_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a path: it begins with '/' and has at most 1024 visible ASCII characters"
    ))
}

fn http_host(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if text.len() <= 255 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a host name, with or without a port"
    ))
}

/// A value that must be there if its key is.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// One of a rule's ports: a number, which is TCP's, or `53/UDP`, or `UDP` for all of its ports. It is
/// the form that a Kubernetes schema can check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortTerm {
    pub(crate) port: Option<u16>,
    pub(crate) protocol: Protocol,
}

impl<'de> Deserialize<'de> for PortTerm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Term;
        impl Visitor<'_> for Term {
            type Value = PortTerm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 80, \"53/UDP\" or \"UDP\"")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortTerm, E> {
                let port = PortVisitor { names: false }.visit_i64(number)?;
                let port = match port {
                    TargetPort::Number(port) => Some(port),
                    TargetPort::Name(name) => return Err(E::custom(name)),
                };
                let protocol = Protocol::Tcp;
                Ok(PortTerm { port, protocol })
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PortTerm, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PortTerm, E> {
                port_term(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Term)
    }
}

fn port_term(text: &str) -> Result<PortTerm, String> {
    let wrong = || {
        format!(
            "{text:?} is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports"
        )
    };
    let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)];
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (Some(port), protocol),
        None => (None, text),
    };
    let protocol = one_of(protocol, &protocols).map_err(|_| wrong())?;
    let port = match port {
        None => None,
        // Written as a person would: no sign, no zeros before it.
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && port.to_string() == digits => Some(port),
            _ => return Err(wrong()),
        },
    };
    Ok(PortTerm { port, protocol })
}

/// A port as a mapping's key: JSON has only texts there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortKey(pub(in super::super) u16);

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for PortKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = PortKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PortKey, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortKey, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PortKey, E> {
                match text.parse() {
                    Ok(port) if port > 0 => Ok(PortKey(port)),
                    _ => Err(E::custom(format!("{text} is not a port: 1 to 65535"))),
                }
            }
        }
        deserializer.deserialize_any(Key)
    }
}

/// A mapping that has no key twice, of which a map would keep the last.
pub(super) fn unique<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(std::marker::PhantomData<(K, V)>);
    impl<'de, K: Deserialize<'de> + Ord + fmt::Display, V: Deserialize<'de>> Visitor<'de>
        for Unique<K, V>
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a mapping")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some(key) = access.next_key()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format!("{key} is here twice")));
                }
                map.insert(key, access.next_value()?);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(std::marker::PhantomData))
}

pub(super) fn given_unique<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    unique(deserializer).map(Some)
}
