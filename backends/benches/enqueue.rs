//! What the host pays for enqueueing a planned launch, beside the driver's own share.
//!
//! The plan has one launch with four operands and eight scalars, which is about what a GEMM has. On the null device the time is all ours. On
//! OpenCL the same launch is also enqueued by bare `clSetKernelArg` and `clEnqueueNDRangeKernel`, on the same queue, which is
//! held back meanwhile, so that nothing runs beside the measurement. On Vulkan it is recorded by bare calls on a device of their own; a device that is
//! software works beside the host, so the best of many rounds counts. There, too: how long a device takes to open and to run its first
//! launch, beside an instance and a device made by bare calls.
//!
//! `cargo bench -p ropeway-backends --bench enqueue`

#![allow(unsafe_code)]

#[path = "vulkan/bare.rs"]
mod bare;
#[path = "vulkan/spirv.rs"]
mod spirv;

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

use cl3::{command_queue, event, kernel};
use ropeway_backends::null::{NullDriver, recording};
use ropeway_backends::opencl::{OpenClDriver, context};
use ropeway_backends::vulkan::VulkanDriver;
use ropeway_core::device::{Device, Driver, OpenOptions, Queue, QueueKind};
use ropeway_core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{
    Arg, Determinism, Executable, Expr, Extent, Form, Launch, OperandRule, Plan, StrideRule, Symbol,
};
use ropeway_core::{DType, Result, View};

/// Launches a round.
const LAUNCHES: u32 = 500;
const ROUNDS: usize = 40;

const TEXT: &str = "__kernel void touch(__global float* a, ulong a_offset, __global float* b, ulong b_offset, \
    __global float* c, ulong c_offset, __global float* d, ulong d_offset, \
    uint m, uint n, uint k, ulong lda, ulong ldb, ulong ldd, float alpha, float beta) { if (m == 0) d[d_offset] = alpha; }";

static SOURCES: [Source; 2] = [
    Source {
        language: Language::OpenClC,
        code: Code::Text(&[("touch.cl", TEXT)]),
        requires: &[],
    },
    Source {
        language: Language::SpirV,
        code: Code::Binaries(spirv::TOUCH),
        requires: &[],
    },
];

/// For bare calls.
const TOUCH_SPIRV: &[u8] = include_bytes!("vulkan/spirv/touch.spv");

static TOUCH: Kernel = Kernel {
    name: "touch",
    summary: "Takes the arguments of a GEMM and does nothing.",
    version: 1,
    sources: &SOURCES,
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

fn executable(device: &dyn Device) -> Result<Executable> {
    let mut plan = Plan::new("touch", Determinism::BatchInvariant);
    plan.symbols.push(Symbol { name: "m", max: 64 });
    for (name, write) in [("a", false), ("b", false), ("c", false), ("d", true)] {
        plan.operands.push(OperandRule {
            name,
            dtype: DType::F32,
            write,
            shape: vec![
                Extent::Varies {
                    symbol: 0,
                    times: 1,
                    plus: 0,
                },
                Extent::Exactly(64),
            ],
            strides: vec![StrideRule::Any, StrideRule::Exactly(1)],
            offset_multiple: 1,
            form: Form::Plain,
        });
    }
    let module = plan.module(ModuleKey {
        kernel: &TOUCH,
        config: Config::default(),
    });
    let mut args: Vec<Arg> = (0..4).map(Arg::operand).collect();
    args.extend([
        Arg::U32(Expr::extent(0, 0)),
        Arg::U32(Expr::extent(1, 1)),
        Arg::U32(Expr::extent(0, 1)),
    ]);
    args.extend([0, 1, 3].map(|operand| Arg::U64(Expr::stride(operand, 0))));
    args.extend([Arg::F32(1.0), Arg::F32(0.0)]);
    plan.launches.push(Launch {
        module,
        entry: "touch",
        grid: [Expr::extent(0, 0).div_ceil(64), 1.into(), 1.into()],
        group: [1, 1, 1],
        local_memory: 0,
        args,
    });
    let module = device.compile(TOUCH.source_for(device.info())?, &Config::default())?;
    Executable::new(plan, vec![module.function("touch")?])
}

fn operands(device: &dyn Device) -> Result<Vec<View>> {
    let desc = TensorDesc::contiguous(DType::F32, &[32, 64])?;
    (0..4)
        .map(|_| device.alloc(desc.span_bytes()?)?.view(desc, 0))
        .collect()
}

/// The best round's time for one launch in nanoseconds; `hold` holds the queue back until its result is dropped.
fn best<T>(hold: impl Fn() -> T, mut enqueue: impl FnMut(), finish: impl Fn()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let held = hold();
        let begin = Instant::now();
        for _ in 0..LAUNCHES {
            enqueue();
        }
        best = best.min(begin.elapsed().as_nanos() as f64 / f64::from(LAUNCHES));
        drop(held);
        finish();
    }
    best
}

/// A command at the head of the queue that waits until this is dropped.
struct Hold(usize);

impl Hold {
    fn new(context: *mut c_void, queue: *mut c_void) -> Hold {
        let gate = event::create_user_event(context).expect("clCreateUserEvent");
        // SAFETY: a valid queue and a list of one valid event.
        let barrier = unsafe { command_queue::enqueue_barrier_with_wait_list(queue, 1, &gate) };
        // SAFETY: the one count of the event.
        unsafe { event::release_event(barrier.expect("clEnqueueBarrierWithWaitList")) }
            .expect("clReleaseEvent");
        Hold(gate as usize)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let gate = self.0 as *mut c_void;
        event::set_user_event_status(gate, event::CL_COMPLETE).expect("clSetUserEventStatus");
        // SAFETY: the one count of the event.
        unsafe { event::release_event(gate) }.expect("clReleaseEvent");
    }
}

/// Device 0: bare calls, then ours, on one queue.
fn opencl() -> Result<(f64, f64)> {
    let device = OpenClDriver.open(0, &OpenOptions::default())?;
    let context = context(&*device).expect("an OpenCL device");
    let devices = cl3::context::get_context_info(context, cl3::context::CL_CONTEXT_DEVICES)
        .expect("clGetContextInfo");
    let id = Vec::<isize>::from(devices)[0] as *mut c_void;
    // SAFETY: the context's own device.
    #[allow(deprecated)]
    let raw = unsafe {
        command_queue::create_command_queue(context, id, command_queue::CL_QUEUE_PROFILING_ENABLE)
    };
    let raw = raw.expect("clCreateCommandQueue");
    // SAFETY: a valid queue, which lives as long as this process.
    let queue: Arc<dyn Queue> = unsafe { device.import_queue(raw, None) }?;
    let (executable, views) = (executable(&*device)?, operands(&*device)?);
    executable.enqueue(&*queue, &views, None)?;
    queue.synchronize(None)?;

    let program = cl3::program::create_program_with_source(context, &[TEXT])
        .expect("clCreateProgramWithSource");
    cl3::program::build_program(program, &[id], c"-cl-std=CL1.2", None, ptr::null_mut())
        .expect("clBuildProgram");
    let touch = kernel::create_kernel(program, c"touch").expect("clCreateKernel");
    let buffers: Vec<*mut c_void> = (0..4)
        // SAFETY: no host pointer.
        .map(|_| unsafe {
            cl3::memory::create_buffer(
                context,
                cl3::memory::CL_MEM_READ_WRITE,
                8192,
                ptr::null_mut(),
            )
        })
        .map(|buffer| buffer.expect("clCreateBuffer"))
        .collect();
    let library = cl3::load_library().as_ref().expect("loaded");
    let set = |index: u32, size: usize, value: *const c_void| {
        #[allow(unused_unsafe)]
        // SAFETY: the sizes are those of the kernel's arguments.
        let code = unsafe { library.clSetKernelArg(touch, index, size, value) };
        assert_eq!(code, Some(0));
    };
    let bare = || {
        for (index, buffer) in buffers.iter().enumerate() {
            set(2 * index as u32, 8, ptr::from_ref(buffer).cast());
            set(2 * index as u32 + 1, 8, ptr::from_ref(&0u64).cast());
        }
        for index in 8..11 {
            set(index, 4, ptr::from_ref(&32u32).cast());
        }
        for index in 11..14 {
            set(index, 8, ptr::from_ref(&64u64).cast());
        }
        for index in 14..16 {
            set(index, 4, ptr::from_ref(&1f32).cast());
        }
        let (global, local) = ([1usize; 3], [1usize; 3]);
        let (global, local) = (global.as_ptr(), local.as_ptr());
        #[allow(unused_unsafe)]
        // SAFETY: all arguments are set; three sizes each; no events.
        let code = unsafe {
            library.clEnqueueNDRangeKernel(
                raw,
                touch,
                3,
                ptr::null(),
                global,
                local,
                0,
                ptr::null(),
                ptr::null_mut(),
            )
        };
        assert_eq!(code, Some(0));
    };
    let hold = || Hold::new(context, raw);
    let finish = || command_queue::finish(raw).expect("clFinish");
    best(hold, bare, finish);
    let bare = best(hold, bare, finish);
    let ours = best(
        hold,
        || executable.enqueue(&*queue, &views, None).expect("a launch"),
        finish,
    );
    Ok((bare, ours))
}

/// Device 0: bare calls, then ours, each on a device of its own; and the milliseconds of opening one and of its first launch.
fn vulkan() -> Result<()> {
    let begin = Instant::now();
    let device = VulkanDriver.open(0, &OpenOptions::default())?;
    let opened = begin.elapsed();
    let queue = device.create_queue(QueueKind::Compute)?;
    let (executable, views) = (executable(&*device)?, operands(&*device)?);
    executable.enqueue(&*queue, &views, None)?;
    queue.synchronize(None)?;
    let first = begin.elapsed();
    let begin = Instant::now();
    let bare = bare::Bare::new().expect("a device by bare calls");
    let started = begin.elapsed();
    println!(
        "{}: opened in {opened:.1?}, first launch done after {first:.1?}; by bare calls a device and a pipeline take {started:.1?}",
        device.info().name
    );
    let bare = RefCell::new(bare);
    let launch = || bare.borrow_mut().launch();
    let finish = || bare.borrow_mut().finish();
    best(|| (), launch, finish);
    let by_bare = best(|| (), launch, finish);
    let ours = best(
        || (),
        || executable.enqueue(&*queue, &views, None).expect("a launch"),
        || queue.synchronize(None).expect("done"),
    );
    println!(
        "{}: {by_bare:.0} ns by bare calls, {ours:.0} ns by Executable::enqueue: {:+.0} ns",
        device.info().name,
        ours - by_bare
    );
    Ok(())
}

fn null() -> Result<f64> {
    let device = NullDriver.open(0, &OpenOptions::default())?;
    recording(&*device).expect("a null device").pause();
    let queue = device.create_queue(QueueKind::Compute)?;
    let (executable, views) = (executable(&*device)?, operands(&*device)?);
    Ok(best(
        || (),
        || executable.enqueue(&*queue, &views, None).expect("a launch"),
        || (),
    ))
}

fn main() -> Result<()> {
    println!("null device: {:.0} ns a launch", null()?);
    match OpenClDriver.probe() {
        Ok(devices) => {
            let (bare, ours) = opencl()?;
            println!(
                "{}: {bare:.0} ns by bare calls, {ours:.0} ns by Executable::enqueue: {:+.0} ns",
                devices[0].name,
                ours - bare
            );
        }
        Err(reason) => println!("OpenCL: skipped, {reason}"),
    }
    match VulkanDriver.probe() {
        Ok(_) => vulkan()?,
        Err(reason) => println!("Vulkan: skipped, {reason}"),
    }
    Ok(())
}
