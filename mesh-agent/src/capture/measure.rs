//! What the verifier makes of the embedded programs on this kernel, and how long that takes.

use std::collections::HashSet;
use std::fs;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Instant;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::ProgramInfo;

use super::error::{self, CaptureError, Result};
use super::inventory::{self, Program};
use super::load::{self, Level, Load};
use super::object::{self, Loader};
use crate::features::milliseconds;

/// Bytes of a log at first, and the factor by which it grows while the verifier says more.
const LOG_BYTES: usize = 1 << 20;
const LOG_GROWTH: usize = 4;
/// The longest log that the kernel takes.
const LONGEST_LOG_BYTES: usize = (u32::MAX >> 2) as usize;

/// The embedded programs as this kernel has them.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Reading the object and making its maps, in milliseconds.
    pub open_ms: f64,
    /// All that is done before programs are attached: the object and every program.
    pub total_ms: f64,
    /// Each program.
    pub programs: Vec<MeasuredProgram>,
}

/// One embedded program as this kernel has it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MeasuredProgram {
    /// Its name.
    pub name: String,
    /// Instructions it has in the object, with those of the functions it calls.
    pub instructions: usize,
    /// Instructions that the verifier went through, each as often as it came by (at most a
    /// million). `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Bytes of its instructions as the kernel runs them.
    pub translated_bytes: Option<u32>,
    /// Bytes of machine code; 0 without the just-in-time compiler.
    pub jited_bytes: u32,
    /// Verifying and compiling it, in milliseconds.
    pub load_ms: f64,
}

/// Loads every program, attaches none, and lets go of all of it. With `logs`, each is loaded once
/// more and what the verifier says of it becomes `<program>.log` in that folder.
///
/// # Errors
/// If the kernel refuses a program, or a log can't be written.
pub fn measure(logs: Option<&Path>) -> Result<Measured> {
    let inventory = inventory::programs()?;
    let begun = Instant::now();
    let mut object = Loader::without_pins()?.open()?;
    let open_ms = milliseconds(begun);
    let mut programs = Vec::with_capacity(inventory.len());
    for program in &inventory {
        programs.push(measure_one(&mut object, program)?);
    }
    let total_ms = open_ms + programs.iter().map(|program| program.load_ms).sum::<f64>();
    if let Some(folder) = logs {
        write_logs(&object, folder)?;
    }
    Ok(Measured {
        open_ms,
        total_ms,
        programs,
    })
}

fn measure_one(object: &mut Ebpf, program: &Program) -> Result<MeasuredProgram> {
    let begun = Instant::now();
    object::load(object, &program.name)?;
    let load_ms = milliseconds(begun);
    let info = object
        .program(&program.name)
        .map(aya::programs::Program::info);
    let info = info.transpose().map_err(|source| CaptureError::Program {
        name: program.name.clone(),
        source: Box::new(source),
    })?;
    Ok(MeasuredProgram {
        name: program.name.clone(),
        instructions: program.instructions.len(),
        verified_instructions: info
            .as_ref()
            .and_then(ProgramInfo::verified_instruction_count),
        translated_bytes: info.as_ref().and_then(ProgramInfo::size_translated),
        jited_bytes: info.as_ref().map_or(0, ProgramInfo::size_jitted),
        load_ms,
    })
}

/// With the maps that `opened` has.
fn write_logs(opened: &Ebpf, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(error::io("making the folder", folder))?;
    for program in linked(opened)? {
        let log = log_of(&program)?;
        let path = folder.join(format!("{}.log", program.name));
        fs::write(&path, log).map_err(error::io("writing the verifier's log", path))?;
    }
    Ok(())
}

/// The object's programs, their references to maps resolved.
fn linked(opened: &Ebpf) -> Result<Vec<Program>> {
    let mut object = inventory::parse()?;
    let maps = mem::take(&mut object.maps);
    let found = |name: &str| {
        let map = opened.map(name).and_then(descriptor);
        map.ok_or_else(|| CaptureError::ObjectLacks {
            what: "map",
            name: name.to_owned(),
        })
    };
    let maps: Vec<_> = maps
        .iter()
        .map(|(name, map)| Ok((name.as_str(), found(name)?, map)))
        .collect::<Result<_>>()?;
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object
        .relocate_maps(maps.into_iter(), &sections)
        .map_err(|e| CaptureError::Load(Box::new(e.into())))?;
    inventory::programs_of(object)
}

fn descriptor(map: &Map) -> Option<RawFd> {
    let (Map::Array(data)
    | Map::ArrayOfMaps(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::RingBuf(data)
    | Map::SkStorage(data)
    | Map::SockMap(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd().as_raw_fd())
}

fn log_of(program: &Program) -> Result<Vec<u8>> {
    let what = Load {
        kind: program.kind,
        attach_type: program.attach_type,
        instructions: &program.instructions,
        license: &program.license,
    };
    let mut log = vec![0; LOG_BYTES];
    loop {
        match load::load(&what, Level::Everything, &mut log) {
            Ok(_) => return Ok(log),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && log.len() < LONGEST_LOG_BYTES => {
                let more = log
                    .capacity()
                    .saturating_mul(LOG_GROWTH)
                    .min(LONGEST_LOG_BYTES);
                log = vec![0; more];
            }
            Err(e) => {
                return Err(error::io("loading with a log the program", &program.name)(
                    e,
                ));
            }
        }
    }
}
