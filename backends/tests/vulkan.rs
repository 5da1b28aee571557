//! The Vulkan backend on every Vulkan device of the machine. Without one every test shows as ignored, with the reason. What
//! every backend must do is tested by the conformance suite (`ropeway check --device vulkan device`); here is what is Vulkan's own.
#![cfg(feature = "vulkan")]
#![allow(unsafe_code)]

mod counting;
mod on_device;
#[path = "vulkan/spirv.rs"]
mod spirv;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Failed;
use on_device::{Outcome, Test, launch, tests, words};
use ropeway_backends::vulkan::{VulkanDriver, validation_messages};
use ropeway_core::device::{Argument, Device, Driver, Function, OpenOptions, QueueKind};
use ropeway_core::info::Execution;
use ropeway_core::kernel::{Binary, Code, Config, Language, Source};
use ropeway_core::{Buffer, DType, ErrorKind};

const TESTS: &[(&str, Test)] = tests![
    info_is_plausible,
    constants_are_found_by_name,
    another_group_is_refused,
    grids_beyond_the_limits_are_refused,
    arguments_of_another_size_are_refused,
    long_argument_blocks_lie_in_memory,
    a_source_that_does_not_fit_says_why,
    memory_past_the_storage_buffer_range_is_reached,
    status_word_is_reported_once,
    objects_may_be_dropped_under_way,
    uploads_beyond_the_staging_wait,
    pinned_memory_of_another_device_is_refused,
    threads_compile_at_once,
    events_come_and_go_under_load,
    launches_allocate_nothing,
    ten_thousand_launches_leak_nothing,
    validation_is_silent_and_awake,
];

fn main() {
    if let Some(what) = std::env::var_os(VALIDATED_CHILD) {
        return validated_child(&what.to_string_lossy());
    }
    on_device::run(&VulkanDriver, TESTS, &[]);
}

static SOURCE: Source = Source {
    language: Language::SpirV,
    code: Code::Binaries(spirv::KERNELS),
    requires: &[],
};

fn function(device: &Arc<dyn Device>, entry: &str) -> Result<Arc<dyn Function>, Failed> {
    Ok(device
        .compile(&SOURCE, &Config::default())?
        .function(entry)?)
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

fn info_is_plausible(device: &Arc<dyn Device>) -> Outcome {
    let info = device.info();
    for needed in ["bufferDeviceAddress", "timelineSemaphore", "subgroupBasic"] {
        assert!(info.has(needed), "{needed} in {:?}", info.features);
    }
    assert!(
        info.subgroup_sizes
            .iter()
            .all(|size| size.is_power_of_two())
    );
    assert!(!info.subgroup_sizes.is_empty());
    if info.name.contains("llvmpipe") || info.name.contains("SwiftShader") {
        assert_eq!(info.execution, Execution::Software);
        assert!(info.matrix_shapes.is_empty());
        assert_eq!(info.has("shaderFloat16"), info.dtype(DType::F16).arithmetic);
        assert!(info.unified_memory && info.compute_units > 0);
    }
    Ok(())
}

fn constants_are_found_by_name(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(16)?;
    let read = |config: &Config| -> Result<Vec<u32>, Failed> {
        let chosen = device.compile(&SOURCE, config)?.function("chosen")?;
        launch(&*queue, &chosen, 1, 1, &[operand(&x)])?;
        Ok(words(&*queue, &x)?)
    };
    let mut config = Config::default();
    assert_eq!(read(&config)?, [1, 2, 0.5f32.to_bits(), 0]);
    config
        .set("COUNT", u32::MAX.into())
        .set("SIGNED", -7)
        .set("SCALE", 3)
        .set("FLAG", 1)
        .set("NOT_DECLARED", 5);
    assert_eq!(read(&config)?, [u32::MAX, -7i32 as u32, 3f32.to_bits(), 1]);
    for (name, value) in [
        ("COUNT", -1),
        ("COUNT", 1 << 32),
        ("SIGNED", 1 << 31),
        ("FLAG", 2),
    ] {
        let mut config = Config::default();
        config.set(name, value);
        let refused = device.compile(&SOURCE, &config)?.function("chosen").err();
        let refused = refused.ok_or_else(|| format!("{name} = {value} was accepted"))?;
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        assert!(refused.context().contains(name), "{refused}");
    }
    Ok(())
}

fn another_group_is_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 128)?;
    queue.fill(&x.all(), 0)?;
    let arguments = [operand(&x), Argument::U32(0)];
    for group in [64, 32, 128] {
        let mut config = Config::default();
        config.set("GROUP", group.into());
        let add = device.compile(&SOURCE, &config)?.function("add_one")?;
        assert_eq!(add.info().max_group_size, Some(group));
        launch(&*queue, &add, 1, group, &arguments)?;
        let refused = launch(&*queue, &add, 1, group / 2, &arguments).expect_err("another group");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    let found = words(&*queue, &x)?;
    assert!(found[..32] == [3; 32] && found[32..64] == [2; 32] && found[64..] == [1; 64]);
    let mut config = Config::default();
    config.set("GROUP", i64::from(device.info().limits.max_group_size) * 2);
    let refused = device.compile(&SOURCE, &config)?.function("add_one").err();
    assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    Ok(())
}

fn grids_beyond_the_limits_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    let limit = device.info().limits.max_grid[0];
    for grid in [0, limit + 1, 1 << 32] {
        let arguments = [operand(&x), Argument::U32(0)];
        let refused = launch(&*queue, &add, grid, 64, &arguments).expect_err("no such grid");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    Ok(queue.synchronize(None)?)
}

fn arguments_of_another_size_are_refused(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4 * 64)?;
    let add = function(device, "add_one")?;
    for arguments in [
        &[operand(&x)][..],
        &[operand(&x), Argument::U64(0)],
        &[operand(&x), Argument::U32(0), Argument::U32(0)],
    ] {
        let refused = launch(&*queue, &add, 1, 64, arguments).expect_err("other arguments");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    Ok(())
}

fn long_argument_blocks_lie_in_memory(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(4)?;
    let many = function(device, "many")?;
    queue.fill(&x.all(), 0)?;
    // More blocks than one block of staging holds, each with numbers of its own.
    let mut expected = 0u32;
    for round in 0..3000 {
        let mut arguments = vec![operand(&x)];
        for number in 0..40 {
            let value = round * 41 + number;
            expected = expected.wrapping_add(value as u32);
            arguments.push(Argument::U64(value));
        }
        launch(&*queue, &many, 1, 1, &arguments)?;
    }
    assert_eq!(words(&*queue, &x)?, [expected]);
    Ok(())
}

static BROKEN: Source = Source {
    language: Language::SpirV,
    code: Code::Binaries(&[Binary {
        entry: "short",
        dtypes: &[],
        constants: &[],
        code: b"no module",
    }]),
    requires: &[],
};
static WIDE: Source = Source {
    language: Language::SpirV,
    code: Code::Binaries(spirv::WIDE),
    requires: &[],
};
static FOREIGN: Source = Source {
    language: Language::OpenClC,
    code: Code::Text(&[("none.cl", "")]),
    requires: &[],
};

fn a_source_that_does_not_fit_says_why(device: &Arc<dyn Device>) -> Outcome {
    let kind = |source, config: &Config| device.compile(source, config).err().map(|e| e.kind());
    let mut config = Config::default();
    assert_eq!(kind(&BROKEN, &config), Some(ErrorKind::CompileFailed));
    assert_eq!(kind(&FOREIGN, &config), Some(ErrorKind::Unsupported));
    assert_eq!(kind(&WIDE, &config), Some(ErrorKind::Unsupported));
    config.set_dtype("A_DTYPE", DType::F32);
    let wide = device.compile(&WIDE, &config);
    match device.info().has("shaderInt64") {
        true => drop(wide?.function("far")?),
        false => {
            let error = wide
                .err()
                .ok_or("a device without 64-bit integers took them")?;
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.context().contains("shaderInt64"), "{error}");
        }
    }
    let module = device.compile(&SOURCE, &Config::default())?;
    let unknown = module.function("no_such_entry").err();
    assert_eq!(unknown.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    Ok(())
}

/// 160 MiB: more than lavapipe binds as one storage buffer.
fn memory_past_the_storage_buffer_range_is_reached(device: &Arc<dyn Device>) -> Outcome {
    const BYTES: u64 = 160 << 20;
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(BYTES)?;
    let far = function(device, "far")?;
    for (offset, value) in [(0, 11), (BYTES - 4, 22), (BYTES / 2, 33)] {
        let arguments = [operand(&x), Argument::U64(offset), Argument::U32(value)];
        launch(&*queue, &far, 1, 1, &arguments)?;
        let mut word = [0; 4];
        queue.read_blocking(&x.slice(offset, 4)?, &mut word)?;
        assert_eq!(u32::from_le_bytes(word), value, "at {offset}");
    }
    Ok(())
}

fn status_word_is_reported_once(device: &Arc<dyn Device>) -> Outcome {
    let (queue, other) = (
        device.create_queue(QueueKind::Compute)?,
        device.create_queue(QueueKind::Compute)?,
    );
    let report = function(device, "report")?;
    for code in [0, 7, 0, 9] {
        launch(
            &*queue,
            &report,
            1,
            1,
            &[Argument::Status, Argument::U32(code)],
        )?;
        launch(
            &*queue,
            &report,
            1,
            1,
            &[Argument::Status, Argument::U32(0)],
        )?;
        other.synchronize(None)?;
        let found = queue.synchronize(None).err();
        let found = found.map(|error| (error.kind(), error.code()));
        let expected = (code != 0).then_some((ErrorKind::DataOutOfRange, Some(code.into())));
        assert_eq!(found, expected);
    }
    // More synchronisations than there are places for copies of the word.
    for round in 0..200 {
        let code = u32::from(round % 50 == 49);
        launch(
            &*queue,
            &report,
            1,
            1,
            &[Argument::Status, Argument::U32(code)],
        )?;
        assert_eq!(queue.synchronize(None).is_err(), code != 0, "round {round}");
    }
    Ok(())
}

/// Iterations of `slow` that take some 20 ms.
const LONG: u32 = 30_000;

/// Queue, device, functions, buffers and graphs go while their work is under way; the process lives on.
fn objects_may_be_dropped_under_way(device: &Arc<dyn Device>) -> Outcome {
    for round in 0..10 {
        let device = VulkanDriver.open(device.info().ordinal, &OpenOptions::default())?;
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
    let data: Vec<u8> = (0..100 << 20).map(|i: u32| (i ^ i >> 11) as u8).collect();
    let y = device.alloc(data.len() as u64)?;
    launch(&*queue, &slow, 1, 1, &[operand(&x), Argument::U32(LONG)])?;
    queue.upload(&y.all(), &data)?;
    let mut found = vec![0; data.len()];
    queue.read_blocking(&y.all(), &mut found)?;
    assert!(found == data, "100 MiB did not arrive as sent");
    Ok(())
}

fn pinned_memory_of_another_device_is_refused(device: &Arc<dyn Device>) -> Outcome {
    let other = VulkanDriver.open(device.info().ordinal, &OpenOptions::default())?;
    let queue = device.create_queue(QueueKind::Compute)?;
    let x = device.alloc(64)?;
    let refused = queue.download(&x.all(), other.alloc_pinned(64)?).err();
    assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidArgument));
    Ok(())
}

fn threads_compile_at_once(device: &Arc<dyn Device>) -> Outcome {
    let module = device.compile(&SOURCE, &Config::default())?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> ropeway_core::Result<()> {
                    for entry in ["add_one", "chosen", "many", "report", "far"] {
                        module.function(entry)?;
                        let own = device.compile(&SOURCE, &Config::default())?;
                        own.function(entry)?;
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

/// Far more events than there are slots for their times, made and dropped while the device works.
fn events_come_and_go_under_load(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let (add, slow) = (function(device, "add_one")?, function(device, "slow")?);
    let (x, y) = (device.alloc(4 * 64)?, device.alloc(4)?);
    queue.fill(&x.all(), 0)?;
    let mut kept = Vec::new();
    for round in 0..3000u32 {
        launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)])?;
        if round % 100 == 0 {
            launch(&*queue, &slow, 1, 1, &[operand(&y), Argument::U32(500)])?;
        }
        let event = queue.record()?;
        if round % 50 == 0 {
            kept.push(event);
        }
        if round % 500 == 499 {
            kept.last().expect("kept above").wait(None)?;
        }
    }
    assert_eq!(words(&*queue, &x)?, [3000; 64]);
    for pair in kept.windows(2) {
        assert!(pair[1].elapsed_since(&*pair[0])? > Duration::ZERO);
    }
    Ok(())
}

fn launches_allocate_nothing(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let (add, many) = (function(device, "add_one")?, function(device, "many")?);
    let (x, y) = (device.alloc(4 * 64)?, device.alloc(4 * 64)?);
    let long: Vec<_> = std::iter::once(operand(&y))
        .chain((0..40).map(Argument::U64))
        .collect();
    let enqueue = || {
        for _ in 0..50 {
            launch(&*queue, &add, 1, 64, &[operand(&x), Argument::U32(0)]).expect("a launch");
            launch(&*queue, &many, 1, 1, &long).expect("a launch");
        }
    };
    // What the driver allocates while it records is its own: the counter sees Rust's allocations only.
    for _ in 0..8 {
        enqueue();
        queue.synchronize(None)?;
    }
    let allocations = counting::allocations(enqueue);
    queue.synchronize(None)?;
    assert_eq!(allocations, 0, "100 launches");
    Ok(())
}

fn ten_thousand_launches_leak_nothing(device: &Arc<dyn Device>) -> Outcome {
    let add = function(device, "add_one")?;
    on_device::leaks_nothing(device, 4 << 20, |queue, x| {
        launch(queue, &add, 1, 64, &[operand(x), Argument::U32(0)])
    })
}

/// Set for the processes that [`validation_is_silent_and_awake`] starts, to the device's number and what to do.
const VALIDATED_CHILD: &str = "ROPEWAY_TEST_VALIDATED";

/// Under the Khronos validation layer, GPU-assisted: sound work gives no message, an access past the end of a buffer gives one.
fn validation_is_silent_and_awake(device: &Arc<dyn Device>) -> Outcome {
    if !layer_is_installed() {
        println!("skipped: the Khronos validation layer is not installed");
        return Ok(());
    }
    let settings = tempfile::tempdir()?;
    let enable = |features: &str| -> std::io::Result<std::path::PathBuf> {
        let path = settings.path().join("vk_layer_settings.txt");
        std::fs::write(
            &path,
            format!(
                "khronos_validation.enables = {features}\n\
                 khronos_validation.debug_action = VK_DBG_LAYER_ACTION_CALLBACK\n\
                 khronos_validation.report_flags = error,warn\n"
            ),
        )?;
        Ok(path)
    };
    let run = |what: &str, features: &str| -> Result<String, Failed> {
        let output = Command::new(std::env::current_exe()?)
            .env(VALIDATED_CHILD, format!("{} {what}", device.info().ordinal))
            .env("VK_INSTANCE_LAYERS", LAYER)
            .env("VK_LAYER_SETTINGS_PATH", enable(features)?)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(said),
            false => Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    };
    let said = run(
        "sound",
        "VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT",
    )?;
    assert!(said.contains("0 messages"), "{said}");
    // The layer itself computes addresses in 64 bits.
    if device.info().has("shaderInt64") {
        let gpu = "VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT";
        let said = run("sound", gpu)?;
        assert!(said.contains("0 messages"), "{said}");
        let said = run("out_of_bounds", gpu)?;
        assert!(said.contains("out of bounds"), "{said}");
    }
    Ok(())
}

const LAYER: &str = "VK_LAYER_KHRONOS_validation";

fn layer_is_installed() -> bool {
    ["/usr/share", "/usr/local/share", "/etc"]
        .iter()
        .flat_map(|root| std::fs::read_dir(format!("{root}/vulkan/explicit_layer.d")))
        .flatten()
        .flatten()
        .any(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(LAYER)))
}

fn validated_child(what: &str) {
    let (ordinal, what) = what.split_once(' ').expect("a number and a word");
    let ordinal = ordinal.parse().expect("a number");
    let device = VulkanDriver
        .open(ordinal, &OpenOptions::default())
        .expect("a device");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let x = device.alloc(4 * 64).expect("memory");
    let y = device.alloc(4 * 64).expect("memory");
    let add = function(&device, "add_one").expect("a function");
    queue.fill(&x.all(), 0).expect("a fill");
    // A MiB past the end of x, where the memory that it was given from goes on and no other buffer lies: nobody is harmed.
    let offset = if what == "sound" { 0 } else { 1 << 18 };
    for _ in 0..3 {
        let arguments = [operand(&x), Argument::U32(offset)];
        launch(&*queue, &add, 1, 64, &arguments).expect("a launch");
        queue.copy(&x.all(), &y.all()).expect("a copy");
    }
    let synchronized = queue.synchronize(None);
    if what == "sound" {
        assert_eq!(words(&*queue, &y).expect("a read")[63], 3);
    } else {
        let error = synchronized
            .as_ref()
            .expect_err("a fault that the layer reports");
        assert_eq!(error.kind(), ErrorKind::Driver);
    }
    drop((x, y, add, queue, device));
    let (count, first) = validation_messages();
    println!("{count} messages; {}", first.unwrap_or_default());
}
