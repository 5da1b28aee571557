//! Binary and configuration to pipeline.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

use ash::vk;
use ropeway_core::device::{Function, FunctionInfo, Module, OpenOptions};
use ropeway_core::kernel::{Binary, Code, Config, Language, Source};
use ropeway_core::{Error, ErrorKind, Result};

use super::device::Shared;
use super::fold;
use super::record::{Declared, lies_in_memory};
use super::spirv::{self, Constant, Extent, PushConstants, Reflection, Scalar};
use super::sys::{Pipeline, Specialization, lock};
use crate::cache::{Cache, Key};

/// Makes pipelines for one device, with the driver's cache of what it compiled before.
pub(super) struct Compiler {
    cache: Option<Cache>,
}

impl Compiler {
    pub(super) fn new(options: &OpenOptions) -> Compiler {
        let opened = options.cache_dir.as_deref().map(Cache::open).transpose();
        let cache = opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "compiled programs are not kept");
            None
        });
        Compiler { cache }
    }

    /// Checks what the source has for this configuration. Each pipeline is made when its function is asked for, since a plan uses few
    /// of a source's entries.
    pub(super) fn compile(
        self: &Arc<Compiler>,
        shared: &Arc<Shared>,
        source: &'static Source,
        config: &Config,
    ) -> Result<Arc<dyn Module>> {
        let (Language::SpirV, Code::Binaries(binaries)) = (source.language, source.code) else {
            let found = format!("{:?} on a Vulkan device", source.language);
            return Err(Error::unsupported(found));
        };
        let mut entries: BTreeMap<&'static str, Entry> = BTreeMap::new();
        for binary in binaries {
            if entries.contains_key(binary.entry) {
                continue;
            }
            // Entries that are not compiled for this configuration may be none of the plan's.
            match source.binary(binary.entry, config) {
                Ok(binary) => {
                    let entry = Entry::read(binary, shared).map_err(|error| error.within(binary.entry))?;
                    entries.insert(binary.entry, entry);
                }
                Err(error) => tracing::trace!(%error, "left out"),
            }
        }
        if entries.is_empty() {
            let what = format!("no binary is compiled for {config}");
            return Err(Error::unsupported(what));
        }
        Ok(Arc::new(VulkanModule {
            shared: shared.clone(),
            compiler: self.clone(),
            source,
            config: config.clone(),
            entries,
            made: Mutex::default(),
        }))
    }
}

/// A binary that was read.
struct Entry {
    words: Vec<u32>,
    reflection: Reflection,
}

impl Entry {
    fn read(binary: &Binary, shared: &Shared) -> Result<Entry> {
        let words = spirv::words(binary.code)?;
        let reflection = Reflection::read(&words)?;
        match reflection.features.iter().find(|name| !shared.info.has(name)) {
            Some(missing) => Err(Error::unsupported(format!("{} has no {missing}", shared.info.name))),
            None => Ok(Entry { words, reflection }),
        }
    }
}

struct VulkanModule {
    shared: Arc<Shared>,
    compiler: Arc<Compiler>,
    source: &'static Source,
    config: Config,
    entries: BTreeMap<&'static str, Entry>,
    made: Mutex<BTreeMap<&'static str, Arc<VulkanFunction>>>,
}

impl Module for VulkanModule {
    fn function(&self, entry: &str) -> Result<Arc<dyn Function>> {
        self.shared.alive()?;
        if let Some(function) = lock(&self.made).get(entry) {
            return Ok(function.clone());
        }
        let Some((name, found)) = self.entries.get_key_value(entry) else {
            // Says whether there is no such entry, or none for this configuration.
            self.source.binary(entry, &self.config)?;
            return Err(Error::invalid("entry", entry, "one of the source's"));
        };
        let function = self
            .make(name, found)
            .map_err(|error| self.shared.note(error).within(entry))?;
        // Two threads may have made it at once: the first stays.
        Ok(lock(&self.made).entry(name).or_insert(function).clone())
    }
}

impl VulkanModule {
    fn make(&self, name: &'static str, entry: &Entry) -> Result<Arc<VulkanFunction>> {
        let (shared, reflection) = (&self.shared, &entry.reflection);
        let mut entries = Vec::new();
        let mut data = Vec::new();
        for (constant, value) in self.config.defines() {
            let Some(constant) = reflection.constant(constant) else {
                continue;
            };
            let bytes = encode(constant, value)?;
            entries.push(vk::SpecializationMapEntry {
                constant_id: constant.id,
                offset: data.len() as u32,
                size: bytes.len(),
            });
            data.extend_from_slice(&bytes);
        }
        let mut group = [1; 3];
        for (size, extent) in group.iter_mut().zip(reflection.group) {
            let (id, default) = match extent {
                Extent::Fixed(fixed) => {
                    *size = fixed;
                    continue;
                }
                Extent::Constant { id, default } => (id, default),
            };
            let known = entries.iter().find(|entry| entry.constant_id == id);
            *size = match known {
                Some(entry) => {
                    let bytes = data.get(entry.offset as usize..).and_then(|bytes| bytes.first_chunk());
                    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
                }
                None => {
                    entries.push(vk::SpecializationMapEntry {
                        constant_id: id,
                        offset: data.len() as u32,
                        size: 4,
                    });
                    data.extend_from_slice(&default.to_le_bytes());
                    default
                }
            };
        }
        check_group(group, shared)?;
        let main = CString::new(reflection.entry.as_str())
            .map_err(|_| Error::new(ErrorKind::CompileFailed, "an entry point with NUL in its name"))?;
        let specialization = Specialization {
            entries: &entries,
            data: &data,
        };
        let values = || {
            let bytes = |entry: &vk::SpecializationMapEntry| {
                let begin = entry.offset as usize;
                data.get(begin..begin + entry.size).unwrap_or_default()
            };
            entries.iter().map(|entry| (entry.constant_id, bytes(entry))).collect()
        };
        let folded = match shared.identity.folds_constants {
            true => None,
            false => fold::folded(&entry.words, &values()),
        };
        let (words, specialization) = match &folded {
            Some(words) => (
                words,
                Specialization {
                    entries: &[],
                    data: &[],
                },
            ),
            None => (&entry.words, specialization),
        };
        let key = self.key(words, &specialization);
        let known = self
            .compiler
            .cache
            .as_ref()
            .and_then(|cache| shared.own_cache(cache, &key));
        // SAFETY: the binaries of a kernel are valid (the build tool has them validated), and the device has the features that they
        // need: checked when they were read.
        let made = unsafe { Pipeline::new(&shared.gpu, words, &main, &specialization, known.as_deref()) };
        let (pipeline, data) = made.map_err(|error| match error.kind() {
            ErrorKind::Driver => {
                let what = format!("{error} ({})", self.config);
                Error::new(ErrorKind::CompileFailed, what).with_source(error)
            }
            _ => error,
        })?;
        if let (Some(cache), Some(data)) = (&self.compiler.cache, data)
            && data.len() > CACHE_HEADER
        {
            cache.store(&key, &data);
        }
        Ok(Arc::new(VulkanFunction {
            pipeline,
            group,
            declared: match reflection.push_constants {
                PushConstants::None => Declared::Nothing,
                PushConstants::Bytes(bytes) => Declared::Bytes(bytes),
            },
            name,
            shared: shared.clone(),
        }))
    }

    fn key(&self, words: &[u32], specialization: &Specialization<'_>) -> Key {
        let info = &self.shared.info;
        let hexadecimal = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let ids: Vec<String> = specialization
            .entries
            .iter()
            .map(|entry| format!("{}@{}", entry.constant_id, entry.offset))
            .collect();
        Key::new(&[
            "Vulkan pipeline",
            &hexadecimal(&words),
            &ids.join(" "),
            &hexadecimal(specialization.data),
            &info.name,
            &self.shared.identity.device_uuid,
            &info.driver_version,
            &info.compiler_version,
        ])
    }
}

/// Bytes of the header that the driver's cache data begins with (`VkPipelineCacheHeaderVersionOne`); no more means that it keeps nothing.
pub(super) const CACHE_HEADER: usize = 32;

impl Shared {
    /// The driver's cache data of this key, if its header names this device.
    fn own_cache(&self, cache: &Cache, key: &Key) -> Option<Vec<u8>> {
        let data = cache.load(key)?;
        if data.get(..CACHE_HEADER) == Some(&self.identity.cache_header[..]) {
            return Some(data);
        }
        let foreign = Error::new(ErrorKind::Driver, "pipelines of another device or driver");
        cache.set_aside(key, &foreign);
        None
    }
}

/// A configured value in the bytes of the constant's type.
fn encode(constant: &Constant, value: i64) -> Result<Vec<u8>> {
    let misfit = |limit: String| Err(Error::invalid(&constant.name, value, limit));
    match constant.scalar {
        Scalar::Bool if value == 0 || value == 1 => Ok((value as u32).to_le_bytes().to_vec()),
        Scalar::Bool => misfit("0 or 1".into()),
        Scalar::Int { bits, signed } => {
            let fits = match (bits, signed) {
                (64, false) => value >= 0,
                (64, true) => true,
                (bits, false) => (0..1 << bits).contains(&value),
                (bits, true) => (-(1 << (bits - 1))..1 << (bits - 1)).contains(&value),
            };
            match fits {
                true => Ok(value.to_le_bytes()[..bits as usize / 8].to_vec()),
                false => misfit(format!("a whole number of {bits} bits")),
            }
        }
        Scalar::Float { bits: 32 } => Ok((value as f32).to_le_bytes().to_vec()),
        Scalar::Float { bits: 64 } => Ok((value as f64).to_le_bytes().to_vec()),
        Scalar::Float { bits } => Err(Error::unsupported(format!(
            "{}: a constant that is a float of {bits} bits",
            constant.name
        ))),
    }
}

fn check_group(group: [u32; 3], shared: &Shared) -> Result<()> {
    let limits = &shared.info.limits;
    let items = group.iter().fold(1u64, |items, &size| items.saturating_mul(size.into()));
    let within = (0..3).all(|axis| group[axis] <= limits.max_group[axis]);
    if items == 0 || items > limits.max_group_size.into() || !within {
        return Err(Error::invalid(
            "group",
            format!("{group:?}"),
            format!("at most {} items, {:?} along the axes", limits.max_group_size, limits.max_group),
        ));
    }
    Ok(())
}

/// An entry point with its pipeline.
pub(super) struct VulkanFunction {
    pub(super) pipeline: Pipeline,
    /// The group that it was compiled for.
    pub(super) group: [u32; 3],
    declared: Declared,
    name: &'static str,
    pub(super) shared: Arc<Shared>,
}

impl VulkanFunction {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether an argument block of this size lies in memory.
    ///
    /// # Errors
    /// `InvalidArgument` if the kernel declares another size.
    #[inline]
    pub(super) fn takes(&self, bytes: u32) -> Result<bool> {
        lies_in_memory(self.declared, bytes).map_err(|declared| {
            Error::invalid(
                self.name,
                format!("arguments of {bytes} bytes"),
                format!("the kernel's {declared}"),
            )
        })
    }

    pub(super) fn pushes(&self) -> bool {
        self.declared != Declared::Nothing
    }
}

impl Function for VulkanFunction {
    fn info(&self) -> FunctionInfo {
        FunctionInfo {
            max_group_size: Some(self.group.iter().product()),
            ..FunctionInfo::default()
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vulkan::tests::opened;

    #[test]
    fn constants_take_the_bytes_of_their_type() {
        let constant = |scalar| Constant {
            name: "N".into(),
            id: 0,
            scalar,
        };
        let int = |bits, signed| constant(Scalar::Int { bits, signed });
        assert_eq!(encode(&int(8, true), -1), Ok(vec![0xff]));
        assert_eq!(encode(&int(16, false), 0x1234), Ok(vec![0x34, 0x12]));
        assert_eq!(encode(&int(64, true), -1), Ok(vec![0xff; 8]));
        assert_eq!(encode(&constant(Scalar::Bool), 1), Ok(vec![1, 0, 0, 0]));
        for (scalar, value) in [
            (int(8, true), 128),
            (int(8, false), -1),
            (int(16, false), 1 << 16),
            (int(64, false), -1),
            (constant(Scalar::Bool), 2),
        ] {
            assert!(encode(&scalar, value).is_err(), "{scalar:?} = {value}");
        }
    }

    #[test]
    fn pipelines_of_another_device_are_set_aside() {
        let Some(device) = opened() else { return };
        let shared = &device.shared;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::open(&directory.path().join("programs")).expect("a fresh directory");
        let (own, foreign) = (Key::new(&["own"]), Key::new(&["foreign"]));
        let mut data = shared.identity.cache_header.to_vec();
        data.extend([1, 2, 3]);
        cache.store(&own, &data);
        assert_eq!(shared.own_cache(&cache, &own), Some(data.clone()));
        data[20] ^= 1;
        cache.store(&foreign, &data);
        assert_eq!(shared.own_cache(&cache, &foreign), None);
        assert_eq!(cache.load(&foreign), None, "out of the way");
    }
}
