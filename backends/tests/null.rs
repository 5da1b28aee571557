//! The null device: copies that do what they say, launches that are recorded as the plan wants them.
#![cfg(feature = "null")]

mod counting;

use std::sync::Arc;

use ropeway_backends::null::{Call, NullDriver, Place, RecordedArgument, Recording, recording};
use ropeway_core::device::{Device, Driver, OpenOptions, QueueKind};
use ropeway_core::kernel::{Code, Config, Kernel, Language, ModuleKey, Source};
use ropeway_core::memory::TensorDesc;
use ropeway_core::plan::{
    Arg, BoundPlan, Determinism, Executable, Expr, Extent, Form, Launch, OperandRule, Plan,
    StrideRule, Symbol,
};
use ropeway_core::{DType, ErrorKind, View};

static SOURCES: [Source; 1] = [Source {
    language: Language::OpenClC,
    code: Code::Text(&[(
        "scale.cl",
        "__kernel void scale(__global float* x, ulong x_offset, uint n, float by) {}",
    )]),
    requires: &[],
}];

static SCALE: Kernel = Kernel {
    name: "scale",
    summary: "x *= by.",
    version: 1,
    sources: &SOURCES,
    tunables: &[],
    constraints: &[],
    local_memory: |_| 0,
};

fn open() -> Arc<dyn Device> {
    NullDriver
        .open(0, &OpenOptions::default())
        .expect("always there")
}

fn calls(device: &Arc<dyn Device>) -> &Recording {
    recording(&**device).expect("a null device")
}

/// Scales the n elements of its one operand, in groups of 64.
fn executable(device: &Arc<dyn Device>) -> Arc<Executable> {
    let mut plan = Plan::new("scale", Determinism::BatchInvariant);
    plan.symbols.push(Symbol {
        name: "n",
        max: 1000,
    });
    plan.operands.push(OperandRule {
        name: "x",
        dtype: DType::F32,
        write: true,
        shape: vec![Extent::Varies {
            symbol: 0,
            times: 1,
            plus: 0,
        }],
        strides: vec![StrideRule::Exactly(1)],
        offset_multiple: 1,
        form: Form::Plain,
    });
    let module = plan.module(ModuleKey {
        kernel: &SCALE,
        config: Config::default(),
    });
    plan.launches.push(Launch {
        module,
        entry: "scale",
        grid: [Expr::extent(0, 0).div_ceil(64), 1.into(), 1.into()],
        group: [64, 1, 1],
        local_memory: 0,
        args: vec![Arg::operand(0), Arg::U32(Expr::extent(0, 0)), Arg::F32(0.5)],
    });
    let source = SCALE.source_for(device.info()).expect("OpenCL C");
    let module = device
        .compile(source, &Config::default())
        .expect("null compiles all");
    let function = module.function("scale").expect("the entry");
    Arc::new(Executable::new(plan, vec![function]).expect("one function, one launch"))
}

fn view(device: &Arc<dyn Device>, elements: u64, offset: u64) -> View {
    let buffer = device.alloc(4 * (elements + offset)).expect("memory");
    let desc = TensorDesc::contiguous(DType::F32, &[elements]).expect("a shape");
    buffer.view(desc, offset).expect("within the buffer")
}

#[test]
fn copies_do_what_they_say() {
    let device = open();
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let (a, b) = (
        device.alloc(8).expect("memory"),
        device.alloc(8).expect("memory"),
    );
    queue.fill(&a.all(), 1).expect("a fill");
    queue
        .upload(&a.slice(2, 3).expect("a range"), &[7, 8, 9])
        .expect("an upload");
    queue
        .copy(
            &a.slice(0, 5).expect("a range"),
            &b.slice(3, 5).expect("a range"),
        )
        .expect("a copy");
    let mut bytes = [0xff; 8];
    queue.read_blocking(&b.all(), &mut bytes).expect("a read");
    assert_eq!(bytes, [0, 0, 0, 1, 1, 7, 8, 9]);
    let pinned = device.alloc_pinned(9).expect("memory");
    let pinned = queue
        .download(&a.all(), pinned)
        .expect("a download")
        .finish()
        .expect("done");
    assert_eq!(pinned.bytes(), [1, 1, 7, 8, 9, 1, 1, 1, 0]);
    let overlapping = queue.copy(
        &a.slice(0, 5).expect("a range"),
        &a.slice(4, 4).expect("a range"),
    );
    assert_eq!(
        overlapping.expect_err("lengths differ").kind(),
        ErrorKind::InvalidArgument
    );
    let overlapping = queue.copy(
        &a.slice(0, 5).expect("a range"),
        &a.slice(3, 5).expect("a range"),
    );
    assert_eq!(
        overlapping.expect_err("they overlap").kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn launches_are_recorded_as_planned() {
    let device = open();
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let executable = executable(&device);
    let x = view(&device, 130, 5);
    calls(&device).clear();
    executable
        .enqueue(&*queue, &[x], None)
        .expect("a sound launch");
    let found = calls(&device).calls();
    let [
        Call::Launch {
            entry,
            grid,
            group,
            arguments,
            ..
        },
    ] = &found[..]
    else {
        panic!("one launch, not {found:?}");
    };
    assert_eq!(
        (entry.as_str(), *grid, *group),
        ("scale", [3, 1, 1], [64, 1, 1])
    );
    let RecordedArgument::Buffer {
        place: Place { offset, bytes, .. },
        element,
        dtype,
        write,
    } = arguments[0]
    else {
        panic!("a buffer, not {:?}", arguments[0]);
    };
    assert_eq!(
        (offset, bytes, element, dtype, write),
        (20, 520, 5, DType::F32, true)
    );
    assert_eq!(
        arguments[1..],
        [RecordedArgument::U32(130), RecordedArgument::F32(0.5)]
    );
}

#[test]
fn graphs_replay_rebind_and_refuse() {
    let device = open();
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let bound = BoundPlan {
        executable: executable(&device),
        operands: vec![view(&device, 64, 0)],
        workspace: None,
    };
    let graph = device
        .instantiate(vec![bound.clone(), bound])
        .expect("a graph");
    graph
        .rebind(1, &[(0, view(&device, 640, 0))])
        .expect("within the plan's maximum");
    let refused = graph
        .rebind(1, &[(0, view(&device, 1001, 0))])
        .expect_err("beyond the maximum");
    assert!(refused.to_string().contains('x'), "{refused}");
    calls(&device).clear();
    queue.replay(&*graph).expect("a replay");
    let grids: Vec<_> = calls(&device)
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Launch { grid, .. } => Some(grid[0]),
            _ => None,
        })
        .collect();
    assert_eq!(grids, [1, 10]);
    let other = open();
    let foreign = other.create_queue(QueueKind::Compute).expect("a queue");
    assert_eq!(
        foreign.replay(&*graph).expect_err("another device").kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn objects_of_another_device_are_refused() {
    let (device, other) = (open(), open());
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let foreign = other.alloc(4).expect("memory");
    let event = other
        .create_queue(QueueKind::Compute)
        .expect("a queue")
        .record()
        .expect("an event");
    for result in [
        queue.fill(&foreign.all(), 0),
        queue.upload(&foreign.all(), &[0; 4]),
        queue.wait(&event),
        executable(&other).enqueue(&*queue, &[view(&device, 4, 0)], None),
    ] {
        assert_eq!(
            result.expect_err("another device's").kind(),
            ErrorKind::InvalidArgument
        );
    }
}

#[test]
fn memory_is_counted_and_bounded() {
    let device = open();
    let before = device.memory().expect("always");
    let refused = device
        .alloc(before.total + 1)
        .expect_err("more than there is");
    assert_eq!(refused.kind(), ErrorKind::OutOfMemory);
    let buffer = device
        .alloc(before.total / 2)
        .expect("half of it, unwritten");
    assert_eq!(device.memory().expect("always").used, before.total / 2);
    drop(buffer);
    assert_eq!(device.memory().expect("always").used, 0);
}

#[test]
fn a_recording_keeps_the_latest_calls_and_can_pause() {
    let device = open();
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    calls(&device).clear();
    for _ in 0..70_000 {
        queue.flush().expect("always");
    }
    assert_eq!(calls(&device).calls().len(), 65_536);
    assert_eq!(calls(&device).forgotten(), 70_000 - 65_536);
    calls(&device).clear();
    calls(&device).pause();
    queue.flush().expect("always");
    calls(&device).resume();
    queue.synchronize(None).expect("always");
    assert_eq!(calls(&device).calls().len(), 1);
}

#[test]
fn an_entry_must_be_in_the_source() {
    let device = open();
    let module = device
        .compile(&SOURCES[0], &Config::default())
        .expect("null compiles all");
    let missing = module.function("scale_all").err().expect("no such entry");
    assert!(missing.to_string().contains("scale_all"), "{missing}");
}

#[test]
fn enqueueing_allocates_nothing_while_the_recording_is_paused() {
    let device = open();
    let queue = device.create_queue(QueueKind::Compute).expect("a queue");
    let (executable, views) = (executable(&device), [view(&device, 130, 5)]);
    let enqueue = || {
        executable
            .enqueue(&*queue, &views, None)
            .expect("a sound launch");
    };
    assert!(
        counting::allocations(enqueue) > 0,
        "a recorded launch is kept"
    );
    calls(&device).pause();
    assert_eq!(
        counting::allocations(|| (0..100).for_each(|_| enqueue())),
        0
    );
}
