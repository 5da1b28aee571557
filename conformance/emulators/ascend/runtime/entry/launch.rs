//! Kernel binaries and launches.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::runtime::abi::{Address, In, LaunchConfig, LoadOptions, Out, PlaceHolder, Text};
use crate::runtime::binary::{Arguments, Binary, Function, Launch};
use crate::runtime::device::{Emulator, current};
use crate::runtime::lock;
use crate::runtime::status::{self, Result};
use crate::runtime::work::Work;

/// Magic numbers that an option may name: any core, cube cores, vector cores.
const MAGICS: [u32; 3] = [0x4355_4245, 0x4149_4343, 0x4141_5246];

super::exported! {
    fn aclrtBinaryLoadFromData(data: Address, bytes: usize, options: In<LoadOptions>, binary: Out<usize>) |emulator| {
        binary.check("binHandle")?;
        current()?;
        if data.is_null() || bytes == 0 {
            return Err(status::INVALID_PARAMETER.breach("there are no data"));
        }
        check_options(options)?;
        let loaded = Binary::load(&data.read(bytes))?;
        binary.put("binHandle", emulator.binaries.add(|_| loaded).0)
    }

    fn aclrtBinaryLoadFromFile(path: Text, options: In<LoadOptions>, binary: Out<usize>) |emulator| {
        binary.check("binHandle")?;
        current()?;
        check_options(options)?;
        let path = path.get("binPath")?;
        let data = std::fs::read(path).map_err(|error| status::PARAMETER.because(format!("{path}: {error}")))?;
        let loaded = Binary::load(&data)?;
        binary.put("binHandle", emulator.binaries.add(|_| loaded).0)
    }

    fn aclrtBinaryGetFunction(binary: usize, name: Text, function: Out<usize>) |emulator| {
        function.check("funcHandle")?;
        let loaded = emulator.binaries.get(binary)?;
        let found = Function::find(loaded, binary, name.get("kernelName")?)?;
        function.put("funcHandle", emulator.functions.add(|_| found).0)
    }

    fn aclrtBinaryUnLoad(binary: usize) |emulator| {
        current()?;
        let unloaded = emulator.binaries.remove(binary)?;
        emulator.functions.retain(|function| function.of != binary);
        let idle = super::require_idle(emulator, &unloaded.uses, "a binary is unloaded");
        if let Err(failure) = idle {
            emulator.breaches.record(&failure.why);
        }
        Ok(())
    }

    fn aclrtKernelArgsInit(function: usize, arguments: Out<usize>) |emulator| {
        arguments.check("argsHandle")?;
        let function = emulator.functions.get(function)?;
        let (handle, _) = emulator.arguments.add(|_| Arguments { function, appended: Mutex::default() });
        arguments.put("argsHandle", handle)
    }

    fn aclrtKernelArgsAppend(arguments: usize, argument: Address, bytes: usize, parameter: Out<usize>) |emulator| {
        let arguments = emulator.arguments.get(arguments)?;
        parameter.check("paramHandle")?;
        if argument.is_null() {
            return Err(status::INVALID_PARAMETER.breach("the argument is null"));
        }
        if emulator.memory.is_device(argument.value()) {
            return Err(status::PARAMETER.breach("the argument has to be in memory of the host"));
        }
        let index = arguments.append(argument.read(bytes))?;
        // A handle that nothing takes but what changes an argument, which is not emulated.
        parameter.put("paramHandle", index + 1)
    }

    fn aclrtKernelArgsFinalize(arguments: usize) |emulator| {
        let arguments = emulator.arguments.get(arguments)?;
        let mut appended = lock(&arguments.appended);
        let (has, gets) = (arguments.function.parameters.len(), appended.0.len());
        if has != gets {
            let name = arguments.function.name.to_string_lossy();
            return Err(status::PARAMETER.breach(format!("{name} has {has} parameters, and gets {gets} arguments")));
        }
        appended.1 = true;
        Ok(())
    }

    fn aclrtLaunchKernelWithConfig(
        function: usize, blocks: u32, stream: usize, config: In<LaunchConfig>, arguments: usize, reserved: Address,
    ) |emulator| {
        if !reserved.is_null() {
            return Err(status::PARAMETER.breach("the reserved argument is not null"));
        }
        let function = emulator.functions.get(function)?;
        let list = emulator.arguments.get(arguments)?;
        if !Arc::ptr_eq(&list.function, &function) {
            return Err(status::PARAMETER.breach("the list of arguments is another kernel's"));
        }
        let packed = list.packed()?;
        launch(emulator, function, blocks, stream, config, &packed)?;
        // The runtime's memory for a list goes with its launch.
        emulator.arguments.remove(arguments).map(|_| ())
    }

    fn aclrtLaunchKernelWithHostArgs(
        function: usize, blocks: u32, stream: usize, config: In<LaunchConfig>, arguments: Address, bytes: usize,
        holders: In<PlaceHolder>, holder_count: usize,
    ) |emulator| {
        let function = emulator.functions.get(function)?;
        if arguments.is_null() && bytes > 0 {
            return Err(status::INVALID_PARAMETER.breach("hostArgs is null"));
        }
        if emulator.memory.is_device(arguments.value()) {
            return Err(status::PARAMETER.breach("hostArgs has to be memory of the host"));
        }
        // Data behind the arguments, to which they point, would need memory of the runtime's own.
        if holder_count > 0 || !holders.is_null() {
            return Err(status::UNSUPPORTED.because("place holders are not emulated"));
        }
        let needed = function.argument_bytes();
        // A structure of them in C may end with padding.
        if bytes != needed && bytes != needed.next_multiple_of(8) {
            let name = function.name.to_string_lossy();
            return Err(status::PARAMETER.breach(format!("the arguments of {name} have {needed} bytes, and it gets {bytes}")));
        }
        launch(emulator, function, blocks, stream, config, &arguments.read(needed))
    }

    fn aclrtLaunchKernelWithArgsArray(
        function: usize, blocks: u32, stream: usize, config: In<LaunchConfig>, arguments: In<Address>,
    ) |emulator| {
        let function = emulator.functions.get(function)?;
        let mut packed = vec![0; function.argument_bytes()];
        for (index, parameter) in function.parameters.iter().enumerate() {
            let argument = arguments.at("args", index)?;
            if argument.is_null() || emulator.memory.is_device(argument.value()) {
                return Err(status::PARAMETER.breach(format!("argument {index} has to be in memory of the host")));
            }
            let bytes = parameter.bytes as usize;
            packed[parameter.offset as usize..][..bytes].copy_from_slice(&argument.read(bytes));
        }
        launch(emulator, function, blocks, stream, config, &packed)
    }
}

fn check_options(options: In<LoadOptions>) -> Result<()> {
    if options.is_null() {
        return Ok(());
    }
    let options = options.at("options", 0)?;
    for index in 0..options.count {
        let option = options.options.at("options", index)?;
        let valid = match option.kind {
            1 => option.value[0] <= 1,
            2 => MAGICS.contains(&option.value[0]),
            3 => option.value[0] <= 2,
            _ => false,
        };
        if !valid {
            let why = format!("option {} with value {:#x}", option.kind, option.value[0]);
            return Err(status::PARAMETER.breach(why));
        }
    }
    Ok(())
}

fn launch(
    emulator: &Emulator,
    function: Arc<Function>,
    blocks: u32,
    stream: usize,
    config: In<LaunchConfig>,
    packed: &[u8],
) -> Result<()> {
    let stream = emulator.stream(stream)?;
    if blocks == 0 {
        return Err(status::PARAMETER.breach("a launch of no blocks"));
    }
    if !config.is_null() {
        let config = config.at("cfg", 0)?;
        for index in 0..config.count {
            config.attributes.at("attrs", index)?;
        }
    }
    let words = packed.chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    });
    let number = emulator.launches.fetch_add(1, Ordering::Relaxed);
    let launch = Launch {
        function,
        blocks,
        arguments: words.collect(),
        bytes: packed.len(),
        fault: emulator.faults.launch(),
        seed: emulator.settings.seed.wrapping_add(number),
    };
    stream.enqueue(Work::Launch(Arc::new(launch)))
}
