//! Events.

use crate::runtime::abi::Out;
use crate::runtime::device::current;
use crate::runtime::status;
use crate::runtime::stream::{EVENT_FLAGS, Event};

super::exported! {
    fn aclrtCreateEventExWithFlag(event: Out<usize>, flags: u32) |emulator| {
        event.check("event")?;
        let context = current()?;
        if flags == 0 || flags & !EVENT_FLAGS != 0 {
            return Err(status::PARAMETER.breach(format!("event flags {flags:#x}")));
        }
        let (handle, _) = emulator.events.add(|_| Event::new(flags, &context));
        event.put("event", handle)
    }

    fn aclrtDestroyEvent(event: usize) |emulator| {
        current()?;
        emulator.events.remove(event).map(|_| ())
    }

    fn aclrtRecordEvent(event: usize, stream: usize) |emulator| {
        let event = emulator.events.get(event)?;
        emulator.stream(stream)?.record(&event)
    }

    fn aclrtSynchronizeEvent(event: usize) |emulator| {
        current()?;
        emulator.events.get(event)?.synchronize()
    }

    fn aclrtQueryEventStatus(event: usize, status: Out<u32>) |emulator| {
        current()?;
        let event = emulator.events.get(event)?;
        status.check("status")?;
        // NOT_READY 0, COMPLETE 1.
        status.put("status", u32::from(event.query()?))
    }

    fn aclrtEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) |emulator| {
        current()?;
        let start = emulator.events.get(start)?.time()?;
        let end = emulator.events.get(end)?.time()?;
        let elapsed = end.checked_duration_since(start);
        let elapsed = elapsed.map_or_else(|| -start.duration_since(end).as_secs_f32(), |elapsed| elapsed.as_secs_f32());
        milliseconds.put("ms", elapsed * 1e3)
    }
}
