//! The emulated CANN's own functions: what shall fail, what was called, what lives, what was done against the contract.

use std::ffi::{CString, c_char, c_void};
use std::path::PathBuf;

use libloading::Library;

type ListInto = unsafe extern "C" fn(*mut u8, usize) -> usize;

/// The emulated runtime and run-time compiler, the same libraries that the backend has opened. Each counts for itself.
pub struct Emulated {
    runtime: Library,
    compiler: Option<Library>,
}

fn of<T: Copy>(library: &Library, name: &str) -> T {
    // SAFETY: each caller gives the function's own type.
    *unsafe { library.get::<T>(name.as_bytes()) }.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What somebody else made.
pub struct Foreign {
    pub stream: *mut c_void,
    pub address: *mut c_void,
}

impl Emulated {
    /// The runtime in `ASCEND_HOME_PATH`, if that is emulated.
    pub fn found() -> Option<Emulated> {
        let directory = PathBuf::from(std::env::var_os("ASCEND_HOME_PATH")?).join("lib64");
        // SAFETY: opened before, by the backend.
        let open = |name: &str| unsafe { Library::new(directory.join(name)) }.ok();
        let runtime = open("libacl_rt.so")?;
        // SAFETY: only asked for.
        let is_emulated =
            unsafe { runtime.get::<*const c_void>(b"ropeway_emulated_cann_living") }.is_ok();
        is_emulated.then(|| Emulated {
            runtime,
            compiler: open("libacl_rtc.so"),
        })
    }

    fn get<T: Copy>(&self, name: &str) -> T {
        of(&self.runtime, name)
    }

    /// Replaces what shall fail, and counts calls anew.
    pub fn set_fault(&self, list: &str) {
        let set: unsafe extern "C" fn(*const c_char) -> i32 =
            self.get("ropeway_emulated_cann_set_fault");
        let list = CString::new(list).expect("no NUL");
        // SAFETY: a text that ends with NUL.
        assert_eq!(unsafe { set(list.as_ptr()) }, 0, "{list:?}");
    }

    /// Calls of a function since then; of `*`, of all.
    pub fn calls(&self, name: &str) -> u64 {
        let library = match (&self.compiler, name.starts_with("aclrtc")) {
            (Some(compiler), true) => compiler,
            _ => &self.runtime,
        };
        let calls: unsafe extern "C" fn(*const c_char) -> u64 =
            of(library, "ropeway_emulated_cann_calls");
        let name = CString::new(name).expect("no NUL");
        // SAFETY: a text that ends with NUL.
        unsafe { calls(name.as_ptr()) }
    }

    fn list(&self, name: &str) -> String {
        let list: ListInto = self.get(name);
        let mut bytes = vec![0; 1 << 16];
        // SAFETY: there is room for as many bytes as said.
        let length = unsafe { list(bytes.as_mut_ptr(), bytes.len()) };
        assert!(length <= bytes.len(), "{length} bytes of text");
        bytes.truncate(length.saturating_sub(1));
        String::from_utf8(bytes).expect("text")
    }

    /// What was done against the contract since this was last asked, a line each.
    pub fn breaches(&self) -> String {
        self.list("ropeway_emulated_cann_breaches")
    }

    /// What lives, a line for each kind.
    pub fn living(&self) -> String {
        self.list("ropeway_emulated_cann_living")
    }

    /// As another user of CANN in this process makes them.
    pub fn stream_and_memory(&self, bytes: usize) -> Foreign {
        let create: unsafe extern "C" fn(*mut *mut c_void) -> i32 = self.get("aclrtCreateStream");
        let alloc: unsafe extern "C" fn(*mut *mut c_void, usize, i32) -> i32 =
            self.get("aclrtMalloc");
        let (mut stream, mut address) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are valid.
        unsafe {
            assert_eq!(create(&raw mut stream), 0);
            assert_eq!(alloc(&raw mut address, bytes, 0), 0);
        }
        Foreign { stream, address }
    }

    pub fn release(&self, foreign: Foreign) {
        let destroy: unsafe extern "C" fn(*mut c_void) -> i32 = self.get("aclrtDestroyStream");
        let free: unsafe extern "C" fn(*mut c_void) -> i32 = self.get("aclrtFree");
        let wait: unsafe extern "C" fn(*mut c_void) -> i32 = self.get("aclrtSynchronizeStream");
        // SAFETY: made above.
        unsafe {
            assert_eq!(wait(foreign.stream), 0);
            assert_eq!(destroy(foreign.stream), 0);
            assert_eq!(free(foreign.address), 0);
        }
    }
}
