//! Cleaning up when the user loses patience.

use std::{
    io::{self, Read as _},
    os::fd::IntoRawFd as _,
    process,
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

/// Writing end of the pipe that the signal handler wakes the cleaner by.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Runs `clean` and ends the process when it is interrupted, told to end, or loses its terminal.
/// A handler and not a blocked mask, since that would be inherited by every child.
pub fn on_interrupt(clean: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    WAKE.store(writer.into_raw_fd(), Ordering::Relaxed);
    thread::spawn(move || {
        if reader.read_exact(&mut [0]).is_ok() {
            clean();
            // As a shell reports a process that SIGINT ended.
            process::exit(130);
        }
    });
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = wake;
        // SAFETY: the handler only loads an atomic and calls write(2), both async-signal-safe.
        if unsafe { libc::signal(signal, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn wake(_signal: libc::c_int) {
    // SAFETY: one byte is read from a static; the descriptor is never closed.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), c"x".as_ptr().cast(), 1) };
}
