//! The Ascend backend on every Ascend device of the machine, which so far has been an emulated CANN each time. Without one every test shows as
//! ignored, with the reason. What every backend must do is tested by the conformance suite (`ropeway check --device ascend device`); here is
//! what is Ascend's own, and what happens when libraries, functions or calls fail.
#![cfg(feature = "ascend")]
#![allow(unsafe_code)]

#[path = "ascend/emulated.rs"]
mod emulated;
#[path = "ascend/failures.rs"]
mod failures;
mod on_device;

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use on_device::{Outcome, Test, launch, tests, words};
use ropeway_backends::ascend::AscendDriver;
use ropeway_core::device::{
    Argument, Device, Driver, Function, LaunchCall, OpenOptions, QueueKind,
};
use ropeway_core::info::{DeviceKind, Execution};
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Buffer, DType, ErrorKind, Result};

use emulated::Emulated;

const TESTS: &[(&str, Test)] = tests![
    info_is_plausible,
    launches_beyond_the_limits_are_refused,
    arguments_arrive_in_their_sizes,
    arguments_of_another_size_are_refused,
    a_source_that_does_not_compile_says_why,
    compiled_kernels_are_kept,
    status_word_is_reported_once,
    objects_may_be_dropped_under_way,
    uploads_beyond_the_staging_wait,
    foreign_memory_and_streams_are_used,
    threads_compile_at_once,
    launches_leak_nothing,
    memory_runs_out_and_comes_back,
    nothing_is_left_of_a_closed_device,
    probing_initialises_for_a_moment,
    kernels_compiled_beforehand_need_no_compiler,
    without_a_compiler_kernels_are_unsupported,
    each_call_fails_in_turn,
    a_lost_device_fails_every_call_with_its_cause,
    a_failed_kernel_shows_when_it_is_waited_for,
    missing_libraries_and_functions_are_named,
];

use failures::{
    a_failed_kernel_shows_when_it_is_waited_for, a_lost_device_fails_every_call_with_its_cause,
    each_call_fails_in_turn, kernels_compiled_beforehand_need_no_compiler,
    missing_libraries_and_functions_are_named, without_a_compiler_kernels_are_unsupported,
};

fn main() {
    if let Some(what) = std::env::var_os(failures::CHILD) {
        return failures::child(&what.to_string_lossy());
    }
    on_device::run(&AscendDriver, TESTS, &[]);
}

static SOURCE: Source = Source {
    language: Language::AscendC,
    code: Code::Text(&[("kernels.asc", include_str!("ascend/kernels.asc"))]),
    requires: &[],
};

fn function(device: &Arc<dyn Device>, entry: &str) -> Result<Arc<dyn Function>> {
    device.compile(&SOURCE, &Config::default())?.function(entry)
}

fn operand(buffer: &Buffer) -> Argument<'_> {
    Argument::Buffer {
        buffer,
        offset: 0,
        dtype: DType::I32,
        bytes: buffer.size(),
        write: true,
    }
}

fn add_arguments(buffer: &Buffer) -> [Argument<'_>; 2] {
    [operand(buffer), Argument::U32(0)]
}

fn info_is_plausible(device: &Arc<dyn Device>) -> Outcome {
    let info = device.info();
    assert_eq!(
        (info.kind, info.architecture.as_str()),
        (DeviceKind::Npu, "dav-2201")
    );
    let is_emulated = Emulated::found().is_some();
    assert_eq!(info.execution == Execution::Emulated, is_emulated);
    assert_eq!(info.name.contains("never run on Ascend"), is_emulated);
    assert!(
        info.compute_units >= 20 && info.has("dav-2201"),
        "{:?}",
        info.features
    );
    assert_eq!(info.limits.local_memory, 192 << 10);
    // Which functions it works by, for reports.
    let paths = ["HostArgs FromData capture", "KernelArgs FromFile capture"];
    assert!(
        paths.iter().any(|path| info.driver_version.contains(path)),
        "{}",
        info.driver_version
    );
    let memory = device.memory()?;
    assert!(memory.free.is_some_and(|free| free <= memory.total) && memory.used == 0);
    assert_eq!(memory.total, info.memory);
    Ok(())
}

fn launches_beyond_the_limits_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    let arguments = add_arguments(&x);
    for (grid, group, local_memory) in [
        ([0, 1, 1], [1, 1, 1], 0),
        ([65_536, 1, 1], [1, 1, 1], 0),
        ([256, 256, 1], [1, 1, 1], 0),
        ([u64::MAX, u64::MAX, 1], [1, 1, 1], 0),
        ([1, 1, 1], [2, 1, 1], 0),
        ([1, 1, 1], [1, 0, 1], 0),
        ([1, 1, 1], [1, 1, 1], 32),
    ] {
        let call = LaunchCall {
            function: &add,
            grid,
            group,
            local_memory,
            arguments: &arguments,
        };
        // SAFETY: refused, never enqueued.
        let refused = unsafe { queue.launch(&call) }.expect_err("no such launch");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    Ok(queue.synchronize(None)?)
}

fn arguments_arrive_in_their_sizes(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4)?;
    let mixed = function(device, "mixed")?;
    queue.fill(&x.all(), 0)?;
    let arguments = [
        operand(&x),
        Argument::U32(1),
        Argument::U64(20),
        Argument::U32(300),
        Argument::I32(4000),
        Argument::I64(50_000),
    ];
    launch(&*queue, &mixed, 1, 1, &arguments)?;
    launch(&*queue, &mixed, 3, 1, &arguments)?;
    assert_eq!(words(&*queue, &x)?, [2 * 54_321]);
    Ok(())
}

fn arguments_of_another_size_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let Some(emulated) = Emulated::found() else {
        println!(
            "skipped: CANN does not say how many arguments a kernel has; only the emulated one looks"
        );
        return Ok(());
    };
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    for arguments in [
        &[operand(&x)][..],
        &[operand(&x), Argument::U32(0), Argument::U64(0)],
    ] {
        let refused = launch(&*queue, &add, 1, 1, arguments).expect_err("other arguments");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.context().contains("add_one"), "{refused}");
    }
    assert_eq!(emulated.breaches().lines().count(), 2);
    launch(&*queue, &add, 1, 1, &add_arguments(&x))?;
    Ok(queue.synchronize(None)?)
}

static BROKEN: Source = Source {
    language: Language::AscendC,
    code: Code::Text(&[
        ("first.asc", "#include \"kernel_operator.h\"\n"),
        (
            "second.asc",
            "\nextern \"C\" __global__ __aicore__ void broken(GM_ADDR x) { does_not_exist(x); }\n",
        ),
    ]),
    requires: &[],
};

fn a_source_that_does_not_compile_says_why(device: &Arc<dyn Device>) -> Outcome {
    let mut config = Config::default();
    config.set("TILE", 16);
    let error = device
        .compile(&BROKEN, &config)
        .err()
        .ok_or("it compiled")?;
    assert_eq!(error.kind(), ErrorKind::CompileFailed, "{error}");
    for part in [
        "second.asc:2",
        "does_not_exist",
        "-DTILE=16",
        "--npu-arch=dav-2201",
    ] {
        assert!(error.context().contains(part), "{part} in {error}");
    }
    let missing = function(device, "no_such_kernel")
        .err()
        .ok_or("there is one")?;
    assert_eq!(missing.kind(), ErrorKind::InvalidArgument, "{missing}");
    Ok(())
}

fn compiled_kernels_are_kept(device: &Arc<dyn Device>) -> Outcome {
    let Some(emulated) = Emulated::found() else {
        println!("skipped: only the emulated run-time compiler counts its calls");
        return Ok(());
    };
    let cache = tempfile::tempdir()?;
    let options = OpenOptions {
        cache_dir: Some(cache.path().to_owned()),
        ..OpenOptions::default()
    };
    let ordinal = device.info().ordinal;
    let run = || -> Result<u64> {
        let before = emulated.calls("aclrtcCompileProg");
        let device = AscendDriver.open(ordinal, &options)?;
        let queue = device.create_queue(QueueKind::Compute)?;
        let x = device.alloc(256)?;
        queue.fill(&x.all(), 0)?;
        launch(
            &*queue,
            &function(&device, "add_one")?,
            1,
            1,
            &add_arguments(&x),
        )?;
        assert_eq!(words(&*queue, &x)?, [1; 64]);
        Ok(emulated.calls("aclrtcCompileProg") - before)
    };
    assert_eq!((run()?, run()?), (1, 0));
    // A binary that the runtime refuses is set aside, and compiled anew.
    let binaries: Vec<_> = std::fs::read_dir(cache.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    assert_eq!(binaries.len(), 1);
    let mut bytes = std::fs::read(&binaries[0])?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&binaries[0], bytes)?;
    assert_eq!((run()?, run()?), (1, 0));
    Ok(())
}

fn status_word_is_reported_once(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let report = function(device, "report")?;
    for code in [7, 9] {
        launch(
            &*queue,
            &report,
            1,
            1,
            &[Argument::Status, Argument::U32(code)],
        )?;
        let error = queue.synchronize(None).expect_err("a code");
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::DataOutOfRange, Some(i64::from(code)))
        );
        queue.synchronize(None)?;
    }
    Ok(())
}

/// Rounds of `add_one` that take a while, also for a fast core.
const LONG: u32 = 100_000_000;

fn objects_may_be_dropped_under_way(device: &Arc<dyn Device>) -> Outcome {
    let ordinal = device.info().ordinal;
    let y = {
        let device = AscendDriver.open(ordinal, &OpenOptions::default())?;
        let queue = device.create_queue(QueueKind::Compute)?;
        let (x, y) = (device.alloc(256)?, device.alloc(256)?);
        queue.upload(&x.all(), &[0; 256])?;
        launch(
            &*queue,
            &function(&device, "add_one")?,
            1,
            1,
            &[operand(&x), Argument::U32(LONG)],
        )?;
        queue.copy(&x.all(), &y.all())?;
        let download = queue.download(&y.all(), device.alloc_pinned(256)?)?;
        let event = queue.record()?;
        drop((queue, x));
        assert!(!event.is_done()?, "{LONG} rounds took no time");
        drop(event);
        drop(device);
        download.finish()?
    };
    assert_eq!(y.bytes()[..4], [1, 0, 0, 0]);
    Ok(())
}

fn uploads_beyond_the_staging_wait(device: &Arc<dyn Device>) -> Outcome {
    const BYTES: usize = 40 << 20;
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(BYTES as u64)?;
    let data: Vec<u8> = (0..BYTES).map(|index| (index * 7 / 3) as u8).collect();
    queue.upload(&x.all(), &data)?;
    queue.upload(&x.slice(1000, 24 << 20)?, &data[..24 << 20])?;
    let mut found = vec![0; BYTES];
    queue.read_blocking(&x.all(), &mut found)?;
    let mut expected = data.clone();
    expected[1000..][..24 << 20].copy_from_slice(&data[..24 << 20]);
    assert!(found == expected, "40 MiB came back changed");
    Ok(())
}

fn foreign_memory_and_streams_are_used(device: &Arc<dyn Device>) -> Outcome {
    let Some(emulated) = Emulated::found() else {
        println!("skipped: the test's own declarations are the emulated library's");
        return Ok(());
    };
    let add = function(device, "add_one")?;
    // The device's calls have left its context current on this thread.
    let foreign = emulated.stream_and_memory(256);
    let owner = Arc::new(());
    // SAFETY: stream and memory live until the end of this test.
    let (queue, x) = unsafe {
        let queue = device.import_queue(foreign.stream, None)?;
        (
            queue,
            device.import_memory(foreign.address, 256, Some(owner.clone()))?,
        )
    };
    queue.fill(&x.all(), 0)?;
    for _ in 0..3 {
        launch(&*queue, &add, 1, 1, &add_arguments(&x))?;
    }
    assert_eq!(words(&*queue, &x)?, [3; 64]);
    drop(x);
    queue.synchronize(None)?;
    assert_eq!(Arc::strong_count(&owner), 1, "the owner is still held");
    let kind = |error: Option<ropeway_core::Error>| error.map(|error| error.kind());
    // SAFETY: refused, never followed.
    unsafe {
        let refused = device.import_queue(std::ptr::null_mut(), None).err();
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
        let odd = (foreign.address as u64 + 8) as *mut c_void;
        assert_eq!(
            kind(device.import_memory(odd, 128, None).err()),
            Some(ErrorKind::InvalidArgument)
        );
        let none = device.import_queue(0x7f00 as *mut c_void, None).err();
        assert_eq!(kind(none), Some(ErrorKind::InvalidArgument));
    }
    assert_eq!(
        emulated.breaches().lines().count(),
        1,
        "of the handle that was never a stream"
    );
    drop(queue);
    device.create_queue(QueueKind::Compute)?.synchronize(None)?;
    emulated.release(foreign);
    Ok(())
}

fn threads_compile_at_once(device: &Arc<dyn Device>) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || -> Outcome {
                    let mut config = Config::default();
                    config.set("THREAD", thread);
                    let add = device.compile(&SOURCE, &config)?.function("add_one")?;
                    let queue = device.create_queue(QueueKind::Compute)?;
                    let x = device.alloc(256)?;
                    queue.fill(&x.all(), 0)?;
                    launch(&*queue, &add, 1, 1, &add_arguments(&x))?;
                    assert_eq!(words(&*queue, &x)?, [1; 64]);
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

fn launches_leak_nothing(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    on_device::leaks_nothing(device, 16 << 20, |queue, x| {
        launch(queue, &add, 1, 1, &add_arguments(x))
    })
}

fn memory_runs_out_and_comes_back(device: &Arc<dyn Device>) -> Outcome {
    if let Some(emulated) = Emulated::found() {
        // On demand: otherwise the host would have to give as much.
        for large in [1 << 10, 64 << 20] {
            emulated.set_fault("aclrtMalloc:1=207001,aclrtMalloc:2=207001");
            // A slab may have room.
            if let Err(error) = device.alloc(large) {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
            }
            emulated.set_fault("");
        }
    } else {
        let free = device.memory()?.free.ok_or("the driver tells")?;
        let half = device.alloc(free / 2)?;
        let other = device.alloc(free / 4 * 3).err().map(|error| error.kind());
        assert_eq!(other, Some(ErrorKind::OutOfMemory));
        drop(half);
    }
    let refused = device.alloc(u64::MAX / 2).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::OutOfMemory));
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(256)?;
    queue.fill(&x.all(), 0xff)?;
    assert_eq!(words(&*queue, &x)?, [u32::MAX; 64]);
    drop(x);
    assert_eq!(device.memory()?.used, 0);
    Ok(())
}

/// A bit of everything, from opening to closing.
fn program(ordinal: usize, cache: &std::path::Path) -> Result<Vec<u32>> {
    let options = OpenOptions {
        cache_dir: Some(cache.to_owned()),
        ..OpenOptions::default()
    };
    let device = AscendDriver.open(ordinal, &options)?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let other = device.create_queue(QueueKind::Transfer)?;
    let (x, y, large) = (
        device.alloc(256)?,
        device.alloc(256)?,
        device.alloc(5 << 20)?,
    );
    queue.upload(&x.all(), &[0; 256])?;
    queue.fill(&large.all(), 3)?;
    launch(
        &*queue,
        &function(&device, "add_one")?,
        1,
        1,
        &add_arguments(&x),
    )?;
    let report = function(&device, "report")?;
    launch(
        &*queue,
        &report,
        1,
        1,
        &[Argument::Status, Argument::U32(0)],
    )?;
    queue.copy(&x.all(), &y.all())?;
    let event = queue.record()?;
    other.wait(&event)?;
    let into = other
        .download(&y.all(), device.alloc_pinned(256)?)?
        .finish()?;
    queue.synchronize(Some(Duration::from_secs(60)))?;
    event.elapsed_since(&*event)?;
    device.memory()?;
    let found = words(&*queue, &y)?;
    assert_eq!(into.bytes()[..4], [1, 0, 0, 0]);
    Ok(found)
}

fn nothing_is_left_of_a_closed_device(device: &Arc<dyn Device>) -> Outcome {
    let Some(emulated) = Emulated::found() else {
        println!("skipped: only the emulated CANN lists what lives");
        return Ok(());
    };
    let cache = tempfile::tempdir()?;
    let before = emulated.living();
    for _ in 0..3 {
        assert_eq!(program(device.info().ordinal, cache.path())?, [1; 64]);
        assert_eq!(emulated.living(), before);
    }
    assert_eq!(emulated.breaches(), "");
    Ok(())
}

/// While a device is open a probe neither initialises nor finalises; that is the device's.
fn probing_initialises_for_a_moment(device: &Arc<dyn Device>) -> Outcome {
    let Some(emulated) = Emulated::found() else {
        println!("skipped: only the emulated CANN counts its calls");
        return Ok(());
    };
    emulated.set_fault("");
    let found = AscendDriver.probe()?;
    assert!(
        found
            .iter()
            .any(|info| info.selector() == device.info().selector())
    );
    let calls = ["aclInit", "aclFinalize", "aclrtSetDevice", "aclrtMalloc"]
        .map(|name| emulated.calls(name));
    assert_eq!(calls, [0; 4]);
    Ok(())
}
