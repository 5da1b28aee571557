//! The OpenCL backend on every OpenCL device of the machine. Without one every test shows as ignored, with the reason.
#![cfg(feature = "opencl")]
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use ropeway_backends::opencl::OpenClDriver;
use ropeway_core::device::{
    Argument, Device, Driver, Function, LaunchCall, OpenOptions, Queue, QueueKind,
};
use ropeway_core::kernel::{Code, Config, Language, Source};
use ropeway_core::{Buffer, DType, ErrorKind};

type Outcome = Result<(), Failed>;
type Test = fn(&Arc<dyn Device>) -> Outcome;

const TESTS: &[(&str, Test)] = &[
    ("info_is_plausible", info_is_plausible),
    ("copies_go_round", copies_go_round),
    ("fills_touch_their_range_only", fills_touch_their_range_only),
    ("empty_buffers_work", empty_buffers_work),
    ("launch_gets_its_arguments", launch_gets_its_arguments),
    ("events_order_queues", events_order_queues),
    ("events_measure_device_time", events_measure_device_time),
    ("waits_time_out", waits_time_out),
    ("status_word_is_reported_once", status_word_is_reported_once),
];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    match OpenClDriver.probe() {
        Ok(devices) => {
            for info in devices {
                for &(name, test) in TESTS {
                    let ordinal = info.ordinal;
                    let run = move || test(&OpenClDriver.open(ordinal, &OpenOptions::default())?);
                    trials.push(Trial::test(format!("{}::{name}", info.selector()), run));
                }
            }
        }
        Err(reason) => {
            println!(
                "skipped: {} tests, since OpenCL is not available: {reason}",
                TESTS.len()
            );
            for &(name, _) in TESTS {
                let trial = Trial::test(format!("opencl::{name}"), || Ok(()));
                trials.push(trial.with_ignored_flag(true));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
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

fn launch(
    queue: &dyn Queue,
    function: &Arc<dyn Function>,
    grid: u64,
    group: u32,
    arguments: &[Argument<'_>],
) -> ropeway_core::Result<()> {
    // SAFETY: each test passes what its kernel takes, and buffers that are large enough.
    unsafe {
        queue.launch(&LaunchCall {
            function,
            grid: [grid, 1, 1],
            group: [group, 1, 1],
            local_memory: 0,
            arguments,
        })
    }
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

fn words(queue: &dyn Queue, buffer: &Buffer) -> ropeway_core::Result<Vec<u32>> {
    let mut bytes = vec![0; buffer.size() as usize];
    queue.read_blocking(&buffer.all(), &mut bytes)?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
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
