//! Taking over from an agent of another ABI version, newer or older: the same code for both.
//!
//! The agent makes a folder of its own. Maps that both versions call by one name are shared, so
//! what is under way goes on, and counters count on. Pods and walls are copied, should their layout
//! differ. Other maps begin empty, and fail closed until the supervisor has filled them. Only when
//! all programs are loaded are they put into the links, one after the other; each hook is at any
//! time run by one program, of either version, and every program finds its pods. Then the folder
//! gets its name, and the other one goes.
//!
//! An agent that is killed meanwhile leaves the other's folder as it was. Some hooks run its
//! programs already; the next agent, of whichever version, takes all of them.

use std::time::{Duration, Instant};

use mesh_common::{GlobalConfig, map_name};

use super::abi::{self, Abi, Maps};
use super::elements::Elements;
use super::error::{self, CaptureError, Result};
use super::object::{ATTACHED_ONCE, MAPS};
use super::pins::{self, Pins};
use super::pods::{self, instance};
use super::walls::{WALLS, Wall};
use super::{Capture, CaptureOptions};

/// How the capture of another version was taken over.
#[derive(Clone, Debug)]
pub struct TakeOver {
    /// The other's ABI version.
    pub from: u32,
    /// Maps that are used on, with all that is in them.
    pub shared: Vec<&'static str>,
    /// Maps whose contents were converted.
    pub copied: Vec<&'static str>,
    /// Maps that began empty: the supervisor fills them, and until then they refuse.
    pub emptied: Vec<&'static str>,
    /// Links that were given this agent's program.
    pub links: usize,
    /// How long that took for all of them.
    pub swapped_in: Duration,
    /// How long the whole took, most of which is loading.
    pub took: Duration,
}

/// What became of a map of the other version.
enum Carried {
    Shared,
    Copied,
    Emptied,
    /// `CONFIG`, which says whose the maps are.
    Written,
}

pub(super) fn take_over(
    options: &CaptureOptions,
    other: &Pins,
    from: u32,
    config: GlobalConfig,
) -> Result<Capture> {
    let started = Instant::now();
    let (new, mut loader) = super::temporary(options)?;
    // Makes every map as this version has it.
    drop(loader.open()?);
    let mut report = TakeOver {
        from,
        shared: Vec::new(),
        copied: Vec::new(),
        emptied: Vec::new(),
        links: 0,
        swapped_in: Duration::ZERO,
        took: Duration::ZERO,
    };
    for map in MAPS {
        match carry(map, other, &new).map_err(|why| refused(other, from, map, &why))? {
            Carried::Shared => report.shared.push(map),
            Carried::Copied => report.copied.push(map),
            Carried::Emptied => report.emptied.push(map),
            Carried::Written => {}
        }
    }
    let mut maps = Maps::open(&new)?;
    maps.set_config(config)?;
    give_flows(&mut maps, &report.emptied)?;
    for link in other.links()?.iter().filter(|link| is_ours(link)) {
        pins::pin_again(&other.link(link), &new.link(link))?;
    }
    let object = loader.open()?;
    let mut capture = Capture::load(new, loader, object, maps)?;
    let instances = capture.load_instances()?;
    let swapping = Instant::now();
    report.links = capture.swap(options, &instances)?;
    report.swapped_in = swapping.elapsed();
    capture.publish(options)?;
    pins::retire(options, other, &capture.pins)?;
    report.took = started.elapsed();
    capture.taken_over = Some(report);
    Ok(capture)
}

/// Id and level of the cgroup that the programs on these maps trust. What `CONFIG` begins with is
/// the same in every version.
pub(super) fn trusted_cgroup(pins: &Pins) -> Result<(u64, u32)> {
    let lacking = || CaptureError::Incomplete {
        pins: pins.folder().to_owned(),
        map: map_name::CONFIG,
    };
    let name = pins.map_like(map_name::CONFIG)?.ok_or_else(lacking)?;
    let path = pins.map(&name);
    let config = Elements::open(&path)
        .and_then(|map| map.get(&0_u32.to_ne_bytes()))
        .map_err(error::io("reading the map", path))?;
    let (id, rest) = config.split_first_chunk().ok_or_else(lacking)?;
    let (level, _) = rest.split_first_chunk().ok_or_else(lacking)?;
    Ok((u64::from_ne_bytes(*id), u32::from_ne_bytes(*level)))
}

fn carry(map: &str, other: &Pins, new: &Pins) -> Result<Carried, Uncarried> {
    if map == map_name::CONFIG {
        return Ok(Carried::Written);
    }
    let ours = Elements::open(&new.map(map))?;
    let theirs = match other.map_like(map_name::base(map))? {
        Some(name) if name == map => Some((true, Elements::open(&other.map(map))?)),
        Some(name) => Some((false, Elements::open(&other.map(&name))?)),
        None => None,
    };
    match theirs {
        Some((true, theirs)) if theirs.is_like(&ours) => {
            pins::replace(&new.map(map), |pin| theirs.pin(pin))?;
            Ok(Carried::Shared)
        }
        Some((_, theirs)) if map == map_name::PODS || map == map_name::WALLS => {
            copy(&theirs, &ours)?;
            Ok(Carried::Copied)
        }
        // Without these, what is enrolled would not be captured.
        None if map == map_name::PODS || map == map_name::WALLS => Err(Uncarried::Missing),
        _ => Ok(Carried::Emptied),
    }
}

/// Copies values, which only ever grow, at their end: an older version's are filled up with zeros,
/// a newer version's cut off.
fn copy(from: &Elements, to: &Elements) -> Result<(), Uncarried> {
    if !from.keys_are_like(to) {
        return Err(Uncarried::Keys);
    }
    for key in from.keys()? {
        to.set(&key, from.get(&key)?)?;
    }
    Ok(())
}

/// Pods whose connections' rendezvous could not be shared get an empty one.
fn give_flows(maps: &mut Maps, emptied: &[&str]) -> Result<()> {
    let pods = maps
        .pods
        .iter()
        .map(|pod| pod.map(|(_, Abi(pod))| pod.slot));
    let slots: Vec<u32> = pods
        .collect::<Result<_, _>>()
        .map_err(abi::failed(map_name::PODS))?;
    for slot in slots {
        if emptied.contains(&map_name::FLOWS) {
            pods::give_flows(&mut maps.flows, slot)?;
        }
        if emptied.contains(&map_name::PENDING) {
            pods::give_pending(&mut maps.pending, slot)?;
        }
    }
    Ok(())
}

/// Whether this version has such a hook; one that it doesn't have is taken off with the other's
/// folder.
fn is_ours(link: &str) -> bool {
    let is_wall = |wall: &Wall| {
        let ifindex = link.strip_prefix(wall.program);
        let ifindex = ifindex.and_then(|rest| rest.strip_prefix('-'));
        ifindex.is_some_and(|ifindex| ifindex.parse::<u32>().is_ok())
    };
    ATTACHED_ONCE.iter().any(|(name, ..)| *name == link)
        || instance(link).is_some()
        || WALLS.iter().any(is_wall)
}

/// Why a map can't be carried over.
#[derive(Debug, thiserror::Error)]
enum Uncarried {
    #[error("it is missing")]
    Missing,
    #[error("its keys are of another kind")]
    Keys,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Pins(#[from] CaptureError),
}

fn refused(other: &Pins, from: u32, map: &str, why: &Uncarried) -> CaptureError {
    CaptureError::NotCarried {
        pins: other.folder().to_owned(),
        found: from,
        ours: mesh_common::ABI_VERSION,
        map: map.to_owned(),
        why: why.to_string(),
    }
}
