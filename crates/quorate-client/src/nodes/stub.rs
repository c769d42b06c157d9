//! The generated stubs, with our limits.

use quorate_proto::limits::DECODE_BYTES;
use quorate_proto::v1::admin_client::AdminClient;
use quorate_proto::v1::registry_client::RegistryClient;

use crate::nodes::dial::Connection;

pub(crate) fn registry(connection: Connection) -> RegistryClient<Connection> {
    RegistryClient::new(connection).max_decoding_message_size(DECODE_BYTES)
}

pub(crate) fn admin(connection: Connection) -> AdminClient<Connection> {
    AdminClient::new(connection).max_decoding_message_size(DECODE_BYTES)
}
