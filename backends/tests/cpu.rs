//! The cpu device: memory of somebody else's as operands, where it lies.
#![cfg(feature = "cpu")]

use std::any::Any;
use std::sync::Arc;

use ropeway_backends::cpu::CpuDriver;
use ropeway_core::device::{Device, Driver, OpenOptions, Queue, QueueKind};
use ropeway_core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source};
use ropeway_core::memory::TensorDesc;
use ropeway_core::native::NativeCall;
use ropeway_core::plan::{
    Arg, Determinism, Executable, Extent, Form, Launch, OperandRule, Plan, StrideRule,
};
use ropeway_core::{Buffer, DType, ErrorKind, Result, View};

static SOURCES: [Source; 1] = [Source {
    language: Language::Native,
    code: Code::Native(&[("double", double)]),
    requires: &[],
}];

static DOUBLE: Kernel = Kernel {
    name: "double",
    summary: "y = 2 x.",
    version: 1,
    sources: &SOURCES,
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

fn double(call: &mut NativeCall<'_>) -> Result<()> {
    let x = call.read::<f32>()?;
    let y = call.write::<f32>()?;
    y.iter_mut().zip(x).for_each(|(y, x)| *y = 2.0 * x);
    Ok(())
}

fn open() -> (Arc<dyn Device>, Arc<dyn Queue>) {
    let device = CpuDriver
        .open(0, &OpenOptions::default())
        .expect("always there");
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    (device, queue)
}

/// y = 2 x over two vectors of `n` elements.
fn executable(device: &dyn Device, n: u64) -> Executable {
    let rule = |name, write| OperandRule {
        name,
        dtype: DType::F32,
        write,
        shape: vec![Extent::Exactly(n)],
        strides: vec![StrideRule::Exactly(1)],
        offset_multiple: 1,
        form: Form::Plain,
    };
    let mut plan = Plan::new("double", Determinism::BatchInvariant);
    plan.operands = vec![rule("x", false), rule("y", true)];
    let module = plan.module(ModuleKey {
        kernel: &DOUBLE,
        config: Config::default(),
    });
    plan.launches.push(Launch {
        module,
        entry: "double",
        grid: [1.into(), 1.into(), 1.into()],
        group: [1; 3],
        local_memory: 0,
        args: vec![Arg::operand(0), Arg::operand(1)],
    });
    let module = device.compile(&SOURCES[0], &Config::default());
    let function = module.and_then(|module| module.function("double"));
    Executable::new(plan, vec![function.expect("a native function")]).expect("a sound plan")
}

/// `n` elements of foreign memory from this address on.
fn import(
    device: &dyn Device,
    address: *mut u8,
    n: u64,
    owner: Option<Arc<dyn Any + Send + Sync>>,
) -> View {
    // SAFETY: the callers pass memory of at least this many elements, which outlives the queue's work.
    let buffer: Buffer =
        unsafe { device.import_memory(address.cast(), 4 * n, owner) }.expect("a host pointer");
    let desc = TensorDesc::contiguous(DType::F32, &[n]).expect("a small shape");
    buffer.view(desc, 0).expect("all of it")
}

#[test]
fn a_launch_reads_and_writes_foreign_memory_where_it_lies() {
    let (device, queue) = open();
    let mut x = [1.0f32, 2.0, 3.0, 4.0];
    let mut y = [0.0f32; 4];
    let owner: Arc<dyn Any + Send + Sync> = Arc::new(());
    {
        // The second element on: aligned to an element and to nothing more.
        let x = import(&*device, x[1..].as_mut_ptr().cast(), 3, Some(owner.clone()));
        let y = import(&*device, y[1..].as_mut_ptr().cast(), 3, Some(owner.clone()));
        let operands = [x, y];
        executable(&*device, 3)
            .enqueue(&*queue, &operands, None)
            .expect("a sound launch");
        queue.synchronize(None).expect("done");
    }
    assert_eq!(y, [0.0, 4.0, 6.0, 8.0]);
    assert_eq!(
        Arc::strong_count(&owner),
        1,
        "an import keeps its owner no longer than itself"
    );
}

#[test]
fn two_imports_that_overlap_are_found_out() {
    let (device, queue) = open();
    let mut x = [1.0f32, 2.0, 3.0, 4.0];
    let address = x.as_mut_ptr();
    let executable = executable(&*device, 3);
    let reads = import(&*device, address.cast(), 3, None);
    let writes = import(&*device, address.wrapping_add(1).cast(), 3, None);
    let both = [reads.clone(), writes.clone()];
    executable
        .enqueue(&*queue, &both, None)
        .expect("found out by the worker");
    let error = queue
        .synchronize(None)
        .expect_err("they share two elements");
    assert_eq!(error.kind(), ErrorKind::LaunchFailed);
    let copied = queue.copy(&reads.bytes(), &writes.bytes());
    assert_eq!(
        copied.expect_err("the same").kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn elements_that_are_not_aligned_and_null_pointers_are_refused() {
    let (device, queue) = open();
    let mut memory = [0.0f32; 8];
    let address = memory.as_mut_ptr().cast::<u8>();
    let odd = import(&*device, address.wrapping_add(2), 3, None);
    let even = import(&*device, address.wrapping_add(16), 3, None);
    let launched = executable(&*device, 3).enqueue(&*queue, &[odd, even], None);
    assert_eq!(
        launched.expect_err("half an element off").kind(),
        ErrorKind::InvalidArgument
    );
    // SAFETY: a null pointer is refused, not used.
    let null = unsafe { device.import_memory(std::ptr::null_mut(), 4, None) };
    assert_eq!(null.expect_err("null").kind(), ErrorKind::InvalidArgument);
}
