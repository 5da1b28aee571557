//! Contexts, streams, events, capture: what comes after what, and on which thread.

mod harness;

use harness::{Cann, D2D, H2D, out};

const SYNC: u64 = 1;
const TIMED: u64 = 8;

#[test]
fn nothing_works_before_init_but_counting() {
    let cann = Cann::open("9.0");
    let mut count = 0u32;
    cann.ok("aclrtGetDeviceCount", &[out(&mut count)]);
    assert_eq!(count, 1);
    cann.breach(100001, "aclInit was not called", "aclrtSetDevice", &[0]);
    cann.ok("aclInit", &[0]);
    cann.fails(100002, "aclInit", &[0]);
    cann.ok("aclFinalize", &[]);
    cann.breach(100001, "aclInit was not called", "aclrtSetDevice", &[0]);
}

#[test]
fn initialisations_are_counted() {
    let cann = Cann::open("9.0");
    cann.breach(
        100001,
        "aclInit was not called",
        "aclFinalizeReference",
        &[0],
    );
    cann.ok("aclInit", &[0]);
    cann.fails(100002, "aclInit", &[0]);
    let mut left = 9u64;
    cann.ok("aclFinalizeReference", &[out(&mut left)]);
    assert_eq!(left, 1);
    cann.ok("aclrtSetDevice", &[0]);
    let device = cann.malloc(64);
    cann.ok("aclrtFree", &[device]);
    cann.ok("aclFinalizeReference", &[0]);
    cann.breach(100001, "aclInit was not called", "aclrtSetDevice", &[0]);
    // aclFinalize takes all back at once.
    cann.ok("aclInit", &[0]);
    cann.fails(100002, "aclInit", &[0]);
    cann.ok("aclFinalize", &[]);
    cann.breach(100001, "aclInit was not called", "aclrtSetDevice", &[0]);
}

#[test]
fn contexts_are_destroyed_with_their_streams() {
    let cann = Cann::ready();
    let primary = cann.make("aclrtGetCurrentContext", &[]);
    cann.breach(
        107000,
        "aclrtResetDevice",
        "aclrtDestroyContext",
        &[primary],
    );
    let second = cann.make("aclrtCreateContext", &[0]);
    let stream = cann.stream();
    cann.ok("aclrtDestroyContext", &[second]);
    let mut place = 0u64;
    cann.breach(
        107002,
        "on this thread",
        "aclrtMalloc",
        &[out(&mut place), 64, 0],
    );
    cann.breach(107017, "or no longer", "aclrtDestroyContext", &[second]);
    cann.ok("aclrtSetCurrentContext", &[primary]);
    cann.breach(107017, "or no longer", "aclrtSynchronizeStream", &[stream]);
    cann.malloc(64);
}

#[test]
fn each_thread_needs_a_context_of_its_own() {
    let cann = Cann::ready();
    let mut place = 0u64;
    let place = out(&mut place);
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                cann.breach(107002, "on this thread", "aclrtMalloc", &[place, 64, 0]);
                cann.breach(
                    107002,
                    "on this thread",
                    "aclrtGetMemInfo",
                    &[1, place, place],
                );
                cann.breach(107002, "on this thread", "aclrtCreateStream", &[place]);
                cann.breach(107002, "on this thread", "aclrtSynchronizeDevice", &[]);
                cann.breach(107002, "on this thread", "aclrtSynchronizeStream", &[0]);
                cann.ok("aclrtSetDevice", &[0]);
                cann.malloc(64);
            })
            .join()
            .unwrap();
    });
    cann.fails(107001, "aclrtSetDevice", &[5]);
    cann.fails(107001, "aclrtSetDevice", &[u64::from(u32::MAX)]);
}

#[test]
fn streams_belong_to_their_context() {
    let cann = Cann::ready();
    let first = cann.make("aclrtGetCurrentContext", &[]);
    let stream = cann.stream();
    let event = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    let second = cann.make("aclrtCreateContext", &[0]);
    assert_ne!(first, second);
    let device = cann.malloc(64);
    for (name, arguments) in [
        ("aclrtSynchronizeStream", &[stream][..]),
        ("aclrtMemsetAsync", &[device, 64, 0, 64, stream]),
        ("aclrtRecordEvent", &[event, stream]),
        ("aclrtStreamWaitEvent", &[stream, event]),
        ("aclrtDestroyStream", &[stream]),
    ] {
        cann.breach(107003, "another context", name, arguments);
    }
    cann.ok("aclrtSetCurrentContext", &[first]);
    cann.synchronize(stream);
    cann.ok("aclrtDestroyStream", &[stream]);
    cann.breach(107017, "no longer", "aclrtSynchronizeStream", &[stream]);
    cann.breach(107017, "no stream", "aclrtSynchronizeStream", &[event]);
    cann.breach(107017, "never", "aclrtSynchronizeStream", &[0x7fff_ffff]);
}

#[test]
fn reset_takes_everything() {
    let cann = Cann::ready();
    cann.malloc(64);
    cann.stream();
    cann.ok("aclrtSetDevice", &[0]);
    cann.ok("aclrtResetDevice", &[0]);
    assert_eq!(cann.living().len(), 2, "there was a second aclrtSetDevice");
    cann.ok("aclrtResetDevice", &[0]);
    assert_eq!(cann.living(), [""; 0]);
    let mut place = 0u64;
    let place = out(&mut place);
    assert_eq!(cann.call("aclrtMalloc", &[place, 64, 0]), 107002);
    cann.breached("aclrtMalloc: 107002");
    cann.breach(107002, "was not set", "aclrtResetDevice", &[0]);
}

/// Two streams write one value each, many times; without an event between them either may be last.
fn last_values(cann: &Cann, ordered: bool) -> Vec<u8> {
    let (first, second) = (cann.stream(), cann.stream());
    let device = cann.malloc(1);
    let event = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    let values = (0..100)
        .map(|_| {
            cann.ok("aclrtMemsetAsync", &[device, 1, 1, 1, first]);
            if ordered {
                cann.ok("aclrtRecordEvent", &[event, first]);
                cann.ok("aclrtStreamWaitEvent", &[second, event]);
            }
            cann.ok("aclrtMemsetAsync", &[device, 1, 2, 1, second]);
            cann.synchronize(first);
            cann.synchronize(second);
            cann.download(device, 1)[0]
        })
        .collect();
    cann.ok("aclrtFree", &[device]);
    assert_eq!(cann.breaches(), [""; 0]);
    values
}

#[test]
fn only_events_order_streams() {
    let cann = Cann::ready();
    assert_eq!(last_values(&cann, true), [2; 100]);
    let by_chance = last_values(&cann, false);
    assert!(by_chance.contains(&1) && by_chance.contains(&2));
}

#[test]
fn what_a_stream_waited_for_is_known_with_it() {
    let cann = Cann::ready();
    let (first, second) = (cann.stream(), cann.stream());
    let device = cann.malloc(64);
    let event = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, first]);
    cann.ok("aclrtRecordEvent", &[event, first]);
    cann.ok("aclrtStreamWaitEvent", &[second, event]);
    cann.synchronize(second);
    cann.ok("aclrtFree", &[device]);
    assert_eq!(cann.breaches(), [""; 0]);

    let device = cann.malloc(64);
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, first]);
    cann.ok("aclrtRecordEvent", &[event, first]);
    let mut done = 0u32;
    while done == 0 {
        cann.ok("aclrtQueryEventStatus", &[event, out(&mut done)]);
    }
    cann.ok("aclrtFree", &[device]);
    assert_eq!(cann.breaches(), [""; 0]);
}

#[test]
fn events_do_what_they_were_made_for() {
    let cann = Cann::ready();
    let stream = cann.stream();
    let plain = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    let (start, end) = (
        cann.make("aclrtCreateEventExWithFlag", &[TIMED]),
        cann.make("aclrtCreateEventExWithFlag", &[TIMED]),
    );
    let mut done = 7u32;
    cann.ok("aclrtQueryEventStatus", &[plain, out(&mut done)]);
    assert_eq!(done, 0);
    cann.breach(
        107000,
        "never recorded",
        "aclrtStreamWaitEvent",
        &[stream, plain],
    );
    cann.breach(107000, "never recorded", "aclrtSynchronizeEvent", &[plain]);
    cann.breach(
        107000,
        "ACL_EVENT_SYNC",
        "aclrtStreamWaitEvent",
        &[stream, start],
    );
    let mut milliseconds = 0f32;
    cann.breach(
        107000,
        "ACL_EVENT_TIME_LINE",
        "aclrtEventElapsedTime",
        &[out(&mut milliseconds), plain, start],
    );
    let (device, host) = (cann.malloc(64), cann.pinned(64).as_ptr() as u64);
    // The second piece of work is late.
    cann.fault("stall:2=30");
    cann.ok("aclrtRecordEvent", &[start, stream]);
    cann.ok("aclrtMemcpyAsync", &[device, 64, host, 64, H2D, stream]);
    cann.ok("aclrtRecordEvent", &[end, stream]);
    cann.breach(
        107000,
        "not reached",
        "aclrtEventElapsedTime",
        &[out(&mut milliseconds), start, end],
    );
    cann.ok("aclrtSynchronizeEvent", &[end]);
    cann.ok(
        "aclrtEventElapsedTime",
        &[out(&mut milliseconds), start, end],
    );
    assert!((30.0..5000.0).contains(&milliseconds), "{milliseconds}");
    cann.breach(
        107000,
        "event flags 0x40",
        "aclrtCreateEventExWithFlag",
        &[out(&mut done), 0x40],
    );
}

#[test]
fn waits_end_in_time() {
    let cann = Cann::ready();
    let stream = cann.stream();
    let device = cann.malloc(64);
    cann.fault("stall:1=300");
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, stream]);
    cann.fails(507046, "aclrtSynchronizeStreamWithTimeout", &[stream, 20]);
    cann.ok("aclrtSynchronizeStreamWithTimeout", &[stream, 10_000]);
    cann.ok(
        "aclrtSynchronizeStreamWithTimeout",
        &[stream, u64::from(u32::MAX)],
    );
    cann.breach(
        107000,
        "timeout 0",
        "aclrtSynchronizeStreamWithTimeout",
        &[stream, 0],
    );
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, stream]);
    cann.ok("aclrtDestroyStream", &[stream]);
    cann.breached("destroyed with work that was not waited for");
}

#[test]
fn a_capture_is_run_as_often_as_it_is_asked_for() {
    let cann = Cann::ready();
    let (stream, side) = (cann.stream(), cann.stream());
    let (first, second) = (cann.malloc(64), cann.malloc(64));
    let fork = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    let join = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    cann.ok("aclmdlRICaptureBegin", &[stream, 0]);
    cann.ok("aclrtMemcpyAsync", &[second, 32, first, 32, D2D, stream]);
    cann.ok("aclrtRecordEvent", &[fork, stream]);
    cann.ok("aclrtStreamWaitEvent", &[side, fork]);
    cann.ok("aclrtMemsetAsync", &[first, 32, 9, 32, side]);
    cann.ok("aclrtRecordEvent", &[join, side]);
    cann.ok("aclrtStreamWaitEvent", &[stream, join]);
    let mut instance = 0u64;
    cann.ok("aclmdlRICaptureEnd", &[stream, out(&mut instance)]);
    cann.ok("aclrtMemset", &[first, 64, 1, 64]);
    for expected in [1, 9] {
        cann.ok("aclmdlRIExecuteAsync", &[instance, stream]);
        cann.synchronize(stream);
        assert_eq!(cann.download(second, 32), [expected; 32]);
    }
    cann.ok("aclrtFree", &[first]);
    cann.breached("a model runtime instance refers to");
    cann.ok("aclmdlRIDestroy", &[instance]);
    cann.ok("aclrtFree", &[second]);
    assert_eq!(cann.breaches(), [""; 0]);
    cann.breach(
        107017,
        "no longer",
        "aclmdlRIExecuteAsync",
        &[instance, stream],
    );
}

#[test]
fn what_a_capture_forbids_spoils_it() {
    let cann = Cann::ready();
    let (stream, side) = (cann.stream(), cann.stream());
    let device = cann.malloc(64);
    let host = [0u8; 64].as_ptr() as u64;
    let event = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    let outside = cann.make("aclrtCreateEventExWithFlag", &[SYNC]);
    cann.ok("aclrtRecordEvent", &[outside, side]);
    let mut instance = 0u64;
    for (name, arguments) in [
        ("aclrtSynchronizeStream", &[stream][..]),
        ("aclrtSynchronizeDevice", &[]),
        ("aclrtMemset", &[device, 64, 0, 64]),
        ("aclrtMemcpy", &[device, 64, host, 64, H2D]),
        ("aclrtMemcpyAsync", &[device, 64, host, 64, H2D, stream]),
        ("aclrtMemsetAsync", &[device, 64, 0, 64, 0]),
        ("aclrtStreamWaitEvent", &[stream, outside]),
        ("aclmdlRICaptureBegin", &[stream, 0]),
    ] {
        cann.ok("aclmdlRICaptureBegin", &[stream, 0]);
        cann.breach(107025, "captured", name, arguments);
        cann.fails(107027, "aclmdlRICaptureEnd", &[stream, out(&mut instance)]);
    }
    cann.ok("aclmdlRICaptureBegin", &[stream, 2]);
    cann.ok("aclrtMemset", &[device, 64, 0, 64]);
    cann.ok("aclrtRecordEvent", &[event, stream]);
    cann.ok("aclrtStreamWaitEvent", &[side, event]);
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, side]);
    cann.breach(
        107030,
        "did not join",
        "aclmdlRICaptureEnd",
        &[stream, out(&mut instance)],
    );
    cann.breach(
        107027,
        "not captured",
        "aclmdlRICaptureEnd",
        &[stream, out(&mut instance)],
    );
    // The side stream is free again.
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, side]);
    cann.synchronize(side);
}
