//! The ggml that has loaded the plugin: which release it is, its functions, its numbers of operations.
//!
//! A plugin is loaded by libraries that exist already, so it links to none: functions are looked up among what the process has loaded.
//! The layouts of [`crate::abi`] hold for the releases named in [`RELEASES`]; others are refused by name, since a wrong layout would be
//! undefined behaviour and not an error.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use crate::abi::{Buffer, BufferInterface, BufferType, Graph, TENSOR_OVERHEAD, Tensor, log_level};

/// The releases of ggml whose layouts were compared with [`crate::abi`] (the llama-cpp-python 0.3.36 source package and the crate
/// llama-cpp-sys-2 0.1.161).
pub const RELEASES: &[&str] = &["0.25.3", "0.26.0"];

/// What a node can be, as far as the plugin runs it or passes over it. The names are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    None,
    Reshape,
    View,
    Permute,
    Transpose,
    MulMat,
    MulMatId,
    FlashAttnExt,
    Add,
    Sub,
    Mul,
    Div,
    Sqr,
    Unary,
    Scale,
    Clamp,
    Fill,
    Glu,
    Cpy,
    Cont,
    Dup,
    Repeat,
    Concat,
    GetRows,
    SetRows,
    RmsNorm,
    Norm,
    SumRows,
    SoftMax,
    Rope,
    Argsort,
    TopK,
    /// Anything that the plugin does not run.
    Other,
}

const OPERATIONS: &[(&str, Operation)] = &[
    ("NONE", Operation::None),
    ("RESHAPE", Operation::Reshape),
    ("VIEW", Operation::View),
    ("PERMUTE", Operation::Permute),
    ("TRANSPOSE", Operation::Transpose),
    ("MUL_MAT", Operation::MulMat),
    ("MUL_MAT_ID", Operation::MulMatId),
    ("FLASH_ATTN_EXT", Operation::FlashAttnExt),
    ("ADD", Operation::Add),
    ("SUB", Operation::Sub),
    ("MUL", Operation::Mul),
    ("DIV", Operation::Div),
    ("SQR", Operation::Sqr),
    ("UNARY", Operation::Unary),
    ("SCALE", Operation::Scale),
    ("CLAMP", Operation::Clamp),
    ("FILL", Operation::Fill),
    ("GLU", Operation::Glu),
    ("CPY", Operation::Cpy),
    ("CONT", Operation::Cont),
    ("DUP", Operation::Dup),
    ("REPEAT", Operation::Repeat),
    ("CONCAT", Operation::Concat),
    ("GET_ROWS", Operation::GetRows),
    ("SET_ROWS", Operation::SetRows),
    ("RMS_NORM", Operation::RmsNorm),
    ("NORM", Operation::Norm),
    ("SUM_ROWS", Operation::SumRows),
    ("SOFT_MAX", Operation::SoftMax),
    ("ROPE", Operation::Rope),
    ("ARGSORT", Operation::Argsort),
    ("TOP_K", Operation::TopK),
];

/// The last names in ggml's tables of operations, unary functions and gated units: where walks through them end.
const LAST_OPERATION: &str = "GLU";
const LAST_UNARY: &str = "TRUNC";
const LAST_GLU: &str = "SWIGLU_CLAMP";

type Name = unsafe extern "C" fn(c_int) -> *const c_char;
type BufferInit =
    unsafe extern "C" fn(*mut BufferType, BufferInterface, *mut c_void, usize) -> *mut Buffer;

/// ggml, as found in the process.
pub struct Host {
    /// The version of its backend interface.
    pub api_version: c_int,
    operations: Vec<Operation>,
    names: Vec<&'static str>,
    unary: Vec<&'static str>,
    glu: Vec<&'static str>,
    type_name: Name,
    buffer_init: BufferInit,
    nbytes: unsafe extern "C" fn(*const Tensor) -> usize,
    graph_n_nodes: unsafe extern "C" fn(*mut Graph) -> c_int,
    graph_node: unsafe extern "C" fn(*mut Graph, c_int) -> *mut Tensor,
}

static HOST: OnceLock<Result<Host, String>> = OnceLock::new();

/// The ggml of this process, or why the plugin cannot work with it; the reason is logged once.
pub fn host() -> Option<&'static Host> {
    let found = HOST.get_or_init(|| {
        let found = Host::find();
        if let Err(reason) = &found {
            log(log_level::ERROR, &format!("not loaded: {reason}"));
        }
        found
    });
    found.as_ref().ok()
}

impl Host {
    fn find() -> Result<Host, String> {
        // SAFETY: the types are those of ggml.h in the releases that are accepted below; of any other no function but `ggml_version` is
        // called, which has had this type since there is one.
        unsafe {
            let version: unsafe extern "C" fn() -> *const c_char = symbol(c"ggml_version")?;
            let release = CStr::from_ptr(version()).to_string_lossy().into_owned();
            // A build from a changed work tree says so behind its number.
            let number = release.split(['-', '+']).next().unwrap_or_default();
            if !RELEASES.contains(&number) {
                return Err(format!(
                    "this is ggml {release}; the plugin knows the binary interface of {}",
                    RELEASES.join(" and ")
                ));
            }
            let overhead: unsafe extern "C" fn() -> usize = symbol(c"ggml_tensor_overhead")?;
            if overhead() != TENSOR_OVERHEAD {
                return Err(format!(
                    "this ggml {release} needs {} bytes for a tensor, where {TENSOR_OVERHEAD} are expected: it was changed",
                    overhead()
                ));
            }
            // What came with version 3 of the interface; its number is not to be asked for.
            let several = symbol::<*const c_void>(c"ggml_backend_buft_alloc_buffer_n").is_ok();
            let names = table(symbol(c"ggml_op_name")?, LAST_OPERATION)?;
            let known: HashMap<_, _> = OPERATIONS.iter().copied().collect();
            let operations = names
                .iter()
                .map(|name| known.get(name).copied().unwrap_or(Operation::Other))
                .collect();
            Ok(Host {
                api_version: if several { 3 } else { 2 },
                operations,
                names,
                unary: table(symbol(c"ggml_unary_op_name")?, LAST_UNARY)?,
                glu: table(symbol(c"ggml_glu_op_name")?, LAST_GLU)?,
                type_name: symbol(c"ggml_type_name")?,
                buffer_init: symbol(c"ggml_backend_buffer_init")?,
                nbytes: symbol(c"ggml_nbytes")?,
                graph_n_nodes: symbol(c"ggml_graph_n_nodes")?,
                graph_node: symbol(c"ggml_graph_node")?,
            })
        }
    }

    /// What a node of this number is.
    pub fn operation(&self, number: u32) -> Operation {
        let known = self.operations.get(number as usize);
        known.copied().unwrap_or(Operation::Other)
    }

    /// ggml's name of this number of an operation.
    pub fn operation_name(&self, number: u32) -> &'static str {
        self.names.get(number as usize).copied().unwrap_or("?")
    }

    /// ggml's name of a type, whose number must be a tensor's.
    pub fn type_name(&self, number: u32) -> &'static str {
        // SAFETY: the function answers for the types that tensors have, with strings that are never freed.
        let name = unsafe { CStr::from_ptr((self.type_name)(number as c_int)) };
        name.to_str().unwrap_or("?")
    }

    /// ggml's name of this number of a unary function.
    pub fn unary_name(&self, number: i32) -> &'static str {
        self.unary.get(number as usize).copied().unwrap_or("?")
    }

    /// ggml's name of this number of a gated unit.
    pub fn glu_name(&self, number: i32) -> &'static str {
        self.glu.get(number as usize).copied().unwrap_or("?")
    }

    /// A buffer for ggml to own.
    ///
    /// # Safety
    /// `kind` must be a buffer type of the plugin; `context` what the interface's functions expect.
    pub unsafe fn new_buffer(
        &self,
        kind: *mut BufferType,
        interface: BufferInterface,
        context: *mut c_void,
        size: usize,
    ) -> *mut Buffer {
        // SAFETY: as the caller promises.
        unsafe { (self.buffer_init)(kind, interface, context, size) }
    }

    /// Bytes from a tensor's first to its last element.
    pub fn bytes(&self, tensor: &Tensor) -> usize {
        // SAFETY: a reference is a valid pointer, and the function only reads.
        unsafe { (self.nbytes)(tensor) }
    }

    /// The nodes of a graph, in order.
    ///
    /// # Safety
    /// `graph` must be a graph of this ggml that lives, unchanged, as long as the iterator and what it gives.
    pub unsafe fn nodes<'a>(
        &self,
        graph: *mut Graph,
    ) -> impl Iterator<Item = &'a Tensor> + use<'a> {
        let node = self.graph_node;
        // SAFETY: as the caller promises.
        let count = unsafe { (self.graph_n_nodes)(graph) };
        (0..count).map(move |index| {
            // SAFETY: as the caller promises, and the index is below the graph's count.
            unsafe { &*node(graph, index) }
        })
    }
}

/// A function of ggml by its name: among what the process shares, else in ggml's own library, where an interpreter loaded it for itself alone.
///
/// # Safety
/// `T` must be the symbol's type.
unsafe fn symbol<T: Copy>(name: &'static CStr) -> Result<T, String> {
    for library in libraries() {
        // SAFETY: as the caller promises; the library stays loaded, since whoever loads a plugin is ggml itself.
        if let Ok(found) = unsafe { library.get::<T>(name.to_bytes_with_nul()) } {
            return Ok(*found);
        }
    }
    Err(format!(
        "the process has no function {}; the plugin needs ggml as shared libraries",
        name.to_string_lossy()
    ))
}

#[cfg(unix)]
fn libraries() -> &'static [libloading::os::unix::Library] {
    use libloading::os::unix::{Library, RTLD_LAZY};
    /// Only finds what is loaded already.
    const RTLD_NOLOAD: c_int = 4;
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let mut found = vec![Library::this()];
        for name in ["libggml-base.so.0", "libggml-base.so", "libggml-base.dylib"] {
            // SAFETY: nothing is loaded that is not, so nothing is initialised.
            found.extend(unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_NOLOAD) });
        }
        found
    })
}

#[cfg(windows)]
fn libraries() -> &'static [libloading::os::windows::Library] {
    use libloading::os::windows::Library;
    static LIBRARIES: OnceLock<Vec<Library>> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let names = ["ggml-base.dll", "libggml-base.dll"];
        let loaded = names.iter().flat_map(Library::open_already_loaded);
        loaded.collect()
    })
}

/// A table of names up to its last one.
///
/// # Safety
/// `name` must be a function that answers with a string for every number up to that of `last`.
unsafe fn table(name: Name, last: &str) -> Result<Vec<&'static str>, String> {
    let mut names = Vec::new();
    // Releases that are accepted have 107 operations.
    while names.len() < 256 && names.last() != Some(&last) {
        // SAFETY: as the caller promises, the last name not having been met.
        let next = unsafe { CStr::from_ptr(name(names.len() as c_int)) };
        names.push(next.to_str().unwrap_or("?"));
    }
    if names.last() == Some(&last) {
        Ok(names)
    } else {
        Err(format!("ggml has no operation {last}"))
    }
}

/// Logs a line through ggml, so that an engine's own log has it; to standard error where ggml has no such function.
pub fn log(level: c_int, line: &str) {
    type Log = unsafe extern "C" fn(c_int, *const c_char, ...);
    static LOG: OnceLock<Option<Log>> = OnceLock::new();
    // SAFETY: the type is that of ggml-impl.h.
    let to = LOG.get_or_init(|| unsafe { symbol(c"ggml_log_internal") }.ok());
    let line = format!("ggml-ropeway: {line}\n");
    match (to, CString::new(line.as_str())) {
        // SAFETY: the format takes one string, which is given.
        (Some(to), Ok(line)) => unsafe { to(level, c"%s".as_ptr(), line.as_ptr()) },
        _ => eprint!("{line}"),
    }
}
