//! The ends of a flow as they are written on the command line.

use std::net::IpAddr;
use std::str::FromStr;

use mesh_api::admin::Place;

/// Why a text names no end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceFault {
    #[error(
        "{0:?} is no pod, service or address: say namespace/pod, svc/namespace/service, 10.0.0.1 or fd00::1"
    )]
    Form(String),
    #[error(
        "{0:?} is not a port: 1 to 65535 (an IPv6 address with a port needs brackets: [fd00::1]:80)"
    )]
    Port(String),
    #[error("{0:?} has a port, and a source has none: it is the kernel's choice")]
    SourcePort(String),
}

/// Where a flow comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceArg(pub(crate) Place);

/// What is dialled, and the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DestinationArg {
    pub(crate) place: Place,
    pub(crate) port: Option<u16>,
}

impl FromStr for SourceArg {
    type Err = PlaceFault;

    fn from_str(text: &str) -> Result<Self, PlaceFault> {
        match parse(text)? {
            (place, None) => Ok(Self(place)),
            (_, Some(_)) => Err(PlaceFault::SourcePort(text.to_owned())),
        }
    }
}

impl FromStr for DestinationArg {
    type Err = PlaceFault;

    fn from_str(text: &str) -> Result<Self, PlaceFault> {
        let (place, port) = parse(text)?;
        Ok(Self { place, port })
    }
}

fn parse(text: &str) -> Result<(Place, Option<u16>), PlaceFault> {
    let form = || PlaceFault::Form(text.to_owned());
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Place::Address(address.to_canonical()), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let port = match rest.strip_prefix(':') {
            Some(text) => Some(port(text)?),
            None if rest.is_empty() => None,
            None => return Err(form()),
        };
        return Ok((Place::Address(address.to_canonical()), port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, text)) => (name, Some(port(text)?)),
        None => (text, None),
    };
    let place = match name.split('/').collect::<Vec<_>>()[..] {
        [address] => Place::Address(address.parse().map_err(|_| form())?),
        ["svc", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Place::Service(format!("{namespace}/{name}"))
        }
        ["pod", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Place::Pod(format!("{namespace}/{name}"))
        }
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Place::Name(format!("{namespace}/{name}"))
        }
        _ => return Err(form()),
    };
    Ok((place, port))
}

fn port(text: &str) -> Result<u16, PlaceFault> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(PlaceFault::Port(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_pods_services_and_addresses() {
        let name = |text: &str| Place::Name(text.to_owned());
        let address = |text: &str| Place::Address(text.parse().unwrap());
        for (text, expected) in [
            ("shop/web-1", (name("shop/web-1"), None)),
            ("shop/web-1:80", (name("shop/web-1"), Some(80))),
            (
                "svc/shop/web:80",
                (Place::Service("shop/web".to_owned()), Some(80)),
            ),
            ("pod/shop/web", (Place::Pod("shop/web".to_owned()), None)),
            ("10.0.0.1", (address("10.0.0.1"), None)),
            ("10.0.0.1:443", (address("10.0.0.1"), Some(443))),
            ("fd00::1", (address("fd00::1"), None)),
            ("[fd00::1]", (address("fd00::1"), None)),
            ("[fd00::1]:443", (address("fd00::1"), Some(443))),
            ("::ffff:10.0.0.1", (address("10.0.0.1"), None)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_none_says_what_would_be_one() {
        for text in [
            "", "web", "a/b/c", "/web", "svc/a/", "[fd00::1", "[x]:1", "[::1]80", "a/b/c/d",
        ] {
            assert_eq!(
                parse(text),
                Err(PlaceFault::Form(text.to_owned())),
                "{text}"
            );
        }
        for (text, port) in [
            ("a/b:", ""),
            ("a/b:http", "http"),
            ("a/b:0", "0"),
            ("a/b:65536", "65536"),
        ] {
            assert_eq!(
                parse(text),
                Err(PlaceFault::Port(port.to_owned())),
                "{text}"
            );
        }
        assert!("a/b:80".parse::<SourceArg>().is_err());
    }
}
