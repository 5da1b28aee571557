//! What the cpu device asks of the machine: its size, raw memory, and the matrix product of the `gemm` crate.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::thread::available_parallelism;

use gemm::Parallelism;
use ropeway_core::native::Matrix;
use ropeway_core::{Error, ErrorKind, Result};

use super::BASE_ALIGNMENT;

/// Threads that can run at once.
pub(super) fn threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory, or all that can be addressed where the system does not tell.
pub(super) fn total_memory() -> u64 {
    meminfo("MemTotal:").unwrap_or(isize::MAX as u64)
}

/// Bytes that can be allocated without swapping, where the system tells.
pub(super) fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The processor's own name, or its architecture.
pub(super) fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Bytes of a core's second-level cache, or 0.
pub(super) fn cache_per_core() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
    text.trim().strip_suffix('K').and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// f32 lanes of a vector register.
pub(super) fn vector_width() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if std::is_x86_feature_detected!("avx2") {
            return 8;
        }
    }
    4
}

/// Asks for bytes in the second-level cache, a line at a time.
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// The size of a huge page, where there is such a thing; elsewhere it is a mere alignment.
const HUGE_PAGE: usize = 2 << 20;

/// A core reads memory in huge pages a quarter faster (Zen 4: 30 in place of 23 GB/s). Without them it is the same memory.
fn ask_for_huge_pages(pointer: NonNull<u8>, size: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the range is our own allocation, aligned to a page; the advice changes no byte of it, and may be refused.
    unsafe {
        libc::madvise(pointer.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (pointer, size);
}

/// A range of host memory, freed on drop if it is our own.
pub(super) struct RawMemory {
    pointer: NonNull<u8>,
    bytes: u64,
    owned: Option<Layout>,
}

// SAFETY: it is plain memory without thread affinity; who may touch it when is up to its user (`CpuMemory` goes by the
// device's execution lock, `PinnedMemory` by ownership).
unsafe impl Send for RawMemory {}
// SAFETY: as above; sharing a reference gives no access without `pointer`, whose users follow that rule.
unsafe impl Sync for RawMemory {}

impl RawMemory {
    /// Zeroed memory, in huge pages where it is large and the system gives them on request.
    pub(super) fn zeroed(bytes: u64) -> Result<RawMemory> {
        let full = || Error::new(ErrorKind::OutOfMemory, format!("{bytes} bytes of host memory"));
        let size = usize::try_from(bytes).map_err(|_| full())?.max(1);
        let huge = size >= 2 * HUGE_PAGE;
        let alignment = if huge { HUGE_PAGE } else { BASE_ALIGNMENT as usize };
        let layout = Layout::from_size_align(size, alignment).map_err(|_| full())?;
        // SAFETY: the layout's size is at least 1.
        let pointer = NonNull::new(unsafe { alloc(layout) }).ok_or_else(full)?;
        if huge {
            ask_for_huge_pages(pointer, size);
        }
        // SAFETY: the allocation has this size and is nobody else's yet.
        unsafe { pointer.write_bytes(0, size) };
        Ok(RawMemory { pointer, bytes, owned: Some(layout) })
    }

    /// Somebody else's memory.
    pub(super) fn foreign(pointer: NonNull<u8>, bytes: u64) -> RawMemory {
        RawMemory { pointer, bytes, owned: None }
    }

    /// Its first byte.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for RawMemory {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(self.pointer.as_ptr(), layout) }
        }
    }
}

fn reach<T>(matrix: &Matrix<'_, T>, rows: usize, columns: usize) -> bool {
    let last = (rows - 1)
        .checked_mul(matrix.row_stride)
        .zip((columns - 1).checked_mul(matrix.column_stride))
        .and_then(|(row, column)| row.checked_add(column));
    last.is_some_and(|last| last < matrix.data.len()) && matrix.row_stride <= isize::MAX as usize
}

/// `d = alpha · a b + beta · d`; see [`ropeway_core::native::NativeDevice::matmul`].
#[allow(clippy::too_many_arguments)]
pub(super) fn matmul(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: Matrix<'_, f32>,
    b: Matrix<'_, f32>,
    beta: f32,
    d: &mut [f32],
    ldd: usize,
    threads: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldd >= n && (m - 1).checked_mul(ldd).is_some_and(|row| row + n <= d.len()), "d leaves its slice");
    if k == 0 || alpha == 0.0 {
        for row in d.chunks_mut(ldd).take(m) {
            row[..n].iter_mut().for_each(|x| *x = if beta == 0.0 { 0.0 } else { beta * *x });
        }
        return;
    }
    assert!(reach(&a, m, k), "a leaves its slice");
    assert!(reach(&b, k, n), "b leaves its slice");
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the asserts above show that every element of a, b and d that the product touches lies in its slice; d is
    // borrowed exclusively, so it overlaps neither a nor b; strides fit isize because slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            d.as_mut_ptr(),
            1,
            ldd as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
