//! The few bpf(2) commands that aya doesn't offer for every kind of link: creating,
//! updating, pinning and asking links alike, making maps without BTF and arrays of them, deleting
//! from an array of maps, and writing many elements of a map at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_F_NO_PREALLOC: u32 = 1;

/// Attach before every other program (of a tcx hook).
pub(super) const BPF_F_BEFORE: u32 = 1 << 3;

/// Most programs that the kernel takes at one tcx hook, or as `sk_lookup` of one namespace.
const PROGRAMS_AT_HOOK: usize = 64;

/// `enum bpf_attach_type` of `linux/bpf.h`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    SockOps = 3,
    Inet4Bind = 8,
    Inet6Bind = 9,
    Inet4Connect = 10,
    Inet6Connect = 11,
    Udp4Sendmsg = 14,
    Udp6Sendmsg = 15,
    Getsockopt = 21,
    Setsockopt = 22,
    Inet4Getpeername = 29,
    Inet6Getpeername = 30,
    Inet4Getsockname = 31,
    Inet6Getsockname = 32,
    InetSockRelease = 34,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// The head of `struct bpf_link_info`, and what follows it for these links.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkInfo {
    kind: u32,
    pub(super) id: u32,
    /// Id of the program that the link runs.
    pub(super) program_id: u32,
    padding: u32,
    /// netns: its inode number; tcx: the ifindex; cgroup: the lower half of its id. 0 when the
    /// link is detached, or what it hung on is gone.
    pub(super) target: u32,
    attach_type: u32,
    rest: [u64; 8],
}

impl LinkInfo {
    /// Id of the cgroup that a cgroup's link hangs on; 0 when it is detached.
    pub(super) fn cgroup_id(&self) -> u64 {
        u64::from(self.attach_type) << 32 | u64::from(self.target)
    }
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
}

/// `union bpf_attr`, as far as it is used here; the kernel takes what follows as zero.
#[repr(C, align(8))]
pub(super) struct Attributes([u32; 16]);

/// What a link hangs on.
pub(super) enum Target<'a> {
    /// A cgroup's folder or a network namespace.
    Fd(BorrowedFd<'a>),
    /// A device of the caller's network namespace.
    Ifindex(u32),
}

impl Target<'_> {
    fn number(&self) -> u32 {
        match *self {
            Self::Fd(fd) => raw(fd.as_raw_fd()),
            Self::Ifindex(ifindex) => ifindex,
        }
    }
}

/// Attaches a program; it stays while the descriptor or a pin of it does.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: &Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let program = raw(program.as_raw_fd());
    let head = [program, target.number(), attach_type as u32, flags];
    let fd = bpf(BPF_LINK_CREATE, &attributes(&head))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let head = [raw(link.as_raw_fd()), raw(program.as_raw_fd())];
    bpf(BPF_LINK_UPDATE, &attributes(&head)).map(drop)
}

/// Takes a link's program off at once; closing the last descriptor does it some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &attributes(&[raw(link.as_raw_fd())])).map(drop)
}

/// What a link hangs on and runs.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    object_info(link)
}

/// The kernel's number of a loaded program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    object_info::<ProgramInfo>(program).map(|info| info.id)
}

/// Ids of the programs at a tcx hook or a network namespace, in the order in which they run.
pub(super) fn programs_at(target: &Target<'_>, attach_type: AttachType) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; PROGRAMS_AT_HOOK];
    let [low, high] = pointer(ids.as_mut_ptr().cast());
    let count = u32::try_from(ids.len()).expect("a small number");
    let head = [target.number(), attach_type as u32, 0, 0, low, high, count];
    let mut attributes = attributes(&head);
    bpf_mut(BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.0[6] as usize);
    Ok(ids)
}

/// Whether the kernel has tcx hooks (Linux 6.6).
pub(super) fn has_tcx() -> bool {
    // Every network namespace has its loopback there.
    programs_at(&Target::Ifindex(1), AttachType::TcxIngress).is_ok()
}

/// Opens a loaded program.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &attributes(&[id]))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel fills as much of its info as `T` has room for.
pub(super) fn object_info<T: Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let len = size::<T>();
    let [low, high] = pointer((&raw mut info).cast());
    bpf(
        BPF_OBJ_GET_INFO_BY_FD,
        &attributes(&[raw(object.as_raw_fd()), len, low, high]),
    )?;
    Ok(info)
}

/// Pins a link or map.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = pointer(path.as_ptr().cast());
    bpf(
        BPF_OBJ_PIN,
        &attributes(&[low, high, raw(object.as_raw_fd())]),
    )
    .map(drop)
}

/// Opens a pin.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let [low, high] = pointer(path.as_ptr().cast());
    let fd = bpf(BPF_OBJ_GET, &attributes(&[low, high]))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Deletes an element of a map with 4-byte keys.
pub(super) fn delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    let [low, high] = pointer((&raw const key).cast());
    let head = [raw(map.as_raw_fd()), 0, low, high];
    bpf(BPF_MAP_DELETE_ELEM, &attributes(&head)).map(drop)
}

/// Makes a hash with room for that many elements.
pub(super) fn create_hash<K: Pod, V: Pod>(max_entries: u32) -> io::Result<OwnedFd> {
    let (key, value) = (size::<K>(), size::<V>());
    create_map(&[
        BPF_MAP_TYPE_HASH,
        key,
        value,
        max_entries,
        BPF_F_NO_PREALLOC,
    ])
}

/// Makes a longest-prefix trie with room for that many elements.
pub(super) fn create_trie<K: Pod, V: Pod>(max_entries: u32) -> io::Result<OwnedFd> {
    let (key, value) = (size::<K>(), size::<V>());
    create_map(&[
        BPF_MAP_TYPE_LPM_TRIE,
        key,
        value,
        max_entries,
        BPF_F_NO_PREALLOC,
    ])
}

/// Makes an array for maps that are like the template. The name is for whoever lists the maps.
pub(super) fn create_array_of_maps(
    name: &str,
    max_entries: u32,
    template: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let fd_bytes = size::<RawFd>();
    let (kind, template) = (BPF_MAP_TYPE_ARRAY_OF_MAPS, raw(template.as_raw_fd()));
    let mut head = vec![kind, fd_bytes, fd_bytes, max_entries, 0, template, 0];
    // The kernel wants a zero after the name.
    let mut bytes = [0; 16];
    let len = name.len().min(bytes.len() - 1);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    let words = bytes.chunks_exact(4);
    head.extend(words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])));
    create_map(&head)
}

fn create_map(head: &[u32]) -> io::Result<OwnedFd> {
    let fd = bpf(BPF_MAP_CREATE, &attributes(head))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes elements in their order; for an array of maps the values are descriptors. The first
/// that fails ends it. Waits once for programs that run with what was there before (array of maps).
///
/// # Panics
/// If there are not as many values as keys.
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    let count = u32::try_from(keys.len()).map_err(io::Error::other)?;
    let [k0, k1] = pointer(keys.as_ptr().cast());
    let [v0, v1] = pointer(values.as_ptr().cast());
    // First the positions to go on from, which no update uses.
    let head = [0, 0, 0, 0, k0, k1, v0, v1, count, raw(map.as_raw_fd())];
    bpf(BPF_MAP_UPDATE_BATCH, &attributes(&head)).map(drop)
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a small struct")
}

pub(super) fn attributes(head: &[u32]) -> Attributes {
    let mut words = [0; 16];
    words[..head.len()].copy_from_slice(head);
    Attributes(words)
}

pub(super) fn raw(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor is not negative")
}

/// A pointer as the two words that hold it in the attributes (they are 64 bits, native order).
pub(super) fn pointer(pointer: *const libc::c_void) -> [u32; 2] {
    let bytes = (pointer as u64).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
}

pub(super) fn bpf(command: libc::c_long, attributes: &Attributes) -> io::Result<RawFd> {
    let mut attributes = Attributes(attributes.0);
    bpf_mut(command, &mut attributes)
}

/// For commands that answer in the attributes.
fn bpf_mut(command: libc::c_long, attributes: &mut Attributes) -> io::Result<RawFd> {
    // SAFETY: the attributes are at least as large as the size given, and every pointer in
    // them is to memory that outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(result).expect("bpf(2) returns descriptors and zero"))
}
