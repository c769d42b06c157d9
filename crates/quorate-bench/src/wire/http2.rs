//! An HTTP/2 connection for the generated stubs. tonic's own channel keeps a queue, a task for each
//! call and a connection that comes back; here a call is written where it is made. On two cores
//! that the servers share, that is theirs: with 512 registrations in flight the driver took a third
//! of all processor time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::FutureExt;
use h2::client::{Builder, SendRequest};
use h2::{RecvStream, SendStream};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Body, Frame};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::codegen::{Service, StdError};

use crate::certs::Address;

/// Longer than any call of the workloads takes on a cluster that works.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The same receive windows for both peers, so large that loopback never waits for them.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A connection, until its last clone is gone. What is sent waits in memory for the peer's windows:
/// workloads bound what is under way.
#[derive(Clone)]
pub(crate) struct Http2 {
    requests: SendRequest<Bytes>,
    scheme: Scheme,
    authority: Authority,
}

/// The body of an answer.
pub(crate) struct Answer(RecvStream);

impl Http2 {
    /// Connects to a node, with TLS where it has certificates.
    pub(crate) async fn connect(address: &Address) -> Result<Self> {
        let Address { text, certs } = address;
        let opening = async {
            let authority = text.parse::<Authority>()?;
            let tcp = TcpStream::connect(text).await?;
            tcp.set_nodelay(true)?;
            let (requests, scheme) = match certs {
                None => (handshake(tcp).await?, Scheme::HTTP),
                Some(certs) => {
                    let name = ServerName::try_from(authority.host().to_owned())?;
                    let connector = TlsConnector::from(certs.driver.clone());
                    (handshake(connector.connect(name, tcp).await?).await?, Scheme::HTTPS)
                }
            };
            anyhow::Ok(Self { requests, scheme, authority })
        };
        let opened = timeout(CONNECT_TIMEOUT, opening).await.context("no connection in time");
        opened.and_then(|opened| opened).with_context(|| format!("connecting to {text}"))
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder.initial_window_size(STREAM_WINDOW);
    builder.initial_connection_window_size(CONNECTION_WINDOW);
    let (requests, connection) = builder.handshake(stream).await?;
    // Its end is an error of the calls that are under way.
    tokio::spawn(async { drop(connection.await) });
    Ok(requests)
}

impl Service<Request<tonic::body::Body>> for Http2 {
    type Response = Response<Answer>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, StdError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.requests.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let Self { requests, scheme, authority } = self.clone();
        Box::pin(async move {
            let mut uri = head.uri.into_parts();
            (uri.scheme, uri.authority) = (Some(scheme), Some(authority));
            head.uri = Uri::from_parts(uri)?;
            let calling = async {
                let mut requests = requests.ready().await?;
                let (response, stream) =
                    requests.send_request(Request::from_parts(head, ()), false)?;
                send(body, stream)?;
                Ok::<_, StdError>(response.await?.map(Answer))
            };
            timeout(CALL_TIMEOUT, calling).await?
        })
    }
}

/// Sends the pieces of a body that are there, which are all of a unary call, and has the others
/// sent when they come.
fn send(mut body: tonic::body::Body, mut stream: SendStream<Bytes>) -> Result<(), StdError> {
    let mut last = None;
    loop {
        match next(&mut body).now_or_never() {
            Some(Some(piece)) => {
                if let Some(before) = last.replace(piece?) {
                    stream.send_data(before, false)?;
                }
            }
            Some(None) => {
                stream.send_data(last.unwrap_or_default(), true)?;
                return Ok(());
            }
            None => {
                if let Some(last) = last {
                    stream.send_data(last, false)?;
                }
                tokio::spawn(send_rest(body, stream));
                return Ok(());
            }
        }
    }
}

/// Ends with the stream, and with it the wait for its answers.
async fn send_rest(mut body: tonic::body::Body, mut stream: SendStream<Bytes>) {
    while let Some(Ok(piece)) = next(&mut body).await {
        if stream.send_data(piece, false).is_err() {
            return;
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
}

async fn next(body: &mut tonic::body::Body) -> Option<Result<Bytes, StdError>> {
    let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await?;
    // Requests have no trailers.
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()).map_err(Into::into))
}

impl Body for Answer {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if let Some(piece) = ready!(self.0.poll_data(context)) {
            let piece = piece?;
            self.0.flow_control().release_capacity(piece.len())?;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let trailers = ready!(self.0.poll_trailers(context))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
