//! ggml's binary interface for backends, as far as a plugin meets it: the layout of its structs and the numbers of its enums.
//!
//! Written down from what the releases in `host.rs` lay out on 64-bit machines. Functions that ggml allows a backend to leave out are
//! `Option`s here, and so is everything that may be null.

// The names say what the fields are; ggml's own documentation says the rest.
#![allow(missing_docs)]

use std::ffi::{c_char, c_int, c_void};

/// The most dimensions of a tensor.
pub const MAX_DIMS: usize = 4;
/// The most operands of a node.
pub const MAX_SRC: usize = 10;
/// Bytes of a tensor's name.
pub const MAX_NAME: usize = 64;
/// 32-bit words of a node's parameters.
pub const MAX_PARAMS: usize = 16;

/// What `ggml_tensor_overhead` answers when [`Tensor`] is laid out as here: a tensor and the 32 bytes of its entry in a context.
pub const TENSOR_OVERHEAD: usize = size_of::<Tensor>() + 32;

/// Bit of [`Tensor::flags`]: the node is to be computed.
pub const FLAG_COMPUTE: i32 = 16;

/// Numbers of `enum ggml_type`; they are those of the GGUF file format.
pub mod kind {
    pub const F32: u32 = 0;
    pub const F16: u32 = 1;
    pub const Q4_0: u32 = 2;
    pub const Q4_1: u32 = 3;
    pub const Q8_0: u32 = 8;
    pub const Q4_K: u32 = 12;
    pub const Q6_K: u32 = 14;
    pub const I32: u32 = 26;
    pub const I64: u32 = 27;
    pub const BF16: u32 = 30;
}

/// Numbers of `enum ggml_status`.
pub mod status {
    use std::ffi::c_int;
    pub const ALLOC_FAILED: c_int = -2;
    pub const FAILED: c_int = -1;
    pub const SUCCESS: c_int = 0;
}

/// Numbers of `enum ggml_backend_dev_type`.
pub mod device_kind {
    use std::ffi::c_int;
    pub const GPU: c_int = 1;
    pub const IGPU: c_int = 2;
}

/// Numbers of `enum ggml_log_level`.
pub mod log_level {
    use std::ffi::c_int;
    pub const INFO: c_int = 2;
    pub const WARN: c_int = 3;
    pub const ERROR: c_int = 4;
}

#[repr(C)]
pub struct Tensor {
    pub kind: u32,
    pub buffer: *mut Buffer,
    pub ne: [i64; MAX_DIMS],
    pub nb: [usize; MAX_DIMS],
    pub op: u32,
    pub op_params: [i32; MAX_PARAMS],
    pub flags: i32,
    pub src: [*mut Tensor; MAX_SRC],
    pub view_src: *mut Tensor,
    pub view_offs: usize,
    pub data: *mut c_void,
    pub name: [c_char; MAX_NAME],
    pub extra: *mut c_void,
    pub padding: [u8; 8],
}

/// A graph; only ggml's own functions look into it.
#[repr(C)]
pub struct Graph {
    _opaque: [u8; 0],
}

// ---- registry and devices ------------------------------------------------------------------------------------------

#[repr(C)]
pub struct RegInterface {
    pub get_name: unsafe extern "C" fn(*mut Reg) -> *const c_char,
    pub get_device_count: unsafe extern "C" fn(*mut Reg) -> usize,
    pub get_device: unsafe extern "C" fn(*mut Reg, usize) -> *mut Device,
    pub get_proc_address: Option<unsafe extern "C" fn(*mut Reg, *const c_char) -> *mut c_void>,
}

#[repr(C)]
pub struct Reg {
    pub api_version: c_int,
    pub interface: RegInterface,
    pub context: *mut c_void,
}

#[repr(C)]
pub struct DeviceCaps {
    pub asynchronous: bool,
    pub host_buffer: bool,
    pub buffer_from_host_ptr: bool,
    pub events: bool,
    pub mmap_support: bool,
}

#[repr(C)]
pub struct DeviceProps {
    pub name: *const c_char,
    pub description: *const c_char,
    pub memory_free: usize,
    pub memory_total: usize,
    pub kind: c_int,
    pub device_id: *const c_char,
    pub caps: DeviceCaps,
}

#[repr(C)]
pub struct DeviceInterface {
    pub get_name: unsafe extern "C" fn(*mut Device) -> *const c_char,
    pub get_description: unsafe extern "C" fn(*mut Device) -> *const c_char,
    pub get_memory: unsafe extern "C" fn(*mut Device, *mut usize, *mut usize),
    pub get_type: unsafe extern "C" fn(*mut Device) -> c_int,
    pub get_props: unsafe extern "C" fn(*mut Device, *mut DeviceProps),
    pub init_backend: unsafe extern "C" fn(*mut Device, *const c_char) -> *mut Backend,
    pub get_buffer_type: unsafe extern "C" fn(*mut Device) -> *mut BufferType,
    pub get_host_buffer_type: Option<unsafe extern "C" fn(*mut Device) -> *mut BufferType>,
    pub buffer_from_host_ptr:
        Option<unsafe extern "C" fn(*mut Device, *mut c_void, usize, usize) -> *mut Buffer>,
    pub supports_op: unsafe extern "C" fn(*mut Device, *const Tensor) -> bool,
    pub supports_buft: unsafe extern "C" fn(*mut Device, *mut BufferType) -> bool,
    pub offload_op: Option<unsafe extern "C" fn(*mut Device, *const Tensor) -> bool>,
    pub event_new: Option<unsafe extern "C" fn(*mut Device) -> *mut Event>,
    pub event_free: Option<unsafe extern "C" fn(*mut Device, *mut Event)>,
    pub event_synchronize: Option<unsafe extern "C" fn(*mut Device, *mut Event)>,
}

#[repr(C)]
pub struct Device {
    pub interface: DeviceInterface,
    pub reg: *mut Reg,
    pub context: *mut c_void,
}

// ---- memory --------------------------------------------------------------------------------------------------------

/// A buffer type; [`BufferTypeV2`] or [`BufferTypeV3`], by the host's API version.
#[repr(C)]
pub struct BufferType {
    _opaque: [u8; 0],
}

pub type GetName = unsafe extern "C" fn(*mut BufferType) -> *const c_char;
pub type AllocBuffer = unsafe extern "C" fn(*mut BufferType, usize) -> *mut Buffer;
pub type GetSize = unsafe extern "C" fn(*mut BufferType) -> usize;
pub type GetAllocSize = unsafe extern "C" fn(*mut BufferType, *const Tensor) -> usize;
pub type IsHost = unsafe extern "C" fn(*mut BufferType) -> bool;

/// As API version 2 lays a buffer type out.
#[repr(C)]
pub struct BufferTypeV2 {
    pub get_name: GetName,
    pub alloc_buffer: AllocBuffer,
    pub get_alignment: GetSize,
    pub get_max_size: Option<GetSize>,
    pub get_alloc_size: Option<GetAllocSize>,
    pub is_host: Option<IsHost>,
    pub device: *mut Device,
    pub context: *mut c_void,
}

/// As API version 3 lays a buffer type out: two more functions, for several tensors at once.
#[repr(C)]
pub struct BufferTypeV3 {
    pub get_name: GetName,
    pub alloc_buffer: AllocBuffer,
    pub alloc_buffer_n:
        Option<unsafe extern "C" fn(*mut BufferType, *mut *mut Tensor, c_int) -> *mut Buffer>,
    pub get_alignment: GetSize,
    pub get_max_size: Option<GetSize>,
    pub get_alloc_size: Option<GetAllocSize>,
    pub get_alloc_size_n:
        Option<unsafe extern "C" fn(*mut BufferType, *mut *mut Tensor, c_int) -> usize>,
    pub is_host: Option<IsHost>,
    pub device: *mut Device,
    pub context: *mut c_void,
}

#[repr(C)]
pub struct BufferInterface {
    pub free_buffer: Option<unsafe extern "C" fn(*mut Buffer)>,
    pub get_base: unsafe extern "C" fn(*mut Buffer) -> *mut c_void,
    pub init_tensor: Option<unsafe extern "C" fn(*mut Buffer, *mut Tensor) -> c_int>,
    pub memset_tensor: Option<unsafe extern "C" fn(*mut Buffer, *mut Tensor, u8, usize, usize)>,
    pub set_tensor: unsafe extern "C" fn(*mut Buffer, *mut Tensor, *const c_void, usize, usize),
    pub get_tensor: unsafe extern "C" fn(*mut Buffer, *const Tensor, *mut c_void, usize, usize),
    pub set_tensor_2d: Option<SetTensor2d>,
    pub get_tensor_2d: Option<GetTensor2d>,
    pub cpy_tensor: Option<unsafe extern "C" fn(*mut Buffer, *const Tensor, *mut Tensor) -> bool>,
    pub clear: unsafe extern "C" fn(*mut Buffer, u8),
    pub reset: Option<unsafe extern "C" fn(*mut Buffer)>,
}

/// Tensor, data, offset, bytes of a run, runs, stride in the tensor, stride in the data.
pub type SetTensor2d = unsafe extern "C" fn(
    *mut Buffer,
    *mut Tensor,
    *const c_void,
    usize,
    usize,
    usize,
    usize,
    usize,
);
/// As [`SetTensor2d`].
pub type GetTensor2d = unsafe extern "C" fn(
    *mut Buffer,
    *const Tensor,
    *mut c_void,
    usize,
    usize,
    usize,
    usize,
    usize,
);

#[repr(C)]
pub struct Buffer {
    pub interface: BufferInterface,
    pub kind: *mut BufferType,
    pub context: *mut c_void,
    pub size: usize,
    pub usage: c_int,
}

// ---- streams -------------------------------------------------------------------------------------------------------

#[repr(C)]
pub struct BackendInterface {
    pub get_name: unsafe extern "C" fn(*mut Backend) -> *const c_char,
    pub free: unsafe extern "C" fn(*mut Backend),
    pub set_tensor_async:
        Option<unsafe extern "C" fn(*mut Backend, *mut Tensor, *const c_void, usize, usize)>,
    pub get_tensor_async:
        Option<unsafe extern "C" fn(*mut Backend, *const Tensor, *mut c_void, usize, usize)>,
    /// Left out by this plugin: ggml then takes the copies one by one.
    pub set_tensor_2d_async: *const c_void,
    /// As above.
    pub get_tensor_2d_async: *const c_void,
    pub cpy_tensor_async: Option<
        unsafe extern "C" fn(*mut Backend, *mut Backend, *const Tensor, *mut Tensor) -> bool,
    >,
    pub synchronize: Option<unsafe extern "C" fn(*mut Backend)>,
    /// ggml does not call graph plans yet, so this plugin leaves them out.
    pub graph_plan_create: *const c_void,
    pub graph_plan_free: *const c_void,
    pub graph_plan_update: *const c_void,
    pub graph_plan_compute: *const c_void,
    pub graph_compute: unsafe extern "C" fn(*mut Backend, *mut Graph) -> c_int,
    pub event_record: Option<unsafe extern "C" fn(*mut Backend, *mut Event)>,
    pub event_wait: Option<unsafe extern "C" fn(*mut Backend, *mut Event)>,
    /// Left out by this plugin.
    pub graph_optimize: *const c_void,
}

#[repr(C)]
pub struct Backend {
    pub guid: *mut [u8; 16],
    pub interface: BackendInterface,
    pub device: *mut Device,
    pub context: *mut c_void,
}

#[repr(C)]
pub struct Event {
    pub device: *mut Device,
    pub context: *mut c_void,
}

// The layouts, in bytes on a 64-bit machine; ggml's headers give the same by `sizeof` and `offsetof`.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Tensor>() == 336);
    assert!(offset_of!(Tensor, ne) == 16);
    assert!(offset_of!(Tensor, op) == 80);
    assert!(offset_of!(Tensor, src) == 152);
    assert!(offset_of!(Tensor, data) == 248);
    assert!(size_of::<Reg>() == 48);
    assert!(size_of::<Device>() == 136);
    assert!(size_of::<DeviceProps>() == 56);
    assert!(size_of::<BufferTypeV2>() == 64);
    assert!(size_of::<BufferTypeV3>() == 80);
    assert!(size_of::<Buffer>() == 120);
    assert!(size_of::<Backend>() == 152);
    assert!(size_of::<Event>() == 16);
};
