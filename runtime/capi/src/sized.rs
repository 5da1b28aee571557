//! Structs that begin with their size, so that a program and a library of different versions understand each other.

use std::mem::{MaybeUninit, size_of};

use ropeway_core::{Error, ErrorKind, Result};

/// A size beyond this is an uninitialised `struct_size`.
const LARGEST: usize = 4096;

/// A struct of the interface whose first field is `struct_size: usize`.
///
/// # Safety
/// The struct is `repr(C)`, made of integers and raw pointers alone (so that zero bytes are a value), begins with `struct_size` and has no
/// padding (a newer field in its place would read what the caller never wrote).
pub(crate) unsafe trait SizedStruct: Copy {
    /// What C calls it.
    const NAME: &'static str;
}

/// Declares structs of the interface to begin with their size.
macro_rules! sized_structs {
    ($($name:ident),* $(,)?) => {$(
        // SAFETY: the test `layout` checks the place of every field.
        unsafe impl $crate::sized::SizedStruct for $name {
            const NAME: &'static str = stringify!($name);
        }
    )*};
}
pub(crate) use sized_structs;

/// Reads a caller's struct: what a shorter one lacks is zero, what a longer one has beyond must be.
///
/// # Safety
/// `pointer` is null or points to a struct of the size that its first field states.
pub(crate) unsafe fn read<T: SizedStruct>(pointer: *const T, name: &str) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::invalid(name, "NULL", format!("a {}", T::NAME)));
    }
    // SAFETY: the first field is there, whatever the size.
    let size = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(size, name)?;
    let mut value = MaybeUninit::<T>::zeroed();
    let known = size.min(size_of::<T>());
    // SAFETY: both sides have `known` bytes, and zeros and whatever the caller wrote are values of integers and pointers.
    let value = unsafe {
        value
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(pointer.cast(), known);
        value.assume_init()
    };
    // SAFETY: the caller's struct has `size` bytes.
    let beyond =
        unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    match beyond.iter().position(|&byte| byte != 0) {
        None => Ok(value),
        Some(at) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{name}: the field at byte {} of {} is set, which this library (version {}) does not know",
                known + at,
                T::NAME,
                env!("CARGO_PKG_VERSION")
            ),
        )),
    }
}

/// Reads an array of a caller's structs, whose distance is the size of the first.
///
/// # Safety
/// `pointer` is null or points to `count` structs of the size that the first one states.
pub(crate) unsafe fn read_array<'a, T: SizedStruct + 'a>(
    pointer: *const T,
    count: usize,
    name: &'a str,
) -> Result<impl ExactSizeIterator<Item = Result<T>> + 'a> {
    let mut stride = 0;
    if count > 0 {
        if pointer.is_null() {
            return Err(Error::invalid(
                name,
                format!("NULL for {count} elements"),
                format!("{} structs", T::NAME),
            ));
        }
        // SAFETY: there is a first struct.
        stride = unsafe { pointer.cast::<usize>().read() };
        check_size::<T>(stride, name)?;
    }
    Ok((0..count).map(move |index| {
        // SAFETY: the caller has `count` structs, `stride` bytes apart.
        let element = unsafe { pointer.byte_add(index * stride) };
        // SAFETY: as above; the size is compared before anything else is read.
        let size = unsafe { element.cast::<usize>().read() };
        if size != stride {
            return Err(Error::invalid(
                name,
                format!("struct_size {size} in element {index}"),
                format!("{stride}, as in the first"),
            ));
        }
        // SAFETY: the struct has the size that it states.
        unsafe { read(element, name) }
    }))
}

/// Fills a caller's struct as far as it goes; what it has beyond becomes zero, and its `struct_size` stays.
///
/// # Safety
/// `pointer` is null or points to a writable struct of the size that its first field states.
pub(crate) unsafe fn write<T: SizedStruct>(pointer: *mut T, value: &T, name: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(Error::invalid(name, "NULL", format!("a {}", T::NAME)));
    }
    // SAFETY: the first field is there, whatever the size.
    let size = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(size, name)?;
    let known = size.min(size_of::<T>());
    let first = size_of::<usize>();
    // SAFETY: the caller's struct has `size` bytes and `value` has `known`.
    unsafe {
        let source = std::ptr::from_ref(value).cast::<u8>().add(first);
        let target = pointer.cast::<u8>();
        target
            .add(first)
            .copy_from_nonoverlapping(source, known - first);
        target.add(known).write_bytes(0, size - known);
    }
    Ok(())
}

fn check_size<T: SizedStruct>(size: usize, name: &str) -> Result<()> {
    if (size_of::<usize>()..=LARGEST).contains(&size) && size.is_multiple_of(align_of::<usize>()) {
        return Ok(());
    }
    Err(Error::invalid(
        name,
        format!("struct_size {size}"),
        format!("sizeof({})", T::NAME),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: usize,
        first: u64,
        second: u32,
        third: u32,
    }
    sized_structs!(Now);

    /// The same after it gained a field.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Later {
        struct_size: usize,
        first: u64,
        second: u32,
        third: u32,
        fourth: u64,
    }
    sized_structs!(Later);

    fn now() -> Now {
        Now {
            struct_size: size_of::<Now>(),
            first: 1,
            second: 2,
            third: 3,
        }
    }

    fn later(fourth: u64) -> Later {
        Later {
            struct_size: size_of::<Later>(),
            first: 1,
            second: 2,
            third: 3,
            fourth,
        }
    }

    #[test]
    fn a_field_that_an_older_program_lacks_is_zero() {
        let older = now();
        // SAFETY: only the bytes that its size states are read.
        let read = unsafe { read::<Later>((&raw const older).cast(), "request") }.unwrap();
        assert_eq!((read.first, read.third, read.fourth), (1, 3, 0));
    }

    #[test]
    fn a_field_that_this_library_does_not_know_must_be_zero() {
        let zero = later(0);
        // SAFETY: it has the size that it states.
        let read = unsafe { read::<Now>((&raw const zero).cast(), "request") }.unwrap();
        assert_eq!(read.second, 2);
        let set = later(1 << 40);
        // SAFETY: as above.
        let error = unsafe { super::read::<Now>((&raw const set).cast(), "request") }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error
                .context()
                .starts_with("request: the field at byte 29 of Now is set"),
            "{error}"
        );
    }

    #[test]
    fn elements_of_an_array_are_as_far_apart_as_the_first_is_long() {
        let longer = [later(0), later(0)];
        // SAFETY: two structs of the stated size.
        let elements = unsafe { read_array::<Now>(longer.as_ptr().cast(), 2, "list") };
        let elements: Vec<_> = elements
            .unwrap()
            .map(|element| element.unwrap().third)
            .collect();
        assert_eq!(elements, [3, 3]);
        let mut odd = longer;
        odd[1].struct_size = size_of::<Now>();
        // SAFETY: as above; the second's size is only compared.
        let mut elements = unsafe { read_array::<Now>(odd.as_ptr().cast(), 2, "list") }.unwrap();
        assert!(elements.next().unwrap().is_ok());
        assert_eq!(
            elements.next().unwrap().unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn writing_stays_within_the_caller_s_struct() {
        let mut room = [later(7), later(7)];
        room[0].struct_size = size_of::<Now>();
        let value = Later {
            first: 10,
            ..later(11)
        };
        // SAFETY: the struct is at least as long as it states.
        unsafe { write::<Later>(&mut room[0], &value, "out") }.unwrap();
        assert_eq!(
            (room[0].struct_size, room[0].first, room[0].fourth),
            (size_of::<Now>(), 10, 7)
        );
        // SAFETY: as above.
        unsafe { write::<Now>((&raw mut room[1]).cast(), &now(), "out") }.unwrap();
        assert_eq!(
            (room[1].struct_size, room[1].first, room[1].fourth),
            (size_of::<Later>(), 1, 0)
        );
    }

    #[test]
    fn a_size_that_nobody_set_is_refused() {
        for size in [0, 4, 9, 1 << 30] {
            let wrong = Now {
                struct_size: size,
                ..now()
            };
            // SAFETY: no more than the size is read.
            let error = unsafe { read(&wrong, "request") }.unwrap_err();
            assert_eq!(
                error.context(),
                format!("request: found struct_size {size}, expected sizeof(Now)")
            );
        }
    }
}
