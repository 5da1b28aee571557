//! What becomes of a launch: its argument block, the memory it touches, the barrier before it. Queues and graphs record alike.

use std::sync::Arc;

use ropeway_core::device::{Argument, Function, LaunchCall};
use ropeway_core::memory::Slice;
use ropeway_core::plan::MAX_ARGUMENTS;
use ropeway_core::{Buffer, Error, Result};

use super::compile::VulkanFunction;
use super::device::Shared;
use super::memory::{Serial, VulkanMemory};
use super::sys::{Commands, PUSH_CONSTANTS};

/// A range of memory that a command touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    serial: Serial,
    begin: u64,
    end: u64,
    write: bool,
}

impl Access {
    fn new(memory: &VulkanMemory, offset: u64, bytes: u64, write: bool) -> Access {
        Access {
            serial: memory.serial,
            // Kernels without 16-bit types write a half by way of its whole word.
            begin: offset / 4 * 4,
            end: (offset + bytes).next_multiple_of(4),
            write,
        }
    }

    /// Of a copy or a fill.
    pub(super) fn of(memory: &VulkanMemory, slice: &Slice, write: bool) -> Access {
        Access::new(memory, slice.offset(), slice.len(), write)
    }

    fn conflicts(&self, other: &Access) -> bool {
        (self.write || other.write)
            && self.serial == other.serial
            && self.begin < other.end
            && other.begin < self.end
    }
}

/// What the commands since the last barrier touch. Commands that do not disturb each other run side by side.
pub(super) struct Hazards {
    open: Vec<Access>,
    /// False only in the test that the validation layer sees a missing barrier.
    pub(super) barriers: bool,
}

/// More are not told apart: a barrier costs less than a long search.
const OPEN_ACCESSES: usize = 128;

impl Hazards {
    pub(super) fn new() -> Hazards {
        Hazards {
            open: Vec::with_capacity(OPEN_ACCESSES + 2 * MAX_ARGUMENTS),
            barriers: true,
        }
    }

    /// After a barrier over everything.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Notes what the next command touches, behind a barrier if it must come after an earlier one.
    pub(super) fn enter(&mut self, commands: Commands<'_>, accesses: &[Access]) {
        let conflict = accesses
            .iter()
            .any(|access| self.open.iter().any(|open| open.conflicts(access)));
        if (conflict || self.open.len() > OPEN_ACCESSES) && self.barriers {
            commands.barrier();
            self.open.clear();
        }
        self.open.extend_from_slice(accesses);
    }
}

/// The block of a launch's arguments, as kernels declare it: words without padding.
pub(super) struct Block {
    bytes: [u8; 8 * MAX_ARGUMENTS],
    len: usize,
}

impl Block {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A launch that was found sound.
pub(super) struct Prepared<'a> {
    pub(super) function: &'a VulkanFunction,
    pub(super) grid: [u32; 3],
    pub(super) block: Block,
    /// Whether the block lies in memory, and its address is pushed.
    pub(super) in_memory: bool,
    pub(super) uses_status: bool,
    accesses: [Access; MAX_ARGUMENTS],
    touched: usize,
    buffers: [Option<(&'a Buffer, &'a VulkanMemory)>; MAX_ARGUMENTS],
}

impl<'a> Prepared<'a> {
    /// Checks a launch and lowers its arguments.
    ///
    /// # Errors
    /// `InvalidArgument` for what is another device's, leaves its buffer, or is beyond the limits.
    pub(super) fn new(shared: &Shared, call: &LaunchCall<'a>, status: u64) -> Result<Prepared<'a>> {
        let function = match call.function.as_any().downcast_ref::<VulkanFunction>() {
            Some(function) if function.shared.id == shared.id => function,
            _ => {
                return Err(Error::invalid(
                    "function",
                    "one of another device",
                    "one of the queue's",
                ));
            }
        };
        let mut prepared = Prepared {
            function,
            grid: grid(shared, call, function)?,
            block: Block {
                bytes: [0; 8 * MAX_ARGUMENTS],
                len: 0,
            },
            in_memory: false,
            uses_status: false,
            accesses: [Access {
                serial: Serial::NONE,
                begin: 0,
                end: 0,
                write: false,
            }; MAX_ARGUMENTS],
            touched: 0,
            buffers: [None; MAX_ARGUMENTS],
        };
        if call.arguments.len() > MAX_ARGUMENTS {
            return Err(Error::invalid(
                function.name(),
                format!("{} arguments", call.arguments.len()),
                format!("at most {MAX_ARGUMENTS}"),
            ));
        }
        for argument in call.arguments {
            prepared.argument(shared, argument, status)?;
        }
        prepared.in_memory = function.takes(prepared.block.len as u32)?;
        Ok(prepared)
    }

    fn argument(&mut self, shared: &Shared, argument: &Argument<'a>, status: u64) -> Result<()> {
        let block = &mut self.block;
        match *argument {
            Argument::Buffer {
                buffer,
                offset,
                dtype,
                bytes,
                write,
            } => {
                let memory = shared.memory(buffer)?;
                let begin = buffer.argument_bytes(dtype, offset, bytes)?.start;
                block.put(&(memory.buffer.address + begin).to_le_bytes());
                self.accesses[self.touched] = Access::new(memory, begin, bytes, write);
                self.buffers[self.touched] = Some((buffer, memory));
                self.touched += 1;
            }
            Argument::Absent => block.put(&[0; 8]),
            Argument::Status => {
                self.uses_status = true;
                block.put(&status.to_le_bytes());
            }
            Argument::U32(value) => block.put(&value.to_le_bytes()),
            Argument::I32(value) => block.put(&value.to_le_bytes()),
            Argument::F32(value) => block.put(&value.to_le_bytes()),
            Argument::U64(value) => block.put(&value.to_le_bytes()),
            Argument::I64(value) => block.put(&value.to_le_bytes()),
            Argument::TensorMap { .. } => return Err(Error::unsupported("tensor maps on Vulkan")),
        }
        Ok(())
    }

    pub(super) fn accesses(&self) -> &[Access] {
        &self.accesses[..self.touched]
    }

    /// The buffers that must outlive the launch.
    pub(super) fn buffers(&self) -> impl Iterator<Item = (&'a Buffer, &'a VulkanMemory)> {
        self.buffers[..self.touched].iter().copied().flatten()
    }

    /// Records it: behind a barrier where need be, with its pipeline bound unless it is `bound` already. `at` is the address of the
    /// block, if it lies in memory.
    ///
    /// # Safety
    /// As `Queue::launch`; the memory must live until the work is done.
    pub(super) unsafe fn record(
        &self,
        commands: Commands<'_>,
        hazards: &mut Hazards,
        bound: &mut Option<usize>,
        at: u64,
    ) {
        hazards.enter(commands, self.accesses());
        let function = std::ptr::from_ref(self.function).addr();
        if *bound != Some(function) {
            commands.bind(&self.function.pipeline);
            *bound = Some(function);
        }
        match self.in_memory {
            true => commands.push(&at.to_le_bytes()),
            false if self.function.pushes() => commands.push(self.block.bytes()),
            false => {}
        }
        // SAFETY: the caller's promise.
        unsafe { commands.dispatch(self.grid) };
    }
}

/// The grid within the limits, where the group is the one that the pipeline was made with.
fn grid(shared: &Shared, call: &LaunchCall<'_>, function: &VulkanFunction) -> Result<[u32; 3]> {
    let limits = &shared.info.limits;
    let mut grid = [0; 3];
    for (axis, groups) in grid.iter_mut().enumerate() {
        let wanted = call.grid[axis];
        if wanted == 0 || wanted > limits.max_grid[axis] {
            return Err(Error::invalid(
                "grid",
                format!("{wanted} groups on axis {axis}"),
                format!("1 to {}", limits.max_grid[axis]),
            ));
        }
        // The limit is a number of 32 bits.
        *groups = wanted as u32;
    }
    if call.group != function.group {
        return Err(Error::invalid(
            "group",
            format!("{:?}", call.group),
            format!("{:?}, which {} was compiled for", function.group, function.name()),
        ));
    }
    if call.local_memory > 0 {
        return Err(Error::unsupported(
            "dynamic local memory on Vulkan; kernels declare theirs",
        ));
    }
    Ok(grid)
}

/// Whether an argument block of this size is pushed (`false`) or lies in memory (`true`).
///
/// # Errors
/// The size that the kernel declares, if it is another.
pub(super) fn lies_in_memory(declared: Declared, bytes: u32) -> std::result::Result<bool, u32> {
    match declared {
        Declared::Nothing => Ok(false),
        // The address of a block, as two words.
        Declared::Bytes(8) if bytes > PUSH_CONSTANTS => Ok(true),
        Declared::Bytes(size) if size == bytes => Ok(false),
        Declared::Bytes(size) => Err(size),
    }
}

/// What a kernel takes as push constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declared {
    /// Nothing: it reads no argument.
    Nothing,
    /// A block of this size.
    Bytes(u32),
}

/// Keeps a function alive.
pub(super) type Kept = Arc<dyn Function>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_blocks_go_where_the_kernel_looks() {
        assert_eq!(lies_in_memory(Declared::Bytes(48), 48), Ok(false));
        assert_eq!(lies_in_memory(Declared::Bytes(8), 8), Ok(false));
        assert_eq!(lies_in_memory(Declared::Bytes(8), 132), Ok(true));
        assert_eq!(lies_in_memory(Declared::Bytes(48), 52), Err(48));
        assert_eq!(lies_in_memory(Declared::Bytes(132), 136), Err(132));
        assert_eq!(lies_in_memory(Declared::Nothing, 100), Ok(false));
    }
}
