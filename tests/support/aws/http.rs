//! As much of HTTP/1.1 as the clients of AWS speak.

use std::io::{self, BufRead, Read, Write};

/// The longest line, and the longest body.
const LINE_MAX: u64 = 16 << 10;
const BODY_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 100;

/// A request.
#[derive(Clone, Default, Debug)]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Whether the caller wants no further request on this connection.
    pub fn last(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Reads the next request; nothing if the caller has gone.
    pub fn read(stream: &mut (impl BufRead + Write)) -> io::Result<Option<Request>> {
        let first = line(stream)?;
        if first.is_empty() {
            return Ok(None);
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next(), words.next());
        let (Some(method), Some(target)) = (method, target) else { return Err(bad("first line")) };
        let (method, target) = (method.to_owned(), target.to_owned());
        let headers = headers(stream)?;
        if find(&headers, "expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            stream.flush()?;
        }
        let body = body(stream, &headers)?;
        Ok(Some(Request { method, target, headers, body }))
    }

    /// Sends it.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut out = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        out.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        stream.write_all(&[out.as_bytes(), &self.body].concat())?;
        stream.flush()
    }
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Reads an answer.
    pub fn read(stream: &mut impl BufRead) -> io::Result<Response> {
        let first = line(stream)?;
        if first.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| bad("status line"))?;
        let headers = headers(stream)?;
        let body = body(stream, &headers)?;
        Ok(Response { status, headers, body })
    }

    /// Sends it.
    pub fn write(&self, stream: &mut impl Write, last: bool) -> io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let mut out = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        if last {
            out.push_str("connection: close\r\n");
        }
        out.push_str(&format!("content-length: {}\r\n\r\n", self.body.len()));
        // In one piece: a client that sees half an answer would wait for a delayed second half.
        stream.write_all(&[out.as_bytes(), &self.body].concat())?;
        stream.flush()
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad HTTP: {what}"))
}

/// A line without its end; empty also at the end of the stream.
fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.take(LINE_MAX).read_until(b'\n', &mut line)?;
    if !line.is_empty() && line.last() != Some(&b'\n') {
        return Err(bad("line"));
    }
    let text = String::from_utf8(line).map_err(|_| bad("text"))?;
    Ok(text.trim_end().to_owned())
}

fn headers(stream: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("header"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        if headers.len() > HEADERS_MAX {
            return Err(bad("too many headers"));
        }
    }
}

fn body(stream: &mut impl BufRead, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
    if find(headers, "transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return chunks(stream);
    }
    let len = find(headers, "content-length").map_or(Ok(0), str::parse);
    let len: usize = len.map_err(|_| bad("content-length"))?;
    take(stream, len)
}

fn take(stream: &mut impl BufRead, len: usize) -> io::Result<Vec<u8>> {
    if len > BODY_MAX {
        return Err(bad("body too long"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(stream)?;
        let size = size.split(';').next().unwrap_or_default();
        let len = usize::from_str_radix(size.trim(), 16).map_err(|_| bad("chunk"))?;
        if len == 0 {
            // What follows the last chunk has the form of headers.
            headers(stream)?;
            return Ok(body);
        }
        body.extend(take(stream, len)?);
        if body.len() > BODY_MAX || !line(stream)?.is_empty() {
            return Err(bad("chunk"));
        }
    }
}
