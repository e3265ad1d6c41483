//! The port: connections, each with its thread, and ways to lose them.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use super::control;
use super::http::{Request, Response};
use super::service::{self, Reply};
use super::world::World;

/// How often reopening the port is tried, and how long it waits in between.
const BIND_TRIES: u32 = 100;
const BIND_WAIT: Duration = Duration::from_millis(20);

/// What all threads of a fake share.
pub struct Shared {
    /// Everything it knows.
    pub world: Mutex<World>,
    port: u16,
    stop: AtomicBool,
    listening: AtomicBool,
    next: AtomicU64,
    streams: Mutex<HashMap<u64, TcpStream>>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Opens the port (0: any) and answers on it.
    pub fn open(world: World, port: u16) -> io::Result<Arc<Shared>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            port: listener.local_addr()?.port(),
            stop: AtomicBool::new(false),
            listening: AtomicBool::new(true),
            next: AtomicU64::new(0),
            streams: Mutex::default(),
            acceptor: Mutex::default(),
        });
        shared.accept_on(listener);
        Ok(shared)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the fake is at its end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn accept_on(self: &Arc<Shared>, listener: TcpListener) {
        let shared = self.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if !shared.listening.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (shared, number) = (shared.clone(), shared.next.fetch_add(1, Ordering::SeqCst));
                if let Ok(copy) = stream.try_clone() {
                    shared.streams.lock().insert(number, copy);
                }
                thread::spawn(move || {
                    // A caller who breaks off is no fault of ours.
                    let reset = converse(&shared, &stream).unwrap_or(false);
                    shared.streams.lock().remove(&number);
                    // An orderly end would keep the reset from being sent.
                    if !reset {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        *self.acceptor.lock() = Some(thread);
    }

    /// Closes the port and every connection.
    pub fn close(&self) {
        if self.listening.swap(false, Ordering::SeqCst) {
            // The thread sees it when the next caller comes: this one.
            let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
            if let Some(thread) = self.acceptor.lock().take() {
                let _ = thread.join();
            }
        }
        self.cut();
    }

    /// Closes every connection.
    pub fn cut(&self) {
        for stream in self.streams.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Opens the same port again.
    pub fn reopen(self: &Arc<Shared>) {
        if self.stopped() || self.listening.swap(true, Ordering::SeqCst) {
            return;
        }
        for _ in 0..BIND_TRIES {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)) {
                return self.accept_on(listener);
            }
            thread::sleep(BIND_WAIT);
        }
        panic!("port {} was taken by somebody else", self.port);
    }

    /// The end.
    pub fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.close();
    }
}

/// A connection with its buffer for reading.
struct Both<'a>(BufReader<&'a TcpStream>);

impl Read for Both<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Both<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.0.consume(amount);
    }
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream: &TcpStream = self.0.get_ref();
        stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut stream: &TcpStream = self.0.get_ref();
        stream.flush()
    }
}

/// Answers until one side has enough; whether the connection is to be reset.
fn converse(shared: &Arc<Shared>, stream: &TcpStream) -> io::Result<bool> {
    stream.set_nodelay(true)?;
    let mut both = Both(BufReader::new(stream));
    while let Some(request) = Request::read(&mut both)? {
        let last = request.last();
        if request.target.starts_with("/_control") {
            let (response, refuse) = control::serve(shared, &request);
            response.write(&mut both, last || refuse.is_some())?;
            if let Some(time) = refuse {
                pause(shared, time);
            }
        } else {
            shared.world.lock().counters.enter();
            let reply = service::serve(shared, &request);
            // Before the answer: whoever has it must not be counted beside his next call.
            shared.world.lock().counters.leave();
            match reply {
                Reply::Answer(response) => response.write(&mut both, last)?,
                Reply::Close => return Ok(false),
                Reply::Reset => {
                    // Closing with nothing to wait for sends a reset.
                    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
                    return Ok(true);
                }
            }
        }
        if last {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Refuses connections for a while.
fn pause(shared: &Arc<Shared>, time: Duration) {
    let shared = shared.clone();
    thread::spawn(move || {
        shared.close();
        thread::sleep(time);
        shared.reopen();
    });
}

/// An answer in JSON, for control requests.
pub fn plain(status: u16, value: &serde_json::Value) -> Response {
    let body = format!("{value:#}\n").into_bytes();
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Response { status, headers, body }
}
