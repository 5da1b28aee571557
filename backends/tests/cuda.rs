//! The CUDA backend on every CUDA device of the machine, be it a GPU or the emulated driver. Without one every test shows as ignored, with
//! the reason. What every backend must do is tested by the conformance suite (`ropeway check --device cuda device`); here is what is
//! CUDA's own, and what happens when the driver fails.
#![cfg(feature = "cuda")]
#![allow(unsafe_code)]

#[path = "cuda/beforehand.rs"]
mod beforehand;
mod counting;
mod on_device;

use std::ffi::{CString, c_char, c_void};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys as cu;
use libtest_mimic::Failed;
use on_device::{Outcome, Test, launch, tests, words};
use ropeway_backends::cuda::CudaDriver;
use ropeway_core::device::{
    Argument, Device, Driver, Function, LaunchCall, OpenOptions, QueueKind,
};
use ropeway_core::info::Execution;
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::plan::TensorMap;
use ropeway_core::{Buffer, DType, ErrorKind};

const TESTS: &[(&str, Test)] = tests![
    info_is_plausible,
    groups_and_grids_beyond_the_limits_are_refused,
    arguments_of_another_number_are_refused,
    long_argument_lists_arrive,
    shared_memory_beyond_48_kib_is_allowed,
    a_source_that_does_not_compile_says_why,
    compiled_kernels_are_kept,
    kernels_compiled_beforehand_need_no_nvrtc,
    status_word_is_reported_once,
    objects_may_be_dropped_under_way,
    uploads_beyond_the_staging_wait,
    foreign_memory_and_streams_are_used,
    memory_without_bytes_or_address_has_a_map,
    a_foreign_stream_is_captured,
    threads_compile_at_once,
    launches_allocate_nothing,
    ten_thousand_launches_leak_nothing,
    memory_runs_out_and_comes_back,
    each_call_fails_in_turn,
    a_lost_device_fails_every_call_with_its_cause,
    libraries_without_functions_are_named,
];

fn main() {
    if let Some(what) = std::env::var_os(CHILD) {
        return child(&what.to_string_lossy());
    }
    on_device::run(&CudaDriver, TESTS, &[]);
}

/// Set for the processes that tests start, to what they shall do.
const CHILD: &str = "ROPEWAY_TEST_CUDA_CHILD";

fn child(what: &str) {
    match what {
        "probe" => match CudaDriver.probe() {
            Ok(found) => println!("{} devices", found.len()),
            Err(reason) => println!("{reason}"),
        },
        "lose" => lose(),
        "beforehand" => beforehand::child(),
        other => panic!("{other}"),
    }
}

static SOURCE: Source = Source {
    language: Language::CudaC,
    code: Code::Text(&[("kernels.cu", include_str!("cuda/kernels.cu"))]),
    requires: &[],
};

fn function(device: &Arc<dyn Device>, entry: &str) -> ropeway_core::Result<Arc<dyn Function>> {
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

fn is_emulated(device: &Arc<dyn Device>) -> bool {
    device.info().execution == Execution::Emulated
}

fn info_is_plausible(device: &Arc<dyn Device>) -> Outcome {
    let info = device.info();
    assert_eq!(info.subgroup_sizes, [32]);
    assert!(info.has("sm_70"), "{:?}", info.features);
    assert_eq!(is_emulated(device), info.name.contains("emulated"));
    let number: u32 = info.architecture.trim_start_matches("sm_").parse()?;
    assert_eq!(info.has("sm_80"), number >= 80);
    assert_eq!(info.matrix_shapes.is_empty(), number < 80);
    assert!(info.limits.local_memory >= 48 << 10 && info.compute_units > 0);
    let memory = device.memory()?;
    assert!(memory.free.is_some_and(|free| free <= memory.total) && memory.used == 0);
    Ok(())
}

fn groups_and_grids_beyond_the_limits_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    let limits = &device.info().limits;
    let arguments = [operand(&x), Argument::U32(0)];
    for (grid, group) in [
        (0, 64),
        (limits.max_grid[0] + 1, 64),
        (1 << 32, 64),
        (1, 0),
        (1, limits.max_group_size + 1),
    ] {
        let refused = launch(&*queue, &add, grid, group, &arguments).expect_err("no such launch");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    Ok(queue.synchronize(None)?)
}

fn arguments_of_another_number_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    if !is_emulated(device) && version_of_driver() < 12_040 {
        println!(
            "skipped: a driver before CUDA 12.4 does not tell how many parameters a kernel has"
        );
        return Ok(());
    }
    for arguments in [
        &[operand(&x)][..],
        &[operand(&x), Argument::U32(0), Argument::U32(0)],
    ] {
        let refused = launch(&*queue, &add, 1, 64, arguments).expect_err("other arguments");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    Ok(())
}

fn version_of_driver() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is valid, and the driver is there.
    unsafe { cu::cuDriverGetVersion(&raw mut version) };
    version
}

fn long_argument_lists_arrive(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4)?;
    let many = function(device, "many")?;
    queue.fill(&x.all(), 0)?;
    let mut arguments = vec![operand(&x)];
    arguments.extend((0..40).map(|number| Argument::U64(number * number)));
    launch(&*queue, &many, 1, 1, &arguments)?;
    launch(&*queue, &many, 1, 1, &arguments)?;
    let expected: u32 = (0..40).map(|number| number * number).sum();
    assert_eq!(words(&*queue, &x)?, [2 * expected]);
    Ok(())
}

fn shared_memory_beyond_48_kib_is_allowed(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4)?;
    let shared = function(device, "shared")?;
    let run = |bytes: u32| {
        let arguments = [operand(&x), Argument::U32(bytes / 4)];
        // SAFETY: what the kernel takes, and as much shared memory as it is told.
        unsafe {
            queue.launch(&LaunchCall {
                function: &shared,
                grid: [1; 3],
                group: [128, 1, 1],
                local_memory: bytes,
                arguments: &arguments,
            })
        }
    };
    let most = device.info().limits.local_memory as u32;
    for bytes in [4096, 48 << 10, most, 1024] {
        run(bytes)?;
        assert_eq!(words(&*queue, &x)?, [(bytes / 4 - 1) * 7], "{bytes} bytes");
    }
    let refused = run(most + 4).expect_err("more than there is");
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    Ok(queue.synchronize(None)?)
}

static BROKEN: Source = Source {
    language: Language::CudaC,
    code: Code::Text(&[
        ("first.cu", "typedef int number;\n"),
        (
            "second.cu",
            "extern \"C\" __global__ void f(number* x)\n{\n  *x = TILE + unknown;\n}\n",
        ),
    ]),
    requires: &[],
};
static FOREIGN: Source = Source {
    language: Language::OpenClC,
    code: Code::Text(&[("none.cl", "")]),
    requires: &[],
};

fn a_source_that_does_not_compile_says_why(device: &Arc<dyn Device>) -> Outcome {
    let mut config = Config::default();
    config.set("TILE", 8);
    let error = device
        .compile(&BROKEN, &config)
        .err()
        .ok_or("it compiled")?;
    assert_eq!(error.kind(), ErrorKind::CompileFailed);
    for part in ["second.cu", "unknown", "-DTILE=8"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    let foreign = device.compile(&FOREIGN, &config).err();
    assert_eq!(foreign.map(|e| e.kind()), Some(ErrorKind::Unsupported));
    let module = device.compile(&SOURCE, &Config::default())?;
    let unknown = module.function("no_such_entry").err();
    assert_eq!(unknown.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    Ok(())
}

fn compiled_kernels_are_kept(device: &Arc<dyn Device>) -> Outcome {
    let directory = tempfile::tempdir()?;
    let options = OpenOptions {
        cache_dir: Some(directory.path().to_owned()),
        ..OpenOptions::default()
    };
    let ordinal = device.info().ordinal;
    let files = || -> std::io::Result<usize> { Ok(std::fs::read_dir(directory.path())?.count()) };
    function(&CudaDriver.open(ordinal, &options)?, "add_one")?;
    let kept = files()?;
    assert!(kept > 0, "nothing was kept");
    let again = CudaDriver.open(ordinal, &options)?;
    let add = function(&again, "add_one")?;
    assert_eq!(files()?, kept);
    let (queue, x) = (again.create_queue(QueueKind::Compute)?, again.alloc(256)?);
    queue.fill(&x.all(), 0)?;
    launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
    assert_eq!(words(&*queue, &x)?, [1; 64]);
    Ok(())
}

fn kernels_compiled_beforehand_need_no_nvrtc(device: &Arc<dyn Device>) -> Outcome {
    beforehand::need_no_nvrtc(device)
}

fn status_word_is_reported_once(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let other = device.create_queue(QueueKind::Compute)?;
    let report = function(device, "report")?;
    for code in [0, 7, 0, 9] {
        for code in [code, 0] {
            let arguments = [Argument::Status, Argument::U32(code)];
            launch(&*queue, &report, 1, 1, &arguments)?;
        }
        other.synchronize(None)?;
        let found = queue.synchronize(None).err();
        let found = found.map(|error| (error.kind(), error.code()));
        let expected = (code != 0).then_some((ErrorKind::DataOutOfRange, Some(code.into())));
        assert_eq!(found, expected);
    }
    Ok(())
}

/// Rounds of `slow` that take some milliseconds.
const LONG: u32 = 100_000;

/// Queue, device, functions and buffers go while their work is under way; the process lives on.
fn objects_may_be_dropped_under_way(device: &Arc<dyn Device>) -> Outcome {
    for round in 0..10 {
        let device = CudaDriver.open(device.info().ordinal, &OpenOptions::default())?;
        let slow = function(&device, "slow")?;
        let queue = device.create_queue(QueueKind::Compute)?;
        let x = device.alloc(4)?;
        for _ in 0..3 {
            launch(&*queue, &slow, 1, 1, &[operand(&x), Argument::U32(LONG)])?;
        }
        queue.upload(&x.all(), &[1; 4])?;
        let event = queue.record()?;
        // In every order.
        match round % 5 {
            0 => drop((device, queue, x, slow, event)),
            1 => drop((queue, device, event, slow, x)),
            2 => drop((event, x, slow, queue, device)),
            3 => {
                drop((device, queue, x, slow));
                event.wait(Some(Duration::from_secs(60)))?;
            }
            _ => {
                drop((x, slow, event, queue));
                device.create_queue(QueueKind::Compute)?.synchronize(None)?;
            }
        }
    }
    Ok(())
}

/// More data than staging holds arrives behind a kernel that is under way; the queue waits for room and loses nothing.
fn uploads_beyond_the_staging_wait(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let slow = function(device, "slow")?;
    let x = device.alloc(4)?;
    let data: Vec<u8> = (0..40 << 20).map(|i: u32| (i ^ i >> 11) as u8).collect();
    let y = device.alloc(data.len() as u64)?;
    launch(&*queue, &slow, 1, 1, &[operand(&x), Argument::U32(LONG)])?;
    queue.upload(&y.all(), &data)?;
    let mut found = vec![0; data.len()];
    queue.read_blocking(&y.all(), &mut found)?;
    assert!(found == data, "40 MiB did not arrive as sent");
    Ok(())
}

/// A stream and memory that somebody else made in the primary context.
struct Foreign {
    stream: cu::CUstream,
    address: cu::CUdeviceptr,
}

impl Foreign {
    /// The device's calls have left its context current on this thread.
    fn new(bytes: usize) -> Foreign {
        let (mut stream, mut address) = (std::ptr::null_mut(), 0);
        // SAFETY: the pointers are valid.
        unsafe {
            assert_eq!(
                cu::cuStreamCreate(&raw mut stream, 1),
                cu::CUresult::CUDA_SUCCESS
            );
            assert_eq!(
                cu::cuMemAlloc_v2(&raw mut address, bytes),
                cu::CUresult::CUDA_SUCCESS
            );
        }
        Foreign { stream, address }
    }

    fn release(self) {
        // SAFETY: made above; the tests have waited for the work.
        unsafe {
            assert_eq!(
                cu::cuStreamDestroy_v2(self.stream),
                cu::CUresult::CUDA_SUCCESS
            );
            assert_eq!(cu::cuMemFree_v2(self.address), cu::CUresult::CUDA_SUCCESS);
        }
    }
}

fn foreign_memory_and_streams_are_used(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    let foreign = Foreign::new(256);
    let owner = Arc::new(());
    // SAFETY: the stream and the memory live until the end of this test.
    let (queue, x) = unsafe {
        let queue = device.import_queue(foreign.stream.cast(), None)?;
        let address = foreign.address as *mut c_void;
        (
            queue,
            device.import_memory(address, 256, Some(owner.clone()))?,
        )
    };
    queue.fill(&x.all(), 0)?;
    for _ in 0..3 {
        launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
    }
    assert_eq!(words(&*queue, &x)?, [3; 64]);
    drop(x);
    queue.synchronize(None)?;
    assert_eq!(Arc::strong_count(&owner), 1, "the owner is still held");
    // SAFETY: null is refused, never followed.
    let refused = unsafe { device.import_queue(std::ptr::null_mut(), None) }.err();
    assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::Unsupported));
    let odd = (foreign.address + 8) as *mut c_void;
    // SAFETY: as above.
    let refused = unsafe { device.import_memory(odd, 128, None) }.err();
    assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    drop(queue);
    foreign.release();
    Ok(())
}

/// A tensor without elements, which other libraries give no address.
fn memory_without_bytes_or_address_has_a_map(device: &Arc<dyn Device>) -> Outcome {
    if !device.info().has("sm_90") {
        println!("skipped: tensor maps need compute capability 9.0");
        return Ok(());
    }
    let queue = device.create_queue(QueueKind::Compute)?;
    let mapped = function(device, "mapped")?;
    let x = device.alloc(256)?;
    queue.fill(&x.all(), 0)?;
    // SAFETY: there is no byte of it to be used.
    let nothing = unsafe { device.import_memory(std::ptr::null_mut(), 0, None) }?;
    let map = TensorMap {
        dtype: DType::BF16,
        rank: 2,
        tile: [64, 16, 1, 1, 1],
        swizzle: 128,
    };
    let mut arguments = [
        Argument::TensorMap {
            map: &map,
            buffer: &nothing,
            offset: 0,
            extents: [64, 1, 1, 1, 1],
            strides: [2, 128, 128, 128, 128],
        },
        operand(&x),
    ];
    launch(&*queue, &mapped, 1, 1, &arguments)?;
    assert_eq!(words(&*queue, &x)?[0], 1);
    // What cannot be encoded is refused where there is an address, and where there is none.
    for buffer in [&x, &nothing] {
        arguments[0] = Argument::TensorMap {
            map: &map,
            buffer,
            offset: 0,
            extents: [64, 1, 1, 1, 1],
            strides: [2, 100, 100, 100, 100],
        };
        assert!(launch(&*queue, &mapped, 1, 1, &arguments).is_err());
    }
    Ok(queue.synchronize(None)?)
}

/// An engine captures its own stream; what is enqueued meanwhile runs when the engine launches its graph.
fn a_foreign_stream_is_captured(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    let foreign = Foreign::new(4);
    let x = device.alloc(256)?;
    // SAFETY: the stream lives until the end of this test.
    let queue = unsafe { device.import_queue(foreign.stream.cast(), None) }?;
    queue.fill(&x.all(), 0)?;
    queue.synchronize(None)?;
    let ok = |code| assert_eq!(code, cu::CUresult::CUDA_SUCCESS);
    let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is valid.
    ok(unsafe { cu::cuStreamBeginCapture_v2(foreign.stream, mode) });
    for _ in 0..5 {
        launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
    }
    let refused = queue.synchronize(None).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::Unsupported));
    let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: stream and graph are valid, and so are the pointers.
    unsafe {
        ok(cu::cuStreamEndCapture(foreign.stream, &raw mut graph));
        ok(cu::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0));
    }
    assert_eq!(
        words(&*queue, &x)?,
        [0; 64],
        "nothing ran while it was captured"
    );
    // SAFETY: the executable graph is valid.
    unsafe {
        ok(cu::cuGraphLaunch(exec, foreign.stream));
        ok(cu::cuGraphLaunch(exec, foreign.stream));
    }
    assert_eq!(words(&*queue, &x)?, [10; 64]);
    // SAFETY: their work is done.
    unsafe {
        ok(cu::cuGraphExecDestroy(exec));
        ok(cu::cuGraphDestroy(graph));
    }
    drop(queue);
    foreign.release();
    Ok(())
}

fn threads_compile_at_once(device: &Arc<dyn Device>) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || -> Outcome {
                    let mut config = Config::default();
                    config.set("THREAD", thread);
                    let add = device.compile(&SOURCE, &config)?.function("add_one")?;
                    let queue = device.create_queue(QueueKind::Compute)?;
                    let x = device.alloc(256)?;
                    queue.fill(&x.all(), 0)?;
                    launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
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

fn launches_allocate_nothing(device: &Arc<dyn Device>) -> Outcome {
    if is_emulated(device) {
        println!("skipped: the emulated driver allocates for each launch, on this thread");
        return Ok(());
    }
    let queue = device.create_queue(QueueKind::Compute)?;
    let add = function(device, "add_one")?;
    let x = device.alloc(4 * 64)?;
    let enqueue = || {
        for _ in 0..50 {
            launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)]).expect("a launch");
        }
    };
    enqueue();
    queue.synchronize(None)?;
    // The first launch after an event notes what it uses.
    enqueue();
    let allocations = counting::allocations(enqueue);
    queue.synchronize(None)?;
    assert_eq!(allocations, 0, "50 launches");
    Ok(())
}

fn ten_thousand_launches_leak_nothing(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    on_device::leaks_nothing(device, 8 << 20, |queue, x| {
        launch(queue, &add, 1, 64, &[operand(x), Argument::U32(0)])
    })
}

fn memory_runs_out_and_comes_back(device: &Arc<dyn Device>) -> Outcome {
    let free = device.memory()?.free.ok_or("the driver tells")?;
    let refused = device.alloc(u64::MAX / 2).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::OutOfMemory));
    let half = device.alloc(free / 2)?;
    let other = device.alloc(free / 4 * 3).err().map(|error| error.kind());
    assert_eq!(other, Some(ErrorKind::OutOfMemory));
    drop(half);
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(256)?;
    queue.fill(&x.all(), 0xff)?;
    assert_eq!(words(&*queue, &x)?, [u32::MAX; 64]);
    drop(x);
    assert_eq!(device.memory()?.used, 0);
    Ok(())
}

/// The emulated driver's own functions: what shall fail, and how many calls there were.
struct Faults {
    set: unsafe extern "C" fn(*const c_char) -> u32,
    calls: unsafe extern "C" fn() -> u64,
}

impl Faults {
    fn new() -> Faults {
        // SAFETY: the emulated library's own functions, by their types.
        unsafe {
            let library = cu::culib();
            Faults {
                set: *library
                    .get(b"ropeway_emulated_cuda_set_fault")
                    .expect("an emulated driver"),
                calls: *library
                    .get(b"ropeway_emulated_cuda_calls")
                    .expect("an emulated driver"),
            }
        }
    }

    fn set(&self, list: &str) {
        let list = CString::new(list).expect("no NUL");
        // SAFETY: a text that ends with NUL.
        assert_eq!(unsafe { (self.set)(list.as_ptr()) }, 0);
    }

    fn calls(&self) -> u64 {
        // SAFETY: it takes nothing.
        unsafe { (self.calls)() }
    }
}

/// A bit of everything, from opening to closing.
fn program(ordinal: usize, cache: &std::path::Path) -> ropeway_core::Result<Vec<u32>> {
    let options = OpenOptions {
        cache_dir: Some(cache.to_owned()),
        ..OpenOptions::default()
    };
    let device = CudaDriver.open(ordinal, &options)?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let other = device.create_queue(QueueKind::Transfer)?;
    let (x, y) = (device.alloc(256)?, device.alloc(256)?);
    queue.upload(&x.all(), &[0; 256])?;
    let add = function(&device, "add_one")?;
    launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
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
    device.memory()?;
    let found = words(&*queue, &y)?;
    assert_eq!(into.bytes()[..4], [1, 0, 0, 0]);
    Ok(found)
}

fn each_call_fails_in_turn(device: &Arc<dyn Device>) -> Outcome {
    if !is_emulated(device) {
        println!("skipped: a real driver does not fail on demand");
        return Ok(());
    }
    let ordinal = device.info().ordinal;
    let faults = Faults::new();
    let cache = tempfile::tempdir()?;
    let program = || program(ordinal, cache.path());
    program()?;
    faults.set("");
    program()?;
    let all = faults.calls();
    let mut failed = 0;
    for call in 1..=all {
        faults.set(&format!("call@{call}=out_of_memory"));
        match program() {
            Err(error) => {
                failed += 1;
                let kind = error.kind();
                // Where a device is asked for, another reason than memory is as true.
                let typed = matches!(
                    kind,
                    ErrorKind::OutOfMemory | ErrorKind::Unavailable | ErrorKind::InvalidArgument
                );
                assert!(typed, "call {call} of {all}: {error}");
            }
            // Of destructors, and of questions whose answer is dispensable.
            Ok(found) => assert_eq!(found, [1; 64], "call {call} of {all}"),
        }
        faults.set("");
        assert_eq!(program()?, [1; 64], "after call {call} failed");
    }
    assert!(failed > all / 3, "{failed} of {all}");
    Ok(())
}

/// In a process of its own: a lost context is the process's.
fn a_lost_device_fails_every_call_with_its_cause(device: &Arc<dyn Device>) -> Outcome {
    if !is_emulated(device) {
        println!("skipped: a GPU is not lost on demand");
        return Ok(());
    }
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, "lose")
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

fn lose() {
    let device = CudaDriver
        .open(0, &OpenOptions::default())
        .expect("the emulated device");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(256).expect("memory");
    let slow = function(&device, "slow").expect("a function");
    let arguments = [operand(&x), Argument::U32(20 * LONG)];
    queue.fill(&x.all(), 0).expect("a fill");
    launch(&*queue, &slow, 1, 1, &arguments).expect("a launch");
    let event = queue.record().expect("an event");
    let cause = std::thread::scope(|scope| {
        // Two that wait already, and one that finds out.
        let waiters = [
            scope.spawn(|| event.wait(Some(Duration::from_secs(60)))),
            scope.spawn(|| queue.synchronize(Some(Duration::from_secs(60)))),
        ];
        std::thread::sleep(Duration::from_millis(5));
        Faults::new().set("device_lost@1");
        let cause = loop {
            if let Err(error) = queue.fill(&x.all(), 0) {
                break error;
            }
        };
        for waiter in waiters {
            let error = waiter
                .join()
                .expect("no panic")
                .expect_err("the device is lost");
            assert_eq!(error, cause);
        }
        cause
    });
    assert_eq!(cause.kind(), ErrorKind::DeviceLost, "{cause}");
    for error in [
        device.alloc(4).err(),
        device.memory().err(),
        device.create_queue(QueueKind::Compute).err(),
        device.alloc_pinned(4).err(),
        queue.fill(&x.all(), 0).err(),
        queue.upload(&x.all(), &[0; 256]).err(),
        queue.record().err(),
        queue.synchronize(None).err(),
        event.is_done().err(),
    ] {
        assert_eq!(error.expect("the device is lost"), cause);
    }
}

/// A libcuda with some of its functions, and one with none but those that tell its age: reasons, never a panic.
fn libraries_without_functions_are_named(device: &Arc<dyn Device>) -> Outcome {
    if !cfg!(target_os = "linux") || !is_emulated(device) {
        println!("skipped: made of the emulated driver, on Linux");
        return Ok(());
    }
    let probe = |source: &str| -> Result<String, Failed> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("libcuda.c");
        std::fs::write(&file, source)?;
        let library = directory.path().join("libcuda.so.1");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &file])
            .output()?;
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        // The first name that cudarc tries.
        std::fs::copy(&library, directory.path().join("libcuda.so"))?;
        let output = Command::new(std::env::current_exe()?)
            .env(CHILD, "probe")
            .env("LD_LIBRARY_PATH", directory.path())
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    };
    let said = probe("int cuInit(unsigned flags) { return 0; }\n")?;
    assert!(said.contains("has no function cu"), "{said}");
    // All of them by name, at address 0.
    let nulls = REQUIRED_BY_THE_BACKEND
        .iter()
        .map(|name| format!("__asm__(\".globl {name}\\n.set {name}, 0\");\n"))
        .collect::<String>();
    let said = probe(&nulls)?;
    assert!(said.contains("has no function cu"), "{said}");
    // All functions by name; each fails, but for the version, which is old.
    let all = REQUIRED_BY_THE_BACKEND
        .iter()
        .map(|name| format!("int {name}(void) {{ return 999; }}\n"))
        .collect::<String>();
    let version = |number: u32| {
        format!("int cuDriverGetVersion(int* version) {{ *version = {number}; return 0; }}\n")
    };
    let said = probe(&format!("{all}{}", version(10_020)))?;
    assert!(
        said.contains("version 10.2 is too old, 11.4 is needed"),
        "{said}"
    );
    let said = probe(&format!("{all}{}", version(12_090)))?;
    assert!(
        said.contains("initialisation failed") && said.contains("cuInit"),
        "{said}"
    );
    Ok(())
}

/// What the backend looks for before it calls anything, but for the version.
const REQUIRED_BY_THE_BACKEND: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];
