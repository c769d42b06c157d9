//! Takes the metrics of a node: one GET over plain HTTP.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::args::ClientArgs;

const WITHIN: Duration = Duration::from_secs(5);
/// 50 services, some hundred series, and histograms take a few hundred KiB.
const ANSWER_MAX: u64 = 8 * 1024 * 1024;

/// # Errors
/// Why they cannot be had.
pub(super) async fn metrics(address: &str, args: &ClientArgs) -> Result<String, String> {
    if args.ca.is_some() {
        return Err(format!(
            "the node speaks TLS, and this command does not for HTTP: curl --cacert CA https://{address}/metrics"
        ));
    }
    let authorization = match token(address, args) {
        Some(token) => format!("Authorization: Bearer {token}\r\n"),
        None => String::new(),
    };
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n"
    );
    match timeout(WITHIN, exchange(address, request)).await {
        Ok(answer) => body(&answer.map_err(|error| format!("{address}: {error}"))?),
        Err(_elapsed) => Err(format!("{address}: no answer within {WITHIN:?}")),
    }
}

/// The token, where nobody else can read it on its way.
fn token(address: &str, args: &ClientArgs) -> Option<String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    let is_near = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
    if !is_near && !args.allow_plaintext_token {
        return None;
    }
    let token = match &args.token_file {
        Some(file) => std::fs::read_to_string(file).ok()?,
        None => std::env::var("QUORATE_TOKEN").ok()?,
    };
    let token = token.trim();
    // Nothing that would end the line.
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_token.then(|| token.to_owned())
}

async fn exchange(address: &str, request: String) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn body(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("the answer is no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("the node answered: {status}: {}", body.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nx 1\n").unwrap(), "x 1\n");
        let refused = body(b"HTTP/1.1 403 Forbidden\r\n\r\nneeds the role read\n").unwrap_err();
        assert!(refused.contains("403") && refused.contains("needs the role read"), "{refused}");
        assert!(body(b"\x15\x03\x01").unwrap_err().contains("no HTTP"));
    }
}
