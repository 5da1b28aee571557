//! Streams and events.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::driver::abi::{Callback, Host, Out};
use crate::driver::graph::Capture;
use crate::driver::state::{Driver, current, lock, new_handle};
use crate::driver::status::{self, INVALID_HANDLE, INVALID_VALUE, Result};
use crate::driver::stream::{Event, Recorded, Stream};
use crate::driver::work::Work;

exported! {
    fn cuStreamCreate(stream: Out<usize>, flags: u32) |driver| {
        create(driver, stream, flags, 0)
    }

    fn cuStreamCreateWithPriority(stream: Out<usize>, flags: u32, priority: i32) |driver| {
        create(driver, stream, flags, priority)
    }

    fn cuStreamDestroy_v2(stream: usize) |driver| {
        if stream <= 2 {
            return Err(INVALID_HANDLE);
        }
        // What is enqueued still runs: its thread keeps the stream.
        driver.streams.remove(stream).map(|_| ())
    }

    fn cuStreamSynchronize(stream: usize) |driver| {
        driver.stream(stream)?.synchronize()
    }

    fn cuStreamQuery(stream: usize) |driver| {
        driver.stream(stream)?.query()
    }

    fn cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) |driver| {
        let event = driver.events.get(event)?;
        driver.stream(stream)?.wait(&event)
    }

    fn cuStreamGetFlags(stream: usize, flags: Out<u32>) |driver| {
        flags.put(u32::from(!driver.stream(stream)?.blocking))
    }

    fn cuStreamGetPriority(stream: usize, priority: Out<i32>) |driver| {
        priority.put(driver.stream(stream)?.priority)
    }

    fn cuStreamGetCtx(stream: usize, context: Out<usize>) |driver| {
        context.put(driver.stream(stream)?.context_handle())
    }

    fn cuStreamGetId(stream: usize, id: Out<u64>) |driver| {
        id.put(driver.stream(stream)?.handle as u64)
    }

    fn cuStreamAttachMemAsync(stream: usize, _address: u64, _bytes: usize, _flags: u32) |driver| {
        driver.stream(stream).map(|_| ())
    }

    fn cuLaunchHostFunc(stream: usize, function: Option<unsafe extern "C" fn(*mut c_void)>, data: Host) |driver| {
        driver.stream(stream)?.enqueue(Work::Call(Callback::new(function, data)))
    }

    fn cuStreamBeginCapture_v2(stream: usize, mode: u32) |driver| {
        let stream = driver.stream(stream)?;
        let context = stream.context()?;
        // The default stream is everybody's.
        if stream.handle == 0 || stream.is_capturing() {
            return Err(status::STREAM_CAPTURE_UNSUPPORTED);
        }
        let capture = Capture::new(stream.handle, mode == 0);
        if capture.global {
            context.global_captures.fetch_add(1, Ordering::Relaxed);
        }
        *lock(&stream.capture) = Some((capture, Vec::new()));
        Ok(())
    }

    fn cuStreamEndCapture(stream: usize, graph: Out<usize>) |driver| {
        let stream = driver.stream(stream)?;
        let (capture, after) = lock(&stream.capture).clone().ok_or(status::INVALID_VALUE)?;
        if capture.origin != stream.handle {
            return Err(status::STREAM_CAPTURE_UNMATCHED);
        }
        let context = stream.context()?;
        for other in context.streams() {
            let mut taken = lock(&other.capture);
            if taken.as_ref().is_some_and(|(found, _)| Arc::ptr_eq(found, &capture)) {
                *taken = None;
            }
        }
        if capture.global {
            context.global_captures.fetch_sub(1, Ordering::Relaxed);
        }
        match capture.end(&after) {
            Ok(()) => graph.put(capture.graph_handle),
            Err(status) => {
                capture.graph.destroy();
                driver.graphs.remove(capture.graph_handle)?;
                graph.offer(0);
                Err(status)
            }
        }
    }

    fn cuStreamIsCapturing(stream: usize, state: Out<u32>) |driver| {
        let stream = driver.stream(stream)?;
        state.put(capture_state(&stream).0)
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: usize, state: Out<u32>, id: Out<u64>, graph: Out<usize>, nodes: Out<*const usize>, count: Out<usize>,
    ) |driver| {
        let stream = driver.stream(stream)?;
        let (code, capture) = capture_state(&stream);
        state.put(code)?;
        if let Some(capture) = capture {
            id.offer(capture.id);
            graph.offer(capture.graph_handle);
            // The nodes that come before are not handed out.
            nodes.offer(std::ptr::null());
            count.offer(0);
        }
        Ok(())
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) |_driver| {
        mode.put(0)
    }

    fn cuEventCreate(event: Out<usize>, flags: u32) |driver| {
        let context = current()?;
        if event.is_null() {
            return Err(INVALID_VALUE);
        }
        let made = Event {
            context: context.handle,
            timing: flags & 2 == 0,
            recorded: Default::default(),
        };
        event.put(driver.events.add(Arc::new(made)))
    }

    fn cuEventDestroy_v2(event: usize) |driver| {
        driver.events.remove(event).map(|_| ())
    }

    fn cuEventRecord(event: usize, stream: usize) |driver| {
        let event = driver.events.get(event)?;
        driver.stream(stream)?.record(&event)
    }

    fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) |driver| {
        let event = driver.events.get(event)?;
        driver.stream(stream)?.record(&event)
    }

    fn cuEventQuery(event: usize) |driver| {
        let event = driver.events.get(event)?;
        check_context(driver, &event)?;
        let recorded = lock(&event.recorded).clone();
        match recorded {
            Recorded::Never => Ok(()),
            Recorded::At(mark) if mark.reached().is_some() => Ok(()),
            Recorded::At(_) => Err(status::NOT_READY),
            Recorded::Captured(..) => Err(status::CAPTURED_EVENT),
        }
    }

    fn cuEventSynchronize(event: usize) |driver| {
        let event = driver.events.get(event)?;
        let recorded = lock(&event.recorded).clone();
        match recorded {
            Recorded::Never => {}
            Recorded::At(mark) => mark.wait(),
            Recorded::Captured(..) => return Err(status::CAPTURED_EVENT),
        }
        check_context(driver, &event)
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) |driver| {
        elapsed(driver, milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) |driver| {
        elapsed(driver, milliseconds, start, end)
    }
}

fn create(driver: &Driver, place: Out<usize>, flags: u32, priority: i32) -> Result<()> {
    let context = current()?;
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    let handle = new_handle();
    let stream = Stream::new(&context, handle, flags & 1 == 0, priority.clamp(-5, 0));
    context.add_stream(&stream);
    driver.streams.add_at(handle, stream);
    place.put(handle)
}

fn capture_state(stream: &Stream) -> (u32, Option<Arc<Capture>>) {
    match &*lock(&stream.capture) {
        None => (0, None),
        Some((capture, _)) if capture.spoiled.load(Ordering::Relaxed) => {
            (2, Some(Arc::clone(capture)))
        }
        Some((capture, _)) => (1, Some(Arc::clone(capture))),
    }
}

fn check_context(driver: &Driver, event: &Event) -> Result<()> {
    driver
        .contexts
        .get(event.context)
        .map_err(|_| status::INVALID_CONTEXT)?
        .check()
}

/// The time between two events on the host's clock: of use for code that asks for it, never a GPU's time.
fn elapsed(driver: &Driver, milliseconds: Out<f32>, start: usize, end: usize) -> Result<()> {
    let moment = |handle: usize| {
        let event = driver.events.get(handle)?;
        check_context(driver, &event)?;
        let recorded = lock(&event.recorded).clone();
        match recorded {
            Recorded::At(mark) if event.timing => mark.reached().ok_or(status::NOT_READY),
            _ => Err(INVALID_HANDLE),
        }
    };
    let (start, end) = (moment(start)?, moment(end)?);
    let forward = end.saturating_duration_since(start).as_secs_f32();
    let backward = start.saturating_duration_since(end).as_secs_f32();
    milliseconds.put((forward - backward) * 1000.0)
}
