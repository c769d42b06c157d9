//! How a command reaches the cluster, and how it says that it has done something there.

use quorate_client::{Client, ClientBuilder, Tls};
use serde_json::json;

use crate::args::ClientArgs;
use crate::failure::Failure;
use crate::logging::{self, LogFormat};
use crate::output::{self, Format};
use crate::variables;

/// Whether a command stays, and so has to learn of members that come and go, or asks only the nodes
/// that were named and, for writes, the leader that they name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    Once,
    Long,
}

/// The client of a command.
pub(crate) async fn client(args: &ClientArgs, stay: Stay) -> Result<Client, Failure> {
    logging::start(logging::CLIENT, LogFormat::Text).map_err(Failure::usage)?;
    client_of(args.nodes(), args, stay)
}

/// A client of these nodes, with the credentials of a command.
pub(crate) fn client_of(
    nodes: Vec<String>,
    args: &ClientArgs,
    stay: Stay,
) -> Result<Client, Failure> {
    let builder = Client::builder(nodes)
        .namespace(args.namespace())
        .call_timeout(args.timeout)
        .in_order(true);
    let builder = with_credentials(builder, args)?;
    let builder = match stay {
        Stay::Once => builder.member_refresh(None),
        Stay::Long => builder,
    };
    Ok(builder.build()?)
}

/// The CAs to trust, what they have revoked, and this client's certificate or token.
fn with_credentials(builder: ClientBuilder, args: &ClientArgs) -> Result<ClientBuilder, Failure> {
    let builder = match &args.ca {
        Some(ca) => {
            let tls = Tls::new().ca_file(ca);
            let tls = match &args.crl {
                Some(lists) => tls.crl_file(lists),
                None => tls,
            };
            builder.tls(match args.cert.as_ref().zip(args.key.as_ref()) {
                Some((cert, key)) => tls.identity_files(cert, key),
                None => tls,
            })
        }
        None => builder,
    };
    let builder = match &args.token_file {
        Some(file) => builder.token_file(file),
        None => match token(args)? {
            Some(token) => builder.token(token),
            None => builder,
        },
    };
    Ok(builder.allow_plaintext_token(args.allow_plaintext_token))
}

/// The token that stands in the environment, if it is for this cluster.
pub(crate) fn token(args: &ClientArgs) -> Result<Option<String>, Failure> {
    if args.ignores_token {
        return Ok(None);
    }
    let token = variables::text("QUORATE_TOKEN").map_err(Failure::usage)?;
    Ok(token.filter(|token| !token.is_empty()))
}

/// Says that something was done with an instance.
pub(crate) fn done(
    client: &ClientArgs,
    what: &str,
    service: &str,
    id: &str,
) -> Result<(), Failure> {
    match client.output {
        Format::Json => output::json(&json!({ "done": what, "service": service, "id": id }))?,
        Format::Table => output::line(&format!("{what} {service}/{id}"))?,
    }
    Ok(())
}
