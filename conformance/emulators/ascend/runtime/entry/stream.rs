//! Streams.

use std::time::Duration;

use crate::runtime::abi::Out;
use crate::runtime::device::{Emulator, current};
use crate::runtime::status::{self, Result};
use crate::runtime::stream::Stream;

super::exported! {
    fn aclrtCreateStream(stream: Out<usize>) |emulator| {
        create(emulator, stream)
    }

    fn aclrtCreateStreamWithConfig(stream: Out<usize>, priority: u32, flag: u32) |emulator| {
        // Priorities are 0 to 7; flags FAST_LAUNCH 1, FAST_SYNC 2, and others that need more than this function.
        if priority > 7 || flag > 3 {
            return Err(status::PARAMETER.breach(format!("priority {priority}, flag {flag}")));
        }
        create(emulator, stream)
    }

    fn aclrtDestroyStream(stream: usize) |emulator| {
        let found = emulator.streams.get(stream)?;
        emulator.stream(stream)?;
        found.forbid_capture("a stream is destroyed while it is captured")?;
        if !found.is_known_done() {
            emulator.breaches.record(&format!("stream {stream:#x} is destroyed with work that was not waited for"));
        }
        emulator.streams.remove(stream)?;
        // What was enqueued is done first.
        found.drain();
        Ok(())
    }

    fn aclrtSynchronizeStream(stream: usize) |emulator| {
        emulator.stream(stream)?.synchronize(None)
    }

    fn aclrtSynchronizeStreamWithTimeout(stream: usize, milliseconds: i32) |emulator| {
        let timeout = match milliseconds {
            -1 => None,
            _ => {
                let valid = u64::try_from(milliseconds).ok().filter(|milliseconds| *milliseconds > 0);
                let why = || format!("timeout {milliseconds}");
                Some(Duration::from_millis(valid.ok_or_else(|| status::PARAMETER.breach(why()))?))
            }
        };
        emulator.stream(stream)?.synchronize(timeout)
    }

    fn aclrtStreamWaitEvent(stream: usize, event: usize) |emulator| {
        let stream = emulator.stream(stream)?;
        let event = emulator.events.get(event)?;
        if event.flags & crate::runtime::stream::EVENT_SYNC == 0 {
            return Err(status::PARAMETER.breach("the event was created without ACL_EVENT_SYNC"));
        }
        stream.wait(&event)
    }
}

fn create(emulator: &Emulator, stream: Out<usize>) -> Result<()> {
    stream.check("stream")?;
    let context = current()?;
    let (handle, _) = emulator.streams.add(|handle| Stream::new(handle, &context));
    stream.put("stream", handle)
}
