//! The list of drivers, and how a user selects a device.

use std::path::PathBuf;
use std::sync::Arc;

use etcetera::BaseStrategy;
use ropeway_core::device::{Device, Driver, OpenOptions, Unavailable};
use ropeway_core::info::DeviceInfo;
use ropeway_core::{Error, Result};

/// What a driver answered when asked for its devices.
pub struct Probe {
    /// The backend.
    pub backend: &'static str,
    /// Its devices, or why there are none.
    pub devices: std::result::Result<Vec<DeviceInfo>, Unavailable>,
}

/// The drivers of a process: those that were built in, and any that are added.
pub struct Registry {
    drivers: Vec<Box<dyn Driver>>,
    options: OpenOptions,
}

impl Default for Registry {
    /// The built-in drivers. Compiled kernels are kept in [`cache_dir`]; those that were compiled beforehand lie in `$ROPEWAY_BINARIES_DIR`.
    fn default() -> Registry {
        Registry {
            drivers: ropeway_backends::drivers(),
            options: OpenOptions {
                cache_dir: cache_dir(),
                binaries_dir: std::env::var_os("ROPEWAY_BINARIES_DIR").map(PathBuf::from),
            },
        }
    }
}

impl Registry {
    /// A registry with these options and no driver.
    pub fn empty(options: OpenOptions) -> Registry {
        Registry {
            drivers: Vec::new(),
            options,
        }
    }

    /// Adds a driver, anybody's. A driver of a name that is there already takes its place.
    pub fn add(&mut self, driver: Box<dyn Driver>) {
        match self
            .drivers
            .iter_mut()
            .find(|other| other.name() == driver.name())
        {
            Some(other) => *other = driver,
            None => self.drivers.push(driver),
        }
    }

    /// Asks every driver for its devices.
    pub fn probe(&self) -> Vec<Probe> {
        self.drivers
            .iter()
            .map(|driver| Probe {
                backend: driver.name(),
                devices: driver.probe(),
            })
            .collect()
    }

    /// Opens a device by `backend` or `backend:ordinal`.
    ///
    /// # Errors
    /// `InvalidArgument` for a backend or ordinal that does not exist, `Unavailable` with the reason.
    pub fn open(&self, selector: &str) -> Result<Arc<dyn Device>> {
        let (backend, ordinal) = selector.split_once(':').unwrap_or((selector, "0"));
        let driver = self
            .drivers
            .iter()
            .find(|driver| driver.name() == backend)
            .ok_or_else(|| {
                let names: Vec<_> = self.drivers.iter().map(|driver| driver.name()).collect();
                Error::invalid(
                    "device",
                    format!("{selector:?}"),
                    format!("one of {names:?}, or backend:number"),
                )
            })?;
        let ordinal = ordinal.parse().map_err(|_| {
            Error::invalid(
                "device",
                format!("{selector:?}"),
                "a number after the colon",
            )
        })?;
        driver.open(ordinal, &self.options)
    }
}

/// Where compiled kernels are kept: `$ROPEWAY_CACHE_DIR`, or `ropeway` in the user's cache directory. `None` if the user has no home.
pub fn cache_dir() -> Option<PathBuf> {
    match std::env::var_os("ROPEWAY_CACHE_DIR") {
        Some(dir) => Some(dir.into()),
        None => Some(
            etcetera::choose_base_strategy()
                .ok()?
                .cache_dir()
                .join("ropeway"),
        ),
    }
}
