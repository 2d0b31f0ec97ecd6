//! Between the wire's revocations ([`crate::trust`]) and [`mesh_core::revocation`].

use mesh_core::revocation::{NodeMark, Revocations, significant};

use crate::trust as wire;

/// Why revocations can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// No identity.
    #[error("revocations.identities has {0:?}: {1}")]
    Identity(String, mesh_core::identity::IdentityError),
    /// No mark.
    #[error("revocations.marks has one of {0} bytes")]
    Mark(usize),
}

/// Writes revocations.
#[must_use]
pub fn to_wire(revocations: &Revocations) -> wire::Revocations {
    let listed = revocations.listed.iter();
    wire::Revocations {
        identities: revocations
            .identities
            .iter()
            .map(ToString::to_string)
            .collect(),
        nodes: revocations.nodes.iter().cloned().collect(),
        marks: revocations.marks.iter().map(|mark| mark.to_vec()).collect(),
        serials: revocations.serials.iter().cloned().collect(),
        listed: listed
            .map(|(issuer, serials)| wire::ListedByIssuer {
                issuer: issuer.clone(),
                serials: serials.iter().cloned().collect(),
            })
            .collect(),
    }
}

/// Reads revocations into those that were read before: a list may come in parts.
///
/// # Errors
/// The first entry that can't be read. The rest must not be used then: it would leave out what
/// is revoked.
pub fn read_into(
    revocations: &mut Revocations,
    message: &wire::Revocations,
) -> Result<(), TrustError> {
    for text in &message.identities {
        let identity = text.parse();
        let identity = identity.map_err(|error| TrustError::Identity(text.clone(), error))?;
        revocations.identities.insert(identity);
    }
    revocations.nodes.extend(message.nodes.iter().cloned());
    for bytes in &message.marks {
        let mark = NodeMark::try_from(bytes.as_slice());
        revocations
            .marks
            .insert(mark.map_err(|_| TrustError::Mark(bytes.len()))?);
    }
    let number = |serial: &Vec<u8>| significant(serial).to_vec();
    revocations
        .serials
        .extend(message.serials.iter().map(number));
    for wire::ListedByIssuer { issuer, serials } in &message.listed {
        let listed = revocations.listed.entry(issuer.clone()).or_default();
        listed.extend(serials.iter().map(number));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocations_come_back_as_they_went_also_in_parts() {
        let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let all = Revocations {
            identities: [identity].into(),
            nodes: ["node-a".to_owned()].into(),
            marks: [[7; 8]].into(),
            serials: [vec![1, 2], vec![3]].into(),
            listed: [(b"issuer".to_vec(), [vec![4], vec![5]].into())].into(),
        };
        let whole = to_wire(&all);
        let mut first = whole.clone();
        let second = wire::Revocations {
            serials: first.serials.split_off(1),
            listed: vec![wire::ListedByIssuer {
                issuer: b"issuer".to_vec(),
                serials: first.listed[0].serials.split_off(1),
            }],
            ..wire::Revocations::default()
        };
        for parts in [vec![&whole], vec![&first, &second]] {
            let mut read = Revocations::default();
            for part in parts {
                read_into(&mut read, part).unwrap();
            }
            assert_eq!(read, all);
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let mut read = Revocations::default();
        let identities = wire::Revocations {
            identities: vec!["cart".to_owned()],
            ..wire::Revocations::default()
        };
        let error = read_into(&mut read, &identities).unwrap_err();
        assert!(error.to_string().contains("\"cart\""), "{error}");
        let marks = wire::Revocations {
            marks: vec![vec![1]],
            ..wire::Revocations::default()
        };
        assert_eq!(read_into(&mut read, &marks), Err(TrustError::Mark(1)));
    }
}
