//! Telling a service manager how far the service is, if one asked for it with NOTIFY_SOCKET.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The mount answers.
pub fn ready() {
    tell(&format!("READY=1\nMAINPID={}\nSTATUS=Mounted", std::process::id()));
}

/// The mount is gone; what remains is closing the volume.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=Closing the volume");
}

fn tell(message: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(e) = send(&name, message) {
        log::warn!("cannot notify the service manager: {e}");
    }
}

fn send(name: &OsStr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let sent = match name.as_bytes().split_first() {
        Some((b'@', name)) => {
            socket.send_to_addr(message.as_bytes(), &SocketAddr::from_abstract_name(name)?)?
        }
        _ => socket.send_to(message.as_bytes(), name)?,
    };
    debug_assert_eq!(sent, message.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_get_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let named = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let name = format!("kmsfs-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        for socket in [named, hidden] {
            let mut text = [0; 16];
            let length = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1");
        }
    }
}
