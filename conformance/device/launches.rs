//! Launches: arguments, offsets, grids, plans at fewer rows, the status word, compile errors.

use std::sync::Arc;

use ropeway_core::device::{Device, QueueKind};
use ropeway_core::kernel::{Binary, Code, Config, Language, Source};
use ropeway_core::memory::{Layout, TensorDesc};
use ropeway_core::{DType, ErrorKind, View};

use super::probe::{self, Vector, step};
use super::{Ended, Outcome, TIMEOUT, ensure, refused};

/// Every kind of argument arrives whole, in its place; an absent operand is null.
pub(super) fn arguments(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let executable = probe::compile(&**device, probe::scalars_plan())?;
    let vector = Vector::new(&**device, &*queue, &[0; 8])?;
    executable.enqueue(&*queue, std::slice::from_ref(&vector.view), None)?;
    let found = vector.read(&*queue)?;
    ensure!(
        found == probe::scalars_expected(),
        "arguments arrived as {found:08x?}, sent were {:08x?}",
        probe::scalars_expected()
    );
    Ok(())
}

/// A view that begins at any element works, and its neighbours stay.
pub(super) fn offsets(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let executable = probe::compile(&**device, probe::affine_plan(100, 7, 3))?;
    for offset in [0u64, 1, 2, 3, 31, 32, 33, 900] {
        let host: Vec<u32> = (0..1000).collect();
        let vector = Vector::new(&**device, &*queue, &host)?;
        let desc = TensorDesc::contiguous(DType::I32, &[100])?;
        let part = vector.view.buffer().view(desc, offset)?;
        executable.enqueue(&*queue, &[part], None)?;
        let found = vector.read(&*queue)?;
        for (position, (&found, &before)) in found.iter().zip(&host).enumerate() {
            let inside = (offset..offset + 100).contains(&(position as u64));
            let expected = if inside { step(before, 7, 3) } else { before };
            ensure!(
                found == expected,
                "a launch on 100 elements from {offset} on left {found} at {position}, expected {expected}"
            );
        }
    }
    Ok(())
}

/// Each group of a grid runs once, in one, two and three dimensions.
pub(super) fn grids(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    for grid in [
        [1, 1, 1],
        [1000, 1, 1],
        [7, 11, 1],
        [3, 5, 13],
        [1, 1, 64],
        [1, 33, 2],
    ] {
        let groups: u64 = grid.iter().product();
        let executable = probe::compile(&**device, probe::cells_plan(grid))?;
        let vector = Vector::new(&**device, &*queue, &vec![5; groups as usize])?;
        for _ in 0..2 {
            executable.enqueue(&*queue, std::slice::from_ref(&vector.view), None)?;
        }
        let wrong = vector
            .read(&*queue)?
            .into_iter()
            .zip(0..)
            .find(|(found, flat)| *found != 5 + 2 * (flat + 1));
        ensure!(
            wrong.is_none(),
            "a grid of {grid:?}, run twice, left (found, position) {wrong:?}"
        );
    }
    Ok(())
}

/// A plan made for many rows holds for fewer and for none, without planning or compiling again.
pub(super) fn fewer_rows(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let executable = probe::compile(&**device, probe::affine_plan(10_000, 9, 1))?;
    let mut host = vec![1u32; 10_000];
    let vector = Vector::new(&**device, &*queue, &host)?;
    for rows in [10_000, 4_999, 256, 1, 0] {
        let desc = TensorDesc::contiguous(DType::I32, &[rows])?;
        let part = vector.view.buffer().view(desc, 0)?;
        executable.enqueue(&*queue, &[part], None)?;
        for value in &mut host[..rows as usize] {
            *value = step(*value, 9, 1);
        }
    }
    ensure!(
        vector.read(&*queue)? == host,
        "a plan for 10,000 rows went wrong with fewer"
    );
    Ok(())
}

/// Operands that do not fit a plan are refused before anything is launched, by the operand's name.
pub(super) fn wrong_operands(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let executable = probe::compile(&**device, probe::affine_plan(100, 9, 1))?;
    let buffer = device.alloc(4096)?;
    let view = |dtype, layout| buffer.view(TensorDesc { dtype, layout }, 0);
    let wrong: [(&str, Vec<View>); 5] = [
        (
            "another dtype",
            vec![view(DType::F32, Layout::contiguous(&[100])?)?],
        ),
        (
            "too many rows",
            vec![view(DType::I32, Layout::contiguous(&[101])?)?],
        ),
        (
            "another rank",
            vec![view(DType::I32, Layout::contiguous(&[10, 10])?)?],
        ),
        (
            "another stride",
            vec![view(DType::I32, Layout::strided(&[100], &[2])?)?],
        ),
        ("no operand", vec![]),
    ];
    for (what, views) in wrong {
        match executable.enqueue(&*queue, &views, None) {
            Ok(()) => ensure!(false, "{what} was accepted"),
            Err(error) => ensure!(
                error.kind() == ErrorKind::InvalidArgument && error.context().contains('x'),
                "{what} gave {error}, which does not name the operand x"
            ),
        }
    }
    match view(DType::I32, Layout::contiguous(&[1025])?) {
        Ok(_) => ensure!(false, "a view past the end of its buffer was made"),
        Err(error) => ensure!(
            error.kind() == ErrorKind::InvalidArgument,
            "a view past the end gave {error}"
        ),
    }
    queue.synchronize(Some(TIMEOUT))?;
    Ok(())
}

/// A kernel that complains is heard at the next synchronize of its queue, once, and by no other queue.
pub(super) fn status_word(device: &Arc<dyn Device>) -> Outcome {
    let (queue, other) = (
        device.create_queue(QueueKind::Compute)?,
        device.create_queue(QueueKind::Compute)?,
    );
    let executable = probe::compile(&**device, probe::complain_plan(3))?;
    let vector = Vector::new(&**device, &*queue, &[1])?;
    let view = std::slice::from_ref(&vector.view);
    for round in 0..2 {
        executable.enqueue(&*queue, view, None)?;
        other.synchronize(Some(TIMEOUT))?;
        match queue.synchronize(Some(TIMEOUT)) {
            Ok(()) => ensure!(false, "a kernel's complaint was lost (round {round})"),
            Err(error) => ensure!(
                error.kind() == ErrorKind::DataOutOfRange,
                "a kernel's complaint gave {error}"
            ),
        }
        queue.synchronize(Some(TIMEOUT))?;
    }
    ensure!(
        vector.read(&*queue)? == [1],
        "the queue does not work after a complaint"
    );
    Ok(())
}

static BROKEN: [(&str, &str); 1] = [(
    "broken",
    "__kernel void broken( { this is no kernel in any language }",
)];
static BROKEN_SOURCES: [Source; 4] = [
    broken(Language::OpenClC),
    broken(Language::CudaC),
    broken(Language::AscendC),
    Source {
        language: Language::SpirV,
        code: Code::Binaries(&[Binary {
            entry: "broken",
            dtypes: &[],
            constants: &[],
            code: b"this is no kernel in any language at all",
        }]),
        requires: &[],
    },
];

const fn broken(language: Language) -> Source {
    Source {
        language,
        code: Code::Text(&BROKEN),
        requires: &[],
    }
}

/// A source that does not compile gives the compiler's log, and the device compiles the next one. Where there is no compiler, only kernels that
/// were compiled beforehand, the device says so.
pub(super) fn compile_error(device: &Arc<dyn Device>) -> Outcome {
    let source = BROKEN_SOURCES
        .iter()
        .find(|source| device.info().languages.contains(&source.language))
        .ok_or_else(|| Ended::Skipped("this device has no compiler".into()))?;
    let has_compiler = !device.info().compiler_version.starts_with("no ");
    for _ in 0..2 {
        match device.compile(source, &Config::default()) {
            Ok(_) => ensure!(false, "a broken source compiled"),
            Err(error) if !has_compiler => ensure!(
                error.kind() == ErrorKind::Unsupported,
                "without a compiler a source that nobody compiled beforehand gave {error:?}"
            ),
            Err(error) => ensure!(
                error.kind() == ErrorKind::CompileFailed && !error.context().trim().is_empty(),
                "a broken source gave {error:?} instead of the compiler's log"
            ),
        }
    }
    arguments(device)
}

/// An entry that a module has not is the caller's fault; a language that the device has not is unsupported.
pub(super) fn unknown_names(device: &Arc<dyn Device>) -> Outcome {
    let source = probe::PROBE.source_for(device.info())?;
    let module = device.compile(source, &Config::default())?;
    refused(
        module.function("no_such_entry"),
        "an entry that is not there",
    )?;
    let foreign = BROKEN_SOURCES
        .iter()
        .find(|source| !device.info().languages.contains(&source.language));
    if let Some(source) = foreign {
        match device.compile(source, &Config::default()) {
            Ok(_) => ensure!(false, "a source in {:?} compiled", source.language),
            Err(error) => ensure!(
                error.kind() == ErrorKind::Unsupported,
                "a source in {:?} gave {error}",
                source.language
            ),
        }
    }
    Ok(())
}

/// A thousand launches leave nothing behind.
pub(super) fn nothing_leaks(device: &Arc<dyn Device>) -> Outcome {
    let queue = device.create_queue(QueueKind::Compute)?;
    let executable = probe::compile(&**device, probe::affine_plan(64, 9, 1))?;
    let round = || -> ropeway_core::Result<()> {
        for _ in 0..100 {
            let vector = Vector::new(&**device, &*queue, &[1; 64])?;
            executable.enqueue(&*queue, std::slice::from_ref(&vector.view), None)?;
            drop(queue.record()?);
        }
        queue.synchronize(Some(TIMEOUT))
    };
    round()?;
    let before = device.memory()?.used;
    for _ in 0..10 {
        round()?;
    }
    let after = device.memory()?.used;
    ensure!(
        after == before,
        "{after} bytes in use after 1,000 launches, {before} before"
    );
    Ok(())
}
