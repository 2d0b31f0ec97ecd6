//! Finds the line of a field in a YAML document: serde keeps no positions, so the document is
//! read once more and stopped at the field.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step of a field's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A mapping's key.
    Key(String),
    /// A sequence's index.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// A path of steps, keys and indexes mixed.
macro_rules! steps {
    ($($step:expr),+) => { [$(crate::sources::manifests::locate::Step::from($step)),+] };
}
pub(super) use steps;

/// A path as it is printed: `spec.ports[0].name`.
pub(super) fn printed(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) if key.contains(['.', '/']) => text.push_str(&format!("[{key:?}]")),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
        }
    }
    text
}

/// The line, from 1, of the field at `path` in a document, or of its nearest parent.
pub(super) fn line(document: &str, path: &[Step]) -> usize {
    (0..=path.len())
        .rev()
        .find_map(|depth| {
            let deserializer = serde_yaml_ng::Deserializer::from_str(document);
            let found = Locator(&path[..depth]).deserialize(deserializer);
            Some(found.err()?.location()?.line())
        })
        .unwrap_or(1)
}

struct Locator<'a>(&'a [Step]);

impl Locator<'_> {
    /// Stops the parser here; its error carries the position.
    fn here<E: Error>(&self) -> Result<(), E> {
        match self.0 {
            [] => Err(E::custom("here")),
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Locator<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locator<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.here()?;
        while let Some(key) = map.next_key::<String>()? {
            match self.0 {
                [Step::Key(wanted), rest @ ..] if *wanted == key => {
                    map.next_value_seed(Locator(rest))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.here()?;
        for index in 0.. {
            let more = match self.0 {
                [Step::Index(wanted), rest @ ..] if *wanted == index => {
                    seq.next_element_seed(Locator(rest))?.is_some()
                }
                _ => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.here()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.here()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.here()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.here()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.here()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.here()
    }
}
