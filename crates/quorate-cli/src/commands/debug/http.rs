//! Takes the metrics of a node: one GET, with TLS and the credentials that the command has.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::args::ClientArgs;
use crate::authority::is_authority;
use crate::connect;

const WITHIN: Duration = Duration::from_secs(5);
/// 50 services, some hundred series, and histograms take a few hundred KiB.
const ANSWER_MAX: usize = 8 * 1024 * 1024;

/// # Errors
/// Why they cannot be had.
pub(super) async fn metrics(address: &str, args: &ClientArgs) -> Result<String, String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    let secured = args.ca.as_deref().map(|ca| config(ca, args)).transpose()?;
    let request = Request::get("/metrics").header(HOST, address);
    let request = match token(host, args) {
        Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
        None => request,
    };
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let Some(config) = secured else { return exchange(stream, request).await };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        exchange(connecting.await.map_err(|error| error.to_string())?, request).await
    };
    let answer = timeout(WITHIN, asked).await;
    let answer = answer.unwrap_or_else(|_elapsed| Err(format!("no answer within {WITHIN:?}")));
    answer.map_err(|why| format!("{address}: {why}"))
}

/// The token, where nobody else can read it on its way.
fn token(host: &str, args: &ClientArgs) -> Option<String> {
    let is_near = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !is_near && args.ca.is_none() && !args.allow_plaintext_token {
        return None;
    }
    let token = match &args.token_file {
        Some(file) => std::fs::read_to_string(file).ok()?,
        // A bundle is made of what there is.
        None => connect::token(args).ok()??,
    };
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Trusts this CA, less what was revoked, and shows the command's certificate if it has one.
fn config(ca: &Path, args: &ClientArgs) -> Result<ClientConfig, String> {
    let of = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let certificates = |path: &Path| {
        let read = CertificateDer::pem_file_iter(path);
        let read = read.and_then(Iterator::collect::<Result<Vec<CertificateDer<'static>>, _>>);
        read.map_err(|error| of(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(certificates(ca)?) {
        if !is_authority(&certificate) {
            return Err(of(ca, &format!("certificate {number} is no authority's")));
        }
        roots.add(certificate).map_err(|error| of(ca, &error))?;
    }
    // What is no list of one of the CAs is said by the client of the same command.
    let revoked = match args.crl.as_deref() {
        Some(path) => {
            let read = CertificateRevocationListDer::pem_file_iter(path);
            let read = read.and_then(Iterator::collect::<Result<Vec<_>, _>>);
            read.map_err(|error| of(path, &error))?
        }
        None => Vec::new(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .with_crls(revoked)
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| of(ca, &error))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_webpki_verifier(verifier);
    match args.cert.as_deref().zip(args.key.as_deref()) {
        Some((cert, key)) => {
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, &error))?;
            let made = builder.with_client_auth_cert(certificates(cert)?, own);
            made.map_err(|error| of(cert, &error))
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<String, String> {
    let why = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(why)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(why)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::OK => Ok(text),
            _ => Err(format!("the node answered: {status}: {}", text.trim())),
        }
    };
    tokio::select! {
        answered = answered => answered,
        Err(error) = connection => Err(error.to_string()),
    }
}
