//! The order in which the endpoints of a service are tried for one connection.
//!
//! Endpoints are ranked, and every endpoint of a rank comes before any of the next:
//!
//! 1. those that are usable, neither unhealthy nor ejected, before those that are not: the
//!    latter are the last resort, because health checks and outlier detection may be wrong and a
//!    refused connection never carries anything;
//! 2. with [`LocalityPreference::Nearest`], the nearer before the farther. So a usable endpoint
//!    far away comes before an unhealthy one on the same node.
//!
//! Within a rank [`Balancing`] decides. Random numbers are passed in.

use crate::traffic::{Balancing, LocalityPreference};

/// What the choice depends on, of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Connections of the caller that are open or being opened to it.
    pub open: u32,
    /// 0: the same node, 1: the same zone, 2: the same region, 3: elsewhere.
    pub distance: u8,
    /// Its own node's health checks fail.
    pub unhealthy: bool,
    /// The caller's outlier detection has ejected it.
    pub ejected: bool,
}

/// Smaller is better.
type Rank = (bool, u8);

fn rank(locality: LocalityPreference, candidate: &Candidate) -> Rank {
    let distance = match locality {
        LocalityPreference::None => 0,
        LocalityPreference::Nearest => candidate.distance,
    };
    (candidate.unhealthy || candidate.ejected, distance)
}

#[derive(Clone, Copy, Debug)]
struct Ranked {
    rank: Rank,
    index: u32,
    open: u32,
}

/// Yields the index of every candidate once. Each step is made as it is asked for: who needs
/// the first endpoint only does not pay for the rest.
#[derive(Debug)]
pub struct Order<R> {
    balancing: Balancing,
    /// For round robin: how many connections came before this one.
    turn: usize,
    random: R,
    /// What is left from `next` on; the current rank ends before `end`.
    ranked: Vec<Ranked>,
    next: usize,
    end: usize,
}

impl<R: FnMut() -> u32> Order<R> {
    /// The order for one connection. `turn` counts the connections that were balanced before;
    /// `random` gives evenly distributed numbers, two for each endpoint that is chosen by
    /// [`Balancing::LeastRequests`].
    pub fn new(
        balancing: Balancing,
        locality: LocalityPreference,
        candidates: impl Iterator<Item = Candidate>,
        turn: usize,
        random: R,
    ) -> Self {
        let ranked = (0..).zip(candidates).map(|(index, candidate)| Ranked {
            rank: rank(locality, &candidate),
            index,
            open: candidate.open,
        });
        Self {
            balancing,
            turn,
            random,
            ranked: ranked.collect(),
            next: 0,
            end: 0,
        }
    }

    /// Makes the best rank that is left the current one.
    fn enter_rank(&mut self) -> Option<()> {
        let rest = &mut self.ranked[self.next..];
        let best = rest.iter().map(|r| r.rank).min()?;
        let mut len = 0;
        for i in 0..rest.len() {
            if rest[i].rank == best {
                rest.swap(i, len);
                len += 1;
            }
        }
        if self.balancing == Balancing::RoundRobin {
            // The swaps may have moved them.
            rest[..len].sort_unstable_by_key(|r| r.index);
            rest[..len].rotate_left(self.turn % len);
        }
        self.end = self.next + len;
        Some(())
    }

    /// A number below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        let scaled = u64::from((self.random)()) * n as u64;
        // Less than `n`.
        usize::try_from(scaled >> 32).unwrap_or(0)
    }

    /// Of two different ones picked at random the one with fewer connections.
    fn power_of_two_choices(&mut self) -> usize {
        let len = self.end - self.next;
        if len == 1 {
            return self.next;
        }
        let one = self.below(len);
        let other = (one + 1 + self.below(len - 1)) % len;
        let (one, other) = (self.next + one, self.next + other);
        if self.ranked[other].open < self.ranked[one].open {
            other
        } else {
            one
        }
    }
}

impl<R: FnMut() -> u32> Iterator for Order<R> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next == self.end {
            self.enter_rank()?;
        }
        let chosen = match self.balancing {
            Balancing::LeastRequests => self.power_of_two_choices(),
            Balancing::RoundRobin => self.next,
        };
        self.ranked.swap(self.next, chosen);
        let index = self.ranked[self.next].index;
        self.next += 1;
        Some(index as usize)
    }
}
