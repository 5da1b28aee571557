//! Modules, kernels, launches, occupancy.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::device::{MAX_BLOCK, MAX_GRID, MAX_THREADS, shared_limits};
use crate::driver::abi::{Host, Image, In, Out, Parameters, SharedOfBlock, Text, shared_of_block};
use crate::driver::state::{Driver, Kernel, Module, current};
use crate::driver::status::{self, INVALID_VALUE, Result};
use crate::driver::work::{LaunchWork, Manner, Work};

/// Blocks that a cluster may have, where a kernel asks for no more.
const MAX_CLUSTER: u32 = 8;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: In<LaunchAttribute>,
    count: u32,
}

/// `CUlaunchAttribute`: a number, and 64 bytes of a value that begin at byte 8.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

exported! {
    fn cuModuleLoadData(module: Out<usize>, image: Image) |driver| {
        load(driver, module, image, |_| {})
    }

    fn cuModuleLoadDataEx(module: Out<usize>, image: Image, count: u32, options: In<u32>, values: In<usize>) |driver| {
        // 5 is the error log's buffer, 6 its size.
        let mut log = (0, 0);
        for index in 0..count as usize {
            match options.at(index)? {
                5 => log.0 = values.at(index)?,
                6 => log.1 = values.at(index)?,
                _ => {}
            }
        }
        load(driver, module, image, |text| {
            if log.0 != 0 && log.1 > 0 {
                let bytes = &text.as_bytes()[..text.len().min(log.1 - 1)];
                let buffer = Host::at_address(log.0 as u64);
                buffer.write(bytes);
                buffer.beyond(bytes.len()).write(&[0]);
            }
        })
    }

    fn cuModuleLoad(module: Out<usize>, file: Text) |driver| {
        let text = std::fs::read_to_string(file.get()?).map_err(|_| status::FILE_NOT_FOUND)?;
        load_text(driver, module, &text, |_| {})
    }

    fn cuModuleLoadFatBinary(_module: Out<usize>, _image: *const c_void) |driver| {
        refuse_binary(driver, "fat binaries are not interpreted: load PTX")
    }

    fn cuModuleUnload(module: usize) |driver| {
        driver.modules.remove(module)?;
        driver.functions.remove_if(|kernel| kernel.module_handle == module);
        Ok(())
    }

    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) |driver| {
        let loaded = driver.modules.get(module)?;
        let name = name.get()?;
        let number = loaded.code.functions.iter().position(|known| known.name == name).ok_or(status::NOT_FOUND)?;
        let kernel = Kernel {
            module: loaded,
            module_handle: module,
            number,
            dynamic_shared: AtomicU32::new(shared_limits(driver).0),
        };
        function.put(driver.functions.add(Arc::new(kernel)))
    }

    fn cuModuleGetFunctionCount(count: Out<u32>, module: usize) |driver| {
        count.put(driver.modules.get(module)?.code.functions.len() as u32)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: usize, name: Text) |driver| {
        let module = driver.modules.get(module)?;
        let name = name.get()?;
        let number = module.code.variables.iter().position(|variable| variable.name == name).ok_or(status::NOT_FOUND)?;
        address.offer(module.addresses[number]);
        bytes.offer(module.code.variables[number].bytes as usize);
        Ok(())
    }

    fn cuModuleGetLoadingMode(mode: Out<u32>) |_driver| {
        mode.put(1)
    }

    fn cuFuncGetModule(module: Out<usize>, function: usize) |driver| {
        module.put(driver.functions.get(function)?.module_handle)
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: usize) |driver| {
        let kernel = driver.functions.get(function)?;
        let (major, minor) = driver.settings.architecture;
        let code = kernel.function();
        value.put(match attribute {
            0 => code.max_threads.unwrap_or(MAX_THREADS) as i32,
            1 => code.shared_bytes as i32,
            2 => 0,
            3 => code.local_bytes as i32,
            // Registers are the assembler's business; none is at work here.
            4 => 32,
            5 | 6 => (major * 10 + minor) as i32,
            7 => 0,
            8 => kernel.dynamic_shared.load(Ordering::Relaxed) as i32,
            9 => -1,
            _ => return Err(INVALID_VALUE),
        })
    }

    fn cuFuncSetAttribute(function: usize, attribute: u32, value: i32) |driver| {
        let kernel = driver.functions.get(function)?;
        if attribute == 8 {
            let bytes = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
            let (_, most) = shared_limits(driver);
            if bytes + kernel.function().shared_bytes > most {
                return Err(INVALID_VALUE);
            }
            kernel.dynamic_shared.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    fn cuFuncSetCacheConfig(function: usize, _config: u32) |driver| {
        driver.functions.get(function).map(|_| ())
    }

    fn cuFuncGetName(name: Out<*const u8>, function: usize) |driver| {
        driver.functions.get(function)?;
        name.offer(std::ptr::null());
        Err(status::NOT_SUPPORTED)
    }

    fn cuFuncGetParamInfo(function: usize, index: usize, offset: Out<usize>, bytes: Out<usize>) |driver| {
        let kernel = driver.functions.get(function)?;
        let parameter = kernel.function().parameters.get(index).ok_or(INVALID_VALUE)?;
        offset.put(parameter.offset as usize)?;
        bytes.offer(parameter.bytes as usize);
        Ok(())
    }

    fn cuLaunchKernel(
        function: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32, stream: usize,
        parameters: Parameters, extra: Parameters,
    ) |driver| {
        let shape = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared);
        launch(driver, function, shape, stream, parameters, extra, Manner::default())
    }

    fn cuLaunchCooperativeKernel(
        function: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32, stream: usize,
        parameters: Parameters,
    ) |driver| {
        let shape = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared);
        let manner = Manner { cooperative: true, ..Manner::default() };
        launch(driver, function, shape, stream, parameters, Parameters::NONE, manner)
    }

    fn cuLaunchKernelEx(config: In<LaunchConfig>, function: usize, parameters: Parameters, extra: Parameters) |driver| {
        let config = config.get()?;
        let mut manner = Manner::default();
        for index in 0..config.count as usize {
            let attribute = config.attributes.at(index)?;
            match attribute.id {
                2 => manner.cooperative = attribute.value[0] != 0,
                4 => manner.cluster = Some([0, 1, 2].map(|axis| attribute.value[axis])),
                6 => manner.programmatic = attribute.value[0] != 0,
                _ => {}
            }
        }
        let shape = (config.grid, config.block, config.shared);
        launch(driver, function, shape, config.stream, parameters, extra, manner)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: usize, threads: i32, shared: usize) |driver| {
        blocks.put(active_blocks(driver, function, threads, shared)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<i32>, function: usize, threads: i32, shared: usize, _flags: u32,
    ) |driver| {
        blocks.put(active_blocks(driver, function, threads, shared)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: usize, shared_of: SharedOfBlock, shared: usize, limit: i32,
    ) |driver| {
        potential_block(driver, grid, block, function, shared_of, shared, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: usize, shared_of: SharedOfBlock, shared: usize, limit: i32, _flags: u32,
    ) |driver| {
        potential_block(driver, grid, block, function, shared_of, shared, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: usize, blocks: i32, _threads: i32) |driver| {
        let kernel = driver.functions.get(function)?;
        let (_, most) = shared_limits(driver);
        let each = (most as usize).checked_div(usize::try_from(blocks).map_err(|_| INVALID_VALUE)?).ok_or(INVALID_VALUE)?;
        bytes.put(each.saturating_sub(kernel.function().shared_bytes as usize))
    }
}

fn refuse_binary(driver: &Driver, why: &str) -> Result<()> {
    driver.faults.report(&format!("emulated: {why}"));
    Err(status::NO_BINARY_FOR_GPU)
}

fn load(driver: &Driver, module: Out<usize>, image: Image, log: impl FnOnce(&str)) -> Result<()> {
    match image.magic()? {
        [0x7F, b'E', b'L', b'F'] => refuse_binary(
            driver,
            "a cubin holds machine code, which is not interpreted: load PTX",
        ),
        [0x50, 0xED, 0x55, 0xBA] => {
            refuse_binary(driver, "fat binaries are not interpreted: load PTX")
        }
        _ => {
            let text = image.text().get().map_err(|_| status::INVALID_IMAGE)?;
            load_text(driver, module, text, log)
        }
    }
}

fn load_text(driver: &Driver, place: Out<usize>, text: &str, log: impl FnOnce(&str)) -> Result<()> {
    let context = current()?;
    let module = Module::load(&context, text).map_err(|(status, why)| {
        let why = format!("emulated: module refused: {why}");
        driver.faults.report(&why);
        log(&why);
        status
    })?;
    place.put(driver.modules.add(Arc::new(module)))
}

type Shape = ([u32; 3], [u32; 3], u32);

/// Checks a launch as the driver does, and takes its parameters over.
pub(super) fn prepare(
    driver: &Driver,
    handle: usize,
    (grid, block, shared): Shape,
    parameters: Parameters,
    extra: Parameters,
    manner: Manner,
) -> Result<LaunchWork> {
    let kernel = driver.functions.get(handle)?;
    let function = kernel.function();
    let within = |extents: [u32; 3], most: [u32; 3]| {
        extents
            .iter()
            .zip(most)
            .all(|(&extent, most)| (1..=most).contains(&extent))
    };
    if !within(grid, MAX_GRID) || !within(block, MAX_BLOCK) {
        return Err(INVALID_VALUE);
    }
    let threads = block.iter().product::<u32>();
    if threads > MAX_THREADS || function.max_threads.is_some_and(|most| threads > most) {
        return Err(INVALID_VALUE);
    }
    let cluster = cluster_of(driver, function.cluster, manner.cluster, grid)?;
    if manner.programmatic && driver.settings.architecture < (9, 0) {
        return Err(status::NOT_SUPPORTED);
    }
    let (default, _) = shared_limits(driver);
    let allowed = kernel.dynamic_shared.load(Ordering::Relaxed);
    if shared > allowed || (allowed <= default && shared + function.shared_bytes > default) {
        return Err(INVALID_VALUE);
    }
    let mut buffer = vec![0; function.parameter_bytes as usize];
    if !parameters.is_null() {
        for (index, parameter) in function.parameters.iter().enumerate() {
            let at = parameter.offset as usize;
            parameters.read(index, &mut buffer[at..at + parameter.bytes as usize])?;
        }
    } else if !extra.is_null() {
        // Pairs of a key and a pointer, up to a null: 1 the buffer, 2 a pointer to its size.
        let (mut pointer, mut bytes) = (None, 0);
        for pair in 0..2 {
            match extra.pointer(2 * pair)? as usize {
                1 => pointer = Some(Parameters::host(extra.pointer(2 * pair + 1)?)),
                2 => {
                    let mut size = [0; 8];
                    Parameters::host(extra.pointer(2 * pair + 1)?).read(&mut size);
                    bytes = usize::from_le_bytes(size);
                }
                _ => break,
            }
        }
        if bytes > buffer.len() {
            return Err(INVALID_VALUE);
        }
        pointer.ok_or(INVALID_VALUE)?.read(&mut buffer[..bytes]);
    } else if !buffer.is_empty() {
        return Err(INVALID_VALUE);
    }
    Ok(LaunchWork {
        kernel,
        handle,
        grid,
        block,
        dynamic_shared: shared,
        parameters: buffer,
        manner: Manner { cluster, ..manner },
    })
}

/// The cluster of a launch, as the kernel was compiled for it or the launch asks for it: both alike where both say it.
fn cluster_of(
    driver: &Driver,
    compiled: Option<[u32; 3]>,
    asked: Option<[u32; 3]>,
    grid: [u32; 3],
) -> Result<Option<[u32; 3]>> {
    let Some(cluster) = compiled.or(asked) else {
        return Ok(None);
    };
    if driver.settings.architecture < (9, 0) {
        return Err(status::NOT_SUPPORTED);
    }
    if asked.is_some_and(|asked| asked != cluster) || cluster.contains(&0) {
        return Err(INVALID_VALUE);
    }
    let fits = (0..3).all(|axis| grid[axis].is_multiple_of(cluster[axis]));
    let blocks = cluster
        .iter()
        .try_fold(1_u32, |size, extent| size.checked_mul(*extent));
    match blocks {
        Some(1..=MAX_CLUSTER) if fits => Ok(Some(cluster)),
        _ => Err(status::INVALID_CLUSTER_SIZE),
    }
}

fn launch(
    driver: &Driver,
    function: usize,
    shape: Shape,
    stream: usize,
    parameters: Parameters,
    extra: Parameters,
    manner: Manner,
) -> Result<()> {
    let stream = driver.stream(stream)?;
    stream.context()?;
    let work = prepare(driver, function, shape, parameters, extra, manner)?;
    stream.enqueue(Work::Launch(Arc::new(work)))
}

fn active_blocks(driver: &Driver, function: usize, threads: i32, shared: usize) -> Result<i32> {
    let kernel = driver.functions.get(function)?;
    let threads = usize::try_from(threads)
        .map_err(|_| INVALID_VALUE)?
        .next_multiple_of(32);
    let used = shared + kernel.function().shared_bytes as usize + 1024;
    let by_threads = 2048_usize.checked_div(threads).ok_or(INVALID_VALUE)?;
    let by_shared = (shared_limits(driver).1 as usize + 1024) / used;
    Ok(by_threads.min(by_shared).min(32) as i32)
}

fn potential_block(
    driver: &Driver,
    grid: Out<i32>,
    block: Out<i32>,
    function: usize,
    shared_of: SharedOfBlock,
    shared: usize,
    limit: i32,
) -> Result<()> {
    let kernel = driver.functions.get(function)?;
    let most = kernel.function().max_threads.unwrap_or(MAX_THREADS) as i32;
    let most = if limit > 0 { most.min(limit) } else { most };
    let mut best = (0, 0);
    for threads in (1..=most / 32).map(|warps| warps * 32).rev() {
        let bytes = shared_of_block(shared_of, threads).unwrap_or(shared);
        let blocks = active_blocks(driver, function, threads, bytes)?;
        if blocks * threads > best.0 * best.1 {
            best = (blocks, threads);
        }
    }
    grid.put(best.0 * driver.settings.threads as i32)?;
    block.put(best.1)
}
