//! What the caller did against the contract, kept until it is read.
//!
//! Many breaches give an error code, but not all can (a free while queued work refers to the memory), and a program may pass over a code. So
//! each is written down, and a process that ends while some are unread ends with [`EXIT_CODE`].

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, Once};

use super::device::emulator;
use super::lock;

/// How a process ends that leaves breaches unread.
pub const EXIT_CODE: i32 = 97;

/// The breaches of a process.
#[derive(Debug)]
pub struct Breaches {
    unread: Mutex<Vec<String>>,
    file: Option<PathBuf>,
    fail_unread: bool,
}

static AT_EXIT: Once = Once::new();

impl Breaches {
    /// None so far; they will be written to a file or to standard error.
    pub fn new(file: Option<PathBuf>, fail_unread: bool) -> Breaches {
        Breaches {
            unread: Mutex::default(),
            file,
            fail_unread,
        }
    }

    /// Writes a breach down.
    pub fn record(&self, text: &str) {
        lock(&self.unread).push(text.to_owned());
        let line = format!("emulated CANN: {text}");
        let written = self.file.as_ref().is_some_and(|file| {
            let file = OpenOptions::new().create(true).append(true).open(file);
            file.and_then(|mut file| writeln!(file, "{line}")).is_ok()
        });
        if !written {
            eprintln!("{line}");
        }
        if self.fail_unread {
            AT_EXIT.call_once(|| {
                // SAFETY: a function without conditions; it stays as long as the library, whose own handlers run when it is closed.
                unsafe { libc::atexit(end) };
            });
        }
    }

    /// The breaches since they were last taken.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.unread))
    }

    /// Keeps breaches that could not be handed out.
    pub fn put_back(&self, breaches: Vec<String>) {
        lock(&self.unread).splice(0..0, breaches);
    }
}

extern "C" fn end() {
    let unread = lock(&emulator().breaches.unread).len();
    if unread > 0 {
        eprintln!(
            "emulated CANN: the process ends with {unread} breaches of contract that nobody read"
        );
        // SAFETY: what the program wrote is kept; nothing else has to happen in a process that has run its course.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::_exit(EXIT_CODE);
        }
    }
}
