//! The generated stubs, with our limits.

use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;
use tonic::transport::Channel;

/// The largest answer taken: the server's limit for a fetch (32 MiB) and room for what stands around it.
const DECODE_MAX: usize = 40 * 1024 * 1024;

pub(crate) fn registry(channel: Channel) -> RegistryClient<Channel> {
    RegistryClient::new(channel).max_decoding_message_size(DECODE_MAX)
}

pub(crate) fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(DECODE_MAX)
}
