//! What can only be tested from inside: a device that is lost, a barrier that is left out.

use std::any::Any;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ropeway_core::ErrorKind;
use ropeway_core::device::{Argument, Device, Driver, LaunchCall, OpenOptions, Queue, QueueKind};
use ropeway_core::kernel::{Binary, Code, Config, Language, Source};
use ropeway_core::{Buffer, DType};

use super::device::VulkanDevice;
use super::queue::VulkanQueue;
use super::sys::error;
use super::{VulkanDriver, vk};

/// The first device, if there is any.
pub(super) fn opened() -> Option<Arc<VulkanDevice>> {
    match VulkanDriver.open(0, &OpenOptions::default()) {
        Ok(device) => {
            let device: Arc<dyn Any + Send + Sync> = device;
            Some(device.downcast().expect("ours"))
        }
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

static SLOW: Source = Source {
    language: Language::SpirV,
    code: Code::Binaries(&[Binary {
        entry: "slow",
        dtypes: &[],
        constants: &[],
        code: include_bytes!("../tests/vulkan/spirv/kernels.slow.spv"),
    }]),
    requires: &[],
};

/// Some 200 ms of work.
fn keep_busy(device: &VulkanDevice, queue: &dyn Queue, x: &Buffer) {
    let module = device.compile(&SLOW, &Config::default()).expect("a module");
    let function = module.function("slow").expect("a function");
    let operand = Argument::Buffer {
        buffer: x,
        offset: 0,
        dtype: DType::I32,
        bytes: 4,
        write: true,
    };
    for _ in 0..8 {
        // SAFETY: the arguments are the kernel's, and the buffer has room for the word that it writes.
        unsafe {
            queue.launch(&LaunchCall {
                function: &function,
                grid: [1; 3],
                group: [1; 3],
                local_memory: 0,
                arguments: &[operand, Argument::U32(50_000)],
            })
        }
        .expect("a launch");
    }
}

#[test]
fn a_lost_device_wakes_its_waiters_and_fails_every_call_with_its_cause() {
    let Some(device) = opened() else { return };
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let other = device.create_queue(QueueKind::Compute).expect("a queue");
    let buffer = device.alloc(4).expect("memory");
    keep_busy(&device, &*queue, &buffer);
    let event = queue.record().expect("an event");
    let shared = &device.shared;
    // Any other failure passes through and leaves the device as it is.
    shared.note(error("vkAllocateMemory", vk::Result::ERROR_OUT_OF_DEVICE_MEMORY));
    shared.alive().expect("not lost");
    let cause = std::thread::scope(|scope| {
        let waiters = [
            scope.spawn(|| event.wait(None)),
            scope.spawn(|| queue.synchronize(None)),
            scope.spawn(|| queue.read_blocking(&buffer.all(), &mut [0; 4])),
        ];
        std::thread::sleep(Duration::from_millis(20));
        let cause = shared.note(error("vkQueueSubmit", vk::Result::ERROR_DEVICE_LOST));
        shared.note(error("vkWaitSemaphores", vk::Result::ERROR_DEVICE_LOST));
        let begin = Instant::now();
        for waiter in waiters {
            let woken = waiter.join().expect("no panic");
            // One may just have been done.
            if let Err(error) = woken {
                assert_eq!(error, cause);
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(1));
        cause
    });
    let any_event: Arc<dyn ropeway_core::device::Event> = event.clone();
    for error in [
        device.alloc(4).err(),
        device.memory().err(),
        device.create_queue(QueueKind::Compute).err(),
        device.alloc_pinned(4).err(),
        device.compile(&SLOW, &Config::default()).err(),
        device.instantiate(Vec::new()).err(),
        queue.fill(&buffer.all(), 0).err(),
        queue.upload(&buffer.all(), &[0; 4]).err(),
        queue.read_blocking(&buffer.all(), &mut [0; 4]).err(),
        queue.copy(&buffer.all(), &buffer.all()).err(),
        queue.record().err(),
        queue.synchronize(None).err(),
        queue.flush().err(),
        other.wait(&any_event).err(),
        event.wait(None).err(),
        event.is_done().err(),
    ] {
        assert_eq!(error.expect("the device is lost"), cause);
    }
    drop((queue, other, event, any_event, buffer, device));
    let again = opened().expect("a new device can be opened");
    let queue = again.create_queue(QueueKind::Compute).expect("a queue");
    let buffer = again.alloc(4).expect("memory");
    queue.upload(&buffer.all(), &[7; 4]).expect("an upload");
    let mut found = [0; 4];
    queue.read_blocking(&buffer.all(), &mut found).expect("a read");
    assert_eq!(found, [7; 4]);
}

/// Set for the process that [`a_missing_barrier_is_reported`] starts.
const CHILD: &str = "ROPEWAY_TEST_BARRIERS";

#[test]
#[ignore = "a process of a_missing_barrier_is_reported, which starts it"]
fn fills_twice() {
    let barriers = std::env::var(CHILD).expect("set by the test that starts this") == "1";
    let device = opened().expect("a device");
    let queue = VulkanQueue::new(&device.shared, QueueKind::Compute).expect("a queue");
    let x = device.alloc(1 << 20).expect("memory");
    queue.core().lock().hazards.barriers = barriers;
    for byte in [1, 2] {
        queue.fill(&x.all(), byte).expect("a fill");
    }
    match queue.synchronize(None) {
        Ok(()) => println!("nothing reported"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Driver);
            println!("{error}");
        }
    }
}

/// The validation layer watches, and it is the barriers that keep it silent.
#[test]
fn a_missing_barrier_is_reported() {
    let installed = std::path::Path::new("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json").exists();
    if opened().is_none() || !installed {
        return println!("skipped: no device, or no Khronos validation layer");
    }
    let settings = tempfile::tempdir().expect("a temporary directory");
    let file = settings.path().join("vk_layer_settings.txt");
    let text = "khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT\n\
                khronos_validation.debug_action = VK_DBG_LAYER_ACTION_CALLBACK\n";
    std::fs::write(&file, text).expect("a file");
    for (barriers, expected) in [("1", "nothing reported"), ("0", "SYNC-HAZARD-WRITE-AFTER-WRITE")] {
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["vulkan::tests::fills_twice", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, barriers)
            .env("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation")
            .env("VK_LAYER_SETTINGS_PATH", &file)
            .output()
            .expect("a process");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(expected), "{said}");
    }
}
