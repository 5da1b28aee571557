//! Devices and their attributes.

use std::ffi::c_char;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::driver::abi::{Out, Text};
use crate::driver::state::{Context, Driver, Pool, current, lock};
use crate::driver::status::{self, INVALID_DEVICE, INVALID_VALUE, Result};

exported! {
    fn cuDeviceGet(device: Out<i32>, ordinal: i32) |driver| {
        driver.device(ordinal)?;
        device.put(ordinal)
    }

    fn cuDeviceGetCount(count: Out<i32>) |driver| {
        count.put(driver.devices.len() as i32)
    }

    fn cuDeviceGetName(name: Out<c_char>, length: i32, device: i32) |driver| {
        driver.device(device)?;
        let (major, minor) = driver.settings.architecture;
        let text = format!("Ropeway emulated CUDA device (PTX interpreter, sm_{major}{minor})");
        let room = usize::try_from(length).map_err(|_| INVALID_VALUE)?;
        if room == 0 || name.is_null() {
            return Err(INVALID_VALUE);
        }
        let bytes = text.bytes().take(room - 1).chain([0]);
        name.put_all(bytes.map(|byte| byte as c_char));
        Ok(())
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) |driver| {
        uuid.put(uuid_of(driver.device(device)?.0))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) |driver| {
        uuid.put(uuid_of(driver.device(device)?.0))
    }

    fn cuDeviceGetLuid(_luid: Out<[u8; 8]>, _mask: Out<u32>, _device: i32) |_driver| {
        Err(status::NOT_SUPPORTED)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) |driver| {
        driver.device(device)?;
        bytes.put(driver.settings.memory as usize)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) |driver| {
        let (number, _) = driver.device(device)?;
        value.put(attribute_of(driver, attribute, number))
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) |driver| {
        driver.device(device)?;
        major.put(driver.settings.architecture.0 as i32)?;
        minor.put(driver.settings.architecture.1 as i32)
    }

    fn cuDeviceGetPCIBusId(text: Out<c_char>, length: i32, device: i32) |driver| {
        let (number, _) = driver.device(device)?;
        let id = format!("0000:{:02x}:00.0", number + 1);
        if text.is_null() || usize::try_from(length).map_err(|_| INVALID_VALUE)? <= id.len() {
            return Err(INVALID_VALUE);
        }
        text.put_all(id.bytes().chain([0]).map(|byte| byte as c_char));
        Ok(())
    }

    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: Text) |driver| {
        let bus = text.get()?.split(':').rev().nth(1).and_then(|bus| i32::from_str_radix(bus, 16).ok());
        let (number, _) = driver.device(bus.ok_or(INVALID_VALUE)? - 1)?;
        device.put(number as i32)
    }

    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) |driver| {
        let (number, device) = driver.device(device)?;
        let mut primary = lock(&device.primary);
        let made = primary.0.get_or_insert_with(|| Context::new(number));
        let handle = made.handle;
        primary.1 += 1;
        context.put(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) |driver| {
        let (_, device) = driver.device(device)?;
        let mut primary = lock(&device.primary);
        primary.1 = primary.1.checked_sub(1).ok_or(status::INVALID_CONTEXT)?;
        let ended = if primary.1 == 0 { primary.0.take() } else { None };
        drop(primary);
        if let Some(context) = ended {
            context.destroy();
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) |driver| {
        let (_, device) = driver.device(device)?;
        let ended = lock(&device.primary).0.take();
        if let Some(context) = ended {
            context.destroy();
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) |driver| {
        driver.device(device).map(|_| ())
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) |driver| {
        let (_, device) = driver.device(device)?;
        let primary = lock(&device.primary);
        flags.put(primary.0.as_ref().map_or(0, |context| context.flags.load(Ordering::Relaxed)))?;
        active.put(i32::from(primary.0.is_some()))
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) |driver| {
        driver.device(device)?;
        driver.device(peer)?;
        can.put(i32::from(device != peer))
    }

    fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, from: i32, to: i32) |driver| {
        driver.device(from)?;
        driver.device(to)?;
        if from == to {
            return Err(INVALID_DEVICE);
        }
        // 2: access is supported.
        value.put(i32::from(attribute == 2))
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<usize>, device: i32) |driver| {
        pool.put(pools_of(driver, device)?.0)
    }

    fn cuDeviceGetMemPool(pool: Out<usize>, device: i32) |driver| {
        pool.put(pools_of(driver, device)?.1)
    }

    fn cuDeviceSetMemPool(device: i32, pool: usize) |driver| {
        let (default, _) = pools_of(driver, device)?;
        driver.pools.get(pool)?;
        let (_, device) = driver.device(device)?;
        *lock(&device.pools) = Some((default, pool));
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: usize, flags: u32) |driver| {
        let context = current()?;
        let peer = driver.contexts.get(peer).map_err(|_| status::INVALID_CONTEXT)?;
        if flags != 0 || peer.device == context.device {
            return Err(INVALID_VALUE);
        }
        let before = context.peers.fetch_or(1 << peer.device, Ordering::Relaxed);
        if before >> peer.device & 1 == 1 { Err(status::PEER_ACCESS_ALREADY_ENABLED) } else { Ok(()) }
    }

    fn cuCtxDisablePeerAccess(peer: usize) |driver| {
        let context = current()?;
        let peer = driver.contexts.get(peer).map_err(|_| status::INVALID_CONTEXT)?;
        let before = context.peers.fetch_and(!(1 << peer.device), Ordering::Relaxed);
        if before >> peer.device & 1 == 1 { Ok(()) } else { Err(status::PEER_ACCESS_NOT_ENABLED) }
    }
}

fn uuid_of(device: usize) -> [u8; 16] {
    let mut uuid = *b"emulated-cuda-00";
    uuid[15] += device as u8;
    uuid
}

/// Handles of the default pool of a device and of the one in use.
pub(super) fn pools_of(driver: &Driver, device: i32) -> Result<(usize, usize)> {
    let (number, device) = driver.device(device)?;
    let mut pools = lock(&device.pools);
    Ok(*pools.get_or_insert_with(|| {
        let pool = driver.pools.add(Arc::new(Pool {
            device: number,
            attributes: Default::default(),
        }));
        (pool, pool)
    }))
}

/// Shared memory that a block may have by default, and at most.
pub(super) fn shared_limits(driver: &Driver) -> (u32, u32) {
    let most = match driver.settings.architecture {
        (8, 0) => 163 << 10,
        (7, 5) => 64 << 10,
        (7, _) => 96 << 10,
        (8, _) | (12, _) => 99 << 10,
        _ => 227 << 10,
    };
    (48 << 10, most)
}

/// Threads that a block may have.
pub(super) const MAX_THREADS: u32 = 1024;
/// Threads that a block may have along each axis.
pub(super) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Blocks that a grid may have along each axis.
pub(super) const MAX_GRID: [u32; 3] = [0x7FFF_FFFF, 65535, 65535];

/// The attributes by their numbers in `cuda.h`; what is not listed is 0. What would be a speed says as little as it can.
fn attribute_of(driver: &Driver, attribute: u32, device: usize) -> i32 {
    let (major, minor) = driver.settings.architecture;
    let (shared, most_shared) = shared_limits(driver);
    let value = match attribute {
        1 => MAX_THREADS,
        2..=4 => MAX_BLOCK[attribute as usize - 2],
        5..=7 => MAX_GRID[attribute as usize - 5],
        8 => shared,
        9 => 65536,
        10 => 32,
        11 => 0x7FFF_FFFF,
        // Registers of a block and of a multiprocessor.
        12 | 82 => 65536,
        // Clocks in kHz: nothing that could pass for a GPU's.
        13 | 36 => 1000,
        14 | 37 => 256,
        // Two copies beside a launch; multiprocessors as host threads.
        15 | 40 => 2,
        16 => driver.settings.threads as u32,
        // Host memory can be mapped, kernels run side by side, one address space.
        19 | 31 | 41 => 1,
        33 => device as u32 + 1,
        38 => 4 << 20,
        39 => 2048,
        75 => major,
        76 => minor,
        // Priorities, caching, host atomics; managed memory is not there.
        78..=80 => 1,
        81 => most_shared + 1024,
        // Pageable memory is not reached by kernels; cooperative launches are.
        95 => 1,
        97 => most_shared,
        106 => 32,
        111 => 1024,
        115 => 1,
        _ => 0,
    };
    value as i32
}
