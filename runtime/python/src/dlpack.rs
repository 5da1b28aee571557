//! DLPack, the exchange of tensors between array libraries: its structures as the specification (dmlc/dlpack, version 1.1) lays them out, and
//! the two capsules of Python's protocol, `dltensor_versioned` and, from before version 1, `dltensor`.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyDict};
use ropeway::core::memory::{Layout, TensorDesc};
use ropeway::core::{DType, Error, View};

use crate::error::Result;

/// Memory of the host.
pub(crate) const CPU: i32 = 1;
/// Host memory that CUDA has pinned: the host's too.
const CUDA_HOST: i32 = 3;

const MAJOR: u32 = 1;
const MINOR: u32 = 1;
const READ_ONLY: u64 = 1;
const COPIED: u64 = 2;

const VERSIONED: &CStr = c"dltensor_versioned";
const USED_VERSIONED: &CStr = c"used_dltensor_versioned";
const UNVERSIONED: &CStr = c"dltensor";
const USED_UNVERSIONED: &CStr = c"used_dltensor";

#[repr(C)]
#[derive(Clone, Copy)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ElementType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    rank: i32,
    element: ElementType,
    shape: *mut i64,
    /// In elements; null for a row-major tensor without gaps.
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: Tensor,
}

/// Type codes of DLPack with the width that they have here.
const ELEMENTS: [(DType, u8, u8); 8] = [
    (DType::F32, 2, 32),
    (DType::F16, 2, 16),
    (DType::BF16, 4, 16),
    (DType::I8, 0, 8),
    (DType::I32, 0, 32),
    (DType::U8, 1, 8),
    (DType::F8E4M3, 10, 8),
    (DType::F8E5M2, 12, 8),
];

/// A tensor that somebody lends; given back when dropped.
pub(crate) struct Borrowed {
    pub(crate) data: *mut u8,
    pub(crate) desc: TensorDesc,
    pub(crate) writable: bool,
    _lender: Lender,
}

enum Lender {
    Versioned(NonNull<ManagedVersioned>),
    Unversioned(NonNull<Managed>),
}

// SAFETY: the specification lets any thread use the memory and call the deleter; what is written where is up to the borrower.
unsafe impl Send for Borrowed {}
// SAFETY: as above; a shared reference gives no access to the memory without its pointer, whose users see to that.
unsafe impl Sync for Borrowed {}

impl Drop for Lender {
    fn drop(&mut self) {
        // SAFETY: the structure was taken over from its capsule (`take`), so that it is alive and this is the one call of its deleter.
        unsafe {
            match self {
                Lender::Versioned(managed) => {
                    if let Some(deleter) = managed.as_ref().deleter {
                        deleter(managed.as_ptr());
                    }
                }
                Lender::Unversioned(managed) => {
                    if let Some(deleter) = managed.as_ref().deleter {
                        deleter(managed.as_ptr());
                    }
                }
            }
        }
    }
}

/// Borrows what an object exports by `__dlpack__`; `None` if it exports nothing.
pub(crate) fn borrow(operand: &str, object: &Bound<'_, PyAny>) -> Result<Option<Borrowed>> {
    let py = object.py();
    let Some(device) = object.getattr_opt("__dlpack_device__")? else {
        return Ok(None);
    };
    let (device, _): (i32, i32) = device.call0()?.extract()?;
    if device != CPU && device != CUDA_HOST {
        let lack = format!("{operand} in memory of DLPack's device type {device}: host memory is");
        return Err(Error::unsupported(lack).into());
    }
    let versioned = PyDict::new(py);
    versioned.set_item("max_version", (MAJOR, MINOR))?;
    let capsule = match object.call_method("__dlpack__", (), Some(&versioned)) {
        // An exporter from before version 1 knows no such argument.
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyTypeError>(py) => {
            object.call_method0("__dlpack__")?
        }
        exported => exported?,
    };
    let capsule = capsule.cast_into::<PyCapsule>().map_err(PyErr::from)?;
    let lender = take(&capsule)?;
    // SAFETY: the structure is alive for as long as its lender.
    let (tensor, flags) = unsafe {
        match &lender {
            Lender::Versioned(managed) => {
                let managed = managed.as_ref();
                if managed.version.major != MAJOR {
                    let found = format!("DLPack {}", managed.version.major);
                    return Err(Error::invalid(operand, found, format!("DLPack {MAJOR}")).into());
                }
                (&managed.tensor, managed.flags)
            }
            Lender::Unversioned(managed) => (&managed.as_ref().tensor, 0),
        }
    };
    let (data, desc) = describe(operand, tensor)?;
    Ok(Some(Borrowed {
        data,
        desc,
        writable: flags & READ_ONLY == 0,
        _lender: lender,
    }))
}

/// Takes a capsule's structure over and marks the capsule as used, as the protocol wants it.
fn take(capsule: &Bound<'_, PyCapsule>) -> Result<Lender> {
    let rename = |name: &'static CStr| {
        // SAFETY: the capsule is alive, and the name is.
        match unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), name.as_ptr()) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(capsule.py())),
        }
    };
    if capsule.is_valid_checked(Some(VERSIONED)) {
        let managed = capsule.pointer_checked(Some(VERSIONED))?.cast();
        rename(USED_VERSIONED)?;
        return Ok(Lender::Versioned(managed));
    }
    let managed = capsule.pointer_checked(Some(UNVERSIONED))?.cast();
    rename(USED_UNVERSIONED)?;
    Ok(Lender::Unversioned(managed))
}

fn describe(operand: &str, tensor: &Tensor) -> Result<(*mut u8, TensorDesc)> {
    let ElementType { code, bits, lanes } = tensor.element;
    let known = ELEMENTS
        .iter()
        .find(|(_, known, width)| lanes == 1 && (*known, *width) == (code, bits));
    let Some(&(dtype, ..)) = known else {
        let found = format!("DLPack's type code {code} of {bits} bits in {lanes} lanes");
        return Err(Error::invalid(operand, found, "a float, bfloat16 or small integer").into());
    };
    let rank = usize::try_from(tensor.rank).unwrap_or(0);
    let numbers = |pointer: *mut i64| -> Result<Vec<u64>> {
        let numbers = match rank {
            0 => &[],
            // SAFETY: an exporter gives as many numbers as the tensor has dimensions.
            _ => unsafe { std::slice::from_raw_parts(pointer, rank) },
        };
        let sizes = numbers.iter().map(|&number| {
            let expected = "sizes and strides of 0 or more";
            u64::try_from(number).map_err(|_| Error::invalid(operand, number, expected))
        });
        Ok(sizes.collect::<ropeway::core::Result<_>>()?)
    };
    let shape = numbers(tensor.shape)?;
    let layout = match tensor.strides.is_null() {
        true => Layout::contiguous(&shape)?,
        false => Layout::strided(&shape, &numbers(tensor.strides)?)?,
    };
    let data = tensor
        .data
        .cast::<u8>()
        .wrapping_add(tensor.byte_offset as usize);
    Ok((data, TensorDesc { dtype, layout }))
}

/// What a capsule of ours owns: the numbers that its structure points to, and the memory.
struct Exported {
    shape: Vec<i64>,
    strides: Vec<i64>,
    _view: View,
}

/// A view of host memory as a capsule. `data` is its first element; `versioned` where the consumer knows version 1.
pub(crate) fn export<'py>(
    py: Python<'py>,
    view: &View,
    data: *mut u8,
    writable: bool,
    copied: bool,
    versioned: bool,
) -> Result<Bound<'py, PyCapsule>> {
    let found = ELEMENTS.iter().find(|(dtype, ..)| *dtype == view.dtype());
    let Some(&(_, code, bits)) = found else {
        let lack = format!("{} has no type code in DLPack", view.dtype());
        return Err(PyBufferError::new_err(lack).into());
    };
    if !writable && !versioned {
        let lack = "a read-only tensor for a consumer of DLPack before version 1";
        return Err(PyBufferError::new_err(lack).into());
    }
    // Layouts are bounded by memory, whose sizes fit.
    let signed = |numbers: &[u64]| numbers.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let mut exported = Box::new(Exported {
        shape: signed(view.layout().shape()),
        strides: signed(view.layout().strides()),
        _view: view.clone(),
    });
    let tensor = Tensor {
        data: data.cast(),
        device_type: CPU,
        device_id: 0,
        rank: exported.shape.len() as i32,
        element: ElementType {
            code,
            bits,
            lanes: 1,
        },
        shape: exported.shape.as_mut_ptr(),
        strides: exported.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let context = Box::into_raw(exported).cast();
    let flags = if writable { 0 } else { READ_ONLY } | if copied { COPIED } else { 0 };
    // SAFETY: the pointer is of the structure that the capsule's name promises; the destructor frees it unless somebody took it over, who
    // then calls the deleter.
    unsafe {
        Ok(if versioned {
            let managed = Box::new(ManagedVersioned {
                version: Version {
                    major: MAJOR,
                    minor: MINOR,
                },
                context,
                deleter: Some(delete_versioned),
                flags,
                tensor,
            });
            let pointer = NonNull::from(Box::leak(managed)).cast();
            PyCapsule::new_with_pointer_and_destructor(
                py,
                pointer,
                VERSIONED,
                Some(drop_versioned),
            )?
        } else {
            let managed = Box::new(Managed {
                tensor,
                context,
                deleter: Some(delete_unversioned),
            });
            let pointer = NonNull::from(Box::leak(managed)).cast();
            PyCapsule::new_with_pointer_and_destructor(
                py,
                pointer,
                UNVERSIONED,
                Some(drop_unversioned),
            )?
        })
    }
}

/// Lets the memory go, now and not when Python is next called: it may be a Python array's, and the caller may be any thread.
fn release(exported: Box<Exported>) {
    let mut exported = Some(exported);
    // Where the interpreter is on its way down nothing of Python's can be let go any more.
    Python::try_attach(|_| drop(exported.take()));
}

unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: made by `export` from these two boxes, deleted once.
    let exported = unsafe {
        let managed = Box::from_raw(managed);
        Box::from_raw(managed.context.cast::<Exported>())
    };
    release(exported);
}

unsafe extern "C" fn delete_unversioned(managed: *mut Managed) {
    // SAFETY: made by `export` from these two boxes, deleted once.
    let exported = unsafe {
        let managed = Box::from_raw(managed);
        Box::from_raw(managed.context.cast::<Exported>())
    };
    release(exported);
}

/// Frees a capsule that nobody took over: whoever does renames it.
unsafe extern "C" fn drop_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with the capsule, attached.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}

/// As [`drop_versioned`].
unsafe extern "C" fn drop_unversioned(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls it with the capsule, attached.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, UNVERSIONED.as_ptr()) == 1 {
            delete_unversioned(ffi::PyCapsule_GetPointer(capsule, UNVERSIONED.as_ptr()).cast());
        }
    }
}
