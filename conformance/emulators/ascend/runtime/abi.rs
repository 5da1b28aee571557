//! What crosses the C interface.
//!
//! Values of these types come from a caller in C, who promises with each call what CANN's documentation asks for: a place to write is null
//! or valid, a text ends with NUL, host memory is as long as the call says, and stays so until the work that uses it is done. No safe code
//! can make one up, since their fields are private; so that promise is the one condition of every unsafe block here.

use std::ffi::{CStr, c_char, c_void};

use super::status::{INVALID_PARAMETER, Result};

/// A place for a result.
#[repr(transparent)]
#[derive(Debug)]
pub struct Out<T>(*mut T);

// Derived, they would ask the same of the result.
impl<T> Copy for Out<T> {}

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Out<T> {
    /// Whether there is a place.
    ///
    /// # Errors
    /// 100000 where there is none.
    pub fn check(self, name: &str) -> Result<()> {
        if self.0.is_null() {
            return Err(INVALID_PARAMETER.breach(format!("{name} is null")));
        }
        Ok(())
    }

    /// Writes the result.
    ///
    /// # Errors
    /// 100000 where there is no place.
    pub fn put(self, name: &str, value: T) -> Result<()> {
        self.check(name)?;
        // SAFETY: not null, and so valid by the caller's promise.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

impl<T: Copy> Out<T> {
    /// What stands there.
    ///
    /// # Errors
    /// 100000 where there is no place.
    pub fn get(self, name: &str) -> Result<T> {
        In(self.0.cast_const()).at(name, 0)
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

    /// An element of the array, of those that the caller says it has.
    ///
    /// # Errors
    /// 100000 where there is no array.
    pub fn at(self, name: &str, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(INVALID_PARAMETER.breach(format!("{name} is null")));
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
    /// Whether the caller gives none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The text.
    ///
    /// # Errors
    /// 100000 where there is none or it is not UTF-8.
    pub fn get<'a>(self, name: &str) -> Result<&'a str> {
        if self.0.is_null() {
            return Err(INVALID_PARAMETER.breach(format!("{name} is null")));
        }
        // SAFETY: ends with NUL by the caller's promise.
        let text = unsafe { CStr::from_ptr(self.0) }.to_str();
        text.map_err(|_| INVALID_PARAMETER.breach(format!("{name} is not UTF-8")))
    }
}

/// An address, of the host or of a device: which of both is for the emulator to find out.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(*mut c_void);

// SAFETY: the caller promises that memory stays until the work that uses it is done, on whichever thread that is.
unsafe impl Send for Address {}
// SAFETY: as above; access is by explicit copies.
unsafe impl Sync for Address {}

impl Address {
    /// As a number.
    pub fn value(self) -> u64 {
        self.0 as u64
    }

    /// The address of a number, for an out parameter.
    pub fn of(value: u64) -> Address {
        Address(value as *mut c_void)
    }

    /// Whether there is none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Memory of the host, as a place for bytes to come from or to go to. The emulator calls this only where the address is not a device's.
    pub(super) fn bytes(self) -> *mut u8 {
        self.0.cast()
    }

    /// A copy of so many bytes of host memory.
    pub fn read(self, bytes: usize) -> Vec<u8> {
        let mut copy = vec![0; bytes];
        // SAFETY: host memory of this length by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(self.bytes(), copy.as_mut_ptr(), bytes) };
        copy
    }

    /// Writes to host memory.
    pub fn write(self, bytes: &[u8]) {
        // SAFETY: host memory of at least this length by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes(), bytes.len()) };
    }
}

/// `aclrtBinaryLoadOption`: 20 bytes, the value at 4.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LoadOption {
    /// 1 lazy, 2 magic, 3 mode of a kernel for the CPU.
    pub kind: u32,
    /// A union; its first word is what the kinds above have.
    pub value: [u32; 4],
}

/// `aclrtBinaryLoadOptions`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// The options.
    pub options: In<LoadOption>,
    /// How many.
    pub count: usize,
}

/// `aclrtLaunchKernelAttr`: 20 bytes, the value at 4.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttribute {
    /// Which attribute.
    pub kind: u32,
    /// A union.
    pub value: [u32; 4],
}

/// `aclrtLaunchKernelCfg`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchConfig {
    /// The attributes.
    pub attributes: In<LaunchAttribute>,
    /// How many.
    pub count: usize,
}

/// `aclrtPlaceHolderInfo`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PlaceHolder {
    /// Where in the arguments an address belongs.
    pub address_offset: u32,
    /// Where in the arguments the data are that it shall point to.
    pub data_offset: u32,
}

const _: () = {
    assert!(size_of::<LoadOption>() == 20 && std::mem::offset_of!(LoadOption, value) == 4);
    assert!(size_of::<LoadOptions>() == 16);
    assert!(
        size_of::<LaunchAttribute>() == 20 && std::mem::offset_of!(LaunchAttribute, value) == 4
    );
    assert!(size_of::<LaunchConfig>() == 16);
    assert!(size_of::<PlaceHolder>() == 8);
};
