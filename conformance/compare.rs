//! What is checked around the numbers: canaries before and after every buffer, poison in what a kernel must write, inputs left as
//! they were.
//!
//! ```text
//!  device allocation
//!  | canary (4 KiB) | payload: an input, an output or the workspace | canary (4 to 64 KiB) |
//! ```
//!
//! A canary next to floats is a pattern of NaN, so that a kernel that reads past an end betrays itself in its result; next to integers it
//! is a number far out of any range. The two runs of a case are poisoned with two patterns: an element that holds the first pattern after
//! the first run and the second after the second was never written, whatever its dtype.

use ropeway_core::device::{Device, Queue};
use ropeway_core::memory::{Buffer, Slice, TensorDesc, View};
use ropeway_core::{DType, Result};

/// Bytes of the canary before a payload: a multiple of every alignment that plans ask for.
const BEFORE: u64 = 4096;

/// Which of the two runs of a case a pattern is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// The run that is judged.
    First,
    /// The run that must repeat it.
    Second,
}

/// The bytes that stand for "nobody wrote this" in elements of `dtype`: a quiet NaN with a payload for floats.
pub fn poison(dtype: DType, round: Round) -> &'static [u8] {
    let first = round == Round::First;
    match dtype {
        DType::F32 if first => &[0xa5, 0xc3, 0xda, 0x7f],
        DType::F32 => &[0x3c, 0x5a, 0xe5, 0xff],
        DType::F16 if first => &[0xa5, 0x7e],
        DType::F16 => &[0x5a, 0xff],
        DType::BF16 if first => &[0xda, 0x7f],
        DType::BF16 => &[0xe5, 0xff],
        DType::F8E4M3 if first => &[0x7f],
        DType::F8E4M3 => &[0xff],
        DType::F8E5M2 if first => &[0x7e],
        DType::F8E5M2 => &[0xff],
        // 1,521,861,180 and 765,885,214: no id, offset or length is that large.
        DType::I32 if first => &[0x3c, 0xc3, 0xb5, 0x5a],
        DType::I32 => &[0x1e, 0x7b, 0xa6, 0x2d],
        _ if first => &[0x5a],
        _ => &[0xa5],
    }
}

/// Workspace has no dtype: these bytes are a NaN in every float width in the first round and a huge number in the second.
pub fn workspace_poison(round: Round) -> &'static [u8] {
    match round {
        Round::First => &[0xff],
        Round::Second => &[0x7b],
    }
}

/// `len` bytes of a repeated pattern.
pub fn repeated(pattern: &[u8], len: u64) -> Vec<u8> {
    pattern.iter().copied().cycle().take(len as usize).collect()
}

/// A payload on the device between two canaries.
#[derive(Debug)]
pub struct Guarded {
    /// For messages: the tensor's name, or "workspace".
    name: String,
    buffer: Buffer,
    before: u64,
    len: u64,
    /// The pattern of both canaries.
    canary: &'static [u8],
}

impl Guarded {
    /// Allocates room for `len` bytes and its canaries. The payload begins `shift` bytes past a multiple of 4 KiB, so that kernels meet
    /// the least alignment that they ask for and no better one.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn new(
        device: &dyn Device,
        name: &str,
        len: u64,
        shift: u64,
        canary: &'static [u8],
    ) -> Result<Guarded> {
        let before = BEFORE + shift;
        // A fault that steps over a row of a large tensor still lands in the canary.
        let after = (len / 8).clamp(BEFORE, 16 * BEFORE).next_multiple_of(16);
        Ok(Guarded {
            name: name.into(),
            buffer: device.alloc(before + len + after)?,
            before,
            len,
            canary,
        })
    }

    /// Writes the canaries and the payload.
    ///
    /// # Errors
    /// As [`Queue::upload`].
    pub fn write(&self, queue: &dyn Queue, payload: &[u8]) -> Result<()> {
        debug_assert_eq!(payload.len() as u64, self.len);
        let mut bytes = repeated(self.canary, self.before);
        bytes.extend_from_slice(payload);
        bytes.extend(repeated(
            self.canary,
            self.buffer.size() - bytes.len() as u64,
        ));
        queue.upload(&self.buffer.all(), &bytes)
    }

    /// The payload.
    ///
    /// # Errors
    /// None in practice: the range lies in the buffer by construction.
    pub fn slice(&self) -> Result<Slice> {
        self.buffer.slice(self.before, self.len)
    }

    /// A view that begins `offset` elements into the payload.
    ///
    /// # Errors
    /// `InvalidArgument` if it leaves the buffer.
    pub fn view(&self, desc: TensorDesc, offset: u64) -> Result<View> {
        let size = desc.dtype.size().unwrap_or(1);
        self.buffer.view(desc, self.before / size + offset)
    }

    /// Reads the payload back, and reports into `findings` what happened to the canaries.
    ///
    /// # Errors
    /// As [`Queue::read_blocking`].
    pub fn read(&self, queue: &dyn Queue, findings: &mut Vec<String>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.buffer.size() as usize];
        queue.read_blocking(&self.buffer.all(), &mut bytes)?;
        let (begin, end) = (self.before as usize, (self.before + self.len) as usize);
        if let Some((first, changed)) = differences(&bytes[..begin], self.canary) {
            findings.push(format!(
                "{}: {changed} bytes of the canary before it were written, the first {} bytes before its begin",
                self.name,
                begin - first
            ));
        }
        if let Some((first, changed)) = differences(&bytes[end..], self.canary) {
            findings.push(format!(
                "{}: {changed} bytes of the canary after it were written, the first {first} bytes past its end",
                self.name
            ));
        }
        bytes.truncate(end);
        bytes.drain(..begin);
        Ok(bytes)
    }

    /// Reads the payload back and reports if it is not `expected`.
    ///
    /// # Errors
    /// As [`Queue::read_blocking`].
    pub fn expect_unchanged(
        &self,
        queue: &dyn Queue,
        expected: &[u8],
        findings: &mut Vec<String>,
    ) -> Result<()> {
        let found = self.read(queue, findings)?;
        if let Some(first) = found.iter().zip(expected).position(|(a, b)| a != b) {
            findings.push(format!(
                "{}: an input was written, first at byte {first}",
                self.name
            ));
        }
        Ok(())
    }
}

/// The first byte that is not the repeated pattern's, and how many are not.
fn differences(bytes: &[u8], pattern: &[u8]) -> Option<(usize, usize)> {
    let mut first = None;
    let mut changed = 0;
    for (position, (found, expected)) in bytes.iter().zip(pattern.iter().cycle()).enumerate() {
        if found != expected {
            first.get_or_insert(position);
            changed += 1;
        }
    }
    first.map(|first| (first, changed))
}

/// The first element that still holds the poison of both rounds, and how many do: nobody wrote them.
pub fn unwritten(dtype: DType, first: &[u8], second: &[u8]) -> Option<(usize, usize)> {
    let size = dtype.size().unwrap_or(1) as usize;
    let (a, b) = (poison(dtype, Round::First), poison(dtype, Round::Second));
    let mut untouched = first
        .chunks_exact(size)
        .zip(second.chunks_exact(size))
        .enumerate()
        .filter(|(_, (x, y))| *x == a && *y == b)
        .map(|(position, _)| position);
    untouched.next().map(|at| (at, 1 + untouched.count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_of_floats_is_nan_in_both_rounds() {
        for round in [Round::First, Round::Second] {
            for dtype in DType::ALL.into_iter().filter(|d| d.size().is_some()) {
                let bytes = poison(dtype, round).to_vec();
                assert_eq!(bytes.len() as u64, dtype.size().unwrap());
                let tensor = ropeway_core::request::HostTensor::new(dtype, &[1], bytes).unwrap();
                assert_eq!(tensor.at(&[0]).is_nan(), dtype.is_float(), "{dtype}");
            }
        }
    }

    #[test]
    fn unwritten_elements_are_those_that_keep_both_patterns() {
        let (a, b) = (
            poison(DType::I8, Round::First)[0],
            poison(DType::I8, Round::Second)[0],
        );
        // The second element happens to be the first pattern in both runs: that is an answer.
        let found = unwritten(DType::I8, &[1, a, a], &[1, a, b]);
        assert_eq!(found, Some((2, 1)));
        assert_eq!(unwritten(DType::I8, &[1, a], &[1, a]), None);
    }

    #[test]
    fn a_changed_canary_is_counted_from_its_first_byte() {
        assert_eq!(differences(&[1, 2, 1, 2, 1], &[1, 2]), None);
        assert_eq!(differences(&[1, 2, 0, 2, 0], &[1, 2]), Some((2, 2)));
    }
}
