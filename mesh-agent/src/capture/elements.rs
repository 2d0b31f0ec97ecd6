//! Maps of other versions, whose layout is known only to the kernel: their elements as bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use super::bpf::{self, attributes, pointer, raw};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// The head of `struct bpf_map_info`: what decides whether two maps are alike.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
}

/// A pinned map.
#[derive(Debug)]
pub(super) struct Elements {
    map: OwnedFd,
    info: MapInfo,
}

impl Elements {
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        let map = bpf::open(pin)?;
        let info = bpf::object_info(map.as_fd())?;
        Ok(Self { map, info })
    }

    /// Whether the kernel would take either in the place of the other.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let shape = |map: &Self| {
            let MapInfo {
                kind,
                key_bytes,
                value_bytes,
                max_entries,
                flags,
                ..
            } = map.info;
            (kind, key_bytes, value_bytes, max_entries, flags)
        };
        shape(self) == shape(other)
    }

    /// Type and size of the keys.
    pub(super) fn keys_are_like(&self, other: &Self) -> bool {
        let shape = |map: &Self| (map.info.kind, map.info.key_bytes);
        shape(self) == shape(other)
    }

    /// Pins the map at another place as well.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        bpf::pin(self.map.as_fd(), path)
    }

    /// Every key. Nobody may change the map meanwhile.
    pub(super) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.info.key_bytes as usize];
            let last = keys.last().map_or(std::ptr::null(), Vec::as_ptr);
            match self.command(BPF_MAP_GET_NEXT_KEY, last, next.as_mut_ptr()) {
                Ok(()) => keys.push(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(e) => return Err(e),
            }
        }
    }

    /// A key's value.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.info.value_bytes as usize];
        assert_eq!(key.len(), self.info.key_bytes as usize, "another map's key");
        self.command(BPF_MAP_LOOKUP_ELEM, key.as_ptr(), value.as_mut_ptr())?;
        Ok(value)
    }

    /// Writes a value of whatever length: the map's values are cut off or filled up with zeros.
    pub(super) fn set(&self, key: &[u8], mut value: Vec<u8>) -> io::Result<()> {
        value.resize(self.info.value_bytes as usize, 0);
        assert_eq!(key.len(), self.info.key_bytes as usize, "another map's key");
        self.command(BPF_MAP_UPDATE_ELEM, key.as_ptr(), value.as_mut_ptr())
    }

    fn command(&self, command: libc::c_long, key: *const u8, value: *mut u8) -> io::Result<()> {
        let [k0, k1] = pointer(key.cast());
        let [v0, v1] = pointer(value.cast_const().cast());
        let head = [raw(self.map.as_raw_fd()), 0, k0, k1, v0, v1];
        bpf::bpf(command, &attributes(&head)).map(drop)
    }
}
