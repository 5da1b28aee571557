//! Memory: what belongs to whom, what is freed when, what copies must say.

mod harness;

use harness::{Cann, D2D, D2H, H2D, H2H, out};

#[test]
fn bytes_come_back_as_they_went() {
    let cann = Cann::ready();
    let device = cann.malloc(1000);
    let other = cann.malloc(1000);
    let data: Vec<u8> = (0..1000).map(|byte| byte as u8).collect();
    assert_eq!(cann.download(device, 4), [0xFF; 4], "fresh memory is NaN");
    cann.upload(device, &data);
    cann.ok("aclrtMemcpy", &[other, 1000, device, 1000, D2D]);
    cann.ok("aclrtMemset", &[other + 10, 990, 0x107, 5]);
    let back = cann.download(other, 1000);
    assert_eq!(back[..10], data[..10]);
    assert_eq!(back[10..15], [7; 5]);
    assert_eq!(back[15..], data[15..]);
    cann.ok("aclrtFree", &[device]);
    cann.ok("aclrtFree", &[other]);
    assert_eq!(cann.living(), [""; 0]);
    assert_eq!(cann.breaches(), [""; 0]);
}

#[test]
fn the_other_sides_address_is_refused() {
    let cann = Cann::ready();
    let device = cann.malloc(64);
    let mut host = [0u8; 64];
    let host = out(&mut host);
    cann.breach(
        107017,
        "dst has to be of a device",
        "aclrtMemcpy",
        &[host, 64, host, 64, H2D],
    );
    cann.breach(
        107017,
        "src has to be of a device",
        "aclrtMemcpy",
        &[host, 64, host, 64, D2H],
    );
    cann.breach(
        107017,
        "dst has to be of the host",
        "aclrtMemcpy",
        &[device, 64, device, 64, D2H],
    );
    cann.breach(
        107017,
        "src has to be of a device",
        "aclrtMemcpyAsync",
        &[device, 64, host, 64, D2D, 0],
    );
    cann.breach(
        207000,
        "within the host",
        "aclrtMemcpyAsync",
        &[host, 64, host, 64, H2H, 0],
    );
    cann.breach(
        107000,
        "memcpy kind 9",
        "aclrtMemcpy",
        &[device, 64, host, 64, 9],
    );
    cann.breach(
        107017,
        "devPtr has to be of a device",
        "aclrtMemset",
        &[host, 64, 0, 64],
    );
}

#[test]
fn copies_stay_within_what_is_there() {
    let cann = Cann::ready();
    let device = cann.malloc(100);
    let neighbour = cann.malloc(100);
    let mut host = [0u8; 200];
    let host = out(&mut host);
    cann.breach(
        107000,
        "destMax is 10, count 11",
        "aclrtMemcpy",
        &[device, 10, host, 11, H2D],
    );
    cann.breach(
        107000,
        "destMax is 10, count 11",
        "aclrtMemcpyAsync",
        &[device, 10, host, 11, H2D, 0],
    );
    cann.breach(
        107000,
        "maxCount is 10, count 11",
        "aclrtMemset",
        &[device, 10, 0, 11],
    );
    // As much as was asked for, and not what it was rounded up to; nor what destMax only claims.
    cann.breach(
        107000,
        "dst has no 101 bytes",
        "aclrtMemcpy",
        &[device, 101, host, 101, H2D],
    );
    cann.breach(
        107000,
        "dst has no 101 bytes",
        "aclrtMemcpy",
        &[device, 101, host, 1, H2D],
    );
    cann.breach(
        107000,
        "src has no 2 bytes",
        "aclrtMemcpy",
        &[host, 2, device + 99, 2, D2H],
    );
    cann.breach(
        107000,
        "dst has no 100 bytes",
        "aclrtMemcpy",
        &[neighbour - 100, 100, host, 100, H2D],
    );
    cann.breach(
        100000,
        "no bytes",
        "aclrtMemcpy",
        &[device, 0, host, 0, H2D],
    );
}

#[test]
fn freed_memory_is_gone_for_good() {
    let cann = Cann::ready();
    let device = cann.malloc(64);
    cann.ok("aclrtFree", &[device]);
    cann.breach(
        107000,
        "freed memory of 64 bytes",
        "aclrtMemset",
        &[device, 64, 0, 64],
    );
    cann.breach(107000, "freed memory", "aclrtFree", &[device]);
    for _ in 0..100 {
        let next = cann.malloc(64);
        assert_ne!(next, device);
        cann.ok("aclrtFree", &[next]);
    }
    let other = cann.malloc(64);
    cann.breach(107000, "no device memory begins", "aclrtFree", &[other + 8]);
    let pinned = cann.pinned(64).as_ptr() as u64;
    cann.breach(107000, "no device memory begins", "aclrtFree", &[pinned]);
    cann.breach(107000, "no pinned memory begins", "aclrtFreeHost", &[other]);
    cann.ok("aclrtFreeHost", &[pinned]);
    cann.breach(100000, "null", "aclrtFree", &[0]);
}

#[test]
fn freeing_what_queued_work_needs_is_flagged_whether_it_is_done_or_not() {
    let cann = Cann::ready();
    let stream = cann.stream();
    let (device, pinned) = (cann.malloc(64), cann.pinned(64));
    let host = pinned.as_ptr() as u64;
    cann.ok("aclrtMemcpyAsync", &[device, 64, host, 64, H2D, stream]);
    // Long done, but the host cannot know.
    std::thread::sleep(std::time::Duration::from_millis(50));
    cann.ok("aclrtFree", &[device]);
    cann.breached("device memory of 64 bytes is freed in flight");
    cann.ok("aclrtFreeHost", &[host]);
    cann.breached("pinned memory of 64 bytes is freed in flight");
    cann.synchronize(stream);
    assert_eq!(cann.breaches(), [""; 0]);
}

#[test]
fn work_on_memory_that_was_freed_under_it_is_reported() {
    let cann = Cann::ready();
    let stream = cann.stream();
    let device = cann.malloc(64);
    cann.fault("stall:1=50");
    cann.ok("aclrtMemsetAsync", &[device, 64, 0, 64, stream]);
    cann.ok("aclrtFree", &[device]);
    cann.breached("freed in flight");
    assert_eq!(cann.call("aclrtSynchronizeStream", &[stream]), 507899);
    cann.breached("queued work reaches 64 bytes");
}

#[test]
fn pinned_copies_return_early_and_pageable_ones_late() {
    let cann = Cann::ready();
    let stream = cann.stream();
    let device = cann.malloc(4);
    let pinned = cann.pinned(4);
    let host = pinned.as_ptr() as u64;
    pinned.copy_from_slice(&[1; 4]);
    cann.fault("stall:1=50");
    cann.ok("aclrtMemcpyAsync", &[device, 4, host, 4, H2D, stream]);
    // Too early to write: the copy reads what stands there when the stream gets to it.
    pinned.copy_from_slice(&[2; 4]);
    cann.synchronize(stream);
    assert_eq!(cann.download(device, 4), [2; 4]);

    cann.fault("stall:1=50");
    let mut pageable = [3u8; 4];
    cann.ok(
        "aclrtMemcpyAsync",
        &[device, 4, pageable.as_ptr() as u64, 4, H2D, stream],
    );
    pageable.fill(4);
    assert_eq!(cann.download(device, 4), [3; 4]);
    cann.ok(
        "aclrtMemcpyAsync",
        &[out(&mut pageable), 4, device, 4, D2H, stream],
    );
    assert_eq!(pageable, [3; 4]);
    assert_eq!(cann.breaches(), [""; 0]);
}

#[test]
fn memory_runs_out_and_is_counted() {
    let cann = Cann::ready();
    let (mut free, mut total) = (0u64, 0u64);
    cann.ok("aclrtGetMemInfo", &[1, out(&mut free), out(&mut total)]);
    assert_eq!((free, total), (4 << 30, 4 << 30));
    let device = cann.malloc(33);
    cann.ok("aclrtGetMemInfo", &[1, out(&mut free), out(&mut total)]);
    assert_eq!(total - free, 64 + 32);
    let mut more = 0u64;
    cann.fails(207001, "aclrtMalloc", &[out(&mut more), free, 0]);
    cann.fails(207001, "aclrtMalloc", &[out(&mut more), u64::MAX, 0]);
    assert!(cann.message().unwrap().contains("device memory ran out"));
    cann.breach(100000, "no bytes", "aclrtMalloc", &[out(&mut more), 0, 0]);
    cann.breach(
        107000,
        "malloc policy 9",
        "aclrtMalloc",
        &[out(&mut more), 64, 9],
    );
    cann.breach(100000, "devPtr is null", "aclrtMalloc", &[0, 64, 0]);
    cann.ok("aclrtFree", &[device]);
}

#[test]
fn asynchronous_copies_of_8_1_are_aligned() {
    let cann = Cann::ready_as("8.1");
    let device = cann.malloc(128);
    let host = cann.pinned(128).as_ptr() as u64;
    let stream = cann.stream();
    cann.ok("aclrtMemcpyAsync", &[device + 64, 3, host, 3, H2D, stream]);
    for (to, from) in [(device + 4, host), (device, host + 4)] {
        cann.breach(
            107008,
            "not aligned to 64",
            "aclrtMemcpyAsync",
            &[to, 4, from, 4, H2D, stream],
        );
    }
    cann.ok("aclrtMemcpy", &[device + 4, 4, host + 4, 4, H2D]);
    cann.synchronize(stream);
}
