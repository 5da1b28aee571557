//! The exported functions, named and shaped as CANN's documentation has them. None needs `aclInit`.

#![allow(non_snake_case, reason = "names of CANN")]
#![allow(unsafe_code, reason = "exported names")]

use super::Program;
use crate::runtime::abi::{Address, In, Out, Text};
use crate::runtime::device::Emulator;
use crate::runtime::entry::exported;
use crate::runtime::lock;
use crate::runtime::status::{self, Failure, Result};

exported! {
    fn aclrtcCreateProg(program: Out<usize>, source: Text, name: Text, headers: i32, _texts: In<Text>, _names: In<Text>) |emulator| {
        program.check("prog").map_err(own)?;
        if headers != 0 {
            return Err(status::COMPILER_PARAMETER.because("headers beside the source are not emulated"));
        }
        let name = if name.is_null() { "" } else { name.get("name").map_err(own)? };
        let made = Program::new(source.get("src").map_err(own)?.to_owned(), name);
        program.put("prog", emulator.programs.add(|_| made).0)
    }

    fn aclrtcCompileProg(program: usize, count: i32, options: In<Text>) |emulator| {
        let program = emulator.programs.get(program).map_err(unknown)?;
        let count = usize::try_from(count);
        let count = count.map_err(|_| status::COMPILER_PARAMETER.breach("a negative number of options"))?;
        let mut list = Vec::new();
        for index in 0..count {
            list.push(options.at("options", index).and_then(|option| option.get("an option")).map_err(own)?);
        }
        program.compile(&list)
    }

    fn aclrtcGetBinDataSize(program: usize, bytes: Out<usize>) |emulator| {
        let size = binary(emulator, program, <[u8]>::len)?;
        bytes.put("binDataSizeRet", size).map_err(own)
    }

    fn aclrtcGetBinData(program: usize, into: Address) |emulator| {
        if into.is_null() {
            return Err(status::COMPILER_PARAMETER.breach("binData is null"));
        }
        binary(emulator, program, |binary| into.write(binary))
    }

    // The length with the NUL.
    fn aclrtcGetCompileLogSize(program: usize, bytes: Out<usize>) |emulator| {
        let program = emulator.programs.get(program).map_err(unknown)?;
        let length = lock(&program.outcome).log.len();
        bytes.put("logSizeRet", length + 1).map_err(own)
    }

    fn aclrtcGetCompileLog(program: usize, into: Address) |emulator| {
        let program = emulator.programs.get(program).map_err(unknown)?;
        if into.is_null() {
            return Err(status::COMPILER_PARAMETER.breach("log is null"));
        }
        let mut log = lock(&program.outcome).log.replace('\0', " ").into_bytes();
        log.push(0);
        into.write(&log);
        Ok(())
    }

    fn aclrtcDestroyProg(program: Out<usize>) |emulator| {
        let handle = program.get("prog").map_err(own)?;
        emulator.programs.remove(handle).map_err(unknown)?;
        program.put("prog", 0)
    }
}

fn binary<R>(emulator: &Emulator, program: usize, with: impl FnOnce(&[u8]) -> R) -> Result<R> {
    let program = emulator.programs.get(program).map_err(unknown)?;
    let outcome = lock(&program.outcome);
    match &outcome.binary {
        Some(binary) => Ok(with(binary)),
        None => Err(status::COMPILER_NOT_COMPILED.breach("the program has no binary")),
    }
}

/// The compiler's own code for a wrong argument.
fn own(failure: Failure) -> Failure {
    Failure {
        status: status::COMPILER_PARAMETER,
        ..failure
    }
}

fn unknown(failure: Failure) -> Failure {
    Failure {
        status: status::COMPILER_PROGRAM,
        ..failure
    }
}
