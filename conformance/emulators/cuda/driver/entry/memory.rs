//! Memory: allocations, pools, pinned memory, copies, sets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::context::forbid_while_capturing;
use super::device::pools_of;
use crate::driver::abi::{Host, In, Out};
use crate::driver::state::{Context, Driver, Pool, current, lock};
use crate::driver::status::{self, INVALID_VALUE, Result};
use crate::driver::stream::Stream;
use crate::driver::work::{Place, Work};
use crate::memory::{Lookup, State};

/// `CUmemPoolProps`, up to what is read of it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProperties {
    allocation_type: u32,
    handle_types: u32,
    location_type: u32,
    location: i32,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copy2d {
    source_x: usize,
    source_y: usize,
    source_type: u32,
    source_host: Host,
    source_device: u64,
    source_array: usize,
    source_pitch: usize,
    target_x: usize,
    target_y: usize,
    target_type: u32,
    target_host: Host,
    target_device: u64,
    target_array: usize,
    target_pitch: usize,
    width: usize,
    height: usize,
}

exported! {
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) |driver| {
        let context = current()?;
        forbid_while_capturing(&context)?;
        address.put(driver.allocate(context.device, bytes, State::Live)?.base)
    }

    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, _element: u32) |driver| {
        let context = current()?;
        forbid_while_capturing(&context)?;
        let row = width.next_multiple_of(512);
        let bytes = row.checked_mul(height).ok_or(INVALID_VALUE)?;
        pitch.put(row)?;
        address.put(driver.allocate(context.device, bytes, State::Live)?.base)
    }

    // Managed memory would have to fault on the host; host memory that devices reach does what programs can tell.
    fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: u32) |_driver| {
        Err(status::NOT_SUPPORTED)
    }

    fn cuMemFree_v2(address: u64) |driver| {
        if address == 0 {
            return Ok(());
        }
        let context = current()?;
        forbid_while_capturing(&context)?;
        // As the real one, it waits for all work first.
        context.synchronize()?;
        if driver.free(address) { Ok(()) } else { Err(INVALID_VALUE) }
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |driver| {
        let context = current()?;
        let used = driver.devices[context.device].used.load(Ordering::Relaxed);
        free.put((driver.settings.memory - used) as usize)?;
        total.put(driver.settings.memory as usize)
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) |driver| {
        let Lookup::Found(found) = driver.space.find(address) else {
            return Err(status::NOT_FOUND);
        };
        base.offer(found.base);
        bytes.offer(found.bytes() as usize);
        Ok(())
    }

    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) |driver| {
        let stream = driver.stream(stream)?;
        let context = stream.context()?;
        allocate_async(driver, address, bytes, &stream, context.device)
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: usize, stream: usize) |driver| {
        let stream = driver.stream(stream)?;
        let device = driver.pools.get(pool)?.device;
        allocate_async(driver, address, bytes, &stream, device)
    }

    fn cuMemFreeAsync(address: u64, stream: usize) |driver| {
        let stream = driver.stream(stream)?;
        let Lookup::Found(found) = driver.space.find(address) else {
            return Err(INVALID_VALUE);
        };
        if found.base != address || found.device.is_none() {
            return Err(INVALID_VALUE);
        }
        stream.enqueue(Work::Free(address))
    }

    fn cuMemPoolCreate(pool: Out<usize>, properties: In<PoolProperties>) |driver| {
        let properties = properties.get()?;
        // Pinned memory without handles to share, on a device.
        if (properties.allocation_type, properties.handle_types, properties.location_type) != (1, 0, 1) {
            return Err(status::NOT_SUPPORTED);
        }
        let (device, _) = driver.device(properties.location)?;
        pool.put(driver.pools.add(Arc::new(Pool { device, attributes: Default::default() })))
    }

    fn cuMemPoolDestroy(pool: usize) |driver| {
        let default = driver.devices.iter().any(|device| lock(&device.pools).is_some_and(|(default, _)| default == pool));
        if default {
            return Err(INVALID_VALUE);
        }
        driver.pools.remove(pool).map(|_| ())
    }

    fn cuMemPoolTrimTo(pool: usize, _bytes: usize) |driver| {
        driver.pools.get(pool).map(|_| ())
    }

    fn cuMemPoolSetAttribute(pool: usize, attribute: u32, value: In<u32>) |driver| {
        let pool = driver.pools.get(pool)?;
        // Up to 3 they are int, from 4 on 64 bits.
        let value = match attribute {
            1..=3 => u64::from(value.get()?),
            4..=8 => u64::from(value.get()?) | u64::from(value.at(1)?) << 32,
            _ => return Err(INVALID_VALUE),
        };
        lock(&pool.attributes).insert(attribute, value);
        if matches!(attribute, 6 | 8) {
            let device = &driver.devices[pool.device];
            device.high.store(device.used.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: usize, attribute: u32, value: Out<u32>) |driver| {
        let pool = driver.pools.get(pool)?;
        let device = &driver.devices[pool.device];
        let set = lock(&pool.attributes).get(&attribute).copied();
        let found = match attribute {
            5 | 7 => device.used.load(Ordering::Relaxed),
            6 | 8 => device.high.load(Ordering::Relaxed),
            1..=3 => set.unwrap_or(1),
            4 => set.unwrap_or(0),
            _ => return Err(INVALID_VALUE),
        };
        if value.is_null() {
            return Err(INVALID_VALUE);
        }
        let words = if attribute <= 3 { 1 } else { 2 };
        value.put_all([found as u32, (found >> 32) as u32].into_iter().take(words));
        Ok(())
    }

    fn cuMemPoolSetAccess(pool: usize, _access: In<[u32; 3]>, _count: usize) |driver| {
        driver.pools.get(pool).map(|_| ())
    }

    fn cuMemHostAlloc(pointer: Out<Host>, bytes: usize, _flags: u32) |driver| {
        allocate_host(driver, pointer, bytes)
    }

    fn cuMemAllocHost_v2(pointer: Out<Host>, bytes: usize) |driver| {
        allocate_host(driver, pointer, bytes)
    }

    fn cuMemFreeHost(pointer: Host) |driver| {
        if pointer.is_null() {
            return Ok(());
        }
        if !matches!(driver.space.find(pointer.address()), Lookup::Found(found) if found.device.is_none()) {
            return Err(INVALID_VALUE);
        }
        // Work that still uses it has to end first; the real one waits too.
        if let Some(context) = crate::driver::state::current_or_none() {
            let _ = context.synchronize();
        }
        if driver.free(pointer.address()) { Ok(()) } else { Err(INVALID_VALUE) }
    }

    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, pointer: Host, _flags: u32) |driver| {
        match driver.space.find(pointer.address()) {
            Lookup::Found(_) => address.put(pointer.address()),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemHostGetFlags(flags: Out<u32>, pointer: Host) |driver| {
        match driver.space.find(pointer.address()) {
            Lookup::Found(_) => flags.put(3),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemHostRegister_v2(pointer: Host, bytes: usize, _flags: u32) |driver| {
        if pointer.is_null() || bytes == 0 {
            return Err(INVALID_VALUE);
        }
        // Values of up to 8 bytes are reached at their own alignment.
        if !pointer.address().is_multiple_of(8) {
            return Err(status::NOT_SUPPORTED);
        }
        if matches!(driver.space.find(pointer.address()), Lookup::Found(_)) {
            return Err(status::HOST_MEMORY_ALREADY_REGISTERED);
        }
        driver.space.adopt(pointer.region(bytes).ok_or(INVALID_VALUE)?);
        Ok(())
    }

    fn cuMemHostUnregister(pointer: Host) |driver| {
        let _ = current()?.synchronize();
        if driver.free(pointer.address()) { Ok(()) } else { Err(status::HOST_MEMORY_NOT_REGISTERED) }
    }

    fn cuPointerGetAttribute(data: Out<u64>, attribute: u32, address: u64) |driver| {
        let Lookup::Found(found) = driver.space.find(address) else {
            return Err(INVALID_VALUE);
        };
        let narrow: Out<u32> = data.cast();
        match attribute {
            // Context, memory type (1 host, 2 device), device and host pointer, buffer id, ordinal, range.
            1 => data.put(current()?.handle as u64),
            2 => narrow.put(if found.device.is_some() { 2 } else { 1 }),
            3 => data.put(address),
            4 if found.device.is_none() => data.put(address),
            7 => data.put(found.base),
            8 => narrow.put(0),
            9 => narrow.put(found.device.unwrap_or(0) as u32),
            11 => data.put(found.base),
            12 => data.put(found.bytes()),
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) |driver| {
        copy_now(driver, Place::Device(to), Place::Host(from), bytes)
    }

    fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) |driver| {
        copy_now(driver, Place::Host(to), Place::Device(from), bytes)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) |driver| {
        copy_now(driver, Place::Device(to), Place::Device(from), bytes)
    }

    fn cuMemcpy(to: Host, from: Host, bytes: usize) |driver| {
        let (to, from) = (place(driver, to), place(driver, from));
        copy_now(driver, to, from, bytes)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, stream: usize) |driver| {
        copy_later(driver, Place::Device(to), Place::Host(from), bytes, stream)
    }

    fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, stream: usize) |driver| {
        copy_later(driver, Place::Host(to), Place::Device(from), bytes, stream)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) |driver| {
        copy_later(driver, Place::Device(to), Place::Device(from), bytes, stream)
    }

    fn cuMemcpyAsync(to: Host, from: Host, bytes: usize, stream: usize) |driver| {
        let (to, from) = (place(driver, to), place(driver, from));
        copy_later(driver, to, from, bytes, stream)
    }

    fn cuMemcpyPeer(to: u64, _to_context: usize, from: u64, _from_context: usize, bytes: usize) |driver| {
        copy_now(driver, Place::Device(to), Place::Device(from), bytes)
    }

    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, stream: usize) |driver| {
        driver.contexts.get(to_context).map_err(|_| status::INVALID_CONTEXT)?;
        driver.contexts.get(from_context).map_err(|_| status::INVALID_CONTEXT)?;
        copy_later(driver, Place::Device(to), Place::Device(from), bytes, stream)
    }

    fn cuMemcpy2DAsync_v2(copy: In<Copy2d>, stream: usize) |driver| {
        let stream = driver.stream(stream)?;
        copy_rows(driver, &copy.get()?, &stream)
    }

    fn cuMemcpy2D_v2(copy: In<Copy2d>) |driver| {
        let stream = current()?.default_stream();
        copy_rows(driver, &copy.get()?, &stream)?;
        stream.synchronize()
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) |driver| {
        set_now(driver, to, u32::from(value), 1, count)
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) |driver| {
        set_now(driver, to, u32::from(value), 2, count)
    }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) |driver| {
        set_now(driver, to, value, 4, count)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) |driver| {
        set_later(driver, to, u32::from(value), 1, count, stream)
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) |driver| {
        set_later(driver, to, u32::from(value), 2, count, stream)
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) |driver| {
        set_later(driver, to, value, 4, count, stream)
    }
}

fn allocate_async(
    driver: &Driver,
    address: Out<u64>,
    bytes: usize,
    stream: &Arc<Stream>,
    device: usize,
) -> Result<()> {
    stream.forbid_capture()?;
    pools_of(driver, device as i32)?;
    let allocation = driver.allocate(device, bytes, State::Reserved)?;
    let base = allocation.base;
    stream.enqueue(Work::Begin(allocation)).inspect_err(|_| {
        driver.free(base);
    })?;
    address.put(base)
}

fn allocate_host(driver: &Driver, pointer: Out<Host>, bytes: usize) -> Result<()> {
    current()?;
    if bytes == 0 || pointer.is_null() {
        return Err(INVALID_VALUE);
    }
    driver.faults.allocation()?;
    let allocation = driver
        .space
        .allocate_host(bytes)
        .ok_or(status::OUT_OF_MEMORY)?;
    pointer.put(Host::of_region(&allocation.region))
}

/// What a pointer of the unified address space is: memory that devices reach, or the host's alone.
fn place(driver: &Driver, pointer: Host) -> Place {
    match driver.space.find(pointer.address()) {
        Lookup::Found(found) if found.device.is_some() => Place::Device(pointer.address()),
        _ => Place::Host(pointer),
    }
}

/// A copy must lie in one allocation at each end; that is known when it is asked for.
fn check_range(driver: &Driver, place: &Place, bytes: usize) -> Result<()> {
    let Place::Device(address) = place else {
        return Ok(());
    };
    match driver.space.find(*address) {
        Lookup::Found(found) if found.bytes() - (address - found.base) >= bytes as u64 => Ok(()),
        _ if bytes == 0 => Ok(()),
        _ => Err(INVALID_VALUE),
    }
}

fn copy_now(driver: &Driver, to: Place, from: Place, bytes: usize) -> Result<()> {
    let context: Arc<Context> = current()?;
    forbid_while_capturing(&context)?;
    check_range(driver, &to, bytes)?;
    check_range(driver, &from, bytes)?;
    let stream = context.default_stream();
    stream.enqueue(Work::Copy { to, from, bytes })?;
    stream.synchronize()
}

/// An asynchronous copy. Of pageable memory the real driver's is half synchronous, and so is this: bytes to the device are taken over at
/// once, a copy to the host is waited for. Pinned memory is read and written when the stream gets there.
fn copy_later(driver: &Driver, to: Place, from: Place, bytes: usize, stream: usize) -> Result<()> {
    let stream = driver.stream(stream)?;
    stream.context()?;
    check_range(driver, &to, bytes)?;
    check_range(driver, &from, bytes)?;
    let pageable = |place: &Place| match place {
        Place::Host(host) => !matches!(driver.space.find(host.address()), Lookup::Found(_)),
        _ => false,
    };
    let capturing = stream.is_capturing();
    let from = match from {
        Place::Host(host) if !capturing && pageable(&from) => {
            let mut taken = vec![0; bytes];
            host.read(&mut taken);
            Place::Bytes(taken.into())
        }
        from => from,
    };
    let wait = !capturing && pageable(&to);
    stream.enqueue(Work::Copy { to, from, bytes })?;
    if wait { stream.synchronize() } else { Ok(()) }
}

fn copy_rows(driver: &Driver, copy: &Copy2d, stream: &Arc<Stream>) -> Result<()> {
    let end = |kind: u32, host: Host, device: u64, at: usize| match kind {
        1 => Ok(Place::Host(host.beyond(at))),
        2 => Ok(Place::Device(device + at as u64)),
        4 => Ok(place(driver, Host::at_address(device).beyond(at))),
        _ => Err(INVALID_VALUE),
    };
    for row in 0..copy.height {
        let from = copy.source_x + (copy.source_y + row) * copy.source_pitch;
        let to = copy.target_x + (copy.target_y + row) * copy.target_pitch;
        let from = end(copy.source_type, copy.source_host, copy.source_device, from)?;
        let to = end(copy.target_type, copy.target_host, copy.target_device, to)?;
        check_range(driver, &from, copy.width)?;
        check_range(driver, &to, copy.width)?;
        stream.enqueue(Work::Copy {
            to,
            from,
            bytes: copy.width,
        })?;
    }
    Ok(())
}

fn set_now(driver: &Driver, to: u64, value: u32, width: u8, count: usize) -> Result<()> {
    let context = current()?;
    forbid_while_capturing(&context)?;
    set_later(driver, to, value, width, count, 0)?;
    context.default_stream().synchronize()
}

fn set_later(
    driver: &Driver,
    to: u64,
    value: u32,
    width: u8,
    count: usize,
    stream: usize,
) -> Result<()> {
    if !to.is_multiple_of(u64::from(width)) {
        return Err(INVALID_VALUE);
    }
    let stream = driver.stream(stream)?;
    check_range(driver, &Place::Device(to), count * usize::from(width))?;
    stream.enqueue(Work::Set {
        to,
        value,
        width,
        count,
    })
}
