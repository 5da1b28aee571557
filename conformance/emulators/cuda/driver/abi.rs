//! What crosses the C interface.
//!
//! Values of these types come from a caller in C, who promises with each call what `cuda.h` asks for: a place to write is null or valid,
//! a text ends with NUL, host memory is as long as the call says, and stays so until the work that uses it is done. No safe code can make
//! one up, since their fields are private; so that promise is the one condition of every unsafe block here.

use std::ffi::{CStr, c_char, c_void};

use super::status::{INVALID_VALUE, Result};

/// A place for a result.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Whether the caller wants none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no place.
    pub fn put(self, value: T) -> Result<()> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and so valid by the caller's promise.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Writes a result that the caller may not want.
    pub fn offer(self, value: T) {
        let _ = self.put(value);
    }

    /// Writes several results in a row.
    pub fn put_all(self, values: impl Iterator<Item = T>) {
        for (index, value) in values.enumerate() {
            // SAFETY: the caller promises room for as many as it asked for, and callers of this function give no more.
            unsafe { self.0.add(index).write(value) };
        }
    }
}

impl<T> Out<T> {
    /// The same place for results of another type, whose size the caller knows.
    pub fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl<T: Copy> Out<T> {
    /// What stands there: a count that the caller hands in and gets back.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no place.
    pub fn get(self) -> Result<T> {
        In(self.0.cast_const()).get()
    }
}

/// A structure, or an array, to read.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Whether the caller gives none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The structure.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is none.
    pub fn get(self) -> Result<T> {
        self.at(0)
    }

    /// An element of the array, of those that the caller says it has.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is no array.
    pub fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and as long as the caller says.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

/// A text that ends with NUL.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Text(*const c_char);

impl Text {
    /// The text.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is none or it is not UTF-8.
    pub fn get<'a>(self) -> Result<&'a str> {
        if self.0.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: ends with NUL by the caller's promise.
        unsafe { CStr::from_ptr(self.0) }
            .to_str()
            .map_err(|_| INVALID_VALUE)
    }
}

/// The image of a module: PTX text, or a binary that its first bytes tell.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Image(*const c_void);

impl Image {
    /// Its first four bytes; no image is shorter.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is none.
    pub fn magic(self) -> Result<[u8; 4]> {
        let bytes: In<u8> = In(self.0.cast());
        let mut magic = [0; 4];
        for (index, byte) in magic.iter_mut().enumerate() {
            *byte = bytes.at(index)?;
            if *byte == 0 {
                break;
            }
        }
        Ok(magic)
    }

    /// Its text.
    pub fn text(self) -> Text {
        Text(self.0.cast())
    }
}

/// Memory of the host.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Host(*mut c_void);

// SAFETY: the memory is reached under the caller's promise alone, which is not bound to a thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// The memory at an address that the caller gave as a number.
    pub fn at_address(address: u64) -> Host {
        Host(std::ptr::with_exposed_provenance_mut(address as usize))
    }

    /// The bytes of a region, for the host.
    pub fn of_region(region: &crate::memory::Region) -> Host {
        Host(region.host_pointer().as_ptr().cast())
    }

    /// Its address.
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    /// Whether there is none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// So many bytes further on.
    pub fn beyond(self, bytes: usize) -> Host {
        Host(self.0.cast::<u8>().wrapping_add(bytes).cast())
    }

    /// Copies bytes out of it.
    pub fn read(self, into: &mut [u8]) {
        if !into.is_empty() {
            // SAFETY: as long as the call says, and nobody else's Rust memory overlaps the slice.
            unsafe {
                self.0
                    .cast::<u8>()
                    .copy_to_nonoverlapping(into.as_mut_ptr(), into.len())
            };
        }
    }

    /// Copies bytes into it.
    pub fn write(self, data: &[u8]) {
        if !data.is_empty() {
            // SAFETY: as above.
            unsafe {
                self.0
                    .cast::<u8>()
                    .copy_from_nonoverlapping(data.as_ptr(), data.len())
            };
        }
    }

    /// The region that it is, for memory that is registered.
    pub fn region(self, bytes: usize) -> Option<crate::memory::Region> {
        let pointer = std::ptr::NonNull::new(self.0.cast::<u8>())?;
        // SAFETY: stays until it is unregistered, by the caller's promise; its alignment was checked by whoever registers it.
        Some(unsafe { crate::memory::Region::foreign(pointer, bytes) })
    }

    /// What the host gets as a pointer.
    pub fn pointer(self) -> *mut c_void {
        self.0
    }
}

/// The pointers to a launch's parameters.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Parameters(*mut *mut c_void);

impl Parameters {
    /// Whether there are none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Copies the parameter of this number.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` where there is none.
    pub fn read(self, index: usize, into: &mut [u8]) -> Result<()> {
        let pointer = In(self.0.cast_const()).at(index)?;
        if pointer.is_null() {
            return Err(INVALID_VALUE);
        }
        Host(pointer).read(into);
        Ok(())
    }

    /// The pointer of this number, of those that end with a null.
    ///
    /// # Errors
    /// As [`Parameters::read`].
    pub fn pointer(self, index: usize) -> Result<*mut c_void> {
        In(self.0.cast_const()).at(index)
    }

    /// A pointer as host memory.
    pub fn host(pointer: *mut c_void) -> Host {
        Host(pointer)
    }

    /// No parameters, as a graph's node reports them.
    pub const NONE: Parameters = Parameters(std::ptr::null_mut());
}

/// A function that the host wants called.
#[derive(Clone, Copy, Debug)]
pub struct Callback {
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: Host,
}

impl Callback {
    /// A function and its argument.
    pub fn new(function: Option<unsafe extern "C" fn(*mut c_void)>, data: Host) -> Callback {
        Callback { function, data }
    }

    /// Calls it.
    pub fn call(self) {
        if let Some(function) = self.function {
            // SAFETY: the caller promises a function that takes this argument, callable from a thread of the driver.
            unsafe { function(self.data.0) };
        }
    }
}

/// Asks for the dynamic shared memory of a block of so many threads.
pub type SharedOfBlock = Option<unsafe extern "C" fn(i32) -> usize>;

/// Calls it.
pub fn shared_of_block(function: SharedOfBlock, threads: i32) -> Option<usize> {
    // SAFETY: the caller promises a function that may be called with any number of threads.
    function.map(|function| unsafe { function(threads) })
}
