//! Values of the mesh's own kinds, each checked while it is read.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use mesh_core::identity::Identity;
use mesh_core::policy::{Action, AuthenticationMode, Direction, Protocol};
use mesh_core::traffic::{Balancing, LocalityPreference};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Port, PortVisitor, TargetPort, checked, text};

text! {
    /// Which way flows go that a policy is about.
    PolicyDirection(Direction) = direction;
    /// What a policy does.
    PolicyAction(Action) = action;
    /// TCP or UDP.
    PolicyProtocol(Protocol) = protocol;
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

fn protocol(text: &str) -> Result<Protocol, String> {
    one_of(text, &[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)])
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

/// A port with its protocol, either of which stands alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortFields {
    #[serde(default, deserialize_with = "given")]
    pub(crate) port: Option<Port>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) protocol: Option<PolicyProtocol>,
}

/// One of a rule's ports, as a number or as a mapping.
#[derive(Clone, Debug)]
pub(crate) struct PortTerm(pub(in super::super) PortFields);

impl<'de> Deserialize<'de> for PortTerm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Term;
        impl Term {
            fn number<E: Error>(port: Result<TargetPort, E>) -> Result<PortTerm, E> {
                let port = match port? {
                    TargetPort::Number(port) => Some(Port(port)),
                    TargetPort::Name(name) => return Err(E::custom(name)),
                };
                let protocol = None;
                Ok(PortTerm(PortFields { port, protocol }))
            }
        }
        impl<'de> Visitor<'de> for Term {
            type Value = PortTerm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535 or a mapping such as {port: 53, protocol: UDP}")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<PortTerm, E> {
                Self::number(PortVisitor { names: false }.visit_i64(number))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<PortTerm, E> {
                Self::number(PortVisitor { names: false }.visit_u64(number))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PortTerm, A::Error> {
                let fields = serde::de::value::MapAccessDeserializer::new(map);
                PortFields::deserialize(fields).map(PortTerm)
            }
        }
        deserializer.deserialize_any(Term)
    }
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
