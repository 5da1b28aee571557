//! The library's log, to a callback of the program's.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use ropeway_core::{Error, Result};
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::status::{c_string, entry, ropeway_status};

/// How much is logged: everything of this level and those before it.
pub type ropeway_log_level = u32;
/// Nothing.
pub const ROPEWAY_LOG_OFF: ropeway_log_level = 0;
/// What failed and is not returned to a caller.
pub const ROPEWAY_LOG_ERROR: ropeway_log_level = 1;
/// What was worked round.
pub const ROPEWAY_LOG_WARN: ropeway_log_level = 2;
/// What happens once.
pub const ROPEWAY_LOG_INFO: ropeway_log_level = 3;
/// Plans, compilations.
pub const ROPEWAY_LOG_DEBUG: ropeway_log_level = 4;
/// Everything.
pub const ROPEWAY_LOG_TRACE: ropeway_log_level = 5;

/// Called for each message, from any thread, several at once; the strings are valid during the call. It may call the library, but not
/// set_log; what is logged meanwhile is dropped.
pub type ropeway_log_callback = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        level: ropeway_log_level,
        target: *const c_char,
        message: *const c_char,
    ),
>;

struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, ropeway_log_level, *const c_char, *const c_char),
    user: *mut c_void,
}

// SAFETY: the header demands of the callback that it may be called from any thread with this pointer.
unsafe impl Send for Sink {}
// SAFETY: as above, several at once.
unsafe impl Sync for Sink {}

static LEVEL: AtomicU32 = AtomicU32::new(ROPEWAY_LOG_OFF);
/// Held for reading during a callback, so that a callback that was replaced is not called any more once `set_log` returns.
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

fn level(level: &Level) -> ropeway_log_level {
    match *level {
        Level::ERROR => ROPEWAY_LOG_ERROR,
        Level::WARN => ROPEWAY_LOG_WARN,
        Level::INFO => ROPEWAY_LOG_INFO,
        Level::DEBUG => ROPEWAY_LOG_DEBUG,
        Level::TRACE => ROPEWAY_LOG_TRACE,
    }
}

/// Hands events to the callback; spans are not kept.
struct ToCallback;

impl Subscriber for ToCallback {
    /// The level changes at run time, so no answer may be remembered.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && level(metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        if IN_CALLBACK.get() {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let (target, message) = (c_string(metadata.target()), text.finish());
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = &*sink {
            IN_CALLBACK.set(true);
            let level = level(metadata.level());
            // SAFETY: the caller gave both for this, and the strings are valid during the call.
            unsafe { (sink.callback)(sink.user, level, target.as_ptr(), message.as_ptr()) };
            IN_CALLBACK.set(false);
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// A message, and its fields after it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> CString {
        self.message.push_str(&self.fields);
        c_string(self.message)
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        // Only a value's own `Debug` can fail, and then its text is cut.
        written.unwrap_or_default();
    }
}

fn set(level: ropeway_log_level, sink: Option<Sink>) -> Result<()> {
    if level > ROPEWAY_LOG_TRACE {
        return Err(Error::invalid("level", level, "one of ROPEWAY_LOG_..."));
    }
    if IN_CALLBACK.get() {
        return Err(Error::invalid(
            "set_log",
            "a call from the log callback",
            "one from outside it",
        ));
    }
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    if sink.is_some()
        && !*INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(ToCallback).is_ok())
    {
        return Err(Error::unsupported(
            "the program has a log of its own (tracing) for this library",
        ));
    }
    let level = if sink.is_some() {
        level
    } else {
        ROPEWAY_LOG_OFF
    };
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
    LEVEL.store(level, Ordering::Relaxed);
    Ok(())
}

pub(crate) unsafe extern "C" fn set_log(
    level: ropeway_log_level,
    callback: ropeway_log_callback,
    user: *mut c_void,
) -> ropeway_status {
    entry(|| set(level, callback.map(|callback| Sink { callback, user })))
}
