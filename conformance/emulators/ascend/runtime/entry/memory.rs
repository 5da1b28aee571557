//! Memory: allocations, pinned memory, copies, sets.

use std::sync::atomic::Ordering;

use crate::runtime::abi::{Address, Out};
use crate::runtime::device::{Emulator, current};
use crate::runtime::graph::forbid_synchronous;
use crate::runtime::memory::{Kind, Memory};
use crate::runtime::settings::Profile;
use crate::runtime::status::{self, Result};
use crate::runtime::work::{self, Place, Work};

/// What asynchronous copies were documented to need up to CANN 8.1.
const COPY_ALIGNMENT: u64 = 64;

super::exported! {
    fn aclrtMalloc(pointer: Out<Address>, bytes: usize, policy: u32) |emulator| {
        pointer.check("devPtr")?;
        let context = current()?;
        if bytes == 0 {
            return Err(status::INVALID_PARAMETER.breach("no bytes are asked for"));
        }
        // HUGE_FIRST, HUGE_ONLY, NORMAL_ONLY.
        if policy > 2 {
            return Err(status::PARAMETER.breach(format!("malloc policy {policy}")));
        }
        let used = emulator.memory.used(context.device);
        let fits = Memory::cost(bytes as u64)
            .and_then(|cost| cost.checked_add(used))
            .is_some_and(|taken| taken <= emulator.settings.memory);
        let made = if fits { emulator.memory.allocate(bytes as u64, Kind::Device(context.device)) } else { None };
        match made {
            Some(made) => pointer.put("devPtr", Address::of(made.base)),
            None => {
                let why = format!("{bytes} bytes beside {used} of {}", emulator.settings.memory);
                Err(status::OUT_OF_MEMORY.because(why))
            }
        }
    }

    fn aclrtFree(pointer: Address) |emulator| {
        free(emulator, pointer, "device memory", |kind| matches!(kind, Kind::Device(_)))
    }

    fn aclrtMallocHost(pointer: Out<Address>, bytes: usize) |emulator| {
        pointer.check("hostPtr")?;
        current()?;
        if bytes == 0 {
            return Err(status::INVALID_PARAMETER.breach("no bytes are asked for"));
        }
        match emulator.memory.allocate(bytes as u64, Kind::Pinned) {
            Some(made) => pointer.put("hostPtr", Address::of(made.base)),
            None => Err(status::OUT_OF_MEMORY.because(format!("{bytes} bytes of pinned memory"))),
        }
    }

    fn aclrtFreeHost(pointer: Address) |emulator| {
        free(emulator, pointer, "pinned memory", |kind| kind == Kind::Pinned)
    }

    fn aclrtGetMemInfo(attribute: u32, free: Out<usize>, total: Out<usize>) |emulator| {
        free.check("free")?;
        let context = current()?;
        // DDR, of which these devices have none; HBM.
        let memory = match attribute {
            0 => 0,
            1 => emulator.settings.memory,
            _ => return Err(status::PARAMETER.breach(format!("memory attribute {attribute}"))),
        };
        let used = emulator.memory.used(context.device);
        free.put("free", memory.saturating_sub(used) as usize)?;
        total.put("total", memory as usize)
    }

    fn aclrtMemcpy(to: Address, room: usize, from: Address, bytes: usize, kind: u32) |emulator| {
        let context = current()?;
        forbid_synchronous("aclrtMemcpy")?;
        let (to, from) = ends(emulator, (to, room), from, bytes, kind)?;
        // It waits for no stream, and no stream for it.
        context.device().check()?;
        work::copy(&to, &from, bytes as u64).map_err(|fault| fault.status.because(fault.why))
    }

    fn aclrtMemcpyAsync(to: Address, room: usize, from: Address, bytes: usize, kind: u32, stream: usize) |emulator| {
        let stream = emulator.stream(stream)?;
        if kind == 0 {
            return Err(status::UNSUPPORTED.breach("an asynchronous copy within the host"));
        }
        if emulator.settings.profile <= (Profile { major: 8, minor: 1 }) {
            for address in [to, from] {
                if !address.value().is_multiple_of(COPY_ALIGNMENT) {
                    let why = format!("{:#x} is not aligned to {COPY_ALIGNMENT} bytes", address.value());
                    return Err(status::UNALIGNED.breach(why));
                }
            }
        }
        let (to, from) = ends(emulator, (to, room), from, bytes, kind)?;
        let pageable = matches!(to, Place::Host(_)) || matches!(from, Place::Host(_));
        if pageable {
            stream.forbid_capture("a copy of pageable memory is captured")?;
        }
        stream.enqueue(Work::Copy { to, from, bytes: bytes as u64 })?;
        if pageable { stream.synchronize(None) } else { Ok(()) }
    }

    fn aclrtMemset(to: Address, room: usize, value: i32, bytes: usize) |emulator| {
        let context = current()?;
        forbid_synchronous("aclrtMemset")?;
        let work = set(emulator, to, room, value, bytes)?;
        context.device().check()?;
        let mut random = crate::runtime::settings::Random(0);
        work.run(&mut random).map_err(|fault| fault.status.because(fault.why))
    }

    fn aclrtMemsetAsync(to: Address, room: usize, value: i32, bytes: usize, stream: usize) |emulator| {
        let stream = emulator.stream(stream)?;
        stream.enqueue(set(emulator, to, room, value, bytes)?)
    }
}

fn free(
    emulator: &Emulator,
    pointer: Address,
    what: &str,
    of: impl Fn(Kind) -> bool,
) -> Result<()> {
    current()?;
    if pointer.is_null() {
        return Err(status::INVALID_PARAMETER.breach("the pointer is null"));
    }
    let address = pointer.value();
    let found = emulator.memory.find(address);
    let found = found.filter(|found| found.base == address && of(found.kind));
    let Some(found) = found else {
        let why = format!("no {what} begins at {}", emulator.memory.describe(address));
        return Err(status::PARAMETER.breach(why));
    };
    emulator.memory.free(address);
    // The real one does not wait, and may give the memory to the next caller while work still uses it.
    if found.graphs.load(Ordering::Relaxed) > 0 {
        let why = format!(
            "{what} of {} bytes is freed, which a model runtime instance refers to",
            found.bytes
        );
        emulator.breaches.record(&why);
    }
    let freed = format!("{what} of {} bytes is freed in flight", found.bytes);
    if let Err(failure) = super::require_idle(emulator, &found.uses, &freed) {
        emulator.breaches.record(&failure.why);
    }
    Ok(())
}

/// Which side an address must be on.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Host,
    Device,
    Either,
}

/// Checks what a copy is between.
fn ends(
    emulator: &Emulator,
    (to, room): (Address, usize),
    from: Address,
    bytes: usize,
    kind: u32,
) -> Result<(Place, Place)> {
    let (to_side, from_side) = match kind {
        0 => (Side::Host, Side::Host),
        1 => (Side::Device, Side::Host),
        2 => (Side::Host, Side::Device),
        3 => (Side::Device, Side::Device),
        4 => (Side::Either, Side::Either),
        _ => return Err(status::PARAMETER.breach(format!("memcpy kind {kind}"))),
    };
    if bytes == 0 {
        return Err(status::INVALID_PARAMETER.breach("a copy of no bytes"));
    }
    if room < bytes {
        let why = format!("destMax is {room}, count {bytes}");
        return Err(status::PARAMETER.breach(why));
    }
    // The whole of destMax is claimed to be there.
    let to = place(emulator, to, room, to_side, "dst")?;
    let from = place(emulator, from, bytes, from_side, "src")?;
    Ok((to, from))
}

fn place(
    emulator: &Emulator,
    address: Address,
    bytes: usize,
    side: Side,
    name: &str,
) -> Result<Place> {
    let at = address.value();
    let memory = &emulator.memory;
    if address.is_null() {
        return Err(status::INVALID_PARAMETER.breach(format!("{name} is null")));
    }
    let (device, pinned) = (memory.is_device(at), memory.is_pinned(at));
    if side == Side::Device && !device {
        let why = format!("{name} has to be of a device: {}", memory.describe(at));
        return Err(status::HANDLE.breach(why));
    }
    if side == Side::Host && device {
        let why = format!("{name} has to be of the host: {}", memory.describe(at));
        return Err(status::HANDLE.breach(why));
    }
    if !device && !pinned {
        return Ok(Place::Host(address));
    }
    match memory.find_range(at, bytes as u64) {
        Some(_) if device => Ok(Place::Device(at)),
        Some(found) => {
            let offset = at - found.base;
            Ok(Place::Pinned(found, offset))
        }
        None => {
            let why = format!("{name} has no {bytes} bytes at {}", memory.describe(at));
            Err(status::PARAMETER.breach(why))
        }
    }
}

fn set(emulator: &Emulator, to: Address, room: usize, value: i32, bytes: usize) -> Result<Work> {
    if bytes == 0 {
        return Err(status::INVALID_PARAMETER.breach("a set of no bytes"));
    }
    if room < bytes {
        return Err(status::PARAMETER.breach(format!("maxCount is {room}, count {bytes}")));
    }
    match place(emulator, to, room, Side::Device, "devPtr")? {
        Place::Device(to) => Ok(Work::Set {
            to,
            // As the C function of this name, it takes the low byte.
            value: value as u8,
            bytes: bytes as u64,
        }),
        _ => Err(status::HANDLE.breach("devPtr has to be of a device")),
    }
}
