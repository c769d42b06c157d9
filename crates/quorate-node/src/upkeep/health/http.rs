//! An HTTP/1.1 probe: one GET on a fresh connection; of the answer only the status is read.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::probe::Failure;

/// A status line that is longer is none.
const STATUS_LINE_MAX: usize = 4_096;

/// Passes with a status of 200 to 299. `host` is what the URI names, with its port. `path` has no
/// character that could end the line (`Checks::new` sees to that).
pub(super) async fn probe(mut stream: TcpStream, host: &str, path: &str) -> Result<(), Failure> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: quorate-health-check/{}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await.map_err(Failure::Io)?;
    let mut answer = Vec::with_capacity(STATUS_LINE_MAX);
    while !answer.contains(&b'\n') {
        let room = (STATUS_LINE_MAX - answer.len()) as u64;
        let read = (&mut stream).take(room).read_buf(&mut answer).await.map_err(Failure::Io)?;
        if read == 0 {
            return Err(Failure::NoHttp);
        }
    }
    match status(&answer) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(Failure::HttpStatus(status)),
        None => Err(Failure::NoHttp),
    }
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let after = line.strip_prefix(b"HTTP/1.1 ").or(line.strip_prefix(b"HTTP/1.0 "))?;
    let (status, rest) = after.split_at_checked(3)?;
    let ended = matches!(rest.first(), None | Some(b' ' | b'\r'));
    let status = std::str::from_utf8(status).ok()?;
    // "+20" is a number, too.
    let digits = ended && status.bytes().all(|byte| byte.is_ascii_digit());
    status.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some(200)),
            ("HTTP/1.0 503\n", Some(503)),
            ("HTTP/1.1 204 \r\n", Some(204)),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n", Some(302)),
            ("HTTP/2 200\r\n", None),
            ("HTTP/1.1 2000\r\n", None),
            ("HTTP/1.1 +20\r\n", None),
            ("HTTP/1.1 20\r\n", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()), expected, "{answer:?}");
        }
    }
}
