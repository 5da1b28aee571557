//! The OpenCL backend on every OpenCL device of the machine. Without one every test shows as ignored, with the reason.
#![cfg(feature = "opencl")]
#![allow(unsafe_code)]

mod counting;
mod on_device;

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Failed;
use on_device::{Outcome, Test, launch, tests, words};
use ropeway_backends::opencl::OpenClDriver;
use ropeway_core::device::{Argument, Device, Driver, Function, OpenOptions, QueueKind};
use ropeway_core::info::Execution;
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Buffer, DType, ErrorKind};

const TESTS: &[(&str, Test)] = tests![
    info_is_plausible,
    copies_go_round,
    fills_touch_their_range_only,
    empty_buffers_work,
    launch_gets_its_arguments,
    events_order_queues,
    events_measure_device_time,
    waits_time_out,
    status_word_is_reported_once,
    threads_share_a_device,
    threads_share_a_queue,
    foreign_objects_are_refused,
    launches_beyond_the_limits_are_refused,
    out_of_memory_is_survived,
    a_failed_compilation_says_why,
    objects_may_be_dropped_under_way,
    uploads_do_not_wait,
    imports_keep_their_owners,
    failed_work_fails_what_waits_for_it,
    threads_compile_at_once,
    launches_allocate_nothing,
    ten_thousand_launches_leak_nothing,
    compiled_programs_are_kept,
];

/// Tests that an emulator cannot run: a kernel that lasts on hardware takes it hours, and oclgrind aborts when two threads
/// launch at once.
const BEYOND_EMULATORS: &[&str] = &[
    "events_order_queues",
    "events_measure_device_time",
    "waits_time_out",
    "objects_may_be_dropped_under_way",
    "uploads_do_not_wait",
    "threads_share_a_device",
    "threads_share_a_queue",
    "threads_compile_at_once",
    "imports_keep_their_owners",
    "failed_work_fails_what_waits_for_it",
];

fn main() {
    if let (Some(directory), Ok(_)) = (std::env::var_os(CACHE_CHILD), OpenClDriver.probe()) {
        return cache_child(directory.as_ref());
    }
    on_device::run(&OpenClDriver, TESTS, BEYOND_EMULATORS);
}

/// Kernels for the tests; `SPIN` makes `slow` last.
static SOURCE: Source = Source {
    language: Language::OpenClC,
    code: Code::Text(&[
        (
            "scalars.cl",
            "__kernel void scalars(__global float* x, ulong x_offset, __global uchar* absent, ulong absent_offset,\n\
                 uint a, int b, ulong c, long d, float e) {\n\
                 x[x_offset + get_global_id(0)] = absent == 0 && absent_offset == 0\n\
                     ? (float)a + (float)b + (float)c + (float)d + e + SCALE * get_group_id(0) : -1.0f;\n\
             }\n",
        ),
        (
            "slow.cl",
            "__kernel void slow(__global uint* x, ulong x_offset, uint rounds) {\n\
                 uint v = x[x_offset];\n\
                 for (uint i = 0; i < rounds; i++) v = v * 1664525u + 1013904223u;\n\
                 x[x_offset] = v | 1u;\n\
             }\n\
             __kernel void copy_word(__global uint* x, ulong x_offset, __global uint* y, ulong y_offset) {\n\
                 y[y_offset] = x[x_offset];\n\
             }\n\
             __kernel void add_one(__global uint* x, ulong x_offset) {\n\
                 x[x_offset + get_global_id(0)] += 1;\n\
             }\n\
             __kernel void report(__global uint* status, ulong status_offset, uint code) {\n\
                 if (code != 0) status[status_offset] = code;\n\
             }\n",
        ),
    ]),
    requires: &[],
};

fn function(device: &Arc<dyn Device>, entry: &str) -> Result<Arc<dyn Function>, Failed> {
    let mut config = Config::default();
    config.set("SCALE", 100);
    Ok(device.compile(&SOURCE, &config)?.function(entry)?)
}

fn operand(buffer: &Buffer, offset: u64, dtype: DType) -> Argument<'_> {
    let size = dtype.size().expect("tests use plain dtypes");
    Argument::Buffer {
        buffer,
        offset,
        dtype,
        bytes: buffer.size() - offset * size,
        write: true,
    }
}

/// Rounds of `slow` that last 50 ms or more on a core.
const LONG: u32 = 200_000_000;

fn info_is_plausible(device: &Arc<dyn Device>) -> Outcome {
    let info = device.info();
    assert!(
        !info.name.is_empty()
            && !info.driver_version.is_empty()
            && !info.compiler_version.is_empty()
    );
    assert!(info.compute_units > 0 && info.vector_width > 0 && info.memory > 0);
    assert!(
        info.features.is_sorted() && info.features.len() > 1,
        "{:?}",
        info.features
    );
    assert!(info.limits.max_buffer > 0 && info.limits.max_group_size > 0);
    assert!(info.limits.base_alignment.is_power_of_two());
    assert!(info.dtype(DType::F16).storage && info.dtype(DType::BF16).storage);
    Ok(())
}

fn copies_go_round(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    // Staged, above one staging block, and odd.
    for len in [1usize, 3, 4096, (3 << 20) + 17] {
        let (a, b) = (device.alloc(len as u64)?, device.alloc(len as u64 + 5)?);
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + i / 251) as u8).collect();
        queue.upload(&a.all(), &data)?;
        queue.fill(&b.all(), 0xee)?;
        queue.copy(&a.all(), &b.slice(5, len as u64)?)?;
        let download = queue.download(&b.all(), device.alloc_pinned(len as u64 + 8)?)?;
        let mut read = vec![0; len];
        queue.read_blocking(&b.slice(5, len as u64)?, &mut read)?;
        assert!(read == data, "read_blocking of {len} bytes");
        let pinned = download.finish()?;
        assert_eq!(pinned.bytes()[..5], [0xee; 5]);
        assert!(
            pinned.bytes()[5..len + 5] == data,
            "download of {len} bytes"
        );
        assert_eq!(pinned.bytes()[len + 5..], [0; 3], "beyond the slice");
    }
    Ok(())
}

fn fills_touch_their_range_only(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let buffer = device.alloc(1000)?;
    for (begin, len) in [
        (0, 1000),
        (1, 998),
        (127, 2),
        (128, 128),
        (100, 28),
        (5, 0),
        (130, 600),
    ] {
        queue.fill(&buffer.all(), 7)?;
        queue.fill(&buffer.slice(begin, len)?, 9)?;
        let mut bytes = [0; 1000];
        queue.read_blocking(&buffer.all(), &mut bytes)?;
        for (index, byte) in bytes.into_iter().enumerate() {
            let inside = (begin..begin + len).contains(&(index as u64));
            assert_eq!(
                byte,
                if inside { 9 } else { 7 },
                "byte {index} of fill {begin}+{len}"
            );
        }
    }
    Ok(())
}

fn empty_buffers_work(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Transfer)?;
    let empty = device.alloc(0)?;
    assert_eq!(empty.size(), 0);
    queue.upload(&empty.all(), &[])?;
    queue.fill(&empty.all(), 1)?;
    queue.copy(&empty.all(), &device.alloc(0)?.all())?;
    queue.read_blocking(&empty.all(), &mut [])?;
    assert!(
        queue
            .download(&empty.all(), device.alloc_pinned(0)?)?
            .finish()?
            .bytes()
            .is_empty()
    );
    Ok(queue.synchronize(None)?)
}

fn launch_gets_its_arguments(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let scalars = function(device, "scalars")?;
    let x = device.alloc(4 * 20)?;
    queue.fill(&x.all(), 0)?;
    let arguments = [
        operand(&x, 3, DType::F32),
        Argument::Absent,
        Argument::U32(1 << 20),
        Argument::I32(-(1 << 19)),
        Argument::U64(1 << 33),
        Argument::I64(-(1 << 33)),
        Argument::F32(0.5),
    ];
    launch(&*queue, &scalars, 4, 4, &arguments)?;
    let result: Vec<f32> = words(&*queue, &x)?
        .into_iter()
        .map(f32::from_bits)
        .collect();
    // The sum runs left to right: the large terms cancel before the half is added.
    for (index, &found) in result.iter().enumerate() {
        let expected = match index {
            3..19 => (1 << 19) as f32 + 0.5 + 100.0 * ((index - 3) / 4) as f32,
            _ => 0.0,
        };
        assert!(
            (found - expected).abs() <= 1024.0,
            "element {index}: {found}, not {expected}"
        );
    }
    Ok(())
}

fn events_order_queues(device: &Arc<dyn Device>) -> Outcome {
    let (slow, copy) = (function(device, "slow")?, function(device, "copy_word")?);
    let (x, y) = (device.alloc(4)?, device.alloc(4)?);
    let a = device.create_queue(QueueKind::Compute)?;
    let b = device.create_queue(QueueKind::Compute)?;
    a.fill(&x.all(), 0)?;
    a.fill(&y.all(), 0)?;
    a.synchronize(None)?;
    launch(
        &*a,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(LONG)],
    )?;
    b.wait(&a.record()?)?;
    launch(
        &*b,
        &copy,
        1,
        1,
        &[operand(&x, 0, DType::I32), operand(&y, 0, DType::I32)],
    )?;
    let y = words(&*b, &y)?[0];
    assert_eq!(y, words(&*a, &x)?[0]);
    assert_ne!(y, 0);
    Ok(())
}

fn events_measure_device_time(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let slow = function(device, "slow")?;
    let x = device.alloc(4)?;
    queue.fill(&x.all(), 0)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(1)],
    )?;
    let begin = queue.record()?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(LONG)],
    )?;
    let end = queue.record()?;
    if !end.is_done()? {
        assert_eq!(
            end.elapsed_since(&*begin).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }
    end.wait(None)?;
    let elapsed = end.elapsed_since(&*begin)?;
    assert!(
        elapsed > Duration::from_millis(5),
        "{elapsed:?} for a slow kernel"
    );
    assert!(
        elapsed < Duration::from_secs(60),
        "{elapsed:?} for a slow kernel"
    );
    Ok(())
}

fn waits_time_out(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let slow = function(device, "slow")?;
    let x = device.alloc(4)?;
    queue.fill(&x.all(), 0)?;
    // Compiled at the first launch by some drivers.
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(1)],
    )?;
    queue.synchronize(None)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(LONG)],
    )?;
    let event = queue.record()?;
    let limit = Some(Duration::from_millis(2));
    assert_eq!(event.wait(limit).unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(
        queue.synchronize(limit).unwrap_err().kind(),
        ErrorKind::Timeout
    );
    queue.synchronize(Some(Duration::from_secs(60)))?;
    assert!(event.is_done()?);
    Ok(())
}

fn status_word_is_reported_once(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let report = function(device, "report")?;
    for code in [0, 17, 0] {
        launch(
            &*queue,
            &report,
            1,
            1,
            &[Argument::Status, Argument::U32(code)],
        )?;
        match queue.synchronize(None) {
            Ok(()) => assert_eq!(code, 0),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::DataOutOfRange);
                assert!(code != 0 && error.to_string().contains("17"), "{error}");
            }
        }
        queue.synchronize(None)?;
    }
    Ok(())
}

fn threads_share_a_device(device: &Arc<dyn Device>) -> Outcome {
    // Each thread has a queue and a buffer of its own, and all use one function.
    let add = function(device, "add_one")?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                let add = &add;
                scope.spawn(move || -> Result<(), Failed> {
                    let queue = device.create_queue(QueueKind::Compute)?;
                    let x = device.alloc(4 * 64)?;
                    let start: Vec<u8> = (0..64u32)
                        .flat_map(|i| (i * thread).to_ne_bytes())
                        .collect();
                    queue.upload(&x.all(), &start)?;
                    for _ in 0..300 {
                        launch(&*queue, add, 4, 16, &[operand(&x, 0, DType::I32)])?;
                    }
                    for (index, word) in words(&*queue, &x)?.into_iter().enumerate() {
                        assert_eq!(word, index as u32 * thread + 300);
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic")?;
        }
        Ok(())
    })
}

fn threads_share_a_queue(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    queue.fill(&x.all(), 0)?;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    launch(&*queue, &add, 1, 64, &[operand(&x, 0, DType::I32)]).expect("a launch");
                }
                queue.synchronize(None).expect("no error");
            });
        }
    });
    assert_eq!(words(&*queue, &x)?, [1000; 64]);
    Ok(())
}

fn foreign_objects_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let other = OpenClDriver.open(device.info().ordinal, &OpenOptions::default())?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let foreign = other.alloc(16)?;
    let own = device.alloc(16)?;
    let event = other.create_queue(QueueKind::Compute)?.record()?;
    let add = function(device, "add_one")?;
    let foreign_add = function(&other, "add_one")?;
    for (what, result) in [
        ("fill", queue.fill(&foreign.all(), 0)),
        ("upload", queue.upload(&foreign.all(), &[0; 16])),
        ("read", queue.read_blocking(&foreign.all(), &mut [0; 16])),
        ("copy", queue.copy(&own.all(), &foreign.all())),
        ("wait", queue.wait(&event)),
        (
            "operand",
            launch(&*queue, &add, 1, 1, &[operand(&foreign, 0, DType::I32)]),
        ),
        (
            "function",
            launch(&*queue, &foreign_add, 1, 1, &[operand(&own, 0, DType::I32)]),
        ),
        ("length", queue.upload(&own.all(), &[0; 15])),
        ("overlap", queue.copy(&own.slice(0, 8)?, &own.slice(7, 8)?)),
        (
            "elapsed",
            queue.record()?.elapsed_since(&*event).map(|_| ()),
        ),
    ] {
        let error = result.err().ok_or(format!("{what}: no error"))?;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{what}: {error}");
    }
    Ok(queue.synchronize(None)?)
}

fn launches_beyond_the_limits_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let add = function(device, "add_one")?;
    let x = device.alloc(4)?;
    let operand = operand(&x, 0, DType::I32);
    let too_wide = device.info().limits.max_group_size + 1;
    for (what, result) in [
        ("group", launch(&*queue, &add, 1, too_wide, &[operand])),
        ("empty group", launch(&*queue, &add, 1, 0, &[operand])),
        ("empty grid", launch(&*queue, &add, 0, 1, &[operand])),
        ("grid", launch(&*queue, &add, 1 << 40, 1, &[operand])),
        (
            "an operand beyond its buffer",
            launch(
                &*queue,
                &add,
                1,
                1,
                &[Argument::Buffer {
                    buffer: &x,
                    offset: 1,
                    dtype: DType::I32,
                    bytes: 4,
                    write: true,
                }],
            ),
        ),
        ("too few arguments", launch(&*queue, &add, 1, 1, &[])),
        (
            "too many arguments",
            launch(&*queue, &add, 1, 1, &[operand, operand]),
        ),
    ] {
        let error = result.err().ok_or(format!("{what}: no error"))?;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{what}: {error}");
    }
    // And a sound one still runs, with all arguments set anew.
    queue.fill(&x.all(), 0)?;
    launch(&*queue, &add, 1, 1, &[operand])?;
    assert_eq!(words(&*queue, &x)?, [1]);
    Ok(())
}

fn out_of_memory_is_survived(device: &Arc<dyn Device>) -> Outcome {
    let limits = &device.info().limits;
    for bytes in [limits.max_buffer + 1, u64::MAX] {
        let error = device
            .alloc(bytes)
            .err()
            .ok_or("more than the largest buffer")?;
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    }
    // Buffers that are never written take no memory yet, but are counted.
    let mut held = Vec::new();
    let error = loop {
        match device.alloc(limits.max_buffer) {
            Ok(buffer) => held.push(buffer),
            Err(error) => break error,
        }
        assert!(held.len() as u64 <= device.info().memory / limits.max_buffer);
    };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert_eq!(device.memory()?.used, held.len() as u64 * limits.max_buffer);
    drop(held);
    assert_eq!(device.memory()?.used, 0);
    copies_go_round(device)
}

fn a_failed_compilation_says_why(device: &Arc<dyn Device>) -> Outcome {
    static BROKEN: Source = Source {
        language: Language::OpenClC,
        code: Code::Text(&[
            (
                "sound.cl",
                "__kernel void sound(__global float* x) { x[0] = 1; }",
            ),
            (
                "broken.cl",
                "\n\n__kernel void broken(__global float* x) { x[0] = no_such_variable; }",
            ),
        ]),
        requires: &[],
    };
    let mut config = Config::default();
    config.set("TILE_M", 64);
    let error = device.compile(&BROKEN, &config).err().ok_or("compiled")?;
    assert_eq!(error.kind(), ErrorKind::CompileFailed);
    for part in [
        "no_such_variable",
        // oclgrind counts lines on its own.
        if device.info().execution == Execution::Emulated {
            "error"
        } else {
            "broken.cl:3"
        },
        "TILE_M=64",
        "clBuildProgram",
    ] {
        assert!(error.to_string().contains(part), "no {part} in: {error}");
    }
    let module = device.compile(&SOURCE, config.set("SCALE", 1))?;
    let missing = module.function("no_such_entry").err().ok_or("found")?;
    assert_eq!(missing.kind(), ErrorKind::InvalidArgument, "{missing}");
    static FOREIGN: Source = Source {
        language: Language::CudaC,
        code: Code::Text(&[]),
        requires: &[],
    };
    let foreign = device.compile(&FOREIGN, &config).err().ok_or("compiled")?;
    assert_eq!(foreign.kind(), ErrorKind::Unsupported);
    Ok(())
}

fn objects_may_be_dropped_under_way(device: &Arc<dyn Device>) -> Outcome {
    let y = device.alloc(4)?;
    let event = {
        let (slow, copy) = (function(device, "slow")?, function(device, "copy_word")?);
        let queue = device.create_queue(QueueKind::Compute)?;
        let x = device.alloc(4)?;
        queue.fill(&x.all(), 0)?;
        launch(
            &*queue,
            &slow,
            1,
            1,
            &[operand(&x, 0, DType::I32), Argument::U32(LONG)],
        )?;
        // Staged, and not yet read when the queue goes.
        let (a, b) = (device.alloc(1000)?, device.alloc(1000)?);
        queue.upload(&a.all(), &[3; 1000])?;
        queue.copy(&a.all(), &b.all())?;
        launch(
            &*queue,
            &copy,
            1,
            1,
            &[operand(&x, 0, DType::I32), operand(&y, 0, DType::I32)],
        )?;
        queue.record()?
        // Queue, functions and buffers go here, their work still waiting.
    };
    event.wait(Some(Duration::from_secs(60)))?;
    let queue = device.create_queue(QueueKind::Compute)?;
    assert_eq!(words(&*queue, &y)?[0] & 1, 1);
    Ok(())
}

fn uploads_do_not_wait(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let slow = function(device, "slow")?;
    let (x, y) = (device.alloc(4)?, device.alloc(5 << 20)?);
    queue.fill(&x.all(), 0)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(1)],
    )?;
    queue.synchronize(None)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&x, 0, DType::I32), Argument::U32(4 * LONG)],
    )?;
    let event = queue.record()?;
    let mut data = vec![5u8; 5 << 20];
    queue.upload(&y.all(), &data)?;
    queue.upload(&y.slice(0, 4)?, &[6; 4])?;
    assert!(
        !event.is_done()?,
        "the upload waited for the kernel before it"
    );
    // Taken over: what becomes of the source does not matter.
    data.fill(9);
    let mut read = vec![0; 5 << 20];
    queue.read_blocking(&y.all(), &mut read)?;
    assert!(read[..4] == [6; 4] && read[4..].iter().all(|&byte| byte == 5));
    Ok(())
}

fn imports_keep_their_owners(device: &Arc<dyn Device>) -> Outcome {
    use cl3::{command_queue as cl, event, memory};
    let context = ropeway_backends::opencl::context(&**device).ok_or("an OpenCL device")?;
    // SAFETY: a valid context, no host pointer.
    let mem = unsafe {
        memory::create_buffer(context, memory::CL_MEM_READ_WRITE, 64, std::ptr::null_mut())
    }
    .map_err(|code| format!("clCreateBuffer: {code}"))?;
    struct Foreign(usize);
    impl Drop for Foreign {
        fn drop(&mut self) {
            // SAFETY: the one count that `create_buffer` gave.
            unsafe { memory::release_mem_object(self.0 as *mut _) }.expect("a valid buffer");
        }
    }
    let owner = Arc::new(Foreign(mem as usize));
    let watch = Arc::downgrade(&owner);
    // SAFETY: a valid buffer of 64 bytes, which the owner keeps.
    let too_long = unsafe { device.import_memory(mem, 65, Some(owner.clone())) };
    assert_eq!(
        too_long.err().ok_or("longer than the cl_mem")?.kind(),
        ErrorKind::InvalidArgument
    );
    // SAFETY: as above.
    let buffer = unsafe { device.import_memory(mem, 64, Some(owner)) }?;

    let info = cl3::context::get_context_info(context, cl3::context::CL_CONTEXT_DEVICES)
        .map_err(|code| format!("clGetContextInfo: {code}"))?;
    let id = Vec::<isize>::from(info)[0];
    let profiling = cl::CL_QUEUE_PROFILING_ENABLE;
    // SAFETY: the context's own device.
    #[allow(deprecated)]
    let raw = unsafe { cl::create_command_queue(context, id as *mut _, profiling) }
        .map_err(|code| format!("clCreateCommandQueue: {code}"))?;
    // SAFETY: a valid queue, which is retained.
    let queue = unsafe { device.import_queue(raw, None) }?;
    let (slow, add) = (function(device, "slow")?, function(device, "add_one")?);
    queue.fill(&buffer.all(), 0)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&buffer, 0, DType::I32), Argument::U32(1)],
    )?;
    queue.synchronize(None)?;
    launch(
        &*queue,
        &slow,
        1,
        1,
        &[operand(&buffer, 0, DType::I32), Argument::U32(LONG)],
    )?;
    launch(&*queue, &add, 1, 1, &[operand(&buffer, 5, DType::I32)])?;
    drop(buffer);
    assert!(
        watch.upgrade().is_some(),
        "work with the memory is still queued"
    );
    // The owner sees what Ropeway enqueued in its queue.
    let mut word = [0u32];
    // SAFETY: 4 bytes from byte 20 on, blocking.
    let read = unsafe {
        cl::enqueue_read_buffer(
            raw,
            mem,
            cl3::types::CL_TRUE,
            20,
            4,
            word.as_mut_ptr().cast(),
            0,
            std::ptr::null(),
        )
    };
    let read = read.map_err(|code| format!("clEnqueueReadBuffer: {code}"))?;
    assert_eq!(word, [1]);
    queue.synchronize(None)?;
    assert!(
        watch.upgrade().is_none(),
        "all work is done and the buffer is gone"
    );
    // SAFETY: the counts that this test took.
    unsafe {
        event::release_event(read).map_err(|code| format!("clReleaseEvent: {code}"))?;
        cl::release_command_queue(raw).map_err(|code| format!("clReleaseCommandQueue: {code}"))?;
    }
    Ok(())
}

fn failed_work_fails_what_waits_for_it(device: &Arc<dyn Device>) -> Outcome {
    use cl3::{command_queue as cl, event};
    let context = ropeway_backends::opencl::context(&**device).ok_or("an OpenCL device")?;
    let info = cl3::context::get_context_info(context, cl3::context::CL_CONTEXT_DEVICES)
        .map_err(|code| format!("clGetContextInfo: {code}"))?;
    let id = Vec::<isize>::from(info)[0];
    // SAFETY: the context's own device.
    #[allow(deprecated)]
    let raw = unsafe { cl::create_command_queue(context, id as *mut _, 0) }
        .map_err(|code| format!("clCreateCommandQueue: {code}"))?;
    // SAFETY: a valid queue, which is retained.
    let queue = unsafe { device.import_queue(raw, None) }?;
    let (a, b) = (queue.record()?, queue.record()?);
    b.wait(None)?;
    let untimed = b
        .elapsed_since(&*a)
        .err()
        .ok_or("a time without profiling")?;
    assert_eq!(untimed.kind(), ErrorKind::Unsupported, "{untimed}");

    let gate =
        event::create_user_event(context).map_err(|code| format!("clCreateUserEvent: {code}"))?;
    // SAFETY: a valid queue and a list of one valid event.
    let barrier = unsafe { cl::enqueue_marker_with_wait_list(raw, 1, &gate) }
        .map_err(|code| format!("clEnqueueMarkerWithWaitList: {code}"))?;
    let event = queue.record()?;
    assert!(!event.is_done()?);
    event::set_user_event_status(gate, -5)
        .map_err(|code| format!("clSetUserEventStatus: {code}"))?;
    let failed = event.wait(Some(Duration::from_secs(10)));
    assert_eq!(
        failed.err().ok_or("it did not fail")?.kind(),
        ErrorKind::LaunchFailed
    );
    assert_eq!(
        event.is_done().err().ok_or("it did not fail")?.kind(),
        ErrorKind::LaunchFailed
    );
    // The device is none the worse.
    copies_go_round(device)?;
    // SAFETY: the counts that this test took.
    unsafe {
        event::release_event(gate).map_err(|code| format!("clReleaseEvent: {code}"))?;
        event::release_event(barrier).map_err(|code| format!("clReleaseEvent: {code}"))?;
        cl::release_command_queue(raw).map_err(|code| format!("clReleaseCommandQueue: {code}"))?;
    }
    Ok(())
}

fn threads_compile_at_once(device: &Arc<dyn Device>) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..5i64)
            .map(|scale| {
                scope.spawn(move || -> Result<(), Failed> {
                    let mut config = Config::default();
                    let module = device.compile(&SOURCE, config.set("SCALE", scale))?;
                    let scalars = module.function("scalars")?;
                    let queue = device.create_queue(QueueKind::Compute)?;
                    let x = device.alloc(8)?;
                    let zeros = [
                        Argument::U32(0),
                        Argument::I32(0),
                        Argument::U64(0),
                        Argument::I64(0),
                        Argument::F32(0.0),
                    ];
                    let mut arguments = vec![operand(&x, 0, DType::F32), Argument::Absent];
                    arguments.extend(zeros);
                    launch(&*queue, &scalars, 2, 1, &arguments)?;
                    assert_eq!(words(&*queue, &x)?[1], (scale as f32).to_bits());
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no panic")?;
        }
        Ok(())
    })
}

fn launches_allocate_nothing(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let (add, report) = (function(device, "add_one")?, function(device, "report")?);
    let x = device.alloc(4 * 64)?;
    let enqueue = || {
        for _ in 0..50 {
            let arguments = [operand(&x, 0, DType::I32)];
            launch(&*queue, &add, 1, 64, &arguments).expect("a launch");
            let arguments = [Argument::Status, Argument::U32(0)];
            launch(&*queue, &report, 1, 1, &arguments).expect("a launch");
        }
    };
    enqueue();
    let allocations = counting::allocations(enqueue);
    queue.synchronize(None)?;
    assert_eq!(allocations, 0, "100 launches");
    Ok(())
}

fn ten_thousand_launches_leak_nothing(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    on_device::leaks_nothing(device, 2 << 20, |queue, x| {
        launch(queue, &add, 1, 64, &[operand(x, 0, DType::I32)])
    })
}

/// Set for the process that [`compiled_programs_are_kept`] starts, to the cache's directory.
const CACHE_CHILD: &str = "ROPEWAY_TEST_CACHE";

/// PoCL is told to keep nothing itself, so that it uses our cache, too. It reads that at its start: hence a process.
fn compiled_programs_are_kept(_: &Arc<dyn Device>) -> Outcome {
    let directory = tempfile::tempdir()?;
    let output = std::process::Command::new(std::env::current_exe()?)
        .env(CACHE_CHILD, directory.path().join("programs"))
        .env("POCL_KERNEL_CACHE", "0")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(())
}

fn cache_child(directory: &std::path::Path) {
    let files = |suffix: &str| {
        let entries = std::fs::read_dir(directory).expect("the cache's directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths
            .filter(|path| path.extension().is_some_and(|e| e == suffix))
            .collect::<Vec<_>>()
    };
    let run = || {
        let options = OpenOptions {
            cache_dir: Some(directory.to_owned()),
            ..OpenOptions::default()
        };
        let device = OpenClDriver.open(0, &options).expect("a device");
        launch_gets_its_arguments(&device).expect("sound results");
    };
    run();
    let kept = files("bin");
    assert_eq!(kept.len(), 1, "one program was compiled: {kept:?}");
    let written = |path: &std::path::Path| {
        std::fs::metadata(path)
            .and_then(|m| m.modified())
            .expect("a file")
    };
    let time = written(&kept[0]);
    run();
    assert_eq!(time, written(&kept[0]), "the second run compiles nothing");
    let mut bytes = std::fs::read(&kept[0]).expect("the file");
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&kept[0], &bytes).expect("the file");
    run();
    assert_eq!((files("bin").len(), files("bad").len()), (1, 1));
    run();
}
