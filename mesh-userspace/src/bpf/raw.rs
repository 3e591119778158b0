//! The few bpf(2) calls that aya has no words for: typed access to a map by its pin, in batches.

use std::{
    hash::Hash,
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use bytemuck::{AnyBitPattern, NoUninit, Zeroable};

use crate::plan::Entries;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `enum bpf_map_type`
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `enum bpf_attach_type`
const BPF_NETKIT_PEER: u32 = 55;

/// Entries to a batch: enough to make the call's cost vanish, few enough for the kernel's own copy.
const BATCH: usize = 4096;

/// The start of `union bpf_attr` of BPF_MAP_CREATE.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
}

/// `union bpf_attr` of the single-element map commands, and of BPF_OBJ_GET in its first fields.
#[repr(C)]
#[derive(Clone, Copy, Default, Zeroable)]
struct ElemAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` of BPF_LINK_CREATE, of BPF_LINK_UPDATE, whose first two fields are the link and the
/// new program, and of BPF_LINK_DETACH, which has the link alone.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct LinkAttr {
    fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Of tcx and netkit: relative to whom, and which revision is expected; 0 for at the end.
    relative: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, AnyBitPattern)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// The start of `struct bpf_link_info`, and the union's part for tcx.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, AnyBitPattern)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub prog_id: u32,
    _pad: u32,
    /// 0 once the interface is gone.
    pub ifindex: u32,
    pub attach_type: u32,
}

pub(super) fn bpf<A>(cmd: libc::c_long, attr: &mut A) -> io::Result<i64> {
    // SAFETY: `attr` is the part of `union bpf_attr` that `cmd` reads, its length is given, and all
    // pointers in it point to live buffers of the size that the kernel derives from the map.
    let r = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<A>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

/// Opens a pinned map, program or link.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, ..ObjAttr::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `T`: the start of what the kernel writes, which may be any bytes.
fn info<T: AnyBitPattern>(fd: &impl AsFd) -> io::Result<T> {
    let mut info = T::zeroed();
    let mut attr = InfoAttr {
        bpf_fd: fd.as_fd().as_raw_fd() as u32,
        info_len: size_of::<T>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Makes an array of one number, or of one map that is like `inner`.
pub(super) fn create_array(inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        kind: if inner.is_some() { BPF_MAP_TYPE_ARRAY_OF_MAPS } else { BPF_MAP_TYPE_ARRAY },
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        inner_map_fd: inner.map_or(0, |map| map.as_raw_fd() as u32),
        ..CreateAttr::default()
    };
    let fd = bpf(BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets an element of a map whose keys and values are one word each.
pub(super) fn set_word(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        ..ElemAttr::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Pins a link.
pub fn pin(fd: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let bpf_fd = fd.as_fd().as_raw_fd() as u32;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd, ..ObjAttr::default() };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Runs a program on what the peer of a netkit pair sends. `primary`: the pair's other end, in this
/// namespace.
pub fn attach_netkit_peer(program: &impl AsFd, primary: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        fd: program.as_fd().as_raw_fd() as u32,
        target: primary,
        attach_type: BPF_NETKIT_PEER,
        ..LinkAttr::default()
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Lets a link run another program from now on.
pub fn update_link(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attr = LinkAttr {
        fd: link.as_fd().as_raw_fd() as u32,
        target: program.as_fd().as_raw_fd() as u32,
        ..LinkAttr::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link off its interface before this returns. Without it, the kernel does so some time
/// after the last descriptor and pin are gone.
pub fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let fd = link.as_fd().as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &mut LinkAttr { fd, ..LinkAttr::default() }).map(drop)
}

/// The start of `struct bpf_map_info`, `bpf_prog_info` and `bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, AnyBitPattern)]
struct ObjectInfo {
    kind: u32,
    id: u32,
}

/// The kernel's number for a map, program or link; those of each kind are distinct.
pub fn id(fd: &impl AsFd) -> io::Result<u32> {
    info::<ObjectInfo>(fd).map(|info| info.id)
}

/// What the kernel says of a pinned link.
pub fn link_info(fd: &impl AsFd) -> io::Result<LinkInfo> {
    info(fd)
}

/// What the kernel says of a map.
pub fn map_info(fd: &impl AsFd) -> io::Result<MapInfo> {
    info(fd)
}

/// A pinned hash or array map with keys `K` and values `V`.
pub struct Table<K, V> {
    fd: OwnedFd,
    capacity: u32,
    _kv: PhantomData<(K, V)>,
}

impl<K, V> Table<K, V>
where
    K: NoUninit + AnyBitPattern + Eq + Hash,
    V: NoUninit + AnyBitPattern,
{
    /// Opens the pin and checks that its sizes are those of `K` and `V`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let info = map_info(&fd)?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a map of another layout"));
        }
        Ok(Self { fd, capacity: info.max_entries, _kv: PhantomData })
    }

    /// The kernel's number for it.
    pub fn id(&self) -> io::Result<u32> {
        map_info(&self.fd).map(|info| info.id)
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn elem(&self, key: &K) -> ElemAttr {
        ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: std::ptr::from_ref(key) as u64,
            ..ElemAttr::default()
        }
    }

    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        let mut attr = self.elem(key);
        attr.value = (&raw mut value) as u64;
        match bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.elem(key);
        attr.value = std::ptr::from_ref(value) as u64;
        bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    fn remove(&self, key: &K) -> io::Result<()> {
        match bpf(BPF_MAP_DELETE_ELEM, &mut self.elem(key)) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(()),
        }
    }

    fn batch(&self, keys: &[K]) -> BatchAttr {
        BatchAttr {
            keys: keys.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            ..BatchAttr::default()
        }
    }

    /// The entries of a hash, or slots of an array, whose value is one to `keep`.
    pub fn entries(&self, keep: impl Fn(&V) -> bool) -> io::Result<Entries<K, V>> {
        match self.entries_by_batch(&keep) {
            Err(e) if is_unsupported(&e) => self.entries_one_by_one(&keep),
            other => other,
        }
    }

    fn entries_by_batch(&self, keep: impl Fn(&V) -> bool) -> io::Result<Entries<K, V>> {
        let mut all = Entries::default();
        // The kernel's cursor: a bucket number, or for arrays and tries a key.
        let (mut cursor, mut next) = ([0u8; 64], [0u8; 64]);
        let mut first = true;
        let mut size = BATCH.min(self.capacity as usize).max(1);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(size, K::zeroed());
            values.resize(size, V::zeroed());
            let mut attr = self.batch(&keys);
            attr.keys = keys.as_mut_ptr() as u64;
            attr.values = values.as_mut_ptr() as u64;
            attr.in_batch = if first { 0 } else { cursor.as_ptr() as u64 };
            attr.out_batch = next.as_mut_ptr() as u64;
            let done = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than the buffers.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    size *= 2;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let read = keys.iter().zip(&values).take(attr.count as usize);
            all.extend(read.filter(|(_, v)| keep(v)).map(|(k, v)| (*k, *v)));
            if done {
                return Ok(all);
            }
            first = false;
            cursor = next;
        }
    }

    fn entries_one_by_one(&self, keep: impl Fn(&V) -> bool) -> io::Result<Entries<K, V>> {
        let mut all = Entries::default();
        let mut last: Option<K> = None;
        loop {
            let mut next = K::zeroed();
            let mut attr = ElemAttr {
                map_fd: self.fd.as_raw_fd() as u32,
                key: last.as_ref().map_or(0, |k| std::ptr::from_ref(k) as u64),
                value: (&raw mut next) as u64,
                ..ElemAttr::default()
            };
            match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
                Err(e) => return Err(e),
            }
            if let Some(value) = self.get(&next)?.filter(&keep) {
                all.insert(next, value);
            }
            last = Some(next);
        }
    }
}

/// A map that entries are written to.
pub(super) trait Store<K, V> {
    /// Inserts or replaces all pairs.
    fn set_all(&self, pairs: &[(K, V)]) -> io::Result<()>;

    /// Removes all keys; those that are not there are no error.
    fn remove_all(&self, keys: &[K]) -> io::Result<()>;
}

impl<K, V> Store<K, V> for Table<K, V>
where
    K: NoUninit + AnyBitPattern + Eq + Hash,
    V: NoUninit + AnyBitPattern,
{
    fn set_all(&self, pairs: &[(K, V)]) -> io::Result<()> {
        for chunk in pairs.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(|(k, _)| *k).collect();
            let values: Vec<V> = chunk.iter().map(|(_, v)| *v).collect();
            let mut attr = self.batch(&keys);
            attr.values = values.as_ptr() as u64;
            match bpf(BPF_MAP_UPDATE_BATCH, &mut attr) {
                Ok(_) => {}
                // Not every map type of every kernel takes batches.
                Err(e) if is_unsupported(&e) => {
                    chunk.iter().try_for_each(|(k, v)| self.set(k, v))?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn remove_all(&self, keys: &[K]) -> io::Result<()> {
        for chunk in keys.chunks(BATCH) {
            // A batch stops at the first missing key, the rest is done one by one.
            if bpf(BPF_MAP_DELETE_BATCH, &mut self.batch(chunk)).is_err() {
                chunk.iter().try_for_each(|k| self.remove(k))?;
            }
        }
        Ok(())
    }
}

/// A per-CPU array of `V`, read as a sum over all CPUs, written on all alike.
pub struct PerCpu<V> {
    fd: OwnedFd,
    cpus: usize,
    _v: PhantomData<V>,
}

impl<V: NoUninit + AnyBitPattern> PerCpu<V> {
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        if map_info(&fd)?.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a map of another layout"));
        }
        let cpus = aya::util::nr_cpus().map_err(|(path, e)| {
            io::Error::new(e.kind(), format!("number of CPUs from {path}: {e}"))
        })?;
        Ok(Self { fd, cpus, _v: PhantomData })
    }

    /// The value at `index`, one for each CPU.
    pub fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut buffer = vec![0u8; Self::STRIDE * self.cpus];
        let mut attr = self.elem(&index, buffer.as_mut_ptr() as u64);
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)?;
        Ok(buffer
            .chunks(Self::STRIDE)
            .map(|c| bytemuck::pod_read_unaligned(&c[..size_of::<V>()]))
            .collect())
    }

    /// Sets the value at `index` to zero.
    pub fn clear(&self, index: u32) -> io::Result<()> {
        let zero = vec![0u8; Self::STRIDE * self.cpus];
        bpf(BPF_MAP_UPDATE_ELEM, &mut self.elem(&index, zero.as_ptr() as u64)).map(drop)
    }

    fn elem(&self, index: &u32, value: u64) -> ElemAttr {
        ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: std::ptr::from_ref(index) as u64,
            value,
            ..ElemAttr::default()
        }
    }
}

fn is_unsupported(e: &io::Error) -> bool {
    // ENOTSUPP (524) has no name in libc.
    matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}
