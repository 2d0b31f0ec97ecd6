//! Which entries there is room for.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{KernelPolicy, MAX_PREFIXES, MAX_VERDICTS, Verdicts, verdict};

#[derive(Default)]
pub(super) struct Layout {
    /// Without one of these the rest would say something else.
    pub(super) required: BTreeMap<Ipv6Net, Verdicts>,
    /// Each says something more, and nothing else rests on it.
    pub(super) optional: BTreeMap<Ipv6Net, Verdicts>,
}

impl Layout {
    pub(super) fn len(&self) -> usize {
        self.required.len() + self.optional.len()
    }

    /// A family of which nothing is said needs a block only inside one of which something is.
    pub(super) fn without_empty_wholes(mut self) -> Self {
        for whole in [Ipv6Net::default(), mapped(Ipv4Net::default().into())] {
            let around = |block: &Ipv6Net| *block != whole && block.contains(&whole);
            let said = self.required.get(&whole).is_some_and(|v| !v.is_empty());
            if !said && !self.required.keys().any(around) {
                self.required.remove(&whole);
            }
        }
        self
    }

    /// What must be there, and as much of the rest as there is room for.
    pub(super) fn fit(&self) -> Option<KernelPolicy> {
        let verdicts: usize = self.required.values().map(BTreeMap::len).sum();
        let mut room = MAX_VERDICTS.checked_sub(verdicts)?;
        let blocks = MAX_PREFIXES.checked_sub(self.required.len())?;
        let more = self
            .optional
            .iter()
            .take(blocks)
            .take_while(|(_, verdicts)| {
                let left = room.checked_sub(verdicts.len());
                room = left.unwrap_or(0);
                left.is_some()
            });
        let more: Vec<_> = more.map(|(b, verdicts)| (*b, verdicts.clone())).collect();
        let left_out = self.optional.len() - more.len();
        let mut prefixes = self.required.clone();
        prefixes.extend(more);
        Some(KernelPolicy { prefixes, left_out })
    }
}

/// Whether without `own` more would pass, or more would be refused, than policy says.
pub(super) fn takes_away(own: &Verdicts, around: &Verdicts) -> bool {
    let mut keys = own.keys().chain(around.keys());
    keys.any(|&(class, port)| {
        let given = verdict(around, class, port);
        given.is_some() && given != verdict(own, class, port)
    })
}

pub(super) fn mapped(block: IpNet) -> Ipv6Net {
    match block {
        IpNet::V4(v4) => Ipv6Net::new_assert(v4.addr().to_ipv6_mapped(), 96 + v4.prefix_len()),
        IpNet::V6(v6) => v6,
    }
}
