//! Telling systemd that a service is ready (sd_notify(3)), for units of `Type=notify`: what is ordered after the mount finds
//! it usable.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where systemd listens: a path, or a name of the abstract namespace behind `@`.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The service is ready. Nothing happens if nobody wants to be told.
///
/// # Errors
/// Somebody does, and cannot be.
pub(crate) fn ready() -> io::Result<()> {
    let Some(place) = std::env::var_os(SOCKET) else { return Ok(()) };
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&place)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}
